"""Candidates trained together in one pass of the base, beside the same trained one after the other.

    alone       each candidate takes its step by itself, as the worker does without `together`
    together    K candidates in one forward and backward pass, each with its own clipping and optimiser step
    peft        PEFT's own way to mix adapters in a batch, `adapter_names`; it refuses to train, so what is timed is a
                model in eval mode (no dropout) whose adapters require gradients, with one optimiser for all

A step is forward, backward, clipping and fused AdamW. Figures are the least of a few, in CPU seconds of one thread, or
on CUDA in wall seconds after the device is done. Candidates: `lora` draws rank and targets for each, `equal` gives all
rank 8 on all linears, `mixed` cycles through eight methods.

    python benchmarks/together.py --models stories260k llama25m
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from results import write_rows
from subjects import SUBJECTS, TARGETS

from autopeft.anatomy import Anatomy
from autopeft.candidates import AdapterPlan, BaseFormat, Candidate, Recipe
from autopeft.plans import plan_of
from autopeft.trial.adapters import Resident
from autopeft.trial.model import ModelSource, load_base
from autopeft.trial.reading import read_anatomy
from autopeft.trial.together.lifted import Bare
from autopeft.trial.together.streams import Stream
from autopeft.trial.together.train import Trainee, backward, group_of
from autopeft.trial.train import Learner

SHAPES = {16: (1, 16), 32: (2, 16), 64: (4, 16), 128: (8, 16), 256: (8, 32), 512: (8, 64), 1024: (16, 64)}
"""Tokens of a step -> rows and their length."""
MIXED = (
    {"method": "lora", "lora.rank": 8},
    {"method": "lora", "lora.rank": 8, "lora.dora": True},
    {"method": "ia3"},
    {"method": "bitfit"},
    {"method": "ln_tuning"},
    {"method": "serial_adapter"},
    {"method": "lora", "lora.rank": 16, "lora.dropout": 0.1},
    {"method": "parallel_adapter"},
)
_STEPS = 10_000  # never reached: the schedule alone asks for it
_LEAST_SECONDS = 0.5


def plans(kind: str, count: int, anatomy: Anatomy) -> list[AdapterPlan]:
    """Give candidates of a kind."""
    draw, found = random.Random(0), []
    for i in range(count):
        if kind == "lora":
            targets = TARGETS[draw.choice(list(TARGETS))]
            share = {f"lora.share[{name}]": int(name in targets) for name in TARGETS["all"]}
            values: dict[str, Any] = {"method": "lora", "lora.rank": draw.choice((2, 4, 8, 16, 32)), **share}
        else:
            values = dict(MIXED[i % len(MIXED)] if kind == "mixed" else {"method": "lora", "lora.rank": 8})
        found.append(plan_of(Candidate({"bits": 32, **values}), anatomy, recipe=Recipe(1e-4)))
    return found


def make_trainees(resident: Resident, bare: Bare, some: Sequence[AdapterPlan], device: str) -> list[Trainee]:
    """Attach every candidate, and lift it off again."""
    made = []
    for seed, plan in enumerate(some):
        torch.manual_seed(seed)
        adapted = resident.attach(plan, task="causal-lm", head={})
        adapted.train()
        learner = Learner(adapted, steps=_STEPS, recipe=plan.recipe, device=device)
        made.append(Trainee(plan, bare.lift(adapted), learner, Stream(seed, device), _STEPS, -1))
        resident.detach()
    return made


def least_seconds(once: Callable[[], None], device: str, repeats: int) -> float:
    """Time a step: the least of a few, the first of which do not count; many short ones, few long ones."""
    cuda = device.startswith("cuda")
    clock = time.perf_counter if cuda else time.process_time

    def timed() -> float:
        start = clock()
        once()
        if cuda:
            torch.cuda.synchronize(device)
        return clock() - start

    first = min(timed(), timed())
    return min(timed() for _ in range(max(repeats, min(20, int(_LEAST_SECONDS / max(first, 1e-4))))))


def alone_seconds(bare: Bare, trainee: Trainee, batch: dict[str, torch.Tensor], device: str, repeats: int) -> float:
    """Time a step of a candidate by itself."""
    trainee.lifted.put_on(bare.model)
    trainee.learner.adapted.train()
    try:
        return least_seconds(lambda: trainee.learner.step([batch]), device, repeats)
    finally:
        bare.strip()


def together_seconds(
    bare: Bare, trainees: Sequence[Trainee], batch: dict[str, torch.Tensor], device: str, repeats: int
) -> float:
    """Time a step of candidates together."""
    for trainee in trainees:
        trainee.learner.optimizer.zero_grad()
    with group_of(bare, trainees, task="causal-lm", device=device) as group:

        def once() -> None:
            for trainee, loss in zip(trainees, backward(group, trainees, [batch]), strict=True):
                trainee.learner.update(loss, keep_gradients=True)

        return least_seconds(once, device, repeats)


def peft_seconds(
    source: ModelSource, some: Sequence[AdapterPlan], batch: dict[str, torch.Tensor], device: str, repeats: int
) -> float:
    """Time PEFT's mixed batch; 0 where it does not run."""
    from peft import LoraConfig, get_peft_model

    if any(plan.method != "lora" or plan.config["use_dora"] for plan in some):
        return 0.0
    configs = [LoraConfig(**{n: v for n, v in plan.config.items() if n != "peft_type"}) for plan in some]
    model = get_peft_model(load_base(source, BaseFormat(32), device=device), configs[0], adapter_name="a0")
    for i, config in enumerate(configs[1:], 1):
        model.add_adapter(f"a{i}", config)
    names = [f"a{i}" for i in range(len(some))]
    model.base_model.set_adapter(names)
    model.base_model.set_requires_grad(names, True)
    model.eval()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    rows = len(batch["input_ids"])
    whole = {name: t.repeat(len(some), 1) for name, t in batch.items()}

    def once() -> None:
        model(**whole, adapter_names=[name for name in names for _ in range(rows)]).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return least_seconds(once, device, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=["stories260k", "llama25m"], default=["stories260k", "llama25m"])
    parser.add_argument("--kinds", nargs="+", choices=["lora", "equal", "mixed"], default=["lora"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--tokens", nargs="+", type=int, choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--most", type=int, default=8192, help="most tokens of all candidates of a step")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "together.csv")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for model in args.models:
        with tempfile.TemporaryDirectory(prefix="together-") as folder:
            if reason := SUBJECTS[model].make(Path(folder)):
                print(f"{model}: skipped: {reason}")
                continue
            source = ModelSource(folder, "causal-lm")
            measure(model, source, args)


