"""Rows of a dataset of Hugging Face `datasets`: a folder written by save_to_disk, or a name on the hub."""

import difflib
from pathlib import Path
from typing import Any

from ..errors import DataError
from .reading import FORMATS, Record, words

__all__ = ["load_rows"]

_SAVED = ("dataset_info.json", "dataset_dict.json", "state.json")


def load_rows(source: str, path: Path, split: str | None) -> tuple[tuple[str, ...], list[Record]]:
    """Return columns and numbered rows; class labels become their names, the label -1 (hidden) becomes None.

    Args:
        source: what the user wrote: a folder, "name" or "name:configuration".
        path: the same as a path.
        split: name of the split; None: "train", or the only one.

    Raises:
        DataError: no such file, folder or dataset; `datasets` not installed; unknown split.

    Example:
        >>> load_rows("imdb", Path("imdb"), "test")  # doctest: +SKIP
    """
    _check_source(source, path)
    try:
        import datasets  # pyright: ignore[reportMissingTypeStubs]
    except ImportError as error:
        raise DataError(
            f"{source}: needs the package datasets: pip install '.[datasets]' in a clone"
        ) from error
    library: Any = datasets
    try:
        if path.is_dir():
            loaded = library.load_from_disk(str(path))
        else:
            name, _, configuration = source.partition(":")
            loaded = library.load_dataset(name, configuration or None)
    except Exception as error:  # the library raises a dozen unrelated types, connection errors among them
        raise DataError(
            f"{source}: no file or folder of this name here, and no dataset of this name could be loaded "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}); give the path of "
            f"a file ({words(FORMATS)}) or of a folder written by save_to_disk, or a dataset's name with a "
            "connection to the hub"
        ) from error
    return _rows_of(_choose_split(source, loaded, split))


def _check_source(source: str, path: Path) -> None:
    if path.is_dir():
        if any((path / name).is_file() for name in _SAVED):
            return
        inside = sorted(entry.name for entry in path.iterdir())
        raise DataError(
            f"{source}: a folder, expected a file ({words(FORMATS)}) or a folder written by datasets' "
            f"save_to_disk; it holds: {words(inside, 10) or 'nothing'}"
        )
    name = source.partition(":")[0]
    is_path = path.suffix.lower() in FORMATS or source.startswith(("/", ".", "~")) or name.count("/") > 1
    if is_path or (path.suffix and "/" not in name and ":" not in source):
        beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, beside, n=3)
        hint = f"; did you mean {words(close)}?" if close else ""
        raise DataError(f"{source}: no such file{hint}")


def _choose_split(source: str, loaded: Any, split: str | None) -> Any:
    if not hasattr(loaded, "keys"):
        if split is not None:
            raise DataError(f"{source}: holds a single split, received split={split!r}; leave it out")
        return loaded
    names = list(loaded.keys())
    wanted = split or (names[0] if len(names) == 1 else "train")
    if wanted not in names:
        raise DataError(f"{source}: no split {wanted!r}; splits found: {words(names)}")
    return loaded[wanted]


def _rows_of(dataset: Any) -> tuple[tuple[str, ...], list[Record]]:
    found = {key: _class_names(feature) for key, feature in dataset.features.items()}
    names = {key: classes for key, classes in found.items() if classes is not None}
    rows: list[Record] = []
    for number, row in enumerate(dataset, start=1):
        for key, classes in names.items():
            index = row[key]
            if isinstance(index, list):
                row[key] = [_class_name(classes, item) for item in index]
            else:
                row[key] = _class_name(classes, index)
        rows.append((number, row))
    return tuple(dataset.column_names), rows


def _class_name(classes: list[str], index: object) -> str | None:
    """None for a label that is hidden (-1) or missing."""
    return classes[index] if isinstance(index, int) and index >= 0 else None


def _class_names(feature: Any) -> list[str] | None:
    """The classes of a column of them, or of lists of them; None for any other column."""
    names = getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)
    return None if names is None else list(names)
