"""What the frozen layers at the bottom put out is computed once and read back in every epoch.

In stage 1 every layer is frozen, in stage 2 those below the first adapted one. Their output does not change
from epoch to epoch, so it is computed in one pass of inference and kept in a file; in training these layers
then hand out what was kept, and neither forward nor backward pass runs through them. Where the head reads the
first token alone (BERT's way), the first token of the last layer is all that is kept, a few megabytes.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from jaxtyping import Float, Float32, Int
from rich.filesize import decimal
from torch import Tensor, nn

from hadamard_adapter.adapter.base_model import base_model_of
from hadamard_adapter.adapter.families import family_of, layer_stacks
from hadamard_adapter.errors import SettingsError, is_out_of_memory
from hadamard_adapter.files import is_no_space, is_not_offered, read_json, remove_scrap, write_json
from hadamard_adapter.tuning.models import token_batches
from hadamard_adapter.tuning.precision import autocast, in_float32
from hadamard_adapter.tuning.probe import is_same, outcome, probe_rows, to_device
from hadamard_adapter.tuning.stage import Collate, Progress, Row, Stage

__all__ = [
    "cached_prefix",
    "capture_output",
    "frozen_prefix",
    "hidden_of",
    "is_all_frozen",
    "reading_prefix",
    "trained_below",
]

BATCH_TOKENS = 2048
SPARE_GB = 0.2
"""Of the disk, left free for checkpoints and the result."""


@dataclass(frozen=True)
class _Prefix:
    """The frozen layers of a model, and how the rest of it takes what they put out."""

    layers: list[nn.Module]
    """From the bottom on."""
    n_outputs: int
    """Length of the tuple that a layer hands on, hidden states first; 0: it hands on the tensor itself."""
    is_first_only: bool
    """Whether the rest of the model reads nothing but the first token of a row."""
    width: int
    """Length of a hidden state."""
    dtype: str
    """Type of the products that hidden states are computed with, as in the stage."""
    batch_tokens: int
    """Tokens that are computed at once, padding included."""


@contextlib.contextmanager
def cached_prefix(
    model: Any,
    stage: Stage,
    folder: Path,
    key: dict[str, Any],
    limit_gb: float,
    say: Callable[[str], None],
    progress: Progress | None = None,
    dtype: str = "float32",
    others: Sequence[Path] = (),
) -> Iterator[Stage]:
    """The stage to run instead of `stage`: the same, with the frozen layers' output read from a file.

    It is `stage` itself where nothing can be gained, where rows have no mask, where the file would be
    larger than `limit_gb` or than the disk has room for (or a quota, which shows as it is written), or
    where a trial shows that the model computes something else that way; `say` then tells why. The model is
    as before when the context is left.

    Args:
        model: PEFT model with the stage's masks set, on its device.
        stage: rows as tokens, and how they are collated.
        folder: of the files; what is there from a killed run is used if it is whole and has this key.
        key: what the hidden states depend on besides the layers and precision (model, data), as JSON.
        limit_gb: largest size of the files, those of `others` included, in units of 1e9 bytes.
        say: receives a line for the user.
        progress: told how far the pass over the rows is.
        dtype: type that the stage computes products in, "float32" or "bfloat16".
        others: folders of what other stages kept, which are removed where not all of it fits.
    """
    prefix, reason = _usable_prefix(model, stage, folder, limit_gb, dtype, others)
    if prefix is None:
        if reason:
            say(f"no cache of frozen layers: {reason}")
        yield stage
        return
    n_layers, size_gb = len(prefix.layers), _size_gb(prefix, stage)
    if PartialState().is_main_process:
        _make_room(size_gb, limit_gb, folder, others)
    size = _words(size_gb)
    say(f"what {n_layers} frozen layers put out is computed once ({size} on disk)")
    key = {**key, "n_layers": n_layers, "is_first_only": prefix.is_first_only, "dtype": dtype}
    both = _both_with_hidden(model, prefix, stage, folder, key, progress)
    if both is None:
        if PartialState().is_main_process:
            remove_scrap(folder)  # the part that fitted
        say(f"no cache of frozen layers: it would take {size}, the disk did not take it")
        yield stage
        return
    train, dev = both
    with reading_prefix(model, prefix.layers, prefix.n_outputs):
        yield dataclasses.replace(stage, train=train, dev=dev, collate=_collate(stage.collate))


def frozen_prefix(model: Any) -> tuple[list[nn.Module], str]:
    """The layers from the bottom on in which nothing trains, and why there are none where there are none.

    Args:
        model: a transformers model, or a PEFT model around one.

    Example:
        >>> from peft import get_peft_model
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> from hadamard_adapter import HadamardConfig
        >>> base = BertForSequenceClassification(BertConfig(hidden_size=8, num_attention_heads=2))
        >>> model = get_peft_model(base, HadamardConfig(task_type="SEQ_CLS", layers_to_transform=[10, 11]))
        >>> len(frozen_prefix(model)[0])
        10
    """
    layers, reason = _stack(model)
    return list(itertools.takewhile(_is_frozen, layers)), reason


def trained_below(model: Any) -> str:
    """A word for the values of the head's modules among or below the layers; "" where there are none.

    They are what a checkpoint lacks, such as embeddings of types: stage 1 trains them, and the fingerprint of
    the base model does not tell.

    Args:
        model: PEFT model.
    """
    base, digest = base_model_of(model), hashlib.sha256()
    heads = model.peft_config["default"].head_modules or ()
    start = f"{base.base_model_prefix}."
    below = sorted(name for name in heads if name.startswith(start) and "pooler" not in name)
    for name in below:
        for key, tensor in base.get_submodule(name).state_dict().items():
            digest.update(f"{name}.{key}".encode())
            digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest() if below else ""


def is_all_frozen(model: Any) -> bool:
    """Whether nothing trains in any layer, as in stage 1; of layers that are not known: no.

    Args:
        model: a transformers model, or a PEFT model around one.
    """
    layers, _ = _stack(model)
    return bool(layers) and all(map(_is_frozen, layers))


def _stack(model: Any) -> tuple[list[nn.Module], str]:
    """All layers from the bottom on, and why there are none where they are not known to be one stack."""
    base = base_model_of(model)
    try:
        family, stacks = family_of(base.config), layer_stacks(base)
    except SettingsError:
        return [], f"the layers of model_type {getattr(base.config, 'model_type', None)!r} are not known"
    if len(stacks) != 1 or family.is_shared:
        return [], "the model's layers are shared, or stand in two stacks"
    return list(stacks[0]), ""


def _is_frozen(layer: nn.Module) -> bool:
    return not any(parameter.requires_grad for parameter in layer.parameters())


def _usable_prefix(
    model: Any, stage: Stage, folder: Path, limit_gb: float, dtype: str, others: Sequence[Path]
) -> tuple[_Prefix | None, str]:
    """The frozen layers where their output can be kept, and why not where it cannot."""
    layers, reason = frozen_prefix(model)
    if not layers or not stage.train:
        return None, reason
    if "attention_mask" not in stage.train[0]:
        return None, "the tokenizer gives no attention_mask, which tells tokens from padding"
    prefix, reason = _tried(model, layers, stage, dtype)
    if prefix is not None:
        size_gb, room_gb = _size_gb(prefix, stage), _room_gb(folder, *others)
        if size_gb > limit_gb:
            reason = f"it would take {_words(size_gb)}, cache_gb leaves {_words(limit_gb)}"
        elif size_gb > room_gb:
            reason = f"it would take {_words(size_gb)}, the disk has room for {_words(room_gb)}"
    # What one process finds holds for all: those that went on would wait for it for ever.
    found = gather_object([(reason, prefix is not None and prefix.is_first_only)])
    reasons = [reason for reason, _ in found if reason]
    if prefix is None or reasons:
        return None, reasons[0]
    return dataclasses.replace(prefix, is_first_only=all(is_first for _, is_first in found)), ""


def _tried(model: Any, layers: list[nn.Module], stage: Stage, dtype: str) -> tuple[_Prefix | None, str]:
    """What a trial in float32 finds, or why it finds nothing."""
    try:
        with in_float32(model):
            prefix = _probe(model, layers, stage, dtype)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None, "the device has no memory for a trial of it in float32"
    return prefix, "" if prefix is not None else "with it this model computes something else"


class _Reached(Exception):
    """Ends a forward pass at the last layer whose output is wanted."""


def _probe(model: Any, layers: list[nn.Module], stage: Stage, dtype: str) -> _Prefix | None:
    """How the model takes the layers' output; None where outputs or gradients differ from the usual way's."""
    rows = probe_rows(stage)
    batch = to_device(stage.collate(rows), model.device)
    model.eval()
    with torch.no_grad():
        output = capture_output(model, layers, batch)
    n_outputs = len(output) if isinstance(output, tuple) else 0
    hidden = hidden_of(output).detach().requires_grad_()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    expected = outcome(model, batch, trained)
    with reading_prefix(model, layers, n_outputs):
        logits, (to_hidden, *to_trained) = outcome(model, {**batch, "prefix": hidden}, [hidden, *trained])
        if to_hidden is None or not is_same((logits, to_trained), expected):
            return None
        first = to_device(stage.collate([_first_token(row) for row in rows]), model.device)
        is_first_only = not bool(to_hidden[:, 1:].any()) and is_same(
            outcome(model, {**first, "prefix": hidden[:, :1]}, trained), expected
        )
    batch_tokens = min(BATCH_TOKENS, 2 * (stage.micro_batch_tokens or BATCH_TOKENS))
    return _Prefix(layers, n_outputs, is_first_only, hidden.shape[-1], dtype, batch_tokens)


def capture_output(model: Any, layers: list[nn.Module], batch: dict[str, Tensor]) -> Any:
    """What the last of the layers puts out, as it hands it on: a tensor, or a tuple that starts with one."""
    found: list[Any] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        found.append(output)
        raise _Reached

    handle = layers[-1].register_forward_hook(keep)
    try:
        with contextlib.suppress(_Reached):
            model(**{name: value for name, value in batch.items() if name != "labels"})
    finally:
        handle.remove()
    return found[0]


def hidden_of(output: Any) -> Float[Tensor, "b s d"]:
    """The hidden states in what a layer puts out."""
    return output[0] if isinstance(output, tuple) else output


@contextlib.contextmanager
def reading_prefix(model: Any, layers: list[nn.Module], n_outputs: int) -> Iterator[None]:
    """Within it the model takes "prefix" (b, s, d) beside its other inputs, and the layers hand that out."""
    now: dict[str, Tensor] = {}

    def take(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        now["prefix"] = kwargs.pop("prefix")
        return args, kwargs

    def hand_out(*args: Any, **kwargs: Any) -> Any:
        return (now["prefix"], *[None] * (n_outputs - 1)) if n_outputs else now["prefix"]

    handle = model.register_forward_pre_hook(take, with_kwargs=True)
    try:
        for layer in layers:
            layer.forward = hand_out
        yield
    finally:
        handle.remove()
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _both_with_hidden(
    model: Any, prefix: _Prefix, stage: Stage, folder: Path, key: dict[str, Any], progress: Progress | None
) -> tuple[list[Row], list[Row]] | None:
    """Training and dev rows by `_with_hidden`; None, and no file open, where one of them is None."""
    train = _with_hidden(model, prefix, stage.train, stage.collate, folder / "train", key, progress)
    if train is None:
        return None
    dev = _with_hidden(model, prefix, stage.dev, stage.collate, folder / "dev", key, progress)
    return None if dev is None else (train, dev)


def _with_hidden(
    model: Any,
    prefix: _Prefix,
    rows: list[Row],
    collate: Collate,
    path: Path,
    key: dict[str, Any],
    progress: Progress | None,
) -> list[Row] | None:
    """The rows, each with its hidden states under "prefix", read from a file that is made if need be.

    None where the disk does not take the file.
    """
    state = PartialState()
    lengths = [1 if prefix.is_first_only else len(row["input_ids"]) for row in rows]
    ends = np.cumsum(lengths, dtype=np.int64)
    shape = (int(ends[-1]) if rows else 0, prefix.width)
    is_kept = [True]
    if state.is_main_process and _read(path, shape, key) is None:
        try:
            _write(model, prefix, rows, collate, path, shape, ends, progress)
            write_json(path.with_suffix(".json"), key)
        except OSError as error:
            if not is_no_space(error) and not is_not_offered(error):
                raise
            is_kept = [False]
    broadcast_object_list(is_kept)
    if not is_kept[0]:
        return None
    kept = _read(path, shape, key)
    assert kept is not None, "just written, or read before"
    rows = [_first_token(row) for row in rows] if prefix.is_first_only else rows
    return [
        {**row, "prefix": kept[end - length : end]}
        for row, end, length in zip(rows, ends, lengths, strict=True)
    ]


def _read(path: Path, shape: tuple[int, int], key: dict[str, Any]) -> Float32[np.ndarray, "n d"] | None:
    """The file's array; None where it is missing, cut short, or of something else."""
    if read_json(path.with_suffix(".json")) != key:
        return None
    try:
        kept = np.load(path.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return None
    return kept if kept.shape == shape and kept.dtype == np.float32 else None


def _write(
    model: Any,
    prefix: _Prefix,
    rows: list[Row],
    collate: Collate,
    path: Path,
    shape: tuple[int, int],
    ends: Int[np.ndarray, " b"],
    progress: Progress | None,
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").unlink(missing_ok=True)
    temporary = path.with_suffix(".tmp")
    if not shape[0]:
        np.save(path.with_suffix(".npy"), np.empty(shape, dtype=np.float32))
        return
    kept = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
    _reserve(temporary)
    if progress is not None:
        progress.start("cache", len(rows), 0)
    n_done = 0
    for chosen in token_batches([len(row["input_ids"]) for row in rows], prefix.batch_tokens):
        batch = to_device(collate([rows[index] for index in chosen]), model.device)
        with torch.inference_mode(), autocast(model.device, prefix.dtype):
            hidden = hidden_of(capture_output(model, prefix.layers, batch)).float()
        mask = batch["attention_mask"].bool()
        for index, states, is_token in zip(chosen, hidden, mask, strict=True):
            own = states[:1] if prefix.is_first_only else states[is_token]
            kept[ends[index] - len(own) : ends[index]] = own.cpu().numpy()
        n_done += len(chosen)
        if progress is not None:
            progress.step(n_done, None)
    kept.flush()
    del kept  # Windows renames no file that is mapped
    os.replace(temporary, path.with_suffix(".npy"))
    if progress is not None:
        progress.end()


def _reserve(path: Path) -> None:
    """Take the file's blocks on the disk now: on a full one a write to mapped memory would end the process.

    Raises:
        OSError: the disk is full.
    """
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _collate(inner: Collate) -> Collate:
    """Collates rows with hidden states: "prefix" (b, s, d), zeros where the batch is padded."""

    def collate(rows: list[Row]) -> dict[str, Tensor]:
        batch = inner([{name: value for name, value in row.items() if name != "prefix"} for row in rows])
        states = torch.from_numpy(np.concatenate([row["prefix"] for row in rows]))
        mask = batch["attention_mask"].bool()
        batch["prefix"] = states.new_zeros(*mask.shape, states.shape[-1])
        batch["prefix"][mask] = states
        return batch

    return collate


def _first_token(row: Row) -> Row:
    """The row cut to its first token."""
    return {name: value if name == "labels" else value[:1] for name, value in row.items()}


def _room_gb(folder: Path, *others: Path) -> float:
    """What the folder's disk has room for, a killed run's files counted as free, and those of others."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    return max(0.0, shutil.disk_usage(there).free / 1e9 + sum(map(_held_gb, (folder, *others))) - SPARE_GB)


def _held_gb(folder: Path) -> float:
    """Size of the files in a folder."""
    return sum(path.stat().st_size for path in folder.glob("*")) / 1e9


def _make_room(size_gb: float, limit_gb: float, folder: Path, others: Sequence[Path]) -> None:
    """Remove what other stages kept where files of this size do not fit beside it."""
    if size_gb > min(limit_gb - sum(map(_held_gb, others)), _room_gb(folder)):
        for place in others:
            remove_scrap(place)


def _size_gb(prefix: _Prefix, stage: Stage) -> float:
    rows = [*stage.train, *stage.dev]
    n_tokens = len(rows) if prefix.is_first_only else sum(len(row["input_ids"]) for row in rows)
    return 4 * prefix.width * n_tokens / 1e9


def _words(size_gb: float) -> str:
    return decimal(round(1e9 * size_gb))
