"""The bank: a backbone whose every row of a batch runs with its own adapter, norm, head and labels."""

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from hadamard_adapter.errors import AdapterError, SettingsError, did_you_mean, refuse_below
from hadamard_adapter.serving.backbone import Backbone
from hadamard_adapter.serving.equal_texts import Shared, find_shared, keys_of
from hadamard_adapter.serving.packed import PackedAdapters
from hadamard_adapter.serving.rows import Text, encode_rows, longest_text, read_rows
from hadamard_adapter.serving.source import BankAdapter, read_adapter
from hadamard_adapter.tuning.classifier import Prediction
from hadamard_adapter.tuning.models import collator, fit_tokenizer, longest_input, token_batches
from hadamard_adapter.tuning.prefix import capture_output, hidden_of, reading_prefix
from hadamard_adapter.tuning.probe import to_device

__all__ = ["AdapterBank", "BankEntry", "UnreadableError", "near_id"]

BATCH_TOKENS = 4096
MAX_RESIDENT = 1000
N_COMPARED, LENGTH_COMPARED = 100, 64
"""Ids among which a near one is looked for, and their length: a wrong id costs some ms, whatever there is."""


class UnreadableError(AdapterError):
    """An adapter of the pack is damaged, or does not fit the model."""

    def __init__(self, id: str, message: str) -> None:
        """Say which one."""
        super().__init__(message)
        self.id = id


@dataclass
class BankEntry:
    """One version of an adapter in the bank."""

    slot: int
    """Its row in the tables; 0 once it is freed."""
    adapter: BankAdapter
    """What was added; its values stand in the tables alone."""
    version: str = ""
    """Name of the version, as `add` was told."""
    n_users: int = 0
    """Predictions under way that read the slot."""
    is_retired: bool = False
    """Whether it was removed or replaced: the slot is freed when its last user is done."""


