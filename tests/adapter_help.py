"""What the tests of the adapter share: adapted tiny models with random offsets, and comparisons."""

import contextlib
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from hadamard_adapter import HadamardConfig
from hadamard_adapter.adapter.head_wrapper import HeadWrapper
from hadamard_adapter.adapter.layers import HadamardLayer
from hadamard_adapter.errors import SettingsError
from hadamard_adapter.tuning.trained_layers import compiled
from models import tiny_model

BOTH = ["attention", "ffn"]
STD = 0.2
TASK_TYPES = {
    "headless": None,
    "sequence-classification": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
    "question-answering": "QUESTION_ANS",
    "causal-lm": "CAUSAL_LM",
    "seq2seq-lm": "SEQ_2_SEQ_LM",
}


def adapted(
    name: str = "bert",
    position: str = "output",
    seed: int = 1,
    num_labels: int = 3,
    task: str = "sequence-classification",
    dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> PeftModel:
    """A tiny model in eval mode with one adapter, "default"; base, offsets and head random."""
    config = HadamardConfig(task_type=TASK_TYPES[task], **({"sites": BOTH, "position": position} | settings))
    model = get_peft_model(tiny_model(name, task, num_labels=num_labels).to(dtype), config)
    randomize(model, "default", seed)
    return model.eval()


def can_compile() -> bool:
    """Whether this machine has what torch.compile needs."""
    with contextlib.suppress(SettingsError), compiled(adapted()):
        return True
    return False


def added(model: nn.Module, adapter: str) -> dict[str, nn.Parameter]:
    """The parameters of one adapter: offsets and head, without layers that are the identity."""
    identity = tuple(
        f"{path}.modules_to_save.{adapter}.{inner}".removesuffix(".") + "."
        for path, wrapper in model.named_modules()
        if isinstance(wrapper, HeadWrapper)
        for inner in wrapper.identity.get(adapter, ())
    )
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if ("hadamard_" in name and name.endswith(f".{adapter}"))
        or (f".modules_to_save.{adapter}." in name and not name.startswith(identity))
    }


@torch.no_grad()
def randomize(model: nn.Module, adapter: str, seed: int) -> None:
    """Gives one adapter random offsets and a random head."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in added(model, adapter).values():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * STD)


def add_random_adapter(model: PeftModel, adapter: str, seed: int, n_labels: int = 3, **settings: Any) -> None:
    """Adds an adapter with random offsets and a random head of `n_labels` outputs (the model has 3)."""
    labels = None if n_labels == 3 else {index: f"{adapter}-{index}" for index in range(n_labels)}
    config = HadamardConfig(task_type="SEQ_CLS", id2label=labels, **({"sites": BOTH} | settings))
    model.add_adapter(adapter, config)
    randomize(model, adapter, seed)


@torch.no_grad()
def logits(model: nn.Module, inputs: dict[str, Tensor], **kwargs: Any) -> Tensor:
    """The model's logits; for question answering those of starts and ends side by side."""
    output = model(**inputs, **kwargs)
    return (
        torch.stack((output.start_logits, output.end_logits), -1)
        if "start_logits" in output
        else output.logits
    )


def logits_of_base(model: PeftModel, inputs: dict[str, Tensor]) -> Tensor:
    """The logits with all adapters disabled."""
    with model.disable_adapter():
        return logits(model, inputs)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Equal to 1e-5 of the largest value."""
    torch.testing.assert_close(actual, expected, atol=1e-5 * max(1.0, float(expected.abs().max())), rtol=1e-5)


def assert_same_bits(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Two state dicts are equal bit for bit."""
    assert actual.keys() == expected.keys()
    assert {key: v.dtype for key, v in actual.items()} == {key: v.dtype for key, v in expected.items()}
    assert not [key for key in expected if not torch.equal(actual[key], expected[key])]


def assert_no_hooks(model: nn.Module) -> None:
    """No module of the model has a hook left."""
    ours = [module for module in model.modules() if isinstance(module, (HadamardLayer, HeadWrapper))]
    assert ours and not any(module._forward_pre_hooks or module._forward_hooks for module in ours)
    assert not any(m._forward_pre_hooks for m in model.modules() if isinstance(m, PreTrainedModel))


def copy_state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the state dict."""
    return {key: value.clone() for key, value in model.state_dict().items()}
