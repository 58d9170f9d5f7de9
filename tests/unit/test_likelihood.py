"""The negative binomial against scipy and against sums over its probabilities."""

import numpy as np
import pytest
import torch
from scipy import stats

from knockscreen.nn.likelihood import detection_rate, expected_log1p, nb_log_prob, nb_sample

CASES = [(0.001, 0.5), (0.3, 0.1), (1.0, 1.0), (5.0, 2.0), (80.0, 0.7), (300.0, 20.0), (2.0, 1e4)]


def nbinom(mu: float, theta: float):
    return stats.nbinom(theta, theta / (theta + mu))


def number(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float64)


@pytest.mark.parametrize(("mu", "theta"), CASES)
def test_log_probability_is_scipys(mu, theta):
    x = np.array([0, 1, 2, 7, 50, 400])
    ours = nb_log_prob(torch.from_numpy(x).double(), number(mu), number(theta)).numpy()
    np.testing.assert_allclose(ours, nbinom(mu, theta).logpmf(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("mu", "theta"), [(0.5, 0.3), (4.0, 2.0), (50.0, 8.0)])
def test_samples_have_its_mean_variance_and_zeros(mu, theta):
    n = 100_000
    generator = torch.Generator().manual_seed(0)
    x = nb_sample(torch.full((n,), mu), torch.tensor(theta), generator).numpy()
    exact = nbinom(mu, theta)
    assert (x == x.round()).all()
    assert abs(x.mean() - mu) < 4 * exact.std() / np.sqrt(n)
    assert abs(x.var() / exact.var() - 1) < 0.08
    zero = exact.pmf(0)
    assert abs((x == 0).mean() - zero) < 4 * np.sqrt(zero * (1 - zero) / n)


def test_samples_repeat_with_the_generator():
    mu, theta = torch.full((50,), 3.0), torch.tensor(1.0)
    draws = [nb_sample(mu, theta, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize(("mu", "theta"), CASES)
def test_detection_is_the_probability_of_a_count(mu, theta):
    ours = detection_rate(number(mu), number(theta)).item()
    assert ours == pytest.approx(1 - nbinom(mu, theta).pmf(0), rel=1e-6)


@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0, 20.0])
@pytest.mark.parametrize(("mu", "theta"), CASES)
def test_expected_log1p_is_the_sum_over_counts(mu, theta, scale):
    exact = nbinom(mu, theta)
    x = np.arange(int(exact.isf(1e-14)) + 10)
    brute = float((exact.pmf(x) * np.log1p(scale * x)).sum())
    ours = expected_log1p(number(mu), number(theta), number(scale)).item()
    assert ours == pytest.approx(brute, rel=2e-4)


def test_expected_log1p_grows_with_the_mean_and_broadcasts():
    mu = torch.linspace(0.01, 5, 12).view(3, 4)
    value = expected_log1p(mu, torch.ones(4), torch.full((3, 1), 2.0))
    assert value.shape == (3, 4)
    assert (value.flatten().diff() > 0).all()
    assert expected_log1p(torch.zeros(1, 1), torch.ones(1), torch.ones(1, 1)).item() == 0
