"""Laws of checkpointed and compiled layers: the same results, less kept, nothing left behind."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from adapter_help import adapted, can_compile
from hadamard_adapter.bench.speed.memory import saved_bytes
from hadamard_adapter.errors import SettingsError
from hadamard_adapter.tuning.precision import autocast, cast_frozen
from hadamard_adapter.tuning.prefix import cached_prefix
from hadamard_adapter.tuning.trained_layers import checkpointed, compiled, trained_layers
from stage_help import TEXT, head_stage_model, outcome, stage_for
from tuning_help import adapter_sha256, silent, tiny_folder, tiny_tune, write_rows


@pytest.mark.parametrize("name", TEXT)
def test_checkpointed_layers_compute_the_same_bits_and_keep_less(name: str) -> None:
    model, stage = adapted(name), stage_for(name)
    batch = stage.collate(stage.train)
    expected, expected_gradients = outcome(model, stage, stage.train)
    plain = saved_bytes(model, batch)
    before = dict(vars(model.config))
    with checkpointed(model):
        found, gradients = outcome(model, stage, stage.train)
        assert saved_bytes(model, batch) < plain / 2
        assert not any(layer.training for layer in trained_layers(model))
    assert torch.equal(found, expected) and gradients.keys() == expected_gradients.keys() and gradients
    assert all(torch.equal(gradients[key], expected_gradients[key]) for key in gradients)
    assert vars(model.config) == before
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("name", TEXT)
def test_a_model_that_is_told_no_labels_can_be_checkpointed(name: str) -> None:
    """As in training, where the loss is ours: with labels transformers switches a decoder's cache off."""
    model, stage = adapted(name), stage_for(name)
    batch = {key: value for key, value in stage.collate(stage.train).items() if key != "labels"}
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    before = [getattr(config, "use_cache", None) for config in configs.values()]
    with checkpointed(model):
        model(**batch).logits.square().sum().backward()
    assert any(p.grad is not None for name, p in model.named_parameters() if "hadamard_" in name)
    assert [getattr(config, "use_cache", None) for config in configs.values()] == before


@pytest.mark.parametrize(
    ("name", "is_half"),
    [(name, is_half) for name in TEXT for is_half in (False, True) if (name, is_half) != ("deberta", True)],
)  # whose code does not compute in bfloat16
def test_a_frozen_projection_keeps_nothing_of_its_input_for_backward(name: str, is_half: bool) -> None:
    model, stage = adapted(name), stage_for(name)
    products = dict[str, Any]()

    def keep(place: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            node = output.grad_fn
            while node is not None and not hasattr(node, "_saved_mat1") and not hasattr(node, "_saved_self"):
                node = next((one for one, _ in node.next_functions if one is not None), None)
            if node is not None and node.name() in ("AddmmBackward0", "MmBackward0"):
                products[place] = node

        return hook

    frozen = [
        (place, module)
        for place, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and not module.weight.requires_grad
    ]
    for place, module in frozen:
        module.register_forward_hook(keep(place))
    with autocast(model.device, "bfloat16" if is_half else "float32"):
        model(**stage.collate(stage.train))
    assert len(products) > 2
    for place, node in products.items():
        saved = node._saved_mat1 if hasattr(node, "_saved_mat1") else node._saved_self
        assert saved is None, place


def test_only_layers_that_backward_runs_through_are_checkpointed() -> None:
    assert not trained_layers(head_stage_model("bert"))
    model = adapted("bert", layers_to_transform=[1])
    with checkpointed(model):
        base: Any = model.get_base_model()
        layers = base.bert.encoder.layer
        assert ["forward" in vars(layer) for layer in layers] == [False, True]


def test_checkpointing_composes_with_a_cached_prefix_and_half_precision(tmp_path: Path) -> None:
    model, stage = adapted("bert", layers_to_transform=[1]), stage_for("bert")
    cast_frozen(model, "bfloat16")
    with cached_prefix(model, stage, tmp_path, {}, 1.0, silent, None, "bfloat16") as cached:
        assert cached is not stage
        with autocast(model.device, "bfloat16"):
            expected = outcome(model, cached, cached.train)
            with checkpointed(model):
                found = outcome(model, cached, cached.train)
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(found[1][key], expected[1][key]) for key in expected[1])
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_checkpointed_run_ends_at_the_same_adapter(tmp_path: Path) -> None:
    drops = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    model, train = tiny_folder(tmp_path / "model", **drops), write_rows(tmp_path / "train.csv", 32)
    for name, is_on in (("plain", False), ("again", True)):
        settings: dict[str, Any] = {"dropout": True, "epochs": 1, "head_epochs": 1}  # random states come back
        tiny_tune(model, tmp_path / name, train, gradient_checkpointing=is_on, **settings)
    assert adapter_sha256(tmp_path / "plain") == adapter_sha256(tmp_path / "again")


def test_compiled_layers_need_a_compiler_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with (
        pytest.raises(SettingsError, match=r"expected a C\+\+ compiler.*no-such-compiler"),
        compiled(adapted()),
    ):
        pass


@pytest.mark.skipif(not can_compile(), reason="no C++ compiler")
@pytest.mark.parametrize(
    ("more", "rtol"), [({}, 1e-3), ({"dtype": "bfloat16", "gradient_checkpointing": True}, 1e-2)]
)
def test_a_compiled_run_ends_at_the_same_losses(more: dict[str, Any], rtol: float, tmp_path: Path) -> None:
    """In a process of its own, since the checks of shapes that tests run under cannot be compiled."""
    model, train = tiny_folder(tmp_path / "model"), write_rows(tmp_path / "train.csv", 32)
    settings: dict[str, Any] = {"epochs": 1, "head_epochs": 1, "layers": (1,), **more}
    plain = tiny_tune(model, tmp_path / "plain", train, **settings).metrics
    code = (
        "from pathlib import Path; from tuning_help import tiny_tune; "
        f"tiny_tune(Path({str(model)!r}), Path({str(tmp_path / 'compiled')!r}), Path({str(train)!r}), "
        f"torch_compile=True, **{settings!r})"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=True, capture_output=True)
    compiled_run = json.loads((tmp_path / "compiled" / "metrics.json").read_text())
    losses = [
        torch.tensor([[entry["loss"], entry["dev_loss"]] for entry in metrics["curve"]])
        for metrics in (plain, compiled_run)
    ]
    torch.testing.assert_close(losses[0], losses[1], rtol=rtol, atol=rtol / 10)
    if not more:  # it was compiled
        assert adapter_sha256(tmp_path / "plain") != adapter_sha256(tmp_path / "compiled")
