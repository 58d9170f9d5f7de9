"""Split halves of real cells: how well the data agree with themselves.

R random splits, C contexts, P programs, U genes used by programs. Each target's cells and each
context's controls are divided into two disjoint random halves, so that the two scores of a
knock-down share no cell at all.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from knockscreen.score.statistics import perfect_predictor_correlation, spearman

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def assign_halves(group: Ints, splits: int, rng: np.random.Generator) -> Ints:
    """Return for each split and cell a half, 0 or 1, drawn within groups: shape (R, n).

    The halves of a group differ by at most one cell. A group of one cell has an empty half 1.
    """
    halves = np.empty((splits, len(group)), dtype=np.int64)
    for r in range(splits):
        order = np.lexsort((rng.random(len(group)), group))
        by_group = group[order]
        position = np.arange(len(group)) - np.searchsorted(by_group, by_group)
        halves[r, order] = position % 2
    return halves


def half_indicator(group: Ints, halves: Ints, n_groups: int) -> tuple[sparse.csr_matrix, Floats]:
    """Return the matrix (R * 2 * C, n) that sums cells by split, half and group, and its counts.

    Counts have shape (R, 2, C).
    """
    splits, n = halves.shape
    row = (np.arange(splits)[:, None] * 2 + halves) * n_groups + group
    shape = (splits * 2 * n_groups, n)
    entries = (np.ones(splits * n), (row.ravel(), np.tile(np.arange(n), splits)))
    counts = np.bincount(row.ravel(), minlength=shape[0]).astype(np.float64)
    return sparse.csr_matrix(entries, shape=shape), counts.reshape(splits, 2, n_groups)


def ceiling_table(
    halves: NDArray[np.float32], programs: Sequence[str], contexts: Sequence[str]
) -> pl.DataFrame:
    """Return the split-half ceiling of each program and context over targets.

    Parameters
    ----------
    halves
        Half scores (R, 2, T, X, P); NaN where a half is undefined.

    Returns
    -------
    pl.DataFrame
        ``spearman_half``: median over splits of Spearman's correlation between halves.
        ``ceiling`` = sqrt(2 r / (1 + r)): the correlation with the full measurement that a perfect
        predictor is expected to reach; NULL for r < 0 or fewer than three targets.
    """
    rows = []
    for p, program in enumerate(programs):
        for x, context in enumerate(contexts):
            pairs = halves[:, :, :, x, p].astype(np.float64)  # (R, 2, T)
            defined = np.isfinite(pairs).all(axis=(0, 1))
            found = np.array([spearman(a, b) for a, b in pairs])
            found = found[np.isfinite(found)]
            r = float(np.median(found)) if len(found) else float("nan")
            rows.append((program, context, int(defined.sum()), r, perfect_predictor_correlation(r)))
    schema = {
        "program": pl.String,
        "context": pl.String,
        "n_targets": pl.Int32,
        "spearman_half": pl.Float64,
        "ceiling": pl.Float64,
    }
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    frame = frame.with_columns(pl.lit(len(halves), pl.Int32).alias("splits"))
    return frame.fill_nan(None).sort("program", "context")
