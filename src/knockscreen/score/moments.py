"""Moments of real cells: per target, context and gene, and of program scores.

C contexts, G panel genes, P programs, R split halves, U genes used by programs. Values are log1p
CP10k with the library size over all genes. Cells are read in chunks of rows, so memory does not
grow with their number.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from knockscreen.compiled import compiled
from knockscreen.names import CP10K
from knockscreen.score.cells import StoredCells
from knockscreen.score.halves import assign_halves, half_indicator
from knockscreen.score.programs import ProgramMatrix
from knockscreen.score.replicates import (
    LEAST_UNITS,
    ReplicateKind,
    Replicates,
    pooled_variance,
    summarise,
)

CHUNK = 8192
SMALL = 16
"""Counts below this have their logarithm computed once per cell."""
SPLIT_HALVES = 20

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Moments:
    """Means and variances of groups of cells; NaN for empty groups, variance NaN for one cell."""

    n: Floats  # (C,)
    mean: Floats  # (C, G) log1p CP10k
    variance: Floats  # (C, G)
    cp10k: Floats  # (C, G)


@dataclass(frozen=True)
class Pseudobulks:
    """Replicate units of one side: the cells of one unit in one context, B of them."""

    context: Ints  # (B,)
    cells: Floats  # (B,)
    means: Floats  # (B, U) of the genes used by programs


@dataclass(frozen=True)
class Controls:
    """Control cells of every context, as sums that any target's program weights can be put on."""

    moments: Moments
    score_variance: Floats  # (C, P) of unscaled scores
    score_covariance: Floats  # (C, P, G) of unscaled scores with each gene
    half_means: Floats  # (R, 2, C, U)
    bulks: Pseudobulks
    replicates: Replicates


def _log1p(cp10k: Any) -> Any:
    logged = cp10k.copy()
    logged.data = np.log1p(logged.data)
    return logged


def _indicator(group: Ints, n_groups: int) -> Any:
    n = len(group)
    return sparse.csr_matrix((np.ones(n), (group, np.arange(n))), shape=(n_groups, n))


def _chunks(n: int) -> Iterator[slice]:
    for start in range(0, n, CHUNK):
        yield slice(start, min(start + CHUNK, n))


def group_moments(cells: StoredCells, rows: Ints, group: Ints, n_groups: int) -> Moments:
    """Return moments of log1p CP10k per gene for groups of cells (codes ``group`` of ``rows``)."""
    sums = np.zeros((3, n_groups, len(cells.gene_ids)))
    stored = tuple(np.asarray(part) for part in (cells.counts, cells.indices, cells.indptr))
    scale = CP10K / cells.library_size[rows]
    compiled(_add_values)(stored, rows, (group, scale), (sums[0], sums[1], sums[2]))
    n = np.bincount(group, minlength=n_groups).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = sums[0] / n[:, None]
        variance = np.maximum(sums[1] - sums[0] * mean, 0.0) / (n - 1)[:, None]
        variance[n < 2] = np.nan
        return Moments(n, mean, variance, sums[2] / n[:, None])


def _add_values(stored: Any, rows: Any, cells: Any, sums: Any) -> None:
    """Add log1p CP10k, its square, and CP10k of the rows to the sums (groups, G) of their groups.

    To be compiled. Most counts are small, so a cell's first logarithms are looked up.
    """
    counts, indices, indptr = stored
    group, scale = cells
    x, xx, cp10k = sums
    small = np.empty(SMALL)
    for i in range(len(rows)):
        g = group[i]
        for count in range(SMALL):
            small[count] = np.log1p(count * scale[i])
        for k in range(indptr[rows[i]], indptr[rows[i] + 1]):
            gene, count = indices[k], counts[k]
            value = count * scale[i]
            logged = small[count] if count < SMALL else np.log1p(value)
            x[g, gene] += logged
            xx[g, gene] += logged * logged
            cp10k[g, gene] += value


def replicate_units(cells: StoredCells, kind: ReplicateKind) -> Ints:
    """Return the replicate unit of each cell, -1 where it has none.

    ``auto`` takes guides where the controls have several, else the replicate column (wells,
    batches).
    """
    if kind == "auto":
        guides = np.unique(cells.guide[cells.target == 0])
        kind = "guide" if np.sum(guides >= 0) >= LEAST_UNITS else "replicate"
    return cells.guide if kind == "guide" else cells.replicate


