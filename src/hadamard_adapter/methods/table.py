"""The table of methods: how each makes its model, its learning rates, and its number of parameters.

The formulae count what trains beside the head; docs/experiments.md writes them with letters.
"""

from collections.abc import Callable
from typing import Any

from peft import get_peft_model

from hadamard_adapter.methods import by_peft
from hadamard_adapter.methods.houlsby import WIDTH, houlsby
from hadamard_adapter.methods.method import Method, Settings, Shape
from hadamard_adapter.methods.names import norms_behind
from hadamard_adapter.methods.plain import attention_norms, biases, everything, head_only
from hadamard_adapter.methods.tfidf import no_model, tfidf
from hadamard_adapter.tuning.settings import TuneSettings, resolve
from hadamard_adapter.tuning.workbench import adapter_config

__all__ = ["METHODS", "is_fit", "two_thirds"]

_CHEN = "Chen et al., 2023, arXiv 2407.11033; ours"
_OUR_GRID = (2e-3, 5e-3, 1e-2)
_HEAD_LR = 1e-3
"""That of the Hadamard recipe, for methods whose few numbers want rates at which a head of many diverges."""
_RED = "Wu et al., 2024, arXiv 2402.15179; rate: mlwu22/RED, bash/RED/RoBERTa/RoBERTa_base. Ours"


def _given(**settings: Any) -> Settings:
    return lambda config: settings


def _upper_two_thirds(config: Any) -> dict[str, Any]:
    n_layers = config.num_hidden_layers
    return {"preset": "paper", "layers": tuple(range(n_layers - two_thirds(n_layers), n_layers))}


def two_thirds(n_layers: int) -> int:
    """Of a model's layers, rounded: the paper's 8 of 12.

    Example:
        >>> two_thirds(12), two_thirds(6)
        (8, 4)
    """
    return round(2 * n_layers / 3)


def _hadamard(
    title: str,
    settings: Settings,
    count: Callable[[Shape], int],
    source: str = _CHEN,
    grid: tuple[float, ...] = _OUR_GRID,
    head_lr: float | None = None,
) -> Method:
    """A row whose model `tune` makes; the same settings make it here."""

    def make(base: Any, head: tuple[str, ...]) -> Any:
        given = TuneSettings(model="base", output="out", train="rows", **settings(base.config))
        config = adapter_config(resolve(given, n_rows=1), base)
        config.freeze_head = bool(resolve(given, n_rows=1).freeze_head)
        return get_peft_model(base, config)

    return Method(title, make, count, 5e-3, grid, source, settings, head_lr)


