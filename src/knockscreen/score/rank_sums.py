"""Wilcoxon's rank-sum test of many groups of cells against the same controls, gene by gene.

K groups, G genes, N control cells, M cells of the groups. The asymptotic two-sided test with
continuity and tie correction (Mann and Whitney 1947), as ``scipy.stats.mannwhitneyu``. Values are
not negative and mostly zero: zeros are counted, not ranked, and each gene's other control values
are sorted once for all groups. ``evaluate.de_test`` calls really DE genes by it. Cells of one
culture are not replicates (ADR 0007), so these p-values compare cells and do not say that a
knock-down did something.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import ndtr

from knockscreen.compiled import compiled

VALUES_AT_ONCE = 4_000_000
"""Stored values that are turned from cell-major to gene-major together."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class SortedControls:
    """Control cells, gene by gene: the values that are not zero, ascending."""

    cells: int
    indptr: Ints  # (G + 1,)
    values: NDArray[Any]
    ties: Floats  # (G,) sum of t^3 - t over the values, zeros not among them


@dataclass(frozen=True)
class RankSums:
    """Of every group and gene, shape (K, G); a group without cells has NaN."""

    u: Floats  # Mann-Whitney U of the group; n * N / 2 where it is like control
    z: Floats  # in standard deviations, continuity-corrected; above 0 where the group is higher
    p_value: Floats
    auroc: Floats  # U / (n * N): a cell of the group is above a control cell, ties half


def sort_controls(controls: sparse.csr_matrix) -> SortedControls:
    """Sort the control cells (N, G) of one context.

    Raises
    ------
    ValueError
        There are no control cells, or values that are negative or not numbers.
    """
    _check(controls)
    if not controls.shape[0]:
        msg = "no control cells to compare with."
        raise ValueError(msg)
    n, genes = controls.shape
    values, _, indptr = _by_gene(controls, np.zeros(n, dtype=np.int64))
    for start, stop in itertools.pairwise(indptr):
        values[start:stop].sort()
    gene = np.repeat(np.arange(genes), np.diff(indptr))
    same = (values[1:] == values[:-1]) & (gene[1:] == gene[:-1])
    ends = np.flatnonzero(np.append(~same, True)[: len(values)])
    runs = np.diff(ends, prepend=-1).astype(np.float64)
    ties = np.bincount(gene[ends], runs**3 - runs, genes).astype(np.float64)
    return SortedControls(n, indptr, values, ties)


def rank_sum_test(
    cells: sparse.csr_matrix, group: Ints, n_groups: int, controls: SortedControls
) -> RankSums:
    """Compare each group of cells with the controls.

    Parameters
    ----------
    cells
        Values (M, G), any one scale shared with the controls, e.g. log1p CP10k.
    group
        Group of each cell (M,), 0 to ``n_groups`` - 1.

    Raises
    ------
    ValueError
        Shapes that do not fit, or values that are negative or not numbers.

    Examples
    --------
    >>> controls = sort_controls(sparse.csr_matrix([[0.0], [0.0], [1.0], [2.0]]))
    >>> found = rank_sum_test(sparse.csr_matrix([[2.0], [3.0]]), np.zeros(2, int), 1, controls)
    >>> found.u.item(), found.auroc.item()
    (7.5, 0.9375)
    """
    genes = len(controls.indptr) - 1
    if cells.shape != (len(group), genes):
        msg = f"cells have shape {cells.shape}, expected {(len(group), genes)}."
        raise ValueError(msg)
    _check(cells)
    order = np.argsort(group, kind="stable")
    if not np.array_equal(order, np.arange(len(order))):
        cells, group = cells[order], group[order]
    n = np.bincount(group, minlength=n_groups)
    u, ties = np.zeros((n_groups, genes)), np.zeros((n_groups, genes))
    first = np.concatenate([[0], np.cumsum(n)])
    for start, stop in _batches(cells.indptr[first]):
        rows = slice(int(first[start]), int(first[stop]))
        values, code, indptr = _by_gene(cells[rows], group[rows] - start)
        compiled(_sort_runs)(values, code, indptr)
        compiled(_compare)(
            (values, code, indptr),
            (controls.values, controls.indptr, controls.ties, controls.cells),
            n[start:stop],
            (u[start:stop], ties[start:stop]),
        )
    return _judge(u, ties, n[:, None].astype(np.float64), float(controls.cells))


def _check(cells: sparse.csr_matrix) -> None:
    if cells.nnz and not cells.data.min() >= 0:
        msg = "values are negative or missing; give counts or log1p of scaled counts."
        raise ValueError(msg)


def _batches(values_before: Ints) -> list[tuple[int, int]]:
    """Return ranges of groups with at most ``VALUES_AT_ONCE`` stored values, one group at least."""
    ranges, start, n_groups = [], 0, len(values_before) - 1
    while start < n_groups:
        most = values_before[start] + VALUES_AT_ONCE
        stop = max(start + 1, int(np.searchsorted(values_before, most, side="right")) - 1)
        ranges.append((start, stop))
        start = stop
    return ranges


