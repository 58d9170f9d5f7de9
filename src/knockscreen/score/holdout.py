"""The real cells that judge a prediction, beside the training cells that baselines may use.

T targets (code 0 is control), C separate contexts, G panel genes. Cells are read one target at a
time; what is kept is 5 float32 values per target, context and gene, and 2 for each halving; one
more each where they are to be compared by rank sums.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from knockscreen.artifacts import read_json
from knockscreen.errors import DataError
from knockscreen.names import GUIDE_ID, SPLITS, Split
from knockscreen.score.cells import StoredCells, open_store
from knockscreen.score.halves import assign_halves
from knockscreen.score.moments import group_moments
from knockscreen.score.rank_sums import rank_sum_test, sort_controls

Array = NDArray[np.floating]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SCREENED, HELD_OUT_TARGET, HELD_OUT_CONTEXT = "screened", "held_out_target", "held_out_context"
SPLIT_OF = {
    SCREENED: Split.TEST,
    HELD_OUT_TARGET: Split.HELD_OUT_TARGET,
    HELD_OUT_CONTEXT: Split.HELD_OUT_CONTEXT,
}
"""Name of an evaluated split -> split of its cells in the store."""
REPEATS = 5
"""Times that held-out cells are halved: one halving is one draw of the control's noise."""
LARGE = 60_000_000
"""Targets x contexts x genes above which cells are halved once."""


@dataclass(frozen=True)
class Group:
    """Means of groups of cells against the control of the same context, in log1p CP10k."""

    n: Ints  # (T, C) cells; row 0 is control
    delta: Array  # (T, C, G) mean minus control; NaN without cells; row 0 is 0
    variance: Array  # (T, C, G) between cells; NaN for fewer than two
    z: Array | None = None  # (T, C, G) of the rank sums; NaN without cells, and for control

    @classmethod
    def empty(
        cls, shape: tuple[int, int, int], *, variance: bool = True, ranks: bool = False
    ) -> "Group":
        """Return groups without cells; ``variance`` False keeps none, ``ranks`` keeps z."""
        blank = np.full(shape, np.nan, np.float32)
        spread = blank.copy() if variance else blank[:1].copy()
        n = np.zeros(shape[:2], dtype=np.int64)
        return cls(n, blank, spread, blank.copy() if ranks else None)

    def put(self, code: int, n: Ints, delta: Floats, variance: Floats) -> None:
        """Write what was measured of one target, (C,) and (C, G)."""
        self.n[code], self.delta[code] = n, delta
        if len(self.variance) > 1:
            self.variance[code] = variance


@dataclass(frozen=True)
class Holdout:
    """Training, held-out and half-split measurements of every target and context."""

    gene_ids: tuple[str, ...]
    target_gene_ids: tuple[str, ...]
    contexts: tuple[str, ...]
    own: Ints  # (T,) panel column of the target's own gene, -1 where it has none
    split: NDArray[np.int8]  # (T, C) position in names.SPLITS of the held-out cells, -1 without
    train: Group
    held: Group
    halves: tuple[tuple[Group, Group], ...]
    """Each time the held-out cells were halved."""
    thin: Group
    """The held-out cells, of held-out targets and contexts only as large a share as the test split
    is of the others: centroids of like noise, so that none is nearer for being measured better."""
    halved_by: dict[str, int]  # targets whose halves are of other guides, replicates, random cells

    @property
    def repeats(self) -> int:
        """How often the held-out cells were halved."""
        return len(self.halves)

    def evaluated(self, split: str) -> NDArray[np.bool_]:
        """Return which targets and contexts (T, C) a split has held-out cells of."""
        found: NDArray[np.bool_] = np.asarray(self.split == SPLITS.index(SPLIT_OF[split]))
        found[0] = False
        return found


