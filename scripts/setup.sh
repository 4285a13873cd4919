#!/usr/bin/env bash
# Make the virtual environment with exactly the versions of a constraints file, and this package in it.
#
#   bash scripts/setup.sh          what quickstart.sh needs
#   bash scripts/setup.sh test     what test.sh needs besides
#
# PYTHON                the interpreter to start from (default: python3)
# HADAMARD_VENV         the folder of the environment (default: .venv)
# HADAMARD_CONSTRAINTS  the pins (default: constraints.txt)
# HADAMARD_TORCH_INDEX  package index for PyTorch alone (default: decided below)
#
# An environment that fits is kept: a stamp in it holds the hash of what it was made from.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extra="${1:-}"
python="${PYTHON:-python3}"
venv="${HADAMARD_VENV:-.venv}"
constraints="${HADAMARD_CONSTRAINTS:-constraints.txt}"
torch="$(grep '^torch==' "$constraints")"
cpu_index="https://download.pytorch.org/whl/cpu"
export PIP_DISABLE_PIP_VERSION_CHECK=1

check_python() {
    if ! command -v "$python" >/dev/null; then
        echo "setup: expected Python 3.10 to 3.13, found no command '$python'; set PYTHON=/path/to/python3" >&2
        exit 2
    fi
    if ! "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))'; then
        echo "setup: expected Python 3.10 to 3.13, received $("$python" -V 2>&1) ('$python');" \
            "set PYTHON=/path/to/python3" >&2
        exit 2
    fi
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        echo "setup: '$python' cannot make virtual environments; on Debian: apt-get install python3-venv" >&2
        exit 2
    fi
}

# The place is part of the stamp: an environment does not survive being moved.
wanted_stamp() {
    "$python" - "$1" "$constraints" pyproject.toml <<'EOF'
import hashlib, os, sys
digest = hashlib.sha256(repr((sys.version_info[:3], os.getcwd(), sys.argv[1])).encode())
for name in sys.argv[2:]:
    with open(name, "rb") as file:
        digest.update(file.read())
print(digest.hexdigest())
EOF
}

is_current() {
    [ -f "$venv/.stamp-$1" ] && [ "$(cat "$venv/.stamp-$1")" = "$(wanted_stamp "$1")" ]
}

pip_install() {
    "$venv/bin/python" -m pip install --quiet --constraint "$constraints" "$@"
}

# On Linux, PyPI's build of PyTorch asks for several GB of GPU libraries. Asking pip what it would take is the
# one test that holds everywhere: a local wheel, a company's mirror, macOS and Windows all answer for themselves.
wants_gpu_libraries() {
    "$venv/bin/python" -m pip install --quiet --dry-run --no-deps --ignore-installed --report - "$torch" |
        "$venv/bin/python" -c '
import json, re, sys
needs = json.load(sys.stdin)["install"][0]["metadata"].get("requires_dist", [])
sys.exit(not any(re.match("nvidia|cuda", need) for need in needs))'
}

install_torch() {
    if "$venv/bin/python" -m pip freeze | grep -qE "^${torch}(\+|$)"; then
        return
    fi
    local index="${HADAMARD_TORCH_INDEX:-}"
    if [ -z "$index" ] && ! command -v nvidia-smi >/dev/null && wants_gpu_libraries; then
        echo "setup: no NVIDIA GPU found, so PyTorch is taken without its GPU libraries, from $cpu_index"
        index="$cpu_index"
    fi
    if [ -n "$index" ]; then
        if pip_install --no-deps --retries 1 --timeout 15 --index-url "$index" "$torch"; then
            return
        fi
        echo "setup: $index cannot be used; taking PyTorch from your usual index instead." >&2
        echo "setup: that fetches about 3 GB, most of it for GPUs. To avoid it: Ctrl-C, install a CPU wheel of" >&2
        echo "setup: $torch into $venv with '$venv/bin/pip install FILE', and start again." >&2
    fi
    pip_install "$torch"
}

main() {
    check_python
    if is_current "$extra" || { [ -z "$extra" ] && is_current test; }; then
        echo "setup: $venv is up to date"
        return
    fi
    echo "setup: making $venv with $("$python" -V), $torch (about 190 MB) and what transformers, PEFT and"
    echo "setup: scikit-learn need (about 150 MB${extra:+, for the tests 140 MB more}), from your pip's package index,"
    echo "setup: PyPI where nothing else is configured; exact versions: $constraints"
    # A first attempt that was cut off, a folder that was moved, or another Python: start from nothing.
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1 || [ "$(cat "$venv/.place" 2>/dev/null)" != "$PWD" ] ||
        [ "$("$venv/bin/python" -V)" != "$("$python" -V)" ]; then
        "$python" -m venv --clear "$venv"
        echo "$PWD" >"$venv/.place"
    fi
    # Before 23.2, pip fetches whole packages in a dry run.
    pip_install "pip>=23.2"
    install_torch
    pip_install hatchling editables
    pip_install --no-build-isolation --editable ".${extra:+[$extra]}"
    wanted_stamp "$extra" >"$venv/.stamp-$extra"
}

main
