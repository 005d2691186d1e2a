"""VeRA and PVeRA: two frozen random matrices shared by all linears; vectors that scale them are trained.

PVeRA draws the inner vector from a distribution whose mean and spread are trained; without training it takes the mean.

Sources: Kopiczko et al., arXiv:2310.11454; PVeRA: arXiv:2512.07703.
"""

from __future__ import annotations

from collections.abc import Callable

from autopeft.anatomy import Anatomy, Linear
from autopeft.methods.linears import PLACES, PLACES_ALLOWED, PLACES_SPREAD, names_of, one_size, targets_of
from autopeft.methods.method import Build, Method, Settings, is_amount, is_count, number


def trainable_params(linear: Linear, *, rank: int, inner: int = 1) -> int:
    """Count one linear's trained scalars: ``inner * rank + fan_out``, where PVeRA has two inner vectors.

    The shared matrices are frozen: they cost memory, not budget.

    >>> trainable_params(Linear("q_proj", "query", 0, fan_in=4096, fan_out=4096), rank=256)
    4352
    """
    return inner * rank + linear.fan_out


def _builder(name: str, inner: int) -> Callable[[Settings, Anatomy], Build]:
    def build(settings: Settings, anatomy: Anatomy) -> Build:
        targets, rank = targets_of(settings, anatomy), one_size(settings, "rank", 256)
        config = {
            "peft_type": name.upper(),
            "r": rank,
            "target_modules": names_of(targets),
            "d_initial": number(settings.get("start"), 0.1),
            f"{name}_dropout": number(settings.get("dropout"), 0.0),
        }
        params = sum(trainable_params(linear, rank=rank, inner=inner) for linear in targets)
        return Build({linear.name: rank for linear in targets}, params, config)

    return build


_SETTINGS = {
    "rank": "rank of the shared matrices, a whole number",
    "start": "value of the inner vector at the start",
    "dropout": "dropout before the product",
    **PLACES,
}
_ALLOWED = {
    "rank": is_count,
    "start": lambda value: is_amount(value) and float(value) > 0,
    "dropout": lambda value: is_amount(value) and float(value) < 1,
    **PLACES_ALLOWED,
}

VERA = Method(
    name="vera",
    title="VeRA",
    source="arXiv:2310.11454",
    learning_rate=4e-3,
    learning_rate_source="Kopiczko et al. 2023, GLUE with RoBERTa-base (4e-3 to 1e-2)",
    settings=_SETTINGS,
    allowed=_ALLOWED,
    build=_builder("vera", inner=1),
    spread=PLACES_SPREAD,
)
PVERA = Method(
    name="pvera",
    title="PVeRA",
    source="arXiv:2512.07703",
    learning_rate=4e-3,
    learning_rate_source="as for VeRA",
    settings=_SETTINGS,
    allowed=_ALLOWED,
    build=_builder("pvera", inner=2),
    spread=PLACES_SPREAD,
)
