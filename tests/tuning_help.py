"""What the tests of the tuning room share: tiny model folders with a tokenizer, and rows that can be learned.

It imports all that a run imports, so that `multiprocessing`'s fork server loads it once for all processes.
"""

import contextlib
import csv
import gc
import hashlib
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.figure
import sklearn.metrics
import sklearn.model_selection
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

import hadamard_adapter.tuning.training
from hadamard_adapter.tuning import Progress, TuneResult, TuneSettings, tune
from models import BOS, EOS, PAD, VOCAB_SIZE, tiny_model

__all__ = [
    "Sees",
    "Stop",
    "adapter_sha256",
    "give_code",
    "lay_out",
    "mean_of",
    "silent",
    "tiny_folder",
    "tiny_tune",
    "unprivileged",
    "write_rows",
]

GOOD, BAD = ("w10", "w11", "w12"), ("w20", "w21", "w22")
NOBODY = 65534
LOADED = (matplotlib.figure, sklearn.metrics, sklearn.model_selection)


class Stop(Exception):
    """Of a display that ends the run it is shown."""


class Sees(Progress):
    """A display that looks for files of caches under a folder as each stage begins."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.found = folder, dict[str, list[str]]()

    def start(self, stage: str, n_steps: int, step: int) -> None:
        self.found[stage] = [path.name for path in self.folder.rglob("*.np[yz]")]
        self.found[stage] += [path.name for path in self.folder.rglob("*.tmp")]
        maps = Path("/proc/self/maps")  # a file that is removed but mapped keeps the disk full
        lines = maps.read_text(encoding="utf-8").splitlines() if maps.exists() else []
        self.found[stage] += [line for line in lines if str(self.folder) in line and ".npy" in line]


def give_code(model: Path, code: str = "raise SystemExit('this code ran')\n") -> None:
    """Have the model in a folder bring Python code of its own."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (model / "own.py").write_text(code, encoding="utf-8")


def tiny_folder(
    folder: Path, name: str = "bert", with_pad: bool = True, seed: int = 0, **config: Any
) -> Path:
    """A headless tiny model and a word tokenizer in one folder, as a hub would give them."""
    tiny_model(name, "headless", seed=seed, **config).save_pretrained(folder)
    special = {"<s>": BOS, "<pad>": PAD, "</s>": EOS, "<unk>": 3, "<mask>": 4}
    words = {f"w{index}": index for index in range(5, VOCAB_SIZE)}
    tokenizer = Tokenizer(models.WordLevel({**special, **words}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>" if with_pad else None,
        model_max_length=64,
        model_input_names=["input_ids", "attention_mask"],
    )
    wrapped.save_pretrained(folder)
    return folder


def write_rows(
    path: Path, n_rows: int, seed: int = 0, label_of: Callable[[str], Any] | None = None, pair: bool = False
) -> Path:
    """A CSV of random words, a telling one among them; labels bad and good, or what `label_of` says."""
    chance = random.Random(seed)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", *(["text_pair"] if pair else []), "label"])
        for index in range(n_rows):
            telling = chance.choice(GOOD if index % 2 else BAD)
            words = [f"w{chance.randrange(30, VOCAB_SIZE)}" for _ in range(chance.randrange(2, 9))]
            words.insert(chance.randrange(len(words)), telling)
            text = " ".join(words)
            label = ("bad", "good")[index % 2] if label_of is None else label_of(text)
            writer.writerow([text, *(["w40 w41"] if pair else []), label])
    return path


def lay_out(place: Path, n_rows: int = 96, n_dev_rows: int = 24, **config: Any) -> Path:
    """A folder with model/, train.csv and dev.csv."""
    tiny_folder(place / "model", **config)
    write_rows(place / "train.csv", n_rows)
    write_rows(place / "dev.csv", n_dev_rows, seed=1)
    return place


def tiny_tune(
    model: Path,
    output: Path,
    train: Path,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
    **settings: Any,
) -> TuneResult:
    """A short run on a tiny model, on one thread, silent, in float32 whatever the machine has."""
    torch.set_num_threads(1)
    chosen: dict[str, Any] = {"epochs": 2, "batch_size": 8, "device": "cpu", "dtype": "float32"} | settings
    if chosen.get("stages") != 1:
        chosen = {"head_epochs": 2, "head_batch_size": chosen["batch_size"]} | chosen
    return tune(TuneSettings(str(model), str(output), train=str(train), **chosen), say or silent, progress)


@contextlib.contextmanager
def unprivileged(folder: Path) -> Iterator[None]:
    """Let rights count inside a folder, for root too: act as nobody, who can get there."""
    if os.geteuid() != 0:
        yield
        return
    for parent in (folder, *folder.parents[:-1]):
        parent.chmod(parent.stat().st_mode | 0o011)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def silent(line: str) -> None:
    """Say nothing."""


def mean_of(weights: list[Tensor], decay: float) -> Tensor:
    """The equation, written out."""
    mean = weights[0].double()
    for step, weight in enumerate(weights[1:], start=2):
        share = min(decay, (1 + step) / (4 + step))
        mean = share * mean + (1 - share) * weight.double()
    return mean


def adapter_sha256(folder: Path) -> str:
    """Hex sha256 of the adapter's tensors."""
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()


hadamard_adapter.tuning.training.STEPS_BETWEEN_CHECKPOINTS = 4  # tiny epochs are to be resumed half-way too
gc.freeze()  # the libraries' objects need no look at in every forked process
