"""The bank, many adapters in a batch, against ONNX Runtime with one task's merged model.

Command:   python benchmarks/onnx_engine.py --model MODEL --adapter quickstart/adapter
               --input quickstart/test.csv [--output results/onnx.json]
           (after bash quickstart.sh; needs pip install '.[onnx]' in a clone)
Expected:  ONNX Runtime in float32 says the same to 1e-4; the bank within a quarter of its time at 16 tokens,
           faster than it at 128.
Time:      10 minutes on one core. Nothing else should run meanwhile.

The adapter is merged, exported by torch.onnx and run by ONNX Runtime, in float32 (onnx) and quantised
to int8 (onnx_int8: weights by channel, activations as they come). The bank answers the same rows, each by an
adapter of its own; bare is the backbone with a head and no adapter, bank_plain a bank whose linear layers are
PyTorch's own, and _bf16 a model in bfloat16, where the processor computes in it. One thread and its processor
time, rounds as in overhead.py. (A file named onnx.py would hide the package of that name.)
"""

import json
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np
import torch
from bank import SHAPES, another, bank_of
from keep import keep
from overhead import interleaved, load, ratios_to, twin
from scipy.special import softmax

from hadamard_adapter.allocator import keep_freed_memory
from hadamard_adapter.serving import AdapterBank, BankAdapter, read_adapter
from hadamard_adapter.tasks import read_table
from hadamard_adapter.tuning import merge
from hadamard_adapter.tuning.models import load_tokenizer
from hadamard_adapter.tuning.precision import has_bfloat16
from hadamard_adapter.tuning.report import versions

REFERENCES = ("bare", "onnx", "onnx_int8")
TOLERANCE = 1e-4
N_TEXTS = 512

Session = Any
"""An `onnxruntime.InferenceSession`."""


@click.command()
@click.option("--model", required=True, help="Folder of the base model.")
@click.option("--adapter", required=True, help="Folder of a tuned adapter with two labels.")
@click.option("--input", "input_path", required=True, help="File of texts on which int8 is compared.")
@click.option("--rounds", default=20, show_default=True, help="Rounds of each comparison.")
@click.option("--output", default="results/onnx.json", show_default=True, help="File of the result.")
def main(model: str, adapter: str, input_path: str, rounds: int, output: str) -> None:
    """Measure and write the ratios."""
    keep_freed_memory()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"model": Path(model).absolute().name, "rounds": rounds, "threads": 1}
    found |= {"versions": versions() | runtime_versions(), "cpu": torch.backends.cpu.get_cpu_capability()}
    with tempfile.TemporaryDirectory() as folder:
        merge(adapter, f"{folder}/merged")
        plain = load(f"{folder}/merged").eval()
        export(plain, f"{folder}/model.onnx")
        quantise(f"{folder}/model.onnx", f"{folder}/int8.onnx")
        sessions = {"onnx": session(f"{folder}/model.onnx"), "onnx_int8": session(f"{folder}/int8.onnx")}
        found["agreement"] = agreement(plain, sessions, model, input_path)
        click.echo(f"agreement: {json.dumps(found['agreement'])}")
        bare, like = load(model).eval(), read_adapter(adapter)
        for n_rows, n_tokens in SHAPES:
            found[f"{n_rows}x{n_tokens}"] = compared(bare, like, sessions, n_rows, n_tokens, rounds)
            click.echo(f"{n_rows}x{n_tokens}: {json.dumps(found[f'{n_rows}x{n_tokens}'])}")
    keep(output, found)


def runtime_versions() -> dict[str, str]:
    """Versions of what is measured besides."""
    from importlib.metadata import version

    return {name: version(name) for name in ("onnx", "onnxruntime")}


def export(model: torch.nn.Module, path: str) -> None:
    """Write a model as ONNX for any number of rows and tokens.

    By tracing and with plain attention: of the graphs tried, ONNX Runtime computes that one fastest.
    """
    inputs = {"input_ids": torch.randint(1000, 20_000, (3, 17)), "attention_mask": torch.ones(3, 17).long()}
    inputs["attention_mask"][1, 9:] = 0
    axes = {name: {0: "b", 1: "s"} for name in inputs} | {"logits": {0: "b"}}
    kept, model.config._attn_implementation = model.config._attn_implementation, "eager"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, tuple(inputs.values()), path, input_names=list(inputs), output_names=["logits"],
            dynamic_axes=axes, opset_version=17, dynamo=False,
        )  # fmt: skip
    model.config._attn_implementation = kept


