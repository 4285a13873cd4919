"""The group `hadamard` and its error boundary: every way out has one exit code and at most one line.

0    done (also: already finished)
2    the user can mend it: options, data, folders, no space, no memory
130  Ctrl-C
141  the reader of standard output went away (`| head`)
1    a bug of this program
"""

import contextlib
import io
import os
import sys
import traceback
import warnings
from collections.abc import Sequence

import click
from click.shell_completion import shell_complete

from hadamard_adapter import __version__
from hadamard_adapter.allocator import keep_freed_memory
from hadamard_adapter.cli.analyse import analyse_group, prune_command
from hadamard_adapter.cli.bank import bank_group
from hadamard_adapter.cli.bench import bench_command
from hadamard_adapter.cli.eval import eval_command
from hadamard_adapter.cli.inspect import inspect_command
from hadamard_adapter.cli.merge import merge_command
from hadamard_adapter.cli.options import debug_option, quiet_option
from hadamard_adapter.cli.predict import predict_command
from hadamard_adapter.cli.report import report_command
from hadamard_adapter.cli.serve import serve_command, serve_key_command
from hadamard_adapter.cli.share import share_group
from hadamard_adapter.cli.tune import tune_command
from hadamard_adapter.errors import HadamardError, is_out_of_memory
from hadamard_adapter.files import is_no_space

__all__ = ["hadamard", "main", "run"]

EXIT_USER = 2
EXIT_BUG = 1
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="hadamard", message="%(prog)s %(version)s")
@click.pass_context
def hadamard(context: click.Context) -> None:
    """Tune a pre-trained transformer: an adapter of less than 0.1 % of its parameters, and a head.

    \b
    hadamard tune --model MODEL --train train.csv --output adapter
    hadamard eval --adapter adapter --data test.csv
    hadamard predict --adapter adapter --input new.csv --output labelled.csv
    hadamard merge --adapter adapter --output plain-model
    hadamard inspect adapter
    hadamard bank add --store STORE mood adapter
    hadamard serve --model MODEL --store STORE
    hadamard bench experiments/quick.toml --results results/quick
    hadamard report results/quick
    hadamard prune --adapters adapter --output smaller
    hadamard analyse patterns --adapters adapter,other
    hadamard share mean --adapters adapter,other --output start
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


hadamard.params.extend([quiet_option(), debug_option()])
_COMMANDS = (tune_command, eval_command, predict_command, merge_command, inspect_command)
_MORE = (bank_group, serve_command, serve_key_command, bench_command, report_command)
for _command in (*_COMMANDS, *_MORE, analyse_group, prune_command, share_group):
    hadamard.add_command(_command)


def main() -> None:
    """Run the command line of this process and leave with its exit code."""
    completion = os.environ.get("_HADAMARD_COMPLETE")
    if completion:
        sys.exit(shell_complete(hadamard, {}, "hadamard", "_HADAMARD_COMPLETE", completion))
    keep_freed_memory()
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started this
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  # for good
    _write_utf8()
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; nothing but a bug of Python itself passes through.

    Args:
        arguments: the words after `hadamard`.

    Example:
        >>> run(["--version"])
        hadamard 0.1.0
        0
    """
    try:
        with warnings.catch_warnings(), hadamard.make_context("hadamard", list(arguments)) as context:
            if "--debug" not in arguments:
                warnings.simplefilter("ignore")  # the libraries' warnings are for programmers
            hadamard.invoke(context)
        sys.stdout.flush()
        return 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return EXIT_BROKEN_PIPE
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # rich turns it into an exit of its own
            return EXIT_BROKEN_PIPE
        raise
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        message = _user_message(error)
        if message is not None:
            click.echo(f"error: {_one_line(message)}", err=True)
            return EXIT_USER
        again = "" if "--debug" in arguments else "; run again with --debug to see where"
        click.echo(f"error: this is a bug: {type(error).__name__}: {_one_line(str(error))}{again}", err=True)
        return EXIT_BUG
    finally:
        _drop_what_cannot_be_written()


def _user_message(error: Exception) -> str | None:
    """What to tell the user about an error that they can mend; None for a bug."""
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx is not None else "hadamard"
        return f"{error.format_message().rstrip('.')}; see {command} --help"
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, HadamardError):
        return str(error)
    if is_no_space(error):
        return f"no space left on the device; free some or choose another folder ({error})"
    if is_out_of_memory(error):
        return "out of memory; try --micro-batch-tokens 1024 (tune), a smaller --batch-size or --max-length"
    if type(error).__name__ == "SafetensorError":
        return f"a safetensors file is damaged or cut short ({error}); copy or make it again"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return None


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _write_utf8() -> None:
    """Data on standard output is UTF-8 with its own line ends, as files are; a terminal that cannot show a
    character gets a `?`."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        if sys.stdout.isatty():
            sys.stdout.reconfigure(errors="replace")
        else:
            sys.stdout.reconfigure(encoding="utf-8", newline="")


def _drop_what_cannot_be_written() -> None:
    """Send the rest nowhere if standard output has no reader left, so that Python's last flush is silent."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
