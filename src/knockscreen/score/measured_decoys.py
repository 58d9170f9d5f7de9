"""Decoys of measured rows: control cells taken for a knock-down, and scored exactly like one.

N control cells, C separate contexts, X contexts to report, P programs, J decoys, B pseudobulks.

A decoy has the cells per context and the number of replicate units of a real target
(:func:`knockscreen.data.decoys.choose_decoys`, by the units that measured effects are judged by:
guides, wells or batches; at random where there are none) and is compared with the control cells
that are left. Its difference has variance ``s^2 (1/n + 1/(N - n))``; times ``sqrt((N - n) / N)``
that is ``s^2 / n``, which is a target's own. The error of the control, which all targets share, is
taken out of them as far as it explains their common shift (:mod:`knockscreen.score.calibration`).

Real cells are not denoised: a score over ten cells is noisier than one over three hundred. So
scores are counted in units of ``own_error``, their error without that of the control, of targets
and decoys alike by :func:`knockscreen.score.replicates.judge`. Where control cells are too few for
decoys of the size of targets there are none (:func:`alike_in_cells`).
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from knockscreen.data.decoys import Decoys, choose_decoys
from knockscreen.names import NTC
from knockscreen.score.cells import StoredCells
from knockscreen.score.moments import cell_scores, group_moments
from knockscreen.score.programs import ProgramMatrix
from knockscreen.score.random_programs import Beside, ProgramNull
from knockscreen.score.replicates import (
    Replicates,
    judge,
    overdispersion,
    overdispersion_of_one,
    pooled_variance,
    summarise,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

log = logging.getLogger(__name__)

LEAST_SHARE = 0.8
"""Cells of the usual decoy, as a share of those of the usual target, that it needs."""
DECOYS: dict[str, type[pl.DataType]] = {
    "program": pl.String,
    "context": pl.String,
    "target_gene_id": pl.String,
    "score": pl.Float64,
    "own_error": pl.Float64,
    "random_z": pl.Float64,
    "n_cells": pl.Int32,
}


@dataclass(frozen=True)
class Sums:
    """Scores of some cells, summed by context and by pseudobulk."""

    n: Floats  # (C,)
    total: Floats  # (C, P)
    squares: Floats  # (C, P)
    bulk_n: Floats  # (B,)
    bulk_total: Floats  # (B, P)

    def minus(self, other: "Sums") -> "Sums":
        """Return the sums of the cells that are not in ``other``."""
        return Sums(
            self.n - other.n,
            self.total - other.total,
            np.maximum(self.squares - other.squares, 0.0),
            self.bulk_n - other.bulk_n,
            self.bulk_total - other.bulk_total,
        )

    @property
    def mean(self) -> Floats:
        """Mean score by context (C, P); NaN without cells."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.total / self.n[:, None])

    @property
    def variance(self) -> Floats:
        """Variance of the cells' scores by context (C, P); NaN for fewer than two."""
        with np.errstate(invalid="ignore", divide="ignore"):
            found = np.maximum(self.squares - self.n[:, None] * self.mean**2, 0.0)
            return np.where(self.n[:, None] > 1, found / (self.n - 1)[:, None], np.nan)


@dataclass(frozen=True)
class ControlScores:
    """The program scores of every control cell, and which pseudobulk each belongs to."""

    score: Floats  # (N, P)
    context: Ints  # (N,)
    bulk: Ints  # (N,); -1: in none
    bulk_context: Ints  # (B,)
    contexts: int  # C

    def sums(self, rows: Ints) -> Sums:
        """Return the sums of the control cells at ``rows``."""
        shape, score = (self.contexts, self.score.shape[1]), self.score[rows]
        total, squares = np.zeros(shape), np.zeros(shape)
        np.add.at(total, self.context[rows], score)
        np.add.at(squares, self.context[rows], score**2)
        inside = self.bulk[rows] >= 0
        bulks = np.zeros((len(self.bulk_context), shape[1]))
        np.add.at(bulks, self.bulk[rows][inside], score[inside])
        n = np.bincount(self.context[rows], minlength=shape[0]).astype(np.float64)
        bulk_n = np.bincount(self.bulk[rows][inside], minlength=len(bulks)).astype(np.float64)
        return Sums(n, total, squares, bulk_n, bulks)

    def replicates(self, sums: Sums) -> Replicates:
        """Return the pseudobulks behind sums, as :func:`replicates.overdispersion` wants them."""
        there = sums.bulk_n > 0
        means = sums.bulk_total[there] / sums.bulk_n[there][:, None]
        return summarise(self.bulk_context[there], sums.bulk_n[there], means, self.contexts)


