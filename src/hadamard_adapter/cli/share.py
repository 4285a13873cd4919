"""`hadamard share`: what several tasks' adapters have in common, as a start or a basis for a new task."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from hadamard_adapter.cli.console import message_console
from hadamard_adapter.cli.hub import base_name_in, stay_offline_without_hub
from hadamard_adapter.cli.options import command_from
from hadamard_adapter.errors import SettingsError, refuse_below, refuse_twice
from hadamard_adapter.files import expanded

__all__ = ["share_group"]


@dataclass(frozen=True, kw_only=True)
class MeanOptions:
    """The options of `hadamard share mean`."""

    adapters: tuple[str, ...]
    """Folders that `hadamard tune` made, of one base model, with the same sites and layers."""
    output: str
    """New folder that receives the shared adapter, or new file that receives the basis."""
    quiet: bool = False
    """Whether to say nothing but errors."""

    def __post_init__(self) -> None:
        """Refuse one adapter for a shared one."""
        if len(self.adapters) < 2:
            raise SettingsError(
                f"--adapters: expected two folders or more, commas between, received {len(self.adapters)}"
            )
        refuse_twice("--adapters", [str(expanded(folder).resolve()) for folder in self.adapters])


@dataclass(frozen=True, kw_only=True)
class BasisOptions(MeanOptions):
    """The options of `hadamard share basis`."""

    directions: int = 4
    """Number of directions; a task that is tuned in them stores as many numbers beside its head."""

    def __post_init__(self) -> None:
        """Refuse no direction; how many there can be, the adapters say."""
        super().__post_init__()
        refuse_below("--directions", self.directions, 1)


@dataclass(frozen=True, kw_only=True)
class TrainOptions(MeanOptions):
    """The options of `hadamard share train`."""

    epochs: int | None = None
    """Epochs of the shared adapter; None: those of the first adapter."""
    lr: float | None = None
    """Learning rate of the shared adapter; None: that of the first one."""
    overwrite: bool = False
    """Whether results of other settings in the output folder may be replaced."""
    allow_remote_code: bool = False
    """Whether a model may run Python code that its folder or the hub brings."""

    def __post_init__(self) -> None:
        """Check numbers before the adapters are read."""
        super().__post_init__()
        refuse_below("--epochs", self.epochs, 1)
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise SettingsError(f"--lr: expected a number above 0, received {self.lr!r}")


@click.group("share", short_help="Make of several tasks' adapters a start, or directions, for a new task.")
def share_group() -> None:
    """Make of several tasks' adapters a start, or directions, for a new task.

    \b
    Example:
      hadamard share mean --adapters cola,mrpc,stsb --output shared
      hadamard tune --model MODEL --train train.csv --start shared --output adapter
      hadamard share basis --adapters cola,mrpc,stsb --directions 3 --output basis.safetensors
      hadamard tune --model MODEL --train train.csv --basis basis.safetensors --lr 5e-2 --output adapter
      hadamard share train --adapters cola,mrpc,stsb --output together
    """


@command_from("mean", MeanOptions)
def mean_command(options: MeanOptions) -> None:
    """Write the mean of adapters, without a head, for `hadamard tune --start`.

    \b
    Example:
      hadamard share mean --adapters cola,mrpc,stsb --output shared
    """
    from hadamard_adapter.analysis.sharing import save_mean

    save_mean(options.adapters, expanded(options.output))
    message_console(options.quiet).print(f"mean of {len(options.adapters)} adapters in {options.output}")


@command_from("basis", BasisOptions)
def basis_command(options: BasisOptions) -> None:
    """Write the directions that hold most of several adapters, for `hadamard tune --basis`.

    A coefficient of 1 goes as far in a direction as the adapters lie from the base model on average.

    \b
    Example:
      hadamard share basis --adapters cola,mrpc,stsb --directions 3 --output basis.safetensors
    """
    from hadamard_adapter.analysis.sharing import save_basis

    shares = save_basis(options.adapters, options.directions, expanded(options.output))
    console = message_console(options.quiet)
    for folder, share in zip(options.adapters, shares, strict=True):
        console.print(f"{Path(folder).name}: {100 * share:.0f} % of its squared length")
    console.print(f"{options.directions} directions in {options.output}")


@command_from("train", TrainOptions)
def train_command(options: TrainOptions) -> None:
    """Tune one adapter for the tasks of several, each with a head of its own.

    Rows are read from where the adapters' run.json says, and must be those that tuned them; settings are the
    first one's. The output has a folder a task, all with the same offsets; dev rows choose the epoch by the
    mean over tasks.

    \b
    Example:
      hadamard share train --adapters cola,mrpc,stsb --output together
    """
    folders = [expanded(folder) for folder in options.adapters]
    stay_offline_without_hub([base_name_in(str(folder)) for folder in folders])
    from hadamard_adapter.analysis.offsets import refuse_two_bases
    from hadamard_adapter.analysis.prune import settings_and_data
    from hadamard_adapter.tuning.together import tune_together

    refuse_two_bases(folders)
    found = [settings_and_data(path) for path in folders]
    named = zip(folders, found, strict=True)
    settings = [dataclasses.replace(one, output=path.name) for path, (one, _) in named]
    first: dict[str, Any] = {"overwrite": options.overwrite, "allow_remote_code": options.allow_remote_code}
    if options.epochs is not None:
        first["epochs"] = options.epochs
    if options.lr is not None:
        first |= {"lr": options.lr, "scale_lr": None, "shift_lr": None, "norm_lr": None}
    settings[0] = dataclasses.replace(settings[0], **first)
    console = message_console(options.quiet)
    data = [rows for _, rows in found]
    results = tune_together(settings, expanded(options.output), console.print, data)
    for name, result in results.items():
        metric = result.metrics["metric"]
        console.print(f"{name}: {metric} {result.metrics['dev'][metric]:.4f}")


for _command in (mean_command, basis_command, train_command):
    share_group.add_command(_command)
