#!/usr/bin/env bash
# PEFT's own tests, aimed at HadamardConfig; arguments go to scripts/peft_tests.py. HADAMARD_VENV: the environment, .venv
# where it is not set.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${HADAMARD_VENV:-.venv}/bin/python" scripts/peft_tests.py "$@"
