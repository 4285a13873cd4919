"""Laws of half precision: a weight cast once computes what autocast does, and nothing else is cast."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Trainer

from adapter_help import adapted
from hadamard_adapter.adapter.fingerprint import fingerprint
from hadamard_adapter.cli.half_precision import Precision
from hadamard_adapter.errors import SettingsError
from hadamard_adapter.functional import hadamard
from hadamard_adapter.tasks import Examples, Task
from hadamard_adapter.tuning import load
from hadamard_adapter.tuning.first_token import first_token_only
from hadamard_adapter.tuning.precision import (
    FLOAT32_ALONE,
    autocast,
    cast_frozen,
    has_bfloat16,
    in_float32,
    is_faster_in_bfloat16,
    pick_dtype,
)
from hadamard_adapter.tuning.prefix import cached_prefix
from hadamard_adapter.tuning.trained_layers import checkpointed, float32_attention
from stage_help import TEXT, head_stage_model, outcome, stage_for
from tuning_help import adapter_sha256, silent, tiny_folder, tiny_tune, write_rows

CPU = torch.device("cpu")


def under_autocast(model: Any, name: str) -> tuple[Tensor, dict[str, Tensor]]:
    stage = stage_for(name)
    with autocast(CPU, "bfloat16"):
        return outcome(model, stage, stage.train)


@pytest.mark.parametrize("name", [name for name in TEXT if name not in FLOAT32_ALONE])
def test_weights_cast_once_give_the_results_and_gradients_of_autocast_bit_for_bit(name: str) -> None:
    model = adapted(name)
    logits, gradients = under_autocast(model, name)
    cast_frozen(model, "bfloat16")
    halved, halved_gradients = under_autocast(model, name)
    assert gradients.keys() == halved_gradients.keys() and gradients
    assert torch.equal(logits, halved)
    assert all(torch.equal(gradients[key], halved_gradients[key]) for key in gradients)


@pytest.mark.parametrize("name", TEXT)
def test_offsets_norms_and_head_stay_in_float32_and_the_fingerprint_stays(name: str) -> None:
    model = adapted(name)
    before = fingerprint(model)
    cast_frozen(model, "bfloat16")
    halves = {key for key, p in model.named_parameters() if p.dtype == torch.bfloat16}
    assert halves and not any("hadamard_" in key or "norm" in key.lower() for key in halves)
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    assert fingerprint(model) == before


def test_a_trial_in_float32_leaves_the_cast_weights_as_they_were() -> None:
    model = adapted("bert")
    cast_frozen(model, "bfloat16")
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    places = [p.data_ptr() for p in model.parameters()]
    with in_float32(model):
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        model(**{"input_ids": torch.tensor([[5, 6]])})
    assert [p.data_ptr() for p in model.parameters()] == places  # which other models may share
    assert all(torch.equal(p, before[key]) and p.dtype == before[key].dtype
               for key, p in model.named_parameters())  # fmt: skip


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError(), RuntimeError("MPS backend out of memory")], ids=["cuda", "mps"]
)
def test_a_device_without_memory_for_a_trial_goes_without_the_shortcuts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    model, stage, said = head_stage_model("bert"), stage_for("bert"), list[str]()
    cast_frozen(model, "bfloat16")
    before = {key: p.dtype for key, p in model.named_parameters()}
    widened, n_widened = Tensor.float, [0]

    def full(tensor: Tensor) -> Tensor:
        n_widened[0] += 1
        if n_widened[0] % 3 == 0:
            raise error
        return widened(tensor)

    monkeypatch.setattr(Tensor, "float", full)
    with cached_prefix(model, stage, tmp_path, {}, 1.0, said.append) as cached:
        assert cached is stage
    with first_token_only(model, stage) as is_on:
        assert not is_on
    assert n_widened == [6] and {key: p.dtype for key, p in model.named_parameters()} == before
    assert said == ["no cache of frozen layers: the device has no memory for a trial of it in float32"]


def test_float32_casts_nothing_and_auto_is_looked_up() -> None:
    model = adapted("bert")
    cast_frozen(model, "float32")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert pick_dtype("auto", CPU) == ("bfloat16" if is_faster_in_bfloat16(CPU) else "float32")
    assert [pick_dtype(name, CPU) for name in ("float32", "bfloat16")] == ["float32", "bfloat16"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", False),
        ("avx512_f avx512_fp16", False),
        ("avx512_f avx512_bf16", True),
        ("avx512_f avx512_bf16 avx512_fp16", False),
        ("avx512_f avx512_bf16 avx512_fp16 amx_tile", False),
        ("avx512_f avx512_bf16 avx512_fp16 amx_tile amx_bf16", True),
        ("bf16", True),
    ],
)
def test_auto_is_bfloat16_only_where_it_takes_less_time(
    flags: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(flags.split(), True))
    monkeypatch.setattr(torch.cpu, "_init_amx", lambda: "amx_tile" in flags)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert is_faster_in_bfloat16(CPU) == expected
    assert pick_dtype("auto", CPU) == ("bfloat16" if expected else "float32")
    monkeypatch.setattr(torch.cpu, "_init_amx", lambda: False)  # an old kernel, or a sandbox
    assert is_faster_in_bfloat16(CPU) == (expected and "amx_bf16" not in flags)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)  # as on macOS
    assert not is_faster_in_bfloat16(CPU)


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="no /proc/cpuinfo to compare with")
def test_the_processor_is_asked_and_says_what_the_kernel_says() -> None:
    flags = set(Path("/proc/cpuinfo").read_text().split())
    assert has_bfloat16(CPU) == bool(flags & {"avx512_bf16", "amx_bf16", "bf16", "svebf16"})


def test_backward_keeps_what_the_adapter_scales_in_its_own_type() -> None:
    kept: list[torch.dtype] = []
    x = torch.randn(3, 5, 8, dtype=torch.bfloat16)
    scale, shift = (torch.randn(8, requires_grad=True) for _ in range(2))

    def keep(tensor: Tensor) -> Tensor:
        kept.extend([tensor.dtype] if tensor.shape == x.shape else [])
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hadamard(x, scale, shift)
    assert kept == [torch.bfloat16]


class Seen(TorchDispatchMode):
    """Types of the first input of every operator that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.types: dict[str, set[torch.dtype]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and isinstance(args[0], Tensor):
            self.types.setdefault(str(func).split(".")[1], set()).add(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_fused_attention_is_in_float32_there_and_back_and_products_are_not(is_checkpointed: bool) -> None:
    model, stage = adapted("bert"), stage_for("bert")
    found: list[dict[str, Tensor]] = []
    for context in (contextlib.nullcontext(), float32_attention(model, "bfloat16")):
        again = checkpointed(model) if is_checkpointed else contextlib.nullcontext()
        with context, again, autocast(CPU, "bfloat16"), Seen() as seen:
            found.append(outcome(model, stage, stage.train)[1])
    attention = {name: types for name, types in seen.types.items() if "flash_attention" in name}
    assert len(attention) == 2 and set().union(*attention.values()) == {torch.float32}, seen.types
    assert torch.bfloat16 in seen.types["mm"] | seen.types["addmm"]
    assert all(torch.allclose(found[0][key], found[1][key], rtol=0.2, atol=2e-2) for key in found[0])


def test_a_run_in_half_precision_computes_its_attention_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, train = tiny_folder(tmp_path / "model"), write_rows(tmp_path / "train.csv", 32)
    seen, types = Seen(), list[dict[str, set[torch.dtype]]]()
    inner = Trainer.training_step

    def step(*args: Any, **kwargs: Any) -> Tensor:
        with seen:
            loss = inner(*args, **kwargs)
        types.append(seen.types)
        return loss

    monkeypatch.setattr(Trainer, "training_step", step)
    settings: dict[str, Any] = {"epochs": 1, "stages": 1, "cache_gb": 0.0}
    tiny_tune(model, tmp_path / "out", train, dtype="bfloat16", **settings)
    attention = [types for name, types in types[-1].items() if "flash_attention" in name]
    assert len(attention) == 2 and set().union(*attention) == {torch.float32}


def test_a_cache_of_another_type_is_made_anew(tmp_path: Path) -> None:
    model, stage = head_stage_model("bert"), stage_for("bert")
    cast_frozen(model, "bfloat16")
    found: list[Any] = []
    for dtype in ("bfloat16", "bfloat16", "float32"):
        with in_float32(model), cached_prefix(model, stage, tmp_path, {}, 1.0, silent, None, dtype) as cached:
            found.append(cached.train[0]["prefix"].copy())
    assert (found[0] == found[1]).all() and (found[0] != found[2]).any()


def test_a_run_in_half_precision_saves_a_float32_adapter_of_the_float32_checkpoint(tmp_path: Path) -> None:
    model, train = tiny_folder(tmp_path / "model"), write_rows(tmp_path / "train.csv", 48)
    results = {
        name: tiny_tune(model, tmp_path / name, train, dtype=dtype, epochs=1, head_epochs=1)
        for name, dtype in (("whole", "float32"), ("half", "bfloat16"), ("again", "bfloat16"))
    }
    assert adapter_sha256(tmp_path / "half") == adapter_sha256(tmp_path / "again")
    assert adapter_sha256(tmp_path / "half") != adapter_sha256(tmp_path / "whole")
    tensors = load_file(tmp_path / "half" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert len({result.run["base_fingerprint"] for result in results.values()}) == 1
    assert load(tmp_path / "half").predict(["w10"])[0].label is not None
    losses = {name: [entry["loss"] for entry in r.metrics["curve"]] for name, r in results.items()}
    torch.testing.assert_close(
        torch.tensor(losses["half"]), torch.tensor(losses["whole"]), rtol=3e-2, atol=1e-2
    )


@pytest.mark.parametrize("name", sorted(FLOAT32_ALONE))
def test_half_precision_is_refused_and_never_chosen_where_it_cannot_be_computed(
    name: str, tmp_path: Path
) -> None:
    model, train = tiny_folder(tmp_path / "model", name), write_rows(tmp_path / "train.csv", 32)
    with pytest.raises(SettingsError, match=r"dtype: expected 'float32' for .*pass --dtype float32"):
        tiny_tune(model, tmp_path / "out", train, dtype="bfloat16")
    settings: dict[str, Any] = {"epochs": 1, "head_epochs": 1}
    by_itself = tiny_tune(model, tmp_path / "out", train, dtype="auto", **settings)
    assert by_itself.run["settings"]["dtype"] == "float32"


def test_auto_is_the_run_of_the_type_that_it_stands_for(tmp_path: Path) -> None:
    model, train = tiny_folder(tmp_path / "model"), write_rows(tmp_path / "train.csv", 32)
    settings: dict[str, Any] = {"epochs": 1, "head_epochs": 1}
    first = tiny_tune(model, tmp_path / "out", train, dtype="auto", **settings)
    assert first.run["settings"]["dtype"] == pick_dtype("auto", CPU)
    assert tiny_tune(model, tmp_path / "out", train, dtype=pick_dtype("auto", CPU), **settings) == first


def test_a_batch_of_one_value_is_held_against_the_range_of_all() -> None:
    said: list[str] = []
    task = Task("stars", "regression", (), ("pearson",))

    def logits(change: float) -> Any:
        def computed(texts: Sequence[str], *_: Any) -> np.ndarray:
            return np.float32([[len(text) / 10 + change] for text in texts])

        return computed

    def classifier(change: float) -> Any:
        values = logits(change)
        both = SimpleNamespace(logits=values, logits_and_cuts=lambda *given: (values(*given), 0))
        return SimpleNamespace(task=task, model=SimpleNamespace(device=torch.device("cpu")), **vars(both))

    whole = classifier(0.0)
    whole.halved = lambda *_: (classifier(1e-4), 1e-4)
    precision = Precision(whole, "bfloat16", 16, said.append)
    for n in (512, 512, 1):
        precision.logits_and_cuts(Examples(["x" * (1 + row % 50) for row in range(n)], None, None))
    assert precision.used == ["bfloat16"] and said == []
