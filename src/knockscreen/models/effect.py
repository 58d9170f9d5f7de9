"""The linear part of a knock-down: a low-rank shift of log expression, for seen and unseen targets.

The mean effect of a knock-down, control to perturbed in log1p CP10k, is estimated per target and
context from training cells and denoised: group means over ever finer groups of contexts, each
shrunk by optimal singular value shrinkage (Gavish & Donoho 2017). The target's own transcript,
which no other knock-down moves alike, is kept as measured. For a gene never knocked down the
coordinates are predicted by ridge regression on gene features, the penalty chosen by
leave-one-target-out error. The effect enters the decoder as an offset of the logits; the flow
learns what it leaves over.

Shapes: T targets, C contexts, G genes, K components, F features, Q grid points.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
PENALTIES = np.logspace(-3, 4, 29)
GRID = np.linspace(-6.0, 6.0, 33)
"""Offsets (natural log of expression) at which the response curves are tabulated."""


@dataclass(frozen=True)
class LinearEffect:
    """Denoised effects and the way to predict unseen ones."""

    basis: Array
    """(K, G) components of the effect, log1p CP10k."""
    coordinates: Array
    """(T, C, K); zero for control and for targets without training cells."""
    ridge: Array
    """(1 + F, C K): intercept and weights on gene features; zeros where there are none."""
    own: Array
    """(T, C) effect on the target's own transcript, log1p CP10k; NaN where not measured."""
    curves: Array
    """(C, G, Q) mean log1p CP10k of control cells whose expression is multiplied by e^GRID."""
    base: Array
    """(C, G) natural log of a context's control expression over its mean across contexts."""

    def predict(self, features: Array) -> Array:
        """Return coordinates (n, C, K) of genes with features (n, F)."""
        _, contexts, k = self.coordinates.shape
        design = np.concatenate([np.ones((len(features), 1)), features], axis=1)
        return (design @ self.ridge).reshape(len(features), contexts, k)

    def offsets(self, coordinates: Array, own_gene: int, own: Array) -> NDArray[np.float32]:
        """Return logit offsets (C, G) of one target from its coordinates (C, K).

        Parameters
        ----------
        own_gene
            Column of the target's own transcript, -1 where it is not on the panel.
        own
            (C,) effect on it, log1p CP10k; NaN: the middle of the measured ones.
        """
        delta = coordinates @ self.basis  # (C, G)
        if own_gene >= 0:
            usual = np.nanmedian(self.own) if np.isfinite(self.own).any() else 0.0
            delta[:, own_gene] = np.where(np.isfinite(own), own, usual)
        middle = len(GRID) // 2
        wanted = self.curves[..., middle] + delta  # (C, G)
        return invert_curves(self.curves, wanted)


def invert_curves(curves: Array, wanted: Array) -> NDArray[np.float32]:
    """Return the offsets (C, G) at which rising curves (C, G, Q) over ``GRID`` reach ``wanted``.

    Values beyond the grid give its ends. A flat curve, of a gene that controls do not express,
    gives 0: no factor can be learned from it.
    """
    upper = np.clip((curves < wanted[..., None]).sum(-1), 1, len(GRID) - 1)  # (C, G)
    low = np.take_along_axis(curves, (upper - 1)[..., None], -1)[..., 0]
    high = np.take_along_axis(curves, upper[..., None], -1)[..., 0]
    share = np.clip((wanted - low) / np.maximum(high - low, 1e-9), 0, 1)
    offsets = GRID[upper - 1] + share * (GRID[1] - GRID[0])
    flat = curves[..., -1] - curves[..., 0] < 1e-9
    return np.where(flat, 0, offsets).astype(np.float32)


def shrink_singular_values(matrix: Array, rank: int) -> Array:
    """Return the denoised low-rank part of a matrix whose noise has unit variance.

    Singular values y (over the square root of the longer side) become
    ``sqrt((y^2 - b - 1)^2 - 4 b) / y`` with b the aspect ratio, zero below ``1 + sqrt(b)``
    (Gavish & Donoho 2017, eq. 7, Frobenius loss). At most ``rank`` components are kept.
    """
    rows, columns = matrix.shape
    longer, aspect = max(rows, columns), min(rows, columns) / max(rows, columns)
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    y = s / np.sqrt(longer)
    inside = np.maximum((y**2 - aspect - 1) ** 2 - 4 * aspect, 0)
    shrunk = np.where(y > 1 + np.sqrt(aspect), np.sqrt(inside) / np.maximum(y, 1e-12), 0)
    shrunk[rank:] = 0
    return np.asarray((u * (shrunk * np.sqrt(longer))) @ vt)