METHODS: dict[str, Method] = {
    "full": Method(
        "full fine-tuning",
        everything,
        lambda s: s.n_backbone,
        5e-5,
        (2e-5, 5e-5, 1e-4),
        "Devlin et al., 2019, arXiv 1810.04805, appendix A.3",
    ),
    "head": Method(
        "head only", head_only, lambda s: 0, 1e-3, (3e-4, 1e-3, 3e-3), "no paper; the rate of our stage 1"
    ),
    "tfidf": Method(
        "TF-IDF + linear model",
        no_model,
        lambda s: 0,
        1.0,
        (0.3, 1.0, 3.0, 10.0),
        "scikit-learn; its C stands in place of a learning rate. The grid is ours",
        fit=tfidf,
    ),
    "bitfit": Method(
        "BitFit",
        biases,
        lambda s: s.n_layers * (7 * s.hidden + s.ffn) + s.outside_biases,
        1e-3,
        (3e-4, 1e-3, 3e-3),
        "Ben Zaken et al., 2022, arXiv 2106.10199; rate: README of benzakenelad/BitFit. Ours",
    ),
    "ln-tuning": Method(
        "LN-tuning",
        by_peft.ln_tuning,
        lambda s: 4 * s.n_layers * s.hidden + 2 * s.outside_norms,
        1e-3,
        (1e-3, 3e-3, 1e-2),
        "Qi et al., 2022, arXiv 2211.08682; PEFT's. The grid is ours",
        head_lr=_HEAD_LR,
    ),
    "attention-norm": Method(
        "attention norm only",
        attention_norms,
        lambda s: 2 * s.n_layers * s.hidden,
        1e-3,
        (1e-3, 3e-3, 1e-2),
        "the norm's part of Chen et al., 2023, arXiv 2407.11033; ours. The grid is that of LN-tuning",
        head_lr=_HEAD_LR,
    ),
    "ia3": Method(
        "IA3",
        by_peft.ia3,
        lambda s: s.n_layers * (2 * s.hidden + s.ffn),
        3e-3,
        (1e-3, 3e-3, 1e-2),
        "Liu et al., 2022, arXiv 2205.05638; PEFT's",
        head_lr=_HEAD_LR,
    ),
    "lora": Method(
        "LoRA r 8 (q, v)",
        by_peft.lora,
        lambda s: 4 * by_peft.LORA_RANK * s.n_layers * s.hidden,
        5e-4,
        (2e-4, 5e-4, 1e-3),
        "Hu et al., 2022, arXiv 2106.09685, table 9 (4e-4 on CoLA in microsoft/LoRA, examples/NLU); PEFT's",
    ),
    "vera": Method(
        "VeRA r 1024 (q, v)",
        by_peft.vera,
        lambda s: 2 * s.n_layers * (by_peft.VERA_RANK + s.hidden),
        1e-2,
        (3e-3, 1e-2, 3e-2),
        "Kopiczko et al., 2024, arXiv 2310.11454; PEFT's",
        head_lr=_HEAD_LR,
    ),
    "houlsby": Method(
        "Houlsby, width 64",
        houlsby,
        lambda s: s.n_layers * (4 * s.hidden * WIDTH + 2 * WIDTH + 6 * s.hidden),
        3e-4,
        (1e-4, 3e-4, 1e-3),
        "Houlsby et al., 2019, arXiv 1902.00751, section 3.1; ours",
    ),
    "red": _hadamard(
        "RED (FFN, one stage)",
        _given(sites=("ffn",), norm_modules=(), stages=1),
        lambda s: 2 * s.n_layers * s.hidden,
        _RED,
        grid=(1e-3, 5e-3, 1e-2),
        head_lr=_HEAD_LR,
    ),
    "hadamard": _hadamard("Hadamard", _given(preset="paper"), lambda s: 4 * s.n_layers * s.hidden),
    "hadamard-no-norm": _hadamard(
        "Hadamard without norm",
        _given(preset="paper", norm_modules=()),
        lambda s: 2 * s.n_layers * s.hidden,
    ),
    "hadamard-scale": _hadamard(
        "Hadamard, scale only",
        _given(preset="paper", norm_modules=(), train_shift=False),
        lambda s: s.n_layers * s.hidden,
    ),
    "hadamard-shift": _hadamard(
        "Hadamard, shift only",
        _given(preset="paper", norm_modules=(), train_scale=False),
        lambda s: s.n_layers * s.hidden,
    ),
    "hadamard-norm": _hadamard(
        "Hadamard, norm only",
        _given(preset="paper", train_scale=False, train_shift=False),
        lambda s: 2 * s.n_layers * s.hidden,
    ),
    "hadamard-scale-norm": _hadamard(
        "Hadamard, scale and norm",
        _given(preset="paper", train_shift=False),
        lambda s: 3 * s.n_layers * s.hidden,
    ),
    "hadamard-shift-norm": _hadamard(
        "Hadamard, shift and norm",
        _given(preset="paper", train_scale=False),
        lambda s: 3 * s.n_layers * s.hidden,
    ),
    "hadamard-both-norms": _hadamard(
        "Hadamard, both norms",
        lambda config: {"preset": "paper", "norm_modules": norms_behind(config, ["attention", "ffn"])},
        lambda s: 6 * s.n_layers * s.hidden,
    ),
    "hadamard-output-norm": _hadamard(
        "Hadamard, output norm",
        lambda config: {"preset": "paper", "norm_modules": norms_behind(config, ["ffn"])},
        lambda s: 4 * s.n_layers * s.hidden,
    ),
    "hadamard-input": _hadamard(
        "Hadamard before the projection",
        _given(preset="paper", position="input"),
        lambda s: 4 * s.n_layers * s.hidden,
    ),
    "hadamard-one-stage": _hadamard(
        "Hadamard, one stage",
        _given(preset="paper", stages=1),
        lambda s: 4 * s.n_layers * s.hidden,
        head_lr=_HEAD_LR,
    ),
    "hadamard-free-head": _hadamard(
        "Hadamard, head kept training",
        _given(preset="paper", freeze_head=False),
        lambda s: 4 * s.n_layers * s.hidden,
    ),
    "hadamard-two-thirds": _hadamard(
        "Hadamard, upper 2/3 of the layers",
        _upper_two_thirds,
        lambda s: 4 * two_thirds(s.n_layers) * s.hidden,
    ),
    "hadamard-wide": _hadamard("Hadamard, wide", _given(preset="wide"), lambda s: 8 * s.n_layers * s.hidden),
    "hadamard-wide-frozen-head": _hadamard(
        "Hadamard, wide, head frozen",
        _given(preset="wide", freeze_head=True),
        lambda s: 8 * s.n_layers * s.hidden,
    ),
}
"""Name in a spec to row."""


def is_fit(method: str) -> bool:
    """Whether a method draws nothing, so that it has one run; a method of another version does not count.

    Example:
        >>> is_fit("tfidf"), is_fit("full"), is_fit("of tomorrow")
        (True, False, False)
    """
    return method in METHODS and METHODS[method].fit is not None
