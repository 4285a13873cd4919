"""A pytest plugin: PEFT's tables get our rows in place, and what ran is written to a file.

Two environment variables steer it. HADAMARD_PEFT_REPORT names the JSON file to write. HADAMARD_PEFT_COUNT,
where set, names a config class of PEFT's own: the suite then stays as it is, and its cases are counted.
"""

import json
import os
from collections import Counter
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from unittest import mock

import pytest

__all__ = ["pytest_collection_modifyitems", "pytest_collectstart", "pytest_runtest_logreport"]

METHOD = "HadamardConfig"

STAND_INS = {
    "test_mixed_adapter_batches": ("LoraConfig",),
    "test_generate_with_mixed_adapter_batches": ("LoraConfig",),
    "test_weighted_combination_of_adapters": ("IA3Config",),
}
"""PEFT's tests ask for a class before they mix or combine adapters: during these ours stands in for it."""

NOT_OURS = {"_skip_if_conv1d_not_supported", "_skip_if_not_conv1d_supported", "check_beft_config"}
"""Helpers of PEFT's tests that skip or retarget, for what other methods lack: Conv1D, absent biases."""

_reports: dict[str, dict] = {}


def counted_class() -> str:
    """Returns the name of the config class whose cases are selected or counted."""
    return os.environ.get("HADAMARD_PEFT_COUNT", METHOD)


def concerns(item: pytest.Item, class_name: str) -> bool:
    """Returns whether a test's parameters hold the config class, or the test's name says its method."""
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    if any(class_name in (getattr(value, "__name__", ""), type(value).__name__) for value in parameters):
        return True
    method = class_name.removesuffix("Config").lower()
    return method in item.name.split("[")[0].lower().split("_")


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Before a test file's functions are collected, writes our rows over PEFT's."""
    if isinstance(collector, pytest.Module) and counted_class() == METHOD:
        aim(collector.obj)


def aim(module) -> None:
    """Replaces the case tables of one test module in place."""
    from hadamard_peft import cases

    tables = {
        "TEST_CASES": cases.CUSTOM_CASES,
        "ALL_PEFT_CONFIG_CLASSES": [cases.HadamardConfig],
        "MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES": cases.ACTIVE_CASES,
        "MIXED_ADAPTER_TEST_CASES": cases.MIXED_CASES,
        "LAYER_INDEXING_CONFIG_CLASSES": list(cases.CONFIG_CLASS_CASES),
    }
    for name in ("ALL_CONFIGS", "TOKEN_CLS_CONFIGS", "QA_CONFIGS"):
        if hasattr(module, name):
            tables[name] = cases.task_cases(task_type=getattr(module, name)[0][1]["task_type"])
    for name, rows in tables.items():
        if hasattr(module, name):
            getattr(module, name)[:] = rows
    for function in decorated_tests(module):
        aim_decorators(function, cases, getattr(module, "ALL_CONFIG_CLASSES", None))
    for owner in (module, import_module("tests.testing_common")):
        for name in NOT_OURS & set(vars(owner)):
            setattr(owner, name, lambda *_: None)


def decorated_tests(module) -> list:
    """Returns the test functions of a module, those in its classes too."""
    owners = [module, *(value for value in vars(module).values() if isinstance(value, type))]
    found = [value for owner in owners for name, value in vars(owner).items() if name.startswith("test_")]
    return [value for value in found if hasattr(value, "pytestmark")]


def aim_decorators(function, cases, config_classes: tuple | None) -> None:
    """Replaces the tables that have no name to fill in place: in a decorator, and the tuple of classes."""
    for index, mark in enumerate(function.pytestmark):
        if mark.name != "parametrize":
            continue
        names, rows = mark.args
        if rows is config_classes:
            function.pytestmark[index] = pytest.mark.parametrize(names, cases.CONFIG_CLASS_CASES).mark
        elif function.__name__ in cases.INLINE_CASES and "config" in names:
            ours = cases.INLINE_CASES[function.__name__]
            function.pytestmark[index] = pytest.mark.parametrize(names, ours).mark


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keeps the tests of the config class, and names the modules where a model type has no row of ours."""
    chosen = [item for item in items if concerns(item, counted_class())]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
    items[:] = chosen
    if counted_class() == METHOD:
        name_targets(items)
    if config.option.collectonly:
        write_report(Counter(item.path.name for item in items))


def name_targets(items: list[pytest.Item]) -> None:
    """Gives the cases of a model type without a family row the target_modules that a user would give."""
    from hadamard_peft import cases

    for item in items:
        parameters = item.callspec.params
        targets = cases.NO_FAMILY_ROW.get(parameters.get("model_id"))
        if targets:
            kwargs = {key: value for key, value in parameters["config_kwargs"].items() if key != "sites"}
            parameters["config_kwargs"] = {**kwargs, "target_modules": targets}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item):
    """Lets our config class pass for the one that a test asks for, during that test."""
    with stand_ins(item):
        return (yield)


@contextmanager
def stand_ins(item: pytest.Item):
    """Patches the names of `STAND_INS` in the test's module and in testing_common."""
    if counted_class() != METHOD:
        yield
        return
    from hadamard_peft import cases

    common = import_module("tests.testing_common")
    with ExitStack() as stack:
        for name in STAND_INS.get(item.originalname, ()):
            for module in (item.module, common):
                if hasattr(module, name):
                    stack.enter_context(mock.patch.object(module, name, cases.HadamardConfig))
        yield


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remembers how each test ended; a test that fails in any of its phases failed."""
    entry = _reports.setdefault(report.nodeid, {"outcome": "passed", "reason": None})
    if report.outcome == "passed" or entry["outcome"] == "failed":
        return
    entry["outcome"] = report.outcome
    reason = getattr(report, "wasxfail", None)
    if reason is None and report.skipped:
        reason = report.longrepr[2].removeprefix("Skipped: ")
    entry["reason"] = reason


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Writes the outcomes, in the one process that has them all."""
    if not hasattr(session.config, "workerinput") and not session.config.option.collectonly:
        write_report(_reports)


def write_report(content: dict) -> None:
    """Writes the JSON file that HADAMARD_PEFT_REPORT names."""
    Path(os.environ["HADAMARD_PEFT_REPORT"]).write_text(json.dumps(content, indent=1), encoding="utf8")
