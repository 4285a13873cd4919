"""The mean of the weights over the last steps: the equation, and that it is what a run scores and saves."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import TrainerCallback

from hadamard_adapter.errors import SettingsError
from hadamard_adapter.tasks import encode, read_table
from hadamard_adapter.tuning import Progress, TuneSettings, load
from hadamard_adapter.tuning.averaging import AveragedAdamW, averaged, decay_at, swap
from hadamard_adapter.tuning.losses import mean_loss
from tuning_help import mean_of, tiny_folder, tiny_tune, write_rows


@pytest.mark.parametrize("decay", [0.3, 0.9])
def test_it_steps_as_adamw_and_keeps_the_mean_of_the_equation(decay: float) -> None:
    start = torch.randn(5, generator=torch.Generator().manual_seed(0))
    own, plain = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    ours = AveragedAdamW([own], decay=decay, lr=0.1, weight_decay=0.01)
    theirs = torch.optim.AdamW([plain], lr=0.1, weight_decay=0.01)
    weights: list[Tensor] = []
    for step in range(12):
        for parameter, optimizer in ((own, ours), (plain, theirs)):
            parameter.grad = (parameter.detach() - step).sin()
            optimizer.step()
        assert torch.equal(own, plain)
        weights.append(own.detach().clone())
    with averaged(ours):
        torch.testing.assert_close(own.double(), mean_of(weights, decay))
    assert torch.equal(own, weights[-1])  # afterwards training goes on from where it was
    assert decay_at(1, decay) <= decay


def test_a_parameter_without_a_gradient_has_no_mean_and_is_left_alone() -> None:
    trained, idle = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = AveragedAdamW([trained, idle], decay=0.9, lr=0.1)
    swap(optimizer)  # before the first step there is nothing to exchange
    trained.grad = torch.ones(2)
    optimizer.step()
    swap(optimizer)
    assert torch.equal(idle, torch.ones(2)) and not torch.equal(trained, torch.ones(2))
    swap(torch.optim.AdamW([trained]))  # nor where no mean is kept


class Recorder(Progress):
    """A `Progress` that keeps what the last stage trains, after every step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []

    def start(self, stage: str, n_steps: int, step: int) -> None:
        self.weights = []

    def watch(self, trainer: Any) -> None:
        recorder = self

        class Callback(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                named = trainer.model.named_parameters()
                recorder.weights.append({k: p.detach().clone() for k, p in named if p.requires_grad})

        trainer.add_callback(Callback())


@pytest.mark.parametrize("average", [0.0, 0.8])
def test_a_run_saves_the_mean_of_its_steps(average: float, tmp_path: Path) -> None:
    model, train = tiny_folder(tmp_path / "model"), write_rows(tmp_path / "train.csv", 60)
    recorder = Recorder()
    tiny_tune(
        model, tmp_path / "out", train, recorder, average=average, epochs=1, head_epochs=1, batch_size=8
    )
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    offsets = {name: value for name, value in saved.items() if ".hadamard_" in name}
    assert offsets and len(recorder.weights) > 3
    for name, value in offsets.items():
        steps = [weights[f"{name}.default"] for weights in recorder.weights]
        expected = mean_of(steps, average) if average else steps[-1].double()
        torch.testing.assert_close(value.double(), expected, atol=1e-6, rtol=1e-5)


def test_what_chooses_the_epoch_is_the_score_of_what_is_saved(tmp_path: Path) -> None:
    model, train = tiny_folder(tmp_path / "model"), write_rows(tmp_path / "train.csv", 60)
    dev = write_rows(tmp_path / "dev.csv", 24, seed=1)
    result = tiny_tune(model, tmp_path / "out", train, dev=str(dev), lr=0.05, epochs=2, head_epochs=1)
    chosen = result.metrics["best_epoch"]["adapter"]
    entry = next(e for e in result.metrics["curve"] if (e["stage"], e["epoch"]) == ("adapter", chosen))
    table = read_table(str(dev))
    classifier = load(tmp_path / "out")
    columns = classifier.columns_in(table, None, None, None, need_label=True)
    rows = encode(table, columns, classifier.task)
    logits = classifier.logits(rows.texts, rows.pairs)
    own_loss = mean_loss(classifier.task, logits, rows.labels or [])
    assert entry["dev_loss"] == pytest.approx(own_loss, rel=1e-4)


@pytest.mark.parametrize("average", [-0.1, 1.0])
def test_a_share_out_of_range_is_refused(average: float) -> None:
    with pytest.raises(SettingsError, match="average: expected a share"):
        TuneSettings(model="m", output="o", train="t.csv", average=average)