def pseudobulks(
    cells: StoredCells, chosen: Ints, unit: Ints, used: Ints
) -> tuple[Replicates, Pseudobulks]:
    """Summarise the pseudobulks of the cells at positions ``chosen``, context by context.

    Cells without a unit are left out.
    """
    c, g = len(cells.contexts), len(cells.gene_ids)
    chosen = chosen[unit[chosen] >= 0]
    total, squares, units = np.full((c, g), np.nan), np.zeros((c, g)), np.zeros(c)
    number = np.zeros(c)
    parts: list[tuple[Ints, Floats, Floats]] = []
    for i in np.unique(cells.context[chosen]):
        here = chosen[cells.context[chosen] == i]
        names, code = np.unique(unit[here], return_inverse=True)
        found = group_moments(cells, cells.rows[here], code.reshape(-1), len(names))
        one = summarise(np.zeros(len(names), dtype=np.int64), found.n, found.mean, 1)
        units[i], number[i] = one.units[0], one.cells[0]
        total[i], squares[i] = one.mean[0], one.squares[0]
        parts.append((np.full(len(names), i), found.n, found.mean[:, used]))
    empty = (np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros((0, len(used))))
    context, n, means = (np.concatenate(p) for p in zip(empty, *parts, strict=True))
    return Replicates(units, number, total, squares), Pseudobulks(context, n, means)


def measure_controls(
    cells: StoredCells, programs: ProgramMatrix, unit: Ints, rng: np.random.Generator
) -> Controls:
    """Summarise the control cells of every context; ``unit`` holds each cell's replicate unit."""
    chosen = cells.target == 0
    rows, context = cells.rows[chosen], cells.context[chosen]
    c, p, g = len(cells.contexts), len(programs.names), len(cells.gene_ids)
    moments = group_moments(cells, rows, context, c)
    squares, cross = np.zeros((c, p)), np.zeros((c, p, g))
    halves = assign_halves(context, SPLIT_HALVES, rng)
    used = programs.columns
    half_sums, half_counts = (
        np.zeros((SPLIT_HALVES * 2 * c, len(used))),
        np.zeros((SPLIT_HALVES, 2, c)),
    )
    for part in _chunks(len(rows)):
        logged = _log1p(cells.cp10k(rows[part]))
        scores = logged @ programs.weights.T  # (n, P)
        for i in np.unique(context[part]):
            of = context[part] == i
            squares[i] += (scores[of] ** 2).sum(axis=0)
            cross[i] += (logged[of].T @ scores[of]).T
        indicator, counts = half_indicator(context[part], halves[:, part], c)
        half_sums += (indicator @ logged[:, used]).toarray()
        half_counts += counts
    n, mean = moments.n[:, None], moments.mean @ programs.weights.T
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = np.where(n > 1, np.maximum(squares - n * mean**2, 0) / (n - 1), np.nan)
        covariance = (cross - (n * mean)[:, :, None] * moments.mean[:, None]) / (n - 1)[:, :, None]
        half_means = half_sums.reshape(SPLIT_HALVES, 2, c, -1) / half_counts[..., None]
    replicates, bulks = pseudobulks(cells, np.flatnonzero(chosen), unit, used)
    return Controls(moments, variance, covariance, half_means, bulks, replicates)


@dataclass(frozen=True)
class GuideScores:
    """Program scores of one target guide by guide: B guides in a context, control taken off."""

    context: Ints  # (B,)
    guide: Ints  # (B,)
    score: Floats  # (B, P)

    def concordance(self, score: Floats, members: Sequence[int]) -> Floats:
        """Return the share of guides (P,) whose own score has the sign of ``score`` (P,).

        Over the contexts ``members``; a guide's score is the mean over those it has cells in. NaN
        with fewer than two guides.
        """
        here = np.isin(self.context, members)
        names, code = np.unique(self.guide[here], return_inverse=True)
        if len(names) < 2:
            return np.full(len(score), np.nan)
        total = np.zeros((len(names), len(score)))
        np.add.at(total, code.reshape(-1), self.score[here])
        agrees = np.sign(total) == np.sign(score)
        return np.where(np.isnan(score), np.nan, agrees.mean(axis=0))


