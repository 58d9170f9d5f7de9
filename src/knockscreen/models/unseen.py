"""The effect of a knock-down that was never made, from what is known of the gene.

Three things are put together, with weights that predict the trained targets best when each is
left out in turn: the common mean of all knock-downs; the effects of trained targets, in
proportion to how alike the genes are; and the gene's own pull, the expected fall of the genes
that go up and down with it from cell to cell. Genes are alike if their profiles correlate: by
default a gene's profile is its correlation with every panel gene among the cells, else its row of
the user's table.

Shapes: N genes with a profile, P length of a profile, T targets, C contexts, G panel genes.
"""

import itertools
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from knockscreen.models.denoise import Measured

Array = NDArray[np.float64]
Axes = tuple[Array, Array]
"""A mean (P,) and orthonormal directions (P, P), in columns."""

POWERS = (2, 8)
"""Likeness counts by this power: the first asks many genes, the second the nearest."""
SILENT = 1e-9
"""Standard deviation below which a gene is silent and has no profile."""
FEWEST = 4
"""Trained targets with a profile that are needed to tell what likeness is worth."""


@dataclass(frozen=True)
class Unseen:
    """What predicts the effect of any gene with a profile."""

    mean: Array
    """(C, G) mean effect of the trained targets, log1p CP10k."""
    rest: Array
    """(T, C, G) what each adds to it; zero where not trained."""
    profiles: Array
    """(N, P); NaN where unknown."""
    rows: NDArray[np.int64]
    """(T,) row of each trained target's profile, -1 without."""
    correlation: Array
    """(G, G) of the panel genes among cells, zero on the diagonal."""
    spread: Array
    """(G,) standard deviation of each panel gene among cells, log1p CP10k."""
    weights: Array
    """Of the likeness at each of ``POWERS``, and of the pull."""

    @cached_property
    def profile_axes(self) -> Axes:
        """Principal axes of the profiles."""
        return principal_axes(self.profiles)

    @cached_property
    def correlation_axes(self) -> Axes:
        """Principal axes of the correlations among panel genes."""
        same = np.array_equal(self.profiles, self.correlation)
        return self.profile_axes if same else principal_axes(self.correlation)

    def predict(self, row: int, column: int) -> Array:
        """Return the effect (C, G) of a gene by its profile and its panel column (-1: none)."""
        return np.asarray(self.mean + self.parts(row, column) @ self.weights)

    def parts(self, row: int, column: int, left_out: int = -1) -> Array:
        """Return what is weighted (C, G, 3), as if target ``left_out`` had not been trained."""
        of = self.rows.copy()
        if left_out >= 0:
            of[left_out] = -1
        known = np.flatnonzero(of >= 0)
        like = np.maximum(likeness(self.profiles[row], self.profiles[of[known]]), 0)
        parts = []
        for power in POWERS:
            share = like**power / max(float((like**power).sum()), 1e-12)
            parts.append(np.tensordot(share, self.rest[known], axes=1))
        pull = np.zeros_like(self.mean)
        if column >= 0:
            pull[:] = -self.correlation[column] * self.spread
        return np.stack([*parts, pull], axis=-1)


def principal_axes(rows: Array) -> Axes:
    """Return the mean (P,) and the principal axes (P, P), in columns, of the known rows (N, P).

    The largest comes first.
    """
    known = rows[np.isfinite(rows).all(axis=1)]
    mean = known.mean(axis=0)
    directions = np.linalg.eigh((known - mean).T @ (known - mean))[1][:, ::-1]
    return mean, np.asarray(directions)


def likeness(profile: Array, others: Array) -> Array:
    """Return Pearson's correlation (n,) of a profile (P,) with others (n, P); 0 where constant."""
    a = profile - profile.mean()
    b = others - others.mean(axis=1, keepdims=True)
    norm = np.sqrt((a @ a) * (b**2).sum(axis=1))
    return np.asarray(np.where(norm > 0, b @ a / np.where(norm > 0, norm, 1), 0))


def correlations(covariance: Array) -> tuple[Array, Array]:
    """Return correlations (G, G) with a zero diagonal, zero for silent genes, and spreads (G,)."""
    spread = np.sqrt(np.maximum(np.diag(covariance), 0))
    silent = spread < SILENT
    scale = np.where(silent, np.inf, spread)
    correlation = covariance / np.outer(scale, scale)
    np.fill_diagonal(correlation, 0)
    return correlation, spread


def fit_unseen(
    measured: Measured,
    effects: tuple[Array, Array],
    profiles: Array | None,
    rows: NDArray[np.integer],
) -> Unseen:
    """Fit the weights by leaving every trained target out in turn.

    Parameters
    ----------
    effects
        The common mean (C, G) and what each target adds to it (T, C, G), denoised.
    profiles
        (N, P) of a user's table; None: the correlations among cells, one row for each panel gene.
    rows
        (T,) row of each target in ``profiles``, -1 without.
    """
    mean, rest = effects
    correlation, spread = correlations(measured.covariance)
    if profiles is None:
        profiles = np.where((spread < SILENT)[:, None], np.nan, correlation)
        rows = measured.own_gene
    trained: NDArray[np.bool_] = np.asarray(measured.cells.sum(axis=1) > 0)
    trained[0] = False
    common = rest[trained].mean(axis=0) if trained.any() else np.zeros_like(mean)
    centred = np.where(trained[:, None, None], rest - common, 0)
    known: NDArray[np.bool_] = np.asarray(np.isfinite(profiles).all(axis=1))
    usable = trained & (rows >= 0) & known[np.maximum(rows, 0)]
    start = Unseen(
        mean + common, centred, profiles, np.where(usable, rows, -1).astype(np.int64),
        correlation, spread, np.zeros(len(POWERS) + 1),
    )  # fmt: skip
    if usable.sum() < FEWEST:
        return start
    return replace(start, weights=leave_one_out_weights(start, measured))


def leave_one_out_weights(start: Unseen, measured: Measured) -> Array:
    """Return the weights (3,) that predict each trained target best from all others.

    Least squares over genes, contexts averaged by the target's cells, own transcripts left out.
    """
    size = len(start.weights)
    gram, cross = np.zeros((size, size)), np.zeros(size)
    for code in np.flatnonzero(start.rows >= 0).tolist():
        share = measured.cells[code] / measured.cells[code].sum()
        own = int(measured.own_gene[code])
        parts = np.tensordot(share, start.parts(int(start.rows[code]), own, code), axes=1)
        real = share @ start.rest[code]
        if own >= 0:
            real[own], parts[own] = 0, 0
        gram += parts.T @ parts
        cross += parts.T @ real
    return nonnegative_least_squares(gram, cross)


def nonnegative_least_squares(gram: Array, cross: Array) -> Array:
    """Return the x >= 0 that minimises ``x gram x - 2 x cross``, by trying every set of nonzeros.

    >>> nonnegative_least_squares(np.eye(2), np.array([1.0, -1.0])).tolist()
    [1.0, 0.0]
    """
    size = len(cross)
    best, found = 0.0, np.zeros(size)
    for chosen in itertools.product((False, True), repeat=size):
        index = np.flatnonzero(chosen)
        if not len(index):
            continue
        part = np.linalg.pinv(gram[np.ix_(index, index)]) @ cross[index]
        value = float(part @ gram[np.ix_(index, index)] @ part - 2 * part @ cross[index])
        if (part >= 0).all() and value < best - 1e-12 * abs(best):
            best, found = value, np.zeros(size)
            found[index] = part
    return found
