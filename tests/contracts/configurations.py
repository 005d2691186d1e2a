"""For every method some configurations that use each of its settings, as values of a candidate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from autopeft.anatomy import Anatomy
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
}

SOME = {"layers[0]": 0, "layers[1-9]": 1}
ATTENTION = {"kinds[query]": 1, "kinds[value]": 1, "kinds[qkv]": 1, "kinds[output]": 1}


def of(method: str, *configurations: Mapping[str, Any]) -> None:
    """Add a method's configurations, of settings without its name."""
    OTHERS[method] = [{f"{method}.{key}": value for key, value in values.items()} for values in configurations]


of("oft", {}, {"block": 24, "shared": True, **SOME}, {"block": 4, **ATTENTION})
of("boft", {}, {"block": 16, **SOME, **ATTENTION})
of("hra", {}, {"rank": 2, **SOME, **ATTENTION})
of("fourierft", {}, {"coefficients[0]": 7, "coefficients[1-9]": 20, "share[query]": 1, "share[qkv]": 0.3, "scaling": 900})
of("waveft", {}, {"coefficients[0]": 0, "coefficients[1-9]": 20, "share[up]": 0.5, "share[output]": 0.3, "scaling": 9})
of("c3a", {}, {"block": 8, **SOME, **ATTENTION})
of("road", {}, {"variant": "2", **SOME}, {"variant": "4", **ATTENTION})
of("beft", {}, {**SOME, **ATTENTION})
of("adaption_prompt", {}, {"tokens": 3, "top": 2})
of("trainable_tokens", {}, {"tokens": 99})
of("frod", {}, {"density": 0.003, **SOME, **ATTENTION})
of("cartridge", *({"tokens": n} for n in (2, 7)))


def candidates(method: str) -> list[Candidate]:
    return [Candidate({"method": method, "bits": 32, **values}) for values in OTHERS[method]]


def cases(pairs: list[tuple[str, str]]) -> Iterator[tuple[str, str, str, int]]:
    """Every family, task, method and configuration by number."""
    for (family, task), method in product(pairs, OTHERS):
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
