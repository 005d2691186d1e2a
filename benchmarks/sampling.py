"""Draws of configurations for the recorded table: stratified by method, near good ones, all feasible and different."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count

from autopeft.candidates import Candidate, Scalar
from autopeft.domains import Choices, Ordinal, Real, Whole
from autopeft.problem import Problem
from autopeft.space import Parameter, Space

WEIGHTS = {
    "lora": 12,
    **dict.fromkeys(("ia3", "ln_tuning", "bitfit", "serial_adapter", "parallel_adapter", "layer_prefix"), 3),
    **dict.fromkeys(("lora+bitfit", "lora+serial", "lora+parallel", "lora+prompt", "lora+ia3", "parallel+prefix"), 2),
    **dict.fromkeys(("serial+parallel+prefix", "adalora", "vera", "oft", "prompt_tuning"), 2),
}
"""How often a method is drawn; 1 where it is not named. Equal shares would be mostly of methods that nobody uses."""

BITS_WEIGHTS = {32: 0.8, 16: 0.15, 4: 0.05}
ALIKE = 0.5
"""Chance that all groups of a parameter (layers, kinds) have one value, as hand-made configurations do."""

NEIGHBOURS_FROM = 60
"""Configurations before the first that is drawn near a good one."""
TOURNAMENT = 6
DRAWS = 200


@dataclass(frozen=True, slots=True)
class Known:
    """A configuration that was trained, as a possible parent: the lower the loss, the better."""

    candidate: Candidate
    trained_params: int
    loss: float


def round_robin(weights: Mapping[str, float]) -> Iterator[str]:
    """Give names for ever, so that of any first n each has its share to within one (smooth weighted round-robin).

    >>> from itertools import islice
    >>> list(islice(round_robin({"a": 2, "b": 1}), 6))
    ['a', 'b', 'a', 'a', 'b', 'a']
    """
    credit = dict.fromkeys(weights, 0.0)
    while True:
        for name, weight in weights.items():
            credit[name] += weight
        chosen = max(credit, key=credit.__getitem__)
        credit[chosen] -= sum(weights.values())
        yield chosen


def strata(space: Space) -> Iterator[str]:
    """Give the methods of a space in the order in which they are drawn, for ever."""
    domain = space.parameter("method").domain
    assert isinstance(domain, Choices)
    return round_robin({str(name): WEIGHTS.get(str(name), 1) for name in domain.values})


def draw(space: Space, method: str, rng: random.Random) -> Candidate:
    """Draw a configuration of a method: every value uniform in its domain, in its logarithm where the space says so."""
    values: dict[str, Scalar] = {}
    family: dict[str, Scalar] = {}
    alike = {base: rng.random() < ALIKE for base in sorted({p.base for p in space})}
    for parameter in space:
        if any(values.get(name) not in allowed for name, allowed in parameter.when.items()):
            continue
        if parameter.name == "method":
            value: Scalar = method
        elif parameter.name == "bits":
            value = _bits(parameter, rng)
        else:
            value = _any_value(parameter, rng)
        values[parameter.name] = family.setdefault(parameter.base, value) if alike[parameter.base] else value
    return space.complete(values)


def _bits(parameter: Parameter, rng: random.Random) -> Scalar:
    assert isinstance(parameter.domain, Choices)
    bits = [int(b) for b in parameter.domain.values]
    return rng.choices(bits, [BITS_WEIGHTS.get(b, 0.0) for b in bits])[0]


def _any_value(parameter: Parameter, rng: random.Random) -> Scalar:
    match parameter.domain:
        case Choices(values) | Ordinal(values):
            return rng.choice(values)
        case Real(low, high, log):
            return math.exp(rng.uniform(math.log(low), math.log(high))) if log else rng.uniform(low, high)
        case Whole(low, high):
            return rng.randint(low, high)


def near(space: Space, candidate: Candidate, rng: random.Random) -> Candidate:
    """Change one to three things of a configuration a little; its method stays."""
    values = dict(candidate.values)
    for _ in range(rng.randint(1, 3)):
        active = [p for p in space.active(values) if p.name != "method"]
        # The learning rate matters for all of them; otherwise each thing has the same chance, however many groups.
        bases = sorted({p.base for p in active} - {"lr_multiple"})
        base = "lr_multiple" if not bases or rng.random() < 0.3 else rng.choice(bases)
        members = [p for p in active if p.base == base]
        up = rng.random() < 0.5
        for parameter in members if rng.random() < ALIKE else [rng.choice(members)]:
            values[parameter.name] = _moved(parameter, values.get(parameter.name, parameter.default), rng, up=up)
    return space.complete({p.name: values.get(p.name, p.default) for p in space.active(values)})


def _moved(parameter: Parameter, value: Scalar, rng: random.Random, *, up: bool) -> Scalar:
    match parameter.domain:
        case Ordinal(values):
            at = values.index(float(value)) + (1 if up else -1)
            return values[min(len(values) - 1, max(0, at))]
        case Choices() if parameter.name == "bits":
            return _bits(parameter, rng)
        case Real(low, high, True):
            return min(high, max(low, float(value) * 2 ** rng.gauss(0, 1)))
        case _:
            return _any_value(parameter, rng)


@dataclass(frozen=True, slots=True)
class Draw:
    """A configuration to train.

    Attributes:
        origin: "start" (of the space), "stratified" or "neighbour".
        budget_params: Trained parameters that it was lowered to, head included.
    """

    candidate: Candidate
    origin: str
    budget_params: int


def draws(
    problem: Problem, budgets: Sequence[int], known: Callable[[], Sequence[Known]], *, seed: int
) -> Iterator[Draw]:
    """Give configurations for ever, none twice: those to start with, then by strata, every third near a good one.

    The n-th depends on the seed, n, and what was known when it was asked for.

    Args:
        budgets: Most trained parameters, head included; each draw takes one of them at random.
        known: Gives what was trained by now.
    """
    seen = set()
    methods = strata(problem.space)
    of_budget = {b: replace(problem, parameter_limit=b) for b in budgets}

    def new(candidate: Candidate, origin: str, budget: int) -> Draw | None:
        fitted = of_budget[budget].fit(candidate)
        if fitted is None or of_budget[budget].refusal(fitted) or (identity := problem.identity(fitted)) in seen:
            return None
        seen.add(identity)
        return Draw(fitted, origin, budget)

    starts = (new(candidate, "start", max(budgets)) for candidate in of_budget[max(budgets)].starts())
    n = 0
    for start in starts:
        if start is not None:
            yield start
            n += 1
    for i in count(n):
        rng = random.Random(f"{seed}:{i}")
        as_neighbour = i >= NEIGHBOURS_FROM and i % 3 == 0
        method = "" if as_neighbour else next(methods)
        for _ in range(DRAWS):
            budget = rng.choice(list(budgets))
            if as_neighbour:
                parents = [k for k in known() if k.trained_params <= budget]
                parents = rng.choices(parents, k=TOURNAMENT) if parents else []
                if not parents:
                    continue
                parent = min(parents, key=lambda k: k.loss)
                found = new(near(problem.space, parent.candidate, rng), "neighbour", budget)
            else:
                found = new(draw(problem.space, method, rng), "stratified", budget)
            if found is not None:
                yield found
                break
