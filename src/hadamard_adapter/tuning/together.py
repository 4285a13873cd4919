"""One adapter for several tasks at once, each with a head of its own.

Stage 1 is that of `tune`, task by task. Stage 2 trains one set of offsets on all rows: a step sees rows of
one task, and a task comes up as often as it has rows, in an order that seed and epoch decide. The tasks'
models hold the same parameters, not copies, for the adapter and for the frozen backbone.

Source: Chen et al., 2023, arXiv 2407.11033, section 6 (patterns are alike, so tasks may share an adapter).
"""

import contextlib
import dataclasses
import operator
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import PrinterCallback, TrainerCallback, set_seed
from transformers.trainer_pt_utils import get_length_grouped_indices
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from hadamard_adapter.errors import SettingsError
from hadamard_adapter.files import filled, remove, write_json
from hadamard_adapter.tasks import METRICS, score
from hadamard_adapter.tuning.averaging import averaged
from hadamard_adapter.tuning.classifier import token_logits
from hadamard_adapter.tuning.data import TuneData, read_data, run_key
from hadamard_adapter.tuning.losses import loss_of, mean_loss
from hadamard_adapter.tuning.models import backbone_of, collator, pick_device, quiet_libraries
from hadamard_adapter.tuning.parts import rows_to_evaluate
from hadamard_adapter.tuning.places import refuse_no_place
from hadamard_adapter.tuning.precision import placed
from hadamard_adapter.tuning.processes import deterministic_on, processes_on
from hadamard_adapter.tuning.recipe import (
    TuneResult,
    do_stage,
    done_folder,
    make_stage,
    resolved_for,
    result_in,
    say_on_stderr,
    set_masks,
    workspace,
    write_final,
)
from hadamard_adapter.tuning.resume import FINAL, check_output, partial_of, publish
from hadamard_adapter.tuning.settings import OF_TABLES, TuneSettings
from hadamard_adapter.tuning.shared import trained_offsets
from hadamard_adapter.tuning.shortcuts import lean
from hadamard_adapter.tuning.stage import Row
from hadamard_adapter.tuning.training import StageTrainer, make_optimizer, training_arguments
from hadamard_adapter.tuning.workbench import Say, Workbench, class_weights, set_up

__all__ = ["OneTaskBlocks", "tune_together"]

_OF_A_TASK = (*OF_TABLES, "train", "task", "data", "metric", "dev_fraction")
"""Settings that say a task's rows; all others are the first task's for all of them."""


def tune_together(
    settings: Sequence[TuneSettings],
    output: Path,
    say: Say = say_on_stderr,
    data: Sequence[TuneData] | None = None,
) -> dict[str, TuneResult]:
    """Tune one adapter for several tasks; leave a complete folder for each, all with the same offsets.

    The epoch is chosen by the mean over tasks of each task's first metric on its dev rows. A run that was
    killed keeps the heads of stage 1 and begins stage 2 anew. One process, one learning rate, one seed. In
    stage 2 frozen layers are not cached and the last one computes all tokens, whatever the settings say.

    Args:
        settings: one for each task, whose rows they say; everything else is the first one's.
        output: receives a folder a task, named as the last part of its settings' output.
        say: receives a line for the user.
        data: each task's rows, read already; None: those that the settings name.

    Returns:
        Name of the folder -> its result.

    Raises:
        SettingsError: fewer than two tasks, or two of one name; as `tune`.
        DataError, TrainingError: as `tune`.
    """
    names = _names_of(settings)
    state = processes_on(pick_device(settings[0].device))
    if state.num_processes > 1:
        raise SettingsError(
            f"expected one process, received {state.num_processes}; start it without a launcher"
        )
    refuse_no_place("output", output.absolute())
    folders = [output.absolute() / name for name in names]
    with quiet_libraries(), contextlib.ExitStack() as held:
        tasks = _tasks_of(settings, folders, data)
        is_over = [check_output(task.folder, task.key, settings[0].overwrite) for task in tasks]
        if not all(is_over):
            for task in tasks:
                held.enter_context(workspace(task.folder, task.key, settings[0].overwrite))
            written = [(partial_of(folder) / FINAL).is_dir() for folder in folders]
            if not all(map(operator.or_, is_over, written)):
                _tune(tasks, state.device, say)
            for task in tasks:
                publish(partial_of(task.folder), task.folder, task.key, settings[0].overwrite)
    say(f"done: {output}")
    return {name: result_in(folder) for name, folder in zip(names, folders, strict=True)}


@dataclass(frozen=True)
class _Task:
    """One of the tasks, before its model is loaded."""

    folder: Path
    """Its output."""
    settings: TuneSettings
    """Resolved: its own rows, everything else as the first task has it."""
    data: TuneData
    """Its rows."""
    key: dict[str, Any]
    """What is equal where the result is the same; names the other tasks' rows too."""


