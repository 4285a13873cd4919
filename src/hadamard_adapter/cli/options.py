"""Click options from a frozen dataclass: one option per field, its help the docstring under the field.

The field's name gives the option (`head_lr` is `--head-lr`), its type the conversion, its default the rest:

    bool                --x / --no-x            tuple[int, ...]    --x 0,1,5 or --x 0-7
    Literal["a", "b"]   --x [a|b]               tuple[str, ...]    --x a,b   (`none` is the empty list)
    float | tuple[float, ...]   --x 0.1 or --x 0.1,0.3

A field with `metadata={"argument": "NAME"}` becomes a positional argument.
"""

import dataclasses
import os
import re
import types
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

from hadamard_adapter.cli.config_file import read_defaults
from hadamard_adapter.errors import SettingsError
from hadamard_adapter.files import expanded
from hadamard_adapter.tuning.places import may_write
from hadamard_adapter.tuning.settings import field_help

__all__ = ["CommaList", "command_from", "debug_option", "quiet_option", "refuse_no_file", "refuse_no_picture"]

S = TypeVar("S")

_QUIET = "hadamard_adapter.quiet"


class CommaList(click.ParamType):  # pyright: ignore[reportMissingTypeArgument]
    """A list in one word, `a,b,c`; whole numbers take ranges too, `0-3,7`; `none` is the empty list.

    Example:
        >>> CommaList(int).convert("0-2,7", None, None)
        (0, 1, 2, 7)
    """

    def __init__(self, item: type, or_one: bool = False) -> None:
        """Make a list type of `item`, str, int or float; with `or_one` a single item stands for itself."""
        self.item, self.or_one = item, or_one
        self.name = "names" if item is str else "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The tuple that a word stands for; a tuple passes as it is."""
        if not isinstance(value, str):
            return value
        if value.strip().lower() == "none":
            return ()
        words = [word.strip() for word in value.split(",") if word.strip()]
        try:
            found = tuple(item for word in words for item in self._items(word))
        except ValueError:
            expected = "0,1,5 or 0-7" if self.item is int else "0.001 or 0.001,0.003"
            self.fail(f"expected numbers such as {expected}, received {value!r}", param, ctx)
        return found[0] if self.or_one and len(found) == 1 else found

    def _items(self, word: str) -> Iterable[Any]:
        return _numbers(word) if self.item is int else [self.item(word)]


def refuse_no_file(option: str, target: str, or_else: str = "") -> None:
    """Refuse a file to write that has no folder, or that is something else.

    Args:
        option: its name, for the message.
        target: path of the file.
        or_else: what else may be given, for the message.

    Raises:
        SettingsError: the file cannot be written there.

    Example:
        >>> refuse_no_file("--errors", "wrong.csv")
    """
    path = expanded(target)
    if not path.parent.is_dir():
        raise SettingsError(f"{option} {target!r}: no folder {str(path.parent)!r}; make it first")
    if path.exists() and not path.is_file():
        raise SettingsError(f"{option} {target!r} is no file; name one{or_else}")
    if not may_write(path.parent):
        raise SettingsError(
            f"{option} {target!r}: folder {str(path.parent)!r} cannot be written to; allow it, or "
            "choose another"
        )


def refuse_no_picture(target: str) -> None:
    """Refuse a file for --plot that cannot be written, or whose name does not end in .svg or .png.

    Raises:
        SettingsError: so it is.

    Example:
        >>> refuse_no_picture("curve.svg")
    """
    refuse_no_file("--plot", target)
    if Path(target).suffix.lower() not in (".svg", ".png"):
        raise SettingsError(f"--plot {target!r}: expected a name that ends in .svg or .png")


def command_from(name: str, settings: type[S]) -> Callable[[Callable[[S], None]], click.Command]:
    """A decorator that makes a command of a function of one settings object.

    Beside the settings' fields the command takes --config, --quiet, --debug and --help.

    Args:
        name: the verb.
        settings: a frozen dataclass; what it raises for bad values passes through.

    Example:
        >>> from hadamard_adapter.cli.merge import MergeOptions
        >>> @command_from("fold", MergeOptions)
        ... def fold(options: MergeOptions) -> None:
        ...     '''Fold an adapter.'''
        >>> [option.opts for option in fold.params][0]
        ['--adapter']
    """
    names = [field.name for field in dataclasses.fields(settings)]  # pyright: ignore[reportArgumentType]

    def decorate(function: Callable[[S], None]) -> click.Command:
        def callback(**values: Any) -> None:
            if "quiet" in names:
                values["quiet"] = _is_quiet()
            if isinstance(values.get("model"), str):  # a shell leaves the ~ of --model=~/folder to us
                values["model"] = os.path.expanduser(values["model"])
            function(settings(**values))

        return click.Command(
            name,
            params=[*_parameters_of(settings), *_shared_options()],
            help=function.__doc__,
            short_help=(function.__doc__ or "").partition("\n")[0],
            callback=callback,
        )

    return decorate


