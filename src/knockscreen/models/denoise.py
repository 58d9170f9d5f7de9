"""Denoising of measured knock-down effects: their mean, and what is particular to each.

A measured effect is the mean of a target's cells minus that of the control cells, in log1p CP10k.
Two noises are in it. That of the control is the same in every effect of a context, so it sits in
their common mean; that of the target's own cells is in its own effect alone. Both lie mostly along
the few directions in which single cells vary (size, cycle, activation), so everything is done in
the principal axes of the cells: the common mean is shrunk axis by axis, what is left of each target
is shrunk to few components, and the more cells a target has, the more of the rest is kept.

Shapes: T targets (row 0 is control), C contexts, G genes (or axes), S groups of contexts.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ints = NDArray[np.integer]


@dataclass(frozen=True)
class Measured:
    """Raw effects of the training cells, and what is known of their noise."""

    shifts: Array
    """(T, C, G) mean differences to control, log1p CP10k; anything where there are no cells."""
    cells: Ints
    """(T, C); row 0 is control."""
    own_gene: Ints
    """(T,) column of the target's own transcript, -1 where it is not on the panel."""
    covariance: Array
    """(G, G) of single cells about the mean of their target and context."""
    levels: Ints
    """(C, factors) level codes of the contexts."""


def groupings(levels: Ints) -> list[NDArray[np.int64]]:
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


def shrink_singular_values(matrix: Array, rank: int) -> Array:
    """Return the denoised low-rank part of a matrix whose noise has unit variance.

    Singular values y (over the square root of the longer side) become
    ``sqrt((y^2 - b - 1)^2 - 4 b) / y`` with b the aspect ratio, zero below ``1 + sqrt(b)``
    (Gavish & Donoho 2017, eq. 7, Frobenius loss). At most ``rank`` components are kept.
    """
    rows, columns = matrix.shape
    longer, aspect = max(rows, columns), min(rows, columns) / max(rows, columns)
    squares, axes = np.linalg.eigh(matrix.T @ matrix)  # lean where rows are many
    take = np.argsort(squares)[::-1][: min(rank, rows, columns)]
    s, axes = np.sqrt(np.maximum(squares[take], 1e-300)), axes[:, take]
    y = s / np.sqrt(longer)
    inside = np.maximum((y**2 - aspect - 1) ** 2 - 4 * aspect, 0)
    shrunk = np.where(y > 1 + np.sqrt(aspect), np.sqrt(inside) / np.maximum(y, 1e-12), 0)
    return np.asarray((matrix @ axes) * (shrunk * np.sqrt(longer) / s) @ axes.T)


def shrink_axes(mean: Array, noise: Array) -> Array:
    """Return a mean (G,) shrunk axis by axis by its noise variance (G,), axes in order of variance.

    One number does not tell its own signal from its noise, so the signal of an axis is the mean of
    ``mean^2 - noise`` over its neighbours (two each side, more among the many small ones).
    """
    excess = np.concatenate([[0.0], np.cumsum(mean**2 - noise)])
    index = np.arange(len(mean))
    reach = 2 + index // 5
    low, high = np.maximum(index - reach, 0), np.minimum(index + reach + 1, len(mean))
    signal = np.maximum((excess[high] - excess[low]) / (high - low), 0)
    return np.asarray(mean * signal / np.maximum(signal + noise, 1e-300))


def common_means(shifts: Array, cells: Ints, variance: Array, levels: Ints) -> tuple[Array, Array]:
    """Return the raw mean of the targets' shifts, and the shrunk one, (C, G) each, per context.

    ``variance`` (G,) is that of single cells. The noise of a mean is that of the control cells,
    which all its targets share, and that of all their cells together. Contexts are taken together
    first, then by factor, then apart; one without targets gets what the others tell of it.
    """
    n = np.where(cells[:1] > 0, cells, 0).astype(float)
    n[0] = 0
    total = n.sum(0)
    raw = np.einsum("tc,tcg->cg", n, shifts) / np.maximum(total, 1)[:, None]
    error = 1 / np.maximum(cells[0], 1) + 1 / np.maximum(total, 1)
    shrunk = np.zeros_like(raw)
    for code in groupings(levels):
        rest = raw - shrunk
        for g in range(int(code.max()) + 1):
            mine = (code == g) & (total > 0)
            if mine.any():
                weight = 1 / error[mine]
                mean = (rest[mine] * weight[:, None]).sum(0) / weight.sum()
                shrunk[code == g] += shrink_axes(mean, variance / weight.sum())
    return raw, shrunk


def particular(rest: Array, cells: Ints, levels: Ints, *, rank: int, keep_cells: float) -> Array:
    """Return denoised shifts (T, C, G) from raw ones in units of the noise of one cell.

    Group means over ever finer groups of contexts, each shrunk to at most ``rank`` components; of
    what the components leave of a group's mean, n / (n + keep_cells) is kept, n being its cells.
    """
    estimate = np.zeros_like(rest)
    targets, _, genes = rest.shape
    for code in groupings(levels):
        groups = int(code.max()) + 1
        left = rest - estimate
        mean = np.zeros((targets, groups, genes))
        total = np.zeros((targets, groups))
        for g in range(groups):
            mine = code == g
            total[:, g] = cells[:, mine].sum(1)
            mean[:, g] = np.einsum("tc,tcg->tg", cells[:, mine].astype(float), left[:, mine])
        root = np.maximum(np.sqrt(total), 1e-12)[..., None]
        scaled = (mean / root).reshape(-1, genes)
        low = shrink_singular_values(scaled, rank)
        low += (total / (total + keep_cells)).reshape(-1, 1) * (scaled - low)
        low = low.reshape(mean.shape) / root
        low[total == 0] = 0
        estimate = estimate + low[:, code]
    return estimate


def denoise(measured: Measured, *, rank: int, keep_cells: float) -> tuple[Array, Array]:
    """Return the common mean (C, G) of the effects and what each target adds to it (T, C, G).

    The target's own transcript is left out of both: no other knock-down moves it alike. Axes are
    scaled by the square root of the noise in them, half-way to where noise is the same in all.
    """
    masked = measured.shifts.copy()
    rows = np.flatnonzero(measured.own_gene >= 0)
    masked[rows, :, measured.own_gene[rows]] = 0
    cells = np.where(measured.cells[:1] > 0, measured.cells, 0)
    variance, axes = np.linalg.eigh(measured.covariance)
    variance, axes = np.maximum(variance[::-1], 1e-9), axes[:, ::-1]
    turned = masked @ axes
    raw, mean = common_means(turned, cells, variance, measured.levels)
    scale = variance**0.25
    unit = scale * np.sqrt(np.mean(variance / scale**2))
    cells = cells.copy()
    cells[0] = 0
    rest = np.where((cells > 0)[..., None], turned - raw, 0) / unit
    rest = particular(rest, cells, measured.levels, rank=rank, keep_cells=keep_cells) * unit
    return mean @ axes.T, rest @ axes.T
