"""The same 24 LoRA trainings by four ways: how many an hour, at what CPU time, with which losses.

    naive   Ray Tune + OptunaSearch + Hugging Face Trainer, as their documentation shows: the model is loaded per trial
    reuse   the same with `reuse_actors=True`: the process stays, and with it the imports
    ray     autopeft on Ray Tune, one worker
    local   autopeft in one process

Every way trains the same configurations (given to OptunaSearch as `points_to_evaluate`, to autopeft as the space's
`start`) on the same tokens in the same order, with fused AdamW, the same schedule and the same initial adapter, so the
losses on the held-out rows must agree; autopeft also counts memory, checks the base, saves adapters and writes its
report. Each way is a process tree of its own, held on one core and one thread; its CPU seconds are those of every
process in it, Ray's own among them. "per trial" is what a trial adds once the first is done; the whole has all the
starting in it. On a shared machine believe the CPU seconds, not the wall.

    python benchmarks/trials_per_hour.py --models llama25m minilm stories260k --steps 30
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from results import write_rows

SEED = 0
CUSTOMARY_RATE = 5e-4  # of LoRA in autopeft: a space gives multiples of it
RANKS = (2, 4, 8, 16, 32)
TARGETS: dict[str, tuple[str, ...]] = {
    "qv": ("query", "value"),
    "attention": ("query", "key", "value", "output"),
    "all": ("query", "key", "value", "output", "gate", "up", "down"),
}
_ROW_CHARACTERS = 480
_SAMPLE_SECONDS = 0.2
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True, slots=True)
class Subject:
    """A model with its data.

    Attributes:
        make: Writes the model into a folder; gives a reason if it cannot be had.
        batch_size, max_length, eval_rows: As in a SearchRequest; rows are cut so that none of a language model's is
            shorter, for Trainer averages losses over batches, not over tokens.
    """

    make: Callable[[Path], str]
    task: str
    batch_size: int
    max_length: int
    eval_rows: int


# --- what is trained -------------------------------------------------------------------------------------------------


def docstrings() -> dict[str, dict[str, list[str]]]:
    """Give autopeft's embedded data: split -> text, label."""
    from autopeft.trial.demo import read_docstrings

    return {name: split.to_dict() for name, split in read_docstrings().splits.items()}


def make_llama(folder: Path) -> str:
    """Write a Llama of 23.4M random weights, and a tokenizer trained on the docstrings."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=12_000, special_tokens=["<pad>", "<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(docstrings()["train"]["text"], trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=12_000, hidden_size=384, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=6,
        num_key_value_heads=6, max_position_embeddings=256, tie_word_embeddings=False, pad_token_id=0, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return ""


def make_minilm(folder: Path) -> str:
    """Copy the embedded MiniLM with its dropout off: its random stream would differ between the ways."""
    from autopeft.trial.demo import demo_model

    shutil.copytree(demo_model(), folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return ""


def make_stories(folder: Path) -> str:
    """Copy stories260K, a Llama trained on children's stories, where the checkout has it."""
    source = Path(__file__).parents[2] / "shared" / "data" / "stories260k-llama-hf"
    if not source.is_dir():
        return "stories260K is not here: ../shared/data/stories260k-llama-hf"
    shutil.copytree(source, folder, dirs_exist_ok=True)
    return ""


SUBJECTS = {
    "llama25m": Subject(make_llama, "causal-lm", batch_size=8, max_length=64, eval_rows=64),
    "minilm": Subject(make_minilm, "text-classification", batch_size=16, max_length=32, eval_rows=320),
    "stories260k": Subject(make_stories, "causal-lm", batch_size=8, max_length=64, eval_rows=64),
}


