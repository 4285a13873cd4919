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
        SettingsError: something above it is a file, or may not be written to, or it is what no rename can
            replace: a mount point, a link to nothing, a folder that may not be written to.

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
    if target.is_symlink() and not target.exists():
        raise SettingsError(
            f"{name} {str(target)!r} is a link to {os.readlink(target)!r}, which is not there; make that "
            "folder, or remove the link"
        )
    if target.is_dir() and not may_write(target):
        raise SettingsError(
            f"{name} {str(target)!r} cannot be written to, so it can neither be filled nor replaced; allow "
            "it, or choose another place"
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
