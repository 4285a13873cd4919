"""Print exact versions of what quickstart.sh, test.sh and benchmarks install, for several Pythons at once.

Command, from the repository root (two minutes; fetches no package, only descriptions of them):

    python3 scripts/pin.py python3.10 python3.11 python3.12 python3.13 > constraints.txt
    python3 scripts/pin.py python3.11 --with transformers==5.18.0 --with peft==0.21.2 > constraints-oldest.txt

Each interpreter resolves the package with its extras `test`, `ray` and `onnx` in a fresh virtual environment
by pip's own dry run. Where the answers differ, the lines carry a marker. PyTorch's GPU libraries are left
out: PyTorch pins them itself, and scripts/setup.sh avoids them where there is no GPU.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

TORCH = "torch==2.13.0"
BUILD = ("hatchling", "editables")
GPU_LIBRARY = re.compile(r"^(nvidia|cuda|triton)(-|$)")
ROOT = Path(__file__).resolve().parent.parent


def resolve(python: str, pins: list[str]) -> tuple[str, dict[str, str]]:
    """The version of `python` as "3.11", and what its pip would install: version by package name.

    Raises:
        subprocess.CalledProcessError: pip finds no set of versions that fits.
    """
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([python, "-m", "venv", folder], check=True)
        pip = [f"{folder}/bin/python", "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--upgrade", "pip"], check=True, stdout=sys.stderr)
        wanted = [TORCH, *BUILD, *pins, f"{ROOT}[test,ray,onnx]"]
        report = Path(folder) / "report.json"
        dry_run = ["install", "--dry-run", "--ignore-installed", "--report", str(report)]
        subprocess.run([*pip, *dry_run, *wanted], check=True, stdout=sys.stderr)
        content = json.loads(report.read_text(encoding="utf-8"))
    version = ".".join(content["environment"]["python_full_version"].split(".")[:2])
    return version, _versions(content["install"])


def merge(resolved: dict[str, dict[str, str]]) -> list[str]:
    """One line for each package and version, with a marker where the Pythons do not agree.

    Args:
        resolved: for each Python ("3.10", "3.11", in rising order) the versions by package name.

    Example:
        merge({"3.10": {"numpy": "2.2"}, "3.11": {"numpy": "2.4"}})
        # ['numpy==2.2; python_version < "3.11"', 'numpy==2.4; python_version >= "3.11"']
    """
    lines: list[str] = []
    for name in sorted({name for versions in resolved.values() for name in versions}):
        groups: list[tuple[str, list[str]]] = []
        for python, versions in resolved.items():
            if name not in versions:
                continue
            if groups and groups[-1][0] == versions[name]:
                groups[-1][1].append(python)
            else:
                groups.append((versions[name], [python]))
        starts = [pythons[0] for _, pythons in groups]
        for index, (version, _) in enumerate(groups):
            lower = [f'python_version >= "{starts[index]}"'] if index else []
            upper = [f'python_version < "{starts[index + 1]}"'] if index + 1 < len(groups) else []
            marker = " and ".join(lower + upper)
            lines.append(f"{name}=={version}" + (f"; {marker}" if marker else ""))
    return lines


def _versions(installs: list[dict[str, dict[str, str]]]) -> dict[str, str]:
    found = ((entry["metadata"]["name"], entry["metadata"]["version"]) for entry in installs)
    versions = {re.sub(r"[-_.]+", "-", name).lower(): version.partition("+")[0] for name, version in found}
    return {
        name: version
        for name, version in versions.items()
        if name != "hadamard-adapter" and not GPU_LIBRARY.match(name)
    }


def main() -> None:
    """Resolve for each interpreter and print the merged lines."""
    parser = argparse.ArgumentParser(description="Print exact pins for the given interpreters.")
    parser.add_argument("pythons", nargs="+", help="interpreters, rising: python3.10 python3.11 ...")
    parser.add_argument("--with", dest="pins", action="append", default=[], help="a further requirement")
    arguments = parser.parse_args()
    resolved = dict(resolve(python, arguments.pins) for python in arguments.pythons)
    words = [*arguments.pythons, *(f"--with {pin}" for pin in arguments.pins)]
    print(f"# Made by: python3 scripts/pin.py {' '.join(Path(word).name for word in words)}")
    print("\n".join(merge(resolved)))


if __name__ == "__main__":
    main()