def measure(model: str, source: ModelSource, args: argparse.Namespace) -> None:
    """Measure a model in all shapes, and write the rows of each."""
    resident = Resident(load_base(source, BaseFormat(32), device=args.device))
    bare, anatomy = Bare(resident.model), read_anatomy(source)
    for kind in args.kinds:
        some = plans(kind, max(args.sizes), anatomy)
        for tokens in args.tokens:
            rows, length = SHAPES[tokens]
            ids = torch.randint(3, 512, (rows, length), device=args.device)
            batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
            trainees = make_trainees(resident, bare, some, args.device)
            sizes = [size for size in args.sizes if size * tokens <= args.most]
            alone = [alone_seconds(bare, t, batch, args.device, args.repeats) for t in trainees[: max(sizes)]]
            found = []
            for size in sizes:
                seconds = together_seconds(bare, trainees[:size], batch, args.device, args.repeats)
                peer = peft_seconds(source, some[:size], batch, args.device, args.repeats)
                separate = sum(alone[:size])
                found.append(
                    {
                        "model": model,
                        "device": args.device,
                        "kind": kind,
                        "tokens": tokens,
                        "rows": rows,
                        "candidates": size,
                        "alone_ms": round(separate * 1e3, 2),
                        "together_ms": round(seconds * 1e3, 2),
                        "peft_ms": round(peer * 1e3, 2) if peer else "",
                        "gain": round(separate / seconds, 2),
                        "peft_gain": round(separate / peer, 2) if peer else "",
                    }
                )
                print(
                    {n: found[-1][n] for n in ("model", "kind", "tokens", "candidates", "gain", "peft_gain")},
                    flush=True,
                )
            write_rows(args.out, found)


if __name__ == "__main__":
    main()