def _parameters_of(settings: type) -> list[click.Parameter]:
    """One Click parameter per field of a settings dataclass, required ones first, without `quiet`."""
    hints = typing.get_type_hints(settings)
    help_of = field_help(settings)
    fields = [field for field in dataclasses.fields(settings) if field.name != "quiet"]
    fields.sort(key=lambda field: field.default is not dataclasses.MISSING)
    return [_parameter(field, hints[field.name], help_of[field.name]) for field in fields]


def _is_quiet() -> bool:
    """Whether --quiet was given, before or after the verb."""
    context = click.get_current_context(silent=True)
    return bool(context is not None and context.meta.get(_QUIET))


def quiet_option() -> click.Option:
    """--quiet, which every command and the group itself take."""
    return click.Option(
        ["--quiet"],
        is_flag=True,
        expose_value=False,
        callback=_remember_quiet,
        help="Say nothing but errors; data still goes to standard output.",
    )


def debug_option() -> click.Option:
    """--debug, which every command and the group itself take; `main` looks for the word itself."""
    return click.Option(
        ["--debug"], is_flag=True, expose_value=False, help="Show the Python traceback of an error."
    )


def _shared_options() -> list[click.Parameter]:
    config = click.Option(
        ["--config"],
        metavar="FILE",
        is_eager=True,
        expose_value=False,
        callback=_use_config,
        help="TOML file with these options, at its top or in a table named like the command; "
        "what the command line gives wins.",
    )
    return [config, quiet_option(), debug_option()]


def _use_config(context: click.Context, _: click.Parameter, path: str | None) -> None:
    if path is not None:
        values, quiet = read_defaults(path, context)
        context.default_map = {**(context.default_map or {}), **values}
        context.meta[_QUIET] = quiet or context.meta.get(_QUIET, False)


def _remember_quiet(context: click.Context, _: click.Parameter, value: bool) -> None:
    context.meta[_QUIET] = value or context.meta.get(_QUIET, False)


def _parameter(field: "dataclasses.Field[Any]", hint: Any, help_text: str) -> click.Parameter:
    required = field.default is dataclasses.MISSING
    kind, choices = _without_none(hint), None
    if typing.get_origin(kind) is typing.Literal:
        choices = typing.get_args(kind)
    if "argument" in field.metadata:
        metavar = field.metadata["argument"]
        return click.Argument([field.name], type=_Word(), metavar=metavar, required=required)
    word = field.name.replace("_", "-")
    names = f"--{word}/--no-{word}" if kind is bool else f"--{word}"
    extra: dict[str, Any] = (
        {} if kind is bool else {"type": _click_type(kind, choices), "metavar": _metavar(kind)}
    )
    extra |= {"required": True} if required else {"default": field.default}
    is_default_shown = not any(field.default is hidden for hidden in (None, False, dataclasses.MISSING))
    help_text = re.sub(r"\bNone: ", "by default ", help_text)
    return click.Option([names, field.name], show_default=is_default_shown, help=help_text, **extra)


def _without_none(hint: Any) -> Any:
    """The type of an optional field; of one item or several it is left as it is."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        parts = [part for part in typing.get_args(hint) if part is not type(None)]
        return parts[0] if len(parts) == 1 else tuple(parts)
    return hint


def _click_type(kind: Any, choices: tuple[Any, ...] | None) -> Any:
    if choices is not None:
        return click.Choice(choices)
    if isinstance(kind, tuple):  # one item, or several
        return CommaList(kind[0], or_one=True)
    if typing.get_origin(kind) is tuple:
        return CommaList(typing.get_args(kind)[0])
    return _Word() if kind is str else kind


class _Word(click.ParamType):  # pyright: ignore[reportMissingTypeArgument]
    """Text that is not empty: an empty path would stand for the current folder."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail(f"expected a name or a path, received {value!r}", param, ctx)
        return str(value)


def _metavar(kind: Any) -> str | None:
    return "TEXT" if kind is str else None


def _numbers(word: str) -> range:
    first, dash, last = word.partition("-")
    return range(int(first), int(last if dash else first) + 1)
