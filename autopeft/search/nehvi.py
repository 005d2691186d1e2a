"""AutoPEFT's engine, to compare with: Gaussian processes of all objectives, and noisy expected hypervolume improvement.

Source: Zhou et al., arXiv:2301.12132, with the acquisition of Daulton et al., arXiv:2105.08195, in the logarithmic form
of BoTorch, and its priors for many dimensions (Hvarfner et al., arXiv:2402.02229) in place of SAAS, which takes minutes
of sampling a proposal. Every parameter is a feature, nothing is known of costs, and the pool is what FeasibleSampler
lets engines propose: fresh candidates and mutations of the front, lowered into the budget.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import TYPE_CHECKING

import numpy as np

from autopeft.candidates import Candidate
from autopeft.pareto import on_front
from autopeft.problem import Problem
from autopeft.search.engine import STARTUP, Observed
from autopeft.search.features import Features
from autopeft.search.pool import Pool
from autopeft.search.surrogate import Array

if TYPE_CHECKING:
    import torch

_FRESH, _MUTANTS, _SAMPLES, _CHUNK, _ITERATIONS = 256, 256, 64, 64, 60


class Nehvi:
    """Proposes candidates of one problem; see `autopeft.search.engine.Engine`."""

    def __init__(self, problem: Problem, *, seed: int) -> None:
        self._problem, self._seed = problem, seed
        self._pool = Pool(problem)
        self._features = Features(problem.space, with_cost=False)

    def propose(
        self, trials: Sequence[Observed], *, number: int, accepts: Callable[[Candidate], bool]
    ) -> Candidate | None:
        """Give the best candidate that is accepted."""
        random = Random(f"{self._seed} {number}")
        complete = [trial for trial in trials if trial.state == "complete"]
        if len(complete) < STARTUP:
            return next((c for c in self._pool.fresh(32, random) if accepts(c)), None)
        done = [trial.candidate for trial in complete]
        objectives = self._problem.objectives
        losses = np.array([[o.loss(v) for o, v in zip(objectives, t.values, strict=True)] for t in complete])
        parents = [done[i] for i in np.flatnonzero(on_front(losses))]
        pool = self._pool.fresh(_FRESH, random) + self._pool.mutants(parents, _MUTANTS, seed=f"{self._seed} {number}")
        running = [trial.candidate for trial in trials if trial.state == "running"]
        rows = self._features.plain
        with _alone(self._seed * 100_003 + number):
            scores = _scores(rows(done), rows(running), rows(pool), losses)
        return next((pool[i] for i in np.argsort(-scores, kind="stable") if accepts(pool[i])), None)


def _scores(done: Array, running: Array, pool: Array, losses: Array) -> Array:
    """Give the logarithm of the noisy expected hypervolume improvement of each row of the pool."""
    import torch
    from botorch.acquisition.logei import qLogNoisyExpectedImprovement
    from botorch.acquisition.multi_objective.logei import qLogNoisyExpectedHypervolumeImprovement
    from botorch.exceptions.errors import ModelFittingError
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import ModelListGP, SingleTaskGP
    from botorch.sampling import SobolQMCNormalSampler
    from gpytorch.mlls import SumMarginalLogLikelihood

    spread = losses.std(axis=0)
    gains = (losses.mean(axis=0) - losses) / np.where(spread > 0, spread, 1.0)
    x, y = torch.from_numpy(done), torch.from_numpy(gains)
    model = ModelListGP(*(SingleTaskGP(x, column[:, None], outcome_transform=None) for column in y.T))
    try:
        fit_gpytorch_mll(
            SumMarginalLogLikelihood(model.likelihood, model), optimizer_kwargs={"options": {"maxiter": _ITERATIONS}}
        )
    except ModelFittingError:
        model.eval()  # with the hyperparameters that the priors say
    common = {
        "X_baseline": x,
        "X_pending": torch.from_numpy(running) if len(running) else None,
        "sampler": SobolQMCNormalSampler(torch.Size([_SAMPLES]), seed=0),
        "prune_baseline": True,
    }
    if losses.shape[1] == 1:
        acquisition = qLogNoisyExpectedImprovement(model, **common)
    else:
        worst = y[torch.from_numpy(on_front(losses))].min(dim=0).values
        reference = worst - 0.1 * (y.max(dim=0).values - worst)
        acquisition = qLogNoisyExpectedHypervolumeImprovement(model, ref_point=reference, **common)
    with torch.no_grad():
        parts: list[torch.Tensor] = [acquisition(part[:, None]) for part in torch.from_numpy(pool).split(_CHUNK)]
    return np.asarray(torch.cat(parts).numpy())


@contextmanager
def _alone(seed: int) -> Iterator[None]:
    """Compute with one thread and random numbers of its own, and leave those of the process as they were."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)
