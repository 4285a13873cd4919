"""The work bench of a run: model with adapter, tokenizer and tokenized rows, before the first step."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from peft import get_peft_model
from transformers import set_seed

from hadamard_adapter.adapter import HadamardConfig
from hadamard_adapter.adapter.families import FAMILIES
from hadamard_adapter.adapter.fingerprint import fingerprint
from hadamard_adapter.errors import SettingsError
from hadamard_adapter.tasks import Examples
from hadamard_adapter.tuning.data import TuneData
from hadamard_adapter.tuning.models import (
    DEFAULT_MAX_LENGTH,
    collator,
    load_base,
    load_tokenizer,
    tokenize,
    usable_length,
)
from hadamard_adapter.tuning.precision import autocast, cast_frozen
from hadamard_adapter.tuning.report import code_commit, count_parameters
from hadamard_adapter.tuning.settings import TuneSettings
from hadamard_adapter.tuning.shared import Basis, read_basis, start_from
from hadamard_adapter.tuning.stage import Progress

__all__ = ["Say", "Workbench", "adapter_config", "class_weights", "poolers_of", "set_up", "token_rows"]

Say = Callable[[str], None]
"""Receives one line for the user."""

TokenRows = tuple[list[dict[str, Any]], int]
"""Rows as model inputs with "labels", and the number of rows that were cut."""

Tokenized = dict[int, tuple[TokenRows, TokenRows]]
"""Tokens after which a row is cut -> training rows and dev rows."""


@dataclass(frozen=True)
class Workbench:
    """All that the stages work with."""

    settings: TuneSettings
    """Resolved."""
    data: TuneData
    """Task and rows."""
    model: Any
    """PEFT model; its weights change from stage to stage."""
    tokenizer: Any
    """Of the base model."""
    train: list[dict[str, Any]]
    """Training rows as model inputs with "labels"."""
    dev: list[dict[str, Any]]
    """Dev rows, likewise."""
    max_length: int
    """Tokens after which a row was cut."""
    n_truncated: dict[str, int]
    """"train" and "dev" -> number of rows that were cut."""
    base_fingerprint: str
    """Of the backbone."""
    n_base: int
    """Number of the base model's parameters."""
    basis: Basis | None
    """Directions that the adapter stays in; None: it is free."""
    partial: Path
    """The work folder."""
    shared: Path | None
    """A folder for what runs of several learning rates or seeds share; None: there is one run."""
    say: Say
    """Receives a line for the user."""
    progress: Progress | None
    """Told of every step."""


def set_up(
    settings: TuneSettings,
    data: TuneData,
    partial: Path,
    say: Say,
    progress: Progress | None,
    shared: Path | None = None,
    tokenized: Tokenized | None = None,
) -> Workbench:
    """The base model with an untrained adapter and head, and its rows; the head's start depends on the seed.

    Args:
        settings: resolved.
        data: the rows.
        partial: the work folder.
        say: receives a line for the user.
        progress: told of every step.
        shared: folder for what several runs share.
        tokenized: rows that these runs tokenized so far; this one adds its own. None: there is one run.

    Raises:
        SettingsError: the model cannot be loaded or adapted, or takes fewer tokens than max_length.
    """
    code_commit()
    source = str(Path(settings.model).absolute()) if Path(settings.model).is_dir() else settings.model
    tokenizer = load_tokenizer(source, settings.allow_remote_code)
    set_seed(settings.seed)
    base = load_base(source, data.task, tokenizer.pad_token_id, settings.allow_remote_code)
    max_length = usable_length(base, tokenizer, settings.max_length)
    base_fingerprint, n_base = fingerprint(base), sum(p.numel() for p in base.parameters())
    if base.config.model_type not in FAMILIES:
        raise SettingsError(
            f"model type {base.config.model_type!r}: expected one of {', '.join(sorted(FAMILIES))}; others "
            "are adapted in Python alone, where HadamardConfig(target_modules=[...], norm_modules=[...]) "
            "and any Trainer take modules by name: hadamard inspect MODEL proposes them"
        )
    model = get_peft_model(base, adapter_config(settings, base, base_fingerprint))
    cast_frozen(model, settings.dtype)
    _try_dtype(settings, model, tokenizer)
    if settings.start is not None:
        start_from(model, settings.start, base_fingerprint)
    basis = None if settings.basis is None else read_basis(settings.basis, model, base_fingerprint)
    counts = count_parameters(model, n_base, basis)
    say(
        f"preset {settings.preset}: sites {', '.join(settings.sites or ())}; "
        f"{counts['adapter_parameters']:,} parameters of the adapter ({counts['share_percent']:.4f} % of "
        f"{n_base / 1e6:.1f} M), {counts['head_parameters']:,} of the head"
    )
    tokenized = {} if tokenized is None else tokenized
    if max_length not in tokenized:
        tokenized[max_length] = (
            token_rows(tokenizer, data.train, max_length),
            token_rows(tokenizer, data.dev, max_length),
        )
    (train, n_train_cut), (dev, n_dev_cut) = tokenized[max_length]
    n_truncated = {"train": n_train_cut, "dev": n_dev_cut}
    for part, n_cut in n_truncated.items():
        if n_cut:
            say(f"{n_cut} {part} rows are longer than {max_length} tokens; their ends are cut off")
    return Workbench(
        settings, data, model, tokenizer, train, dev, max_length, n_truncated, base_fingerprint, n_base,
        basis, partial, shared, say, progress,
    )  # fmt: skip