class AdapterBank:
    """One backbone and any number of adapters, for batches in which every text names its own.

        y_r = (1 + δw[s_r]) ⊙ (W x_r + c) + b[s_r]          s_r: the slot of row r; slot 0 holds zeros

    The offsets stand in tables (slot, site, d), one a kind; a batch takes its rows by one index into each.
    Heads stand in tables too, in groups of one shape. Adding, replacing and removing adapters changes
    nothing for predictions that are under way: each is made wholly with the version that it began with.

    With a pack behind it, a bank answers for all of the pack's adapters and holds the ones that were used
    last: an adapter that is asked for and not there is read from the pack, and the one that was not used for
    longest makes room.

    The model is changed in place. Calls from several threads are safe; forward passes take turns.

    Args:
        model: a transformers classifier of an encoder family (`ENCODERS`), in evaluation mode from here on.
        tokenizer: for `predict`.
        pack: adapters that are read when they are asked for; those that are added come before them.
        max_resident: number of the pack's adapters that are held; more only while predictions under way need
            them. Adapters that were added are held besides.
        dtype: of the tables; bfloat16 halves them and rounds heads, the base model's too. Offsets are applied
            in float32 either way.

    Raises:
        SettingsError: another kind of model, or a head with other layers than linear ones and norms.
        AdapterError: the pack is of another base model.

    Example:
        >>> bank = AdapterBank(model, tokenizer)  # doctest: +SKIP
        >>> bank.add("mood", "mood-adapter")  # doctest: +SKIP
        >>> bank.predict(["a fine film"], ["mood"])[0].label  # doctest: +SKIP
        'positive'
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        pack: PackedAdapters | None = None,
        max_resident: int = MAX_RESIDENT,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Put the bank's layers into the model."""
        refuse_below("max_resident", max_resident, 1)
        if tokenizer is not None:
            fit_tokenizer(tokenizer, model.config)
        self.backbone, self.tokenizer = Backbone(model, dtype), tokenizer
        if pack is not None:
            self.backbone.check_base("the pack", pack.base_fingerprint)
        self.pack, self.max_resident = pack, max_resident
        self._limit = None if tokenizer is None else longest_input(model, tokenizer)
        self._n_words = None if tokenizer is None else min(len(tokenizer), model.config.vocab_size)
        self._collate = collator(tokenizer, "single_label_classification")
        self._entries: dict[str, BankEntry] = {}
        self._cold: dict[str, None] = {}
        """Ids of the pack's adapters that are held, the one that was not used for longest first."""
        self._lock = threading.RLock()
        """Of tables and entries."""
        self._turn = threading.Lock()
        """Of forward passes."""
        self._words = threading.Lock()
        """Of the tokenizer, which keeps where it cuts."""

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, id: object) -> bool:
        return id in self._entries or self.is_in_pack(str(id))

    def is_resident(self, id: str) -> bool:
        """Whether an adapter is held, so that nothing of it is to be read."""
        return id in self._entries

    def is_in_pack(self, id: str) -> bool:
        """Whether the pack has an adapter, held or not.

        Raises:
            UnreadableError: the pack cannot be read now.
        """
        try:
            return self.pack is not None and id in self.pack
        except AdapterError as error:
            raise UnreadableError(id, str(error)) from error

    @property
    def ids(self) -> list[str]:
        """The adapters that are held, in the order in which they came."""
        return list(self._entries)

    def add(self, id: str, source: str | Path | BankAdapter, version: str = "") -> None:
        """Take an adapter in; one of the same id is replaced, for predictions that begin after that.

        Args:
            id: its name in `predict`.
            source: a folder that `hadamard tune` made, or what `read_adapter` read.
            version: a name for this version, which `entry` and `hold` give back.

        Raises:
            AdapterError: it cannot be read, or does not fit the backbone; the bank is then as it was.
        """
        adapter = source if isinstance(source, BankAdapter) else read_adapter(source)
        self.backbone.check_fit(id, adapter)
        self.backbone.make_room(self._lock)
        with self._lock:
            self._put(id, adapter, version)
            self._cold.pop(id, None)

    def remove(self, id: str) -> None:
        """Take an adapter out, for predictions that begin after that; what the pack has, it keeps.

        Raises:
            AdapterError: none of this id is held.
        """
        with self._lock:
            if id not in self._entries:
                raise self._unknown(id)
            self._drop(id)

    def entry(self, id: str) -> BankEntry:
        """The version of an adapter that predictions begin with now.

        Raises:
            AdapterError: there is none.
        """
        with self._lock:
            return self._find([id])[0]

    def show(self, id: str) -> tuple[BankAdapter, str]:
        """An adapter and its version, without holding it: one that has to be read makes no other one go.

        Raises:
            AdapterError: there is none, or (UnreadableError) it cannot be read.
        """
        with self._lock:
            entry = self._entries.get(id)
        if entry is not None:
            return entry.adapter, entry.version
        if id not in self:
            raise self._unknown(id)
        return self._read(id)

    def predict(
        self,
        texts: Sequence[str],
        ids: Sequence[str],
        pairs: Sequence[str | None] | None = None,
        batch_tokens: int = BATCH_TOKENS,
    ) -> list[Prediction]:
        """One prediction a text, each by the adapter that it names.

        Args:
            texts: any number of them.
            ids: the adapter of each text.
            pairs: the second text of each, None where its adapter takes one text.
            batch_tokens: largest number of tokens, padding included, in one forward pass.

        Raises:
            AdapterError: an id that is not there; nothing is predicted then.
            SettingsError: not one id (and second text) a text, a second text missing or too many, or the bank
                has no tokenizer.
        """
        entries = self.hold(ids)
        try:
            rows = self.tokenize(texts, entries, pairs)
            found: list[Any] = [None] * len(rows)
            for chosen in token_batches([len(row["input_ids"]) for row in rows], batch_tokens):
                logits = self.logits([rows[row] for row in chosen], [entries[row] for row in chosen])
                for row, values in zip(chosen, logits, strict=True):
                    found[row] = values
            return read_rows([entry.adapter for entry in entries], found)
        finally:
            self.release(entries)

    def hold(self, ids: Sequence[str]) -> list[BankEntry]:
        """The adapters of these ids in one version each, kept as they are until `release`.

        Raises:
            AdapterError: an id that is not there, or (UnreadableError) cannot be read; nothing is held then.
        """
        read = {id: self._read(id) for id in self._missing(ids)}  # others go on meanwhile
        with self._lock:
            entries = self._find(ids, read)
            for entry in entries:
                entry.n_users += 1
            return entries

    def holds(self, ids: Sequence[str]) -> bool:
        """Whether `hold` would read nothing: each of these is held, or is nowhere."""
        return not self._missing(ids)

    def release(self, entries: Sequence[BankEntry]) -> None:
        """Give back what `hold` gave, once for each time it was held."""
        with self._lock:
            for entry in entries:
                entry.n_users -= 1
                self._free_unused(entry)

    def logits(
        self, rows: Sequence[dict[str, Any]], entries: Sequence[BankEntry]
    ) -> Float32[np.ndarray, "b l"]:
        """Logits of one batch, padded with -inf to the widest head.

        Args:
            rows: as `tokenize` made them.
            entries: of each row, held.
        """
        batch = to_device(self._collate(list(rows)), self.backbone.model.device)
        return self.forward([entry.slot for entry in entries], **batch).float().cpu().numpy()

    @torch.inference_mode()
    def forward(self, slots: Sequence[int], **inputs: Tensor) -> Float[Tensor, "b l"]:
        """Logits of a batch, as wide as the widest head in it, padded with -inf.

        Equal rows run once through the layers below the first one that their adapters change.

        Args:
            slots: of each row, `entry(id).slot`; 0 is the base model.
            inputs: the model's, as the tokenizer makes them.
        """
        with self._turn:
            with self._lock:
                depths = self.backbone.depths(slots)
            shared = find_shared(keys_of(inputs), depths) if any(depths) else None
            if shared is not None:
                return self._forward_shared(shared, slots, inputs)
            with self._lock:
                self.backbone.take(slots)
            return self.backbone.model(**inputs).logits

    def _forward_shared(
        self, shared: Shared, slots: Sequence[int], inputs: dict[str, Tensor]
    ) -> Float[Tensor, "b l"]:
        model, layers = self.backbone.model, self.backbone.layers[: shared.depth]
        with self._lock:
            self.backbone.take([slots[row] for row in shared.firsts])
        output = capture_output(model, layers, {key: tensor[shared.firsts] for key, tensor in inputs.items()})
        with self._lock:
            self.backbone.take(slots)
        with reading_prefix(model, layers, len(output) if isinstance(output, tuple) else 0):
            return model(**inputs, prefix=hidden_of(output)[shared.of_row]).logits

    def measure_pace(self) -> float:
        """Seconds a token that a pass of the base model over 8 rows of 64 takes now, after one to warm up."""
        n_rows, n_tokens = 8, min(64, self._limit or 64)
        tokens = torch.ones(n_rows, n_tokens, dtype=torch.int64, device=self.backbone.model.device)
        tokens[:, 0] = torch.arange(n_rows)  # equal rows would run once for all
        inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        self.forward([0] * n_rows, **inputs).cpu()
        started = time.perf_counter()
        self.forward([0] * n_rows, **inputs).cpu()
        return (time.perf_counter() - started) / (n_rows * n_tokens)

    def tokenize(
        self, texts: Sequence[Text], entries: Sequence[BankEntry], pairs: Sequence[str | None] | None
    ) -> list[dict[str, Any]]:
        """Model inputs of each row, cut as in the training of its adapter.

        Args:
            texts: one a row, or its token ids.
            entries: the adapter of each row.
            pairs: the second text of each row, None where its adapter takes one text.

        Raises:
            SettingsError: not as many of each, a second text missing or too many, or no tokenizer.
        """
        if self.tokenizer is None:
            raise SettingsError(
                "expected a bank with a tokenizer, received none; pass AdapterBank(model, tokenizer)"
            )
        adapters = [entry.adapter for entry in entries]
        with self._words:
            return encode_rows(self.tokenizer, self._limit, texts, adapters, pairs, self._n_words)

    def longest_text(self, entry: BankEntry) -> int:
        """Tokens after which a text is cut for an adapter."""
        return longest_text(entry.adapter, self._limit)

    def _missing(self, ids: Sequence[str]) -> list[str]:
        """Those of these ids that are in the pack and not held, once each; none if one is nowhere."""
        wanted = dict.fromkeys(ids)
        if all(id in self for id in wanted):
            return [id for id in wanted if id not in self._entries]
        return []

    def _read(self, id: str) -> tuple[BankAdapter, str]:
        """An adapter of the pack that fits the backbone, and its version."""
        assert self.pack is not None, "what is known and not held is in the pack"
        try:
            adapter = self.pack.read(id)
            self.backbone.check_fit(id, adapter)
            return adapter, self.pack.version(id)
        except AdapterError as error:
            raise UnreadableError(id, str(error)) from error

    def _find(
        self, ids: Sequence[str], read: Mapping[str, tuple[BankAdapter, str]] | None = None
    ) -> list[BankEntry]:
        """The entries of these ids; those of the pack that are not held are taken from `read`, or read."""
        wanted, read = dict.fromkeys(ids), read or {}
        for id in wanted:
            if id not in self:
                raise self._unknown(id)
        for id in wanted:
            if id not in self._entries:
                self._put(id, *(read.get(id) or self._read(id)))
                self._cold[id] = None
            elif id in self._cold:
                self._cold[id] = self._cold.pop(id)
        n_too_many = max(0, len(self._cold) - self.max_resident)
        for id in [id for id in self._cold if id not in wanted][:n_too_many]:
            self._drop(id)
        return [self._entries[id] for id in ids]

    def _unknown(self, id: str) -> AdapterError:
        hint = near_id(id, self.ids)
        return AdapterError(f"no adapter {id!r} in this bank of {len(self._entries)}{hint}")

    def _put(self, id: str, adapter: BankAdapter, version: str) -> None:
        entry = BankEntry(self.backbone.fill(adapter), adapter.without_values(), version)
        before, self._entries[id] = self._entries.get(id), entry
        if before is not None:
            self._retire(before)

    def _drop(self, id: str) -> None:
        self._retire(self._entries.pop(id))
        self._cold.pop(id, None)

    def _retire(self, entry: BankEntry) -> None:
        entry.is_retired = True
        self._free_unused(entry)

    def _free_unused(self, entry: BankEntry) -> None:
        if entry.is_retired and not entry.n_users and entry.slot:
            self.backbone.free(entry.slot)
            entry.slot = 0


def near_id(id: str, ids: Iterable[str], otherwise: str = "") -> str:
    """A hint for an unknown id: the nearest of the first ones, or else `otherwise`.

    Example:
        >>> near_id("moot", ["mood", "topic"])
        "; did you mean 'mood'?"
    """
    some = [other for other in islice(ids, N_COMPARED) if len(other) <= LENGTH_COMPARED]
    return did_you_mean(id[:LENGTH_COMPARED], some, otherwise=otherwise)
