"""From kept cells to the training store: splits, gene panel, and panel counts by row.

N kept cells, G genes. One pass sums what the panel needs (over training cells alone), the next
drops to the panel and writes. ``log1p CP10k`` itself is never stored: it follows from the counts
and the library size, which is over all genes.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from knockscreen.artifacts import atomic, write_manifest
from knockscreen.config import DataConfig, PanelConfig, ProgramsConfig, Section, SplitsConfig
from knockscreen.data.counts import CHUNK_ROWS, Chunk, Inputs
from knockscreen.data.decoys import Decoys, choose_decoys
from knockscreen.data.panel import GeneSums, check_programs, choose_panel, select_programs
from knockscreen.data.splits import assign_splits, lots, split_table
from knockscreen.data.training_store import StoreHeader, StoreWriter
from knockscreen.data.vocab import target_table
from knockscreen.errors import ConfigError, DataError, suggest
from knockscreen.names import NTC, SPLITS, Split
from knockscreen.progress import track_chunks

log = logging.getLogger(__name__)

NOT_KEPT = -1


class NormalizeStage(Section):
    """The sections that ``normalize`` reads."""

    data: DataConfig
    panel: PanelConfig
    splits: SplitsConfig
    programs: ProgramsConfig


@dataclass(frozen=True)
class KeptCells:
    """Kept cells in store order, and where each input cell went.

    ``place`` (cells of all inputs,) is the row in the store, or -1; ``split`` and ``batch`` (N,).
    """

    frame: pl.DataFrame
    place: NDArray[np.int64]
    library: NDArray[np.float64]
    split: NDArray[np.int8]
    batch: NDArray[np.int64]
    decoys: Decoys


def run_normalize(
    paths: list[Path],
    qc_dir: Path,
    settings: NormalizeStage,
    out: Path,
    *,
    programs: pl.DataFrame,
    chunk_rows: int = CHUNK_ROWS,
) -> Path:
    """Write the training store of the cells that QC kept.

    Parameters
    ----------
    paths
        The h5ad files that QC read, in any order.
    qc_dir
        The folder of QC tables.
    settings
        The sections ``data``, ``panel``, ``splits`` and ``programs``.
    out
        Folder of the store; whole or absent.
    programs
        Gene programs: program, gene.
    chunk_rows
        Most cells in memory at a time; changes speed only.

    Raises
    ------
    DataError
        The QC tables are missing or are of other files.
    ConfigError
        Held-out targets or contexts, panel factors or programs that the data do not have.
    """
    ordered = _match_inputs(paths, qc_dir)
    programs = select_programs(programs, settings.programs)
    _check_batch(settings)
    with Inputs(ordered, settings.data) as inputs:
        cells = _kept_cells(qc_dir, inputs, settings)
        batches = int(cells.batch.max()) + 1
        sums = GeneSums.zeros(batches, len(inputs.genes))
        train = cells.split == SPLITS.index(Split.TRAIN)
        sums.n += np.bincount(cells.batch[train], minlength=batches)
        for offset, chunk in track_chunks(inputs.chunks(chunk_rows), inputs.n_cells, "variability"):
            _add(sums, chunk, offset, cells, train)
        targets = target_table(
            cells.frame.select(pl.col("target_gene", "target_gene_id").cast(pl.String))
            .unique()
            .iter_rows()
        )
        panel = choose_panel(
            inputs.genes,
            sums,
            settings.panel,
            set(programs["gene"]),
            set(targets["target_gene_id"]) - {NTC},
        )
        check_programs(programs, panel, settings.programs)
        header = _header(cells, panel, targets, settings, simulated=inputs.simulated)
        with atomic(out) as folder:
            writer = StoreWriter(
                folder,
                header,
                n_genes=len(inputs.genes),
                highest=sums.highest,
                n_values=_n_values(sums, panel),
            )
            for offset, chunk in track_chunks(inputs.chunks(chunk_rows), inputs.n_cells, "store"):
                place = cells.place[offset : offset + chunk.stop - chunk.start]
                writer.add(chunk.stored, place >= 0)
            writer.finish()
            _write_tables(folder, cells, panel, header)
    _report(cells)
    write_manifest(out, stage="normalize", inputs=[qc_dir], settings=settings.model_dump())
    return out


def _match_inputs(paths: list[Path], qc_dir: Path) -> list[Path]:
    """Return the files in the order in which QC counted them."""
    table = qc_dir / "inputs.parquet"
    if not table.is_file():
        msg = f"{qc_dir} holds no QC tables (no inputs.parquet); run 'knockscreen qc' first."
        raise DataError(msg)
    known = pl.read_parquet(table)
    by_name = {path.name: path for path in paths}
    missing = [name for name in known["name"] if name not in by_name]
    extra = [name for name in by_name if name not in known["name"].to_list()]
    if missing or extra or len(by_name) != len(paths):
        which = (
            f"'{missing[0]}' is not given" if missing else f"'{extra[0] if extra else ''}' is new"
        )
        msg = (
            f"the counts files are not those that QC in {qc_dir} read ({which}); run 'knockscreen "
            "qc' again."
        )
        raise DataError(msg)
    return [by_name[name] for name in known["name"]]


def _check_batch(settings: NormalizeStage) -> None:
    for factor in settings.panel.batch:
        if factor not in settings.data.contexts:
            known = suggest(factor, settings.data.contexts)
            msg = f"panel.batch names '{factor}', which is not a factor of data.contexts{known}."
            raise ConfigError(msg)


def _kept_cells(qc_dir: Path, inputs: Inputs, settings: NormalizeStage) -> KeptCells:
    table = pl.scan_parquet(qc_dir / "cells.parquet")
    factors = list(settings.data.contexts)
    absent = [f for f in factors if f not in table.collect_schema().names()]
    total = table.select(pl.len()).collect().item()
    if absent or total != inputs.n_cells:
        what = (
            f"have no factor '{absent[0]}'"
            if absent
            else f"count {total} cells, not {inputs.n_cells}"
        )
        msg = (
            f"the QC tables in {qc_dir} {what}, as the files and settings have; run 'knockscreen "
            "qc' again."
        )
        raise DataError(msg)
    text = ["target_gene", "target_gene_id", "guide_id", "context", "replicate", *factors]
    columns = [pl.col("file", "row", "barcode", "is_control", "library_size")]
    columns += [pl.col(name).cast(pl.Categorical) for name in text]  # one text at a time in memory
    kept = table.filter(pl.col("status") == "kept")
    frame = pl.concat([kept.select(c).collect() for c in columns], how="horizontal")
    files = frame["file"].to_numpy()
    rows = frame["row"].to_numpy()
    starts = np.cumsum([0, *(file.n_cells for file in inputs.files)])
    place = np.full(inputs.n_cells, NOT_KEPT, dtype=np.int64)
    place[starts[files] + rows] = np.arange(frame.height)
    names = [file.path.name for file in inputs.files]
    frame = frame.drop("file", "row")
    lot = np.empty(frame.height)
    for k, name in enumerate(names):
        lot[files == k] = lots(settings.splits.seed, name, rows[files == k])
    split = assign_splits(frame, lot, settings.splits)
    labels = pl.Series([str(s) for s in SPLITS], dtype=pl.Categorical)
    frame = frame.with_columns(labels.gather(split.astype(np.uint32)).alias("split"))
    batch = np.zeros(frame.height, dtype=np.int64)
    for factor in settings.panel.batch:
        levels, code = _level_codes(frame[factor])
        batch = batch * len(levels) + code
    _, batch = np.unique(batch, return_inverse=True)
    decoys = choose_decoys(frame, split, lot, n=settings.splits.decoys, seed=settings.splits.seed)
    library = frame["library_size"].to_numpy()
    return KeptCells(frame, place, library, split, batch.astype(np.int64), decoys)


def _level_codes(column: pl.Series) -> tuple[list[str], NDArray[np.int16]]:
    """Return the sorted levels of a factor and the code of each cell."""
    levels = sorted(column.cast(pl.String).unique().to_list())
    table = {level: k for k, level in enumerate(levels)}
    return levels, column.replace_strict(table, return_dtype=pl.Int16).to_numpy()


def _add(
    sums: GeneSums, chunk: Chunk, offset: int, cells: KeptCells, train: NDArray[np.bool_]
) -> None:
    place = cells.place[offset : offset + chunk.stop - chunk.start]
    kept = place >= 0
    batch = np.where(kept & train[place], cells.batch[place], NOT_KEPT)
    sums.add(chunk.stored, kept, batch, cells.library[place])


def _n_values(sums: GeneSums, panel: pl.DataFrame) -> int:
    return int(sums.seen_all[panel["in_panel"].to_numpy()].sum())


def _header(
    cells: KeptCells,
    panel: pl.DataFrame,
    targets: pl.DataFrame,
    settings: NormalizeStage,
    *,
    simulated: bool,
) -> StoreHeader:
    factors, codes = {}, []
    for factor in settings.data.contexts:
        factors[factor], code = _level_codes(cells.frame[factor])
        codes.append(code)
    order = {name: k for k, name in enumerate(targets["target_gene_id"])}
    target = cells.frame["target_gene_id"].replace_strict(order, return_dtype=pl.Int32)
    context = np.stack(codes, axis=1) if codes else np.zeros((cells.frame.height, 0), np.int16)
    return StoreHeader(
        panel=np.flatnonzero(panel["in_panel"].to_numpy()),
        genes=panel.filter("in_panel").select("gene_id", "gene").to_dicts(),
        factors=factors,
        targets=targets.to_dicts(),
        simulated=simulated,
        library_size_log=_library_size_log(cells.frame),
        library_size=cells.library.astype(np.float32),
        target=target.to_numpy(),
        contexts=context,
        split=cells.split,
        decoys=cells.decoys,
    )


def _library_size_log(frame: pl.DataFrame) -> dict[str, list[float]]:
    """Return mean and sd of the natural log of library size, of training controls, by context."""
    control = frame.filter(pl.col("is_control") & (pl.col("split").cast(pl.String) == Split.TRAIN))
    table = (
        control.group_by(pl.col("context").cast(pl.String))
        .agg(
            pl.col("library_size").log().mean().alias("mean"),
            pl.col("library_size").log().std().fill_null(0.0).alias("sd"),
        )
        .sort("context")
    )
    return {context: [mean, sd] for context, mean, sd in table.iter_rows()}


def _write_tables(folder: Path, cells: KeptCells, panel: pl.DataFrame, header: StoreHeader) -> None:
    columns = ["barcode", "context", "target_gene", "target_gene_id", "guide_id", "replicate"]
    frame = cells.frame.select(*columns, "is_control", "split", "library_size")
    strings = pl.col(pl.Categorical).cast(pl.String)
    frame.lazy().with_columns(strings).sink_parquet(folder / "cells.parquet")
    split_table(cells.frame).write_csv(folder / "splits.tsv", separator="\t")
    panel.write_parquet(folder / "panel.parquet")


def _report(cells: KeptCells) -> None:
    counts = np.bincount(cells.split, minlength=len(SPLITS))
    parts = ", ".join(f"{split} {n}" for split, n in zip(SPLITS, counts, strict=True) if n)
    log.info("cells: %s", parts)
    if cells.decoys.ids:
        log.info("%d decoys of %d control cells each", len(cells.decoys.ids), _decoy_size(cells))


def _decoy_size(cells: KeptCells) -> int:
    return len(cells.decoys.rows) // len(cells.decoys.ids)
