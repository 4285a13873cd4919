"""One stage of training on the Hugging Face Trainer: parameter groups, loss, order of rows, checkpoints."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch.utils.data import Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_pt_utils import get_length_grouped_indices

from hadamard_adapter.errors import DivergedError
from hadamard_adapter.files import read_json, remove
from hadamard_adapter.offset_name import PREFIX, is_in, offset_name
from hadamard_adapter.tasks import Task, score
from hadamard_adapter.tuning.averaging import adamw, averaged, swap
from hadamard_adapter.tuning.losses import loss_of
from hadamard_adapter.tuning.models import backbone_of
from hadamard_adapter.tuning.parts import parts_of, rows_to_evaluate
from hadamard_adapter.tuning.prefix import is_all_frozen
from hadamard_adapter.tuning.resume import MANIFEST, last_sealed, prune, seal
from hadamard_adapter.tuning.settings import TuneSettings
from hadamard_adapter.tuning.shared import BasisAdamW, read_basis, trained_offsets
from hadamard_adapter.tuning.stage import (
    Outcome,
    Progress,
    Stage,
    Watcher,
    best_epoch,
    chosen_by,
    is_over,
    read_curve,
)

__all__ = [
    "EpochSampler",
    "StageTrainer",
    "make_optimizer",
    "parameter_groups",
    "run_stage",
    "training_arguments",
]

STEPS_BETWEEN_CHECKPOINTS = 200


def parameter_groups(
    model: torch.nn.Module, rates: dict[str, float], head: tuple[str, ...] | None = None
) -> list[dict[str, Any]]:
    """AdamW's groups of the parameters that train: scale, shift, norm, and the head (all others).

    Args:
        model: PEFT model whose frozen parameters are already frozen.
        rates: learning rate by group name.
        head: full names of the head's modules, where not all others are head; what is neither has the rate of
            scale.
    """
    groups: dict[str, list[torch.nn.Parameter]] = {name: [] for name in ("scale", "shift", "norm", "head")}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            offset = offset_name(name)
            if offset is not None:
                kind = offset.kind.partition("_")[0]
            else:
                is_head = head is None or is_in(name.removeprefix(PREFIX), *head)
                kind = "head" if is_head else "scale"
            groups[kind].append(parameter)
    return [{"params": members, "lr": rates[name]} for name, members in groups.items() if members]


def run_stage(
    model: Any,
    stage: Stage,
    task: Task,
    settings: TuneSettings,
    folder: Path,
    progress: Progress | None = None,
) -> Outcome:
    """Train until the stage's last epoch (or early stop), from its last sealed checkpoint if there is one.

    Args:
        model: PEFT model, masks set for the stage; changed in place.
        stage: what is trained.
        task: gives loss and metrics.
        settings: resolved settings.
        folder: of the stage's checkpoints.
        progress: told of every step and epoch.

    Raises:
        DivergedError: the loss is not finite.
    """
    state, metric = PartialState(), chosen_by(stage, task)
    if state.is_main_process:
        _remove_damaged(folder, metric)  # before any process looks
    state.wait_for_everyone()
    checkpoint = last_sealed(folder) if folder.is_dir() else None
    arguments = training_arguments(stage, settings, folder)
    keeper = _Keeper(folder, stage, metric, settings.early_stopping, checkpoint, progress)
    rows: Any = {
        "train_dataset": stage.train,
        "eval_dataset": stage.dev,
    }  # lists will do, whatever the types say
    trainer = StageTrainer(
        **rows,
        model=model,
        args=arguments,
        data_collator=stage.collate,
        compute_metrics=lambda evaluated: _scores(task, evaluated),
        compute_loss_func=loss_of(task.problem_type, stage.class_weights),
        preprocess_logits_for_metrics=lambda logits, labels: _logits(logits),
        optimizers=(make_optimizer(model, stage, settings, arguments), None),
        callbacks=[keeper],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.progress, trainer.has_dropout = progress, settings.dropout
    trainer.by_length, trainer.is_in_parts = settings.group_by_length, stage.is_in_parts
    trainer.is_shuffled, trainer.micro_batch_tokens = settings.shuffle_groups, stage.micro_batch_tokens
    if isinstance(progress, Watcher):
        progress.watch(trainer)
    history = read_json(checkpoint / "trainer_state.json")["log_history"] if checkpoint else []
    if not is_over(read_curve(history), stage.epochs, metric, settings.early_stopping):
        set_seed(settings.seed)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        history = trainer.state.log_history
    if progress is not None:
        progress.end()
    # A resumed run reads its first epochs from a file that sorts what it holds.
    curve = read_curve(history)
    for entry in curve:
        entry["scores"] = {name: entry["scores"][name] for name in task.metrics}
    best = best_epoch(curve, metric)
    return Outcome(curve, best, folder / f"checkpoint-{best['step']}", keeper.seconds)


def _remove_damaged(folder: Path, metric: str | None) -> None:
    """Every checkpoint that is not sealed; and all, where the best epoch's is not: its weights are gone."""
    checkpoint = last_sealed(folder)
    if checkpoint is None:
        return
    curve = read_curve(read_json(checkpoint / "trainer_state.json")["log_history"])
    if curve and not (folder / f"checkpoint-{best_epoch(curve, metric)['step']}").is_dir():
        remove(folder)