def _by_gene(cells: sparse.csr_matrix, group: Ints) -> tuple[NDArray[Any], NDArray[Any], Ints]:
    """Return values above zero gene by gene, the group of each, and where genes begin (G + 1,)."""
    count = np.bincount(cells.indices[cells.data > 0], minlength=cells.shape[1])
    indptr = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
    values, code = np.empty(indptr[-1], cells.data.dtype), np.empty(indptr[-1], dtype=np.int32)
    compiled(_transpose)(
        (cells.data, cells.indices, cells.indptr), group, indptr[:-1].copy(), (values, code)
    )
    return values, code, indptr


def _judge(u: Floats, ties: Floats, n: Floats, n_control: float) -> RankSums:
    total, pairs = n + n_control, n * n_control
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.sqrt(pairs / 12 * ((total + 1) - ties / (total * (total - 1))))
        off = u - pairs / 2
        z = np.sign(off) * np.maximum(np.abs(off) - 0.5, 0.0) / spread
        auroc = u / pairs
    z[(n > 0) & (spread == 0)] = 0.0  # all values are one
    return RankSums(np.where(n > 0, u, np.nan), z, 2 * ndtr(-np.abs(z)), auroc)


def over_strata(z: Floats, n: Floats, n_control: Floats) -> Floats:
    """Return two-sided p-values (G,) over strata (S, G), e.g. donors, each compared by itself.

    The weights of van Elteren (1960), sqrt(n N / (n + N + 1)), are best for a shift that the strata
    share. One stratum alone has its own p-value.

    Parameters
    ----------
    z
        Of each stratum, as :func:`rank_sum_test` gives it.
    n, n_control
        Cells (S,) of the group and of control.

    Examples
    --------
    >>> over_strata(np.array([[2.0], [2.0]]), np.array([9, 9]), np.array([90, 90])).round(4)
    array([0.0047])
    """
    weight = np.sqrt(n * n_control / (n + n_control + 1))
    return np.asarray(2 * ndtr(-np.abs(weight @ z) / np.sqrt(weight @ weight)))


def _transpose(cells: Any, group: Any, at: Any, out: Any) -> None:
    """Put the values above zero of CSR ``cells`` where their gene's next one belongs (``at``)."""
    data, indices, indptr = cells
    values, code = out
    for row in range(len(indptr) - 1):
        for k in range(indptr[row], indptr[row + 1]):
            if data[k] > 0:
                place = at[indices[k]]
                values[place] = data[k]
                code[place] = group[row]
                at[indices[k]] = place + 1


def _sort_runs(values: Any, code: Any, indptr: Any) -> None:
    """Sort each gene's values within each group: Shell's sort, with Knuth's gaps."""
    for gene in range(len(indptr) - 1):
        start, end = indptr[gene], indptr[gene + 1]
        while start < end:
            stop = start + 1
            while stop < end and code[stop] == code[start]:
                stop += 1
            mine, gap = values[start:stop], 1
            while gap < len(mine) // 3:
                gap = 3 * gap + 1
            while gap > 0:
                for i in range(gap, len(mine)):
                    value, j = mine[i], i
                    while j >= gap and mine[j - gap] > value:
                        mine[j] = mine[j - gap]
                        j -= gap
                    mine[j] = value
                gap //= 3
            start = stop


def _compare(cells: Any, controls: Any, n: Any, out: Any) -> None:
    """Fill U and the tie term (K, G) of groups whose values are sorted by gene and group."""
    values, code, indptr = cells
    control, control_indptr, control_ties, n_control = controls
    u, ties = out
    for gene in range(len(indptr) - 1):
        below = control[control_indptr[gene] : control_indptr[gene + 1]]
        zeros = n_control - len(below)
        k, end = indptr[gene], indptr[gene + 1]
        for group in range(len(n)):
            start = k
            while k < end and code[k] == group:
                k += 1
            mine = values[start:k]
            silent = float(n[group] - len(mine))
            twice = silent * zeros  # 2 U: pairs of zeros are ties
            both = silent + zeros
            tied = control_ties[gene] + both * both * both - both
            low, i = 0, 0
            while i < len(mine):
                value, same = mine[i], 1
                while i + same < len(mine) and mine[i + same] == value:
                    same += 1
                left, right = low, len(below)  # first control value that is not below
                while left < right:
                    middle = (left + right) >> 1
                    if below[middle] < value:
                        left = middle + 1
                    else:
                        right = middle
                low = left
                while left < len(below) and below[left] == value:
                    left += 1
                equal = float(left - low)
                twice += same * (2.0 * (zeros + low) + equal)
                together = equal + same
                tied += together**3 - together - (equal**3 - equal)
                low, i = left, i + same
            u[group, gene] = twice / 2
            ties[group, gene] = tied
