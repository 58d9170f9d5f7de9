"""Ridge regression with its penalty chosen by leave-one-out error."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
PENALTIES = np.logspace(-3, 4, 29)


def ridge_fit(features: Array, outcome: Array, weights: Array) -> tuple[Array, Array]:
    """Return ridge weights (1 + F, Q) and leave-one-out predictions (n, Q).

    The intercept is free; the penalty minimises the leave-one-out squared error, from the hat
    matrix. ``weights`` (n,) count more for targets that are measured better.
    """
    n, dims = features.shape
    design = np.concatenate([np.ones((n, 1)), features], axis=1)
    root = np.sqrt(weights / weights.mean())[:, None]
    x, y = design * root, outcome * root
    gram, cross = x.T @ x, x.T @ y
    free = np.diag([0.0, *([1.0] * dims)])
    best: tuple[float, Array, Array] | None = None
    for penalty in PENALTIES:
        inverse = np.linalg.pinv(gram + penalty * free)
        beta = inverse @ cross
        leverage = np.clip(np.einsum("ij,jk,ik->i", x, inverse, x), 0, 1 - 1e-6)[:, None]
        left_out = (y - x @ beta) / (1 - leverage)
        error = float((left_out**2).sum())
        if best is None or error < best[0]:
            best = (error, beta, outcome - left_out / root)
    if best is None or not np.isfinite(best[0]):
        msg = "gene features give no finite ridge regression"
        raise ArithmeticError(msg)
    return best[1], best[2]