def groupings(levels: NDArray[np.integer]) -> list[NDArray[np.int64]]:
    """Return group codes (C,) of the contexts: all in one, by each factor, by all factors."""
    contexts, factors = levels.shape
    sets = [(), *((k,) for k in range(factors))]
    if factors > 1:
        sets.append(tuple(range(factors)))
    out: list[NDArray[np.int64]] = []
    for chosen in sets:
        if chosen:
            code = np.unique(levels[:, chosen], axis=0, return_inverse=True)[1].reshape(-1)
        else:
            code = np.zeros(contexts, dtype=np.int64)
        if not any(np.array_equal(code, old) for old in out):
            out.append(code.astype(np.int64))
    return out


def denoise(shifts: Array, weights: Array, levels: NDArray[np.integer], rank: int) -> Array:
    """Return denoised shifts (T, C, P) from raw ones, in units of the noise of one cell.

    Parameters
    ----------
    shifts
        (T, C, P) mean differences to control; anything where there are no cells.
    weights
        (T, C) effective cells of each mean (its noise variance is 1/weight); 0 = none.
    levels
        (C, factors) level codes of the contexts.
    """
    estimate = np.zeros_like(shifts)
    targets = shifts.shape[0]
    for code in groupings(levels):
        groups = int(code.max()) + 1
        total = np.zeros((targets, groups))
        mean = np.zeros((targets, groups, shifts.shape[2]))
        rest = shifts - estimate
        for g in range(groups):
            mine = code == g
            total[:, g] = weights[:, mine].sum(1)
            mean[:, g] = (weights[:, mine, None] * rest[:, mine]).sum(1)
        root = np.maximum(np.sqrt(total), 1e-12)[..., None]
        low = shrink_singular_values((mean / root).reshape(-1, shifts.shape[2]), rank)
        low = low.reshape(mean.shape) / root
        low[total == 0] = 0
        estimate = estimate + low[:, code]
    return estimate


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


@dataclass(frozen=True)
class Measured:
    """Raw effects of the training cells and how well each is known."""

    shifts: Array
    """(T, C, G) mean differences to control, log1p CP10k; 0 where there are no cells."""
    weights: Array
    """(T, C) effective cells of each mean; 0 = none."""
    own_gene: NDArray[np.integer]
    """(T,) column of the target's own transcript, -1 where it is not on the panel."""
    noise: float
    """Standard deviation of one cell's value, averaged over genes."""
    levels: NDArray[np.integer]
    """(C, factors) level codes of the contexts."""


def low_rank(measured: Measured, rank: int) -> tuple[Array, Array]:
    """Return components (K, G) and coordinates (T, C, K) of the denoised shifts (T, C, G).

    The target's own transcript is left out of the estimate.
    """
    masked = measured.shifts.copy()
    rows = np.flatnonzero(measured.own_gene >= 0)
    masked[rows, :, measured.own_gene[rows]] = 0
    targets, contexts, genes = masked.shape
    weights, levels, noise = measured.weights, measured.levels, measured.noise
    flat = (denoise(masked / noise, weights, levels, rank) * noise).reshape(-1, genes)
    _, s, vt = np.linalg.svd(flat, full_matrices=False)
    k = max(1, min(rank * len(groupings(levels)), int((s > 1e-6 * max(s[0], 1e-12)).sum())))
    coordinates = (flat @ vt[:k].T).reshape(targets, contexts, k)
    coordinates[weights.sum(1) == 0] = 0
    return vt[:k], coordinates


def fit_ridge(coordinates: Array, weights: Array, features: Array | None) -> Array:
    """Return ridge weights (1 + F, C K) from features (T, F) to coordinates (T, C, K).

    Targets without cells or without features (NaN) are passed over; with fewer than four left,
    nothing is predicted (zeros).
    """
    _, contexts, k = coordinates.shape
    dims = 0 if features is None else features.shape[1]
    ridge = np.zeros((1 + dims, contexts * k))
    if features is not None:
        known = (weights.sum(1) > 0) & np.isfinite(features).all(1)
        if known.sum() >= 4:
            outcome = coordinates[known].reshape(-1, contexts * k)
            ridge, _ = ridge_fit(features[known], outcome, weights.sum(1)[known])
    return ridge


def effective_cells(counts: NDArray[np.integer]) -> Array:
    """Return ``n n0 / (n + n0)`` (T, C) of n cells and n0 controls (row 0), 0 without either."""
    n = np.asarray(counts, dtype=float)
    weights = n * n[:1] / np.maximum(n + n[:1], 1)
    weights[0] = 0
    return np.asarray(weights)
