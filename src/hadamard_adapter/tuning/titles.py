"""Names of the stages, as a reader sees them; imports nothing, so that the command starts fast."""

__all__ = ["STAGE_TITLES"]

STAGE_TITLES = {
    "cache": "frozen layers, rows",
    "head": "stage 1, head",
    "adapter": "stage 2, adapter",
    "both": "head and adapter",
}
"""Name of a stage -> what pictures and progress call it."""