def write_data(subject: Subject, folder: Path) -> None:
    """Write the docstrings as the subject's data; for a language model several in a row, so that all rows are long."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, split in docstrings().items():
        rows: list[dict[str, str]]
        if subject.task == "text-classification":
            rows = [{"text": t, "label": label} for t, label in zip(split["text"], split["label"], strict=True)]
        else:
            rows = [{"text": text} for text in _long_texts(split["text"])]
        random.Random(SEED).shuffle(rows)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _long_texts(texts: Sequence[str]) -> Iterator[str]:
    """Join texts until they surely fill a row; what is left at the end is dropped."""
    joined = ""
    for text in texts:
        joined += text + "\n"
        if len(joined) >= _ROW_CHARACTERS:
            yield joined
            joined = ""


def configurations(count: int) -> list[dict[str, Any]]:
    """Draw the configurations: rank, targets, learning rate; all different."""
    draw, found = random.Random(SEED), []
    for _ in range(count):
        rate = CUSTOMARY_RATE * round(10 ** draw.uniform(-0.2, 1.3), 3)
        found.append({"r": draw.choice(RANKS), "targets": draw.choice(list(TARGETS)), "lr": rate})
    return found


def space(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Give autopeft's form of the configurations: a space that begins with them."""
    return {
        "parameters": {
            "method": {"choices": ["lora"]},
            "lr_multiple": {"low": 0.1, "high": 30, "log": True, "default": 1},
            "lora.rank": {"ordinal": list(RANKS), "default": 8},
            "lora.share": {"ordinal": [0, 1], "default": 1, "per": "kinds"},
        },
        "start": [
            {
                "method": "lora",
                "lora.rank": c["r"],
                "lora.share": dict.fromkeys(TARGETS[c["targets"]], 1),
                "lr_multiple": c["lr"] / CUSTOMARY_RATE,
            }
            for c in configs
        ],
    }


def request_fields(subject: Subject, work: Path, *, steps: int, trials: int) -> dict[str, Any]:
    """Give the fields of autopeft's request."""
    return {
        "model": str(work / "model"), "data": str(work / "data"), "task": subject.task, "budget": "none",
        "trials": trials, "steps": steps, "batch_size": subject.batch_size, "max_length": subject.max_length,
        "eval_rows": subject.eval_rows, "seed": SEED,
    }  # fmt: skip


def prepare(subject: Subject, work: Path, *, steps: int, trials: int) -> str:
    """Write model, data and, for the peer, the tokens in the order in which autopeft reads them."""
    if reason := subject.make(work / "model"):
        return reason
    import datasets

    from autopeft.assembly import assemble
    from autopeft.records import Recipe
    from autopeft.request import make_request
    from autopeft.trial.batches import train_parts

    write_data(subject, work / "data")
    configs = configurations(trials)
    request = make_request(request_fields(subject, work, steps=steps, trials=trials))
    assembly = assemble(request, space=space(configs))
    data, anatomy = assembly.data, assembly.problem.anatomy
    assert data is not None
    assert anatomy is not None
    rows: list[dict[str, Any]] = []
    recipe = Recipe(learning_rate=CUSTOMARY_RATE, batch_size=subject.batch_size)
    for step in range(steps):
        (batch,) = train_parts(data, step, recipe=recipe, seed=SEED)
        for i, kept in enumerate(batch["attention_mask"].bool()):
            rows.append({name: _row(tensor[i], kept) for name, tensor in batch.items()})
    datasets.Dataset.from_list(rows).save_to_disk(work / "tokens" / "train")
    held_out = data.validation.drop_columns([c for c in ("row", "answer_bytes") if c in data.validation.column_names])
    if "label" in held_out.column_names:
        held_out = held_out.rename_columns(["labels" if c == "label" else c for c in held_out.column_names])
    else:
        lengths = {len(row["input_ids"]) for row in [*rows, *held_out.select(["input_ids"]).to_pylist()]}
        assert lengths == {subject.max_length}, f"rows of other lengths: {lengths}"
    datasets.Dataset(held_out).save_to_disk(work / "tokens" / "eval")
    setup = {
        "steps": steps,
        "configs": configs,
        "targets": {
            name: [linear.name for linear in anatomy.linears if linear.kind in kinds] for name, kinds in TARGETS.items()
        },
        "n_labels": len(data.label_names),
    }
    (work / "setup.json").write_text(json.dumps(setup))
    return ""


def _row(tensor: Any, kept: Any) -> Any:
    return tensor[kept].tolist() if tensor.dim() else int(tensor)


# --- the peer: what the documentation of Ray Tune, PEFT and Trainer shows --------------------------------------------