class EpochSampler(Sampler[int]):
    """Rows of similar length side by side, in an order that only seed and epoch decide.

    transformers' own sampler draws from the global generator, so an epoch could not be resumed half-way.
    """

    def __init__(self, lengths: list[int], group: int, seed: int, is_shuffled: bool) -> None:
        """Order epoch 0; `epoch`, from 0 on, is set before another one is read.

        Args:
            lengths: tokens of each row; all 1 for an order at random.
            group: rows in a step, over all batches and processes; they are of similar length.
            seed: of the order, from 0 on.
            is_shuffled: whether steps follow each other at random; the longest stays the first one, so that
                too little memory shows at once, and an incomplete one the last.
        """
        self.lengths, self.group, self.seed, self.epoch = lengths, group, seed, 0
        self.is_shuffled = is_shuffled

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Any:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        rows = get_length_grouped_indices(self.lengths, self.group, generator=generator)
        if not self.is_shuffled:
            return iter(rows)
        n_whole = len(rows) // self.group
        others = (1 + torch.randperm(max(0, n_whole - 1), generator=generator)).tolist()
        steps = [0, *others, n_whole] if n_whole else [0]
        return iter([row for step in steps for row in rows[step * self.group : (step + 1) * self.group]])


_PREPARED = ("forward", "_original_forward", "_is_accelerate_prepared")
"""What `Accelerator.prepare_model` leaves on a model (accelerate/accelerator.py)."""