def class_weights(settings: TuneSettings, data: TuneData) -> Float[torch.Tensor, " l"] | None:
    """n / (classes · rows of the class), float32; the weights of all rows average 1 where no class is empty.

    None stands for equal weights.

    Raises:
        SettingsError: weights are asked for, and the task has no single labels.
    """
    if settings.class_weights == "none":
        return None
    if data.task.problem_type != "single_label_classification":
        raise SettingsError(
            f"class_weights: expected 'none' for {data.task.problem_type}, received 'balanced'; "
            "only single labels have classes to balance"
        )
    counts = torch.bincount(torch.tensor(data.train.labels), minlength=len(data.task.label_names))
    return counts.sum() / (len(counts) * counts.clamp(min=1)).float()


def adapter_config(
    settings: TuneSettings, base: torch.nn.Module, base_fingerprint: str | None = None
) -> HadamardConfig:
    """The adapter that resolved settings describe, on a base model."""
    return HadamardConfig(
        task_type="SEQ_CLS",
        sites=list(settings.sites or ()),
        norm_modules=None if settings.norm_modules is None else list(settings.norm_modules),
        train_scale=settings.train_scale,
        train_shift=None if settings.train_shift else False,
        position=settings.position,
        layers_to_transform=None if settings.layers is None else list(settings.layers),
        modules_to_save=poolers_of(base) or None if settings.head == "full" else None,
        identity_modules=settings.head == "linear",
        base_fingerprint=base_fingerprint,
    )


def poolers_of(base: torch.nn.Module) -> list[str]:
    """Poolers, which stand between the backbone and the classifier, as modules of the head."""
    names = [name for name, _ in base.named_modules() if name.rpartition(".")[2] == "pooler"]
    return [name for name in names if next(base.get_submodule(name).parameters(), None) is not None]


def token_rows(tokenizer: Any, examples: Examples, max_length: int) -> TokenRows:
    """Labelled examples as model inputs with "labels", and the number of rows that were cut.

    Raises:
        SettingsError: a row would be cut to special tokens alone.
    """
    tokens = tokenize(tokenizer, examples.texts, examples.pairs, max_length)
    n_texts = 1 if examples.pairs is None else 2
    least = tokenizer.num_special_tokens_to_add(pair=n_texts == 2) + n_texts
    if tokens.n_truncated and max_length < least:
        raise SettingsError(
            f"max_length: expected {least} or more, one token of each text beside a row's special ones, "
            f"received {max_length!r}"
        )
    labels = examples.labels or []
    return [
        {**row, "labels": label} for row, label in zip(tokens.rows, labels, strict=True)
    ], tokens.n_truncated


def _try_dtype(settings: TuneSettings, model: Any, tokenizer: Any) -> None:
    """Refuse half precision for a model whose code cannot compute in it (DeBERTa's masks, for one)."""
    if settings.dtype == "float32":
        return
    batch = collator(tokenizer, "regression")(tokenize(tokenizer, ["a b"], None, DEFAULT_MAX_LENGTH).rows)
    try:
        with torch.inference_mode(), autocast(model.device, settings.dtype):
            model.eval()(**batch)
    except RuntimeError as error:
        raise SettingsError(
            f"dtype: expected 'float32' for {settings.model!r}, whose code does not compute in "
            f"{settings.dtype} ({error}); pass --dtype float32"
        ) from error