def train_documented(config: dict[str, Any]) -> None:
    """One trial of the peer: load, adapt, train, evaluate, report."""
    import torch
    from datasets import load_from_disk
    from peft import LoraConfig, TaskType, get_peft_model
    from ray import tune
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        Trainer,
        TrainingArguments,
        default_data_collator,
        set_seed,
    )

    torch.set_num_threads(1)
    work = Path(config["work"])
    subject, setup = SUBJECTS[config["model"]], json.loads((work / "setup.json").read_text())
    classify = subject.task == "text-classification"
    set_seed(SEED)
    if classify:
        model = AutoModelForSequenceClassification.from_pretrained(
            work / "model", num_labels=setup["n_labels"], dtype=torch.float32
        )
    else:
        model = AutoModelForCausalLM.from_pretrained(work / "model", dtype=torch.float32)
    set_seed(SEED)
    lora = LoraConfig(
        r=config["r"],
        lora_alpha=2 * config["r"],
        target_modules=setup["targets"][config["targets"]],
        task_type=TaskType.SEQ_CLS if classify else TaskType.CAUSAL_LM,
    )
    model = get_peft_model(model, lora)
    trained = [p for p in model.parameters() if p.requires_grad]
    # Pinned: the default kernel, schedule and order would train something else than autopeft.
    optimizer = torch.optim.AdamW(trained, lr=config["lr"], weight_decay=0.0, fused=True)
    steps = setup["steps"]
    warm = max(1, math.ceil(0.06 * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (steps - step) / max(1, steps - warm))
    )
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir="out", per_device_train_batch_size=subject.batch_size, per_device_eval_batch_size=64,
            max_steps=steps, train_sampling_strategy="sequential", seed=SEED, use_cpu=True, report_to="none",
            save_strategy="no", logging_strategy="no", disable_tqdm=True,
        ),
        train_dataset=load_from_disk(str(work / "tokens" / "train")),
        eval_dataset=load_from_disk(str(work / "tokens" / "eval")),
        processing_class=AutoTokenizer.from_pretrained(work / "model") if classify else None,
        data_collator=None if classify else default_data_collator,
        optimizers=(optimizer, schedule),
    )  # fmt: skip
    trainer.train()
    tune.report({"eval_loss": trainer.evaluate()["eval_loss"], "at": time.time()})


def search_documented(model: str, work: Path, *, reuse: bool) -> list[dict[str, float]]:
    """Search with the peer, one trial at a time."""
    import ray
    from ray import tune
    from ray.tune.search import ConcurrencyLimiter
    from ray.tune.search.optuna import OptunaSearch

    configs = json.loads((work / "setup.json").read_text())["configs"]
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    search = OptunaSearch(metric="eval_loss", mode="min", seed=SEED, points_to_evaluate=configs)
    tuner = tune.Tuner(
        tune.with_resources(train_documented, {"cpu": 1}),
        param_space={
            "r": tune.choice(RANKS),
            "targets": tune.choice(list(TARGETS)),
            "lr": tune.loguniform(1e-4, 1e-1),
            "work": str(work),
            "model": model,
        },
        tune_config=tune.TuneConfig(
            search_alg=ConcurrencyLimiter(search, 1), num_samples=len(configs), reuse_actors=reuse
        ),
        run_config=tune.RunConfig(storage_path=str(work / "ray_results"), verbose=0),
    )
    found = {}
    for result in tuner.fit():
        if result.error:
            raise result.error
        found[_key(result.config)] = {"loss": result.metrics["eval_loss"], "at": result.metrics["at"]}
    return [found[_key(config)] for config in configs]


def _key(config: Mapping[str, Any]) -> tuple[Any, ...]:
    return config["r"], config["targets"], config["lr"]


# --- autopeft --------------------------------------------------------------------------------------------------------


class Clock:
    """A view that notes when each trial ended, and prints nothing."""

    def __init__(self) -> None:
        self.ended: list[dict[str, float]] = []

    def started(self, *_args: object) -> None:
        """Nothing."""

    note = proposed = closed = started

    def finished(self, record: Any, front: object) -> None:
        """Note it."""
        if record.state != "complete":
            sys.exit(f"trial {record.number} {record.state}: {record.reason}\n{record.traceback}")
        self.ended.append({"trial": record.number, "loss": record.measurement.metrics["loss"], "at": time.time()})


