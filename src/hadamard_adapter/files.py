"""Files and folders that are there whole or not at all, locks, and the reading of JSON and TOML."""

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from hadamard_adapter.errors import BusyError, SettingsError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

__all__ = [
    "complete",
    "entries",
    "expanded",
    "file_sha256",
    "filled",
    "fsync",
    "is_kept",
    "is_no_space",
    "is_not_offered",
    "is_same_file",
    "is_utf8",
    "locked",
    "read_json",
    "read_toml",
    "remove",
    "remove_scrap",
    "replacing",
    "write_json",
]

_OF_FILE_MANAGERS = re.compile(r"\.DS_Store|\._.*|desktop\.ini|Thumbs\.db|\.directory", re.IGNORECASE)


def expanded(path: str | Path) -> Path:
    """A path with ~ and ~user replaced by their folders; as it is where there is no such user.

    Example:
        >>> expanded("~$sheet.csv")
        PosixPath('~$sheet.csv')
    """
    return Path(os.path.expanduser(path))


def is_same_file(one: str | Path, other: str | Path) -> bool:
    """Whether two paths are of one file, which need not be there; links and ~ are followed.

    Example:
        >>> is_same_file("./rows.csv", "rows.csv"), is_same_file("rows.csv", "other.csv")
        (True, False)
    """
    first, second = expanded(one), expanded(other)
    if first.exists() and second.exists():
        return first.samefile(second)
    return first.resolve() == second.resolve()


def is_utf8(text: str) -> bool:
    """Whether a text can be written as UTF-8: not a file's name in another coding, nor half a surrogate pair,
    which JSON can spell.

    Example:
        >>> is_utf8("café.csv"), is_utf8(os.fsdecode(b"caf\\xe9.csv"))
        (True, False)
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_kept(path: Path) -> bool:
    """Whether a file is anybody's: file managers put their own into every folder that they show.

    Example:
        >>> is_kept(Path("out/run.json")), is_kept(Path("out/.DS_Store"))
        (True, False)
    """
    return _OF_FILE_MANAGERS.fullmatch(path.name) is None


def entries(folder: Path) -> list[Path]:
    """What a folder holds, but for the files of file managers."""
    return list(filter(is_kept, folder.iterdir()))


def is_no_space(error: BaseException) -> bool:
    """Whether an error says that a disk is full; safetensors, Arrow and SQLite keep a text alone.

    Example:
        >>> is_no_space(OSError(errno.ENOSPC, "No space left on device")), is_no_space(ValueError("no"))
        (True, False)
    """
    says = str(error)
    is_said = "No space left" in says or "database or disk is full" in says
    return is_said or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)


def is_not_offered(error: OSError) -> bool:
    """Whether a file system says that it has no such thing: locks, mapped files, syncs of folders.

    Example:
        >>> is_not_offered(OSError(errno.ENOLCK, "No locks available"))
        True
    """
    missing = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL, errno.ENODEV)
    return error.errno in missing


@contextlib.contextmanager
def replacing(
    path: Path, mode: str = "wb", permissions: int | None = None, **options: Any
) -> Iterator[IO[Any]]:
    """A new file beside `path`, which takes its place when the block ends and is removed where it fails.

    Args:
        path: of the file; its folder is there. Where it is a link, what it points to is replaced.
        mode: "wb" or "w".
        permissions: of the file; None: those of the file that is replaced, or the usual ones, as the
            process's umask leaves them.
        options: of `open`, such as encoding and newline.

    Raises:
        OSError: the disk is full, or the folder cannot be written to.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with replacing(folder / "a.txt", "w") as file:
        ...     _ = file.write("whole")
        >>> [(entry.name, entry.read_text()) for entry in folder.iterdir()]
        [('a.txt', 'whole')]
    """
    path = Path(os.path.realpath(path))
    if permissions is None and path.exists():
        permissions = stat.S_IMODE(path.stat().st_mode)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    allowed = 0o666 if permissions is None else permissions
    try:
        with open(
            temporary,
            mode.replace("w", "x"),
            opener=lambda name, flags: os.open(name, flags, allowed),
            **options,
        ) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if permissions is not None:  # whatever the umask took off
            os.chmod(temporary, permissions)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> Any:
    """Content of a JSON file; None if it is missing or damaged.

    Raises:
        OSError: it is there and cannot be read now, which is no word on what it holds.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
        return None


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file so that a reader sees the old content or the new one, never a part."""
    with replacing(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_toml(path: str | Path) -> dict[str, Any]:
    """The content of a TOML file; a byte order mark is left out.

    Raises:
        SettingsError: no such file, or no TOML; the message begins with the path.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # also an integer of thousands of digits
        raise SettingsError(f"{path}: not a TOML file: {error}") from error


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def remove(path: Path) -> None:
    """Remove a file, or a folder with all it holds."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_scrap(path: Path) -> None:
    """Remove what is no longer needed, as far as that can be: NFS and Windows keep files that are open."""
    with contextlib.suppress(OSError):
        remove(path)


def complete(temporary: Path, target: Path) -> None:
    """Give a folder that is complete its name: all bytes to the disk first, then one rename."""
    for path in sorted(temporary.rglob("*")):
        if path.is_file():
            fsync(path)
    fsync(temporary)
    os.rename(temporary, target)
    fsync(target.parent)


@contextlib.contextmanager
def filled(target: Path) -> Iterator[Path]:
    """An empty folder beside `target` that gets its name, by `complete`, when the block ends well."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        complete(temporary, target)
    except BaseException:
        remove(temporary)
        raise


@contextlib.contextmanager
def locked(folder: Path, waits: bool = False) -> Iterator[None]:
    """A folder for this process alone, until the block is left or the process is gone.

    Windows, and file systems such as Lustre without its option `flock`, have no such lock; there two runs
    into one folder are the user's care.

    Args:
        folder: is there.
        waits: whether to wait for a process that has it.

    Raises:
        BusyError: another process has it, and `waits` is False.
    """
    if os.name != "posix":
        yield
        return
    import fcntl

    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        except OSError as error:
            if not is_not_offered(error):
                raise BusyError(
                    f"another run is writing to {str(folder)!r}; wait for it or pass another output"
                ) from error
        yield


def fsync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if os.name != "posix" and path.is_dir():  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)  # Windows: to write alone
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and is_not_offered(error)):
            raise
    finally:
        os.close(descriptor)
