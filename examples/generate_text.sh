#!/usr/bin/env bash
# Which PEFT configuration for a small Llama that writes a sentence about a restaurant?
#   examples/generate_text.sh MODEL DATA [OUT]
# MODEL: folder or hub id of a causal language model. DATA: a folder with train, validation and test files that have
# the columns `source` and `target`, such as E2E (CC BY-SA 4.0, https://github.com/tuetschek/e2e-dataset).
# The loss is on the target only.
set -euo pipefail
model=$1
data=$2
out=${3:-autopeft-runs/e2e}
autopeft search --model "$model" --data "$data" --task causal-lm \
  --column prompt=source --column completion=target \
  --budget 5% --metric bits_per_byte --steps 150 --batch-size 8 --max-length 192 --eval-rows 100 \
  --trials "${TRIALS:-24}" --time "${TIME:-20min}" --out "$out"
