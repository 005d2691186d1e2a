#!/usr/bin/env bash
# Which PEFT configuration for a T5 that summarises, translates or otherwise turns a text into another?
#   examples/rewrite_text.sh MODEL DATA [OUT]
# MODEL: folder or hub id of an encoder-decoder, such as google/flan-t5-small or facebook/bart-base. DATA: a folder with
# train, validation and test files that have the columns `source` and `target`. What a checkpoint expects before a text,
# such as "summarize: ", belongs in `source`.
# The loss decides which configuration is best; with METRIC=rouge_l (or chrf, bleu, exact_match) the texts do that the
# model generates for the first 50 rows: nearer to the use, but slower and noisier.
set -euo pipefail
model=$1
data=$2
out=${3:-autopeft-runs/rewrite}
autopeft search --model "$model" --data "$data" --task seq2seq-lm \
  --column prompt=source --column completion=target \
  --budget 1% --metric "${METRIC:-loss}" --generate-rows 50 --steps 150 --batch-size 8 --max-length 256 \
  --eval-rows 200 --trials "${TRIALS:-24}" --time "${TIME:-30min}" --out "$out"
