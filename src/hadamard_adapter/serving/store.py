"""The store: adapters by id and version in a folder, or wherever fsspec reaches.

    STORE/
        lock                             held (flock) while a version is published or removed; local stores
        generation                       changes with every publication; readers look here first
        adapters/ID/current.json         the pointer: which version is served, and those before it
        adapters/ID/VERSION/FILE         objects; once written they never change
        adapters/ID/VERSION/manifest.json    size and sha256 of each; written after them

A version is the hash of its manifest, so the same content is the same version. Publishing writes the objects,
then the manifest, then the pointer, each by one rename (on object stores by one request): a reader sees the
old version whole or the new one whole, whenever the publisher is killed. After one that was
killed between pointer and generation, servers that run see the new one at the next publication.
"""

import contextlib
import hashlib
import json
import re
import secrets
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import fsspec
from fsspec.implementations.local import LocalFileSystem

from hadamard_adapter.errors import AdapterError, HadamardError, SettingsError, refuse_below
from hadamard_adapter.files import expanded, locked, replacing
from hadamard_adapter.serving.source import BankAdapter, read_adapter
from hadamard_adapter.tuning.weights import check_readable

__all__ = ["FILES", "AdapterStore", "MissingError", "Published"]

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""Ids of adapters: no separator and no leading dot, so that no id names a path outside the store."""
_VERSION = re.compile(r"[0-9a-f]{16}")
FILES = ("adapter_config.json", "adapter_model.safetensors", "run.json", "metrics.json")
_NEEDED = FILES[:2]
_LOCKS: dict[str, threading.Lock] = {}
"""By URL: the lock that all objects of one store share in this process."""


class MissingError(AdapterError):
    """There is no such adapter, or no such version of it."""


@dataclass(frozen=True)
class Published:
    """The version of an adapter that is served."""

    id: str
    """Name of the adapter."""
    version: str
    """16 hex digits, from a sha256 of the content."""
    history: tuple[str, ...]
    """Versions that were served before, the newest first."""
    size_bytes: int
    """Size of its files."""


class AdapterStore:
    """Adapters by id and version.

    Args:
        url: a folder, or a URL that fsspec knows (s3://bucket/adapters, memory://adapters, …).

    Raises:
        SettingsError: neither.
        AdapterError: its server does not answer.

    Example:
        >>> store = AdapterStore("memory://docs")
        >>> store.served()
        []
    """

    def __init__(self, url: str | Path) -> None:
        """Look at a store; one that is not there yet is empty, and made by the first `add`."""
        self.url = str(url)
        try:
            found: Any = fsspec.core.url_to_fs(str(expanded(url)) if "://" not in self.url else url)
        except (ValueError, ImportError) as error:
            raise SettingsError(f"store {self.url!r}: expected a folder or a URL, {error}") from error
        except Exception as error:  # some ask their server at once
            raise self._unusable(error) from error
        self._fs, self._root = found
        self._lock = _LOCKS.setdefault(self._fs.unstrip_protocol(self._root), threading.Lock())

    def add(self, id: str, folder: str | Path) -> Published:
        """Publish a folder that `hadamard tune` made as the version that is served from now on.

        Args:
            id: letters, digits, dot, dash, underscore; at most 128.
            folder: what it holds is checked first; tokenizer and pictures stay behind.

        Raises:
            AdapterError: no adapter there, or a damaged one; or the store cannot be written.
            SettingsError: an id of another pattern.
        """
        _check_id(id)
        place = expanded(folder)
        contents = _contents(place)
        read_adapter(folder)
        if contents != _contents(place):
            raise AdapterError(f"{str(folder)!r} was changed while it was read; publish it again")
        manifest = _manifest(contents)
        version = _version_of(manifest)
        with self._writing():
            before = None
            with contextlib.suppress(AdapterError):  # a damaged pointer is mended so
                before = self._pointer(id)
            for name, content in contents.items():
                self._put(f"adapters/{id}/{version}/{name}", content)
            self._put(f"adapters/{id}/{version}/manifest.json", _as_bytes(manifest))
            return self._point(id, version, before)

    def roll_back(self, id: str, version: str) -> Published:
        """Serve an earlier version again.

        Raises:
            AdapterError: no such adapter or version, or it is damaged.
        """
        self.show(id)
        with self._writing():
            published = self.show(id)
            if version not in (published.version, *published.history):
                raise MissingError(
                    f"adapter {id!r} has no version {version!r}; expected one of "
                    f"{', '.join((published.version, *published.history))}"
                )
            with self.files(id, version):
                return self._point(id, version, self._pointer(id))

    def remove(self, id: str) -> None:
        """Serve an adapter no more, and delete its versions; what a removal that was killed left, too.

        Raises:
            AdapterError: no such adapter.
        """
        self._refuse_missing(id)
        with self._writing():
            self._refuse_missing(id)
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(self._path(f"adapters/{id}/current.json"))
            self._changed()
            self._fs.rm(self._path(f"adapters/{id}"), recursive=True)

    def prune(self, id: str, n_earlier: int) -> int:
        """Delete the versions of an adapter but the one that is served and those before it; how many went.

        What a publication that was killed left goes too. A server goes on with what it has read.

        Args:
            id: of the adapter.
            n_earlier: how many earlier versions can be served again afterwards.

        Raises:
            AdapterError: no such adapter, or its pointer is damaged.
            SettingsError: a negative number.
        """
        refuse_below("n_earlier", n_earlier, 0)
        self.show(id)
        with self._writing():
            published = self.show(id)
            history = published.history[:n_earlier]
            pointer = {"version": published.version, "history": list(history)}
            self._put(f"adapters/{id}/current.json", _as_bytes(pointer))
            there = filter(_VERSION.fullmatch, self._names(f"adapters/{id}"))
            gone = set(there) - {published.version, *history}
            for version in gone:
                self._fs.rm(self._path(f"adapters/{id}/{version}"), recursive=True)
            return len(gone)

    def show(self, id: str) -> Published:
        """What is served under an id.

        Raises:
            AdapterError: no such adapter, or its pointer or manifest is damaged.
        """
        published = self.find(id)
        if published is None:
            raise MissingError(f"no adapter {id!r} in store {self.url!r}")
        return published

    def _refuse_missing(self, id: str) -> None:
        _check_id(id)
        folder = self._path(f"adapters/{id}")
        with self._explained():
            self._fs.invalidate_cache(folder)
            if not self._fs.exists(folder):
                raise MissingError(f"no adapter {id!r} in store {self.url!r}")

    def find(self, id: str) -> Published | None:
        """What is served under an id, None where nothing is.

        Raises:
            AdapterError: its pointer or manifest is damaged.
        """
        _check_id(id)
        with self._explained():
            pointer = self._pointer(id)
            return None if pointer is None else self._published(id, pointer)

    def version(self, id: str) -> str | None:
        """The version that is served under an id, None where nothing is: one small object is read.

        Raises:
            AdapterError: its pointer is damaged.
        """
        _check_id(id)
        with self._explained():
            pointer = self._pointer(id)
        return None if pointer is None else pointer["version"]

    def versions(self, ids: Sequence[str]) -> dict[str, str | None]:
        """The version that is served under each id: None where nothing is, or its pointer cannot be read.

        Object stores are asked for many pointers at a time.
        """
        paths = {id: self._path(f"adapters/{id}/current.json") for id in ids}
        found: dict[str, Any] = {}
        with self._explained(), contextlib.suppress(FileNotFoundError):  # no id, or none is there
            found = self._fs.cat(list(paths.values()), on_error="return")
        versions: dict[str, str | None] = {}
        for id, path in paths.items():
            versions[id], content = None, found.get(path)
            if isinstance(content, bytes):
                with contextlib.suppress(AdapterError):  # whoever wants this one is told why
                    versions[id] = self._read_pointer(id, content)["version"]
        return versions

    def ids(self) -> list[str]:
        """Ids that have a folder in the store, in order; `show` tells whether one is served."""
        with self._explained():
            return self._ids()

    def served(self) -> list[Published]:
        """What is served, in the order of ids."""
        with self._explained():
            pointers = {id: self._pointer(id) for id in self._ids()}
            return [self._published(id, found) for id, found in pointers.items() if found is not None]

    def read(self, id: str, version: str | None = None) -> tuple[str, BankAdapter]:
        """A version of an adapter (by default the one that is served), checked against its hashes.

        Raises:
            AdapterError: no such adapter or version, or its files are not what was published.
        """
        version = self.show(id).version if version is None else version
        with self.files(id, version) as folder:
            try:
                return version, read_adapter(folder)
            except AdapterError as error:  # it names the temporary folder, another one at each look
                where = f"adapter {id!r}, version {version!r}"
                raise AdapterError(str(error).replace(str(folder), where)) from error.__cause__

    @contextlib.contextmanager
    def files(self, id: str, version: str) -> Iterator[Path]:
        """A folder with the files of a version, checked, until the block is left.

        Raises:
            AdapterError: no such version, or a file is missing or not what was published.
        """
        _check_id(id)
        if not _VERSION.fullmatch(version):
            raise AdapterError(f"version: expected 16 hex digits, received {version!r}")
        with tempfile.TemporaryDirectory(prefix="hadamard-store-") as scratch:
            with self._explained():
                for name, content in self._contents(id, version).items():
                    (Path(scratch) / name).write_bytes(content)
            yield Path(scratch)

    def verify(self) -> tuple[int, list[str]]:
        """How many adapters are served, and a line for each whose version is not whole."""
        with self._explained():
            # What has no pointer is not served: its first publication never came to its end.
            served = [id for id in self._ids() if self._get(f"adapters/{id}/current.json") is not None]
        problems: list[str] = []
        for id in served:
            try:
                self.read(id)
            except AdapterError as error:
                problems.append(f"{id}: {error}")
        return len(served), problems

    def generation(self) -> str:
        """A word that is another one after every publication; empty before the first."""
        with self._explained():
            return (self._get("generation") or b"").decode(errors="replace")

    def _contents(self, id: str, version: str) -> dict[str, bytes]:
        where = f"adapters/{id}/{version}"
        manifest = _read_object(self._get(f"{where}/manifest.json"))
        if not _is_whole(manifest, version) or not set(_NEEDED) <= manifest.keys():
            raise AdapterError(
                f"version {version!r} of adapter {id!r} is not there, or has a damaged manifest"
            )
        contents: dict[str, bytes] = {}
        for name, entry in manifest.items():
            content = self._get(f"{where}/{name}") if name in FILES else None
            if content is None or hashlib.sha256(content).hexdigest() != entry["sha256"]:
                raise AdapterError(
                    f"{name} of adapter {id!r}, version {version!r}, is missing or not what was published; "
                    "add it again, or roll back to another version"
                )
            contents[name] = content
        return contents

    def _ids(self) -> list[str]:
        return sorted(filter(ID.fullmatch, self._names("adapters")))

    def _names(self, name: str) -> list[str]:
        """Names of what a folder of the store holds; none where there is no such folder."""
        folder = self._path(name)
        self._fs.invalidate_cache(folder)  # s3fs and its like keep a listing for as long as the process lives
        try:
            found: list[Any] = self._fs.ls(folder, detail=False)
        except FileNotFoundError:
            return []
        return [str(path).rstrip("/").rpartition("/")[2] for path in found]

    def _pointer(self, id: str) -> dict[str, Any] | None:
        content = self._get(f"adapters/{id}/current.json")
        return None if content is None else self._read_pointer(id, content)

    def _read_pointer(self, id: str, content: bytes) -> dict[str, Any]:
        found = _read_object(content) or {}
        history = found.get("history")
        versions = [found.get("version"), *(history if isinstance(history, list) else [None])]
        if not all(isinstance(version, str) and _VERSION.fullmatch(version) for version in versions):
            raise AdapterError(
                f"the pointer of {id!r} in store {self.url!r} is damaged; add the adapter again"
            )
        return found

    def _point(self, id: str, version: str, before: dict[str, Any] | None) -> Published:
        earlier = [] if before is None else [before["version"], *before["history"]]
        history = [other for other in dict.fromkeys(earlier) if other != version]
        pointer = {"version": version, "history": history}
        self._put(f"adapters/{id}/current.json", _as_bytes(pointer))
        self._changed()
        return self._published(id, pointer)

    def _published(self, id: str, pointer: dict[str, Any]) -> Published:
        manifest = _read_object(self._get(f"adapters/{id}/{pointer['version']}/manifest.json"))
        # What is damaged has no size; whoever reads its files is told so.
        whole = manifest if _is_whole(manifest, pointer["version"]) else {}
        size = sum(entry["size"] for entry in whole.values())
        return Published(id, pointer["version"], tuple(pointer["history"]), size)

    def _changed(self) -> None:
        self._put("generation", secrets.token_hex(8).encode())

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def _get(self, name: str) -> bytes | None:
        try:
            return self._fs.cat_file(self._path(name))
        except (FileNotFoundError, NotADirectoryError):  # a file that a file manager left is no adapter
            return None

    def _put(self, name: str, content: bytes) -> None:
        """Write an object so that a reader sees all of it or none."""
        path = self._path(name)
        if not isinstance(self._fs, LocalFileSystem):
            self._fs.pipe_file(path, content)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target, permissions=0o644) as file:
            file.write(content)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """One writer at a time: of this process, and where the store is a POSIX folder, of all processes."""
        with self._explained(), self._lock, contextlib.ExitStack() as stack:
            if isinstance(self._fs, LocalFileSystem):
                folder = Path(self._root)
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(folder, waits=True))
            yield

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn an error of the file system into one line."""
        try:
            yield
        except HadamardError:
            raise
        except Exception as error:
            # Clients of object stores have errors of their own (no credentials, no endpoint) beside OSError.
            if not isinstance(error, OSError) and isinstance(self._fs, LocalFileSystem):
                raise
            told = self._unusable(error)
            raise told from (error if isinstance(error, OSError) else OSError(str(told)))  # tried again

    def _unusable(self, error: Exception) -> AdapterError:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return AdapterError(
            f"store {self.url!r} cannot be used: {reason}; look whether it is there, has space and may be "
            "read and written"
        )


def _check_id(id: str) -> None:
    if not ID.fullmatch(id):
        raise SettingsError(
            "id: expected up to 128 letters, digits, dots, dashes or underscores, the first a letter or a "
            f"digit, received {id!r}"
        )


def _contents(place: Path) -> dict[str, bytes]:
    return {name: (place / name).read_bytes() for name in FILES if check_readable(place / name)}


def _manifest(contents: dict[str, bytes]) -> dict[str, Any]:
    return {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    }


def _version_of(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]


def _is_whole(manifest: dict[str, Any] | None, version: str) -> TypeGuard[dict[str, Any]]:
    """Whether a manifest is the one that was published: a version is a hash of its manifest."""
    return manifest is not None and _version_of(manifest) == version


def _as_bytes(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _read_object(content: bytes | None) -> dict[str, Any] | None:
    """A JSON object; None where there is none, or something else."""
    try:
        found = json.loads(content or b"")
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
