#!/usr/bin/env bash
# Everything that checks the project, in the order in which it fails fastest. Needs Python 3.10 to 3.13 with pip.
#
#   bash test.sh          within 15 minutes on two cores, after the downloads
#   bash test.sh --all    also the replicas under Ray, vLLM's own clients (both are fetched), and the whole
#                         test suite on the oldest PEFT and transformers that we support
#
# HADAMARD_DOWNLOADS names another folder for the downloads than downloads/, HADAMARD_VENV one for the environment than
# .venv/; PYTHON is the interpreter to make that from (scripts/setup.sh).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

case "${1:-}" in
"" | --all) ;;
*)
    echo "test.sh: expected no option or --all, received '$1'" >&2
    exit 2
    ;;
esac

# One thread for each of the two test processes; tests never ask a hub.
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
export HADAMARD_DOWNLOADS="${HADAMARD_DOWNLOADS:-$PWD/downloads}"

step() {
    printf '\n== %s (%d s)\n' "$1" "$SECONDS"
}

step "Environment"
bash scripts/setup.sh test
bash scripts/fetch.sh
bin="${HADAMARD_VENV:-.venv}/bin"

step "Style: ruff"
"$bin/ruff" check .
"$bin/ruff" format --check .

step "Imports point down: import-linter"
"$bin/lint-imports"

step "Types: pyright"
"$bin/basedpyright" --warnings

step "Wheel: built, installed alone, started"
bash scripts/wheel_test.sh

step "Tests"
"$bin/python" -m pytest -n 2

step "PEFT's own tests, aimed at this method"
bash scripts/peft_tests.sh

if [ "${1:-}" = "--all" ]; then
    step "Replicas under Ray Serve"
    bash scripts/setup.sh test,ray
    "$bin/python" -m pytest tests/test_ray.py

    step "vLLM's own clients against the server"
    "$bin/python" scripts/vllm_clients.py

    step "Tests on the oldest PEFT and transformers"
    export HADAMARD_VENV="$PWD/.venv-oldest"
    HADAMARD_CONSTRAINTS=constraints-oldest.txt bash scripts/setup.sh test
    "$HADAMARD_VENV/bin/python" -m pytest -n 2
fi

step "All checks passed"
