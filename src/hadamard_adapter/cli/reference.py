"""The reference page of the command, docs/cli.md, made from the commands themselves.

python -m hadamard_adapter.cli.reference > docs/cli.md
"""

import re

import click

from hadamard_adapter.cli.main import hadamard

__all__ = ["page"]

_HEAD = """# The command `hadamard`

This page is made from the commands themselves by `python -m hadamard_adapter.cli.reference > docs/cli.md`; a
test checks that it is up to date.

Standard output carries data only (the rows of `predict`, the tables or the JSON of `eval`, the trees of
`inspect`); progress, messages and errors go to standard error. Colours appear on a terminal only, and never
with `NO_COLOR` set.

| exit code | meaning |
|---|---|
| 0 | done, or already finished |
| 2 | something that you can mend: options, data, folders, no space, no memory; one line says what |
| 130 | Ctrl-C; the same `tune` command again continues |
| 141 | the reader of standard output went away (`hadamard predict ... \\| head`) |
| 1 | a bug of this program; `--debug` shows where |

Every option can stand in a TOML file, read with `--config run.toml`: at its top, or in a table named like the
command (of a group's: `[bank.list]`), and one file may serve all. What the command line gives wins over
the file, and an unknown key is an error.

```toml
[tune]
model = "sentence-transformers/all-MiniLM-L6-v2"
train = "train.csv"
output = "adapter"
layers = [0, 1, 2]
lr = 0.003
```

Two processes on CPU share a run by `torchrun --nproc_per_node 2 $(which hadamard) tune ...` or by
`ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 -m hadamard_adapter.cli tune ...`
(`accelerate launch --cpu --num_processes 2` starts one process only). Bash completes words after
`eval "$(_HADAMARD_COMPLETE=bash_source hadamard)"` (likewise zsh, fish).
"""


def page() -> str:
    """The whole page, in Markdown.

    Example:
        >>> page().splitlines()[0]
        '# The command `hadamard`'
    """
    with hadamard.make_context("hadamard", [], resilient_parsing=True) as context:
        return "\n".join([_HEAD, _table(hadamard, context), *_sections(hadamard, context)])


def _sections(group: click.Group, context: click.Context) -> list[str]:
    """A section a command; of a group within the group its commands'."""
    sections: list[str] = []
    for name in group.list_commands(context):
        command = group.commands[name]
        if isinstance(command, click.Group):
            with click.Context(command, info_name=command.name, parent=context) as inner:
                sections += _sections(command, inner)
        else:
            sections.append(_section(command, context))
    return sections


def _section(command: click.Command, parent: click.Context) -> str:
    with click.Context(command, info_name=command.name, parent=parent) as context:
        usage = " ".join(command.collect_usage_pieces(context))
        return "\n".join(
            [
                f"## {context.command_path}",
                "",
                f"`{context.command_path} {usage}`",
                "",
                _description(command.help or ""),
                "",
                _table(command, context),
            ]
        )


def _description(help_text: str) -> str:
    """Paragraphs as they are; what follows Click's \\b mark as a block of code."""
    lines = [line[4:] if line.startswith("    ") else line for line in help_text.strip().splitlines()]
    text, _, example = "\n".join(lines).partition("\b\nExample:\n")
    code = "\n".join(line.removeprefix("  ") for line in example.rstrip().splitlines())
    return f"{text.strip()}\n\n```bash\n{code}\n```" if code else text.strip()


def _table(command: click.Command, context: click.Context) -> str:
    rows = ["| option | meaning |", "|---|---|"]
    for parameter in command.get_params(context):
        if isinstance(parameter, click.Option):
            name, text = parameter.get_help_record(context) or ("", "")
            rows.append(f"| `{_cell(name)}` | {_cell(text)} |")
    return "\n".join([*rows, ""])


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
