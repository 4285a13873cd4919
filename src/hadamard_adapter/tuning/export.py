"""Export: one task's adapter folded into a plain transformers folder."""

import math
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from transformers import AutoModelForSequenceClassification

from hadamard_adapter.errors import AdapterError, SettingsError, option
from hadamard_adapter.files import complete, entries, expanded, read_json, write_json
from hadamard_adapter.tuning.classifier import Classifier, load
from hadamard_adapter.tuning.models import collator, quiet_libraries, tokenize
from hadamard_adapter.tuning.places import refuse_no_place
from hadamard_adapter.tuning.probe import PROBES
from hadamard_adapter.tuning.resume import disk_errors_explained

__all__ = ["MergeReport", "merge"]

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
MERGE_FILE = "hadamard_merge.json"
"""Marks a folder as a merge of ours, which overwrite may replace."""
TOLERANCE = 1e-4
"""Largest change of a logit that a merge in float32 may show, as a share of the largest one that is above 1;
rounding alone stays below 1e-5."""


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
    folder: str | Path,
    output: str | Path,
    *,
    dtype: str | None = None,
    model: str | None = None,
    overwrite: bool = False,
    allow_remote_code: bool = False,
) -> MergeReport:
    """Fold the adapter in `folder` into its base model and write a plain model folder.

    W' = diag(1 + δw) W, c' = (1 + δw) ⊙ c + b, γ' = γ + δγ, β' = β + δβ, in float32, cast afterwards. The
    folder is read again as a stranger would, and its logits on probe texts are compared.

    Args:
        folder: of the adapter.
        output: new folder; appears when it is complete.
        dtype: float32 (default), bfloat16 or float16.
        model: base model, where it has moved.
        overwrite: whether an earlier merge there may be replaced.
        allow_remote_code: whether code that comes with the base model may run.

    Raises:
        AdapterError: the adapter cannot be loaded or folded, or the fold is not exact in float32.
        SettingsError: unknown dtype, one whose range the merged model's numbers leave, or the output folder
            holds something.

    Example:
        >>> merge("out", "plain").max_logit_difference < 1e-4  # doctest: +SKIP
        True
    """
    name = dtype or "float32"
    if name not in DTYPES:
        raise SettingsError(f"dtype: expected one of {tuple(DTYPES)}, received {dtype!r}")
    target = expanded(output).absolute()
    _check_target(target, overwrite)
    classifier = load(folder, model, "cpu", allow_remote_code)
    before = _probe(classifier, classifier.model)
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        disk_errors_explained(target.parent, f"free some and merge again; {str(target)!r} is as it was"),
        tempfile.TemporaryDirectory(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent) as scratch,
    ):
        written = Path(scratch) / "merged"
        with quiet_libraries():
            plain = classifier.model.merge_and_unload()
            plain.to(DTYPES[name]).save_pretrained(written)
            classifier.tokenizer.save_pretrained(written)
            reloaded = AutoModelForSequenceClassification.from_pretrained(
                written, dtype=DTYPES[name], trust_remote_code=allow_remote_code
            )
        try:
            difference = float(np.abs(before - _probe(classifier, reloaded.eval())).max())
        except RuntimeError as error:
            if name == "float32":
                raise
            raise SettingsError(
                f"dtype: this model cannot compute in {name} ({error}); expected float32"
            ) from error
        allowed = TOLERANCE * max(1.0, float(np.abs(before).max()))  # float32 rounds by the size of a number
        if name == "float32" and not difference <= allowed:
            raise AdapterError(
                f"the merged model of {str(folder)!r} differs by {difference:.2g} in a logit, expected at "
                f"most {allowed:.2g}; nothing was written, use the adapter unmerged"
            )
        if not math.isfinite(difference):
            raise SettingsError(
                f"dtype: in {name} the merged model's numbers overflow; expected float32 or bfloat16; "
                "nothing was written"
            )
        size = sum(path.stat().st_size for path in written.glob("*.safetensors"))
        report = MergeReport(difference, name, size, str(output))
        write_json(written / MERGE_FILE, {"adapter": str(folder), **vars(report)})
        _check_target(target, overwrite)  # what came there meanwhile stays
        _put_in_place(written, target)
    return report


def _put_in_place(written: Path, target: Path) -> None:
    """Give the new merge its name; the old one is removed when that is done, and put back if it fails.

    It steps aside only when every new byte is on the disk, into a folder that no clean-up knows of: killed
    between two renames, both merges are still there.
    """
    ready = written.with_name("ready")
    complete(written, ready)
    if not target.exists():
        complete(ready, target)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
    old = aside / target.name
    target.rename(old)
    try:
        complete(ready, target)
    except BaseException:
        if not target.exists():
            old.rename(target)
            aside.rmdir()
        raise
    shutil.rmtree(aside)


def _check_target(target: Path, overwrite: bool) -> None:
    refuse_no_place("output", target)
    if not target.exists() or (target.is_dir() and not entries(target)):
        return
    is_ours = read_json(target / MERGE_FILE) is not None
    if not (is_ours and overwrite):
        hint = f"pass another, or {option('overwrite', 'True')} to replace it" if is_ours else "pass another"
        raise SettingsError(
            f"output {str(target)!r} holds {'an earlier merge' if is_ours else 'something else'}; {hint}"
        )


@torch.inference_mode()
def _probe(classifier: Classifier, model: Any) -> Float32[np.ndarray, "b l"]:
    """Logits of the probe texts one by one, so that padding plays no part."""
    collate = collator(classifier.tokenizer, classifier.task.problem_type)
    rows = [collate([row]) for row in tokenize(classifier.tokenizer, [*PROBES], None, 32).rows]
    return np.concatenate([model(**row).logits.float().numpy() for row in rows])
