"""One training of any method: `tune` for the Hadamard adapter, the same stage of training for all others."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import set_seed

from hadamard_adapter.adapter.fingerprint import fingerprint
from hadamard_adapter.bench.layers import offsets_by_layer
from hadamard_adapter.errors import SettingsError
from hadamard_adapter.methods import METHODS, Fit, Logits, Method, head_of, shape_of, trained_counts
from hadamard_adapter.tasks import score
from hadamard_adapter.tuning import Classifier, Progress, TuneSettings, load, resolve, tune
from hadamard_adapter.tuning.data import TuneData
from hadamard_adapter.tuning.losses import mean_loss
from hadamard_adapter.tuning.models import (
    collator,
    load_base,
    load_tokenizer,
    quiet_libraries,
    usable_length,
)
from hadamard_adapter.tuning.precision import cast_frozen, placed
from hadamard_adapter.tuning.processes import deterministic_on
from hadamard_adapter.tuning.recipe import say_nothing
from hadamard_adapter.tuning.shortcuts import shortcuts
from hadamard_adapter.tuning.stage import Stage
from hadamard_adapter.tuning.training import run_stage
from hadamard_adapter.tuning.weights import WEIGHTS, load_weights, read_weights
from hadamard_adapter.tuning.workbench import class_weights, token_rows

__all__ = ["Trained", "refuse_unfit", "train"]


@dataclass(frozen=True)
class Trained:
    """What a training came to."""

    logits: Logits
    """What the model at its best epoch says of texts; only runs whose score counts ask for it."""
    curve: list[dict[str, Any]]
    """An entry an epoch, with the name of its stage."""
    best: dict[str, Any]
    """The entry that was chosen."""
    n_trained: int
    """Parameters trained beside the head."""
    n_head: int
    """Parameters of the head."""
    n_base: int
    """Parameters of the base model."""
    layers: dict[str, list[float]]
    """Kind and site of offsets -> their root mean square, layer by layer; empty for other methods."""


def train(
    method: str, settings: TuneSettings, data: TuneData, folder: Path, progress: Progress | None = None
) -> Trained:
    """Train one model with one method; what a killed training left in the folder is used.

    Args:
        method: name in the table of methods.
        settings: of the run; `output` is set here.
        data: rows to train on and rows that choose the epoch.
        folder: for everything written on the way.
        progress: told of every step and epoch.

    Raises:
        SettingsError: the model cannot be loaded, or the method cannot be applied to it.
        TrainingError: the loss is not finite, or the disk is full.
    """
    # What a killed run on another device left does not count, and is no failure of this one.
    settings = dataclasses.replace(settings, output=str(folder / "out"), quiet=True, overwrite=True)
    row = METHODS[method]
    if row.fit is not None:
        return _fitted(row.fit, settings, data)
    if row.settings is not None:
        return _tuned(settings, data, progress)
    with quiet_libraries():
        return _wrapped(row, resolve(settings, len(data.train)), data, folder, progress)


def refuse_unfit(method: str, settings: TuneSettings, data: TuneData) -> None:
    """Refuse a model on which a method that `tune` trains would have other parameters than its formula says.

    The methods that are wrapped look themselves, before they train.

    Raises:
        SettingsError: it has, or the model is no encoder of one stack of layers.
    """
    row = METHODS[method]
    if row.settings is None:
        return
    with quiet_libraries(), torch.random.fork_rng(devices=[]):
        base = load_base(settings.model, data.task, load_tokenizer(settings.model).pad_token_id)
        head, shape = head_of(base), shape_of(base)
        n_trained, _ = trained_counts(row.make(base, head), head)
    _refuse_other_count(row, n_trained, row.count(shape))


def _fitted(fit: Fit, settings: TuneSettings, data: TuneData) -> Trained:
    """A method without a pre-trained model: one fit is its only epoch."""
    assert isinstance(settings.lr, float)
    logits, n_fitted = fit(data.task, data.train, settings.lr)
    found, labels = logits(data.dev.texts, data.dev.pairs), data.dev.labels or []
    entry = {
        "stage": "both",
        "epoch": 1,
        "dev_loss": mean_loss(data.task, found, labels),
        "scores": score(data.task, found, labels),
    }
    return Trained(logits, [entry], entry, 0, n_fitted, n_fitted, {})


def _tuned(settings: TuneSettings, data: TuneData, progress: Progress | None) -> Trained:
    result = tune(settings, progress=progress, data=data)
    metrics = result.metrics
    last = metrics["curve"][-1]["stage"]
    best_epoch = metrics["best_epoch"][last]
    best = next(e for e in metrics["curve"] if e["stage"] == last and e["epoch"] == best_epoch)

    def logits(texts: list[str], pairs: list[str] | None) -> np.ndarray:
        loaded = load(result.output, device=settings.device)
        return loaded.logits(texts, pairs)

    offsets = read_weights(result.output / WEIGHTS)
    return Trained(
        logits,
        metrics["curve"],
        best,
        metrics["adapter_parameters"],
        metrics["head_parameters"],
        metrics["base_parameters"],
        offsets_by_layer(offsets),
    )


def _wrapped(
    row: Method, settings: TuneSettings, data: TuneData, folder: Path, progress: Progress | None
) -> Trained:
    settings = placed(settings)
    tokenizer = load_tokenizer(settings.model)
    set_seed(settings.seed)
    base = load_base(settings.model, data.task, tokenizer.pad_token_id)
    head, shape = head_of(base), shape_of(base)
    n_base, base_fingerprint = sum(p.numel() for p in base.parameters()), fingerprint(base)
    max_length = usable_length(base, tokenizer, settings.max_length)
    model = row.make(base, head).to(settings.device)
    n_trained, n_head = trained_counts(model, head)
    _refuse_other_count(row, n_trained, row.count(shape))
    cast_frozen(model, settings.dtype)
    assert settings.epochs is not None and isinstance(settings.lr, float)  # resolved
    assert settings.stage2_head_lr is not None
    stage = Stage(
        name="both",
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        rates={**dict.fromkeys(("scale", "shift", "norm"), settings.lr), "head": settings.stage2_head_lr},
        train=token_rows(tokenizer, data.train, max_length)[0],
        dev=token_rows(tokenizer, data.dev, max_length)[0],
        collate=collator(tokenizer, data.task.problem_type),
        class_weights=class_weights(settings, data),
        micro_batch_tokens=settings.micro_batch_tokens,
        head=head,
    )
    content = {"base": base_fingerprint, "max_length": max_length}
    with (
        deterministic_on(base.device),
        shortcuts(model, stage, settings, data, content, folder / "cache", say_nothing, progress) as short,
    ):
        outcome = run_stage(model, short, data.task, settings, folder / "both", progress)

    def logits(texts: list[str], pairs: list[str] | None) -> np.ndarray:
        _load_checkpoint(model, outcome.checkpoint)
        loaded = Classifier(data.task, model.eval(), tokenizer, max_length, None, folder, settings.dtype)
        return loaded.logits(texts, pairs)

    curve = [{"stage": "both", **entry} for entry in outcome.curve]
    return Trained(logits, curve, {"stage": "both", **outcome.best}, n_trained, n_head, n_base, {})


def _refuse_other_count(row: Method, n_trained: int, expected: int) -> None:
    if n_trained != expected:
        raise SettingsError(
            f"{row.title}: {n_trained:,} parameters train in this model where its formula says {expected:,}; "
            "formulae are of encoders with the layers of BERT: choose such a model, or leave the method out"
        )


def _load_checkpoint(model: Any, checkpoint: Path) -> None:
    """Put the weights of a checkpoint of the Trainer back."""
    if isinstance(model, PeftModel):
        load_weights(model, checkpoint / WEIGHTS)
        return
    missing, unexpected = model.load_state_dict(load_file(checkpoint / "model.safetensors"), strict=False)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not trained & set(missing) and not unexpected, f"{checkpoint} holds another model"