def read_holdout(
    store: Path | str,
    *,
    seed: int,
    judged_by: Literal[Split.TEST, Split.VALIDATION] = Split.TEST,
    ranks: bool = False,
) -> Holdout:
    """Measure every target in its training cells, its held-out cells and two halves of these.

    Held-out cells are those of the test split, or all cells of a held-out target or context;
    control cells are those of the test split. Where there is no test split, validation stands in.
    ``judged_by`` validation takes that split in its place, and reads no cell of any other.
    ``ranks`` compares the cells that judge, all held-out ones and the second halves, by rank sums.

    Raises
    ------
    DataError
        The store is not whole, or a context has no training or no held-out control cells.
    """
    cells = open_store(store)
    split = _judging(np.asarray(np.load(Path(store) / "split.npy"))[cells.rows], judged_by)
    guides = _codes(pl.read_parquet(Path(store) / "cells.parquet", columns=[GUIDE_ID])[GUIDE_ID])
    t, c, g = len(cells.target_gene_ids), len(cells.contexts), len(cells.gene_ids)
    shape, repeats = (t, c, g), REPEATS if t * c * g <= LARGE else 1
    train, held = Group.empty(shape), Group.empty(shape, ranks=ranks)
    thin = Group.empty(shape, variance=False)
    pairs = tuple(
        (Group.empty(shape, variance=False), Group.empty(shape, variance=False, ranks=ranks))
        for _ in range(repeats)
    )
    parts = (train, held, thin, *(half for pair in pairs for half in pair))
    share = test_share(cells.target, split)
    kind = np.full((t, c), -1, dtype=np.int8)
    halved_by = {"guide": 0, "replicate": 0, "random": 0}
    by_target = np.argsort(cells.target, kind="stable")
    codes, starts = np.unique(cells.target[by_target], return_index=True)
    control = np.zeros((len(parts), c, g))
    ranked: dict[int, RankedControls] = {}
    for code, chosen in zip(codes.tolist(), np.split(by_target, starts[1:]), strict=True):
        fit = chosen[split[chosen] == SPLITS.index(Split.TRAIN)]
        out = chosen[split[chosen] >= SPLITS.index(Split.TEST)]
        rng = np.random.default_rng([seed, code])
        halved = [split_halves(cells, out, guides, rng) for _ in range(repeats)]
        if code and len(out):
            halved_by[halved[0][1]] += 1
        few = out[_thinned(split[out], halved[0][0], share, rng)]
        halves = [3 + 2 * r + half for r, (half, _) in enumerate(halved)]
        whole = np.repeat([0, 1, 2], [len(fit), len(out), len(few)])
        side = np.concatenate([whole, *halves])
        rows = np.concatenate([fit, out, few, *[out] * repeats])
        group = side * c + cells.context[rows]
        found = group_moments(cells, cells.rows[rows], group, len(parts) * c)
        n, mean = found.n.reshape(-1, c).astype(np.int64), found.mean.reshape(-1, c, g)
        variance = found.variance.reshape(-1, c, g)
        if code == 0:
            control = mean
            _check_controls(cells, n, judged_by)
        for i, part in enumerate(parts):
            part.put(code, n[i], mean[i] - control[i], variance[i])
            if part.z is not None and code == 0:
                ranked[i] = RankedControls(cells, rows[side == i])
            elif part.z is not None:
                part.z[code] = ranked[i].z(rows[side == i])
        kind[code, cells.context[out]] = split[out]
    return Holdout(
        cells.gene_ids, cells.target_gene_ids, cells.contexts, _own_columns(cells), kind,
        train, held, pairs, thin, halved_by,
    )  # fmt: skip


