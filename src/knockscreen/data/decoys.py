"""Decoys: pseudo-targets made of control cells, which no knock-down has touched.

A decoy stands for a target without effect. It takes the place of one real target: as many guides,
and as many training cells in every context, drawn from training control cells. Decoys share cells
with one another and with the control, for there are never enough; what that does to their noise is
made up for where they are fitted (:mod:`knockscreen.training.decoys`). A decoy is a list of cells:
the cells themselves stay controls, so that whatever does not ask for decoys never meets one.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from knockscreen.names import DECOY, NTC, SPLITS, Split

MOST_OF_CONTROL = 0.5
"""Largest share of a context's training control cells that one decoy takes."""

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Decoys:
    """The decoys of a store: their ids, and the cells of all of them, decoy by decoy."""

    ids: tuple[str, ...]
    rows: Ints
    """(M,) rows of control cells in the store."""
    number: Ints
    """(M,) position in ``ids`` of the decoy that each row belongs to."""

    @classmethod
    def none(cls) -> "Decoys":
        """Return no decoys at all."""
        return cls((), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))


@dataclass(frozen=True)
class _Controls:
    """Training control cells, in an order that does not depend on that of the files."""

    rows: Ints
    context: Ints
    guide: Ints  # -1 where it is not known
    guides: int


def choose_decoys(
    cells: pl.DataFrame, split: NDArray[np.int8], lot: NDArray[np.float64], *, n: int, seed: int
) -> Decoys:
    """Return ``n`` decoys, the real targets with training cells taking turns as their model.

    Parameters
    ----------
    cells
        target_gene_id, guide_id and context of each kept cell, in store order.
    split
        (N,) position of each cell's split in ``names.SPLITS``.
    lot
        (N,) a uniform number per cell, which orders the control cells.
    n
        How many; none without training controls or trained targets.
    seed
        Seed of the splits; a decoy depends on it and on its own number.
    """
    train = split == SPLITS.index(Split.TRAIN)
    target = cells["target_gene_id"].cast(pl.String)
    control = (target == NTC).to_numpy() & train
    context = _codes(cells["context"])
    guide = _codes(cells["guide_id"])
    shapes = _shapes(target, context, guide, train & (target != NTC).to_numpy())
    if n == 0 or not control.any() or not shapes:
        return Decoys.none()
    rows = np.flatnonzero(control)
    rows = rows[np.argsort(lot[rows], kind="stable")]
    guides = np.unique(guide[rows], return_inverse=True)[1].reshape(-1)
    known = len(np.unique(guide[rows])) > 1 and bool((guide[rows] >= 0).all())
    pool = _Controls(rows, context[rows], guides, int(guides.max()) + 1 if known else 0)
    order = np.random.default_rng([seed, 30]).permutation(len(shapes))
    ids, chosen = [], []
    for k in range(n):
        wanted, n_guides = shapes[order[k % len(shapes)]]
        rng = np.random.default_rng([seed, 31, k])
        ids.append(f"{DECOY}{k + 1:04d}")
        chosen.append(_draw(pool, wanted, n_guides, rng))
    number = np.repeat(np.arange(n), [len(c) for c in chosen])
    return Decoys(tuple(ids), np.concatenate(chosen), number)


def _codes(column: pl.Series) -> Ints:
    """Return codes of the sorted texts of a column, -1 for NULL."""
    text = column.cast(pl.String)
    known = text.drop_nulls().unique().sort()
    codes = text.replace_strict(known, np.arange(len(known)), default=-1, return_dtype=pl.Int64)
    return np.asarray(codes.to_numpy(), dtype=np.int64)


def _shapes(
    target: pl.Series, context: Ints, guide: Ints, use: NDArray[np.bool_]
) -> list[tuple[Ints, int]]:
    """Return cells per context (C,) and the number of guides of every trained target, by id."""
    contexts = int(context.max(initial=0)) + 1
    frame = pl.DataFrame({"target": target, "context": context, "guide": guide}).filter(
        pl.Series(use)
    )
    found = []
    for (_,), rows in frame.sort("target").group_by("target", maintain_order=True):
        counts = np.bincount(rows["context"].to_numpy(), minlength=contexts)
        found.append((counts.astype(np.int64), rows["guide"].n_unique()))
    return found


def _draw(pool: _Controls, wanted: Ints, n_guides: int, rng: np.random.Generator) -> Ints:
    """Return rows of one decoy: of as few guides as hold the cells, no fewer than ``n_guides``."""
    shuffled = rng.permutation(len(pool.rows))
    if pool.guides:
        place = np.argsort(rng.permutation(pool.guides))  # of each guide
        late = np.maximum(place[pool.guide[shuffled]] - (n_guides - 1), 0)
        shuffled = shuffled[np.argsort(late, kind="stable")]
    taken = []
    for c, n in enumerate(wanted):
        mine = shuffled[pool.context[shuffled] == c]
        taken.append(pool.rows[mine[: min(n, int(MOST_OF_CONTROL * len(mine)))]])
    return np.sort(np.concatenate(taken))
