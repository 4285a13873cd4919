"""Redundant layers: which layers' adapters a task can do without, and an adapter without them.

A layer that is dropped is a row of zeros, the base model's own layer; what is left is a normal adapter.

Source: Chen et al., 2023, arXiv 2407.11033, section 5 (8 of BERT's 12 layers, 0.022 % of its parameters).
"""

import contextlib
import dataclasses
import json
import math
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hadamard_adapter.analysis.offsets import layer_of, made_with, mean_of_pairs
from hadamard_adapter.analysis.pictures import without_mathtext
from hadamard_adapter.errors import AdapterError, DataError, SettingsError
from hadamard_adapter.files import filled, read_json, write_json
from hadamard_adapter.methods import two_thirds
from hadamard_adapter.tasks import Examples, data_fingerprint, score
from hadamard_adapter.tuning import Classifier, TuneSettings, load, tune
from hadamard_adapter.tuning.data import TuneData, read_data
from hadamard_adapter.tuning.folder import MEAN
from hadamard_adapter.tuning.losses import mean_loss, row_losses
from hadamard_adapter.tuning.models import collator, usable_devices
from hadamard_adapter.tuning.places import refuse_taken
from hadamard_adapter.tuning.probe import to_device
from hadamard_adapter.tuning.shared import trained_offsets
from hadamard_adapter.tuning.weights import WEIGHTS, read_weights
from hadamard_adapter.tuning.workbench import token_rows

__all__ = [
    "CRITERIA",
    "adapted_layers",
    "dropped",
    "kept_layers",
    "layer_scores",
    "prune_curve",
    "prune_folder",
    "prune_picture",
    "rank_agreement",
    "settings_and_data",
    "settings_of",
    "spread_rows",
    "without_layers",
]


def prune_folder(
    folder: Path,
    *,
    by: str,
    keep: int | None,
    n_rows: int,
    has_curve: bool,
    output: Path | None,
    is_tuned_again: bool,
    allow_remote_code: bool,
) -> dict[str, Any]:
    """The layers of an adapter that its task needs most, with scores; leaves the adapter of these alone.

    Layers are ranked on training rows, scores are on the dev rows of the adapter's own tuning.

    Args:
        folder: of the adapter.
        by: what ranks the layers, one of `CRITERIA`.
        keep: number of layers that stay; None: two thirds.
        n_rows: training rows that rank the layers, at most.
        has_curve: whether every number of layers is scored, by every criterion.
        output: new folder that receives the adapter of the layers that stay; None: none is written.
        is_tuned_again: whether that adapter is tuned from the start, with the settings of the whole one.
        allow_remote_code: whether code that comes with the base model may run, whatever the settings say.

    Returns:
        made_with, metric, rows, layers, scores as `layer_scores`, by, kept, score of all layers, kept_score;
        where asked for, curve as `prune_curve`, and again: layers, dev score and size once tuned again.

    Raises:
        AdapterError, DataError: as `settings_and_data`, `load` and `layer_scores`.
        SettingsError: there are fewer layers than to keep; the output cannot be made; an adapter to be tuned
            again had a start or a basis.
    """
    settings, data = settings_and_data(folder)
    settings = dataclasses.replace(settings, allow_remote_code=allow_remote_code)
    if is_tuned_again:
        _refuse_start(settings)
    classifier = load(folder, allow_remote_code=allow_remote_code)
    ranked = _ranked(classifier, data, by, keep, n_rows, has_curve)
    found: dict[str, Any] = {"made_with": made_with(folder), **ranked}
    if output is None:
        return found
    if is_tuned_again:
        return {**found, "again": _tune_again(settings, data, found["kept"], output)}
    _write_pruned(folder, output, ranked)
    return found


def adapted_layers(model: nn.Module) -> list[int]:
    """Numbers of the layers that an adapter is in, rising; a last norm outside the layers has none."""
    found = {layer_of(name) for name in trained_offsets(model)}
    return sorted(layer for layer in found if layer is not None)


def kept_layers(scores: Sequence[float], n_keep: int, layers: Sequence[int]) -> tuple[int, ...]:
    """The layers with the n highest scores, from the lowest on; of equal scores the lower layer stays.

    Args:
        scores: one a layer.
        n_keep: how many stay.
        layers: their numbers, rising.

    Example:
        >>> kept_layers([0.3, 0.1, 0.2], 2, [3, 4, 5])
        (3, 5)
    """
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")[:n_keep]
    return tuple(sorted(layers[index] for index in order))


