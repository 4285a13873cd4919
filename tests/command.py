"""The command line inside the test's process, and a tiny model on disk with one tuned adapter for all tests."""

import contextlib
import functools
import io
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from models import tiny_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from hadamard_adapter.cli.main import run

SPECIAL = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"]
GOOD = ["good", "fine", "great", "warm", "bright", "kind"]
BAD = ["bad", "poor", "awful", "cold", "dull", "rude"]
OTHER = ["the", "film", "was", "a", "very", "and", "it", "story", "with", "in"]


@dataclass(frozen=True)
class Outcome:
    """How one command ended."""

    code: int
    out: str
    err: str


def hadamard(*words: object, stdin: str | bytes = "") -> Outcome:
    """Run one command with its own standard streams."""
    given = stdin if isinstance(stdin, bytes) else stdin.encode()
    out, err, before = io.StringIO(), io.StringIO(), sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(given))
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run([str(word) for word in words])
    finally:
        sys.stdin = before
    return Outcome(code, out.getvalue(), err.getvalue())


def save_tiny_model(folder: Path, name: str = "bert", seed: int = 0) -> Path:
    """A tiny random backbone with a tokenizer of whole words, as save_pretrained would leave a checkpoint."""
    tiny_model(name, task="headless", seed=seed).save_pretrained(folder)
    words = {word: index for index, word in enumerate([*SPECIAL, *GOOD, *BAD, *OTHER])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", words["[CLS]"]), ("[SEP]", words["[SEP]"])],
    )
    names = {f"{word.strip('[]').lower()}_token": word for word in SPECIAL}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **names).save_pretrained(folder)
    return folder


def reviews(n_rows: int, seed: int = 0) -> list[tuple[str, str]]:
    """Texts of one mood each, with its label: a task that a tiny model learns in seconds."""
    draw = random.Random(seed)
    rows = []
    for index in range(n_rows):
        label, words = ("positive", GOOD) if index % 2 else ("negative", BAD)
        text = draw.sample(OTHER, 3) + draw.sample(words, 2)
        draw.shuffle(text)
        rows.append((" ".join(text), label))
    return rows


def write_csv(path: Path, n_rows: int, seed: int = 0) -> Path:
    """A csv file of `reviews` with the columns id, text and label."""
    lines = [f"{index},{text},{label}\n" for index, (text, label) in enumerate(reviews(n_rows, seed))]
    path.write_text("id,text,label\n" + "".join(lines))
    return path


@dataclass(frozen=True)
class Tuned:
    """The shared fixture: everything that a user has after `hadamard tune`."""

    model: Path
    train: Path
    dev: Path
    adapter: Path
    told: Outcome


@functools.cache
def tuned() -> Tuned:
    """One tiny adapter, tuned by the command itself once a process."""
    folder = Path(tempfile.mkdtemp(prefix="hadamard-cli-"))
    model = save_tiny_model(folder / "model")
    train, dev = write_csv(folder / "train.csv", 64), write_csv(folder / "dev.csv", 24, seed=1)
    words = ["--train", train, "--dev", dev, "--output", folder / "adapter", "--batch-size", 16]
    told = hadamard("tune", "--model", model, *words, "--head-epochs", 2, "--epochs", 4, "--device", "cpu")
    return Tuned(model, train, dev, folder / "adapter", told)
