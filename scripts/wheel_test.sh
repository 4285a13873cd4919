#!/usr/bin/env bash
# Build the wheel, install it alone into a fresh environment and start it there, away from the clone.
#
# Its dependencies are lent by the test environment through a path file, which saves fetching PyTorch again; the
# editable install there does not come along, because path files in a lent folder are not read.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
lender="$(cd "${HADAMARD_VENV:-.venv}" && pwd)"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

"$lender/bin/python" -m build --no-isolation --outdir "$work/dist" . >"$work/build.log" 2>&1 || {
    cat "$work/build.log" >&2
    exit 1
}
"$lender/bin/python" -m venv --without-pip "$work/venv"
site="$(echo "$work"/venv/lib/python3*/site-packages)"
echo "$lender/lib/$(basename "$(dirname "$site")")/site-packages" >"$site/lent.pth"
"$lender/bin/python" -m pip --disable-pip-version-check --python "$work/venv/bin/python" \
    install --quiet --no-deps --no-index --force-reinstall "$work"/dist/*.whl

cd "$work"
"$work/venv/bin/python" - "$site" <<'EOF'
import importlib.metadata
import sys
from pathlib import Path

import hadamard_adapter

folder, site = Path(hadamard_adapter.__file__).parent, Path(sys.argv[1])
assert folder.is_relative_to(site), f"expected the package in {site}, imported {folder}"
assert (folder / "py.typed").is_file(), "py.typed is missing from the wheel"
files = [str(file) for file in importlib.metadata.files("hadamard-adapter") or []]
assert any(file.endswith("licenses/LICENSE") for file in files), f"no licence in {files}"
assert not [file for file in files if file.startswith(("tests", "examples", "docs"))], files
print(f"hadamard-adapter {importlib.metadata.version('hadamard-adapter')}: wheel imported from {folder.name}/")
EOF
"$work/venv/bin/hadamard" --version
"$work/venv/bin/hadamard" --help >/dev/null
