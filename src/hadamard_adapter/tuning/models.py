"""Base models and their tokenizers: loaded with clear errors, rows turned into tokens."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

from hadamard_adapter.adapter.base_model import base_model_of
from hadamard_adapter.errors import LoadError, SettingsError, did_you_mean, option
from hadamard_adapter.tasks import Task

__all__ = [
    "DEFAULT_MAX_LENGTH",
    "Tokens",
    "backbone_of",
    "collator",
    "config_of",
    "fit_tokenizer",
    "load_base",
    "load_tokenizer",
    "longest_input",
    "pick_device",
    "quiet_libraries",
    "token_batches",
    "tokenize",
    "usable_devices",
    "usable_length",
]

DEFAULT_MAX_LENGTH = 256
CHARACTERS_A_TOKEN = 16
"""Of texts so long that all of it need not be tokenised, four times what words take."""
ROWS_AT_ONCE = 1000
"""That are tokenised whole, to see which are cut: whole, a long document takes 200 bytes a token."""


@dataclass(frozen=True)
class Tokens:
    """Rows as token ids."""

    rows: list[dict[str, Any]]
    """One dict of model inputs per row, not padded."""
    n_truncated: int
    """Rows that were longer than the maximum and lost their end."""


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence the logs, bars and warnings of transformers and PyTorch, and restore them afterwards."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def pick_device(name: str | None) -> torch.device:
    """The device of this name, or the fastest that is there.

    Raises:
        SettingsError: no such device on this machine.
    """
    usable = usable_devices()
    if name is not None and name not in usable:
        raise SettingsError(f"device: expected one of {usable} on this machine, received {name!r}")
    return torch.device(name or usable[-1])


def usable_devices() -> list[str]:
    """The devices of this machine, the fastest last."""
    there = {"cpu": True, "mps": torch.backends.mps.is_available(), "cuda": torch.cuda.is_available()}
    return [name for name, is_there in there.items() if is_there]


def config_of(model: str, allow_remote_code: bool = False) -> Any:
    """The config of a model.

    Raises:
        SettingsError: it is no folder of a model, and no name that can be reached.
    """
    with _explained(model, "model", allow_remote_code):
        return AutoConfig.from_pretrained(model, trust_remote_code=allow_remote_code)


def load_tokenizer(model: str, allow_remote_code: bool = False, base: str | None = None) -> Any:
    """The tokenizer of a model, with a padding token (the end-of-text token where it has none of its own).

    Args:
        model: folder or name on the hub.
        allow_remote_code: whether code that comes with it may run.
        base: the base model, where it is elsewhere than its tokenizer.

    Raises:
        SettingsError: it cannot be loaded, holds no words, or has neither token; no such model.
    """
    with _explained(model, "tokenizer", allow_remote_code):
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=allow_remote_code)
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers makes one where files lack it
        raise SettingsError(
            f"no tokenizer in {model!r}: its vocabulary has special tokens alone; put the files of the "
            "model's own tokenizer into the folder"
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise SettingsError(
                f"the tokenizer of {model!r} has neither a padding nor an end token; add one to it"
            )
        tokenizer.pad_token = tokenizer.eos_token
    fit_tokenizer(tokenizer, config_of(base or model, allow_remote_code))
    return tokenizer


def fit_tokenizer(tokenizer: Any, config: Any) -> None:
    """Has a tokenizer make rows as a model reads them, also when it is saved and loaded by others.

    It pads on the right, since GPT-2 counts positions from the first token of a row, padding or not; and it
    tells no types of tokens (`token_type_ids`) to a model that knows one alone (RoBERTa with BERT's
    tokenizer, whose second text is of type 1).

    Args:
        tokenizer: is changed.
        config: of the model.
    """
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "right"
    if getattr(config, "type_vocab_size", 2) < 2:
        names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
        tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names


def load_base(model: str, task: Task, pad_token_id: int | None, allow_remote_code: bool = False) -> Any:
    """The base model as a sequence classifier for a task, in float32, its head fresh where files lack one.

    Args:
        model: folder or name on the hub.
        task: gives number and names of labels and the problem type.
        pad_token_id: the one that pads the rows; decoders find a row's last token by it.
        allow_remote_code: whether code that comes with the model may run.

    Raises:
        SettingsError: it cannot be loaded, is stored as a pickle file, or needs code that is not allowed.
    """
    _refuse_pickle(model)
    names = list(task.label_names) or ["value"]
    config = config_of(model, allow_remote_code)
    with _explained(model, "model", allow_remote_code):
        config.id2label = dict(enumerate(names))
        config.label2id = {name: index for index, name in enumerate(names)}
        config.problem_type = task.problem_type
        if getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = pad_token_id
        loaded = AutoModelForSequenceClassification.from_pretrained(
            model,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=allow_remote_code,
        )
    if not _position_offset(loaded):  # where positions count from the padding index, it must stay as it is
        loaded.config.pad_token_id = pad_token_id
    return loaded


def backbone_of(model: torch.nn.Module) -> torch.nn.Module:
    """The part below the head of a transformers model, or of a PEFT model around one."""
    return base_model_of(model).base_model


def longest_input(model: Any, tokenizer: Any) -> int | None:
    """The number of tokens that model and tokenizer can take; None where nothing limits it.

    RoBERTa and its relatives count positions from the padding index on, which costs them that many positions.
    """
    limits = [tokenizer.model_max_length] if tokenizer.model_max_length < 1_000_000 else []
    n_positions = getattr(model.config, "max_position_embeddings", None)
    if isinstance(n_positions, int) and n_positions > 0:
        limits.append(n_positions - _position_offset(model))
    return min(limits, default=None)


def usable_length(model: Any, tokenizer: Any, wanted: int | None = None) -> int:
    """Tokens after which a row is cut: those wanted, else the default or what the model can take.

    Args:
        model: the base model.
        tokenizer: of the base model.
        wanted: a setting; None: the default.

    Raises:
        SettingsError: more is wanted than the model can take.
    """
    limit = longest_input(model, tokenizer)
    if wanted is None:
        return DEFAULT_MAX_LENGTH if limit is None else min(DEFAULT_MAX_LENGTH, limit)
    if limit is not None and wanted > limit:
        raise SettingsError(
            f"max_length: expected at most {limit}, what {model.name_or_path!r} can take, received {wanted!r}"
        )
    return wanted


def tokenize(tokenizer: Any, texts: list[str], pairs: list[str] | None, max_length: int) -> Tokens:
    """Token ids of rows, the longest text of a row cut first where it does not fit.

    A text holds words only: a special token that it spells, such as `</s>`, is split or left out.

    Args:
        tokenizer: of the base model.
        texts: first texts.
        pairs: second texts, or None.
        max_length: tokens, special ones included.
    """
    found, n_cut = list[dict[str, Any]](), 0
    for start in range(0, len(texts), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        sides = [texts[part]] if pairs is None else [texts[part], pairs[part]]
        sides = _beginnings(tokenizer, sides, max_length)
        first, second = sides[0], None if pairs is None else sides[1]
        rows = _encode(tokenizer, first, second, truncation=False)
        too_long = [index for index, row in enumerate(rows) if len(row["input_ids"]) > max_length]
        if too_long:
            first = [first[index] for index in too_long]
            second = None if second is None else [second[index] for index in too_long]
            cut = _encode(tokenizer, first, second, truncation=True, max_length=max_length)
            for row, index in zip(cut, too_long, strict=True):
                rows[index] = row
        found += rows
        n_cut += len(too_long)
    return Tokens(found, n_cut)


def _beginnings(tokenizer: Any, sides: list[list[str]], max_length: int) -> list[list[str]]:
    """The texts of rows, those that are far too long cut to a beginning with twice the tokens that count.

    A text of a megabyte costs seconds, all but some milliseconds of them for tokens that are cut off. Of a
    tokenizer that cuts on the left it is the end of the text. A row stays whole where that could change which
    of its two texts is the longer one, but where both are far too long: then an odd token may be the other's.
    """
    n = CHARACTERS_A_TOKEN * max_length
    kept = slice(-n, None) if tokenizer.truncation_side == "left" else slice(n)
    long = [index for index, row in enumerate(zip(*sides, strict=True)) if max(map(len, row)) > n]
    if not long:
        return sides
    starts = [[side[index][kept] for index in long] for side in sides]
    sizes = [
        [len(row["input_ids"]) for row in _encode(tokenizer, each, None, truncation=False)] for each in starts
    ]
    found = [list(side) for side in sides]
    for at, index in enumerate(long):
        cut = [size[at] for size, side in zip(sizes, sides, strict=True) if len(side[index]) > n]
        uncut = [size[at] for size, side in zip(sizes, sides, strict=True) if len(side[index]) <= n]
        if min(cut) >= 2 * max_length and min(cut) > max(uncut, default=0):
            for side, each in zip(found, starts, strict=True):
                side[index] = each[at]
    return found


def token_batches(lengths: list[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of rows in batches of at most `batch_tokens` tokens, padding included, or of one longer row.

    Short rows stand with short ones; rows of equal length keep their order.

    Example:
        >>> list(token_batches([5, 2, 9, 2], batch_tokens=6))
        [[1, 3], [0], [2]]
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        if batch and (len(batch) + 1) * lengths[index] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def collator(tokenizer: Any, problem_type: str) -> Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]:
    """A function from rows of tokens (with or without "labels") to one padded batch."""
    dtype = torch.long if problem_type == "single_label_classification" else torch.float32

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        inputs = [{name: value for name, value in row.items() if name != "labels"} for row in rows]
        batch = dict(tokenizer.pad(inputs, return_tensors="pt", verbose=False))
        if "labels" in rows[0]:
            batch["labels"] = torch.tensor([row["labels"] for row in rows], dtype=dtype)
        return batch

    return collate


def _encode(
    tokenizer: Any, texts: list[str], pairs: list[str] | None, **options: Any
) -> list[dict[str, Any]]:
    """Model inputs of each row, with no special token but those that the tokenizer itself adds.

    Splitting is not enough: where a special token is a word of the vocabulary (T5's `</s>`), it comes back.
    """
    found = tokenizer(
        texts, pairs, split_special_tokens=True, return_special_tokens_mask=True, verbose=False, **options
    )
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    special = (special | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id}
    names = [name for name in tokenizer.model_input_names if name in found]
    rows: list[dict[str, Any]] = []
    for index, (ids, mask) in enumerate(zip(found["input_ids"], found["special_tokens_mask"], strict=True)):
        row = {name: found[name][index] for name in names}
        if any(id in special and not is_added for id, is_added in zip(ids, mask, strict=True)):
            kept = [at for at, id in enumerate(ids) if mask[at] or id not in special]
            row = {name: [values[at] for at in kept] for name, values in row.items()}
        rows.append(row)
    return rows


def _position_offset(model: Any) -> int:
    """Number of positions that no token takes: those up to the padding index, where positions have one."""
    offsets = [
        module.padding_idx + 1
        for name, module in model.named_modules()
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
    ]
    return max(offsets, default=0)


def _refuse_pickle(model: str) -> None:
    folder = Path(model)
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return
    pickles = sorted(
        path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern)
    )
    if pickles:
        raise SettingsError(
            f"model {model!r} holds {pickles[0]!r}, a pickle file that can run code when it is read; "
            "expected model.safetensors: save the model again with save_pretrained"
        )


_NOT_LOADED = (
    *(OSError, ValueError, KeyError, ImportError, TypeError),
    *(SafetensorError, StrictDataclassError),  # a value in config.json of another type
)
"""What transformers raises where a model cannot be loaded."""


@contextlib.contextmanager
def _explained(model: str, part: str, allow_remote_code: bool) -> Iterator[None]:
    """Turn whatever transformers raises while loading into one message that says what to do."""
    try:
        yield
    except _NOT_LOADED as error:
        if "trust_remote_code" in str(error) and not allow_remote_code:
            raise SettingsError(
                f"model {model!r} brings Python code of its own, which is refused; if you trust it, "
                f"pass {option('allow_remote_code', 'True')}; bench, bank, serve and analyse run no such code"
            ) from error
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise LoadError(
            f"no {part} in {model!r}: expected a folder made by save_pretrained (config.json, "
            f"model.safetensors, tokenizer.json) or a name on the Hugging Face hub "
            f"that can be reached from here{_near(model)} ({first_line})"
        ) from error


def _near(model: str) -> str:
    """A hint: the folder of a model beside the one that was named, or the model in the hub's cache."""
    beside: list[str] = []
    with contextlib.suppress(OSError):  # a name that is no path here
        folders = (config.parent for config in Path(model).parent.glob("*/config.json"))
        beside += [str(folder) for folder in folders if folder != Path(model)]
    cached = [folder.name[8:].replace("--", "/") for folder in Path(HF_HUB_CACHE).glob("models--*")]
    return did_you_mean(str(Path(model)), [*beside, *cached], cutoff=0.8)
