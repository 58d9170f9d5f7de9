"""The few numbers that figures print. Undefined is NaN, never 0."""

import numpy as np


def r_squared(predicted: np.ndarray, real: np.ndarray) -> float:
    """Return 1 - SS_residual / SS_total of ``predicted`` about ``real`` (no refitted line).

    1 is identity, 0 is as good as the mean of ``real``, and it can be negative; NaN where fewer
    than two pairs are finite or ``real`` is constant.

    >>> r_squared(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0]))
    1.0
    >>> r_squared(np.array([2.0, 2.0, 2.0]), np.array([1.0, 2.0, 3.0]))
    0.0
    """
    keep = np.isfinite(predicted) & np.isfinite(real)
    x, y = np.asarray(predicted, np.float64)[keep], np.asarray(real, np.float64)[keep]
    total = float(np.sum((y - y.mean()) ** 2)) if y.size > 1 else 0.0
    return float(1 - np.sum((y - x) ** 2) / total) if total > 0 else float("nan")


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Return Spearman's rank correlation of finite pairs; NaN for fewer than 3 or a constant side.

    >>> spearman(np.array([1.0, 2.0, 3.0]), np.array([10.0, 20.0, 90.0]))
    1.0
    """
    from scipy.stats import rankdata

    keep = np.isfinite(a) & np.isfinite(b)
    if keep.sum() < 3:
        return float("nan")
    return pearson(rankdata(a[keep]), rankdata(b[keep]))


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Return Pearson's correlation of finite pairs; NaN for fewer than 3 or a constant side."""
    keep = np.isfinite(a) & np.isfinite(b)
    x, y = np.asarray(a, np.float64)[keep], np.asarray(b, np.float64)[keep]
    if x.size < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    x, y = x - x.mean(), y - y.mean()
    return float(np.clip(x @ y / np.sqrt((x @ x) * (y @ y)), -1, 1))


def variance_between(values: np.ndarray, groups: np.ndarray) -> float:
    """Return the share of the total variance of points (N, D) that lies between groups (N,).

    0 for one group or for points that do not vary.

    >>> variance_between(np.array([[0.0], [0.0], [1.0], [1.0]]), np.array([0, 0, 1, 1]))
    1.0
    """
    centred = values - values.mean(axis=0)
    total = float(np.sum(centred**2))
    if total == 0:
        return 0.0
    between = sum(
        float((groups == g).sum() * np.sum(centred[groups == g].mean(axis=0) ** 2))
        for g in np.unique(groups)
    )
    return between / total
