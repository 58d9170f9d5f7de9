"""The low-rank effect of a knock-down in latent space, for screened and for unseen targets.

The mean latent shift of a knock-down, control to perturbed, is estimated per target and context
from training cells and denoised: group means over ever finer groups of contexts, each shrunk by
optimal singular value shrinkage (Gavish & Donoho 2017) in coordinates where one cell has unit
noise. For a gene never knocked down the coordinates are predicted by ridge regression on gene
features, the penalty chosen by leave-one-target-out error. The flow then learns what this linear
prediction leaves over: with ``x_1' = x_1 - shift`` the straight path of x_1' is matched instead.

Shapes: T targets, C contexts, P latent values (L x D), K components, F features.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
PENALTIES = np.logspace(-3, 4, 29)


@dataclass(frozen=True)
class LatentEffect:
    """Denoised shifts ``coordinates @ basis`` and the way to predict unseen ones."""

    basis: Array
    """(K, P)"""
    coordinates: Array
    """(T, C, K), zero for control and for targets without training cells."""
    ridge: Array
    """(1 + F, C * K): intercept and weights on gene features; zeros where there are none."""

    def predict(self, features: Array) -> Array:
        """Return coordinates (n, C, K) of genes with features (n, F)."""
        _, contexts, k = self.coordinates.shape
        design = np.concatenate([np.ones((len(features), 1)), features], axis=1)
        return (design @ self.ridge).reshape(len(features), contexts, k)


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


def whitener(covariance: Array, ridge: float = 0.05) -> tuple[Array, Array]:
    """Return W and its inverse, both (P, P), such that W' x has roughly unit covariance.

    Eigenvalues are raised by ``ridge`` times their mean, so that near-empty directions of the
    latent space do not dominate.
    """
    values, vectors = np.linalg.eigh(covariance)
    values = np.maximum(values, 0) + ridge * max(values.mean(), 1e-12)
    return (vectors / np.sqrt(values)) @ vectors.T, (vectors * np.sqrt(values)) @ vectors.T


def groupings(levels: NDArray[np.integer]) -> list[NDArray[np.int64]]:
    """Return group codes (C,) of the contexts, coarse to fine: all, by each factor, by all factors."""
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
    """Return denoised shifts (T, C, P) from raw ones in unit-noise-per-cell coordinates.

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
        root = np.sqrt(total)
        scaled = mean / np.maximum(root, 1e-12)[..., None]  # unit noise
        low = shrink_singular_values(scaled.reshape(-1, shifts.shape[2]), rank)
        low = low.reshape(mean.shape) / np.maximum(root, 1e-12)[..., None]
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
    assert best is not None  # PENALTIES is not empty
    return best[1], best[2]


def fit_effect(
    means: Array,
    counts: NDArray[np.integer],
    covariance: Array,
    levels: NDArray[np.integer],
    features: Array | None,
    rank: int,
) -> tuple[LatentEffect, Array]:
    """Return the latent effect, and leave-one-target-out coordinates (T, C, K) for training.

    Parameters
    ----------
    means
        (T, C, P) mean latents of training cells, control at target 0.
    counts
        (T, C) training cells behind each mean.
    covariance
        (P, P) covariance of latents within target and context.
    levels
        (C, factors) level codes of the contexts.
    features
        (T, F) gene features, NaN rows where unknown; None: no unseen prediction.
    """
    targets, contexts, width = means.shape
    to_white, from_white = whitener(covariance)
    has = (counts > 0) & (counts[:1] > 0)
    shifts = np.where(has[..., None], means - means[:1], 0.0)
    n = counts.astype(float)
    weights = np.where(has, n * n[:1] / np.maximum(n + n[:1], 1), 0.0)
    weights[0] = 0
    white = denoise(shifts @ to_white, weights, levels, rank)
    flat = (white @ from_white).reshape(-1, width)
    _, s, vt = np.linalg.svd(flat, full_matrices=False)
    k = max(1, min(rank, int((s > 1e-8 * max(s[0], 1e-12)).sum())))
    basis = vt[:k]
    coordinates = (flat @ basis.T).reshape(targets, contexts, k)
    coordinates[weights.sum(1) == 0] = 0
    left_out = coordinates.copy()
    dims = 0 if features is None else features.shape[1]
    ridge = np.zeros((1 + dims, contexts * k))
    if features is not None:
        known = (weights.sum(1) > 0) & np.isfinite(features).all(1)
        if known.sum() >= 4:
            ridge, predicted = ridge_fit(
                features[known], coordinates[known].reshape(-1, contexts * k), weights.sum(1)[known]
            )
            left_out[known] = predicted.reshape(-1, contexts, k)
    return LatentEffect(basis, coordinates, ridge), left_out


def latent_moments(
    latents: NDArray[np.floating], target: NDArray[np.integer], context: NDArray[np.integer],
    targets: int, contexts: int,
) -> tuple[Array, NDArray[np.int64], Array]:  # fmt: skip
    """Return means (T, C, P), counts (T, C) and the pooled within-group covariance (P, P).

    ``latents`` (N, P) may be memory-mapped; it is read in chunks.
    """
    width = latents.shape[1]
    group = target.astype(np.int64) * contexts + context
    sums = np.zeros((targets * contexts, width))
    counts = np.bincount(group, minlength=targets * contexts)
    gram = np.zeros((width, width))
    for start in range(0, len(group), 8192):
        z = np.asarray(latents[start : start + 8192], dtype=float)
        np.add.at(sums, group[start : start + 8192], z)
        gram += z.T @ z
    means = sums / np.maximum(counts, 1)[:, None]
    between = (means * counts[:, None]).T @ means
    covariance = (gram - between) / max(1, len(group) - int((counts > 0).sum()))
    return means.reshape(targets, contexts, width), counts.reshape(targets, contexts), covariance


def all_levels(levels: tuple[tuple[str, ...], ...]) -> NDArray[np.int64]:
    """Return the level codes (C, factors) of all contexts, first factor slowest."""
    return np.array(list(itertools.product(*(range(len(level)) for level in levels))), dtype=np.int64)
