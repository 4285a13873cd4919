"""Runs PEFT's own tests on HadamardConfig, and fails where ours are fewer, fail, or skip for a new reason.

PEFT's source distribution carries its tests. This script fetches that of the installed version, unpacks the
tests into a temporary folder, builds tiny random models under the names of the hub's, counts the cases that
PEFT runs for IA3 in the untouched suite, and then runs ours (tests_peft/hadamard_peft). The suite's files
stay as they are; all it gets is an empty `tests/__init__.py`.

    python scripts/peft_tests.py [--downloads DIR] [--keep DIR] [--workers N] [pytest arguments]

Its requirements beyond the package's: scripts/peft_requirements.txt.
"""

import argparse
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HARNESS = ROOT / "tests_peft"
YARDSTICK = "IA3Config"
FILES = (
    "test_custom_models.py",
    "test_feature_extraction_models.py",
    "test_seq_classifier.py",
    "test_token_classification_qa.py",
    "test_decoder_models.py",
    "test_encoder_decoder_models.py",
    "test_config.py",
    "test_low_level_api.py",
)
MUST_PASS = (
    "test_mixed_adapter_batches",
    "test_generate_with_mixed_adapter_batches",
    "test_mixed_adapter_batches_mlp",
    "test_mixed_adapter_batches_multiple_modules_to_save",
    "test_weighted_combination_of_adapters",
)
"""Tests that skip for most methods: at least one case of each has to run and pass for ours."""


def main() -> int:
    """Fetches, counts, runs and judges; returns the exit code."""
    options, pytest_arguments = parse_arguments()
    version = importlib.metadata.version("peft")
    sdist = fetch_sdist(version, Path(options.downloads))
    with tempfile.TemporaryDirectory(prefix="peft-tests-") as temporary:
        folder = Path(options.keep or temporary).resolve()
        unpack_tests(sdist, folder / "suite")
        build_models(folder / "hub")
        counting = {"HADAMARD_PEFT_COUNT": YARDSTICK}
        theirs = run_pytest(folder, "theirs.json", ["--collect-only", "-qq"], counting)
        started = time.monotonic()
        workers = ["-n", str(options.workers)] if options.workers > 1 else []
        ours = run_pytest(folder, "ours.json", ["-q", *workers, *pytest_arguments], {})
        seconds = time.monotonic() - started
    problems = judge(theirs, ours, complete=not pytest_arguments)
    print(f"PEFT {version}: {len(ours)} cases of HadamardConfig in {seconds:.0f} s, {len(problems)} problems")
    for problem in problems:
        print(f"PROBLEM: {problem}")
    return 1 if problems else 0


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    """Returns our options, and what is for pytest."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    downloads = os.environ.get("HADAMARD_DOWNLOADS", str(ROOT / "downloads"))
    parser.add_argument("--downloads", default=downloads, help="folder of the source distribution")
    parser.add_argument("--keep", help="an empty folder to work in, kept afterwards")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="pytest processes")
    return parser.parse_known_args()


def fetch_sdist(version: str, downloads: Path) -> Path:
    """Returns the path of PEFT's source distribution, downloaded if it is not there yet."""
    path = downloads / f"peft-{version}.tar.gz"
    if not path.exists():
        print(f"Fetching {path.name} (1 MB, with PEFT's own tests) from PyPI into {downloads}", flush=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "peft"]
        subprocess.run([*command, "--dest", str(downloads), f"peft=={version}"], check=True)
    return path


def unpack_tests(sdist: Path, folder: Path) -> None:
    """Unpacks the Python files of `tests/` into `folder`/tests and makes them a package."""
    with tarfile.open(sdist) as archive:
        for member in archive.getmembers():
            parts = Path(member.name).parts
            if len(parts) == 3 and parts[1] == "tests" and member.name.endswith(".py"):
                target = folder / "tests" / parts[2]
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.extractfile(member) as source, target.open("wb") as out:
                    shutil.copyfileobj(source, out)
    (folder / "tests" / "__init__.py").touch()
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider\n", encoding="utf8")


