"""Our engines as samplers of plain Optuna, held to the suite that Optuna ships for anybody's samplers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import optuna
import pytest
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
)

from autopeft.search.engine_sampler import EngineSampler
from autopeft.search.known_cost import KnownCost
from autopeft.search.nehvi import Nehvi

optuna.logging.set_verbosity(optuna.logging.WARNING)


class TestKnownCost(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: EngineSampler(KnownCost, seed=0)


@pytest.mark.filterwarnings("ignore")
class TestAutopeft(MultiObjectiveSamplerTestCase):
    """Drawn independently, both engines are the same; what they model, `test_nehvi` looks at."""

    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: EngineSampler(Nehvi, seed=0)


# SingleOnlySamplerTestCase is for samplers that refuse several objectives; ours do not.


def test_it_finds_the_optimum_of_a_plain_study():
    """Against chance: 40 trials of a bowl in three dimensions, minimised."""

    def bowl(trial: optuna.Trial) -> float:
        x, y = trial.suggest_float("x", -5, 5), trial.suggest_float("y", 1e-4, 1, log=True)
        return (x - 1) ** 2 + (trial.suggest_int("z", 0, 20) - 7) ** 2 / 10 + 10 * abs(y - 0.01)

    best = {}
    for name, sampler in (
        ("engine", EngineSampler(KnownCost, seed=1)),
        ("chance", optuna.samplers.RandomSampler(seed=1)),
    ):
        study = optuna.create_study(sampler=sampler)
        study.optimize(bowl, n_trials=40)
        best[name] = study.best_value
    assert best["engine"] < 0.2
    assert best["engine"] < best["chance"]


def test_a_seeded_study_is_reproduced_and_reseeding_changes_it():
    def run(reseed: bool) -> list[dict[str, float]]:
        sampler = EngineSampler(KnownCost, seed=3)
        if reseed:
            sampler.reseed_rng()
        study = optuna.create_study(directions=["minimize", "maximize"], sampler=sampler)
        study.optimize(lambda t: (t.suggest_float("x", 0, 1), t.suggest_float("y", 0, 1) ** 2), n_trials=14)
        return [trial.params for trial in study.trials]

    assert run(False) == run(False)
    assert run(False) != run(True)


def test_it_may_be_asked_from_several_threads(monkeypatch):
    sampler = EngineSampler(KnownCost, seed=0)
    study = optuna.create_study(sampler=sampler)
    study.optimize(lambda t: t.suggest_float("x", 0, 1) + t.suggest_int("n", 0, 9), n_trials=8)
    asked = [study.ask() for _ in range(24)]
    frozen = [study.trials[trial.number] for trial in asked]
    shared = sampler.infer_relative_search_space(study, frozen[0])
    monkeypatch.setattr(sampler, "_engine", None)  # the threads make it, too
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            proposed = list(pool.map(lambda trial: sampler.sample_relative(study, trial, shared), frozen))
    finally:
        sys.setswitchinterval(interval)
    alone = EngineSampler(KnownCost, seed=0)
    assert proposed == [alone.sample_relative(study, trial, shared) for trial in frozen]