def _names_of(settings: Sequence[TuneSettings]) -> list[str]:
    """The tasks' names: the last part of each output."""
    names = [Path(one.output).name for one in settings]
    if len(names) < 2 or len(set(names)) < len(names):
        raise SettingsError(f"expected two tasks or more, each with a name of its own, received {names!r}")
    if settings[0].basis is not None:
        raise SettingsError(
            f"{names[0]!r} was tuned in the directions of {settings[0].basis!r}, and its settings count for "
            "all; expected an adapter with offsets of its own: name one that was tuned without --basis first"
        )
    return names


def _tasks_of(
    settings: Sequence[TuneSettings], folders: Sequence[Path], data: Sequence[TuneData] | None
) -> list[_Task]:
    """The tasks with their rows, read where none are given."""
    first = dataclasses.replace(placed(settings[0]), stages=2, seeds=1)
    each: list[TuneSettings] = []
    for one, folder in zip(settings, folders, strict=True):
        own = {field: getattr(one, field) for field in _OF_A_TASK}
        each.append(dataclasses.replace(first, **own, output=str(folder)))
    read = [read_data(one) for one in each] if data is None else data
    tasks, content = list[_Task](), ""
    for folder, one, rows in zip(folders, each, read, strict=True):
        resolved = resolved_for(one, rows)
        key = run_key(resolved, rows, 1, content)
        content = key["model_content"]  # of one model, which is read once
        tasks.append(_Task(folder, resolved, rows, key))
    others = {task.folder.name: task.key["train_data"] for task in tasks}
    return [dataclasses.replace(task, key={**task.key, "together": others}) for task in tasks]


def _tune(tasks: Sequence[_Task], device: torch.device | None, say: Say) -> None:
    """Both stages of all tasks; everything that their folders will hold then is in their work folders."""
    benches: list[Workbench] = []
    for task in tasks:
        bench = set_up(task.settings, task.data, partial_of(task.folder), say, None)
        bench.model.to(device)  # before it shares: a move makes copies
        if benches:
            _share_parameters(benches[0].model, bench.model)
        benches.append(bench)
    for bench in benches:
        do_stage(bench, "head")
        for scrap in (done_folder(bench, "adapter"), bench.partial / FINAL):
            remove(scrap)  # of a run that was killed before all tasks had theirs
    _train(benches, say)
    for task, bench in zip(tasks, benches, strict=True):
        write_final(bench, task.key)


def _share_parameters(first: Any, model: Any) -> None:
    """Give a model the first one's offsets, and the memory of its frozen parameters."""
    offsets, frozen = trained_offsets(first), dict(first.named_parameters())
    own = trained_offsets(model)
    if {name: p.shape for name, p in own.items()} != {name: p.shape for name, p in offsets.items()}:
        raise SettingsError("expected tasks whose models can share one adapter, received others")
    for name, parameter in offsets.items():
        model.get_submodule(name)["default"] = parameter
    for name, parameter in model.named_parameters():
        source = frozen.get(name)
        if not parameter.requires_grad and source is not None and torch.equal(parameter, source):
            parameter.data = source.data


