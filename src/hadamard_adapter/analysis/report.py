"""The report of a folder of results: report.md, report.csv, report.html; of speed: speed.md and pictures."""

from pathlib import Path

from hadamard_adapter.analysis.page import page
from hadamard_adapter.analysis.speed import is_speed
from hadamard_adapter.analysis.speed_texts import speed_files
from hadamard_adapter.analysis.table import read_groups
from hadamard_adapter.analysis.texts import csv_text, markdown
from hadamard_adapter.analysis.unmeasured import asked_of
from hadamard_adapter.bench.results import Results
from hadamard_adapter.errors import DataError
from hadamard_adapter.files import expanded, replacing
from hadamard_adapter.tuning.places import refuse_no_place

__all__ = ["write_report"]


def write_report(results: str | Path, output: str | Path | None = None) -> list[Path]:
    """Write the report of all runs in a folder and return its files.

    Args:
        results: folder of `hadamard bench`.
        output: folder of the report; None: the same.

    Raises:
        DataError: no record of a finished run is there, or no such folder.
        SettingsError: the output cannot be written.

    Example:
        >>> write_report("results/quick")  # doctest: +SKIP
        [PosixPath('results/quick/report.md'), ...]
    """
    found = Results(expanded(results))
    groups = read_groups(found)
    speed = [record for record in found.records().values() if is_speed(record)]
    asked = asked_of(found) if speed else []
    problems = [f"{name}: {problem}" for name, problem in sorted(found.problems.items())]
    if not groups and not speed:
        more = f" ({problems[0]})" if problems else ""
        what = f"none{more}" if found.folder.is_dir() else "no such folder; name another one"
        raise DataError(
            f"{str(results)!r}: expected a folder of `hadamard bench` with finished runs in runs/, "
            f"found {what}"
        )
    failed = [
        f"{name}: {record['error']}"
        for name, record in sorted(found.records().items())
        if record["status"] == "failed" and not is_speed(record)
    ]
    texts: dict[str, str] = {}
    if groups:
        texts |= {"report.md": markdown(groups, problems, failed), "report.csv": csv_text(groups)}
        texts["report.html"] = page(groups, problems, failed)
    if speed:
        texts |= speed_files(speed, asked, problems)
    folder = expanded(results if output is None else output).absolute()
    refuse_no_place("output", folder / next(iter(texts)))
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        with replacing(folder / name, "w", encoding="utf-8") as file:
            file.write(text)
    return [folder / name for name in texts]
