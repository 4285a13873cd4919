"""Specs for a machine with a hub and a GPU: each runs here, through its own rows, on a tiny random model."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from bench_help import DEBERTA_V3, EXPERIMENTS, GLUE_HEADERS, MODELS, write_tsv
from hadamard_adapter.bench.execute import execute
from hadamard_adapter.bench.plan import cells_of
from hadamard_adapter.bench.results import Results
from hadamard_adapter.bench.spec import read_spec
from hadamard_adapter.methods import METHODS
from hadamard_adapter.tasks import GLUE
from tuning_help import tiny_folder

OF_THE_HUB = [path for path in EXPERIMENTS if not read_spec(path).models[0].startswith("downloads/")]


@pytest.fixture(scope="module")
def glue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All tasks in the official layout: 40 rows of train, 12 of dev, with words that the tokenizer knows."""
    folder = tmp_path_factory.mktemp("glue")
    for row in GLUE.values():
        names = GLUE_HEADERS[row.name].split("," if "," in GLUE_HEADERS[row.name] else " ")
        labels = row.label_names or ("0.0", "3.8", "5.0")
        for part, n_rows in (("train.tsv", 40), (row.dev[0], 12)):
            lines = [names]
            for index in range(n_rows):
                cells = {name: f"w{20 + index} w{30 + index % 9}" for name in names}
                cells[str(row.columns.label)] = labels[index % len(labels)]
                lines.append([cells[name] for name in names])
            write_tsv(folder / row.folder / part, lines)
    return folder


def test_the_specs_of_the_hub_are_six() -> None:
    assert {path.stem for path in OF_THE_HUB} == {
        "bert-base", "bert-large", "roberta-base", "roberta-large", "electra-base", "deberta-v3-base",
    }  # fmt: skip


@pytest.mark.parametrize("path", OF_THE_HUB, ids=lambda path: path.stem)
def test_each_task_of_a_spec_runs_with_one_of_its_methods(path: Path, glue: Path, tmp_path: Path) -> None:
    spec = read_spec(path)
    family = MODELS[Path(spec.models[0]).name]
    more: dict[str, Any] = DEBERTA_V3 if family == "deberta-v2" else {}
    if path.stem.endswith("large"):
        more = {**more, "num_hidden_layers": 3}
    model = str(tiny_folder(tmp_path / "model", family, **more))
    tasks = tuple(dataclasses.replace(task, head_epochs=1, max_length=16) for task in spec.tasks)
    cells = cells_of(dataclasses.replace(spec, models=(model,), data=str(glue), tasks=tasks))
    assert {task.name for task in tasks} == set(GLUE) - {"wnli"}
    results, first = Results(tmp_path / "results"), OF_THE_HUB.index(path)
    for number, task in enumerate(tasks):
        of_task = [cell for cell in cells if cell.task.name == task.name]
        cell = of_task[(first + 2 * number) % len(of_task)]
        run = cell.run("score", 1, lr=1e-3, seed=0)
        assert execute(run, results)
        (record,) = (r for r in results.records().values() if r["run"]["task"]["name"] == task.name)
        assert record["status"] == "done", record.get("error")
        assert len(record["predictions"].split()) == 12 and METHODS[cell.method].title == record["title"]
