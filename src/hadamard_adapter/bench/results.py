"""The folder of results: one JSON file a run, read with care, written by one rename.

    RESULTS/
        runs/NAME.json     the record of a run
        labels/HASH.json   true labels of dev rows, once for all runs on them
        specs/NAME.toml    the specs that were run here, as they were the last time
        work/NAME/         a run at work: its lock, and what lets a killed run continue
        jobs/              of the pool, of Slurm and of speed: what each worker was told, and its log

A record has the status done, failed (an error that comes again: the loss is not finite, the model does not
fit) or cancelled (the process went away: the same command runs it again).
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hadamard_adapter.bench.record import STATUSES, first_wrong
from hadamard_adapter.errors import BusyError, SettingsError
from hadamard_adapter.files import (
    is_no_space,
    locked,
    read_json,
    read_toml,
    remove_scrap,
    replacing,
    write_json,
)
from hadamard_adapter.tuning.places import refuse_no_place
from hadamard_adapter.tuning.resume import disk_errors_explained

__all__ = ["FORMAT", "Results", "is_over"]

CONTINUES = "free some and run the same command again: what is finished is kept, and this run continues"
"""What there is to do on a full disk."""

FORMAT = 1
"""Of the records; counted up when a reader of the old form would misread the new one."""


@dataclass
class Results:
    """A folder of results; what was read once is not read again."""

    folder: Path
    """Where they are; made when the first record is written."""
    problems: dict[str, str] = field(default_factory=lambda: dict[str, str]())
    """Name of a file -> why it does not count."""
    _records: dict[str, dict[str, Any]] = field(default_factory=lambda: dict[str, dict[str, Any]]())
    _stamps: dict[str, int] = field(default_factory=lambda: dict[str, int]())

    def records(self) -> dict[str, dict[str, Any]]:
        """Name of the run -> record, of all files that can be read; `problems` tells of the others."""
        there: set[str] = set()
        for entry in _json_files(self.folder / "runs"):
            name, stamp = entry.name.removesuffix(".json"), _stamp_of(entry)
            there.add(name)
            if self._stamps.get(name) == stamp:
                continue
            self._stamps[name] = stamp
            self._records.pop(name, None)
            self.problems.pop(entry.name, None)
            content, problem = _read(Path(entry.path))
            problem = problem or _damage_of(content)
            if problem is None:
                self._records[name] = content
            else:
                self.problems[entry.name] = problem
        self._records = {name: record for name, record in self._records.items() if name in there}
        return self._records

    def is_finished(self, name: str) -> bool:
        """Whether a run is over and need not be run again."""
        return is_over(self.records().get(name))

    def write(self, name: str, record: dict[str, Any]) -> None:
        """Put the record of a run into its place, whole or not at all.

        Raises:
            SettingsError: the folder cannot be made.
        """
        assert record["status"] in STATUSES
        write_json(self.made("runs") / f"{name}.json", {"format": FORMAT, **record})

    def do_once(self, name: str, make: Callable[[Path], dict[str, Any]]) -> bool:
        """Make a run's record in its work folder, which is locked meanwhile, unless it is finished.

        Args:
            name: of the run.
            make: does the run in a folder and returns its record.

        Returns:
            Whether it was done here or before, not by another process just now.

        Raises:
            SettingsError: a record of another version, or a file that cannot be read, stands in its place.
            TrainingError: the disk is full.
        """
        if self.is_finished(name):
            return True
        if (problem := self._left_alone(name)) is not None:
            raise SettingsError(
                f"{name}.json in {str(self.folder)!r}: {problem}. Choose another --results, or move the file "
                "away to run it again"
            )
        work = self.folder.absolute() / "work" / name
        try:
            with disk_errors_explained(work, CONTINUES):
                self.made("work")
                work.mkdir(exist_ok=True)
                with locked(work):
                    if not self.is_finished(name):
                        self.write(name, make(work))
                    remove_scrap(work)
        except (BusyError, FileNotFoundError) as error:  # or the other process has just removed the folder
            if isinstance(error, FileNotFoundError) and work.exists():
                raise
            return False
        return True

    def cancel(self, name: str, about: dict[str, Any], error: str) -> None:
        """Write down why a run is not there; a record that is finished, or left alone, stays as it is.

        On a full disk nothing is written: a run without a record is done again all the same.

        Args:
            name: of the run.
            about: its record's first entries: run, identity, title.
            error: why.
        """
        if not self.is_finished(name) and self._left_alone(name) is None:
            try:
                self.write(name, {**about, "status": "cancelled", "error": error})
            except OSError as failure:
                if not is_no_space(failure):
                    raise

    def made(self, kind: str) -> Path:
        """One of the folders inside, made if it is not there.

        Raises:
            SettingsError: it cannot be made.
        """
        folder = self.folder.absolute() / kind
        if not folder.is_dir():
            refuse_no_place("results", folder)
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def place_of_spec(self, path: str | Path) -> Path:
        """Where a spec's copy belongs; under another name where a spec of another title has its name already.

        Raises:
            SettingsError: the folder cannot be made.
        """
        place = self.made("specs") / Path(path).name
        title = _content_of(Path(path)).get("title")
        if place.exists() and _content_of(place).get("title") != title:
            word = hashlib.sha256(str(title).encode()).hexdigest()[:8]
            place = place.with_name(f"{place.stem}-{word}.toml")
        return place

    def is_other_spec(self, path: str | Path, model: str | None = None) -> bool:
        """Whether the copy that a spec takes the place of asks for something else; comments do not count."""
        place, content = self.place_of_spec(path), _content_of(Path(path))
        if model is not None:
            content["models"] = [model]
        return place.exists() and _content_of(place) != content

    def keep_spec(self, path: str | Path, model: str | None = None) -> Path:
        """Keep a copy of a spec beside the results that it asked for, in place of its last copy.

        Args:
            path: of the spec.
            model: what stands for its only model here, where that is called otherwise; its records are.

        Returns:
            The copy, at `place_of_spec`.

        Raises:
            SettingsError: the folder cannot be made.
        """
        place = self.place_of_spec(path)
        text = Path(path).read_text(encoding="utf-8")
        if model is not None:
            text = _MODELS.sub(lambda _: f"models = {json.dumps([model])}", text, count=1)
        with replacing(place, "w", encoding="utf-8") as file:
            file.write(text)
        return place

    def write_labels(self, fingerprint: str, labels: str) -> None:
        """Keep the true labels of dev rows under their fingerprint, in place of a damaged file."""
        if self.labels(fingerprint) is None:
            write_json(self.made("labels") / f"{fingerprint}.json", {"labels": labels})
            self.problems.pop(f"{fingerprint}.json", None)

    def labels(self, fingerprint: str) -> list[float] | None:
        """The true labels of dev rows; None where they were not kept, with a problem if they are damaged."""
        path = self.folder / "labels" / f"{fingerprint}.json"
        content = read_json(path)
        try:
            return [float(word) for word in content["labels"].split()]
        except (AttributeError, KeyError, TypeError, ValueError):  # damaged, or not there
            if path.exists():
                self.problems[path.name] = "no labels, or written half; the next run on these rows mends it"
            return None

    def _left_alone(self, name: str) -> str | None:
        """Why a run's file may not be replaced; None where it may, or where there is none."""
        path = self.folder / "runs" / f"{name}.json"
        return _read(path)[1] if os.path.lexists(path) else None


