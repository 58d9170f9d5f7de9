"""Raw counts in h5ad files, read in chunks of rows and checked chunk by chunk.

n cells of a chunk, G genes. Every chunk that is handed out holds whole, non-negative counts in
canonical CSR, its columns in the gene order of the first file; anything else is refused by name.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from knockscreen.compiled import compiled
from knockscreen.config import DataConfig
from knockscreen.data.count_loops import (
    NO_COUNT,
    UNSORTED,
    WRONG_GENE,
    ZERO,
    cell_sums,
    faults,
)
from knockscreen.data.h5ad import (
    column_names,
    damaged,
    n_rows,
    open_h5ad,
    read_column,
    says_generated,
    says_log1p,
    says_simulated,
)
from knockscreen.data.kept_values import KeptValues
from knockscreen.data.presets import INDEX
from knockscreen.data.vocab import Genes, column_order, read_genes
from knockscreen.errors import DataError, suggest

CHUNK_ROWS = 20_000
CHUNK_VALUES = 1_000_000
"""A chunk has at most this many rows and (but for one row) this many stored values."""
CSC_VALUES = 20_000_000
"""A CSC matrix with more stored values is refused, it cannot be read by rows."""


@dataclass(frozen=True)
class Chunk:
    """Counts (n, G) of the cells ``start`` to ``stop`` of a file, float32 CSR."""

    start: int
    stop: int
    counts: sparse.csr_matrix

    @property
    def stored(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Data, indices and row pointers of the counts, as :mod:`.count_loops` takes them."""
        return self.counts.data, self.counts.indices, self.counts.indptr

    def cell_sums(
        self, chosen: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the counts of each cell over all genes, and over the genes ``chosen`` (G,)."""
        total, part = np.zeros(self.stop - self.start), np.zeros(self.stop - self.start)
        compiled(cell_sums)(self.stored, chosen, total, part)
        return total, part


class CountsFile:
    """One h5ad file: its genes, its columns, and its counts by chunks of rows."""

    def __init__(self, path: Path, handle: h5py.File, data: DataConfig) -> None:
        self.path = path
        self._handle = handle
        with damaged(path):
            self._node = self._matrix(data.layer)
            self.obs_columns = column_names(handle["obs"])
            self.n_cells = n_rows(handle["obs"])
            self.genes = read_genes(handle["var"], data.columns, file=path)
        self.simulated = says_simulated(handle)
        self.order: NDArray[np.int64] | None = None
        self._check_shape()

    @cached_property
    def barcodes(self) -> pl.Series:
        """The name of each cell, as text."""
        return self.column(INDEX).cast(pl.String)

    def _matrix(self, layer: str | None) -> Any:
        where = "X" if layer is None else f"layers/{layer}"
        if where not in self._handle:
            layers = list(self._handle.get("layers", {}))
            hint = f"; layers: {', '.join(layers)}" if layers else ""
            msg = f"{self.path} has no {where}{hint}; name the raw counts in data.layer."
            raise DataError(msg)
        self.where = "X" if layer is None else f"layer '{layer}'"
        return self._handle[where]

    @property
    def encoding(self) -> str:
        """``csr``, ``csc`` or ``dense``."""
        if isinstance(self._node, h5py.Dataset):
            return "dense"
        kind = str(
            self._node.attrs.get("encoding-type", self._node.attrs.get("h5sparse_format", ""))
        )
        return kind.removesuffix("_matrix")

    def _check_shape(self) -> None:
        if self.encoding == "dense":
            shape = self._node.shape
        elif self.encoding in {"csr", "csc"}:
            shape = self._node.attrs.get("shape", self._node.attrs.get("h5sparse_shape"))
        else:
            msg = (
                f"{self.where} of {self.path} is stored as '{self.encoding}'; expected CSR (or "
                "dense) counts."
            )
            raise DataError(msg)
        if tuple(shape) != (self.n_cells, len(self.genes)):
            msg = (
                f"{self.where} of {self.path} has shape {tuple(int(s) for s in shape)}, but obs "
                "and var name "
                f"{self.n_cells} cells and {len(self.genes)} genes; the file is damaged."
            )
            raise DataError(msg)

    def column(self, name: str) -> pl.Series:
        """Return one obs column, missing values as null."""
        with damaged(self.path):
            return read_column(self._handle["obs"], name)

    def chunks(self, rows: int = CHUNK_ROWS, values: int = CHUNK_VALUES) -> Iterator[Chunk]:
        """Yield all cells in order, checked, in chunks of at most ``rows`` cells.

        A chunk's counts hold until the next is asked for, which may be read into their place.

        Raises
        ------
        DataError
            Values that are not raw counts (fractional, negative, missing, log-transformed), naming
            the first cell and gene, or blocks of the file that cannot be read.
        """
        for start, stop, matrix in self._pieces(rows, values):
            found = self._faults(matrix)
            if found & WRONG_GENE:
                msg = (
                    f"{self.where} of {self.path} points to a gene beyond its {len(self.genes)}; "
                    "the file is damaged."
                )
                raise DataError(msg)
            if self.order is not None and matrix.nnz:
                matrix.indices = self.order[matrix.indices].astype(matrix.indices.dtype)
                found |= UNSORTED
            if found & UNSORTED:
                matrix.has_canonical_format = matrix.has_sorted_indices = False
                matrix.sum_duplicates()
                found = self._faults(matrix)
            matrix.has_canonical_format = True
            if found & NO_COUNT:
                self._refuse_values(matrix, start)
            if found & ZERO:
                matrix.eliminate_zeros()
            yield Chunk(start, stop, matrix)

    def _faults(self, matrix: sparse.csr_matrix) -> int:
        stored = (matrix.data, matrix.indices, matrix.indptr)
        return int(compiled(faults)(stored, len(self.genes)))

    def _pieces(self, rows: int, values: int) -> Iterator[tuple[int, int, sparse.csr_matrix]]:
        read = {"csr": self._from_csr, "csc": self._from_csc, "dense": self._from_dense}
        with damaged(self.path):
            yield from read[self.encoding](rows, values)

    def _from_csr(self, rows: int, values: int) -> Iterator[tuple[int, int, sparse.csr_matrix]]:
        indptr = self._node["indptr"][:].astype(np.int64)
        n_values = self._node["data"].shape[0]
        if (
            len(indptr) != self.n_cells + 1
            or indptr[0] != 0
            or indptr[-1] != n_values
            or (np.diff(indptr) < 0).any()
        ):
            msg = (
                f"the row pointers of {self.where} in {self.path} do not fit its values; the file "
                "is damaged."
            )
            raise DataError(msg)
        data, indices = KeptValues(self._node["data"]), KeptValues(self._node["indices"])
        start = 0
        while start < self.n_cells:
            fits = int(np.searchsorted(indptr, indptr[start] + values, side="right")) - 1
            stop = min(max(fits, start + 1), start + rows, self.n_cells)
            lo, hi = int(indptr[start]), int(indptr[stop])
            pointers = (indptr[start : stop + 1] - lo).astype(np.int32)
            parts = (_as_float(data.read(lo, hi)), indices.read(lo, hi), pointers)
            shape = (stop - start, len(self.genes))
            yield start, stop, sparse.csr_matrix(parts, shape=shape)
            start = stop

    def _from_csc(self, rows: int, values: int) -> Iterator[tuple[int, int, sparse.csr_matrix]]:
        n_values = self._node["data"].shape[0]
        if n_values > CSC_VALUES:
            msg = (
                f"{self.where} of {self.path} is CSC with {n_values:,} values, which cannot be "
                "read by rows; "
                "convert it to CSR (adata.X = adata.X.tocsr()) and write it again."
            )
            raise DataError(msg)
        parts = (
            _as_float(self._node["data"][:]),
            self._node["indices"][:],
            self._node["indptr"][:],
        )
        whole = sparse.csc_matrix(parts, shape=(self.n_cells, len(self.genes))).tocsr()
        for start in range(0, self.n_cells, rows):
            stop = min(start + rows, self.n_cells)
            yield start, stop, whole[start:stop]

    def _from_dense(self, rows: int, values: int) -> Iterator[tuple[int, int, sparse.csr_matrix]]:
        step = min(rows, max(1, values // max(1, len(self.genes))))
        for start in range(0, self.n_cells, step):
            stop = min(start + step, self.n_cells)
            yield start, stop, sparse.csr_matrix(_as_float(self._node[start:stop]))

    def _refuse_values(self, matrix: sparse.csr_matrix, start: int) -> None:
        data = matrix.data
        if not np.isfinite(data).all():
            self._refuse(matrix, start, ~np.isfinite(data), "missing or infinite values", "")
        if data.min() < 0:
            self._refuse(matrix, start, data < 0, "negative values", "; looks scaled")
        odd = np.rint(data) != data
        if odd.any():
            looks = "log-transformed" if says_log1p(self._handle) else _looks(matrix)
            self._refuse(matrix, start, odd, "non-integer values", f"; looks {looks}")

    def _refuse(
        self, matrix: sparse.csr_matrix, start: int, bad: NDArray[np.bool_], what: str, looks: str
    ) -> None:
        first = int(np.flatnonzero(bad)[0])
        row = int(np.searchsorted(matrix.indptr, first, side="right")) - 1
        column = int(matrix.indices[first])
        at = int(np.flatnonzero(self.order == column)[0]) if self.order is not None else column
        msg = (
            f"{self.where} of {self.path} has {what}, e.g. {matrix.data[first]:.4g} at cell "
            f"{self.barcodes[start + row]}, gene {self.genes.genes[at]}{looks}; "
            "give raw counts, in X or in the layer named by data.layer."
        )
        raise DataError(msg)


def _as_float(values: NDArray[Any]) -> NDArray[Any]:
    """Return counts as float32, or as they are where that could lose something."""
    if values.dtype == np.float32:
        return values
    if values.dtype.kind in "iub" and (not values.size or values.max() < 2**24):
        return values.astype(np.float32)
    return values.astype(np.float64)


def _looks(matrix: sparse.csr_matrix, rows: int = 20) -> str:
    """Say what fractional values look like, from the ratios of the values within a cell.

    After log1p of counts (on any scale) they are whole multiples of the smallest once the log is
    undone; counts divided by the library size are whole multiples as they are.
    """
    log, scaled = [], []
    for row in range(min(rows, matrix.shape[0])):
        values = matrix.data[matrix.indptr[row] : matrix.indptr[row + 1]].astype(float)
        values = values[values > 0]
        if len(np.unique(values)) < 2:
            continue
        scaled.append(_whole_multiples(values))
        log.append(values.max() < 50 and _whole_multiples(np.expm1(values)))
    if scaled and np.mean(scaled) > 0.5:
        return "normalised (counts divided by a size factor)"
    if log and np.mean(log) > 0.5:
        return "log-transformed"
    return "log-transformed or corrected" if matrix.data.max() < 20 else "corrected or normalised"


def _whole_multiples(values: NDArray[np.float64]) -> bool:
    for smallest in (1, 2, 3, 4):  # the count that the smallest value may have been
        ratio = smallest * values / values.min()
        if np.allclose(ratio, np.rint(ratio), rtol=1e-5, atol=0.01):
            return True
    return False


class Inputs:
    """The counts files of a run, opened together; all have the same genes."""

    def __init__(self, paths: Sequence[Path | str], data: DataConfig) -> None:
        self._stack = ExitStack()
        self.data = data
        self.files: list[CountsFile] = []
        if not paths:
            msg = "no counts files; list them in data.files, or simulate a screen first."
            raise DataError(msg)
        try:
            for path in map(Path, paths):
                handle = self._stack.enter_context(open_h5ad(path))
                _refuse_generated(path, handle)
                self.files.append(CountsFile(path, handle, data))
            self._align()
        except BaseException:
            self._stack.close()
            raise

    def _align(self) -> None:
        first = self.files[0]
        for file in self.files[1:]:
            if file.genes != first.genes:
                file.order = column_order(first.genes, file.genes, file=file.path, first=first.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def genes(self) -> Genes:
        """The genes, in the order of the first file."""
        return self.files[0].genes

    @property
    def simulated(self) -> bool:
        """Whether any file says that it is simulated."""
        return any(file.simulated for file in self.files)

    @property
    def n_cells(self) -> int:
        """Cells in all files."""
        return sum(file.n_cells for file in self.files)

    def chunks(self, rows: int = CHUNK_ROWS) -> Iterator[tuple[int, Chunk]]:
        """Yield (offset, chunk) over all files; ``offset`` is the chunk's first cell among all."""
        offset = 0
        for file in self.files:
            for chunk in file.chunks(rows):
                yield offset + chunk.start, chunk
            offset += file.n_cells


def _refuse_generated(path: Path, handle: h5py.File) -> None:
    """Refuse generated cells as the input of a screen: predicted and measured never mix."""
    generated = says_generated(handle)
    if "evidence" in handle["obs"]:
        evidence = read_column(handle["obs"], "evidence").cast(pl.String)
        generated = generated or bool(evidence.str.starts_with("predicted").any())
    if generated:
        msg = (
            f"{path} holds cells that 'knockscreen generate' made, and a screen is of measured "
            "cells; leave out those with 'predicted' in obs column 'evidence'."
        )
        raise DataError(msg)


def find_inputs(paths: Sequence[Path | str]) -> list[Path]:
    """Return the h5ad files that ``paths`` name; a folder stands for those in it, sorted.

    Raises
    ------
    DataError
        A folder without h5ad files.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(path.glob("*.h5ad"))
        if not inside:
            names = [p.name for p in path.iterdir()]
            msg = f"folder {path} has no .h5ad files{suggest('counts.h5ad', names)}."
            raise DataError(msg)
        found.extend(inside)
    return found
