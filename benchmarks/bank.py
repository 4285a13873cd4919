"""What a bank costs in time: mixed batches against the bare backbone, and against PEFT's ways to mix.

Command:   python benchmarks/bank.py --model MODEL [--output results/bank.json]
Expected:  bank at most 1.07 of the bare model that computes its linear layers in the same way (batches of 16
           and 64 rows of 16 and 128 tokens, every row an adapter of its own, its norms and head included);
           adding, looking up and a forward pass the same at 10, 1,000 and 100,000 adapters (bfloat16, the
           head a linear layer).
Time:      10 minutes on one core, 8 GB of memory. Nothing else should run meanwhile.

One thread and its processor time; variants take turns within each round, in a shuffled order, over the same
weights in the same memory (see overhead.py). PEFT's mixed batches carry LoRA (r 8, query and value) on the
backbone alone, without heads of their own, which the bank's rows have; `peft_one_by_one` switches the adapter
for each row. bare is the model as PyTorch computes it, bare_packed by oneDNN where that is faster, as in
the bank.
"""

import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from keep import keep
from overhead import interleaved, load, ratios, ratios_to, twin
from peft import LoraConfig, PeftModel, get_peft_model

from hadamard_adapter import HadamardConfig
from hadamard_adapter.allocator import keep_freed_memory
from hadamard_adapter.serving import AdapterBank, BankAdapter, PackedAdapters, read_adapter, write_pack
from hadamard_adapter.tuning.onednn import pack_linears
from hadamard_adapter.tuning.report import versions

SHAPES = [(n_rows, n_tokens) for n_tokens in (16, 128) for n_rows in (16, 64)]
RESIDENT = (10, 1000, 100_000)
PARTS = ("mixed", "shared", "growth")
"""Mixed batches; several adapters on one text; cost over the number of adapters."""
ENDS = {"bert": ["query", "value"], "mpnet": ["attn.q", "attn.v"]}


@click.command()
@click.option("--model", required=True, help="Folder of the base model.")
@click.option("--rounds", default=20, show_default=True, help="Rounds of each comparison.")
@click.option("--output", default="results/bank.json", show_default=True, help="File of the result.")
@click.option("--only", type=click.Choice(PARTS), help="Measure one part alone.")
def main(model: str, rounds: int, output: str, only: str | None) -> None:
    """Measure and write the ratios."""
    keep_freed_memory()
    torch.set_num_threads(1)
    bare = load(model)
    name = Path(model).absolute().name
    found: dict[str, Any] = {"model": name, "rounds": rounds, "threads": 1, "versions": versions()}
    like = an_adapter(bare)
    found |= {"adapter_bytes": like.offset_bytes, "head_bytes": like.head_bytes}
    parts = PARTS if only is None else (only,)
    for n_rows, n_tokens in SHAPES if "mixed" in parts else ():
        found[f"{n_rows}x{n_tokens}"] = mixed(bare, like, n_rows, n_tokens, rounds)
        click.echo(f"{n_rows}x{n_tokens}: {json.dumps(found[f'{n_rows}x{n_tokens}'])}")
    if "shared" in parts:
        found["shared"] = shared(bare, like, rounds)
        click.echo(f"shared: {json.dumps(found['shared'])}")
    if "growth" in parts:
        found["growth"] = growth(bare, like, rounds)
        found["cold_ms"] = cold(bare, like)
        click.echo(json.dumps({key: found[key] for key in ("growth", "cold_ms")}))
    keep(output, found)


def an_adapter(bare: torch.nn.Module) -> BankAdapter:
    """A wide adapter with a head of its own, as `hadamard tune` leaves it."""
    config = HadamardConfig(task_type="SEQ_CLS", sites=["attention", "ffn"], modules_to_save=["pooler"])
    config.id2label = {0: "no", 1: "yes"}
    with tempfile.TemporaryDirectory() as folder:
        get_peft_model(twin(bare), config).save_pretrained(folder)
        return read_adapter(folder)


def another(like: BankAdapter, seed: int) -> BankAdapter:
    """The same kind of adapter with other numbers."""
    generator = torch.Generator().manual_seed(seed)
    draw = {key: torch.randn(t.shape, generator=generator) / 10 for key, t in like.offsets.items()}
    head = {key: torch.randn(t.shape, generator=generator) / 10 for key, t in like.head.items()}
    return dataclasses.replace(like, offsets=draw, head=head)


def bank_of(bare: torch.nn.Module, like: BankAdapter, n_adapters: int) -> AdapterBank:
    """A bank of so many adapters over the bare model's weights."""
    bank = AdapterBank(twin(bare))
    for seed in range(n_adapters):
        bank.add(f"a{seed}", another(like, seed))
    return bank