def build_models(folder: Path) -> None:
    """Writes the tiny models, in a process of its own that has the harness on its path."""
    command = [sys.executable, "-m", "hadamard_peft.models", str(folder)]
    subprocess.run(command, check=True, env=environment({}))


def environment(extra: dict[str, str]) -> dict[str, str]:
    """Returns the variables of a child process: the harness on the path, no hub, one thread per process."""
    path = os.pathsep.join(part for part in (str(HARNESS), os.environ.get("PYTHONPATH")) if part)
    ours = {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **ours, **extra}


def run_pytest(folder: Path, report: str, arguments: list[str], extra: dict[str, str]) -> dict:
    """Runs pytest in the folder of the models and returns what the plugin wrote."""
    suite, path = folder / "suite", folder / report
    command = [sys.executable, "-m", "pytest", "-p", "hadamard_peft.plugin", "--rootdir", str(suite)]
    command += ["-c", str(suite / "pytest.ini"), "-W", "ignore", "--tb=short", *arguments]
    command += [str(suite / "tests" / name) for name in FILES]
    variables = environment({**extra, "HADAMARD_PEFT_REPORT": str(path)})
    quiet = subprocess.DEVNULL if "--collect-only" in arguments else None
    code = subprocess.run(command, cwd=folder / "hub", env=variables, stdout=quiet).returncode
    if code > 1 or not path.exists():
        raise SystemExit(f"pytest ended with exit code {code}; see what it says by\n  {' '.join(command)}")
    return json.loads(path.read_text(encoding="utf8"))


def judge(theirs: dict[str, int], ours: dict[str, dict], complete: bool) -> list[str]:
    """Prints the counts and returns what is wrong; whole-suite checks only where the suite ran `complete`."""
    allowed = read_allowed(HARNESS / "allowed_skips.txt")
    skips = Counter(entry["reason"] for entry in ours.values() if entry["outcome"] == "skipped")
    problems = [f"{node} failed" for node, entry in ours.items() if entry["outcome"] == "failed"]
    problems += [
        f"{n} skipped, not in allowed_skips.txt: {why}" for why, n in skips.items() if why not in allowed
    ]
    problems += count_problems(theirs, ours) if complete else []
    print_counts(theirs, ours)
    print("skipped, by reason:")
    for reason, count in skips.most_common():
        print(f"{count:>6}  {reason}")
    return problems


def count_problems(theirs: dict[str, int], ours: dict[str, dict]) -> list[str]:
    """Returns the files with fewer cases than the yardstick, and the tests of `MUST_PASS` that did not."""
    counts = Counter(file_of(node) for node in ours)
    passed = {node.split("::")[-1].split("[")[0] for node, e in ours.items() if e["outcome"] == "passed"}
    few = [name for name in FILES if counts[name] < theirs.get(name, 0) or not theirs.get(name)]
    return [f"{name}: {counts[name]} cases of ours, {theirs.get(name)} of {YARDSTICK}" for name in few] + [
        f"{test}: no case passed" for test in MUST_PASS if test not in passed
    ]


def print_counts(theirs: dict[str, int], ours: dict[str, dict]) -> None:
    """Prints a row for each file: the cases of the yardstick, ours, and how ours ended."""
    ends = ("passed", "skipped", "failed")
    print(f"{'file':<36}{'IA3':>8}{'ours':>8}" + "".join(f"{end:>8}" for end in ends))
    rows = [
        (name, Counter(e["outcome"] for node, e in ours.items() if file_of(node) == name)) for name in FILES
    ]
    rows.append(("all", sum((outcomes for _, outcomes in rows), Counter())))
    for name, outcomes in rows:
        wanted = theirs.get(name, 0) if name != "all" else sum(theirs.values())
        numbers = (wanted, sum(outcomes.values()), *(outcomes[end] for end in ends))
        print(f"{name:<36}" + "".join(f"{number:>8}" for number in numbers))


def file_of(node: str) -> str:
    """Returns the file's name in a test's id."""
    return Path(node.split("::")[0]).name


def read_allowed(path: Path) -> list[str]:
    """Returns the reasons of a file with one a line; lines that begin with # are comments."""
    lines = path.read_text(encoding="utf8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


if __name__ == "__main__":
    sys.exit(main())