class StageTrainer(Trainer):
    """The Trainer with a resumable order of rows, and an error where the loss is not finite."""

    progress: Progress | None = None
    has_dropout = True
    by_length = True
    is_shuffled = False
    is_in_parts = False
    micro_batch_tokens: int | None = None
    step_loss = 0.0

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's training; afterwards the model computes as before.

        Accelerate leaves its autocast around `forward`, within which the next stage's trials would round.
        """
        model: Any = self.model
        before = {name: vars(model)[name] for name in _PREPARED if name in vars(model)}
        try:
            return super().train(*args, **kwargs)
        finally:
            for name in _PREPARED:
                vars(model).pop(name, None)
            vars(model).update(before)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's evaluation and prediction, with the mean of the last steps' weights."""
        with averaged(self.optimizer):
            return super().evaluation_loop(*args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with averaged(self.optimizer):  # so the optimizer's file holds the weights to continue from
            super()._save_checkpoint(*args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            swap(self.optimizer)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """The batches of one step and the number of their labels; a label of -100 counts here like others."""
        batches, _ = super().get_batch_samples(*args, **kwargs)
        return batches, sum(batch["labels"].numel() for batch in batches)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The Trainer's schedule, but a warm-up of less than one step is none, not a whole step at rate 0."""
        if self.args.warmup_steps * num_training_steps < 1:
            self.args.warmup_steps = 0
        return super().create_scheduler(num_training_steps, optimizer)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        group = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        # What stage 1 reads from the cache has no lengths; so they choose no step's rows, cached or not.
        is_frozen = is_all_frozen(self.accelerator.unwrap_model(self.model))
        lengths = [len(row["input_ids"]) if self.by_length and not is_frozen else 1 for row in rows]
        return EpochSampler(lengths, group, self.args.seed, self.is_shuffled)

    def compute_loss(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's loss; without dropout the backbone computes as in evaluation, gradients included."""
        if not self.has_dropout:
            backbone_of(self.accelerator.unwrap_model(model)).eval()
        return super().compute_loss(model, *args, **kwargs)

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The Trainer's forward and backward pass of one batch; its share of the step's mean loss, a scalar.

        In parts there are several passes, whose shares and gradients add up to the batch's.

        Raises:
            DivergedError: it is not finite.
        """
        *others, last = parts_of(inputs, self.micro_batch_tokens, is_few=not self.is_in_parts)
        shares = list[torch.Tensor]()
        for part in others:  # processes may have unlike numbers of them, so they meet at the last part alone
            with self.accelerator.no_sync(model):
                shares.append(super().training_step(model, part, *args, **kwargs))
        loss = sum(shares, super().training_step(model, last, *args, **kwargs))
        value, step = float(loss), self.state.global_step + 1
        if not np.isfinite(value):
            raise DivergedError(
                f"loss is {value} at step {step}; expected a finite number. Try a lower learning rate, a "
                "longer warmup, or dtype float32, with overwrite to replace this run; its last good "
                "checkpoint is kept"
            )
        if self.progress is not None and self.is_world_process_zero():
            self.step_loss += value  # its batches' shares add up
            if self.accelerator.sync_gradients:
                self.progress.step(step, self.step_loss)
                self.step_loss = 0.0
        return loss


class _Keeper(TrainerCallback):
    """Seals checkpoints, drops old ones, stops early; what it knows it reads from the Trainer's history."""

    def __init__(
        self,
        folder: Path,
        stage: Stage,
        metric: str | None,
        patience: int,
        checkpoint: Path | None,
        progress: Progress | None,
    ) -> None:
        self.folder, self.stage, self.metric, self.patience = folder, stage, metric, patience
        self.progress = progress
        before = read_json(checkpoint / MANIFEST)["seconds"] if checkpoint else 0.0
        self.started = time.perf_counter() - before

    @property
    def seconds(self) -> float:
        """Time spent in this stage so far."""
        return time.perf_counter() - self.started

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.progress is not None and state.is_world_process_zero:
            self.progress.start(self.stage.name, state.max_steps, state.global_step)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        sampler = _sampler_of(kwargs["train_dataloader"])
        sampler.epoch = state.global_step // (state.max_steps // self.stage.epochs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step_in_epoch = state.global_step % (state.max_steps // self.stage.epochs)
        if step_in_epoch and step_in_epoch % STEPS_BETWEEN_CHECKPOINTS == 0:
            control.should_log = control.should_save = True

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        curve = read_curve(state.log_history)
        if self.progress is not None and state.is_world_process_zero:
            self.progress.epoch(curve[-1]["epoch"], curve[-1]["scores"])
        if is_over(curve, self.stage.epochs, self.metric, self.patience):
            control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        PartialState().wait_for_everyone()  # every process has written its random state
        if not state.is_world_process_zero:
            return
        newest = f"checkpoint-{state.global_step}"
        seal(self.folder / newest, self.seconds)
        curve = read_curve(state.log_history)
        best = {f"checkpoint-{best_epoch(curve, self.metric)['step']}"} if curve else set()
        prune(self.folder, {newest} | best)


def _sampler_of(dataloader: Any) -> EpochSampler:
    """The sampler at the bottom of what Accelerate wrapped around it."""
    batches = dataloader.batch_sampler
    while hasattr(batches, "batch_sampler"):
        batches = batches.batch_sampler
    return batches.sampler


def training_arguments(stage: Stage, settings: TuneSettings, folder: Path) -> TrainingArguments:
    """What the Trainer is told of a stage: evaluation and a checkpoint at the end of every epoch."""
    device = settings.device
    assert settings.schedule is not None  # resolved
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=stage.epochs,
        per_device_train_batch_size=stage.batch_size,
        per_device_eval_batch_size=rows_to_evaluate(
            stage.dev, 2 * stage.batch_size, stage.micro_batch_tokens
        ),
        gradient_accumulation_steps=settings.grad_accumulation,
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup,
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.dtype == "bfloat16",
        seed=settings.seed,
        use_cpu=device == "cpu",
        train_sampling_strategy="group_by_length",
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        logging_nan_inf_filter=False,
        average_tokens_across_devices=False,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=device == "cuda",
        remove_unused_columns=False,
        label_names=["labels"],
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        log_level_replica="error",
    )
    # Several GPUs in one process (DataParallel) are not our way; there is no public setting for it.
    arguments._n_gpu = min(arguments.n_gpu, 1)  # pyright: ignore[reportPrivateUsage]
    # `accelerate launch` may ask for another precision than the settings, by the environment.
    arguments.mixed_precision = "bf16" if arguments.bf16 else "no"
    return arguments


def make_optimizer(model: Any, stage: Stage, settings: TuneSettings, arguments: Any) -> torch.optim.Optimizer:
    """AdamW over what trains, in groups with their own rates; moves the model to its device."""
    model.to(arguments.device)
    # One kernel for all tensors: an adapter's are many and small, and each would be dozens of calls.
    options: dict[str, Any] = {"weight_decay": settings.weight_decay, "fused": settings.device != "mps"}
    offsets = {name: p for name, p in trained_offsets(model).items() if p.requires_grad}
    if settings.basis is not None and offsets:
        own = {id(parameter) for parameter in offsets.values()}
        head = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
        others = [{"params": head, "lr": stage.rates["head"]}] if head else []
        directions = read_basis(settings.basis).directions
        rate = stage.rates["scale"]
        return BasisAdamW(offsets, directions, rate, others, settings.average, **options)
    return adamw(parameter_groups(model, stage.rates, stage.head), settings.average, **options)


def _scores(task: Task, evaluated: Any) -> dict[str, float]:
    return score(task, _logits(evaluated.predictions), evaluated.label_ids)


def _logits(outputs: Any) -> Any:
    return outputs[0] if isinstance(outputs, tuple) else outputs
