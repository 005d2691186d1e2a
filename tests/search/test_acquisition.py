"""The closed form of the expected improvement, against samples, integrals and BoTorch."""

from __future__ import annotations

import moocore
import numpy as np
import pytest
import torch
from botorch.acquisition.multi_objective.analytic import ExpectedHypervolumeImprovement
from botorch.utils.multi_objective.box_decompositions.non_dominated import FastNondominatedPartitioning
from botorch.utils.testing import MockModel, MockPosterior
from scipy.integrate import quad
from scipy.stats import norm

from autopeft.search.acquisition import Boxes, log_expected_improvement


def volume(points, reference):
    return float(moocore.hypervolume(points, ref=reference))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("objectives", [2, 3, 4])
@pytest.mark.parametrize("points", [0, 1, 12])
def test_the_boxes_are_what_the_front_leaves(objectives, points, rng):
    front, reference = rng.random((points, objectives)), np.full(objectives, 0.8)
    boxes = Boxes(front, reference)
    low, high = np.maximum(boxes.low, 0), np.maximum(boxes.high, 0)
    left = np.prod(high - low, axis=1).sum()
    assert left == pytest.approx(0.8**objectives - (volume(front, reference) if points else 0), abs=1e-12)
    for point in rng.random((300, objectives)):
        inside = ((boxes.low < point) & (point < boxes.high)).all(axis=1).sum()
        dominated = (front <= point).all(axis=1).any() or (point >= reference).any()
        assert inside == (0 if dominated else 1)


@pytest.mark.parametrize(("objectives", "known"), [(2, 0), (2, 1), (3, 1), (3, 2), (4, 2)])
def test_the_expectation_is_the_mean_over_samples(objectives, known, rng):
    front, reference = rng.random((8, objectives)), np.full(objectives, 1.1)
    mean = np.full(objectives, 0.3)
    deviation = np.where(np.arange(objectives) < known, 0.0, 0.2)
    got = np.exp(Boxes(front, reference).log_improvement(mean[None], deviation[None])[0])
    samples = mean + deviation * rng.standard_normal((4000, objectives))
    before = volume(front, reference)
    gained = [volume(np.vstack([front, sample]), reference) - before for sample in samples]
    assert got == pytest.approx(np.mean(gained), abs=4 * np.std(gained) / len(gained) ** 0.5)
    assert np.mean(gained) > 0.001


def test_one_belief_beside_a_known_cost_is_an_integral(rng):
    """The length of cost that is gained, at each quality, times the chance to be at least that good."""
    front, reference = np.array([[0.2, 0.9], [0.4, 0.5], [0.7, 0.1]]), np.array([1.0, 1.0])
    mean, deviation, cost = 0.45, 0.15, 0.3

    def gained(loss: float) -> float:
        least = min([1.0, *(c for f, c in front if f <= loss)])
        return max(0.0, least - cost) * norm.cdf(loss, mean, deviation)

    expected = sum(quad(gained, a, b)[0] for a, b in [(-2, 0.2), (0.2, 0.4), (0.4, 0.7), (0.7, 1.0)])
    got = Boxes(front, reference).log_improvement(np.array([[mean, cost]]), np.array([[deviation, 0.0]]))
    assert np.exp(got[0]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("objectives", [2, 3])
def test_it_is_botorchs_where_all_is_learned(objectives, rng):
    front, reference = rng.random((10, objectives)), np.full(objectives, 1.1)
    means, deviations = rng.random((20, objectives)), 0.05 + 0.2 * rng.random((20, objectives))
    mine = Boxes(front, reference).log_improvement(means, deviations)
    # BoTorch maximises.
    partitioning = FastNondominatedPartitioning(-torch.from_numpy(reference), Y=-torch.from_numpy(front))
    for row in range(len(means)):
        posterior = MockPosterior(
            mean=-torch.from_numpy(means[row])[None, None], variance=torch.from_numpy(deviations[row] ** 2)[None, None]
        )
        acquisition = ExpectedHypervolumeImprovement(MockModel(posterior), (-reference).tolist(), partitioning)
        theirs = acquisition(torch.zeros(1, 1, objectives, dtype=torch.float64)).item()
        assert np.exp(mine[row]) == pytest.approx(theirs, rel=1e-6, abs=1e-12)


def test_a_single_objective_gives_expected_improvement():
    z = np.linspace(-4, 4, 9)
    plain = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi) + z * norm.cdf(z)
    got = Boxes(np.array([[0.5], [0.9]]), np.array([1.0])).log_improvement(0.5 - 0.1 * z[:, None], np.full((9, 1), 0.1))
    np.testing.assert_allclose(np.exp(got), 0.1 * plain, rtol=1e-9)


def test_hopeless_candidates_are_still_told_apart():
    """Thirty deviations away the expectation is 0 in floating point; its logarithm is not."""
    front, reference = np.array([[0.0, 0.5], [0.3, 0.1]]), np.array([1.0, 1.0])
    means = np.array([[30.0, 0.3], [31.0, 0.3], [1e9, 0.3]])
    got = Boxes(front, reference).log_improvement(means, np.array([[1e-2, 0.0]] * 3))
    assert np.isfinite(got).all()
    assert (np.diff(got) < 0).all()


def test_what_is_known_to_be_dominated_gains_nothing():
    got = Boxes(np.array([[0.2, 0.2]]), np.array([1.0, 1.0])).log_improvement(
        np.array([[0.3, 0.3], [0.1, 0.3], [0.2, 2.0]]), np.zeros((3, 2))
    )
    assert got[0] == got[2] == -np.inf
    assert np.exp(got[1]) == pytest.approx(0.1 * 0.7)


def test_the_logarithm_is_smooth_where_its_forms_meet():
    for at in (-1.0, -1e5):
        around = at * (1 + np.array([-1e-9, 0, 1e-9]))
        got = log_expected_improvement(around)
        np.testing.assert_allclose(got, got[1], rtol=1e-7)