def is_over(record: Mapping[str, Any] | None) -> bool:
    """Whether a run's record says that it is done or failed, so that it is not run again."""
    return record is not None and record["status"] in ("done", "failed")


def _json_files(folder: Path) -> list["os.DirEntry[str]"]:
    try:
        return sorted((e for e in os.scandir(folder) if e.name.endswith(".json")), key=lambda e: e.name)
    except FileNotFoundError:
        return []
    except NotADirectoryError as error:
        raise SettingsError(f"results {str(folder)!r}: expected a folder; choose another place") from error


def _stamp_of(entry: "os.DirEntry[str]") -> int:
    try:
        return entry.stat().st_mtime_ns
    except OSError:  # a link to nothing
        return -1


def _read(path: Path) -> tuple[Any, str | None]:
    """What a record's file holds, and why nothing may replace it; None where it may be."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        return None, f"cannot be read ({error.strerror}); left alone"
    except (ValueError, RecursionError):
        return None, None
    found = content.get("format", FORMAT) if isinstance(content, dict) else FORMAT
    if found != FORMAT:
        return content, f"of another version (format {found!r}, expected {FORMAT}); left alone"
    return content, None


def _damage_of(content: Any) -> str | None:
    """Why a record does not count, so that its run is done again; None where it does."""
    if not isinstance(content, dict) or "format" not in content:
        return "not a record of a run, or written half; the run counts as missing"
    problem = first_wrong(content)
    return None if problem is None else f"damaged ({problem!r}); the run counts as missing"


_MODELS = re.compile(r"""^models\s*=\s*\[(?:"[^"\n]*"|'[^'\n]*'|\#[^\n]*\n|[^]"'\#])*\]""", re.MULTILINE)
"""A spec's entry of models, up to the bracket that closes it, in no word or comment of it."""


def _content_of(spec: Path) -> dict[str, Any]:
    """What a spec says; empty where it cannot be read."""
    try:
        return read_toml(spec)
    except SettingsError:
        return {}