def dropped(tensors: Mapping[str, Tensor], layers: Sequence[int]) -> dict[str, Tensor]:
    """The tensors of an adapter's file, those of some layers all zero; the head stays.

    An offset outside the layers, such as that of a last norm, belongs to no layer and stays too.

    Example:
        >>> name = "bert.encoder.layer.{}.output.dense.hadamard_scale"
        >>> tensors = {name.format(index): torch.ones(1) for index in range(2)}
        >>> [tensor.item() for tensor in dropped(tensors, [1]).values()]
        [1.0, 0.0]
    """
    return {
        name: torch.zeros_like(tensor) if layer_of(name) in layers else tensor
        for name, tensor in tensors.items()
    }


@contextlib.contextmanager
def without_layers(model: nn.Module, layers: Sequence[int]) -> Iterator[None]:
    """Inside, the adapters of these layers are zero; afterwards every bit is as before.

    An offset outside the layers belongs to no layer and is left alone.

    Args:
        model: a PEFT model with one Hadamard adapter, not merged.
        layers: from 0.
    """
    found = {name: p for name, p in trained_offsets(model).items() if layer_of(name) in layers}
    before = {name: p.detach().clone() for name, p in found.items()}
    try:
        for parameter in found.values():
            parameter.data.zero_()
        yield
    finally:
        for name, parameter in found.items():
            parameter.data.copy_(before[name])


def layer_scores(classifier: Classifier, rows: Examples) -> dict[str, list[float]]:
    """How much each layer's adapter seems to matter, by each of `CRITERIA`; a value for each adapted layer.

    offset: |δ|, the Euclidean norm of all offsets of the layer; needs no rows.
    zero: mean loss without the layer's adapter less the mean loss with it.
    fisher: sum of F δ² / 2, F = mean over rows of (d loss of the row / d offset)², from one backward pass a
        row (Theis et al., 2018, arXiv 1801.05787): for classes a second-order guess of what "zero" measures,
        if offsets are small; where labels are numbers, F also weighs each row by its squared error.

    An offset outside the layers, such as that of a last norm, belongs to no layer and is not counted.

    Args:
        classifier: an adapter that is loaded, not merged.
        rows: labelled rows; of the training, so that the rows that score the result stay unseen.
    """
    layers = adapted_layers(classifier.model)
    if not layers:
        raise AdapterError(f"{str(classifier.folder)!r}: expected an adapter of layers, found none")
    offset, fisher = dict.fromkeys(layers, 0.0), dict.fromkeys(layers, 0.0)
    for name, squares in _squared_gradients(classifier, rows).items():
        layer, delta = layer_of(name), trained_offsets(classifier.model)[name].detach().cpu().double()
        if layer is not None:
            offset[layer] += float(delta.square().sum())
            fisher[layer] += float((squares * delta.square()).sum()) / 2
    base, zero = _loss(classifier, rows), dict[int, float]()
    for layer in layers:
        with without_layers(classifier.model, [layer]):
            zero[layer] = _loss(classifier, rows) - base
    found = {"offset": {layer: math.sqrt(x) for layer, x in offset.items()}, "zero": zero, "fisher": fisher}
    return {name: [float(f"{by[layer]:.6g}") for layer in layers] for name, by in found.items()}


CRITERIA = ("offset", "zero", "fisher")
"""Names of the scores of `layer_scores`."""


def prune_curve(
    scores: Mapping[str, Sequence[float]],
    evaluate: Callable[[tuple[int, ...]], float],
    layers: Sequence[int],
) -> dict[str, list[dict[str, Any]]]:
    """For each criterion what is left of a score when only its n best layers stay, n from all to none.

    Args:
        scores: criterion -> score of each layer.
        evaluate: gives the score of the adapter with these layers only; asked once for each set of layers.
        layers: their numbers, rising.

    Returns:
        criterion -> entries with "n", "layers" and "score".

    Example:
        >>> prune_curve({"x": [1.0, 2.0]}, lambda layers: float(sum(layers)), [3, 4])["x"][1]
        {'n': 1, 'layers': [4], 'score': 4.0}
    """
    known: dict[tuple[int, ...], float] = {}
    found: dict[str, list[dict[str, Any]]] = {}
    for name, values in scores.items():
        found[name] = []
        for n in range(len(values), -1, -1):
            kept = kept_layers(values, n, layers)
            if kept not in known:
                known[kept] = evaluate(kept)
            found[name].append({"n": n, "layers": list(kept), "score": known[kept]})
    return found