@dataclass(frozen=True)
class TargetScores:
    """Program scores of one target: NaN where it was not measured."""

    score: Floats  # (C, P)
    variance: Floats  # (C, P) of the score, i.e. its squared standard error
    halves: Floats  # (R, 2, C, P)
    n_genes: NDArray[np.int64]  # (P,)
    cell_variance: Floats  # (C, P) of the cells' scores, knock-down and control pooled
    replicates: tuple[Replicates, Replicates]  # of the scores, knock-down and control
    guides: GuideScores


def cell_scores(cells: StoredCells, chosen: Ints, used: Ints, weights: Floats) -> Floats:
    """Return the scores (n, P) of cells; ``weights`` (P, G) are 0 outside the columns ``used``."""
    parts = [np.zeros((0, len(weights)))]
    for part in _chunks(len(chosen)):
        parts.append(_log1p(cells.cp10k(cells.rows[chosen[part]]))[:, used] @ weights[:, used].T)
    return np.concatenate(parts)


def _guide_scores(guide: Ints, context: Ints, scores: Floats, control: Floats) -> GuideScores:
    """Return the mean score of each guide in each context, less that of control (C, P)."""
    known = guide >= 0
    pairs = np.stack([context, guide], axis=1)[known]
    names, code = np.unique(pairs, axis=0, return_inverse=True)
    total = np.zeros((len(names), scores.shape[1]))
    np.add.at(total, code.reshape(-1), scores[known])
    n = np.bincount(code.reshape(-1), minlength=len(names))[:, None]
    return GuideScores(names[:, 0], names[:, 1], total / n - control[names[:, 0]])


def score_target(
    cells: StoredCells,
    chosen: Ints,
    own: int,
    *,
    programs: ProgramMatrix,
    controls: Controls,
    bulks: Pseudobulks,
    rng: np.random.Generator,
) -> TargetScores:
    """Score one target's cells against the controls, its own gene left out.

    Parameters
    ----------
    chosen
        Positions of the target's cells in ``cells.rows``.
    own
        Panel column of the target's gene, -1 if it is not on the panel.
    bulks
        The target's pseudobulks.
    """
    c, used = len(cells.contexts), programs.columns
    weights, n_genes = programs.without(own)
    context = cells.context[chosen]
    scores = cell_scores(cells, chosen, used, weights)
    n = np.bincount(context, minlength=c).astype(np.float64)[:, None]
    indicator = _indicator(context, c)
    halves = assign_halves(context, SPLIT_HALVES, rng)
    half_indicators, half_counts = half_indicator(context, halves, c)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = (indicator @ scores) / n
        centred = scores - mean[context]
        variance = np.where(n > 1, (indicator @ centred**2) / (n - 1), np.nan) / n
        half_means = (half_indicators @ scores).reshape(SPLIT_HALVES, 2, c, -1) / half_counts[
            ..., None
        ]
    control_mean = controls.moments.mean @ weights.T
    control_halves = controls.half_means @ weights[:, used].T
    control_variance = _control_variance(own, programs, controls)
    n_control = controls.moments.n
    sides = [
        summarise(side.context, side.cells, side.means @ weights[:, used].T, c)
        for side in (bulks, controls.bulks)
    ]
    return TargetScores(
        score=mean - control_mean,
        variance=variance + control_variance,
        halves=half_means - control_halves,
        n_genes=n_genes,
        cell_variance=pooled_variance(
            variance * n, n[:, 0], control_variance * n_control[:, None], n_control
        ),
        replicates=(sides[0], sides[1]),
        guides=_guide_scores(cells.guide[chosen], context, scores, control_mean),
    )


def _control_variance(own: int, programs: ProgramMatrix, controls: Controls) -> Floats:
    """Return the squared standard error of control scores without gene ``own``, shape (C, P)."""
    total = np.abs(programs.weights).sum(axis=1)
    variance = controls.score_variance
    if own >= 0:
        weight = programs.weights[:, own]
        total = total - np.abs(weight)
        variance = variance - 2 * weight * controls.score_covariance[:, :, own]
        variance = variance + weight**2 * controls.moments.variance[:, own][:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.maximum(variance, 0.0) / total**2 / controls.moments.n[:, None])
