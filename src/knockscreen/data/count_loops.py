"""Loops over the stored values of a chunk of counts, to be compiled (:mod:`knockscreen.compiled`).

n cells, G genes, v stored values. ``counts`` is the CSR triple data (v,), indices (v,) and
indptr (n + 1,). Each goes over the values once and adds to what it is given, in the order of the
cells, so that sums do not depend on the chunks.
"""

from typing import Any

WRONG_GENE, NO_COUNT, ZERO, UNSORTED = 1, 2, 4, 8
"""What :func:`faults` finds, as bits."""


def faults(counts: Any, n_genes: int) -> int:
    """Return what is wrong with the counts.

    Genes that do not exist; values that are not whole, not finite or negative; stored zeros;
    genes of a cell that are not ascending, or twice there.
    """
    data, indices, indptr = counts
    found = 0
    for row in range(len(indptr) - 1):
        before = -1
        for k in range(indptr[row], indptr[row + 1]):
            gene, value = indices[k], data[k]
            if gene < 0 or gene >= n_genes:
                found |= WRONG_GENE
            if gene <= before:
                found |= UNSORTED
            if value == 0:
                found |= ZERO
            elif not (0 < value < 1e18 and value == int(value)):
                found |= NO_COUNT
            before = gene
    return found


def cell_sums(counts: Any, chosen: Any, total: Any, of_chosen: Any) -> None:
    """Add each cell's counts to ``total`` (n,), those of the genes ``chosen`` (G,) apart too."""
    data, indices, indptr = counts
    for row in range(len(indptr) - 1):
        everything, part = 0.0, 0.0
        for k in range(indptr[row], indptr[row + 1]):
            everything += data[k]
            if chosen[indices[k]]:
                part += data[k]
        total[row] += everything
        of_chosen[row] += part


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
            for k in range(indptr[row], indptr[row + 1]):
                n[indices[k]] += 1
                total[indices[k]] += data[k]


def scaled_sums(counts: Any, cells: Any, sums: Any, seen_all: Any) -> float:
    """Add CP10k, its square and the cells with a count to ``sums`` (three of B, G).

    ``cells`` is whether each is kept (n,), its batch (n,), -1 where it does not count, and its
    library size (n,). Kept cells with a count are added to ``seen_all`` (G,), whatever their batch;
    the highest count of them is returned.
    """
    data, indices, indptr = counts
    kept, batch, library = cells
    x, xx, seen = sums
    highest = 0.0
    for row in range(len(indptr) - 1):
        b = batch[row]
        if kept[row]:
            for k in range(indptr[row], indptr[row + 1]):
                gene, value = indices[k], float(data[k])
                seen_all[gene] += 1
                highest = max(highest, value)
                if b >= 0:
                    scaled = value / library[row] * 1e4
                    x[b, gene] += scaled
                    xx[b, gene] += scaled * scaled
                    seen[b, gene] += 1
    return highest


def panel_values(counts: Any, kept: Any, column: Any, out: Any) -> int:
    """Put the ``kept`` cells' counts of panel genes into ``out``; return how many there are.

    ``column`` (G,) is each gene's place on the panel, or -1. ``out`` is places (v,), counts (v,)
    and the number of values of each cell (n,).
    """
    data, indices, indptr = counts
    places, values, lengths = out
    used = 0
    for row in range(len(indptr) - 1):
        first = used
        if kept[row]:
            for k in range(indptr[row], indptr[row + 1]):
                place = column[indices[k]]
                if place >= 0:
                    places[used] = place
                    values[used] = data[k]
                    used += 1
        lengths[row] = used - first
    return used
