"""Files that are there whole or not at all, and the reading of TOML."""

import contextlib
import errno
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from hadamard_adapter.errors import SettingsError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

__all__ = ["expanded", "is_no_space", "read_toml", "replacing"]


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


def is_no_space(error: BaseException) -> bool:
    """Whether an error says that a disk is full; safetensors, Arrow and SQLite keep a text alone.

    Example:
        >>> is_no_space(OSError(errno.ENOSPC, "No space left on device")), is_no_space(ValueError("no"))
        (True, False)
    """
    says = str(error)
    is_said = "No space left" in says or "database or disk is full" in says
    return is_said or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)


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
