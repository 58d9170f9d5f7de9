"""Rows of a training store as a model takes them: dense counts, or tokens of expressed genes.

B rows, G panel genes, L most expressed genes of a row. ``stored`` is the CSR triple counts (v,),
indices (v,) and indptr (N + 1,), as they lie on disk. Compiled loops for large stores where numba
is installed, and the same in numpy for others, which tests compare them with.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knockscreen.compiled import available, compiled
from knockscreen.errors import DataError

LARGE = 5_000_000
"""Stored values from which compiled loops are worth the 0.3 s that a process takes to load them."""

Stored = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]
Rows = NDArray[np.integer]


@dataclass(frozen=True)
class Tokens:
    """The expressed genes of each row, ascending, and their counts; 0 and 0 fill the row up."""

    gene: NDArray[np.int32]  # (B, L) panel columns
    count: NDArray[np.float32]  # (B, L)
    length: NDArray[np.int64]  # (B,)


def dense_rows(stored: Stored, rows: Rows, n_genes: int) -> NDArray[np.float32]:
    """Return the counts (B, G) of some rows.

    Raises
    ------
    IndexError
        A row that is not there.
    DataError
        A store whose arrays do not fit each other.
    """
    rows = _checked(stored, rows)
    out = np.empty((len(rows), n_genes), dtype=np.float32)
    if _is_large(stored):
        _whole(compiled(_fill_dense)(_plain(stored), rows, out))
    else:
        dense_in_numpy(stored, rows, out)
    return out


def token_rows(stored: Stored, rows: Rows, n_genes: int) -> Tokens:
    """Return the expressed genes of some rows and their counts; raises as :func:`dense_rows`."""
    rows = _checked(stored, rows)
    length = np.asarray(stored[2][rows + 1] - stored[2][rows])
    shape = (len(rows), int(length.max(initial=0)))
    out = Tokens(np.empty(shape, np.int32), np.empty(shape, np.float32), length)
    if _is_large(stored):
        _whole(compiled(_fill_tokens)(_plain(stored), rows, n_genes, (out.gene, out.count)))
    else:
        tokens_in_numpy(stored, rows, out)
    return out


def _is_large(stored: Stored) -> bool:
    return len(stored[0]) >= LARGE and available()


def dense_in_numpy(stored: Stored, rows: Rows, out: NDArray[np.float32]) -> None:
    """Fill the counts (B, G) of some rows."""
    row, value = _values(stored, rows)
    out[:] = 0
    out[row, stored[1][value]] = stored[0][value]


def tokens_in_numpy(stored: Stored, rows: Rows, out: Tokens) -> None:
    """Fill the tokens of some rows."""
    row, value = _values(stored, rows)
    place = value - np.asarray(stored[2][rows])[row]
    out.gene[:], out.count[:] = 0, 0
    out.gene[row, place] = stored[1][value]
    out.count[row, place] = stored[0][value]


def _values(stored: Stored, rows: Rows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return for each stored value of the rows its place in ``rows`` and in the store."""
    starts = np.asarray(stored[2][rows])
    length = np.asarray(stored[2][rows + 1]) - starts
    row = np.repeat(np.arange(len(rows)), length)
    first = np.repeat(starts - np.concatenate([[0], np.cumsum(length)[:-1]]), length)
    return row, first + np.arange(len(row))


def _checked(stored: Stored, rows: Rows) -> NDArray[np.int64]:
    asked = np.asarray(rows, dtype=np.int64)
    low, high, n = int(asked.min(initial=0)), int(asked.max(initial=-1)), len(stored[2]) - 1
    if low < 0 or high >= n:
        msg = f"rows {low} to {high} are not all among the {n} of the store."
        raise IndexError(msg)
    return asked


def _plain(stored: Stored) -> Stored:
    """Return memory-mapped arrays as arrays, without copying."""
    counts, indices, indptr = stored
    return np.asarray(counts), np.asarray(indices), np.asarray(indptr)


def _whole(bad_row: int) -> None:
    if bad_row >= 0:
        msg = f"cell {bad_row} of the training store is damaged; run 'knockscreen normalize' again."
        raise DataError(msg)


def _fill_dense(stored: Any, rows: Any, out: Any) -> int:
    """Fill counts (B, G); return a row that does not fit the store, or -1.

    Genes are checked and counts made floats in loops over one array each, which the compiler makes
    wide; what is left for the last one is to scatter into a row that is still in the cache.
    """
    counts, indices, indptr = stored
    values = np.empty(out.shape[1], dtype=out.dtype)
    for i in range(len(rows)):
        start, stop = indptr[rows[i]], indptr[rows[i] + 1]
        if start < 0 or stop > len(counts) or stop - start > len(values):
            return int(rows[i])
        row, genes, count = out[i], indices[start:stop], counts[start:stop]
        last = genes.dtype.type(0)
        for k in range(len(genes)):
            last = max(last, genes[k])
        if len(genes) and last >= len(row):
            return int(rows[i])
        for k in range(len(count)):
            values[k] = count[k]
        row[:] = 0
        for k in range(len(genes)):
            row[genes[k]] = values[k]
    return -1


def _fill_tokens(stored: Any, rows: Any, n_genes: int, out: Any) -> int:
    """Fill tokens (B, L); return a row that points outside the store, or -1."""
    counts, indices, indptr = stored
    genes, values = out
    for i in range(len(rows)):
        start, n = indptr[rows[i]], indptr[rows[i] + 1] - indptr[rows[i]]
        if start < 0 or start + n > len(counts) or n > genes.shape[1]:
            return int(rows[i])
        last = indices.dtype.type(0)
        for k in range(n):  # loops over one array each, which the compiler makes wide
            last = max(last, indices[start + k])
            genes[i, k] = indices[start + k]
        for k in range(n):
            values[i, k] = counts[start + k]
        genes[i, n:] = 0
        values[i, n:] = 0
        if n and last >= n_genes:
            return int(rows[i])
    return -1
