"""What is not supported is refused in one clear line, and the model stays as it was."""

import pytest
import torch
from accelerate import cpu_offload
from peft import get_peft_model
from torch import nn
from torch.distributed.fsdp import fully_shard

from adapter_help import assert_same_bits, copy_state
from hadamard_adapter import HadamardConfig
from hadamard_adapter.errors import HadamardError, SettingsError
from models import tiny_model


def assert_unfit(model: nn.Module, config: HadamardConfig, message: str) -> None:
    before = copy_state(model)
    with pytest.raises(SettingsError, match=message) as caught:
        get_peft_model(model, config)
    assert isinstance(caught.value, (HadamardError, ValueError)) and "\n" not in str(caught.value)
    assert_same_bits(model.state_dict(), before)


def test_quantised_bases_are_refused():
    model = tiny_model("bert")
    model.config.quantization_config = {"load_in_8bit": True}
    assert_unfit(model, HadamardConfig(), "quantised")


def test_bases_whose_weights_accelerate_offloads_are_refused():
    model = tiny_model("bert")
    cpu_offload(model, execution_device=torch.device("cpu"))
    with pytest.raises(SettingsError, match="accelerate offloads"):
        get_peft_model(model, HadamardConfig())


def test_bases_that_lie_on_meta_in_part_are_refused_though_their_hooks_are_gone():
    model = tiny_model("bert")
    model.hf_device_map = {"bert": "cpu", "classifier": "disk"}
    get_peft_model(model, HadamardConfig()).unload()
    model.classifier.to("meta")
    with pytest.raises(SettingsError, match="accelerate offloads"):
        get_peft_model(model, HadamardConfig())


def test_integer_weights_are_refused():
    model = nn.Sequential(nn.Linear(3, 3))
    model[0].weight = nn.Parameter(torch.ones(3, 3, dtype=torch.int8), requires_grad=False)
    assert_unfit(model, HadamardConfig(target_modules=["0"]), "floating point")


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_sharded_training_is_refused(variable, monkeypatch):
    monkeypatch.setenv(variable, "true")
    assert_unfit(tiny_model("bert"), HadamardConfig(), "not supported yet")


def test_multihead_attention_is_refused_because_its_projection_is_never_called():
    model = nn.TransformerEncoderLayer(8, 2)
    assert_unfit(model, HadamardConfig(target_modules=["self_attn.out_proj"]), "MultiheadAttention")


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["linear2"]},
        {"target_modules": ["linear2"], "norm_modules": ["norm2"]},
        {"target_modules": ["out"], "norm_modules": ["norm1"]},
    ],
)
def test_parts_of_an_encoder_layer_are_refused_because_its_fast_path_never_calls_them(settings):
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, batch_first=True), 2)
    model.add_module("out", nn.Linear(8, 8))
    assert_unfit(model, HadamardConfig(**settings), r"layers\.0\..*TransformerEncoderLayer.*choose other")


@pytest.fixture
def one_process():
    """torch.distributed with this process alone."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_a_model_that_is_sharded_before_injection_is_refused(one_process):
    model = fully_shard(tiny_model("bert"))
    with pytest.raises(SettingsError, match="FSDP is not supported yet"):
        get_peft_model(model, HadamardConfig())


def test_a_quantised_layer_of_the_same_name_is_told_apart():
    model = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(3, 3)), {nn.Linear})
    with pytest.raises(
        SettingsError, match=r"torch\.nn\.modules\.linear\.Linear.*received torch\.ao\..*Linear"
    ):
        get_peft_model(model, HadamardConfig(target_modules=["0"]))


def test_modules_of_other_kinds_are_refused_by_name():
    config = HadamardConfig(target_modules=["word_embeddings"])
    assert_unfit(tiny_model("bert"), config, r"word_embeddings.*Embedding")


@pytest.mark.parametrize("switch", ["layerdrop", "encoder_layerdrop", "decoder_layerdrop"])
def test_dropped_layers_are_refused_for_several_processes_only(switch, monkeypatch):
    name = "opt" if switch == "layerdrop" else "bart"
    get_peft_model(tiny_model(name, **{switch: 0.1}), HadamardConfig())
    monkeypatch.setenv("WORLD_SIZE", "2")
    get_peft_model(tiny_model(name), HadamardConfig())
    assert_unfit(tiny_model(name, **{switch: 0.1}), HadamardConfig(), switch)


def test_a_convolution_is_not_adapted_at_its_input():
    config = HadamardConfig(target_modules=["0"], position="input")
    assert_unfit(nn.Sequential(nn.Conv2d(3, 4, 3)), config, "convolution")
