"""For every method some configurations that use each of its settings, as values of a candidate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from autopeft.anatomy import Anatomy
from autopeft.methods import METHODS
from autopeft.records import Candidate

LORA: list[Mapping[str, Any]] = [
    {"lora.rank": 1},
    {"lora.rank": 4, "lora.alpha": "r"},
    {"lora.rank": 8, "lora.dora": True},
    {"lora.rank": 4, "lora.rslora": True, "lora.alpha": "16"},
    {"lora.rank[0]": 2, "lora.rank[1]": 0, "lora.rank[2-9]": 8},
    {"lora.rank[0]": 2, "lora.rank[1-9]": 16, "lora.alpha": "16", "lora.rslora": True},
    {"lora.rank": 8, "lora.share[query]": 1, "lora.share[value]": 0.25, "lora.share[qkv]": 0.5},
    {"lora.rank[0-9]": 3, "lora.share[up]": 0.5, "lora.share[down]": 1, "lora.share[gate]": 0, "lora.dora": True},
    {"lora.rank[0/query]": 2, "lora.rank[0/qkv]": 2, "lora.rank[1/down]": 4, "lora.rank[1/up]": 5},
    {"lora.rank": 8, "lora.dropout": 0.1, "lora.alpha": "r", "lora.rslora": True},
]
_AUTOPEFT = "serial+parallel+prefix"
OTHERS: dict[str, list[Mapping[str, Any]]] = {
    "lora": LORA,
    "ia3": [
        {},
        {"ia3.layers[0-1]": 1, "ia3.layers[2-9]": 0},
        {"ia3.kinds[value]": 1, "ia3.kinds[down]": 1, "ia3.kinds[qkv]": 1},
        {"ia3.layers[1]": 1, "ia3.kinds[down]": 1, "ia3.kinds[up]": 1, "ia3.kinds[output]": 0},
    ],
    "ln_tuning": [{}, {"ln_tuning.outer": False}, {"ln_tuning.layers[0]": 0, "ln_tuning.layers[1-9]": 1}],
    "prompt_tuning": [{"prompt_tuning.tokens": n} for n in (1, 7)],
    "prefix_tuning": [{"prefix_tuning.tokens": n} for n in (1, 7)],
    "p_tuning": [{"p_tuning.tokens": t, "p_tuning.width": w} for t, w in product((1, 7), (8, 24))],
    **{
        name: [
            {},
            {f"{name}.attention": 0, f"{name}.feed_forward": 5, f"{name}.activation": "gelu"},
            {
                f"{name}.layers[0-1]": 1,
                f"{name}.attention[0]": 3,
                f"{name}.feed_forward[0]": 2,
                f"{name}.feed_forward[1-9]": 4,
                f"{name}.activation": "silu",
                f"{name}.scaling": 2.0,
            },
        ]
        for name in ("serial_adapter", "parallel_adapter")
    },
    "bitfit": [
        {},
        {"bitfit.norms": False, "bitfit.outer": False},
        {"bitfit.layers[1]": 1, "bitfit.kinds[query]": 1, "bitfit.kinds[qkv]": 1, "bitfit.kinds[down]": 1},
    ],
    "full": [{}],
    "top_layers": [{"top_layers.top": 1}, {"top_layers.top": 2}],
    "serial+parallel+prefix": [
        {
            f"{_AUTOPEFT}.serial.feed_forward": 3,
            f"{_AUTOPEFT}.parallel.feed_forward": 6,
            f"{_AUTOPEFT}.prefix.tokens": 1,
        },
        {
            f"{_AUTOPEFT}.layers[0]": 0,
            f"{_AUTOPEFT}.layers[1-9]": 1,
            f"{_AUTOPEFT}.serial.feed_forward": 0,
            f"{_AUTOPEFT}.parallel.feed_forward": 6,
            f"{_AUTOPEFT}.prefix.tokens": 0,
        },
    ],
    "parallel+prefix": [{"parallel+prefix.parallel.feed_forward": 5, "parallel+prefix.prefix.tokens": 4}],
    "lora+bitfit": [
        {"lora+bitfit.lora.rank": 2},
        {"lora+bitfit.lora.rank": 0, "lora+bitfit.bitfit.layers[0]": 1},
        {"lora+bitfit.lora.rank[0]": 4, "lora+bitfit.lora.dora": True, "lora+bitfit.bitfit.norms": False},
    ],
    "lora+serial": [{"lora+serial.lora.rank": 2, "lora+serial.serial.feed_forward[0-1]": 4}],
    "lora+parallel": [{"lora+parallel.lora.rank[1]": 2, "lora+parallel.parallel.feed_forward": 4}],
    "lora+prompt": [{"lora+prompt.lora.rank": 2, "lora+prompt.prompt.tokens": 3}],
    "lora+ia3": [{"lora+ia3.lora.rank": 2}, {"lora+ia3.lora.rank": 2, "lora+ia3.ia3.layers[1]": 1}],
}


def candidates(method: str) -> list[Candidate]:
    return [Candidate({"method": method, "bits": 32, **values}) for values in OTHERS[method]]


def cases(pairs: list[tuple[str, str]]) -> Iterator[tuple[str, str, str, int]]:
    """Every family, task, method that is for the task, and configuration by number."""
    for (family, task), method in product(pairs, OTHERS):
        if task not in METHODS[method].tasks:
            continue
        for i in range(len(OTHERS[method])):
            yield family, task, method, i


def intended_rank(candidate: Candidate, anatomy: Anatomy, name: str) -> int:
    """Say what LoRA's rank at a linear must be, read off the values directly; 0 for none."""
    (linear,) = [x for x in anatomy.linears if x.name == name]

    def at(setting: str) -> float:
        keys = [k for k in candidate.values if k.startswith(f"lora.{setting}")]
        if not keys:
            return 1.0
        for key in keys:
            parts = key.partition("[")[2].rstrip("]").split("/")
            fits = True
            for part in parts:
                if part[:1].isdigit():
                    low, _, high = part.partition("-")
                    fits &= int(low) <= linear.layer <= int(high or low)
                elif part:
                    fits &= part == linear.kind
            if fits:
                return float(candidate[key])
        return 0.0

    product_ = at("rank") * at("share")
    return 0 if product_ == 0 else max(1, int(product_ + 0.5))
