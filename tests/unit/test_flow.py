"""Solvers against a closed form, and the algebra of guidance."""

import math

import pytest
import torch

from knockscreen.flow import (
    SOLVERS,
    guide_additive,
    guide_joint,
    guide_nested,
    guided,
    interpolate,
)
from knockscreen.plan import EVALUATIONS

X0 = torch.tensor([[[1.0, -2.0]], [[0.5, 3.0]]], dtype=torch.float64)
ORDER = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4, "ab2": 2}


def field(x, t):
    """dx/dt = (t - 1.5) x, so x(1) = x(0) e^-1."""
    return (t - 1.5).view(-1, 1, 1) * x


def error(solver: str, steps: int) -> float:
    return float((SOLVERS[solver](field, X0, steps) - X0 * math.exp(-1)).abs().max())


@pytest.mark.parametrize("solver", ORDER)
def test_error_falls_with_the_order_of_the_solver(solver):
    order = math.log2(error(solver, 32) / error(solver, 64))
    assert order == pytest.approx(ORDER[solver], abs=0.15)


def test_adaptive_solver_reaches_the_closed_form_from_any_first_step():
    for steps in (1, 10, 50):
        assert error("dopri5", steps) < 1e-4


@pytest.mark.parametrize("solver", SOLVERS)
def test_straight_path_is_followed_exactly(solver):
    x1 = torch.tensor([[[4.0, 4.0]], [[-1.0, 2.0]]], dtype=torch.float64)
    reached = SOLVERS[solver](lambda x, t: x1 - X0, X0, 3)
    torch.testing.assert_close(reached, x1)


@pytest.mark.parametrize("solver", ORDER)
def test_plan_counts_the_evaluations_of_each_solver(solver):
    calls = []
    SOLVERS[solver](lambda x, t: calls.append(t) or x, X0, 7)
    assert len(calls) == 7 * EVALUATIONS[solver]


def test_adaptive_solver_gives_up_where_the_velocity_jumps_without_end():
    def wild(x, t):
        return torch.sin(1e9 * t).view(-1, 1, 1) * 1e9 + 0 * x

    with pytest.raises(ArithmeticError, match="step fell below 1e-6 at t = 0"):
        SOLVERS["dopri5"](wild, X0, 1)


def test_path_starts_at_noise_ends_at_data_and_has_constant_velocity():
    x1 = X0 + 2
    for t, expected in ((0.0, X0), (1.0, x1), (0.5, X0 + 1)):
        point, velocity = interpolate(X0, x1, torch.full((2,), t, dtype=torch.float64))
        torch.testing.assert_close(point, expected)
        torch.testing.assert_close(velocity, x1 - X0)


NULL, CONTEXT, ALONE, FULL = 0.1, 0.7, 1.9, 3.3
VALUES = {"null": NULL, "context": CONTEXT, "alone": ALONE, "full": FULL}


def value(terms: dict[str, float]) -> float:
    """The guided velocity where that of each term is a constant."""

    def velocity(x, t):
        each = torch.tensor([VALUES[name] for name in terms], dtype=x.dtype)
        assert len(x) == len(t) == 2 * len(terms)
        return each.repeat_interleave(2)[:, None, None].expand_as(x).clone()

    out = guided(velocity, list(terms.values()))(X0, torch.zeros(2, dtype=X0.dtype))
    torch.testing.assert_close(out, out.flatten()[0].expand_as(out))
    return float(out.flatten()[0])


@pytest.mark.parametrize(("wc", "wp"), [(1.0, 1.0), (2.0, 1.0), (1.0, 3.0), (2.0, 3.0), (0.0, 0.0)])
def test_nested_guidance_is_null_plus_context_plus_knockdown_given_context(wc, wp):
    expected = NULL + wc * (CONTEXT - NULL) + wp * (FULL - CONTEXT)
    assert value(guide_nested(context=wc, perturbation=wp)) == pytest.approx(expected)


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
def test_joint_guidance_weighs_all_conditions_alike(weight):
    assert value(guide_joint(weight=weight)) == pytest.approx(NULL + weight * (FULL - NULL))


@pytest.mark.parametrize(("wc", "wp"), [(1.0, 1.0), (2.0, 0.5), (1.0, 0.0)])
def test_additive_guidance_adds_each_condition_alone(wc, wp):
    expected = NULL + wc * (CONTEXT - NULL) + wp * (ALONE - NULL)
    assert value(guide_additive(context=wc, perturbation=wp)) == pytest.approx(expected)


def test_weight_one_is_the_conditional_velocity_itself():
    def conditional(x, t):
        return torch.sin(x * 1.2345)

    for terms in (guide_nested(context=1.0, perturbation=1.0), guide_joint(weight=1.0)):
        assert terms == {"full": 1}
        assert guided(conditional, list(terms.values())) is conditional


def test_terms_of_weight_zero_are_left_out():
    assert guide_nested(context=1.0, perturbation=2.0) == {"full": 2, "context": -1}
    assert guide_additive(context=1.0, perturbation=0.0) == {"context": 1}
    assert guide_joint(weight=0.0) == {"null": 1}
