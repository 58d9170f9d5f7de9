"""Small statistics with their undefined cases stated: NaN where a number would be invented."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import erfc, stdtr
from scipy.stats import rankdata

Floats = NDArray[np.float64]

SERIES = (
    (-1 / 16, 1, 1 / 3),
    (21 / 512, 1 / 15, 1 / 105),
    (-671 / 8192, 1 / 945, 1 / 10_395),
    (180_323 / 524_288, 1 / 135_135, 1 / 2_027_025),
)
"""Of :func:`t_p_value`, for k = 1 to 4: the coefficient of x^2k in the series of sqrt(x / sinh x)
times (4k - 1)!! / 4^k, 1 / (4k - 3)!! and 1 / (4k - 1)!!."""
LEAST_FREEDOM, FARTHEST = 16, 0.5
"""Degrees of freedom from which, and t^2 / freedom up to which, these four are enough."""


def benjamini_hochberg(p_values: ArrayLike) -> Floats:
    """Return Benjamini-Hochberg FDR of p-values along the last axis; NaN p-values are not tests.

    >>> benjamini_hochberg([0.01, 0.04, 0.03, 0.2]).round(4).tolist()
    [0.04, 0.0533, 0.0533, 0.2]
    """
    p = np.asarray(p_values, dtype=np.float64)
    tests = np.isfinite(p).sum(axis=-1, keepdims=True)
    order = np.argsort(p, axis=-1, kind="stable")  # NaN last
    ranks = np.arange(1, p.shape[-1] + 1)
    scaled = np.take_along_axis(p, order, axis=-1) * tests / ranks
    scaled = np.where(np.isnan(scaled), np.inf, scaled)
    monotone = np.minimum.accumulate(scaled[..., ::-1], axis=-1)[..., ::-1]
    fdr = np.empty_like(p)
    np.put_along_axis(fdr, order, np.minimum(monotone, 1.0), axis=-1)
    return np.where(np.isnan(p), np.nan, fdr)


def stretched(blocks: Floats) -> Floats:
    """Return block values (T, B) with NaN, blocks not drawn, put at the mean of those drawn.

    Those drawn are stretched about it, by sqrt(B (B - 1) / n (n - 1)) for n of them, so that the
    standard error over all B is that over the n, and block r of all rows can be resampled together.
    A row with fewer than two is left at its mean; a row with all B is as it was.

    >>> stretched(np.array([[1.0, 3.0, np.nan]])).round(4).tolist()
    [[0.2679, 3.7321, 2.0]]
    """
    drawn = ~np.isnan(blocks)
    n, most = drawn.sum(axis=1, keepdims=True), blocks.shape[1]
    mean = np.where(drawn, blocks, 0.0).sum(axis=1, keepdims=True) / np.maximum(n, 1)
    factor = np.sqrt(most * (most - 1) / np.maximum(n * (n - 1), 1)) * (n > 1)
    filled = mean + factor * np.where(drawn, blocks - mean, 0.0)
    return np.where(n == most, blocks, filled)


def welch_t(delta: Floats, parts: Floats, freedoms: Floats) -> tuple[Floats, Floats]:
    """Return Welch's t and its two-sided p-value; NaN where the standard error is 0 or unknown.

    Parameters
    ----------
    delta
        Differences, of any shape.
    parts
        (K, ...) parts of the squared standard error: variance / cells of each group of cells.
    freedoms
        (K, ...) degrees of freedom of each part.
    """
    squared = parts.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = squared**2 / np.where(parts > 0, parts**2 / freedoms, 0.0).sum(axis=0)
        t = np.where(squared > 0, delta / np.sqrt(squared), np.nan)
        return t, t_p_value(t, freedom)


def t_p_value(t: ArrayLike, freedom: ArrayLike) -> Floats:
    """Return two-sided p-values of Student's t, of any shape, within 1e-9 of themselves.

    For m = freedom - 1/2 and w^2 = m log(1 + t^2 / freedom) (Wallace 1959), w has the density
    exp(-w^2 / 2) sqrt(x / sinh x), x = w^2 / 2m, up to a constant: nearly normal, also in the tail.
    The root is a series in x^2 that is integrated term by term, and the same terms give the
    constant. It needs no incomplete beta function, hence is several times faster; where four terms
    are too few the p-value is scipy's.

    >>> t_p_value(np.array([2.0, 9.0]), np.array([20.0, 20.0])).round(6).tolist()
    [0.059266, 0.0]
    """
    t, freedom = np.broadcast_arrays(t, freedom)
    with np.errstate(all="ignore"):
        ratio = t * t / freedom
        square = (freedom - 0.5) * np.log1p(ratio)  # w^2
        inverse = (freedom - 0.5) ** -2
        constant = bend = np.zeros_like(square)
        for coefficient, first, second in reversed(SERIES):
            constant = coefficient + inverse * constant
            bend = (first + second * square) * constant + inverse * square**2 * bend
        bend *= np.sqrt(2 / np.pi * square) * inverse / (1 + inverse * constant)
        p = np.asarray(erfc(np.sqrt(square / 2)) + np.exp(-square / 2) * bend)
    few = ~((freedom >= LEAST_FREEDOM) & (ratio <= FARTHEST) & np.isfinite(p))
    p[few] = 2 * stdtr(freedom[few], -np.abs(t[few]))
    return p


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Return Spearman's rank correlation over pairs where both are finite, ties averaged.

    NaN with fewer than three pairs, or where one side is constant.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < 3:
        return float("nan")
    x, y = rankdata(a[both]), rankdata(b[both])
    x, y = x - x.mean(), y - y.mean()
    norm = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / norm if norm > 0 else float("nan")


def perfect_predictor_correlation(split_half: float) -> float:
    """Return the correlation a perfect predictor is expected to reach with the full measurement.

    The reliability of the full measurement is 2r / (1 + r) for split-half correlation r
    (Spearman-Brown); the correlation of the truth with a measurement is the square root of the
    measurement's reliability. NaN for r < 0, where the halves share nothing.

    >>> round(perfect_predictor_correlation(0.5), 4)
    0.8165
    """
    if not split_half >= 0:
        return float("nan")
    return float(np.sqrt(2 * split_half / (1 + split_half)))
