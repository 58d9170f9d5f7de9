"""Does a guide lower its own target? Welch's t-test against control cells, from streamed sums.

C contexts, T measured targets, U guides. Expression x is log1p CP10k, natural log. A guide's cells
may lie in several contexts whose baselines differ, so each cell is compared with the controls of
its own context: with y = x - control mean of the cell's context and weights w_c = n_uc / n_u,

    t = mean(y) / sqrt(s_y^2 / n_u + sum_c w_c^2 s_0c^2 / n_0c)

with Welch-Satterthwaite degrees of freedom; in one context this is Welch's t-test.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

from knockscreen.config import QcConfig

Floats = NDArray[np.float64]
KEPT, INACTIVE, NOT_JUDGED = "kept", "inactive", "not_judged"


@dataclass
class Moments:
    """Sums over cells in groups: cells, log1p CP10k and its square, CP10k, counts, library size."""

    n: Floats
    x: Floats
    xx: Floats
    cp10k: Floats
    counts: Floats
    library: Floats

    @classmethod
    def zeros(cls, *shape: int) -> "Moments":
        """Return empty sums."""
        return cls(*(np.zeros(shape) for _ in range(6)))

    def add_cells(self, group: NDArray[np.int64], library: Floats) -> None:
        """Count cells (n,) into flat groups, a group per cell."""
        self.n += _sum(group, None, self.n)
        self.library += _sum(group, library, self.n)

    def add_values(self, group: NDArray[np.int64], counts: Floats, library: Floats) -> None:
        """Add non-zero counts (v,), each with its group and its cell's library size."""
        scaled = counts / library * 1e4
        log = np.log1p(scaled)
        self.x += _sum(group, log, self.x)
        self.xx += _sum(group, log * log, self.x)
        self.cp10k += _sum(group, scaled, self.x)
        self.counts += _sum(group, counts, self.x)


def _sum(group: NDArray[np.int64], weights: Floats | None, like: Floats) -> Floats:
    total = np.bincount(group, weights=weights, minlength=like.size)
    return total.reshape(like.shape).astype(float)


@dataclass(frozen=True)
class GuideTest:
    """The test of every guide, arrays (U,); NaN where it cannot be made."""

    n_cells: NDArray[np.int64]
    control_mean: Floats
    target_mean: Floats
    control_count: Floats
    log2_fold_change: Floats
    statistic: Floats
    p_value: Floats
    fdr: Floats


def test_guides(guides: Moments, controls: Moments, target: NDArray[np.int64]) -> GuideTest:
    """Test each guide's target in the guide's cells against control cells.

    Parameters
    ----------
    guides
        Sums of shape (U, C) over the guide's cells, of its own target's expression.
    controls
        Sums of shape (C, T) over control cells.
    target
        Column of each guide's target among the T measured ones, shape (U,); -1 if not measured.

    Returns
    -------
    GuideTest
        Means are CP10k, the controls' weighted by the guide's cells per context; a guide without
        one count of its target is given half a count in ``log2_fold_change``. ``control_count``
        is the mean count per control cell. FDR is Benjamini-Hochberg over the guides tested.
    """
    measured = target >= 0
    column = np.where(measured, target, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_0 = (controls.x / controls.n)[:, column].T  # (U, C)
        n_0 = controls.n[:, column].T
        var_0 = _difference(controls.xx[:, column].T / n_0, mean_0**2) * n_0 / (n_0 - 1)
        present = guides.n > 0
        n = guides.n.sum(axis=1)
        weight = guides.n / n[:, None]
        shift = _over(guides.x - guides.n * mean_0, present) / n
        square = _over(guides.xx - 2 * mean_0 * guides.x + guides.n * mean_0**2, present)
        error = _difference(square / n, shift**2) / (n - 1)
        error_0 = np.where(present, weight**2 * var_0 / n_0, 0.0)
        total = error + error_0.sum(axis=1)
        statistic = shift / np.sqrt(total)
        freedom = error**2 / (n - 1) + _over(error_0**2 / (n_0 - 1), present & (error_0 > 0))
        freedom = total**2 / freedom
        control_mean = _over(weight * (controls.cp10k / controls.n)[:, column].T, present)
        control_count = _over(weight * (controls.counts / controls.n)[:, column].T, present)
        target_mean = guides.cp10k.sum(axis=1) / n
        least = 0.5e4 / guides.library.sum(axis=1)
        fold = np.log2(np.maximum(target_mean, least) / control_mean)
    judged = measured & (n > 1) & np.isfinite(statistic) & np.isfinite(freedom)
    p_value = np.full(len(n), np.nan)
    p_value[judged] = 2 * stdtr(freedom[judged], -np.abs(statistic[judged]))
    nothing = ~measured | (n == 0)
    control_mean[nothing], target_mean[nothing], control_count[nothing] = np.nan, np.nan, np.nan
    return GuideTest(
        n_cells=n.astype(np.int64),
        control_mean=control_mean,
        target_mean=target_mean,
        control_count=control_count,
        log2_fold_change=np.where(nothing | ~(control_mean > 0), np.nan, fold),
        statistic=np.where(judged, statistic, np.nan),
        p_value=p_value,
        fdr=benjamini_hochberg(p_value),
    )


def _difference(square: Floats, of_mean: Floats) -> Floats:
    """Return mean square minus squared mean; what rounding alone could leave is 0."""
    left = square - of_mean
    return np.where(left > 1e-12 * square, left, 0.0)


def _over(values: Floats, where: NDArray[np.bool_]) -> Floats:
    """Sum over contexts (axis 1), those without cells left out."""
    total: Floats = np.where(where, values, 0.0).sum(axis=1)
    return total


def benjamini_hochberg(p_value: Floats) -> Floats:
    """Return Benjamini-Hochberg adjusted p-values; NaN stays NaN and is not counted.

    >>> benjamini_hochberg(np.array([0.01, 0.04, 0.03, np.nan])).round(3)
    array([0.03, 0.04, 0.04,  nan])
    """
    adjusted = np.full(len(p_value), np.nan)
    known = np.flatnonzero(np.isfinite(p_value))
    order = known[np.argsort(-p_value[known], kind="stable")]
    ranks = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum.accumulate(np.minimum(p_value[order] * len(order) / ranks, 1.0))
    return adjusted


def judge(test: GuideTest, settings: QcConfig) -> NDArray[np.str_]:
    """Return ``kept``, ``inactive`` or ``not_judged`` for each guide, shape (U,).

    A guide is inactive when its target is not significantly down although it would show: the guide
    has more than ``knockdown_min_cells`` cells and controls express the target at a mean count of
    at least ``knockdown_min_expression``.
    """
    down = (test.fdr < settings.knockdown_fdr) & (test.statistic < 0)
    would_show = (
        np.isfinite(test.p_value)
        & (test.n_cells > settings.knockdown_min_cells)
        & (test.control_count >= settings.knockdown_min_expression)
    )
    return np.where(down, KEPT, np.where(would_show, INACTIVE, NOT_JUDGED))
