"""Writing the training store: panel counts of N cells over G genes, memory-mappable.

CSR in three arrays (``indptr`` int64, ``indices`` and ``counts`` uint16, or uint32 where a gene
index or a count needs it) beside one array per cell property. Values are appended to the files as
chunks come, so that memory does not grow with the cells.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray

from knockscreen.compiled import compiled
from knockscreen.data.count_loops import panel_values
from knockscreen.data.decoys import Decoys

FORMAT = 1
LARGEST_U16 = 65_535


@dataclass(frozen=True)
class StoreHeader:
    """All of the store but the counts.

    ``panel`` (G,) positions of the panel genes among the input genes; ``library_size`` (N,) over
    all genes; ``target`` (N,) positions in ``targets``; ``contexts`` (N, F) positions in the levels
    of each factor; ``split`` (N,) positions in ``names.SPLITS``.
    """

    panel: NDArray[np.int64]
    genes: list[dict[str, str]]
    factors: dict[str, list[str]]
    targets: list[dict[str, str]]
    simulated: bool
    library_size_log: dict[str, list[float]]
    library_size: NDArray[np.float32]
    target: NDArray[np.int32]
    contexts: NDArray[np.int16]
    split: NDArray[np.int8]
    decoys: Decoys

    def as_json(self) -> str:
        """Return ``store.json``; factors in the order of the configuration."""
        about = {
            "format": FORMAT,
            "n_cells": len(self.target),
            "simulated": self.simulated,
            "factors": self.factors,
            "library_size_log": self.library_size_log,
            "targets": self.targets,
            "decoys": list(self.decoys.ids),
            "genes": self.genes,
        }
        return json.dumps(about, indent=1) + "\n"


class StoreWriter:
    """Appends the kept cells' counts to a store in a new folder, in order."""

    def __init__(
        self, folder: Path, header: StoreHeader, *, n_genes: int, highest: int, n_values: int
    ) -> None:
        folder.mkdir()
        self._folder = folder
        self._header = header
        self._column = np.full(n_genes, -1, dtype=np.int32)
        self._column[header.panel] = np.arange(len(header.panel))
        self._index_type = np.uint16 if len(header.panel) <= LARGEST_U16 else np.uint32
        self._count_type = np.uint16 if highest <= LARGEST_U16 else np.uint32
        self._indptr = np.zeros(len(header.target) + 1, dtype=np.int64)
        self._rows = 0
        self._indices = _start(folder / "indices.npy", self._index_type, n_values)
        self._counts = _start(folder / "counts.npy", self._count_type, n_values)

    def add(
        self, counts: tuple[NDArray[Any], NDArray[Any], NDArray[Any]], kept: NDArray[np.bool_]
    ) -> None:
        """Append the ``kept`` cells (n,) of CSR ``counts`` (n, all input genes).

        ``counts`` is data, indices, ascending within a cell, and row pointers.
        """
        places = np.empty(len(counts[0]) + 1, dtype=self._index_type)
        values = np.empty(len(counts[0]) + 1, dtype=self._count_type)
        lengths = np.zeros(len(kept), dtype=np.int64)
        used = compiled(panel_values)(counts, kept, self._column, (places, values, lengths))
        rows = slice(self._rows + 1, self._rows + 1 + int(kept.sum()))
        self._indptr[rows] = self._indptr[self._rows] + np.cumsum(lengths[kept])
        self._rows = rows.stop - 1
        self._indices.write(places[:used].data)
        self._counts.write(values[:used].data)

    def finish(self) -> None:
        """Write what is left and close."""
        self._indices.close()
        self._counts.close()
        arrays: dict[str, NDArray[np.generic]] = {
            "indptr": self._indptr,
            "library_size": self._header.library_size,
            "target": self._header.target,
            "contexts": self._header.contexts,
            "split": self._header.split,
            "decoy_rows": self._header.decoys.rows,
            "decoy_target": self._header.decoys.number + len(self._header.targets),
        }
        for name, array in arrays.items():
            np.save(self._folder / f"{name}.npy", array)
        (self._folder / "store.json").write_text(self._header.as_json())


def _start(path: Path, dtype: DTypeLike, n: int) -> BinaryIO:
    """Open a one-dimensional npy file of ``n`` values and write its header."""
    handle = path.open("wb")
    about = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
        "fortran_order": False,
        "shape": (n,),
    }
    np.lib.format.write_array_header_2_0(handle, about)
    return handle
