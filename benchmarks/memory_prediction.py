"""How well the memory of a training is predicted: against published GPU runs, and the fast model against the traces.

The published runs are those of PEFT's method comparison (MetaMathQA; Llama-3.2-3B in bf16, batches of 4): a JSON list
of objects with `name`, `cfg` (the run's adapter_config.json; null for full fine-tuning) and `max` (the most that CUDA's
allocator had reserved, in bytes). Prints a table and quantiles, and writes a CSV and, if asked, a plot.

    python benchmarks/memory_prediction.py runs.json --csv benchmarks/results/memory_prediction.csv
    python benchmarks/memory_prediction.py runs.json --scan 640,672,704,736,768    # which length the runs peaked at

Without runs, it asks the fast model about random candidates of the default space and compares what it says with their
traces: first about some that only teach it, then about others, which it has never seen. What is said without a trace
is the fit's:

    python benchmarks/memory_prediction.py --shape minilm --taught 300 --candidates 60 --csv minilm.csv
"""

from __future__ import annotations

import argparse
import json
import statistics
import warnings
from pathlib import Path

from fast_memory import SHAPES, Asked, compare_model, shown, summarize_model
from published_memory import LENGTH, predict_run, summarize, write_csv, write_plot

from autopeft.candidates import Recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="?", help="JSON list of published runs")
    parser.add_argument("--length", type=int, default=LENGTH, help="tokens of the longest batch")
    parser.add_argument("--scan", default="", help="lengths to compare instead, separated by commas")
    parser.add_argument("--only", default="", help="only runs whose name holds this")
    parser.add_argument("--csv", type=Path, help="where to write the table")
    parser.add_argument("--plot", type=Path, help="where to write a plot (SVG)")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="llama-1b", help="without runs: a model")
    parser.add_argument("--batch-size", type=int, default=8, help="without runs: rows of a batch")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="without runs")
    parser.add_argument("--optimizer", default="adamw", help="without runs: a name of a recipe's optimiser")
    parser.add_argument("--taught", type=int, default=300, help="without runs: how many to ask for before")
    parser.add_argument("--candidates", type=int, default=60, help="without runs: how many others to compare")
    parser.add_argument("--methods", default="", help="without runs: only these methods, separated by commas")
    parser.add_argument("--bits", type=int, default=0, help="without runs: only this many; 0 for all")
    parser.add_argument("--seed", type=int, default=0, help="without runs: of the candidates")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    if options.runs is None:
        recipe = Recipe(
            1e-3,
            batch_size=options.batch_size,
            gradient_checkpointing=options.gradient_checkpointing,
            optimizer=options.optimizer,
        )
        asked = Asked(options.shape, recipe, options.seed, tuple(options.methods.split(",")), options.bits)
        answers = list(shown(compare_model(asked, options.taught, options.candidates), options.csv))
        print(summarize_model(answers))
        return
    runs = [run for run in json.loads(options.runs.read_text(encoding="utf-8")) if options.only in run["name"]]
    if options.scan:
        for length in map(int, options.scan.split(",")):
            rows = [predict_run(run, length) for run in runs]
            ratios = [row.ratio for row in rows if not row.error]
            print(f"{length} tokens: spread {statistics.pstdev(ratios):.4f}; {summarize(rows)}", flush=True)
        return
    rows = []
    for run in runs:
        rows.append(row := predict_run(run, options.length))
        told = row.error or f"{row.predicted / 2**30:6.2f} {row.measured / 2**30:6.2f} GiB  {row.ratio:.4f}"
        print(f"{row.name:55} {told}  {row.seconds:.1f} s", flush=True)
    print(summarize(rows))
    if options.csv:
        write_csv(rows, options.csv)
    if options.plot:
        write_plot(rows, options.plot)


if __name__ == "__main__":
    main()
