"""The main job on the real MiniLM: tune, survive a kill, beat stage 1, predict after the merge as before."""

import csv
import multiprocessing
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples" / "quickstart"))

import data as quickstart
from hadamard_adapter.files import read_json, write_json
from hadamard_adapter.tuning import TuneSettings, evaluate, load, merge, resume, tune
from tuning_help import adapter_sha256, silent, tiny_folder, tiny_tune, write_rows

OPENINGS = ("I think that", "My friends say", "After two hours", "In the end", "Frankly,", "To my surprise")
SUBJECTS = ("the film", "this meal", "the hotel", "the new phone", "the concert", "her last book")
GOOD = ("was a joy", "is worth every minute", "exceeded my hopes", "made me smile", "deserves praise")
BAD = ("was a waste", "is not worth a minute", "dashed my hopes", "made me yawn", "deserves no praise")


def write_opinions(path: Path, n_rows: int, seed: int) -> Path:
    chance = random.Random(seed)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for index in range(n_rows):
            said = chance.choice(GOOD if index % 2 else BAD)
            writer.writerow(
                [f"{chance.choice(OPENINGS)} {chance.choice(SUBJECTS)} {said}.", ("bad", "good")[index % 2]]
            )
    return path


def tune_minilm(minilm: Path, place: Path, output: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    settings = TuneSettings(
        str(minilm), str(output), train=str(place / "train.csv"), dev=str(place / "dev.csv"),
        head_epochs=1, epochs=3, batch_size=16, device="cpu",
    )  # fmt: skip
    return tune(settings, say=silent).metrics


def test_minilm_survives_a_kill_beats_its_own_stage_1_and_predicts_after_the_merge_as_before(
    minilm: Path, tmp_path: Path
) -> None:
    write_opinions(tmp_path / "train.csv", 160, seed=0)
    write_opinions(tmp_path / "dev.csv", 80, seed=1)
    metrics = tune_minilm(minilm, tmp_path, tmp_path / "whole")
    assert metrics["dev"]["accuracy"] > metrics["stage1_dev"]["accuracy"]
    assert metrics["adapter_parameters"] == 18_432

    process = multiprocessing.get_context("spawn").Process(
        target=tune_minilm, args=(minilm, tmp_path, tmp_path / "killed")
    )
    process.start()
    sealed = resume.partial_of(tmp_path / "killed") / "head.done"
    while process.is_alive() and not sealed.exists():
        process.join(0.05)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL and not (tmp_path / "killed").exists()
    tune_minilm(minilm, tmp_path, tmp_path / "killed")
    assert adapter_sha256(tmp_path / "killed") == adapter_sha256(tmp_path / "whole")

    assert merge(tmp_path / "whole", tmp_path / "plain").max_logit_difference < 1e-5
    texts = [row.split(",")[0] for row in (tmp_path / "dev.csv").read_text().splitlines()[1:]][:16]
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain").eval()
    batch = AutoTokenizer.from_pretrained(tmp_path / "plain")(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        found = plain(**batch).logits.numpy()
    assert np.abs(found - load(tmp_path / "whole", device="cpu").logits(texts)).max() < 1e-5


def test_cached_features_and_layers_end_at_the_scores_of_the_whole_model_on_real_ratings(
    minilm: Path, tmp_path: Path
) -> None:
    rated = quickstart.read_ratings(next(minilm.parent.glob(quickstart.TEXT_SDIST)), "movieReviewSnippets")
    for name, rows in (("train", rated[:320]), ("dev", rated[320:520])):
        with (tmp_path / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
    scores = list[list[float]]()
    for cache_gb in (4.0, 0.0):
        said = list[str]()
        settings = TuneSettings(
            str(minilm), str(tmp_path / f"{cache_gb}"), train=str(tmp_path / "train.csv"),
            dev=str(tmp_path / "dev.csv"), layers=(5,), head_epochs=2, epochs=1, cache_gb=cache_gb,
            device="cpu", dtype="float32",
        )  # fmt: skip
        curve = tune(settings, say=said.append).metrics["curve"]
        assert sum("is computed once" in line for line in said) == (2 if cache_gb else 0)
        scores.append([epoch["scores"]["pearson"] for epoch in curve])
    assert len(scores[0]) == 3 and scores[0][0] < scores[0][-1]
    assert np.abs(np.subtract(*scores)).max() < 1e-4


@pytest.mark.parametrize("preset", ["paper", "wide"])
def test_the_card_of_a_result_runs(preset: Any, minilm: Path, tmp_path: Path, monkeypatch: Any) -> None:
    write_opinions(tmp_path / "train.csv", 24, seed=0)
    settings = TuneSettings(
        str(minilm), str(tmp_path / "out"), train=str(tmp_path / "train.csv"), preset=preset, stages=1,
        epochs=1, device="cpu",
    )  # fmt: skip
    tune(settings, say=silent)
    monkeypatch.chdir(tmp_path / "out")
    blocks = (tmp_path / "out" / "README.md").read_text().split("```python\n")[1:]
    assert len(blocks) == 2
    for block in blocks:
        exec(block.split("```")[0], {})


def test_two_processes_are_one_of_twice_the_batch_and_only_one_publishes(tmp_path: Path) -> None:
    tiny_folder(tmp_path / "model")
    train, dev = write_rows(tmp_path / "train.csv", 48), write_rows(tmp_path / "dev.csv", 32, seed=1)
    tiny_tune(tmp_path / "model", tmp_path / "one", train, dev=str(dev), batch_size=8)
    run_two(tmp_path, "")
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=0, msg=name)
    assert not resume.partial_of(tmp_path / "two").exists()
    # Killed just before its publication: a second process that looks late must not train again.
    key = read_json(tmp_path / "two" / "run.json")["key"]
    partial = resume.partial_of(tmp_path / "two")
    partial.mkdir()
    (tmp_path / "two").rename(partial / resume.FINAL)
    write_json(partial / "settings.json", key)
    run_two(tmp_path, LATE)
    assert (tmp_path / "two" / "adapter_model.safetensors").exists() and not partial.exists()


@pytest.mark.parametrize(
    ("accumulated", "steps", "more"),
    [(1, [6, 12], ""), (2, [3, 6], ""), (1, [6, 12], ", group_by_length=False")],
)
def test_two_processes_with_a_rest_step_equally_often_and_score_each_dev_row_once(
    tmp_path: Path, accumulated: int, steps: list[int], more: str
) -> None:
    tiny_folder(tmp_path / "model")
    write_rows(tmp_path / "train.csv", 45)
    dev = write_rows(tmp_path / "dev.csv", 31, seed=1)
    run_two(tmp_path, COUNTED, f", grad_accumulation={accumulated}{more}")
    metrics = read_json(tmp_path / "two" / "metrics.json")
    last = [entry for entry in metrics["curve"] if entry["stage"] == "adapter"]
    assert [entry["step"] for entry in last] == steps  # 45 rows in steps of 8: five whole ones and a rest
    n_steps = [(tmp_path / f"steps-{rank}").read_text().split() for rank in range(2)]
    assert n_steps[0] == n_steps[1] and n_steps[0][-1] == str(steps[-1]), "each process, in both stages"
    assert evaluate(tmp_path / "two", str(dev), device="cpu").scores == pytest.approx(
        metrics["dev"], abs=1e-6
    )


COUNTED = """
import os
from hadamard_adapter.tuning import parts, training
parts.OVERHEAD_TOKENS = 2  # unlike numbers of parts
begin = training.StageTrainer.train
def counted(self, *arguments, **more):
    ended = begin(self, *arguments, **more)
    with open(place / f"steps-{os.environ['RANK']}", "a") as file:
        print(self.state.global_step, file=file)
    return ended
training.StageTrainer.train = counted
"""
LATE = """
import os, time
from hadamard_adapter.tuning import recipe
run = recipe._run
def late(*arguments):
    if os.environ["RANK"] == "1":
        time.sleep(2)
    run(*arguments)
def never(*arguments):
    raise AssertionError("trains again")
recipe._run, recipe.set_up = late, never
"""


def run_two(place: Path, first: str, more: str = "") -> None:
    """A tuning run of two processes into `two`, with more settings; each runs the code `first` before."""
    script = f"""
from pathlib import Path
from tuning_help import tiny_tune
place = Path({str(place)!r})
train, dev = place / "train.csv", str(place / "dev.csv")
{first}
result = tiny_tune(place / "model", place / "two", train, dev=dev, batch_size=4{more})
assert result.metrics["dev"]
"""
    (place / "script.py").write_text(script)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    two = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, "-m", *two, "script.py"]
    subprocess.run(command, cwd=place, env=environment, check=True, timeout=300)
