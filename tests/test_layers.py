"""The layers: half precision, compiling, checkpointing, convolutions, several active adapters."""

import copy

import pytest
import torch
from accelerate import dispatch_model
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.pytorch_utils import Conv1D

from adapter_help import (
    BOTH,
    adapted,
    add_random_adapter,
    added,
    assert_close,
    assert_same_bits,
    copy_state,
    logits,
    logits_of_base,
    randomize,
)
from hadamard_adapter import HadamardConfig
from hadamard_adapter.adapter.layers import HadamardLayer
from models import tiny_inputs, tiny_model

HALVES = [torch.bfloat16, torch.float16]
NORMS = [nn.LayerNorm, nn.RMSNorm, LlamaRMSNorm, GemmaRMSNorm]
PROJECTIONS = {
    "linear": (lambda: nn.Linear(6, 5), (2, 3, 6)),
    "linear without bias": (lambda: nn.Linear(6, 5, bias=False), (2, 3, 6)),
    "conv1d": (lambda: Conv1D(5, 6), (2, 3, 6)),
    "conv2d": (lambda: nn.Conv2d(3, 4, 3, padding=1), (2, 3, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(3, 4, 3, padding=1), (2, 3, 5, 5, 5)),
}
CASES = [
    (kind, position)
    for kind in PROJECTIONS
    for position in ("output", "input")
    if position == "output" or kind not in ("conv2d", "conv3d")  # refused: padding is not shifted
]


def one_layer(base: nn.Module, seed: int = 1, **settings) -> PeftModel:
    config = HadamardConfig(target_modules=["0"], **settings)
    model = get_peft_model(nn.Sequential(base), config)
    randomize(model, "default", seed)
    return model


def offset(model: nn.Module, kind: str, adapter: str = "default") -> Tensor:
    return next(p for name, p in added(model, adapter).items() if f"hadamard_{kind}." in name)


@pytest.mark.parametrize("name", ["llama", "t5", "bert"])
def test_norms_with_accelerate_s_device_hooks_are_adapted_as_those_without(name):
    def adapted_logits(has_hooks):
        base, inputs = tiny_model(name), tiny_inputs(name)
        if has_hooks:
            dispatch_model(base, {"": "cpu"}, force_hooks=True)
        model = get_peft_model(base, HadamardConfig(task_type="SEQ_CLS", sites=["attention", "ffn"]))
        randomize(model, "default", 1)
        return logits(model.eval(), inputs)

    assert_close(adapted_logits(True), adapted_logits(False))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("autocast_adapter_dtype", [True, False])
def test_offsets_are_float32_unless_asked_otherwise(dtype, autocast_adapter_dtype):
    base = tiny_model("bert").to(dtype)
    model = get_peft_model(base, HadamardConfig(sites=BOTH), autocast_adapter_dtype=autocast_adapter_dtype)
    model.add_adapter("second", HadamardConfig(), autocast_adapter_dtype=autocast_adapter_dtype)
    expected = torch.float32 if autocast_adapter_dtype else dtype
    offsets = {p.dtype for name, p in model.named_parameters() if "hadamard_" in name}
    assert offsets == {expected}
    model.merge_adapter()
    assert {p.dtype for name, p in model.named_parameters() if "hadamard_" not in name} == {dtype}


@pytest.mark.parametrize("dtype", HALVES)
def test_a_small_scale_survives_half_precision(dtype):
    base = nn.Linear(32, 32).to(dtype)
    x = torch.randn(16, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    plain = base(x)
    model = one_layer(base, train_shift=False)
    offset(model, "scale").data.fill_(0.003)
    exact = plain.double() * 1.003
    adapted_output = model(x)
    assert adapted_output.dtype == dtype and not torch.equal(adapted_output, plain)
    assert ((adapted_output.double() - exact).abs() <= 0.501 * torch.finfo(dtype).eps * exact.abs()).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_a_norm_runs_in_float32_and_is_rounded_once(norm, dtype):
    base = norm(16)
    nn.init.normal_(base.weight, std=0.2)
    base = base.to(dtype)
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    model = one_layer(base)
    wide = copy.deepcopy(base).float()
    with torch.no_grad():
        wide.weight += offset(model, "norm_weight")
        if getattr(wide, "bias", None) is not None:
            wide.bias += offset(model, "norm_bias")
    expected = wide(x.float()).to(dtype)
    actual = model(x)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=torch.finfo(dtype).eps * 1.01)
    assert torch.equal(expected, actual) or dtype != torch.float32


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_a_half_precision_model_follows_its_float32_twin(name, dtype):
    inputs = tiny_inputs(name)
    model = adapted(name, dtype=dtype)
    twin = adapted(name).float()
    twin.load_state_dict({key: value.float() for key, value in model.state_dict().items()})
    expected = logits(twin, inputs)
    error = (logits(model, inputs).float() - expected).abs().max() / expected.abs().max()
    assert error < 20 * torch.finfo(dtype).eps


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_autocast_keeps_offsets_wide_and_their_gradients(name):
    model, inputs = adapted(name), tiny_inputs(name)
    expected = logits(model, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**inputs, labels=torch.tensor([0, 1, 2, 0]))
    output.loss.backward()
    assert (output.logits.float() - expected).abs().max() < 0.1 * expected.abs().max()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in added(model, "default").values())


