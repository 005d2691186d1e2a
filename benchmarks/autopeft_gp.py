"""AutoPEFT's engine (Zhou et al., arXiv:2301.12132) on our space: a Gaussian process on every objective, and NEHVI.

Its authors' code searches a space of its own; here is what it does, with today's BoTorch: random configurations first,
then batches by noisy expected hypervolume improvement (qLogNEHVI), no objective known beforehand, no warm start. Of
the candidates, random feasible ones, the acquisition is maximised over a pool, one by one, each with those before it
pending. SAAS priors, which need minutes of sampling a proposal, are left out for BoTorch's own, which scale with the
dimension.
"""

from __future__ import annotations

import random
import warnings

import numpy as np
import torch
from landscape import Landscape, Trainer
from sampling import draw

from autopeft.domains import Choices, Ordinal, Real, Whole
from autopeft.records import Candidate
from autopeft.space import Space

STARTUP = 16
TOGETHER = 8
POOL = 256


class Encoding:
    """A candidate as a point of the unit cube: one-hot choices, scaled numbers, what is not active at zero."""

    def __init__(self, space: Space) -> None:
        self._space = space

    def of(self, candidate: Candidate) -> list[float]:
        """Give the point of a candidate."""
        row: list[float] = []
        for parameter in self._space:
            value = candidate.values.get(parameter.name)
            match parameter.domain:
                case Choices(values):
                    row += [float(value is not None and v == value) for v in values]
                case Ordinal(values):
                    row.append(0.0 if value is None else (1 + values.index(float(value))) / len(values))
                case Real(low, high, log) | Whole(low, high, log):
                    ends = (np.log(low), np.log(high)) if log else (low, high)
                    at = 0.0 if value is None else np.log(float(value)) if log else float(value)
                    row.append(0.0 if value is None else float((at - ends[0]) / (ends[1] - ends[0])))
        return row


def autopeft_gp(landscape: Landscape, trainer: Trainer, seed: int) -> None:
    """Search until the trainer's steps are spent."""
    from botorch.acquisition.multi_objective.logei import qLogNoisyExpectedHypervolumeImprovement
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import ModelListGP, SingleTaskGP
    from botorch.optim import optimize_acqf_discrete
    from gpytorch.mlls import SumMarginalLogLikelihood

    warnings.filterwarnings("ignore")
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    rng = random.Random(seed)
    encoding = Encoding(landscape.problem.space)
    rows: list[list[float]] = []
    values: list[list[float]] = []

    def train(candidate: Candidate) -> None:
        loss, params, memory = trainer.train(candidate)
        rows.append(encoding.of(candidate))
        values.append([-loss, -float(np.log(params)), -float(np.log(memory))])

    for candidate in _feasible(landscape, rng, STARTUP):
        train(candidate)
    while True:
        x = torch.tensor(rows, dtype=torch.double)
        y = torch.tensor(values, dtype=torch.double)
        y = (y - y.mean(0)) / y.std(0)
        varying = x.std(0) > 0  # a column that never changed says nothing, and has no length scale
        model = ModelListGP(*(SingleTaskGP(x[:, varying], y[:, j : j + 1]) for j in range(y.shape[1])))
        fit_gpytorch_mll(
            SumMarginalLogLikelihood(model.likelihood, model), optimizer_kwargs={"options": {"maxiter": 40}}
        )
        reference = y.min(0).values - 0.1 * (y.max(0).values - y.min(0).values)
        acquisition = qLogNoisyExpectedHypervolumeImprovement(
            model, ref_point=reference.tolist(), X_baseline=x[:, varying], prune_baseline=True,
            sampler=_sampler(seed),
        )  # fmt: skip
        pool = _feasible(landscape, rng, POOL)
        points = torch.tensor([encoding.of(candidate) for candidate in pool], dtype=torch.double)[:, varying]
        chosen, _ = optimize_acqf_discrete(acquisition, q=TOGETHER, choices=points, unique=True, max_batch_size=64)
        for point in chosen:
            train(pool[int((points - point).abs().sum(1).argmin())])


def _sampler(seed: int) -> object:
    from botorch.sampling import SobolQMCNormalSampler

    return SobolQMCNormalSampler(torch.Size([32]), seed=seed)


def _feasible(landscape: Landscape, rng: random.Random, count: int) -> list[Candidate]:
    """Draw feasible configurations at random, methods uniform, lowered into the budget."""
    problem = landscape.problem
    domain = problem.space.parameter("method").domain
    assert isinstance(domain, Choices)
    found: list[Candidate] = []
    while len(found) < count:
        candidate = problem.fit(draw(problem.space, str(rng.choice(domain.values)), rng))
        if candidate is not None and not problem.refusal(candidate):
            found.append(candidate)
    return found
