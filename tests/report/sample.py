"""Runs that look like real ones, for the tests of the report and for looking at it."""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path

from autopeft.anatomy import Anatomy, Norm, PromptShape
from autopeft.candidates import AdapterPlan, BaseFormat, Candidate, Cost, Recipe
from autopeft.layers import describe_linears, layer_groups
from autopeft.methods import METHODS
from autopeft.objectives import METRICS, OBJECTIVES, Objective, quality_of
from autopeft.records import RunInfo, TrialRecord
from autopeft.work import Measurement

HOSTILE = "</script><img src=x onerror=alert(1)>"
THREE = [OBJECTIVES[name] for name in ("quality", "params", "memory")]
LIMIT = 0.02
LOSS = [quality_of(METRICS["loss"]), *THREE[1:]]
RANKS = (0, 1, 2, 4, 8, 16, 32, 64)


def bert(n_layers: int = 6, width: int = 384, wide: int = 1536, labels: int = 10) -> Anatomy:
    shapes, norms = [], [Norm("bert.embeddings.LayerNorm", None, 2 * width)]
    for i in range(n_layers):
        stem = f"bert.encoder.layer.{i}"
        shapes += [(f"{stem}.attention.self.{p}", width, width) for p in ("query", "key", "value")]
        shapes += [
            (f"{stem}.attention.output.dense", width, width),
            (f"{stem}.intermediate.dense", width, wide),
            (f"{stem}.output.dense", wide, width),
        ]
        norms += [
            Norm(f"{stem}.attention.output.LayerNorm", i, 2 * width),
            Norm(f"{stem}.output.LayerNorm", i, 2 * width),
        ]
    return Anatomy(
        model_type="bert",
        task="text-classification",
        base_params=22_713_216,
        n_layers=n_layers,
        linears=describe_linears(shapes),
        norms=tuple(norms),
        prompt=PromptShape(width, n_layers, width),
        head={"classifier": (width + 1) * labels},
    )


def llama(n_layers: int = 28) -> Anatomy:
    shapes, norms = [], [Norm("model.norm", None, 3072)]
    for i in range(n_layers):
        stem = f"model.layers.{i}"
        shapes += [
            (f"{stem}.self_attn.{p}_proj", 3072, o) for p, o in zip("qkvo", (3072, 1024, 1024, 3072), strict=True)
        ]
        shapes += [(f"{stem}.mlp.gate_proj", 3072, 8192), (f"{stem}.mlp.up_proj", 3072, 8192)]
        shapes += [(f"{stem}.mlp.down_proj", 8192, 3072)]
        norms += [Norm(f"{stem}.{p}_layernorm", i, 3072) for p in ("input", "post_attention")]
    return Anatomy(
        model_type="llama", task="causal-lm", base_params=3_212_749_824, n_layers=n_layers,
        linears=describe_linears(shapes), norms=tuple(norms), prompt=PromptShape(3072, n_layers, 1024), head={},
        dtype_bits=16,
    )  # fmt: skip


