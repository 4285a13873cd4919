"""`hadamard report`: the results of a bench as Markdown, CSV and one HTML page."""

from dataclasses import dataclass, field

from hadamard_adapter.cli.console import message_console
from hadamard_adapter.cli.options import command_from

__all__ = ["ReportOptions", "report_command"]


@dataclass(frozen=True)
class ReportOptions:
    """The options of `hadamard report`."""

    results: str = field(metadata={"argument": "RESULTS"})
    """Folder that `hadamard bench` wrote."""
    output: str | None = None
    """Folder that receives the report; the folder of results if not given."""
    quiet: bool = False
    """Whether to say nothing but errors."""


@command_from("report", ReportOptions)
def report_command(options: ReportOptions) -> None:
    """Write the report of a bench: tables, statistics, pictures.

    The page report.html holds everything in itself and works without a network; report.md and report.csv
    stand beside it. Of `hadamard bench speed` it writes speed.md, speed.json and pictures.

    \b
    Example:
      hadamard report results/quick
      hadamard report results/quick --output report
    """
    from hadamard_adapter.analysis.report import write_report

    console = message_console(options.quiet)
    for path in write_report(options.results, options.output):
        console.print(f"wrote {path}")
