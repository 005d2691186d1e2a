"""The peer: what the documentation of Ray Tune, PEFT and Trainer shows, on the rows that autopeft trains on."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from subjects import RANKS, SEED, SUBJECTS, TARGETS


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


def search_documented(model: str, work: Path, *, trials: int, reuse: bool) -> list[dict[str, float]]:
    """Search with the peer, one trial at a time."""
    import ray
    from ray import tune
    from ray.tune.search import ConcurrencyLimiter
    from ray.tune.search.optuna import OptunaSearch

    configs = json.loads((work / "setup.json").read_text())["configs"][:trials]
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