def make_info(anatomy: Anatomy | None = None, **changes) -> RunInfo:
    fields = {
        "request": {
            "model": None, "data": "reviews.csv", "task": "auto", "columns": {"text": "body", "label": "stars"},
            "budget": "2%", "memory": "2GiB", "time": "30min", "trials": 60, "steps": 100, "batch_size": 8,
            "eval_rows": 500, "metric": None, "objectives": [o.name for o in THREE], "workers": 2, "seed": 0,
        },
        "objectives": tuple({"name": o.name, "goal": o.goal, "unit": o.unit} for o in THREE),
        "space": "description: All methods\nparameters:\n  method:\n    choices: [lora, ia3]\n",
        "created_at": "2026-11-22T21:30:00+00:00",
        "versions": {"autopeft": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2"},
        "hardware": {"cpu": "2 cores", "memory": "16 GiB", "gpu": "none"},
        "anatomy": anatomy.to_dict() if anatomy else None,
        "data": {
            "name": "reviews.csv", "rows": {"train": 4000, "validation": 500, "test": 500}, "fingerprint": "8d1f0c9a",
            "label_names": ["one", "two", "three"], "notes": ["12 duplicate rows dropped", "split by hash of the text"],
        } if anatomy else {},
        "model": {"name": "org/all-MiniLM-L6-v2", "checksum": "a1b2c3d4", "bits": 32} if anatomy else {},
        "parameter_limit": int(LIMIT * anatomy.base_params) if anatomy else 100_000,
        "memory_limit_bytes": 2 * 2**30,
    }  # fmt: skip
    return RunInfo(**(fields | changes))


def _values(rng: random.Random, anatomy: Anatomy) -> dict:
    method = rng.choice(["lora", "lora", "lora", "ia3", "ln_tuning", "prompt_tuning", "prefix_tuning", "p_tuning"])
    groups = [str(a) if a == b else f"{a}-{b}" for a, b in layer_groups(anatomy.n_layers, 4)]
    values = {"method": method, "bits": rng.choice([32, 16, 8, 4]), "lr_multiple": round(10 ** rng.uniform(-1, 1), 4)}
    if method == "lora":
        same = rng.choice(RANKS[1:]) if rng.random() < 0.3 else None
        values |= {f"lora.rank[{g}]": same or rng.choice(RANKS) for g in groups}
        values |= {f"lora.share[{k}]": 1.0 if same else rng.choice([0.0, 0.5, 1.0]) for k in anatomy.kinds}
        values |= {"lora.alpha": rng.choice(["r", "2r", "16"]), "lora.dropout": rng.choice([0.0, 0.05])}
        dora, rslora = rng.random() < 0.3 and values["bits"] != 8, rng.random() < 0.3
        values |= {"lora.dora": dora and not same, "lora.rslora": rslora and not same}
    elif method == "ia3":
        values |= {f"ia3.layers[{g}]": rng.choice([0, 1, 1]) for g in groups}
        values |= {f"ia3.kinds[{k}]": rng.choice([0, 1]) for k in anatomy.kinds}
    elif method == "ln_tuning":
        values |= {f"ln_tuning.layers[{g}]": rng.choice([0, 1, 1]) for g in groups} | {"ln_tuning.outer": True}
    else:
        values[f"{method}.tokens"] = rng.choice([1, 2, 4, 8, 16, 32, 64])
        if method == "p_tuning":
            values["p_tuning.width"] = rng.choice([8, 32, 128])
    return values


def _settings(values: dict, anatomy: Anatomy) -> dict:
    """Gather "rank[0-1]" under "rank", as the methods read it."""
    settings: dict = {}
    for name, value in values.items():
        base, _, index = name.removeprefix(f"{values['method']}.").partition("[")
        if name.startswith(values["method"] + "."):
            settings[base] = {**settings.get(base, {}), index.removesuffix("]"): value} if index else value
    return settings


def make_records(n: int, *, seed: int = 0, anatomy: Anatomy | None = None, fail: float = 0.15) -> list[TrialRecord]:
    """Make trials whose quality follows size, learning rate and method with noise; some fail in every way there is."""
    rng, anatomy = random.Random(seed), anatomy or bert()
    records: list[TrialRecord] = []
    while len(records) < n:
        values = _values(rng, anatomy)
        method = METHODS[values["method"]]
        build = method.build(_settings(values, anatomy), anatomy)
        params = build.params
        if params == 0 or params + anatomy.head_params > LIMIT * anatomy.base_params:
            continue
        number, rate = len(records), method.learning_rate * values["lr_multiple"]
        plan = AdapterPlan(method.name, build.sizes, build.config, params, BaseFormat(values["bits"]), Recipe(rate))
        common = {
            "number": number, "candidate": Candidate(values), "seed": 0, "cost": Cost(params, anatomy.head_params),
            "plan": plan, "seconds": rng.uniform(8, 40), "worker": "node:1", "finished_at": "2026-11-22T21:40:00+00:00",
        }  # fmt: skip
        state = rng.choice(["failed", "infeasible", "stopped", "duplicate"]) if rng.random() < fail else "complete"
        if state != "complete":
            where = f'File "run.py", line {number % 7}, in run'
            text = f"Traceback (most recent call last):\n  {where}\nRuntimeError: {HOSTILE}"
            reason = {"failed": f"RuntimeError: {HOSTILE}", "infeasible": "out of memory; peak seen 2.31 GiB"}
            reason |= {"stopped": "time is over", "duplicate": "equal to trial 0"}
            traceback = text if state == "failed" else ""
            records.append(TrialRecord(state=state, reason=reason[state], traceback=traceback, **common))
            continue
        strength = 1 - math.exp(-((params / anatomy.base_params * 300) ** 0.35))
        off = abs(math.log10(values["lr_multiple"]) - 0.2)
        place = {"lora": 0.03, "ia3": 0.0, "ln_tuning": 0.01}.get(method.name, -0.12)
        quality = 0.45 + 0.42 * strength - 0.16 * off**2 + place + rng.gauss(0, 0.012)
        base_bytes = anatomy.base_params * values["bits"] / 8
        memory = int(base_bytes + params * 16 + 9e8 * (0.6 if not build.sizes else 0.8 + rng.random() * 0.2))
        shown = round(min(max(quality, 0.1), 0.98) * 500) / 500
        if anatomy.task == "causal-lm":
            shown = round(2.5 - 1.2 * shown, 4)  # a loss
        measurement = Measurement(
            quality=shown, trainable_params=params + anatomy.head_params,
            memory_bytes=memory, memory_kind="tensor_storage", head_params=anatomy.head_params, steps=100,
            train_seconds=common["seconds"] * 0.8, adapter_bytes=params * 4, metrics={"loss": float("nan")},
        )  # fmt: skip
        named = {o.name: o.measure(measurement) for o in THREE}
        records.append(TrialRecord(state="complete", measurement=measurement, values=named, **common))
    return records


def hostile_run(n: int = 40) -> tuple[RunInfo, list[TrialRecord], list[Objective]]:
    """Make a custom runner's trials in which every name that a user can choose attacks the page."""
    objectives = [
        Objective(f"gain {HOSTILE}", "maximize", f"points {HOSTILE}", lambda m: m.quality),
        Objective(f"latency & <b>{HOSTILE}", "minimize", "ms", lambda m: m.train_seconds),
    ]
    rng, records = random.Random(1), []
    for number in range(n):
        a, b = rng.random(), rng.random()
        candidate = Candidate({f"depth {HOSTILE}": number % 5, f"kind{HOSTILE}": f"{HOSTILE}{number % 3}", "x": a})
        values = {objectives[0].name: a + 0.2 * b, objectives[1].name: 5 + 20 * a + 9 * b}
        if number % 9 == 4:
            records.append(TrialRecord(number, "failed", candidate, 0, reason=HOSTILE, traceback=f"{HOSTILE}\n" * 3))
        else:
            measurement = Measurement(values[objectives[0].name], memory_kind=HOSTILE, metrics={HOSTILE: math.inf})
            records.append(
                TrialRecord(number, "complete", candidate, 0, measurement=measurement, values=values, seconds=2)
            )
    info = make_info(
        None,
        request={
            "model": HOSTILE,
            "data": f"{HOSTILE}\udc80",
            "trials": 40,
            "time": HOSTILE,
            HOSTILE: [HOSTILE, math.nan],
        },
        objectives=tuple({"name": o.name, "goal": o.goal, "unit": o.unit} for o in objectives),
        space=f"# {HOSTILE}\n",
        versions={HOSTILE: HOSTILE, "autopeft": HOSTILE},
        hardware={"cpu": HOSTILE},
        data={"name": HOSTILE, "label_names": [HOSTILE]},
        model={"name": HOSTILE},
        created_at=HOSTILE,
    )
    return info, records, objectives


def main(folder: str) -> None:
    """Write the reports to look at."""
    import time

    from autopeft.pareto import picks
    from autopeft.report import front_svg, render, write_csv

    out, model = Path(folder), llama()
    runs = {
        "small": (make_info(bert()), make_records(60), THREE),
        "large": (make_info(model), make_records(5000, anatomy=model), LOSS),
        "hostile": hostile_run(),
        "none": (make_info(bert()), make_records(5, fail=1.0), THREE),
        "one": (make_info(bert()), make_records(1, fail=0.0), THREE),
        "single": (make_info(bert()), make_records(60), THREE[:1]),
        "two": (make_info(bert()), make_records(60), THREE[:2]),
        "four": (make_info(bert()), make_records(60), [*THREE, OBJECTIVES["train_seconds"]]),
    }
    for name, (info, records, objectives) in runs.items():
        for r in records:
            if "train_seconds" in {o.name for o in objectives} and r.measurement:
                r.values["train_seconds"] = r.measurement.train_seconds  # type: ignore[index]
        start = time.perf_counter()
        html = render(info, records, objectives)
        seconds = time.perf_counter() - start
        (out / f"{name}.html").write_text(html, encoding="utf-8")
        (out / f"{name}.svg").write_text(front_svg(info, records, objectives), encoding="utf-8")
        write_csv(records, objectives, out / f"{name}.csv", named=picks(records, objectives))
        print(f"{name}: {len(html) / 1e6:.2f} MB, {seconds:.2f} s")


if __name__ == "__main__":
    main(sys.argv[1])
