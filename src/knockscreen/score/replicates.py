"""Whether a knock-down did anything, judged by replicates: pseudobulks, not cells.

C separate contexts, G panel genes (or any other columns), R pseudobulks. A pseudobulk is the mean
over the cells of one replicate unit in one context: a guide, a well, a batch. Cells of one culture
are not replicates of each other; their variance only says how noisy a pseudobulk of n cells is at
least, ``s^2 / n``.

The model of a gene's pseudobulk means is ``y = context + knock-down + error`` with
``var(error) = phi * s^2 / n``: phi, the *overdispersion*, is how much more pseudobulks differ than
their cells explain. It is estimated from the pseudobulks of the knock-down and the controls about
the additive fit, so that over pooled contexts (donors) a knock-down that does not act alike in them
counts as noise too; it is moderated over genes by the empirical Bayes of Smyth (2004). Then
``t = delta / sqrt(phi * sum of s^2 / n)``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma, polygamma

from knockscreen.score.statistics import t_p_value

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ReplicateKind = Literal["auto", "guide", "replicate"]

LEAST_UNITS = 2
"""Replicate units that each side needs, over the contexts pooled."""
LEAST_GENES = 10
"""Genes below which overdispersion is not moderated."""
LEAST_OVERDISPERSION = 1.0
"""Pseudobulks do not differ less than their cells do; what seems so is chance, or few cells."""


@dataclass(frozen=True)
class Replicates:
    """The pseudobulks of one side (a knock-down, or control) by context, as sums."""

    units: Floats  # (C,) pseudobulks
    cells: Floats  # (C,) their cells
    mean: Floats  # (C, G) over their cells; NaN without any
    squares: Floats  # (C, G) sum over pseudobulks of n * (their mean - mean)^2


def summarise(context: Ints, cells: Floats, means: Floats, n_contexts: int) -> Replicates:
    """Summarise pseudobulk ``means`` (R, G) of ``cells`` (R,) cells in ``context`` (R,).

    >>> one = summarise(np.array([0, 0]), np.array([1.0, 3.0]), np.array([[0.0], [4.0]]), 1)
    >>> one.mean.item(), one.squares.item()
    (3.0, 12.0)
    """
    shape = (n_contexts, means.shape[1])
    total = np.bincount(context, cells, minlength=n_contexts).astype(np.float64)
    mean, squares = np.zeros(shape), np.zeros(shape)
    np.add.at(mean, context, cells[:, None] * means)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean /= total[:, None]
    np.add.at(squares, context, cells[:, None] * (means - mean[context]) ** 2)
    units = np.bincount(context, minlength=n_contexts).astype(np.float64)
    return Replicates(units, total, mean, squares)


def pooled_variance(variance_a: Floats, n_a: Floats, variance_b: Floats, n_b: Floats) -> Floats:
    """Return the variance of cells (C, G) within two sides of n (C,) cells; NaN below 3 cells."""
    freedom = np.maximum(n_a - 1, 0) + np.maximum(n_b - 1, 0)
    part_a = np.where(n_a[:, None] > 1, variance_a * (n_a - 1)[:, None], 0.0)
    part_b = np.where(n_b[:, None] > 1, variance_b * (n_b - 1)[:, None], 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((part_a + part_b) / np.where(freedom > 0, freedom, np.nan)[:, None])


def overdispersion(
    target: Replicates, control: Replicates, variance: Floats, members: Sequence[int]
) -> tuple[Floats, float]:
    """Return phi (G,) about the additive fit over ``members``, and its degrees of freedom.

    NaN, with no degree of freedom, where a side has fewer than two pseudobulks.

    Parameters
    ----------
    variance
        Of cells, (C, G); a gene without variance in a context says nothing there.
    members
        Contexts that are pooled; those without a pseudobulk on both sides are passed over.
    """
    there = [m for m in members if target.units[m] > 0 and control.units[m] > 0]
    units = (target.units[there].sum(), control.units[there].sum())
    freedom = float(sum(units)) - len(there) - 1
    empty = np.full(target.mean.shape[1], np.nan)
    if not there or min(units) < LEAST_UNITS or freedom < 1:
        return empty, 0.0
    s2 = np.where(variance[there] > 0, variance[there], np.nan)
    within = np.nansum((target.squares[there] + control.squares[there]) / s2, axis=0)
    difference = target.mean[there] - control.mean[there]
    weight = 1 / (s2 * (1 / target.cells[there] + 1 / control.cells[there])[:, None])
    total = np.nansum(weight, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.nansum(weight * difference, axis=0) / total
        between = np.nansum(weight * (difference - mean) ** 2, axis=0)
        phi = (within + between) / freedom
    return np.where(np.isfinite(s2).all(axis=0), phi, np.nan), freedom


def overdispersion_of_one(side: Replicates, variance: Floats, members: Sequence[int]) -> Floats:
    """Return phi (G,) of one side alone, the controls, over ``members``; NaN without two units.

    For a knock-down of a single unit, which says nothing of how units differ itself.

    >>> one = summarise(np.zeros(2, dtype=int), np.array([4.0, 4.0]), np.array([[0.0], [2.0]]), 1)
    >>> overdispersion_of_one(one, np.ones((1, 1)), [0]).item()  # 2 * 4 * 1^2 / 1
    8.0
    """
    there = [m for m in members if side.units[m] > 0]
    freedom = float(side.units[there].sum()) - len(there)
    if freedom < 1:
        return np.full(side.mean.shape[1], np.nan)
    s2 = np.where(variance[there] > 0, variance[there], np.nan)
    phi = np.nansum(side.squares[there] / s2, axis=0) / freedom
    return np.where(np.isfinite(s2).all(axis=0), phi, np.nan)


def trigamma_inverse(values: float) -> float:
    """Return x with trigamma(x) = value, by Newton's method on 1 / trigamma.

    >>> round(trigamma_inverse(float(polygamma(1, 3.5))), 6)
    3.5
    """
    if values > 1e7:
        return float(1 / np.sqrt(values))
    x = 0.5 + 1 / values
    for _ in range(50):
        found = float(polygamma(1, x))
        step = found * (1 - found / values) / float(polygamma(2, x))
        x += step
        if abs(step) < 1e-10 * x:
            break
    return float(x)


def moderate(phi: Floats, freedom: float) -> tuple[Floats, float]:
    """Return ``phi`` (G,) drawn toward its prior, and the degrees of freedom then.

    The prior, a scaled inverse chi-square, is fitted to the genes' log phi by moments (Smyth
    2004). With fewer than ten genes nothing is moderated.
    """
    known = np.isfinite(phi) & (phi > 0)
    if known.sum() < LEAST_GENES or freedom <= 0:
        return phi, freedom
    shifted = np.log(phi[known]) - digamma(freedom / 2) + np.log(freedom / 2)
    excess = float(np.var(shifted, ddof=1) - polygamma(1, freedom / 2))
    if excess <= 0:
        return np.where(np.isnan(phi), np.nan, np.exp(shifted.mean())), float("inf")
    prior_freedom = 2 * trigamma_inverse(excess)
    prior = float(np.exp(shifted.mean() + digamma(prior_freedom / 2) - np.log(prior_freedom / 2)))
    total = prior_freedom + freedom
    return (prior_freedom * prior + freedom * phi) / total, total


def judge(
    delta: Floats,
    phi: tuple[Floats, float],
    variance: Floats,
    cells: tuple[Floats, Floats],
    members: Sequence[int],
) -> tuple[Floats, Floats]:
    """Return standard errors and two-sided p-values (G,) of ``delta``; NaN where not judged.

    Parameters
    ----------
    delta
        (G,), the mean over ``members`` of the differences of two sides.
    phi
        Overdispersion (G,) and its degrees of freedom; at least 1 is used.
    variance
        Of cells, (C, G), as :func:`pooled_variance` gives it.
    cells
        Numbers of cells (C,) behind ``delta``: of the knock-down, of control.

    >>> one, n = np.ones((1, 1)), np.full(1, 8.0)
    >>> error, p = judge(np.ones(1), (np.full(1, 4.0), 10.0), one, (n, n), [0])
    >>> error.item(), round(p.item(), 4)  # sqrt(4 * (1 / 8 + 1 / 8)); t = 1 of 10 degrees
    (1.0, 0.3409)
    """
    excess = np.where(np.isnan(phi[0]), np.nan, np.maximum(phi[0], LEAST_OVERDISPERSION))
    each = variance[members] * (1 / cells[0][members] + 1 / cells[1][members])[:, None]
    error = np.sqrt(excess * each.sum(axis=0)) / len(members)
    tested = np.isfinite(error) & (error > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = t_p_value(delta / error, phi[1])
    return np.where(tested, error, np.nan), np.where(tested, p, np.nan)