@pytest.mark.parametrize(("kind", "position"), CASES)
def test_every_kind_of_projection_follows_the_equation_and_merges(kind, position):
    make, shape = PROJECTIONS[kind]
    base = make()
    is_convolution = "conv2d" in kind or "conv3d" in kind
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    plain = copy.deepcopy(base)
    has_shift = kind != "linear without bias"
    model = one_layer(base, position=position)
    ones = (1,) * (x.ndim - 2) if is_convolution else ()
    scale = offset(model, "scale").view(-1, *ones)
    shift = offset(model, "shift").view(-1, *ones) if has_shift else 0
    expected = plain(x * (1 + scale) + shift) if position == "input" else plain(x) * (1 + scale) + shift
    assert_close(model(x), expected)
    assert_close(model.merge_and_unload()(x), expected)


def test_several_active_adapters_add_their_offsets():
    model, inputs = adapted(), tiny_inputs("bert")
    for seed, adapter in enumerate(("second", "third")):
        add_random_adapter(model, adapter, seed + 5)
    model.base_model.set_adapter(["default", "third"])
    together = logits(model, inputs)
    summed = adapted()
    with torch.no_grad():
        for key, parameter in added(summed, "default").items():
            if "hadamard_" in key:
                parameter += model.get_parameter(key.replace(".default", ".third"))
    assert_close(together, logits(summed, inputs))
    model.base_model.set_adapter(["third", "default"])
    assert model.active_adapters == ["third", "default"]
    swapped = logits(model, inputs)
    assert not torch.allclose(swapped, together)  # the head is the first adapter's
    model.merge_adapter()
    assert_close(logits(model, inputs), swapped)


def test_adapters_at_both_positions_are_active_together():
    model, inputs = adapted(position="output"), tiny_inputs("bert")
    add_random_adapter(model, "second", 5, position="input")
    model.base_model.set_adapter(["default", "second"])
    expected = logits(model, inputs)
    model.merge_adapter()
    assert_close(logits(model, inputs), expected)


@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.usefixtures("unchecked")  # PyTorch would try to compile the checks
def test_compiling_changes_neither_outputs_nor_gradients(name):
    model, inputs = adapted(name), tiny_inputs(name) | {"labels": torch.tensor([0, 1, 2, 0])}
    torch._dynamo.reset()
    results = []
    for run in (model, torch.compile(model, backend="aot_eager")):
        model.zero_grad()
        output = run(**inputs)
        output.loss.backward()
        grads = {key: p.grad.clone() for key, p in model.named_parameters() if p.requires_grad}
        results.append((output.logits.detach(), grads))
    (plain, plain_grads), (compiled, compiled_grads) = results
    assert_close(compiled, plain)
    for key, grad in plain_grads.items():
        assert_close(compiled_grads[key], grad)


@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(name, use_reentrant):
    inputs = tiny_inputs(name) | {"labels": torch.tensor([0, 1, 2, 0])}
    grads = []
    for is_checkpointed in (False, True):
        model = adapted(name).train()
        if is_checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            model.enable_input_require_grads()
        model(**inputs).loss.backward()
        grads.append({key: p.grad for key, p in model.named_parameters() if p.requires_grad})
    assert grads[0].keys() == grads[1].keys()
    for key, grad in grads[0].items():
        assert_close(grads[1][key], grad)


def test_a_merged_model_can_be_moved_and_cast_before_it_is_unmerged():
    model = adapted()
    expected = copy_state(copy.deepcopy(model).to(torch.float64))
    model.merge_adapter()
    model.to(torch.float64)
    model.unmerge_adapter()
    assert_same_bits(model.state_dict(), expected)


def test_copies_of_a_model_are_independent():
    model, inputs = adapted(), tiny_inputs("bert")
    expected = logits(model, inputs)
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin, inputs), expected)
    randomize(twin, "default", 9)
    with twin.disable_adapter():
        assert torch.equal(logits(model, inputs), expected)
    assert not torch.equal(logits(twin, inputs), expected)
    assert torch.equal(logits_of_base(twin, inputs), logits_of_base(model, inputs))


def test_small_random_values_on_request_leave_the_identity():
    model = get_peft_model(tiny_model("bert"), HadamardConfig(init_weights=False))
    offsets = [p for key, p in added(model, "default").items() if "hadamard_" in key]
    assert all(0 < p.abs().max() < 1 for p in offsets)


def test_the_layers_name_themselves():
    text = repr(adapted())
    assert "hadamard.HadamardProjection" in text and "hadamard.HadamardNorm" in text
    assert not [m for m in adapted().modules() if isinstance(m, HadamardLayer) and m.merged]
