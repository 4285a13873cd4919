#!/usr/bin/env bash
# From nothing to a tuned classifier and a table that says what it is worth: environment, model, text, training,
# evaluation, prediction, merge. Needs Python 3.10 to 3.13 with pip; a few minutes on two cores, one or two of them training.
#
#   bash quickstart.sh
#
# Everything lands in .venv/ (or $HADAMARD_VENV), downloads/ and quickstart/ of this folder. A second run reuses all of
# it; remove quickstart/adapter to train again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

downloads="${HADAMARD_DOWNLOADS:-downloads}"
folder="quickstart"
bin="${HADAMARD_VENV:-.venv}/bin"

run() { # show a command as a user would type it, then run it
    printf '\n$ %s\n' "$*"
    "$bin/$1" "${@:2}"
}

echo "== Environment"
bash scripts/setup.sh
echo
echo "== Model and text"
bash scripts/fetch.sh "$downloads"
"$bin/python" examples/quickstart/data.py --downloads "$downloads" --output "$folder"
# From here on everything is local: no hub is asked.
export HF_HUB_OFFLINE=1

echo
echo "== Tune, evaluate, predict, merge"
# The upper four of six layers (what lies below is computed once, not in every epoch), a short first stage: the best
# on rows held out of train and dev, docs/log.md.
run hadamard tune --model "$folder/model" --train "$folder/train.csv" --dev "$folder/dev.csv" \
    --output "$folder/adapter" --seed 0 --layers 2-5 --epochs 3 --lr 0.01 --head-epochs 1 --head-batch-size 32
run hadamard eval --adapter "$folder/adapter" --data "$folder/test.csv" --json

cat >"$folder/sentences.csv" <<'EOF'
text
"A quiet film that stays with you for days."
"Two hours long and not one honest moment."
"I expected nothing, and it was a delight."
"The jokes are older than the actors."
EOF
run hadamard predict --adapter "$folder/adapter" --input "$folder/sentences.csv" --output -

rm -rf "$folder/merged"
before=$SECONDS
run hadamard merge --adapter "$folder/adapter" --output "$folder/merged"
merge_seconds=$((SECONDS - before))

echo
echo "== What it is worth: accuracy on $folder/test.csv, which no choice has seen"
"$bin/python" examples/quickstart/table.py --folder "$folder" --merge-seconds "$merge_seconds"

echo
echo "== Your own rows: first 'source $bin/activate', then 'hadamard tune --help'"
