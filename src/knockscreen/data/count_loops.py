"""Loops over the stored values of a chunk of counts, to be compiled (:mod:`knockscreen.compiled`).

n cells, G genes, v stored values. ``counts`` is the CSR triple data (v,), indices (v,) and
indptr (n + 1,). Each goes over the values once and adds to what it is given, in the order of the
cells, so that sums do not depend on the chunks. A gene that :func:`faults` let pass is no negative
number: as an unsigned one it is looked up without asking whether it counts from the end.
"""

from typing import Any

import numpy as np

WRONG_GENE, NO_COUNT, ZERO, UNSORTED = 1, 2, 4, 8
"""What :func:`faults` finds, as bits."""


def faults(counts: Any, n_genes: int) -> int:
    """Return what is wrong with the counts.

    Genes that do not exist; values that are not whole, not finite, negative, or 2^31 and more;
    stored zeros; genes of a cell that are not ascending, or twice there. Each loop is over one
    array and without a branch, so that the compiler makes it wide.
    """
    data, indices, indptr = counts
    odd, least, descends = np.int32(0), np.int32(1), np.int32(0)
    for value in data:
        whole = np.int32(value)
        odd |= np.int32(float(whole) != value)
        least = min(least, whole)
    found = NO_COUNT * (odd != 0 or least < 0) | ZERO * (least == 0)
    low, high = 0, 0
    for row in range(len(indptr) - 1):
        genes = indices[indptr[row] : indptr[row + 1]]
        for k in range(1, len(genes)):
            descends |= np.int32(genes[k] <= genes[k - 1])
        if len(genes):
            low, high = min(low, genes[0]), max(high, genes[-1])
    if descends:  # first and last are then not the least and the most
        found |= UNSORTED
        low, high = indices.min(), indices.max()
    return int(found | WRONG_GENE * (low < 0 or high >= n_genes))


def cell_sums(counts: Any, chosen: Any, total: Any, of_chosen: Any) -> None:
    """Add each cell's counts to ``total`` (n,), those of the genes ``chosen`` (G,) apart too."""
    data, indices, indptr = counts
    any_chosen = np.any(chosen)
    for row in range(len(indptr) - 1):
        everything = np.int64(0)
        for value in data[indptr[row] : indptr[row + 1]]:
            everything += np.int32(value)
        total[row] += everything
        if any_chosen:
            for k in range(indptr[row], indptr[row + 1]):
                if chosen[indices[k]]:
                    of_chosen[row] += data[k]


def own_values(counts: Any, own: Any, value: Any) -> None:
    """Set ``value`` (n,) to each cell's count of its gene ``own`` (n,); -1 is no gene."""
    data, indices, indptr = counts
    for row in range(len(indptr) - 1):
        low, end = indptr[row], indptr[row + 1]
        stop = end
        while low < stop:
            middle = (low + stop) >> 1
            if indices[middle] < own[row]:
                low = middle + 1
            else:
                stop = middle
        if low < end and indices[low] == own[row]:
            value[row] = data[low]


def gene_sums(counts: Any, kept: Any, n: Any, total: Any) -> None:
    """Add the cells with a count, and the counts, of ``kept`` cells (n,) to each gene (G,)."""
    data, indices, indptr = counts
    for row in range(len(indptr) - 1):
        if kept[row]:
            mine = slice(indptr[row], indptr[row + 1])
            genes, values = indices[mine], data[mine]
            for k in range(len(genes)):
                n[np.uint32(genes[k])] += 1
                total[np.uint32(genes[k])] += values[k]


def scaled_sums(counts: Any, cells: Any, sums: Any, seen_other: Any) -> int:
    """Add CP10k, its square and the cells with a count to ``sums`` (three of B, G).

    ``cells`` is whether each is kept (n,), its batch (n,), -1 where it does not count, and its
    library size (n,). Kept cells without a batch are added to ``seen_other`` (G,) where they have a
    count. The highest count of kept cells is returned.
    """
    data, indices, indptr = counts
    kept, batch, library = cells
    x, xx, seen = sums
    highest = 0
    for row in range(len(indptr) - 1):
        if kept[row]:
            b, mine = batch[row], slice(indptr[row], indptr[row + 1])
            genes, values = indices[mine], data[mine]
            for value in values:
                highest = max(highest, int(value))
            if b < 0:
                for gene in genes:
                    seen_other[np.uint32(gene)] += 1
            else:
                x_b, xx_b, seen_b = x[b], xx[b], seen[b]
                for k in range(len(genes)):
                    gene, scaled = np.uint32(genes[k]), values[k] / library[row] * 1e4
                    x_b[gene] += scaled
                    xx_b[gene] += scaled * scaled
                    seen_b[gene] += 1
    return highest


def panel_values(counts: Any, kept: Any, column: Any, out: Any) -> int:
    """Put the ``kept`` cells' counts of panel genes into ``out``; return how many there are.

    ``column`` (G,) is each gene's place on the panel, or -1. ``out`` is places (v + 1,), counts
    (v + 1,) and the number of values of each cell (n,). What is not on the panel is written too,
    and written over by the next: cheaper than a branch that is taken at random.
    """
    data, indices, indptr = counts
    places, values, lengths = out
    used = 0
    for row in range(len(indptr) - 1):
        first = used
        if kept[row]:
            for k in range(indptr[row], indptr[row + 1]):
                place = column[np.uint32(indices[k])]
                places[used] = place
                values[used] = data[k]
                used += place >= 0
        lengths[row] = used - first
    return used
