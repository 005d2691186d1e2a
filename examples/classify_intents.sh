#!/usr/bin/env bash
# Which PEFT configuration for classifying short texts?
#   examples/classify_intents.sh DATA [OUT]
# DATA: a folder with train, validation and test files that have the columns `text` and `label`, such as Banking77
# (CC BY 4.0, https://github.com/PolyAI-LDN/task-specific-datasets).
set -euo pipefail
data=$1
out=${2:-autopeft-runs/intents}
model=$(python -c 'from autopeft.trial.demo import demo_model; print(demo_model())')  # or any BERT-like folder or hub id
autopeft search --model "$model" --data "$data" --task text-classification \
  --column text=text --column label=label \
  --budget 1% --metric accuracy --steps 120 --batch-size 16 --max-length 32 --eval-rows 500 \
  --trials "${TRIALS:-24}" --time "${TIME:-20min}" --out "$out"
