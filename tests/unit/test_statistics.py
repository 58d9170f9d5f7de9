"""Student's p-values by a series are scipy's, and those of 40 digits, also far in the tail."""

import mpmath
import numpy as np
import pytest
from scipy.special import stdtr

from knockscreen.score import statistics
from knockscreen.score.statistics import FARTHEST, LEAST_FREEDOM, t_p_value


def draws(seed, n=100_000):
    """t up to 1e3 and degrees of freedom up to 1e6, half of them where the series ends."""
    rng = np.random.default_rng(seed)
    freedom = 10 ** rng.uniform(0, 6, n)
    t = rng.choice([-1, 1], n) * 10 ** rng.uniform(-6, 3, n)
    half = n // 2
    freedom[:half] = LEAST_FREEDOM * rng.uniform(0.9, 8, half)
    t[:half] = np.sqrt(FARTHEST * freedom[:half]) * rng.uniform(0, 1.2, half)
    return t, freedom


@pytest.mark.parametrize("seed", range(4))
def test_p_values_of_t_are_those_of_scipy(seed):
    t, freedom = draws(seed)
    exact = 2 * stdtr(freedom, -np.abs(t))
    normal = exact > 1e-300
    found = t_p_value(t, freedom)
    assert found[normal] == pytest.approx(exact[normal], rel=1e-9, abs=0)
    assert found[~normal] == pytest.approx(0, abs=2e-300)


def test_p_values_of_t_have_their_digits_far_in_the_tail():
    for freedom in (20.0, 64.0, 300.0, 1200.0):
        for share in (1e-6, 0.1, 0.3, 0.49):
            t = np.sqrt(share * freedom)
            with mpmath.workdps(40):
                x = freedom / (mpmath.mpf(freedom) + mpmath.mpf(t) ** 2)
                exact = mpmath.betainc(freedom / 2, 0.5, 0, x, regularized=True)
            assert t_p_value(t, freedom) == pytest.approx(float(exact), rel=1e-9, abs=0)


def test_most_of_a_screen_is_done_by_the_series(monkeypatch):
    left = []
    monkeypatch.setattr(statistics, "stdtr", lambda f, t: left.extend(f) or stdtr(f, t))
    rng = np.random.default_rng(0)
    t_p_value(rng.standard_t(60, 10_000), np.full(10_000, 60.0))
    assert len(left) < 10  # one in a million is beyond t^2 = 30


def test_what_is_no_test_is_nan_as_scipys_and_shapes_broadcast():
    t = np.array([np.nan, np.inf, -np.inf, 2.0, 0.0])[:, None]
    freedom = np.array([np.nan, -1.0, 0.0, 1.0, 30.0, np.inf])
    assert t_p_value(t, freedom) == pytest.approx(2 * stdtr(freedom, -np.abs(t)), nan_ok=True)
