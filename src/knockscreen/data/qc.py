"""Quality control in chunked passes: which cells, guides and targets enter the screen.

The first pass counts (library size, genes, mitochondrial share), filters cells, and sums what the
test of each guide's knock-down needs, and describes the genes; the second, where that test or the
number of cells dropped some, takes these out of the description.
Memory holds one chunk of counts and a few numbers per cell.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from knockscreen.artifacts import atomic, write_manifest
from knockscreen.compiled import compiled
from knockscreen.config import DataConfig, QcConfig, Section
from knockscreen.data import qc_tables
from knockscreen.data.annotation import read_cells
from knockscreen.data.count_loops import gene_sums, own_values
from knockscreen.data.counts import CHUNK_ROWS, Chunk, Inputs
from knockscreen.data.knockdown import (
    INACTIVE,
    NOT_JUDGED,
    GuideTest,
    Moments,
    judge,
    test_guides,
)
from knockscreen.data.qc_tables import KEPT, STATUS
from knockscreen.errors import DataError
from knockscreen.progress import track_chunks

log = logging.getLogger(__name__)

Codes = NDArray[np.int32]


class QcStage(Section):
    """The sections that ``qc`` reads."""

    data: DataConfig
    qc: QcConfig


@dataclass
class CellCodes:
    """Integer codes of all cells, shape (N,); -1 is none."""

    contexts: list[str]
    context: Codes
    guides: pl.DataFrame  # guide_id, target_gene, target_gene_id, gene (position, -1 if unmeasured)
    guide: Codes
    is_control: NDArray[np.bool_]


@dataclass
class Measured:
    """What the first pass finds in the counts, arrays (N,)."""

    library_size: NDArray[np.float64]
    n_genes: NDArray[np.int32]
    pct_mt: NDArray[np.float32]
    status: NDArray[np.int8]


def run_qc(
    paths: list[Path], settings: QcStage, out: Path, *, chunk_rows: int = CHUNK_ROWS
) -> Path:
    """Filter the cells of the files and write the tables of the folder ``out``.

    Parameters
    ----------
    paths
        The h5ad files, in the order that ``file`` in ``cells.parquet`` counts.
    settings
        The sections ``data`` and ``qc``.
    out
        Folder of cells, genes, guides, targets, summary, inputs (Parquet each); whole or absent.
    chunk_rows
        Most cells in memory at a time; changes speed only.

    Raises
    ------
    DataError
        The input is not what it should be, or too few control cells are left in a context.
    """
    qc = settings.qc
    with Inputs(paths, settings.data) as inputs:
        cells = read_cells(inputs)
        codes = _codes(cells, inputs)
        measured = _start(cells)
        guides = Moments.zeros(codes.guides.height, len(codes.contexts))
        tested = np.unique(codes.guides["gene"].to_numpy())
        tested = tested[tested >= 0]
        controls = Moments.zeros(len(codes.contexts), len(tested))
        sums = _KnockdownSums(codes, tested, len(inputs.genes), guides, controls)
        genes = _GeneSums(len(inputs.genes))
        for offset, chunk in track_chunks(
            inputs.chunks(chunk_rows), inputs.n_cells, "counts and filters"
        ):
            part = slice(offset, offset + chunk.stop - chunk.start)
            _count(chunk, part, cells, inputs, measured)
            _filter_cells(cells, part, qc, measured)
            sums.add(chunk, part, measured)
            genes.add(chunk, measured.status[part] == KEPT)
        before = measured.status == KEPT
        _check_controls(codes, measured.status, qc)
        test = test_guides(guides, sums.controls_of_all(), sums.column_of_guide)
        verdict = _judge_guides(test, codes, measured.status, qc)
        _drop_few(codes, measured.status, qc)
        _check_targets(codes, measured.status)
        kept = measured.status == KEPT
        genes.take_out(before & ~kept, inputs, chunk_rows)
        tables = {
            "cells": qc_tables.cells(cells, measured, list(settings.data.contexts)),
            "genes": genes.table(inputs, int(kept.sum())),
            "guides": qc_tables.guides(codes.guides, test, verdict),
            "targets": qc_tables.targets(cells, measured.status),
            "summary": qc_tables.summary(cells, measured, settings, verdict),
            "inputs": qc_tables.inputs(inputs),
        }
    _write(tables, out)
    write_manifest(out, stage="qc", inputs=paths, settings=settings.model_dump())
    return out


def _codes(cells: pl.DataFrame, inputs: Inputs) -> CellCodes:
    alive = cells["status"].is_null()
    contexts = sorted(cells["context"].filter(alive).cast(pl.String).unique().to_list())
    context = _code(cells["context"], contexts)
    is_target = alive & ~cells["is_control"]
    key = ["guide_id", "target_gene", "target_gene_id"]
    guides = (
        cells.filter(is_target)
        .select(pl.col(key))
        .unique()
        .with_columns(pl.col(key).cast(pl.String))
        .sort("target_gene_id", "guide_id", "target_gene", nulls_last=True)
    )
    where = [inputs.genes.by_id.get(name, -1) for name in guides["target_gene_id"]]
    guides = guides.with_columns(
        pl.Series("gene", where, dtype=pl.Int64),
        pl.int_range(pl.len(), dtype=pl.Int32).alias("code"),
    )
    lookup = guides.select(pl.col(key).cast(pl.Categorical), "code")
    joined = cells.select(key).join(
        lookup, on=key, how="left", nulls_equal=True, maintain_order="left"
    )
    guide = joined["code"].fill_null(-1).to_numpy().copy()
    guide[~is_target.to_numpy()] = -1
    is_control = (cells["is_control"] & alive).to_numpy()
    return CellCodes(contexts, context, guides.drop("code"), guide, is_control)


def _code(column: pl.Series, levels: list[str]) -> Codes:
    table = {level: k for k, level in enumerate(levels)}
    codes: Codes = (
        column.replace_strict(table, default=-1, return_dtype=pl.Int32).fill_null(-1).to_numpy()
    )
    return codes


def _start(cells: pl.DataFrame) -> Measured:
    n = cells.height
    status = _code(cells["status"], list(STATUS)).astype(np.int8)
    status[cells["status"].is_null().to_numpy()] = KEPT
    return Measured(np.zeros(n), np.zeros(n, np.int32), np.full(n, np.nan, np.float32), status)


def _count(
    chunk: Chunk, part: slice, cells: pl.DataFrame, inputs: Inputs, measured: Measured
) -> None:
    """Count what the chunk's cells hold, whatever their status; the files' own columns go first."""
    frame = cells.slice(part.start, part.stop - part.start)
    mitochondrial = inputs.genes.is_mitochondrial
    total, of_mitochondria = chunk.cell_sums(mitochondrial)
    library = _library_size(frame, total)
    measured.library_size[part] = library
    measured.n_genes[part] = np.diff(chunk.counts.indptr)
    percent = frame["pct_mt"].to_numpy()
    if mitochondrial.any():
        with np.errstate(invalid="ignore"):
            percent = np.where(np.isnan(percent), 100 * of_mitochondria / library, percent)
    measured.pct_mt[part] = percent


def _filter_cells(cells: pl.DataFrame, part: slice, qc: QcConfig, measured: Measured) -> None:
    """Set the status of the chunk's cells; the first reason wins."""
    frame = cells.slice(part.start, part.stop - part.start)
    library, percent = measured.library_size[part], measured.pct_mt[part]
    umis = frame["guide_umis"].to_numpy()
    flagged = frame["low_quality"].fill_null(value=False).to_numpy()
    reasons = {
        "low_guide_umis": umis < qc.min_guide_umis,
        "low_counts": library < max(qc.min_counts, 1),
        "few_genes": measured.n_genes[part] < qc.min_genes,
        "high_mt": percent > qc.max_pct_mt,
        "low_quality": flagged & qc.drop_low_quality,
    }
    status = measured.status[part]
    for reason, applies in reasons.items():
        status[(status == KEPT) & applies] = STATUS.index(reason)


