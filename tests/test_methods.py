"""The laws of the table of methods, over every row, on tiny random models of three families."""

import copy
from typing import Any

import numpy as np
import pytest
import torch

from adapter_help import logits
from hadamard_adapter.errors import DataError
from hadamard_adapter.methods import METHODS, head_of, shape_of, trained_counts
from hadamard_adapter.methods.tfidf import tfidf
from hadamard_adapter.tasks import Examples, Task
from hadamard_adapter.tasks.metrics import decided
from hadamard_adapter.tuning.training import parameter_groups
from models import randomize_parameters, tiny_inputs, tiny_model

FAMILIES = ("bert", "mpnet", "roberta")
CASES = [(name, family) for name, row in METHODS.items() if row.fit is None for family in FAMILIES]
LABELS = torch.tensor([0, 1, 2, 0])


def made(name: str, family: str) -> tuple[Any, Any, tuple[str, ...]]:
    """The base model before, the model that the method made of a copy, and the head's names."""
    base = tiny_model(family)
    head = head_of(base)
    torch.manual_seed(0)
    return base, METHODS[name].make(copy.deepcopy(base), head).eval(), head


@pytest.mark.parametrize(("name", "family"), CASES)
def test_a_method_starts_at_the_base_model(name: str, family: str) -> None:
    base, model, _ = made(name, family)
    inputs = tiny_inputs(family)
    torch.testing.assert_close(logits(model, inputs), logits(base, inputs), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("name", "family"), CASES)
def test_as_many_parameters_train_as_the_formula_says(name: str, family: str) -> None:
    base, model, head = made(name, family)
    n_trained, n_head = trained_counts(model, head)
    assert n_trained == METHODS[name].count(shape_of(base))
    size = sum(p.numel() for module in head for p in base.get_submodule(module).parameters())
    is_frozen = name in (
        *("hadamard", "hadamard-no-norm", "hadamard-scale", "hadamard-shift", "hadamard-both-norms"),
        *("hadamard-scale-norm", "hadamard-shift-norm", "hadamard-output-norm", "hadamard-input"),
        "hadamard-norm",
        *("hadamard-two-thirds", "hadamard-wide-frozen-head"),
    )
    assert n_head == (0 if is_frozen else size)


@pytest.mark.parametrize(("name", "family"), CASES)
def test_the_head_has_its_rate_and_the_method_its_own(name: str, family: str) -> None:
    _, model, head = made(name, family)
    rates = {"scale": 1.0, "shift": 3.0, "norm": 4.0, "head": 2.0}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    sizes, parts = dict.fromkeys(rates.values(), 0), dict[float, set[str]]()
    for group in parameter_groups(model, rates, head):
        sizes[group["lr"]] += sum(p.numel() for p in group["params"])
        own = {names[id(p)].partition(".hadamard_")[2] for p in group["params"]}
        parts[group["lr"]] = {name.partition(".")[0].partition("_")[0] for name in own}
    assert (sizes[1.0] + sizes[3.0] + sizes[4.0], sizes[2.0]) == trained_counts(model, head)
    assert parts.get(3.0, {"shift"}) == {"shift"} and parts.get(4.0, {"norm"}) == {"norm"}
    assert parts.get(1.0, set()) <= {"scale", ""}  # "": what other methods train, at the rate of scale


@pytest.mark.parametrize(("name", "family"), CASES)
def test_a_step_changes_what_trains_and_nothing_else(name: str, family: str) -> None:
    _, model, _ = made(name, family)
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    for parameter in trained.values():  # away from zeros, behind which nothing gets a gradient
        randomize_parameters(torch.nn.ParameterList([parameter]), std=0.05)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model(**tiny_inputs(family), labels=LABELS).loss.backward()
    assert not [key for key, p in trained.items() if p.grad is None or not p.grad.any()]
    torch.optim.SGD(trained.values(), lr=1.0).step()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed <= set(trained)
    assert not {key for key in set(trained) - changed if not _is_key_bias(key)}


@pytest.mark.parametrize("name", METHODS)
def test_a_grid_rises_and_holds_the_published_rate(name: str) -> None:
    row = METHODS[name]
    assert row.lr in row.grid and list(row.grid) == sorted(set(row.grid)) and len(row.grid) > 1
    assert row.title and row.source


FITTED = {
    "single": (Task("t", "single_label_classification", ("a", "b", "c"), ("accuracy",)), [0, 1, 0, 1]),
    "regression": (Task("t", "regression", (), ("pearson",)), [0.0, 1.0, 0.5, 1.0]),
    "multi": (
        Task("t", "multi_label_classification", ("a", "b", "c"), ("micro-f1",)),
        [[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [0.0, 1.0, 1.0]],
    ),
}


@pytest.mark.parametrize(("task", "labels"), FITTED.values(), ids=FITTED)
@pytest.mark.parametrize("pairs", [None, ["it is", "it is", "so", "so"]], ids=["texts", "pairs"])
def test_the_floor_learns_its_rows_whatever_the_problem(task: Task, labels: list[Any], pairs: Any) -> None:
    texts = ["good film", "bad film", "good play", "bad play"]
    found, n_fitted = tfidf(task, Examples(texts, pairs, labels), 1000.0)
    values = found(texts, pairs)
    assert values.shape == (4, task.n_outputs) and np.isfinite(values).all() and n_fitted > 4
    np.testing.assert_allclose(decided(task, values), np.asarray(labels), atol=0.01)


@pytest.mark.parametrize(
    ("texts", "labels", "message"), [(["a b", "c d"], [1, 1], "words"), (["?", "!"], [0, 1], "words")]
)
def test_the_floor_refuses_rows_that_teach_nothing(texts: list[str], labels: list[int], message: str) -> None:
    task = Task("t", "single_label_classification", ("a", "b"), ("accuracy",))
    with pytest.raises(DataError, match=message):
        tfidf(task, Examples(texts, None, labels), 1.0)


def test_titles_are_all_different() -> None:
    assert len({row.title for row in METHODS.values()}) == len(METHODS)


def _is_key_bias(name: str) -> bool:
    """Softmax does not change with the keys' bias, so its gradient is rounding."""
    return name.endswith((".key.bias", ".k.bias"))
