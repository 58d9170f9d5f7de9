"""Small statistics with their undefined cases stated: NaN where a number would be invented."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr
from scipy.stats import rankdata

Floats = NDArray[np.float64]


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
    return t, np.asarray(2 * stdtr(freedom, -np.abs(t)))


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