def search_ours(model: str, work: Path, *, executor: str) -> list[dict[str, float]]:
    """Search with autopeft, one trial at a time."""
    import autopeft

    setup = json.loads((work / "setup.json").read_text())
    clock = Clock()
    fields = request_fields(SUBJECTS[model], work, steps=setup["steps"], trials=len(setup["configs"]))
    autopeft.search(
        **fields,
        space=space(setup["configs"]),
        executor=executor,
        workers=1,
        out=str(work / f"run-{executor}"),
        view=clock,
    )
    return sorted(clock.ended, key=lambda ended: ended["trial"])


VARIANTS: dict[str, Callable[[str, Path], list[dict[str, float]]]] = {
    "naive": lambda model, work: search_documented(model, work, reuse=False),
    "reuse": lambda model, work: search_documented(model, work, reuse=True),
    "ray": lambda model, work: search_ours(model, work, executor="ray"),
    "local": lambda model, work: search_ours(model, work, executor="local"),
}


# --- measuring -------------------------------------------------------------------------------------------------------


class TreeClock(threading.Thread):
    """Samples the CPU seconds of all processes that descend from this one, those that have ended among them."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._seconds: dict[tuple[int, float], float] = {}
        self.samples: list[tuple[float, float]] = []
        self._over = threading.Event()

    def run(self) -> None:
        """Sample until told to stop."""
        while not self._over.wait(_SAMPLE_SECONDS):
            self.sample()

    def sample(self) -> None:
        """Look once."""
        for process in psutil.Process().children(recursive=True):
            try:
                times = process.cpu_times()
                self._seconds[process.pid, process.create_time()] = times.user + times.system
            except psutil.Error:
                continue
        self.samples.append((time.time(), sum(self._seconds.values())))

    def stop(self) -> None:
        """Stop sampling."""
        self._over.set()
        self.join()

    def at(self, moment: float) -> float:
        """Give the CPU seconds spent until a moment."""
        times, seconds = zip(*self.samples, strict=True)
        return float(np.interp(moment, times, seconds))


def measure(variant: str, model: str, work: Path, *, core: int) -> dict[str, Any]:
    """Run one way in a process tree of its own; gives its figures and losses."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "TOKENIZERS_PARALLELISM": "0"}
    out = work / f"{variant}.json"
    clock, start = TreeClock(), time.time()
    command = [sys.executable, __file__, "--only", variant, "--models", model, "--work", str(work)]
    with (work / f"{variant}.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, preexec_fn=lambda: os.sched_setaffinity(0, {core})
        )
        clock.start()
        if process.wait():
            sys.exit(f"{variant} failed:\n{(work / f'{variant}.log').read_text()[-4000:]}")
    ended = time.time()
    time.sleep(2)  # what is left of Ray ends
    clock.sample()
    clock.stop()
    trials = json.loads(out.read_text())
    moments = sorted(trial["at"] for trial in trials)
    rest = len(moments) - 1
    return {
        "model": model,
        "variant": variant,
        "trials": len(trials),
        "cpu_seconds": round(clock.samples[-1][1], 1),
        "wall_seconds": round(ended - start, 1),
        "cpu_per_trial": round((clock.at(moments[-1]) - clock.at(moments[0])) / rest, 3),
        "wall_per_trial": round((moments[-1] - moments[0]) / rest, 3),
        "losses": [trial["loss"] for trial in trials],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "trials_per_hour.csv")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--only", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        (model,) = args.models
        trials = VARIANTS[args.only](model, args.work)
        (args.work / f"{args.only}.json").write_text(json.dumps(trials))
        return
    # Processes whose parent ends, as Ray's do, become children of this one, and are counted on.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for model in args.models:
        with tempfile.TemporaryDirectory(prefix="tph-") as folder:
            work = Path(folder)
            if reason := prepare(SUBJECTS[model], work, steps=args.steps, trials=args.trials):
                print(f"{model}: skipped: {reason}")
                continue
            rows = [measure(variant, model, work, core=args.core) for variant in args.variants]
        first = rows[0]["losses"]
        for row in rows:
            row["steps"] = args.steps
            row["loss_difference"] = max(abs(a - b) for a, b in zip(row["losses"], first, strict=True))
            row["losses"] = " ".join(f"{loss:.6f}" for loss in row["losses"])
            print({name: value for name, value in row.items() if name != "losses"}, flush=True)
        write_rows(args.out, rows)


if __name__ == "__main__":
    main()
