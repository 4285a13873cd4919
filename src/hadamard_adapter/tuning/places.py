"""Whether a path can be written, asked before any work; imports nothing that takes time."""

import os
from pathlib import Path

from hadamard_adapter.errors import SettingsError

__all__ = ["may_write", "refuse_no_place", "refuse_taken"]


def may_write(folder: Path) -> bool:
    """Whether this process may make files in a folder.

    Example:
        >>> may_write(Path("."))
        True
    """
    return os.access(folder, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids)


def refuse_no_place(name: str, target: Path) -> None:
    """Refuse a folder to write where none can be made; folders above it that are not there will be.

    Args:
        name: of the setting, for the message.
        target: absolute path of the folder.

    Raises:
        SettingsError: something above it is a file, or may not be written to, or it is a mount point, whose
            name no rename can give to another folder.

    Example:
        >>> refuse_no_place("output", Path("out").absolute())
    """
    above = next(parent for parent in target.parents if os.path.exists(parent))
    if not above.is_dir():
        raise SettingsError(
            f"{name} {str(target)!r}: {str(above)!r} is a file, no folder; choose another place"
        )
    if os.path.ismount(target):
        raise SettingsError(
            f"{name} {str(target)!r} is a mount point, and the result appears by a rename; expected a folder "
            f"inside it, such as {str(target / 'adapter')!r}"
        )
    if not may_write(above):
        raise SettingsError(
            f"{name} {str(target)!r}: folder {str(above)!r} cannot be written to; allow it, or choose "
            "another place"
        )


def refuse_taken(output: Path) -> None:
    """Refuse an output that is there already, or that cannot be made.

    Raises:
        SettingsError: so it is.

    Example:
        >>> refuse_taken(Path("not-there"))
    """
    refuse_no_place("output", output.absolute())
    if output.exists():
        raise SettingsError(f"output {str(output)!r} is there already; choose another folder")
