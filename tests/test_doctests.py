"""The examples in the docstrings are true."""

import doctest
import pkgutil
from importlib import import_module

import pytest
import torch

import hadamard_adapter

MODULES = [
    found.name
    for found in pkgutil.walk_packages(hadamard_adapter.__path__, "hadamard_adapter.")
    if not found.name.endswith("__main__")
]


NEED_AN_EXTRA = {"hadamard_adapter.serving.http.cluster": "ray"}
"""Module -> what it imports and test.sh does not install."""


@pytest.mark.parametrize("name", ["hadamard_adapter", *MODULES])
def test_examples_of_a_module_are_true(name: str) -> None:
    if name in NEED_AN_EXTRA:
        pytest.importorskip(NEED_AN_EXTRA[name])
    module = import_module(name)
    examples = doctest.DocTestFinder(exclude_empty=True).find(module, globs={**vars(module), "torch": torch})
    told: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    for example in examples:
        runner.run(example, out=told.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(told)
