"""`--config run.toml`: every option of every command, written down in a file.

A key stands at the top of the file, for whichever command reads it, or in a table named like the command:
[tune], [bank.list]; [prune] is that of `hadamard prune`, [bank.prune] that of `hadamard bank prune`. What the
command line gives wins over both.
"""

from typing import Any

import click

from hadamard_adapter.errors import SettingsError
from hadamard_adapter.files import read_toml

__all__ = ["read_defaults"]

_SHARED = ("config", "debug")


def read_defaults(path: str, context: click.Context) -> tuple[dict[str, Any], bool]:
    """The defaults that a TOML file gives to one command, and whether it asks for quiet.

    Every value passes through the same conversion as a word on the command line, so `epochs = 2.5` is refused
    here as `--epochs 2.5` is there. Keys may be written with dashes or underscores.

    Args:
        path: the file.
        context: of the command that reads it.

    Raises:
        click.UsageError: no such file, not TOML, an unknown table or key, or a value of the wrong kind.
    """
    document = _read_toml(path)
    command = str(context.info_name)
    tables = {key: value for key, value in document.items() if isinstance(value, dict)}
    _refuse_unknown_tables(path, tables, context)
    flat = {key: value for key, value in document.items() if key not in tables}
    options = {
        str(parameter.name): parameter
        for parameter in context.command.params
        if str(parameter.name) not in _SHARED
    }
    values: dict[str, Any] = {}
    for where, given in ((path, flat), *_tables_of(path, command, tables, context)):
        for key, value in given.items():
            name = key.replace("-", "_")
            if name not in options:
                known = ", ".join(sorted(options)).replace("_", "-")
                raise click.UsageError(f"{where}: unknown key {key!r}; known to {command}: {known}")
            values[name] = _converted(value, options[name], context, f"{where}: {key} = {value!r}")
    return values, bool(values.pop("quiet", False))


def _read_toml(path: str) -> dict[str, Any]:
    try:
        return read_toml(path)
    except SettingsError as error:
        raise click.UsageError(f"--config {error}") from error


def _tables_of(
    path: str, command: str, tables: dict[str, Any], context: click.Context
) -> list[tuple[str, dict[str, Any]]]:
    """Where the command's own tables stand, and what they hold: [list], and [bank.list] of `bank list`.

    [prune] is that of `hadamard prune`, so `bank prune` has [bank.prune] alone.
    """
    root = context.find_root().command
    is_anothers = context.parent is not context.find_root() and command in getattr(root, "commands", {})
    found = [(f"{path}, [{command}]", tables[command])] if command in tables and not is_anothers else []
    group = str(context.parent.info_name) if context.parent is not None else ""
    inner = tables.get(group, {}).get(command)
    return [*found, (f"{path}, [{group}.{command}]", inner)] if isinstance(inner, dict) else found


def _refuse_unknown_tables(path: str, tables: dict[str, Any], context: click.Context) -> None:
    """One file may serve all commands; those of a group by its name, [bank.list], or beside each other."""
    groups = [context.find_root().command, *([context.parent.command] if context.parent is not None else [])]
    known = {str(context.info_name)}
    known |= {name for group in groups if isinstance(group, click.Group) for name in group.commands}
    for name in tables:
        if name not in known:
            raise click.UsageError(f"{path}: unknown table [{name}]; known: {', '.join(sorted(known))}")


def _converted(value: Any, parameter: click.Parameter, context: click.Context, where: str) -> Any:
    is_flag = isinstance(parameter, click.Option) and parameter.is_flag
    if is_flag != isinstance(value, bool):
        expected = "true or false" if is_flag else "a value, not true or false"
        raise click.UsageError(f"{where}: expected {expected}")
    if is_flag:
        return value
    word = ",".join(str(item) for item in value) or "none" if isinstance(value, list) else str(value)
    try:
        return parameter.type.convert(word, parameter, context)
    except click.BadParameter as error:
        raise click.UsageError(f"{where}: {error.message}") from error