def rank_agreement(scores: Sequence[Sequence[float]], tasks: Sequence[str]) -> dict[str, float | None]:
    """Mean Spearman correlation of the layers' order over pairs of adapters of one task, and of two tasks.

    None where there is no such pair, or where an adapter's layers have no order.

    Example:
        >>> rank_agreement([[1.0, 2.0, 3.0], [3.0, 5.0, 9.0], [3.0, 2.0, 1.0]], ["cola", "cola", "rte"])
        {'within_task': 1.0, 'between_tasks': -1.0}
    """
    from scipy.stats import rankdata

    if len({len(row) for row in scores}) > 1 or any(len(set(row)) < 2 for row in scores):
        return dict.fromkeys(("within_task", "between_tasks"))
    return mean_of_pairs(np.atleast_2d(np.corrcoef([rankdata(row) for row in scores])), tasks)


def spread_rows(rows: Examples, n: int) -> Examples:
    """At most n rows, at equal distances from the first to the last."""
    return rows.take(np.linspace(0, len(rows) - 1, min(n, len(rows))).round().astype(int).tolist())


def settings_and_data(folder: Path) -> tuple[TuneSettings, TuneData]:
    """The settings that an adapter was tuned with, and its rows, read again.

    All runs of a search share one dev part, that of the first seed; the adapter's own seed may be another.

    Raises:
        AdapterError: as `settings_of`.
        DataError: the rows are no longer where they were, or no longer the same.
    """
    settings, run = settings_of(folder), read_json(folder / "run.json")
    key = run.get("key")
    split_seed = key.get("seed", settings.seed) if isinstance(key, dict) else settings.seed
    data = read_data(dataclasses.replace(settings, seed=split_seed))
    rows = {"train": data_fingerprint(data.train), "dev": data_fingerprint(data.dev)}
    if run.get("data_fingerprint", rows) != rows:
        raise DataError(
            f"{str(folder)!r} was tuned on other rows than {settings.train or settings.data!r} holds now, so "
            "these may have trained it; bring the rows back, or tune again"
        )
    return settings, data


def settings_of(folder: Path) -> TuneSettings:
    """The settings that an adapter was tuned with, from its run.json; its device where that is here too.

    Whether code of a model may run, and results be replaced, is for each command to say: an adapter's own
    word is that of whoever made it.

    Raises:
        AdapterError: the folder has no run.json of `hadamard tune`, such as one of `hadamard share mean`.
    """
    if (folder / MEAN).is_file():
        raise AdapterError(
            f"{str(folder)!r}: expected an adapter that `hadamard tune` made, received a mean of adapters, "
            "made by `hadamard share mean`, which has no head and no rows; tune a task from it "
            f"(hadamard tune --start {shlex.quote(str(folder))}), and name the adapter that this makes"
        )
    try:
        given = json.loads((folder / "run.json").read_text(encoding="utf-8"))["settings"]
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in given.items()
        }
        if values.get("device") not in usable_devices():  # it was tuned on another machine
            values |= {"device": None, "dtype": "auto"}
        values |= {"allow_remote_code": False, "overwrite": False}
        return TuneSettings(**values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AdapterError(
            f"{str(folder)!r}: expected a run.json of `hadamard tune`, which says the rows and the settings "
            f"({type(error).__name__}: {error}); tune again"
        ) from error


_PER_LINE = 4
"""Adapters side by side in a picture, at most."""


def prune_picture(found: Mapping[str, Mapping[str, Any]]) -> Any:
    """A figure: for each adapter its curve above, its layers' scores below, each criterion's largest as 1.

    Args:
        found: name of the adapter -> "metric", "scores", "curve", their "layers", and where it was tuned
            again "again".
    """
    from matplotlib.figure import Figure

    n_columns, n_lines = min(_PER_LINE, len(found)), math.ceil(len(found) / _PER_LINE)
    figure = Figure(figsize=(3.0 * n_columns + 0.8, 5.2 * n_lines), layout="constrained")
    axes = figure.subplots(2 * n_lines, n_columns, squeeze=False, height_ratios=(3, 1.4) * n_lines)
    pairs = axes.reshape(n_lines, 2, n_columns).swapaxes(1, 2).reshape(-1, 2)
    for unused in pairs[len(found) :].flat:
        unused.remove()
    for (upper, lower), (name, one) in zip(pairs, found.items(), strict=False):
        for criterion, entries in one["curve"].items():
            upper.plot([e["n"] for e in entries], [e["score"] for e in entries], marker=".", label=criterion)
        again = one.get("again")
        if again is not None:
            upper.plot([len(again["layers"])], [again["score"]], "*", color="black", label="tuned again")
        upper.set(title=without_mathtext(name), xlabel="layers kept", ylabel=one["metric"])
        heights = np.array(list(one["scores"].values()))
        largest = np.maximum(heights.max(axis=1, keepdims=True), 1e-12)
        lower.imshow(np.maximum(heights, 0) / largest, aspect="auto", cmap="viridis", vmin=0, vmax=1)
        lower.set_yticks(range(len(heights)), list(one["scores"]))
        lower.set_xticks(range(len(one["layers"])), one["layers"])
        lower.set(xlabel="layer")
    pairs[0, 0].legend(fontsize=8)
    return figure


def _refuse_start(settings: TuneSettings) -> None:
    """An error where fewer layers cannot be tuned again as the adapter was."""
    for name in ("start", "basis"):
        if getattr(settings, name) is not None:
            raise SettingsError(
                f"tune again: the adapter was tuned with --{name}, which has offsets for all of its layers; "
                f"expected an adapter without one: leave tune again out, or tune it without --{name} first"
            )


def _ranked(
    classifier: Classifier, data: TuneData, by: str, keep: int | None, n_rows: int, has_curve: bool
) -> dict[str, Any]:
    """The layers to keep, what ranks them, and the scores with all layers and with these."""
    layers = adapted_layers(classifier.model)
    n_keep = two_thirds(len(layers)) if keep is None else keep
    if n_keep > len(layers):
        raise SettingsError(
            f"--keep: expected at most {len(layers)}, the adapter's layers, received {n_keep}"
        )
    scores = layer_scores(classifier, spread_rows(data.train, n_rows))
    kept = kept_layers(scores[by], n_keep, layers)

    def evaluate(chosen: Sequence[int]) -> float:
        return _score_without(classifier, data.dev, [layer for layer in layers if layer not in chosen])

    found: dict[str, Any] = {
        "metric": data.task.metrics[0],
        "rows": {"ranked_on": min(n_rows, len(data.train)), "scored_on": len(data.dev)},
        "layers": layers,
        "scores": scores,
        "by": by,
        "kept": list(kept),
        "score": evaluate(layers),
        "kept_score": evaluate(kept),
    }
    return {**found, "curve": prune_curve(scores, evaluate, layers)} if has_curve else found


def _squared_gradients(classifier: Classifier, rows: Examples) -> dict[str, Tensor]:
    """Mean over rows of the squared gradient of a row's loss, offset by offset."""
    parameters = trained_offsets(classifier.model)
    were = {name: p.requires_grad for name, p in parameters.items()}
    sums = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in parameters.items()}
    collate = collator(classifier.tokenizer, classifier.task.problem_type)
    tokens, _ = token_rows(classifier.tokenizer, rows, classifier.max_length)
    try:
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        for row in tokens:
            batch = to_device(collate([row]), classifier.model.device)
            labels = batch.pop("labels")
            losses = row_losses(classifier.task.problem_type, classifier.model(**batch).logits, labels)
            gradients = torch.autograd.grad(losses.mean(), list(parameters.values()))
            for name, gradient in zip(parameters, gradients, strict=True):
                sums[name] += gradient.cpu().double().square()
    finally:
        for name, parameter in parameters.items():
            parameter.requires_grad_(were[name])
    return {name: total / max(1, len(tokens)) for name, total in sums.items()}


