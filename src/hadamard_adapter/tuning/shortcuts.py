"""What makes a stage of training faster and changes nothing of what it computes, all in one context.

But for the dropout of a head: what it draws follows the order of the rows in a step.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from accelerate import PartialState

from hadamard_adapter.files import remove_scrap
from hadamard_adapter.tasks import data_fingerprint
from hadamard_adapter.tuning.data import TuneData
from hadamard_adapter.tuning.first_token import first_token_only
from hadamard_adapter.tuning.prefix import cached_prefix, frozen_prefix, is_all_frozen
from hadamard_adapter.tuning.settings import TuneSettings
from hadamard_adapter.tuning.stage import Progress, Stage
from hadamard_adapter.tuning.trained_layers import checkpointed, compiled, float32_attention

__all__ = ["lean", "shortcuts"]


@contextlib.contextmanager
def shortcuts(
    model: Any,
    stage: Stage,
    settings: TuneSettings,
    data: TuneData,
    content: dict[str, Any],
    folder: Path,
    say: Callable[[str], None],
    progress: Progress | None = None,
) -> Iterator[Stage]:
    """The stage to run instead of `stage`; within the context the model computes it the short way.

    Frozen layers at the bottom are computed once (`prefix.py`), the last layer is cut to the token that the
    head reads (`first_token.py`), and what remains keeps less for backward (`trained_layers.py`). Where the
    rows of a step are drawn at random (in a stage 1 whose cache had to be left out, to have the steps of a
    cached one; elsewhere without `group_by_length`) a CPU computes them in parts of like length (`parts.py`).
    Without a cache by the settings, `cache_gb` 0, stage 1 is what all this is held against.

    Args:
        model: with the stage's masks set, on its device.
        stage: what trains, on which rows.
        settings: resolved, with device and dtype.
        data: the rows' texts, whose fingerprints tell one cache from another.
        content: what else the layers' output depends on: the base model, the length of a row.
        folder: of all stages' caches; together they stay within `cache_gb`, and the last one comes first.
        say: receives a line for the user.
        progress: told how far the pass over the rows is.
    """
    has_cache, own = settings.cache_gb > 0 and not settings.dropout, folder / stage.name
    with contextlib.ExitStack() as stack:
        if has_cache:
            parts = (("train", data.train), ("dev", data.dev))
            key = content | {part: data_fingerprint(rows) for part, rows in parts}
            others = [place for place in folder.glob("*") if place != own]
            stage = stack.enter_context(
                cached_prefix(
                    model, stage, own, key, settings.cache_gb, say, progress, settings.dtype, others
                )
            )
        elif settings.cache_gb and frozen_prefix(model)[0]:
            say("no cache of frozen layers: with dropout they compute something else in every epoch")
        is_cached = bool(stage.train) and "prefix" in stage.train[0]
        if not is_cached and PartialState().is_main_process:  # of a run that began with more room
            remove_scrap(own if has_cache else folder)
        is_left_out = settings.cache_gb > 0 and not is_cached
        is_random = is_left_out if is_all_frozen(model) else not settings.group_by_length
        if is_random and model.device.type == "cpu":  # elsewhere a pass costs more; not measured
            stage = dataclasses.replace(stage, is_in_parts=True)
        if settings.first_token_only and not stack.enter_context(first_token_only(model, stage)):
            say("the last layer computes all tokens: the head was not found to read the first one alone")
        stack.enter_context(lean(model, settings))
        yield stage


@contextlib.contextmanager
def lean(model: Any, settings: TuneSettings) -> Iterator[None]:
    """Within it the model's layers keep less for backward, as the settings say.

    Args:
        model: with the stage's masks set, on its device.
        settings: resolved, with device and dtype.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(float32_attention(model, settings.dtype))
        if settings.gradient_checkpointing:
            stack.enter_context(checkpointed(model))
        if settings.torch_compile:
            stack.enter_context(compiled(model))
        yield
