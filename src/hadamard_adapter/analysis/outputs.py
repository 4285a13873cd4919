"""The method's motivation: how far an element-wise map explains what fine-tuning does to self-attention.

Source: Chen et al., 2023, arXiv 2407.11033, section 3 (norms of attention outputs, fits of their change).
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from hadamard_adapter.adapter.families import find_sites
from hadamard_adapter.analysis.pictures import without_mathtext
from hadamard_adapter.errors import DataError, SettingsError
from hadamard_adapter.tasks import Task
from hadamard_adapter.tuning.models import (
    collator,
    config_of,
    load_base,
    load_tokenizer,
    quiet_libraries,
    tokenize,
)

__all__ = ["FITS", "attention_outputs", "explained", "fits_of_layers", "outputs_of_models", "outputs_picture"]

Fit = Callable[
    [Float[np.ndarray, "n d"], Float[np.ndarray, "n d"], Float[np.ndarray, "m d"]], Float[np.ndarray, "m d"]
]
"""Outputs before and after on n tokens, and before on m others -> predicted outputs after on these."""


def _shift(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "n d"], new: Float[np.ndarray, "m d"]) -> Any:
    return new + (y - x).mean(axis=0)


def _polynomial(degree: int) -> Fit:
    """An element-wise polynomial, ŷ_j = sum over p <= degree of c_jp z_j^p; z is x with mean 0 and sd 1."""

    def fit(x: Any, y: Any, new: Any) -> Any:
        mean, sd = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-12)
        powers, wanted = (
            np.stack([((values - mean) / sd) ** power for power in range(degree + 1)], axis=-1)
            for values in (x, new)
        )  # (n, d, p)
        gram = np.einsum("ndp,ndq->dpq", powers, powers)
        right = np.einsum("ndp,nd->dp", powers, y)
        coefficients = np.linalg.pinv(gram, hermitian=True) @ right[..., None]
        return np.einsum("ndp,dp->nd", wanted, coefficients[..., 0])

    return fit


def _full(x: Any, y: Any, new: Any) -> Any:
    """Any affine map, ŷ = M x + c, by least squares."""
    mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
    weights = np.linalg.lstsq(x - mean_x, y - mean_y, rcond=None)[0]
    return (new - mean_x) @ weights + mean_y


FITS: dict[str, Fit] = {
    "shift": _shift,
    "linear": _polynomial(1),
    "quadratic": _polynomial(2),
    "cubic": _polynomial(3),
    "full map": _full,
}
"""Name -> fit. shift: b alone. linear: the paper's w ⊙ x + b. full map: any d by d matrix, a
ceiling as far as so many rows can tell its d² numbers (tokens of one row are alike)."""


def explained(
    before: Float[np.ndarray, "n d"], after: Float[np.ndarray, "n d"], predicted: Float[np.ndarray, "n d"]
) -> float:
    """Share of a change that a prediction explains, R² = 1 - |y - ŷ|² / |y - x|², summed over tokens.

    No change predicted gives 0, all of it 1; a prediction worse than none is below 0.

    Example:
        >>> x, y = np.array([[1.0], [2.0]]), np.array([[2.0], [4.0]])
        >>> explained(x, y, x), explained(x, y, 2 * x)
        (0.0, 1.0)
    """
    change = float(np.square(after - before).sum())
    return 1.0 - float(np.square(after - predicted).sum()) / change if change > 0 else 0.0


def fits_of_layers(
    before: Float[np.ndarray, "l n d"], after: Float[np.ndarray, "l n d"], n_fit: int
) -> dict[str, list[float]]:
    """Norms by layer, and each fit's R² by layer on tokens that it was not made from.

    Args:
        before: outputs of l layers for n tokens.
        after: of the tuned model, for the same tokens.
        n_fit: the fits are made from this many first tokens; the others count. More than d + 1 of them.

    Returns:
        "norm before", "norm after" (mean Euclidean norm), "change" (mean of |y - x|), and names of `FITS`.
    """
    rows: dict[str, list[float]] = {
        "norm before": np.linalg.norm(before, axis=-1).mean(axis=-1).tolist(),
        "norm after": np.linalg.norm(after, axis=-1).mean(axis=-1).tolist(),
        "change": np.linalg.norm(after - before, axis=-1).mean(axis=-1).tolist(),
    }
    for name, fit in FITS.items():
        rows[name] = []
        for x, y in zip(before.astype(np.float64), after.astype(np.float64), strict=True):
            predicted = fit(x[:n_fit], y[:n_fit], x[n_fit:])
            rows[name].append(explained(x[n_fit:], y[n_fit:], predicted))
    return {name: [round(value, 4) for value in values] for name, values in rows.items()}


@torch.inference_mode()
def attention_outputs(
    model: nn.Module, batches: Sequence[Mapping[str, torch.Tensor]], position: str = "output"
) -> Float[np.ndarray, "l n d"]:
    """What self-attention puts out in each layer for all tokens that are not padding, float32.

    Args:
        model: of a known family, in evaluation mode.
        batches: model inputs with "attention_mask".
        position: "output", behind the output projection, before the residual sum; "input", before it (the
            heads' results side by side).

    Raises:
        SettingsError: the model's family is unknown.
    """
    sites = find_sites(model, ["attention"])
    found: list[list[torch.Tensor]] = [[] for _ in sites]
    mask = torch.empty(0)

    def keep(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            value = output if position == "output" else inputs[0]
            found[index].append(value[mask].float().cpu())

        return hook

    handles = [
        model.get_submodule(site.projection).register_forward_hook(keep(index))
        for index, site in enumerate(sites)
    ]
    try:
        for batch in batches:
            mask = batch["attention_mask"].bool()
            model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack([torch.cat(values) for values in found]).numpy()


def outputs_of_models(
    model: str,
    tuned: str,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    *,
    position: str,
    n_tokens: int,
    max_length: int,
) -> dict[str, Any]:
    """The analysis of a base model and one tuned from it: norms and fits by layer, on the given texts.

    Rows come in a random order (seed 0), since files are often sorted by source, and end where that many
    tokens are reached. The first 70 % of them make the fits, the tokens of the others score these.

    Args:
        model: folder of the base model, or a name on the hub.
        tuned: folder of the same model, tuned and saved by `save_pretrained`.
        texts: (first) texts.
        pairs: second texts.
        position: as in `attention_outputs`.
        n_tokens: at most, over all texts; a full map needs several times the model's width.
        max_length: tokens after which a text is cut.

    Raises:
        SettingsError: a model cannot be loaded, is an adapter or puts out NaN, or the two differ in kind or
            shape.
        DataError: there are fewer tokens than a full map needs.
    """
    for name in (model, tuned):
        _refuse_adapter(Path(name))
    names = tuple(str(index) for index in range(2))
    task = Task("outputs", "single_label_classification", names, ("accuracy",))  # heads are not looked at
    with quiet_libraries():
        tokenizer = load_tokenizer(model)
        given = tokenize(tokenizer, list(texts), None if pairs is None else list(pairs), max_length).rows
        rows = _up_to([given[i] for i in np.random.default_rng(0).permutation(len(given))], n_tokens)
        collate = collator(tokenizer, task.problem_type)
        batches = [collate(rows[start : start + 16]) for start in range(0, len(rows), 16)]
        kinds = {name: config_of(name).model_type for name in (model, tuned)}
        if kinds[model] != kinds[tuned]:
            raise SettingsError(
                f"expected two models of one kind, received {model!r} ({kinds[model]}) and {tuned!r} "
                f"({kinds[tuned]}); name the model that the tuned one was made from"
            )
        before, after = (
            attention_outputs(load_base(name, task, tokenizer.pad_token_id).eval(), batches, position)
            for name in (model, tuned)
        )
    for name, values in ((model, before), (tuned, after)):
        if not np.isfinite(values).all():
            raise SettingsError(f"{name!r} puts out NaN or infinity; copy its weights again, or tune again")
    if before.shape != after.shape:
        raise SettingsError(
            f"expected two models of one shape, received outputs of {before.shape} from {model!r} and of "
            f"{after.shape} from {tuned!r} (layers, tokens, width)"
        )
    n_fit = sum(len(row["input_ids"]) for row in rows[: int(0.7 * len(rows))])
    if n_fit < 2 * before.shape[2]:
        are_all = len(rows) == len(given)
        what = "give more rows" if are_all else "allow more by --tokens (in Python n_tokens=...)"
        raise DataError(
            f"expected more than {round(2 * before.shape[2] / 0.7)} tokens, for a fit of {before.shape[2]} "
            f"numbers per output, received {before.shape[1]}; {what}"
        )
    return {
        "position": position,
        "rows": len(rows),
        "tokens": {"fit": n_fit, "held_out": before.shape[1] - n_fit},
        "layers": fits_of_layers(before, after, n_fit),
    }


def outputs_picture(found: Mapping[str, Mapping[str, Any]]) -> Any:
    """A figure: for each tuned model, norms by layer above, R² of the fits below.

    Args:
        found: title -> what `outputs_of_models` returned.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(found) + 1.2, 5.2), layout="constrained")
    axes = figure.subplots(2, len(found), squeeze=False, sharey="row")
    for (upper, lower), (title, one) in zip(axes.T, found.items(), strict=True):
        layers = one["layers"]
        for name, style in {"norm before": "--", "norm after": "-", "change": ":"}.items():
            upper.plot(layers[name], style, marker=".", color="C0" if "norm" in name else "C3", label=name)
        upper.set(title=without_mathtext(title))
        for index, name in enumerate(FITS):
            lower.plot(layers[name], marker=".", color=f"C{index}", label=name)
        lower.set(xlabel="layer")
    lowest = min(value for one in found.values() for name in FITS for value in one["layers"][name])
    axes[0, 0].set(ylabel="mean norm of a token", ylim=(0, None))
    axes[1, 0].set(ylabel="R² of the change, held-out tokens", ylim=(min(0, lowest), 1))
    axes[0, -1].legend(fontsize=8)
    axes[1, -1].legend(fontsize=8)
    return figure


def _refuse_adapter(folder: Path) -> None:
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise SettingsError(
            f"expected a model, received {str(folder)!r}, which is an adapter; make a model of it: hadamard "
            f"merge --adapter {shlex.quote(str(folder))} --output FOLDER"
        )


def _up_to(rows: Sequence[dict[str, Any]], n_tokens: int) -> list[dict[str, Any]]:
    """The first rows whose tokens together are not more; at least one."""
    total = np.cumsum([len(row["input_ids"]) for row in rows])
    return list(rows[: max(1, int(np.searchsorted(total, n_tokens, side="right")))])
