"""The Gaussian process, against GPyTorch with the same hyperparameters."""

from __future__ import annotations

import gpytorch
import numpy as np
import pytest
import torch

from autopeft.search import surrogate
from autopeft.search.surrogate import Kernel, condition, fit_hyperparameters

KERNEL = Kernel(np.array([0, 0, 1, 2]))


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    x = rng.random((40, 4))
    return x, np.sin(5 * x[:, 0]) + x[:, 2] + 0.05 * rng.standard_normal(40)


class Reference(gpytorch.models.ExactGP):
    def __init__(self, x, y, theta, level):
        likelihood = gpytorch.likelihoods.GaussianLikelihood(
            noise_constraint=gpytorch.constraints.GreaterThan(1e-9)
        ).double()
        likelihood.noise = float(np.exp(theta[-1]))
        super().__init__(x, y, likelihood)
        self.mean_module = gpytorch.means.ConstantMean().double()
        self.mean_module.constant.data.fill_(level)
        self.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=2.5, ard_num_dims=4)).double()
        self.covar_module.outputscale = float(np.exp(theta[0]))
        self.covar_module.base_kernel.lengthscale = torch.from_numpy(np.exp(-theta[1:-1] / 2)[KERNEL.groups])

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def test_likelihood_and_predictions_are_gpytorchs(data):
    x, y = data
    theta = fit_hyperparameters(KERNEL, x, y)
    model = condition(KERNEL, theta, x, y)
    target = torch.from_numpy((y - model.offset) / model.scale)
    reference = Reference(torch.from_numpy(x), target, theta, model.level)
    likelihood = gpytorch.mlls.ExactMarginalLogLikelihood(reference.likelihood, reference)
    reference.train()
    theirs = -likelihood(reference(torch.from_numpy(x)), target).item() * len(y)
    mine, _ = surrogate._negative_log_likelihood(theta, KERNEL.distances(x), target.numpy(), np.zeros(len(y)))
    assert mine + len(y) / 2 * np.log(2 * np.pi) == pytest.approx(theirs, rel=1e-6)
    reference.eval()
    new = np.random.default_rng(1).random((10, 4))
    with torch.no_grad(), gpytorch.settings.fast_pred_var(False):
        posterior = reference(torch.from_numpy(new))
    mean, deviation = model.predict(new)
    np.testing.assert_allclose((mean - model.offset) / model.scale, posterior.mean.numpy(), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(deviation / model.scale, posterior.stddev.numpy(), rtol=1e-5)


def test_what_is_fitted_is_what_is_predicted_there(data):
    x, y = data
    model = condition(KERNEL, fit_hyperparameters(KERNEL, x, y), x, y, noise=np.linspace(0, 1, len(y)))
    np.testing.assert_allclose(model.fitted, model.predict(x)[0], rtol=1e-9)
    assert not np.allclose(model.fitted, y, atol=1e-3)  # the noise is taken off


def test_the_gradient_is_that_of_the_likelihood(data):
    x, y = data
    target, distances, extra = (y - y.mean()) / y.std(), KERNEL.distances(x), np.linspace(0, 0.3, len(y))
    theta = np.array([0.3, 1.0, -1.0, 0.5, -3.0])

    def value(at):
        return surrogate._negative_log_likelihood(at, distances, target, extra)

    slopes = [(value(theta + 1e-5 * e)[0] - value(theta - 1e-5 * e)[0]) / 2e-5 for e in np.eye(5)]
    np.testing.assert_allclose(value(theta)[1], slopes, rtol=1e-5)


def test_it_predicts_what_it_has_not_seen_and_knows_how_well(data):
    x, y = data
    model = condition(KERNEL, fit_hyperparameters(KERNEL, x, y), x, y)
    new = np.random.default_rng(2).random((500, 4))
    truth = np.sin(5 * new[:, 0]) + new[:, 2]
    mean, deviation = model.predict(new)
    assert np.sqrt(np.mean((mean - truth) ** 2)) < 0.35 * truth.std()
    assert 0.7 < np.mean(np.abs(mean - truth) < 2 * deviation) <= 1
    assert 0.02 < model.noise < 0.12


def test_a_row_of_known_noise_counts_for_less():
    kernel, x = Kernel(np.array([0])), np.array([[0.2], [0.2], [0.8]])
    y, theta = np.array([0.0, 1.0, 0.5]), np.array([0.0, 2.0, -4.0])
    even = condition(kernel, theta, x, y).predict(x[:1])[0][0]
    doubted = condition(kernel, theta, x, y, noise=np.array([0.0, 2.0, 0.0])).predict(x[:1])[0][0]
    assert even == pytest.approx(0.5, abs=0.01)
    assert doubted < 0.15


@pytest.mark.parametrize("y", [np.zeros(5), np.full(5, 7.0), np.array([1e300, 0, 0, 0, 0]), np.arange(5) * 1e-300])
def test_odd_targets_and_equal_rows_are_no_trouble(y):
    x = np.array([[0.5] * 4] * 4 + [[0.1] * 4])
    model = condition(KERNEL, fit_hyperparameters(KERNEL, x, y), x, y)
    mean, deviation = model.predict(np.random.default_rng(0).random((3, 4)))
    assert np.isfinite(mean).all()
    assert (deviation > 0).all()