def control_scores(cells: StoredCells, programs: ProgramMatrix, unit: Ints) -> ControlScores:
    """Score the control cells, no gene left out; ``unit`` is the replicate unit of each cell."""
    chosen = np.flatnonzero(cells.target == 0)
    weights, _ = programs.without(-1)
    pairs = np.stack([cells.context[chosen], unit[chosen]], axis=1)
    known = pairs[:, 1] >= 0
    names, code = np.unique(pairs[known], axis=0, return_inverse=True)
    bulk = np.full(len(chosen), -1, dtype=np.int64)
    bulk[known] = code.reshape(-1)
    return ControlScores(
        score=cell_scores(cells, chosen, programs.columns, weights),
        context=cells.context[chosen],
        bulk=bulk,
        bulk_context=names[:, 0].astype(np.int64),
        contexts=len(cells.contexts),
    )


def draw_decoys(cells: StoredCells, unit: Ints, *, n: int, seed: int) -> Decoys:
    """Return ``n`` decoys of control cells; ``rows`` count the control cells alone, in order."""
    frame = pl.DataFrame(
        {
            "target_gene_id": _names(cells.target, [NTC, *cells.target_gene_ids[1:]]),
            "guide_id": _names(unit, [f"{i:07d}" for i in range(int(unit.max(initial=0)) + 1)]),
            "context": _names(cells.context, list(cells.contexts)),
        }
    )
    lot = np.random.default_rng([seed, 33]).uniform(size=len(frame))
    found = choose_decoys(frame, np.zeros(len(frame), dtype=np.int8), lot, n=n, seed=seed)
    place = np.cumsum(cells.target == 0) - 1
    return Decoys(found.ids, place[found.rows], found.number)


def _names(codes: Ints, names: Sequence[str]) -> pl.Series:
    """Return texts of codes, NULL for -1."""
    code = pl.Series(np.where(codes < 0, len(names), codes).astype(np.uint32))
    return pl.Series([*names, None], dtype=pl.String).gather(code)


def decoy_scores(
    control: ControlScores, decoys: Decoys, groups: Sequence[Sequence[int]]
) -> tuple[Floats, Floats, Ints]:
    """Return scores and own errors (J, X, P) and cells (J, X) of decoys; NaN where without cells.

    ``groups`` are the separate contexts that each reported context is the mean of.
    """
    shape = (len(decoys.ids), len(groups), control.score.shape[1])
    score, error = np.full(shape, np.nan), np.full(shape, np.nan)
    cells = np.zeros(shape[:2], dtype=np.int64)
    every = control.sums(np.arange(len(control.score)))
    for j in range(len(decoys.ids)):
        own = control.sums(decoys.rows[decoys.number == j])
        rest = every.minus(own)
        with np.errstate(invalid="ignore", divide="ignore"):
            scaled = (own.mean - rest.mean) * np.sqrt(rest.n / every.n)[:, None]
        variance = pooled_variance(own.variance, own.n, rest.variance, rest.n)
        sides = control.replicates(own), control.replicates(rest)
        for x, members in enumerate(groups):
            there = [c for c in members if own.n[c] > 0]
            if there:
                cells[j, x] = own.n[there].sum()
                score[j, x] = scaled[there].mean(axis=0)
                error[j, x] = own_error(score[j, x], sides, variance, own.n, there)
    return score, error, cells


def own_error(
    score: Floats,
    sides: tuple[Replicates, Replicates],
    variance: Floats,
    n: Floats,
    there: Sequence[int],
) -> Floats:
    """Return the error (P,) that a score has from its own ``n`` (C,) cells, not from the control's.

    Over the replicates of both ``sides``; where the knock-down has fewer than two, over those of
    the controls; over cells, a lower bound, where these have no two either.
    """
    of_both, freedom = overdispersion(*sides, variance, there)
    of_control = overdispersion_of_one(sides[1], variance, there)
    phi = np.where(np.isnan(of_both), np.where(np.isnan(of_control), 1.0, of_control), of_both)
    return judge(score, (phi, freedom), variance, (n, np.full(len(n), np.inf)), there)[0]


