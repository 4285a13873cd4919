#!/usr/bin/env bash
# PEFT's own tests, aimed at HadamardConfig; arguments go to scripts/peft_tests.py. Set PYTHON for another interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-.venv/bin/python}" scripts/peft_tests.py "$@"
