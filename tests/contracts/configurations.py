"""For every method some configurations that use each of its settings, as values of a candidate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from autopeft.anatomy import Anatomy
from autopeft.candidates import Candidate
from autopeft.methods import METHODS

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


def _rest(method: str) -> dict[str, float]:
    """Give all kinds but those that a configuration names for itself their whole share."""
    kinds = ("query", "key", "value", "qkv", "output", "gate", "up", "down")
    return {
        f"{method}.share[{kind}]": 1 for kind in kinds if (method, kind) not in (("loha", "down"), ("osf", "query"))
    }


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
    "layer_prefix": [
        {"layer_prefix.tokens": 1},
        {"layer_prefix.tokens[0]": 0, "layer_prefix.tokens[1]": 3, "layer_prefix.tokens[2-9]": 7},
        {"layer_prefix.layers[1]": 1, "layer_prefix.layers[0]": 0, "layer_prefix.layers[2-9]": 0},
    ],
    "adalora": [{"adalora.rank": 4}, {"adalora.rank": 3, "adalora.layers[0]": 0, "adalora.layers[1-9]": 1}],
    "loha": [{"loha.rank": 2}, {"loha.rank[0]": 3, "loha.rank[1-9]": 5, "loha.share[down]": 0, **_rest("loha")}],
    "lokr": [
        {"lokr.rank": 2},
        {"lokr.rank": 2, "lokr.factor": 4, "lokr.both": True},
        {"lokr.rank[0]": 40, "lokr.rank[1-9]": 1, "lokr.alpha": "2r"},
    ],
    "hira": [{"hira.rank": 4}, {"hira.rank": 3, "hira.layers[0]": 1, "hira.dropout": 0.1}],
    "delora": [{"delora.rank": 4}, {"delora.rank[0]": 2, "delora.rank[1-9]": 5, "delora.strength": 5}],
    "vera": [{"vera.rank": 16}, {"vera.rank": 100, "vera.kinds[down]": 1, "vera.kinds[qkv]": 1, "vera.start": 0.5}],
    "pvera": [{"pvera.rank": 16, "pvera.dropout": 0.1}],
    "randlora": [{"randlora.rank": 16}, {"randlora.rank": 7, "randlora.layers[0]": 0, "randlora.layers[1-9]": 1}],
    "gralora": [{"gralora.rank": 4}, {"gralora.rank": 4, "gralora.blocks": 4, "gralora.whole_rank": 3}],
    "shira": [{"shira.rank": 2}, {"shira.rank": 5, "shira.kinds[query]": 1, "shira.kinds[down]": 1}],
    "miss": [
        {"miss.rank": 7},
        {"miss.rank": 16, "miss.form": "bat"},
        {"miss.rank": 5, "miss.form": "mini", "miss.width": 8},
    ],
    "osf": [{"osf.rank": 4}, {"osf.rank[0]": 1, "osf.rank[1-9]": 9, "osf.share[query]": 0.5, **_rest("osf")}],
    "vblora": [{"vblora.rank": 2, "vblora.vectors": 9}, {"vblora.vectors": 5, "vblora.length": 4}],
    "unilora": [{}, {"unilora.length": 77, "unilora.rank": 1, "unilora.layers[0]": 1}],
    "tinylora": [{"tinylora.scalars": 5}, {"tinylora.tying": 0.6, "tinylora.rank": 99}],
    "peanut": [{"peanut.rank": 4}, {"peanut.rank": 16, "peanut.depth": 1, "peanut.scaling": 2.0}],
    "glora": [
        {"glora.rank": 4},
        {"glora.weight": "vector", "glora.read": "vector", "glora.bias": "vector"},
        {"glora.weight": "constant", "glora.read": "none", "glora.bias": "none"},
    ],
    "deft": [{"deft.rank": 4}, {"deft.rank": 99, "deft.dropout": 0.1}],
    "supertuning": [{}, {"supertuning.density": 0.1, "supertuning.rank": 2, "supertuning.largest": False}],
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
            **{f"{_AUTOPEFT}.{part}.activation": "gelu" for part in ("serial", "parallel")},
        },
        {
            f"{_AUTOPEFT}.layers[0]": 0,
            f"{_AUTOPEFT}.layers[1-9]": 1,
            f"{_AUTOPEFT}.serial.feed_forward": 0,
            f"{_AUTOPEFT}.parallel.feed_forward": 6,
            f"{_AUTOPEFT}.parallel.activation": "gelu",
            f"{_AUTOPEFT}.prefix.tokens[0-1]": 2,
            f"{_AUTOPEFT}.prefix.tokens[2-9]": 0,
        },
    ],
    # A step on a prefix moves so narrow a bottleneck so far that all its units may be dead, but not of GELU.
    "parallel+prefix": [
        {
            "parallel+prefix.parallel.feed_forward": 5,
            "parallel+prefix.parallel.activation": "gelu",
            "parallel+prefix.prefix.tokens": 4,
        }
    ],
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

SOME = {"layers[0]": 0, "layers[1-9]": 1}
ATTENTION = {"kinds[query]": 1, "kinds[value]": 1, "kinds[qkv]": 1, "kinds[output]": 1}


def of(method: str, *configurations: Mapping[str, Any]) -> None:
    """Add a method's configurations, of settings without its name."""
    OTHERS[method] = [{f"{method}.{key}": value for key, value in values.items()} for values in configurations]