def _library_size(frame: pl.DataFrame, total: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the counts over all genes: the file's column, else the row sums ``total`` (n,)."""
    given = frame["library_size"].to_numpy()
    bad = np.flatnonzero(given < total * (1 - 1e-6))
    if len(bad):
        cell = frame["barcode"][int(bad[0])]
        msg = (
            f"library size {given[bad[0]]:g} of cell {cell} is below its {total[bad[0]]:g} counts "
            "in the "
            "matrix; map a column of counts over all genes under data.columns.library_size."
        )
        raise DataError(msg)
    return np.where(np.isnan(given), total, given)


class _KnockdownSums:
    """Sums of the targets' own expression, over guide cells and control cells, chunk by chunk."""

    def __init__(
        self,
        codes: CellCodes,
        tested: NDArray[np.int64],
        n_genes: int,
        guides: Moments,
        controls: Moments,
    ) -> None:
        self._codes = codes
        self._guides = guides
        self._controls = controls
        self._n_controls = np.zeros(len(codes.contexts))
        self._column = np.full(n_genes + 1, -1, dtype=np.int64)  # the last entry stands for "none"
        self._column[tested] = np.arange(len(tested))
        self._gene = codes.guides["gene"].to_numpy()
        self.column_of_guide = self._column[self._gene]

    def add(self, chunk: Chunk, part: slice, measured: Measured) -> None:
        """Add the chunk's cells that the cell filters keep."""
        kept = measured.status[part] == KEPT
        library = measured.library_size[part]
        context = self._codes.context[part].astype(np.int64)
        guide = self._codes.guide[part].astype(np.int64)
        control = self._codes.is_control[part] & kept
        self._n_controls += np.bincount(context[control], minlength=len(self._n_controls))
        of_controls = chunk.counts[control]
        row = np.repeat(np.flatnonzero(control), np.diff(of_controls.indptr))
        column = self._column[of_controls.indices]
        use = column >= 0
        group = context[row[use]] * self._controls.n.shape[1] + column[use]
        self._controls.add_values(group, of_controls.data[use].astype(float), library[row[use]])

        cells = np.flatnonzero(kept & (guide >= 0))
        flat = guide * len(self._n_controls) + context
        self._guides.add_cells(flat[cells], library[cells])
        own = np.full(len(kept), -1, dtype=np.int64)
        own[cells] = self._gene[guide[cells]]
        value = np.zeros(len(kept))
        compiled(own_values)(chunk.stored, own, value)
        use = value > 0
        self._guides.add_values(flat[use], value[use], library[use])

    def controls_of_all(self) -> Moments:
        """Return the sums over control cells, the number of cells filled in."""
        self._controls.n[:] = self._n_controls[:, None]
        return self._controls


def _check_controls(codes: CellCodes, status: NDArray[np.int8], qc: QcConfig) -> None:
    """Refuse a context with knock-downs but without enough control cells."""
    kept = status == KEPT
    n_control = np.bincount(codes.context[kept & codes.is_control], minlength=len(codes.contexts))
    n_all = np.bincount(codes.context[kept], minlength=len(codes.contexts))
    if not n_control.sum():
        reasons = np.bincount(status[codes.is_control], minlength=len(STATUS))
        worst = ", ".join(
            f"{STATUS[k]} {reasons[k]}" for k in np.argsort(-reasons)[:3] if reasons[k]
        )
        msg = f"no control cell passes the cell filters ({worst}); loosen the settings under qc."
        raise DataError(msg)
    for k, name in enumerate(codes.contexts):
        if not n_all[k]:
            continue
        if not n_control[k]:
            msg = (
                f"context '{name}' has no control cells among its {n_all[k]} cells after the cell "
                "filters; "
                "leave it out with data.where, or name its control label in data.control_labels."
            )
            raise DataError(msg)
        if n_control[k] < qc.min_control_cells:
            msg = (
                f"context '{name}' has {n_control[k]} control cells after the cell filters, fewer "
                "than "
                f"qc.min_control_cells = {qc.min_control_cells}; lower it, or leave the context "
                "out with data.where."
            )
            raise DataError(msg)


def _judge_guides(
    test: GuideTest, codes: CellCodes, status: NDArray[np.int8], qc: QcConfig
) -> NDArray[np.str_]:
    """Return each guide's verdict (U,) and drop the cells of inactive guides and targets."""
    if not qc.knockdown_test:
        return np.full(codes.guides.height, NOT_JUDGED)
    verdict = judge(test, qc)
    frame = codes.guides.select("target_gene_id").with_columns(
        pl.Series("inactive", verdict == INACTIVE), pl.Series("n", test.n_cells)
    )
    # A guide without a cell left says nothing about its target.
    alone = pl.col("inactive").filter(pl.col("n") > 0).all() & pl.col("inactive").any()
    whole = frame.select(alone.over("target_gene_id")).to_series().to_numpy()
    reason = np.where(
        whole,
        STATUS.index("inactive_target"),
        np.where(verdict == INACTIVE, STATUS.index("inactive_guide"), KEPT),
    ).astype(np.int8)
    mine = (status == KEPT) & (codes.guide >= 0)
    status[mine] = reason[codes.guide[mine]]
    for name in sorted(set(codes.guides["target_gene"].filter(pl.Series(whole)))):
        log.info("%s: no guide lowers it measurably, left out", name)
    return verdict


def _drop_few(codes: CellCodes, status: NDArray[np.int8], qc: QcConfig) -> None:
    """Drop the cells of a target in a context that has too few of them."""
    mine = np.flatnonzero((status == KEPT) & (codes.guide >= 0))
    if not len(mine):
        return
    _, target = np.unique(codes.guides["target_gene_id"].to_numpy(), return_inverse=True)
    pair = target[codes.guide[mine]] * len(codes.contexts) + codes.context[mine]
    few = np.bincount(pair)[pair] < qc.min_cells
    status[mine[few]] = STATUS.index("few_cells")
    if few.any():
        n = len(np.unique(pair[few]))
        log.info("%d target x context pairs have fewer than %d cells, left out", n, qc.min_cells)


def _check_targets(codes: CellCodes, status: NDArray[np.int8]) -> None:
    ever = codes.guide >= 0
    if ever.any() and not (status[ever] == KEPT).any():
        reasons = np.bincount(status[ever], minlength=len(STATUS))
        found = ", ".join(f"{STATUS[k]} {n}" for k, n in enumerate(reasons) if n)
        msg = f"no knock-down passes QC (cells dropped: {found}); loosen the settings under qc."
        raise DataError(msg)


class _GeneSums:
    """Cells with a count, and counts, of each gene in kept cells; whole numbers, so exact."""

    def __init__(self, n_genes: int) -> None:
        self.n = np.zeros(n_genes, dtype=np.int64)
        self.total = np.zeros(n_genes)

    def add(self, chunk: Chunk, kept: NDArray[np.bool_]) -> None:
        """Add the ``kept`` cells of the chunk."""
        compiled(gene_sums)(chunk.stored, kept, self.n, self.total)

    def take_out(self, dropped: NDArray[np.bool_], inputs: Inputs, chunk_rows: int) -> None:
        """Take out cells that were dropped after they had been added: reads the counts again."""
        if not dropped.any():
            return
        less = _GeneSums(len(self.n))
        for offset, chunk in track_chunks(inputs.chunks(chunk_rows), inputs.n_cells, "genes"):
            less.add(chunk, dropped[offset : offset + chunk.stop - chunk.start])
        self.n -= less.n
        self.total -= less.total

    def table(self, inputs: Inputs, n_cells: int) -> pl.DataFrame:
        """Return one row per gene."""
        columns = {"gene_id": inputs.genes.gene_ids, "gene": inputs.genes.genes, "n_cells": self.n}
        return pl.DataFrame({**columns, "mean_count": self.total / max(1, n_cells)})


def _write(tables: dict[str, Any], out: Path) -> None:
    with atomic(out) as folder:
        folder.mkdir()
        for name, table in tables.items():
            strings = pl.col(pl.Categorical).cast(pl.String)
            table.lazy().with_columns(strings).sink_parquet(folder / f"{name}.parquet")
    for row in tables["summary"].iter_rows(named=True):
        log.info(
            "%s (%s): %d -> %d cells",
            row["filter"],
            row["setting"],
            row["cells_before"],
            row["cells_after"],
        )
