"""Packed adapters: any number of them as rows of a few memory-mapped files, each read when it is asked for.

    PACK/
        index.sqlite                 id -> version, shard, row, sha256 of the row, labels and lengths
        shard-00000.safetensors      "rows" (n, w): n adapters of one layout, all their tensors end to end

A shard's header holds its layout: name and shape of each tensor, in the order of the row. Reading an adapter
is one look-up and one slice, whatever else the pack holds.
"""

import dataclasses
import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hadamard_adapter.errors import AdapterError, SettingsError
from hadamard_adapter.files import expanded, filled, is_utf8
from hadamard_adapter.offset_name import split
from hadamard_adapter.serving.source import BankAdapter, by_place
from hadamard_adapter.tasks import Task
from hadamard_adapter.tuning.resume import disk_errors_explained

__all__ = ["PackedAdapters", "write_pack"]

INDEX = "index.sqlite"
FORMAT = "1"
SHARD_BYTES = 1 << 28
_TABLES = """
CREATE TABLE pack (format TEXT, base_fingerprint TEXT);
CREATE TABLE adapters (
    id TEXT PRIMARY KEY, version TEXT, shard INTEGER, row INTEGER, sha256 BLOB, described TEXT
) WITHOUT ROWID;
"""

Layout = tuple[tuple[str, tuple[int, ...]], ...]
"""Name and shape of each tensor of a row, in their order."""


def write_pack(
    folder: str | Path,
    adapters: Iterable[tuple[str, str, BankAdapter]],
    dtype: torch.dtype = torch.float32,
    shard_bytes: int = SHARD_BYTES,
) -> int:
    """Write adapters into a new folder, which appears when it is complete; their number.

    Args:
        folder: does not exist yet.
        adapters: (id, version, adapter), each id once; read one at a time.
        dtype: of the rows; bfloat16 halves the file and rounds offsets and head.
        shard_bytes: size from which on a shard is written; also about the memory that writing takes.

    Raises:
        SettingsError: the folder exists, or an id comes twice.
        AdapterError: adapters of several base models.
        TrainingError: the disk is full.
    """
    target = expanded(folder).absolute()
    if target.exists():
        raise SettingsError(f"{str(folder)!r} exists already; expected a new folder for the pack")
    target.parent.mkdir(parents=True, exist_ok=True)
    with disk_errors_explained(target.parent, "nothing was written"), filled(target) as temporary:
        return _write(temporary, adapters, dtype, shard_bytes)


class PackedAdapters:
    """The adapters of a pack, by id. Calls from several threads are safe.

    Args:
        folder: written by `write_pack`.

    Raises:
        AdapterError: it is no pack.

    Example:
        >>> pack = PackedAdapters("pack")  # doctest: +SKIP
        >>> pack.read("mood").task.label_names  # doctest: +SKIP
        ('negative', 'positive')
    """

    def __init__(self, folder: str | Path) -> None:
        """Look at a pack; no adapter is read yet."""
        self.folder = expanded(folder)
        with self._index() as index:
            found = index.execute("SELECT format, base_fingerprint FROM pack").fetchone()
        if found is None or found[0] != FORMAT:
            raise AdapterError(
                f"{str(folder)!r}: expected a pack of format {FORMAT}, received {found and found[0]!r}; pack "
                "the store again"
            )
        self.base_fingerprint: str | None = found[1]
        self._open = lru_cache(maxsize=1024)(_open_shard)

    def __len__(self) -> int:
        with self._index() as index:
            return index.execute("SELECT count(*) FROM adapters").fetchone()[0]

    def __contains__(self, id: object) -> bool:
        if not is_utf8(str(id)):  # half a character, which JSON can spell and SQLite does not take
            return False
        with self._index() as index:
            return index.execute("SELECT 1 FROM adapters WHERE id = ?", (id,)).fetchone() is not None

    def version(self, id: str) -> str:
        """Version of an adapter, as the store named it.

        Raises:
            AdapterError: it is not there.
        """
        return self._find(id)[0]

    def read(self, id: str) -> BankAdapter:
        """An adapter, checked against its hash.

        Raises:
            AdapterError: it is not there, or its row or shard is damaged.
        """
        _, shard, row, digest, described = self._find(id)
        path = self.folder / _name(shard)
        try:
            layout, rows = self._open(path)
            values = rows[row : row + 1][0]
        except (SafetensorError, OSError, KeyError, ValueError, IndexError) as error:
            raise AdapterError(f"{str(path)!r} is damaged ({error}); pack the store again") from error
        if _hash(values) != digest:
            raise AdapterError(
                f"adapter {id!r} in {str(path)!r} is not what was packed; pack the store again"
            )
        return _unpack(values, layout, json.loads(described), self.base_fingerprint)

    def _find(self, id: str) -> tuple[str, int, int, bytes, str]:
        with self._index() as index:
            found = index.execute(
                "SELECT version, shard, row, sha256, described FROM adapters WHERE id = ?", (id,)
            ).fetchone()
        if found is None:
            raise AdapterError(f"no adapter {id!r} in pack {str(self.folder)!r}")
        return found

    @contextmanager
    def _index(self) -> Iterator[sqlite3.Connection]:
        path = self.folder.absolute() / INDEX
        try:
            with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)) as index:
                yield index
        except sqlite3.Error as error:
            raise AdapterError(
                f"{str(self.folder)!r}: expected a folder that `hadamard bank pack` made, received one whose "
                f"{INDEX} cannot be read ({error})"
            ) from error


