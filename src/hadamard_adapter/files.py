"""Files that are there whole or not at all."""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

__all__ = ["is_no_space", "replacing"]


def is_no_space(error: BaseException) -> bool:
    """Whether an error says that a disk is full; safetensors and Arrow keep the system's text alone.

    Example:
        >>> is_no_space(OSError(errno.ENOSPC, "No space left on device")), is_no_space(ValueError("no"))
        (True, False)
    """
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)


@contextlib.contextmanager
def replacing(
    path: Path, mode: str = "wb", permissions: int | None = None, **options: Any
) -> Iterator[IO[Any]]:
    """A new file beside `path`, which takes its place when the block ends and is removed where it fails.

    Args:
        path: of the file; its folder is there.
        mode: "wb" or "w".
        permissions: of the file; None: the usual ones, as the process's umask leaves them.
        options: of `open`, such as encoding and newline.

    Raises:
        OSError: the disk is full, or the folder cannot be written to.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> with replacing(folder / "a.txt", "w") as file:
        ...     _ = file.write("whole")
        >>> [(entry.name, entry.read_text()) for entry in folder.iterdir()]
        [('a.txt', 'whole')]
    """
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, _usual() if permissions is None else permissions)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _usual() -> int:
    """What `open` gives a new file; mkstemp makes it private."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
