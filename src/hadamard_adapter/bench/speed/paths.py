"""Ways to train a method: `tune` and its data path, and the plain Trainer as its documentation shows it."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed

from hadamard_adapter.allocator import keep_freed_memory
from hadamard_adapter.bench.spec import Optimizer
from hadamard_adapter.bench.speed.clock import Clock
from hadamard_adapter.bench.train import train
from hadamard_adapter.methods import METHODS, head_of
from hadamard_adapter.tasks import Task, score
from hadamard_adapter.tuning import TuneSettings, resolve
from hadamard_adapter.tuning.data import TuneData
from hadamard_adapter.tuning.first_token import cut_last_layer
from hadamard_adapter.tuning.models import (
    backbone_of,
    collator,
    load_base,
    load_tokenizer,
    pick_device,
    quiet_libraries,
    usable_length,
)
from hadamard_adapter.tuning.precision import cast_frozen
from hadamard_adapter.tuning.shortcuts import lean
from hadamard_adapter.tuning.workbench import token_rows

__all__ = ["GROUPED", "LAST_STEP", "OURS", "PLAIN", "TrainingPath"]


@dataclass(frozen=True)
class TrainingPath:
    """What stands around a method while it trains."""

    name: str
    """For records."""
    train: Callable[[str, TuneSettings, TuneData, Path, Clock], object]
    """Trains a method (its name) on rows, in a folder, under a clock."""
    ready: Callable[[Any, dict[str, Tensor], TuneSettings], contextlib.AbstractContextManager[None]]
    """Within it a model, which is changed, computes as in `train`; given a batch to try it on, settings."""
    optimizer: Optimizer
    """Whose: that of `tune`, or the Trainer's."""
    begin: Callable[[], object] = lambda: None
    """Called once at the start of a process, as the path's own command does."""
    is_ordered: bool = False
    """Whether rows come in the order that a spec names."""


def _plain(
    strategy: str, method: str, settings: TuneSettings, data: TuneData, folder: Path, clock: Clock
) -> None:
    """Train on the Trainer with its own loss, order of rows, optimizer and dropout; no checkpoints."""
    device = pick_device(settings.device)
    settings = resolve(settings, len(data.train))
    assert settings.epochs is not None and settings.schedule is not None  # resolved
    assert isinstance(settings.lr, float)
    with quiet_libraries():
        tokenizer = load_tokenizer(settings.model)
        set_seed(settings.seed)
        base = load_base(settings.model, data.task, tokenizer.pad_token_id)
        max_length = usable_length(base, tokenizer, settings.max_length)
        train_rows, dev_rows = (token_rows(tokenizer, part, max_length)[0] for part in (data.train, data.dev))
        dev_rows.sort(key=lambda row: len(row["input_ids"]))  # evaluation is not timed: as quick as it can be
        rows: Any = {"train_dataset": train_rows, "eval_dataset": dev_rows}  # lists will do
        arguments = TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=settings.epochs,
            per_device_train_batch_size=settings.batch_size,
            per_device_eval_batch_size=2 * settings.batch_size,
            learning_rate=settings.lr,
            lr_scheduler_type=settings.schedule,
            warmup_steps=settings.warmup,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            train_sampling_strategy=strategy,
            bf16=settings.dtype == "bfloat16",
            seed=settings.seed,
            use_cpu=device.type == "cpu",
            dataloader_pin_memory=device.type == "cuda",
            save_strategy="no",
            remove_unused_columns=False,
            label_names=["labels"],
            report_to="none",
            disable_tqdm=True,
            log_level="error",
        )
        arguments._n_gpu = min(arguments.n_gpu, 1)  # pyright: ignore[reportPrivateUsage]
        trainer = Trainer(
            model=METHODS[method].make(base, head_of(base)),
            args=arguments,
            data_collator=collator(tokenizer, data.task.problem_type),
            compute_metrics=functools.partial(_scores, data.task),
            **rows,
        )
        trainer.remove_callback(PrinterCallback)
        clock.watch(trainer)
        trainer.train()


def _scores(task: Task, evaluated: Any) -> dict[str, float]:
    return score(task, evaluated.predictions, evaluated.label_ids)


@contextlib.contextmanager
def _as_tune_does(model: Any, batch: dict[str, Tensor], settings: TuneSettings) -> Iterator[None]:
    """No dropout in the backbone, of the last layer what the head reads, frozen weights cast once, if asked
    activations computed again and layers compiled."""
    if settings.first_token_only:
        model.eval()
        cut_last_layer(model, batch)
    model.train()
    if not settings.dropout:
        backbone_of(model).eval()
    cast_frozen(model, settings.dtype)
    with lean(model, settings):
        yield


@contextlib.contextmanager
def _as_it_is(model: Any, batch: dict[str, Tensor], settings: TuneSettings) -> Iterator[None]:
    model.train()
    yield


OURS = TrainingPath("tune", train, _as_tune_does, "tune", keep_freed_memory, is_ordered=True)
"""`tune` for the Hadamard adapter, its data path and stage for other methods: no dropout in the backbone,
rows of like length together, frozen layers at the bottom computed once, the last one cut short, and its
optimizer: a mean of the weights at a constant rate."""
LAST_STEP = dataclasses.replace(OURS, optimizer="trainer")
"""The same with the Trainer's optimizer, so that data path and optimizer are told apart."""
PLAIN = TrainingPath("Trainer", functools.partial(_plain, "random"), _as_it_is, "trainer")
"""The Trainer by itself: random order, batches padded to their longest row, the model's dropout."""
GROUPED = TrainingPath("Trainer, grouped", functools.partial(_plain, "group_by_length"), _as_it_is, "trainer")
"""The same, with rows of like length together by the Trainer's own sampler."""
