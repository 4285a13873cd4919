#!/usr/bin/env bash
# PEFT's own tests, aimed at HadamardConfig; arguments go to scripts/peft_tests.py. PYTHON: that of an
# environment with this package (default: .venv/bin/python).
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-.venv/bin/python}" scripts/peft_tests.py "$@"