def alike_in_cells(cells: StoredCells, n: Ints, groups: dict[str, list[int]]) -> NDArray[np.bool_]:
    """Return in which contexts (X,) decoys of ``n`` (J, X) cells have the cells of real targets.

    A decoy takes half of a context's control cells at most. Where that is less than targets have,
    its wells or guides hold too few cells to show how much these differ, and targets, whose units
    hold many, would all seem to stand out.
    """
    real = cells.target > 0
    shape = (len(cells.target_gene_ids), len(cells.contexts))
    of_target = np.zeros(shape)
    np.add.at(of_target, (cells.target[real], cells.context[real]), 1)
    fit = np.ones(len(groups), dtype=bool)
    for x, (name, members) in enumerate(groups.items()):
        sums = of_target[:, members].sum(axis=1)
        usual, wanted = (np.median(a[a > 0]) if (a > 0).any() else 0.0 for a in (n[:, x], sums))
        fit[x] = usual >= LEAST_SHARE * wanted
        if not fit[x]:
            log.warning(
                "%s: too few control cells for decoys like the knock-downs (%d cells, not %d), so "
                "measured scores have no p-value against decoys there", name, usual, wanted,
            )  # fmt: skip
    return fit


def random_z(
    cells: StoredCells,
    decoys: Decoys,
    programs: ProgramMatrix,
    groups: Sequence[Sequence[int]],
    null: ProgramNull | None,
) -> Floats:
    """Return how far scores of decoys stand out of those of random programs (P, X, J).

    NaN without random programs, and where a decoy has no cells. ``groups`` as
    :func:`decoy_scores`.
    """
    control = np.flatnonzero(cells.target == 0)
    c, weights = len(cells.contexts), programs.without(-1)[0]
    every = group_moments(cells, cells.rows[control], cells.context[control], c)
    beside = Beside.empty(len(programs.names), len(groups), len(decoys.ids))
    for j in range(len(decoys.ids)):
        rows = control[decoys.rows[decoys.number == j]]
        own = group_moments(cells, cells.rows[rows], cells.context[rows], c)
        with np.errstate(invalid="ignore", divide="ignore"):
            scale = np.sqrt(every.n / (every.n - own.n))  # own less rest, to own less all
        delta = (own.mean - every.mean) * scale[:, None]
        there = [[c for c in members if own.n[c] > 0] for members in groups]
        delta = np.stack(
            [delta[k].mean(axis=0) if k else np.full(delta.shape[1], np.nan) for k in there]
        )
        beside.add(j, delta, weights @ delta.T, null)
    return beside.z


def decoy_table(
    cells: StoredCells,
    programs: ProgramMatrix,
    unit: Ints,
    groups: dict[str, list[int]],
    *,
    seed: int,
    null: ProgramNull | None = None,
) -> pl.DataFrame:
    """Return the scores of as many measured decoys as the store has decoys, as :data:`DECOYS`."""
    decoys = draw_decoys(cells, unit, n=cells.n_decoys, seed=seed)
    if not decoys.ids:
        return pl.DataFrame(schema=DECOYS)
    control = control_scores(cells, programs, unit)
    score, error, n = decoy_scores(control, decoys, list(groups.values()))
    n[:, ~alike_in_cells(cells, n, groups)] = 0
    z = random_z(cells, decoys, programs, list(groups.values()), null)
    j, x, p = np.nonzero(np.repeat(n[:, :, None] > 0, score.shape[2], axis=2))
    frame = pl.DataFrame(
        {
            "program": np.array(programs.names)[p],
            "context": np.array(list(groups))[x],
            "target_gene_id": np.array(decoys.ids)[j],
            "score": score[j, x, p],
            "own_error": error[j, x, p],
            "random_z": z[p, x, j],
            "n_cells": n[j, x],
        }
    )
    frame = frame.cast(pl.Schema(DECOYS)).fill_nan(None)
    return frame.sort("program", "context", "target_gene_id")