def _loss(classifier: Classifier, rows: Examples) -> float:
    return mean_loss(classifier.task, classifier.logits(rows.texts, rows.pairs), rows.labels or [])


def _score_without(classifier: Classifier, rows: Examples, layers: Sequence[int]) -> float:
    """The task's first metric on rows, with the adapters of some layers at zero."""
    with without_layers(classifier.model, layers):
        return score(classifier.task, classifier.logits(rows.texts, rows.pairs), rows.labels or [])[
            classifier.task.metrics[0]
        ]


def _tune_again(settings: TuneSettings, data: TuneData, layers: list[int], output: Path) -> dict[str, Any]:
    """Layers, dev score and size of an adapter of these layers alone, which is tuned from the start."""
    chosen = dataclasses.replace(settings, layers=tuple(layers), output=str(output), quiet=True)
    metrics = tune(chosen, data=data).metrics
    return {
        "layers": layers,
        "score": metrics["dev"][metrics["metric"]],
        "adapter_parameters": metrics["adapter_parameters"],
        "share_percent": metrics["share_percent"],
    }


def _write_pruned(source: Path, output: Path, ranked: Mapping[str, Any]) -> None:
    """Copy an adapter, offsets of layers not kept zero; files that tell of the whole adapter stay behind."""
    refuse_taken(output)
    gone = [layer for layer in ranked["layers"] if layer not in ranked["kept"]]
    tensors = dropped(read_weights(source / WEIGHTS), gone)
    stale = shutil.ignore_patterns("metrics.json", "curve.png", "README.md", "head", WEIGHTS)
    with filled(output) as folder:
        shutil.copytree(source, folder, ignore=stale, dirs_exist_ok=True)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        remark = {name: ranked[name] for name in ("by", "kept", "metric", "kept_score")}
        write_json(folder / "run.json", {**read_json(folder / "run.json"), "pruned": remark})