class RankedControls:
    """The control cells at positions ``chosen``, sorted context by context.

    Of CP10k: ranks are those of log1p CP10k.
    """

    def __init__(self, cells: StoredCells, chosen: Ints) -> None:
        self._cells = cells
        self._sorted = {c: sort_controls(values) for c, values in self._by_context(chosen)}

    def z(self, chosen: Ints) -> Floats:
        """Return z (C, G) of the rank sums of one target's cells; NaN where a side has none."""
        out = np.full((len(self._cells.contexts), len(self._cells.gene_ids)), np.nan)
        for c, values in self._by_context(chosen):
            if c in self._sorted:
                one = np.zeros(values.shape[0], dtype=np.int64)
                out[c] = rank_sum_test(values, one, 1, self._sorted[c]).z[0]
        return out

    def _by_context(self, chosen: Ints) -> Iterator[tuple[int, Any]]:
        context = self._cells.context[chosen]
        for c in np.unique(context).tolist():
            yield c, self._cells.cp10k(self._cells.rows[chosen[context == c]])


UNREAD = -1
"""Split of cells that are not looked at."""


def _judging(split: NDArray[np.int8], judged_by: Split) -> NDArray[np.int8]:
    """Return the splits with validation standing in for test where no cell tests, or may."""
    train, validation, test = (SPLITS.index(s) for s in (Split.TRAIN, Split.VALIDATION, Split.TEST))
    if judged_by == Split.VALIDATION:
        known = np.where(split == train, train, UNREAD)
        return np.where(split == validation, test, known).astype(np.int8)
    if np.any(split == test):
        return split
    return np.where(split == validation, test, split).astype(np.int8)


def test_share(target: Ints, split: NDArray[np.int8]) -> float:
    """Return the share of the test split among the cells of the screened knock-downs."""
    screened = (target > 0) & (split != UNREAD) & (split <= SPLITS.index(Split.TEST))
    return float(np.mean(split[screened] == SPLITS.index(Split.TEST))) if screened.any() else 1.0


def _thinned(
    split: NDArray[np.int8], half: Ints, share: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Return which held-out cells make centroids: all that test, some of half 1 of the others."""
    lot = rng.random(len(split))
    tests = split == SPLITS.index(Split.TEST)
    return np.asarray(tests | ((half == 1) & (lot < 2 * share)))


def _own_columns(cells: StoredCells) -> Ints:
    column = {gene_id: i for i, gene_id in enumerate(cells.gene_ids)}
    return np.array([column.get(name, -1) for name in cells.target_gene_ids])


def _codes(names: pl.Series) -> Ints:
    """Return integer codes of names, -1 for missing."""
    coded = names.cast(pl.String).rank("dense").cast(pl.Int64).fill_null(-1)
    return coded.to_numpy()


def _check_controls(cells: StoredCells, n: Ints, judged_by: Split) -> None:
    for i, what in enumerate(("training", "held-out")):
        if not n[i].all():
            name = cells.contexts[int(np.argmin(n[i]))]
            msg = (
                f"context {name} has no {what} control cells, so nothing in it can be evaluated;"
                f" leave cells for training and raise splits.{judged_by}."
            )
            raise DataError(msg)


def split_halves(
    cells: StoredCells, chosen: Ints, guides: Ints, rng: np.random.Generator
) -> tuple[Ints, str]:
    """Return a half, 0 or 1, for each of a target's cells, and what the halves differ in.

    Halves of other guides where the target has two or more, else of other replicates, else random
    within each context. Groups are dealt out in random order to the half with fewer cells.
    """
    for how, code in (
        ("guide", guides[cells.rows[chosen]]),
        ("replicate", cells.replicate[chosen]),
    ):
        known, index, count = np.unique(code, return_inverse=True, return_counts=True)
        if len(known) < 2 or known[0] < 0:
            continue
        side, total = np.zeros(len(known), dtype=np.int64), [0, 0]
        for i in rng.permutation(len(known)):
            side[i] = int(total[1] < total[0])
            total[side[i]] += int(count[i])
        return side[index.reshape(-1)], how
    return assign_halves(cells.context[chosen], 1, rng)[0], "random"


def symbols_of(store: Path | str) -> dict[str, str]:
    """Return the symbol of every target of a store by its id."""
    listed = read_json(Path(store) / "store.json")["targets"]
    return {t["target_gene_id"]: t["target_gene"] for t in listed}