def quantise(path: str, output: str) -> None:
    """Write the same graph with weights in int8."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = f"{output}.prepared"
    quant_pre_process(path, prepared, skip_symbolic_shape=True)
    quantize_dynamic(prepared, output, weight_type=QuantType.QInt8, per_channel=True)


def session(path: str) -> Session:
    """A graph in ONNX Runtime, with one thread and every optimisation that it has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(one: Session, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    """Logits (b, l) by ONNX Runtime."""
    return one.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})[0]


def agreement(
    model: torch.nn.Module, sessions: dict[str, Session], tokenizer_of: str, input_path: str
) -> dict[str, Any]:
    """Largest difference of a probability to PyTorch's on real texts, and how many labels are others.

    Raises:
        AssertionError: the graph in float32 does not say the same.
    """
    tokenizer = load_tokenizer(tokenizer_of)
    texts = [str(row["text"]) for row in read_table(input_path).rows[:N_TEXTS]]
    pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in sessions}
    for start in range(0, len(texts), 32):
        tokens = tokenizer(texts[start : start + 32], padding=True, truncation=True, return_tensors="pt")
        inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")}
        with torch.inference_mode():
            expected = softmax(model(**inputs).logits.numpy(), 1)
        for name, one in sessions.items():
            pairs[name].append((expected, softmax(run(one, inputs), 1)))
    found = {name: differences(*map(np.concatenate, zip(*rows, strict=True))) for name, rows in pairs.items()}
    assert found["onnx"]["largest"] <= TOLERANCE, found
    return {"texts": len(texts), **found}


def differences(expected: np.ndarray, received: np.ndarray) -> dict[str, float]:
    """Largest and mean difference of a probability, and the share of rows that get another label.

    Example:
        >>> differences(np.array([[0.6, 0.4], [0.2, 0.8]]), np.array([[0.4, 0.6], [0.2, 0.8]]))["other_label"]
        0.5
    """
    apart = np.abs(expected - received)
    flips = expected.argmax(1) != received.argmax(1)
    return {"largest": float(apart.max()), "mean": float(apart.mean()), "other_label": float(flips.mean())}


def compared(
    bare: torch.nn.Module,
    like: BankAdapter,
    sessions: dict[str, Session],
    n_rows: int,
    n_tokens: int,
    rounds: int,
) -> dict[str, Any]:
    """Ratios of one forward pass to each of the references, by variant."""
    ids = torch.randint(1000, 20_000, (n_rows, n_tokens))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    slots = list(range(1, n_rows + 1))
    with mock.patch("hadamard_adapter.tuning.onednn.is_faster", lambda layer: False):
        plain = bank_of(bare, like, n_rows)
    bank = bank_of(bare, like, n_rows)
    calls: dict[str, Callable[[], object]] = {
        "bare": partial(bare, **inputs),
        "bank_plain": partial(plain.forward, slots, **inputs),
        "bank": partial(bank.forward, slots, **inputs),
        **{name: partial(run, one, inputs) for name, one in sessions.items()},
    }
    if has_bfloat16(torch.device("cpu")):
        half = twin(bare).bfloat16()
        calls["bare_bf16"] = partial(half, **inputs)
        calls["bank_bf16"] = partial(half_bank(half, like, n_rows).forward, slots, **inputs)
    with torch.inference_mode():
        times = interleaved(calls, rounds)
    found: dict[str, Any] = {"packed_layers": bank.backbone.n_packed}
    for reference in REFERENCES:
        found |= ratios_to(times, reference)
    return found


def half_bank(half: torch.nn.Module, like: BankAdapter, n_adapters: int) -> AdapterBank:
    """A bank on a model in bfloat16; what an adapter's numbers are rounded to does not change the time."""
    bank = AdapterBank(twin(half))
    bank.backbone.base_fingerprint = like.base_fingerprint
    for seed in range(n_adapters):
        bank.add(f"a{seed}", another(like, seed))
    return bank


if __name__ == "__main__":
    main()