of("oft", {}, {"block": 24, "shared": True, **SOME}, {"block": 4, **ATTENTION})
of("boft", {}, {"block": 16, **SOME, **ATTENTION})
of("hra", {}, {"rank": 2, **SOME, **ATTENTION})
of(
    "fourierft",
    {},
    {"coefficients[0]": 7, "coefficients[1-9]": 20, "share[query]": 1, "share[qkv]": 0.3, "scaling": 9},
)
of("waveft", {}, {"coefficients[0]": 0, "coefficients[1-9]": 20, "share[up]": 0.5, "share[output]": 0.3, "scaling": 9})
of("c3a", {}, {"block": 8, **SOME, **ATTENTION})
of("road", {}, {"variant": "2", **SOME}, {"variant": "4", **ATTENTION})
of("beft", {}, {**SOME, **ATTENTION})
of("adaption_prompt", {}, {"tokens": 3, "top": 2})
of("trainable_tokens", {}, {"tokens": 99})
of("cartridge", *({"tokens": n} for n in (2, 7)))


MAY_REST = ("glora_D", "glora_C")
"""Parts of trained names that may have no gradient: GLoRA scales biases, which these models have at zero."""


def candidates(method: str) -> list[Candidate]:
    return [Candidate({"method": method, "bits": 32, **values}) for values in OTHERS[method]]


OWN = ("serial_adapter", "parallel_adapter", "layer_prefix", "bitfit", "full", "top_layers")
HYBRIDS = tuple(name for name in OTHERS if "+" in name)
EVERYWHERE = ("lora", "ia3", "ln_tuning", "prompt_tuning", "prefix_tuning", "p_tuning", *OWN, *HYBRIDS)
"""Methods that are tried in all ways on all families and tasks; of the others, which are built alike, the first
configuration is tried on one task of each family, and the rest on the first pair."""


def cases(pairs: list[tuple[str, str]]) -> Iterator[tuple[str, str, str, int]]:
    """Give family, task, method that is for the task, and the number of a configuration."""
    for (family, task), method in product(pairs, OTHERS):
        if task not in METHODS[method].tasks:
            continue
        for i in range(len(OTHERS[method])):
            first_of_family = (family, task) == next(pair for pair in pairs if pair[0] == family)
            if method in EVERYWHERE or (first_of_family if i == 0 else (family, task) == pairs[0]):
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