def _train(benches: Sequence[Workbench], say: Say) -> None:
    """Stage 2 of all tasks; the models then are at the best epoch, and each has its result of the stage."""
    first, started = benches[0], time.perf_counter()
    settings = first.settings
    for bench in benches:
        set_masks(bench.model, bench.settings, "adapter")
    collates = [collator(bench.tokenizer, bench.data.task.problem_type) for bench in benches]

    def collate(rows: list[Row]) -> dict[str, Any]:
        own = [{name: value for name, value in row.items() if name != "task"} for row in rows]
        return {**collates[rows[0]["task"]](own), "task": torch.tensor(rows[0]["task"])}

    rows = [{**row, "task": index} for index, bench in enumerate(benches) for row in bench.train]
    stage = dataclasses.replace(make_stage(first, "adapter"), train=rows, dev=[], collate=collate)
    arguments = training_arguments(stage, settings, first.partial / "adapter")
    arguments.eval_strategy, arguments.save_strategy = IntervalStrategy.NO, SaveStrategy.NO
    model = _Together([bench.model for bench in benches], settings.dropout)
    losses = [
        loss_of(bench.data.task.problem_type, class_weights(bench.settings, bench.data)) for bench in benches
    ]

    def loss(outputs: dict[str, Any], labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        return losses[int(outputs["task"])](outputs, labels, num_items_in_batch)

    watch = _Watch(benches, say)
    train_rows: Any = stage.train
    trainer = _TogetherTrainer(
        model=model,
        args=arguments,
        train_dataset=train_rows,
        data_collator=collate,
        compute_loss_func=loss,
        optimizers=(make_optimizer(model, stage, settings, arguments), None),
        callbacks=[watch],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.model_accepts_loss_kwargs = False  # the loss is ours, whatever **inputs looks like
    trainer.by_length, trainer.is_shuffled = settings.group_by_length, settings.shuffle_groups
    trainer.micro_batch_tokens = stage.micro_batch_tokens
    watch.trainer = trainer
    with deterministic_on(first.model.device), contextlib.ExitStack() as held:
        for bench in benches:
            held.enter_context(lean(bench.model, settings))
        set_seed(settings.seed)
        trainer.train()
    watch.restore_best()
    seconds = time.perf_counter() - started
    for index, bench in enumerate(benches):
        curve = watch.curves[index]
        best = next(entry for entry in curve if entry["epoch"] == watch.best_epoch)
        entry = {"curve": curve, "best": best, "seconds": seconds, "cache_seconds": 0.0}
        with filled(done_folder(bench, "adapter")) as folder:
            bench.model.save_pretrained(folder, save_embedding_layers=False)
            write_json(folder / "stage.json", entry)
    remove(first.partial / "adapter")


class _Together(nn.Module):
    """The tasks' models as one: a batch says whose it is."""

    def __init__(self, models: Sequence[nn.Module], has_dropout: bool) -> None:
        super().__init__()
        self.models, self.has_dropout = nn.ModuleList(models), has_dropout

    def forward(self, task: Tensor, **inputs: Tensor) -> dict[str, Any]:
        return {"logits": self.models[int(task)](**inputs).logits, "task": task}

    def train(self, mode: bool = True) -> "_Together":
        super().train(mode)
        for model in self.models:
            if not self.has_dropout:
                backbone_of(model).eval()
        return self


class _TogetherTrainer(StageTrainer):
    """A step's rows are of one task."""

    epoch_loss = 0.0

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        rows_a_step = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return OneTaskBlocks(self.train_dataset, rows_a_step, self.args.seed, self.by_length)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        self.epoch_loss += float(loss)
        return loss


class OneTaskBlocks(Sampler[int]):
    """Rows in blocks of one task, of like length or drawn at random; the last is filled with its own rows."""

    def __init__(self, rows: Any, size: int, seed: int, by_length: bool = True) -> None:
        self.size, self.seed, self.epoch = size, seed, 0
        self.tasks: dict[int, list[int]] = {}
        for index, row in enumerate(rows):
            self.tasks.setdefault(row["task"], []).append(index)
        self.lengths = [len(row["input_ids"]) if by_length else 1 for row in rows]

    def __len__(self) -> int:
        return self.size * sum(-(-len(rows) // self.size) for rows in self.tasks.values())

    def set_epoch(self, epoch: int) -> None:
        """Called by Accelerate's loader."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        blocks: list[list[int]] = []
        for rows in self.tasks.values():
            lengths = [self.lengths[index] for index in rows]
            order = [rows[at] for at in get_length_grouped_indices(lengths, self.size, generator=generator)]
            while len(order) % self.size:
                order += order[: self.size - len(order) % self.size]
            blocks += [order[at : at + self.size] for at in range(0, len(order), self.size)]
        for at in torch.randperm(len(blocks), generator=generator).tolist():
            yield from blocks[at]


class _Watch(TrainerCallback):
    """Scores every task after every epoch, and keeps what trains as it was after the best one."""

    def __init__(self, benches: Sequence[Workbench], say: Say) -> None:
        self.benches, self.say = benches, say
        self.curves: list[list[dict[str, Any]]] = [[] for _ in benches]
        self.trainer: Any = None
        self.best_epoch, self.best_mean = 0, float("-inf")
        self.best: dict[str, Tensor] = {}

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        epoch, steps = len(self.curves[0]) + 1, max(1, state.max_steps // args.num_train_epochs)
        loss, self.trainer.epoch_loss = self.trainer.epoch_loss / steps, 0.0
        with averaged(self.trainer.optimizer):
            self._score(state.global_step, epoch, loss)
        patience = self.benches[0].settings.early_stopping
        if patience and epoch - self.best_epoch >= patience:
            control.should_training_stop = True

    def _score(self, step: int, epoch: int, loss: float) -> None:
        goods: list[float] = []
        for bench, curve in zip(self.benches, self.curves, strict=True):
            scores, dev_loss = _scored(bench)
            entry = {"epoch": epoch, "step": step, "loss": loss, "dev_loss": dev_loss}
            curve.append({**entry, "scores": scores})
            metric = bench.data.task.metrics[0]
            goods.append(METRICS[metric].sign * scores[metric])
        mean = statistics.mean(goods)
        self.say(f"together, epoch {epoch}: " + ", ".join(f"{good:.4f}" for good in goods))
        if mean > self.best_mean:
            self.best_epoch, self.best_mean = epoch, mean
            self.best = {name: p.detach().clone() for name, p in self._trained()}

    def restore_best(self) -> None:
        """Put back what trained as it was after the best epoch."""
        with torch.no_grad():
            for name, parameter in self._trained():
                parameter.copy_(self.best[name])

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        model = self.trainer.model
        return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _scored(bench: Workbench) -> tuple[dict[str, float], float]:
    """Scores and loss of a task's dev rows, as its model stands."""
    data, is_training = bench.data, bench.model.training
    settings, model = bench.settings, bench.model.eval()
    n_rows = rows_to_evaluate(bench.dev, 32, settings.micro_batch_tokens)
    logits = token_logits(data.task, model, bench.tokenizer, bench.dev, settings.dtype, n_rows)
    bench.model.train(is_training)
    labels = data.dev.labels or []
    return score(data.task, logits, labels), mean_loss(data.task, logits, labels)
