"""Flow matching: the path, the loss, guidance, and ODE solvers, all as functions of a velocity.

Linear path ``x_t = (1 - t) x_0 + t x_1`` from noise (t = 0) to data (t = 1) with velocity
``x_1 - x_0`` (Lipman et al. 2023; Liu et al. 2023). Knows no network.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(x (B, L, D), t (B,)) -> velocity (B, L, D)."""
Terms = dict[str, float]
"""Weight of each term of a guided velocity that has one: ``null`` (no condition), ``context``,
``alone`` (the knock-down alone) and ``full``. They add up to 1; weight 1 of all is no guidance."""
Solver = Callable[[Velocity, Tensor, int], Tensor]
"""(velocity, x at t = 0, steps) -> x at t = 1."""


def interpolate(x0: Tensor, x1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return the point x_t on the straight path and its velocity, for t (B,)."""
    weight = t.view(-1, *([1] * (x0.dim() - 1)))
    return (1 - weight) * x0 + weight * x1, x1 - x0


def guide_nested(*, context: float, perturbation: float) -> Terms:
    """Return the terms of ``v0 + w_c (v_c - v0) + w_p (v_cp - v_c)``: knock-down given context."""
    return _terms(full=perturbation, context=context - perturbation, null=1 - context)


def guide_joint(*, weight: float) -> Terms:
    """Return the terms of ``v0 + w (v_cp - v0)``: all conditions together (scLDM, joint)."""
    return _terms(full=weight, null=1 - weight)


def guide_additive(*, context: float, perturbation: float) -> Terms:
    """Return the terms of ``v0 + w_c (v_c - v0) + w_p (v_p - v0)``: each alone (scLDM)."""
    return _terms(context=context, alone=perturbation, null=1 - context - perturbation)


def _terms(**weights: float) -> Terms:
    return {name: weight for name, weight in weights.items() if weight}


def guided(velocity: Callable[[Tensor, Tensor], Tensor], weights: list[float]) -> Velocity:
    """Return the weighted sum of velocities that one call gives for all terms.

    Parameters
    ----------
    velocity
        Takes x (n B, L, D) and t (n B,), the B rows once for each of the n terms, in their order.
    weights
        Of the terms. A single one of weight 1 is the velocity itself, bit for bit.
    """
    n = len(weights)
    if weights == [1]:
        return velocity

    def combined(x: Tensor, t: Tensor) -> Tensor:
        each = velocity(x.repeat(n, 1, 1), t.repeat(n)).view(n, *x.shape)
        return torch.einsum("n,nbld->bld", x.new_tensor(weights), each)

    return combined


def uniform_grid(steps: int) -> list[float]:
    """Return ``steps + 1`` equally spaced times from 0 to 1."""
    return [i / steps for i in range(steps + 1)]


def cosine_grid(steps: int) -> list[float]:
    """Return ``steps + 1`` times from 0 to 1 that are denser at both ends."""
    return [0.5 * (1 - math.cos(math.pi * i / steps)) for i in range(steps + 1)]


def _at(x: Tensor, t: float) -> Tensor:
    return torch.full((x.shape[0],), t, dtype=x.dtype, device=x.device)


def euler(velocity: Velocity, x: Tensor, steps: int) -> Tensor:
    """Integrate from t = 0 to 1 with Euler's method: one evaluation a step, order 1."""
    grid = uniform_grid(steps)
    for t, t_next in pairwise(grid):
        x = x + (t_next - t) * velocity(x, _at(x, t))
    return x


def midpoint(velocity: Velocity, x: Tensor, steps: int) -> Tensor:
    """Integrate with the midpoint rule: two evaluations a step, order 2."""
    grid = uniform_grid(steps)
    for t, t_next in pairwise(grid):
        h = t_next - t
        half = x + 0.5 * h * velocity(x, _at(x, t))
        x = x + h * velocity(half, _at(x, t + 0.5 * h))
    return x


def heun(velocity: Velocity, x: Tensor, steps: int) -> Tensor:
    """Integrate with Heun's method (explicit trapezoid): two evaluations a step, order 2."""
    grid = uniform_grid(steps)
    for t, t_next in pairwise(grid):
        h = t_next - t
        v = velocity(x, _at(x, t))
        x = x + 0.5 * h * (v + velocity(x + h * v, _at(x, t_next)))
    return x


def rk4(velocity: Velocity, x: Tensor, steps: int) -> Tensor:
    """Integrate with the classical Runge-Kutta method: four evaluations a step, order 4."""
    grid = uniform_grid(steps)
    for t, t_next in pairwise(grid):
        h = t_next - t
        k1 = velocity(x, _at(x, t))
        k2 = velocity(x + 0.5 * h * k1, _at(x, t + 0.5 * h))
        k3 = velocity(x + 0.5 * h * k2, _at(x, t + 0.5 * h))
        k4 = velocity(x + h * k3, _at(x, t_next))
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x


def ab2(velocity: Velocity, x: Tensor, steps: int) -> Tensor:
    """Integrate with two-step Adams-Bashforth on a cosine grid: one evaluation a step, order 2."""
    grid = cosine_grid(steps)
    previous: Tensor | None = None
    previous_h = 0.0
    for t, t_next in pairwise(grid):
        h = t_next - t
        v = velocity(x, _at(x, t))
        if previous is None:
            x = x + h * v
        else:
            ratio = 0.5 * h / previous_h
            x = x + h * ((1 + ratio) * v - ratio * previous)
        previous, previous_h = v, h
    return x


_DOPRI_C = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_DOPRI_A: tuple[tuple[float, ...], ...] = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_DOPRI_E = (
    71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40,
)  # fmt: skip


def dopri5(
    velocity: Velocity, x: Tensor, steps: int, *, rtol: float = 1e-4, atol: float = 1e-6
) -> Tensor:
    """Integrate with adaptive Dormand-Prince 5(4); ``steps`` sets the first step only.

    One step size serves the whole batch, so results depend on the batch within the tolerance:
    a checking mode, not the screen's solver.
    """
    t, h = 0.0, 1.0 / max(steps, 1)
    first = velocity(x, _at(x, 0.0))
    while t < 1 - 1e-12:
        h = min(h, 1 - t)
        k = [first]
        point = x
        for stage in range(1, 7):
            point = x + h * sum(a * ki for a, ki in zip(_DOPRI_A[stage], k, strict=True))
            k.append(velocity(point, _at(x, t + _DOPRI_C[stage] * h)))
        error = h * sum(e * ki for e, ki in zip(_DOPRI_E, k, strict=True))
        tolerance = atol + rtol * torch.maximum(x.abs(), point.abs())
        ratio = float((error / tolerance).square().mean().sqrt())
        if ratio <= 1:
            t, x, first = t + h, point, k[6]
        h *= min(5.0, max(0.2, 0.9 * (ratio + 1e-12) ** -0.2))
        if h < 1e-6:
            msg = (
                f"the adaptive solver's step fell below 1e-6 at t = {t:.4f}: "
                "the velocity is not smooth"
            )
            raise ArithmeticError(msg)
    return x


SOLVERS: dict[str, Solver] = {
    "euler": euler,
    "midpoint": midpoint,
    "heun": heun,
    "rk4": rk4,
    "ab2": ab2,
    "dopri5": dopri5,
}