@dataclass
class _Shard:
    """Rows of one layout that wait to be written."""

    ids: list[str] = dataclasses.field(default_factory=list)
    rows: list[Float[Tensor, " w"]] = dataclasses.field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        return sum(row.nbytes for row in self.rows)


def _write(
    folder: Path, adapters: Iterable[tuple[str, str, BankAdapter]], dtype: torch.dtype, shard_bytes: int
) -> int:
    waiting: dict[Layout, _Shard] = {}
    bases: set[str | None] = set()
    n_adapters = n_shards = 0
    with closing(sqlite3.connect(folder / INDEX)) as index:
        index.executescript(_TABLES)
        for id, version, adapter in adapters:
            bases |= {adapter.base_fingerprint} - {None}  # one without it is checked by its shapes
            if len(bases) > 1:
                raise AdapterError(
                    f"adapter {id!r} belongs to base model {adapter.base_fingerprint}, those before it to "
                    "another; expected a store of one base model"
                )
            layout, values = _pack(adapter, dtype)
            described = json.dumps(_describe(adapter), ensure_ascii=False)
            row = (id, version, -1, -1, _hash(values), described)
            try:
                index.execute("INSERT INTO adapters VALUES (?, ?, ?, ?, ?, ?)", row)
            except sqlite3.IntegrityError as error:
                raise SettingsError(f"id {id!r}: expected each id once, received it twice") from error
            shard = waiting.setdefault(layout, _Shard())
            shard.ids.append(id)
            shard.rows.append(values)
            n_adapters += 1
            if shard.size_bytes >= shard_bytes:
                _write_shard(folder, n_shards, layout, waiting.pop(layout), index)
                n_shards += 1
        for layout, shard in waiting.items():
            _write_shard(folder, n_shards, layout, shard, index)
            n_shards += 1
        index.execute("INSERT INTO pack VALUES (?, ?)", (FORMAT, next(iter(bases), None)))
        index.commit()
    return n_adapters


def _write_shard(folder: Path, number: int, layout: Layout, shard: _Shard, index: sqlite3.Connection) -> None:
    save_file({"rows": torch.stack(shard.rows)}, folder / _name(number), {"layout": json.dumps(layout)})
    places = [(number, row, id) for row, id in enumerate(shard.ids)]
    index.executemany("UPDATE adapters SET shard = ?, row = ? WHERE id = ?", places)


def _pack(adapter: BankAdapter, dtype: torch.dtype) -> tuple[Layout, Float[Tensor, " w"]]:
    tensors = {f"{path}.hadamard_{kind}": tensor for (path, kind), tensor in adapter.offsets.items()}
    tensors = dict(sorted({**tensors, **adapter.head}.items()))
    layout = tuple((name, tuple(tensor.shape)) for name, tensor in tensors.items())
    return layout, torch.cat([tensor.detach().cpu().to(dtype).flatten() for tensor in tensors.values()])


def _unpack(
    values: Float[Tensor, " w"], layout: Layout, described: dict[str, Any], base_fingerprint: str | None
) -> BankAdapter:
    parts = values.split([_size(shape) for _, shape in layout])
    offsets, head = split({name: part.view(shape) for (name, shape), part in zip(layout, parts, strict=True)})
    task = described.pop("task")
    task |= {name: tuple(task[name]) for name in ("label_names", "metrics")}
    described["identity"] = tuple(described.get("identity", ()))
    return BankAdapter(Task(**task), by_place(offsets), head, base_fingerprint=base_fingerprint, **described)


def _describe(adapter: BankAdapter) -> dict[str, Any]:
    return {
        "task": dataclasses.asdict(adapter.task),
        "max_length": adapter.max_length,
        "has_pair": adapter.has_pair,
        "identity": adapter.identity,
    }


def _open_shard(path: Path) -> tuple[Layout, Any]:
    """The layout of a shard, and its rows as a slice that reads what it is asked for."""
    file: Any = safe_open(path, framework="pt")
    layout = json.loads(file.metadata()["layout"])
    return tuple((name, tuple(shape)) for name, shape in layout), file.get_slice("rows")


def _size(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def _hash(values: Tensor) -> bytes:
    return hashlib.sha256(values.view(torch.uint8).numpy().data).digest()


def _name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"
