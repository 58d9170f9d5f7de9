"""Real cells of the training store, read in chunks of rows.

N cells, G panel genes, F context factors. Counts stay on disk; a chunk is a sparse matrix.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from knockscreen.artifacts import read_json
from knockscreen.errors import DataError, suggest
from knockscreen.names import CP10K, GUIDE_ID, SPLITS, context_name

Ints = NDArray[np.int64]
FORMAT = 1


@dataclass(frozen=True)
class StoredCells:
    """A training store, memory-mapped, and which of its cells are used."""

    gene_ids: tuple[str, ...]
    target_gene_ids: tuple[str, ...]  # code -> id; code 0 is control
    contexts: tuple[str, ...]  # sorted; those that occur among the cells used
    rows: Ints  # (M,) rows used, ascending
    target: Ints  # (M,) codes of target_gene_ids
    context: Ints  # (M,) codes of contexts
    replicate: Ints  # (M,) codes; -1 where there is none
    guide: Ints  # (M,) codes; -1 where there is none
    library_size: NDArray[np.float64]  # (N,) counts over all genes
    indptr: NDArray[np.int64]
    indices: NDArray[Any]
    counts: NDArray[Any]
    n_decoys: int  # that the configuration asked for when the store was made

    def cp10k(self, rows: Ints) -> Any:
        """Return counts per 10,000 of store rows as a sparse matrix (len(rows), G), float64.

        The library size is over all genes of the input, not only those of the panel.
        """
        start, length = self.indptr[rows], self.indptr[rows + 1] - self.indptr[rows]
        indptr = np.concatenate([[0], np.cumsum(length)])
        position = np.arange(indptr[-1]) + np.repeat(start - indptr[:-1], length)
        scale = np.repeat(CP10K / self.library_size[rows], length)
        values = self.counts[position] * scale
        shape = (len(rows), len(self.gene_ids))
        return sparse.csr_matrix(
            (values, self.indices[position].astype(np.int32), indptr), shape=shape
        )


def open_store(folder: Path | str, splits: Sequence[str] = ()) -> StoredCells:
    """Open a training store and choose its cells: those of ``splits``, or all.

    Control cells are those of ``splits`` too, or all of them where ``splits`` hold none (controls
    are never held out by target).

    Raises
    ------
    DataError
        A file is missing, the format is another, a split is unknown or empty, or a context with
        knock-downs has no control cells.
    """
    folder = Path(folder)
    described, arrays, units = _read(folder)
    every_target = np.asarray(arrays["target"]).astype(np.int64)
    chosen = _chosen(np.asarray(arrays["split"]), splits)
    if not np.any(chosen & (every_target == 0)):
        chosen |= every_target == 0
    rows = np.flatnonzero(chosen)
    if not np.any(every_target[rows] != 0):
        msg = (
            f"{folder} has no knocked-down cells in {', '.join(splits) or 'any split'}; choose "
            "other --splits."
        )
        raise DataError(msg)
    contexts, context = _contexts(np.asarray(arrays["contexts"])[rows], described["factors"])
    target = every_target[rows]
    _check_controls(contexts, context, target)
    return StoredCells(
        gene_ids=tuple(gene["gene_id"] for gene in described["genes"]),
        target_gene_ids=tuple(t["target_gene_id"] for t in described["targets"]),
        contexts=contexts,
        rows=rows,
        target=target,
        context=context,
        replicate=_codes(units["replicate"])[rows],
        guide=_codes(units[GUIDE_ID])[rows],
        library_size=np.asarray(arrays["library_size"], dtype=np.float64),
        indptr=np.asarray(arrays["indptr"]),
        indices=arrays["indices"],
        counts=arrays["counts"],
        n_decoys=len(described.get("decoys", [])),
    )


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]], pl.DataFrame]:
    """Return the description, the memory-mapped arrays, and replicate and guide of each cell."""
    described = read_json(folder / "store.json")
    if described.get("format") != FORMAT:
        msg = (
            f"{folder} is a store of format {described.get('format')}, this version reads "
            f"{FORMAT}; run normalize again."
        )
        raise DataError(msg)
    names = ("indptr", "indices", "counts", "library_size", "target", "contexts", "split")
    try:
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}
        cells = pl.read_parquet(folder / "cells.parquet", columns=["replicate", GUIDE_ID])
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        msg = f"{folder} is not a whole training store ({error}); run normalize again."
        raise DataError(msg) from error
    return described, arrays, cells


def _chosen(split: NDArray[Any], splits: Sequence[str]) -> NDArray[np.bool_]:
    for name in splits:
        if name not in SPLITS:
            msg = f"unknown split '{name}'{suggest(name, SPLITS)}."
            raise DataError(msg)
    return np.isin(split, [SPLITS.index(name) for name in splits or SPLITS])


def _codes(names: pl.Series) -> Ints:
    """Return integer codes of names in sorted order, -1 for NULL."""
    known = names.drop_nulls().unique().sort()
    codes = names.replace_strict(known, np.arange(len(known)), default=-1, return_dtype=pl.Int64)
    return codes.to_numpy()


def _contexts(levels: NDArray[Any], factors: dict[str, list[str]]) -> tuple[tuple[str, ...], Ints]:
    """Return the names of the contexts that occur, sorted, and each cell's code."""
    if not factors:
        return (context_name({}),), np.zeros(len(levels), dtype=np.int64)
    found, inverse = np.unique(levels, axis=0, return_inverse=True)
    names = [
        context_name({f: factors[f][code] for f, code in zip(factors, row, strict=True)})
        for row in found.tolist()
    ]
    order = np.argsort(np.array(names), kind="stable")
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return tuple(names[i] for i in order), rank[inverse.reshape(-1)]


def _check_controls(contexts: Sequence[str], context: Ints, target: Ints) -> None:
    has_control = np.bincount(context[target == 0], minlength=len(contexts)) > 0
    if not has_control.all():
        name = contexts[int(np.argmin(has_control))]
        msg = (
            f"context {name} has no control cells to compare with; leave it out by data.where, or "
            "use all splits."
        )
        raise DataError(msg)
