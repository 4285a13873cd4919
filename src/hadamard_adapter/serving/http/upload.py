"""An uploaded zip, unpacked into a folder: known names only, and no more bytes than the limit."""

import io
import zipfile
from pathlib import Path

from hadamard_adapter.errors import AdapterError
from hadamard_adapter.files import is_no_space
from hadamard_adapter.serving.store import FILES

__all__ = ["unpack"]


def unpack(content: bytes, folder: str | Path, size_bytes: int) -> None:
    """Write the files of an adapter that a zip holds, at its top or in one folder of it.

    Args:
        content: of the zip.
        folder: that is there and empty.
        size_bytes: that all files may have, unpacked.

    Raises:
        AdapterError: no zip, a damaged one, a name that leads elsewhere or is unknown, or too many bytes.
        OSError: the disk is full.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            names = _names([entry.filename for entry in entries])
            left = size_bytes
            for entry, name in zip(entries, names, strict=True):
                with archive.open(entry) as file:
                    data = file.read(left + 1)  # what the zip says of its sizes is not believed
                left -= len(data)
                if left < 0:
                    raise AdapterError(
                        f"expected at most {size_bytes} bytes unpacked; upload a smaller adapter"
                    )
                (Path(folder) / name).write_bytes(data)
    except AdapterError:
        raise
    except Exception as error:  # zipfile raises whatever its decompressors do on damaged bytes
        if is_no_space(error):
            raise
        raise AdapterError(
            f"expected a zip with {', '.join(FILES)}, received a damaged one or none: {error}"
        ) from error


def _names(paths: list[str]) -> list[str]:
    parents = {path.rpartition("/")[0] for path in paths}
    names = [path.rpartition("/")[2] for path in paths]
    unknown = [path for path, name in zip(paths, names, strict=True) if name not in FILES]
    if unknown or len(parents) > 1 or len(set(names)) < len(names):
        raise AdapterError(
            f"expected a zip with {', '.join(FILES)} and nothing else, in one folder, received "
            f"{unknown[0] if unknown else ', '.join(sorted(paths))!r}"
        )
    return names