def mixed(
    bare: torch.nn.Module, like: BankAdapter, n_rows: int, n_tokens: int, rounds: int
) -> dict[str, object]:
    """Ratios of one forward pass, every row with an adapter of its own, to the two bare models'."""
    inputs = {"input_ids": torch.randint(1000, 20_000, (n_rows, n_tokens))}
    names = [f"a{row}" for row in range(n_rows)]
    bank, lora = bank_of(bare, like, n_rows), lora_of(bare, names)
    slots = [bank.entry(name).slot for name in names]
    packed = twin(bare).requires_grad_(False)
    pack_linears(packed)

    def one_by_one() -> None:
        for row, name in enumerate(names):
            lora.set_adapter(name)
            lora(input_ids=inputs["input_ids"][row : row + 1])

    calls: dict[str, Callable[[], object]] = {
        "bare": lambda: bare(**inputs),
        "bare_again": lambda: bare(**inputs),
        "bare_packed": lambda: packed(**inputs),
        "bank": lambda: bank.forward(slots, **inputs),
        "peft_mixed": lambda: lora(**inputs, adapter_names=names),
        "peft_one_by_one": one_by_one,
    }
    with torch.inference_mode():
        times = interleaved(calls, rounds)
    return ratios_to(times, "bare") | ratios_to(times, "bare_packed")


def shared(bare: torch.nn.Module, like: BankAdapter, rounds: int) -> dict[str, object]:
    """Eight adapters on each of eight texts, by the lower layers they leave alone, against 64 texts."""
    n_layers = bare.config.num_hidden_layers
    texts = torch.randint(1000, 20_000, (64, 32))
    calls: dict[str, Callable[[], object]] = {}
    for depth in (0, n_layers // 3, 2 * n_layers // 3):
        upper = {
            place: tensor
            for place, tensor in like.offsets.items()
            if int(next(part for part in place[0].split(".") if part.isdigit())) >= depth
        }
        bank = bank_of(bare, dataclasses.replace(like, offsets=upper), 8)
        slots = [bank.entry(f"a{row % 8}").slot for row in range(64)]
        if not depth:
            calls["64_texts"] = partial(bank.forward, slots, input_ids=texts)
        calls[f"8_texts_above_{depth}"] = partial(
            bank.forward, slots, input_ids=texts[:8].repeat_interleave(8, 0)
        )
    with torch.inference_mode():
        return ratios(calls, "64_texts", rounds)


def lora_of(bare: torch.nn.Module, names: list[str]) -> PeftModel:
    """The bare model with so many LoRA adapters."""
    config = LoraConfig(r=8, target_modules=ENDS[bare.config.model_type], init_lora_weights=False)
    model = get_peft_model(twin(bare), config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    return model.eval()


def growth(bare: torch.nn.Module, like: BankAdapter, rounds: int) -> dict[str, object]:
    """Milliseconds to add, microseconds to look up, and a forward pass, by the number of adapters there."""
    inputs = {"input_ids": torch.randint(1000, 20_000, (16, 16))}
    linear = {key: tensor for key, tensor in like.head.items() if "pooler" not in key}
    some = [another(dataclasses.replace(like, head=linear), seed) for seed in range(50)]
    found: dict[str, object] = {}
    banks: dict[str, AdapterBank] = {}
    for n_adapters in RESIDENT:
        bank = banks[f"{n_adapters}"] = AdapterBank(twin(bare), dtype=torch.bfloat16)
        for number in range(n_adapters):
            bank.add(f"a{number}", some[number % len(some)])
        add = median_seconds([partial(bank.add, "more", adapter) for adapter in some])
        look_up = median_seconds([partial(bank.entry, "a5")] * 200)
        found[f"{n_adapters} adapters"] = {"add_ms": 1e3 * add, "look_up_us": 1e6 * look_up}
    chance = torch.Generator().manual_seed(0)
    calls: dict[str, Callable[[], object]] = {
        name: partial(bank.forward, torch.randint(1, len(bank), (16,), generator=chance).tolist(), **inputs)
        for name, bank in banks.items()
    }
    return {**found, "forward": ratios(calls, f"{RESIDENT[0]}", rounds)}


def cold(bare: torch.nn.Module, like: BankAdapter) -> float:
    """Milliseconds to read an adapter from a pack and add it, median of 100 among 300."""
    with tempfile.TemporaryDirectory() as folder:
        write_pack(f"{folder}/pack", ((f"a{n}", "0", another(like, n)) for n in range(300)))
        pack, bank = PackedAdapters(f"{folder}/pack"), bank_of(bare, like, 10)
        return 1e3 * median_seconds([lambda n=n: bank.add("cold", pack.read(f"a{n}")) for n in range(100)])


def median_seconds(calls: list[Callable[[], object]]) -> float:
    """Median time of some calls."""
    times: list[float] = []
    for call in calls:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()
