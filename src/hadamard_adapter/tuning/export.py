"""Export: one task's adapter folded into a plain transformers folder."""

from dataclasses import dataclass

__all__ = ["MergeReport", "merge"]


@dataclass(frozen=True)
class MergeReport:
    """What a merge changed."""

    max_logit_difference: float
    """Largest |difference| of a logit between the adapted and the exported, reloaded model."""
    dtype: str
    """Type of the exported weights."""
    size_bytes: int
    """Size of the exported weights."""
    output: str
    """The folder."""


def merge(
    folder: str,
    output: str,
    *,
    dtype: str | None = None,
    model: str | None = None,
    overwrite: bool = False,
    allow_remote_code: bool = False,
) -> MergeReport:
    """Fold the adapter in `folder` into its base model and write a plain model folder."""
    raise NotImplementedError
