"""Measured effects from elsewhere: tables of differential expression, such as published ones.

The table is long (one row per knock-down, condition and gene; CSV, TSV or Parquet) or an ``.h5ad``
whose rows are knock-downs, whose columns are genes and whose layers are the statistics. It is read
into one form:

- ``log2_fold_change``: knock-down over control, log2 (``log_fc`` of DESeq2 is log2; a natural
  logarithm is converted where the settings say so), and its standard error;
- ``p_value``, ``fdr``: as the table has them, NULL where it has none. Nothing is recomputed.

A gene that a profile does not list is missing, or counts as unchanged where the settings say that
the table lists changed genes only.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from knockscreen.config import ExternalColumns, ExternalConfig
from knockscreen.data.h5ad import column_names, open_h5ad, read_column
from knockscreen.errors import DataError
from knockscreen.score.published import (
    TARGET,
    TARGET_ID,
    find_column,
    gene_names,
    need_column,
    numbers,
    read_published,
)

CONDITION = ("culture_condition", "condition")
GENE = ("gene", "gene_name", "gene_symbol", "measured_gene", "variable", "symbol")
GENE_ID = ("gene_id", "gene_ids", "ensembl_id")
NUMBERS: dict[str, tuple[str, ...]] = {
    "log2_fold_change": ("log_fc", "log2FoldChange", "log2_fold_change", "lfc"),
    "standard_error": ("lfcSE", "lfc_se", "standard_error"),
    "p_value": ("p_value", "pvalue", "pval"),
    "fdr": ("adj_p_value", "padj", "fdr"),
}
SCHEMA: dict[str, type[pl.DataType]] = {
    "target_gene": pl.String,
    "target_gene_id": pl.String,
    "condition": pl.String,
    "gene": pl.String,
    "gene_id": pl.String,
    **dict.fromkeys(NUMBERS, pl.Float64),
}
PROFILE = ["target_gene", "target_gene_id", "condition"]
EVERY = "all"
"""Condition of a table that has none."""
ROWS_AT_ONCE = 200
LN2 = float(np.log(2.0))


@dataclass(frozen=True)
class External:
    """An opened table: its genes, and its profiles in chunks."""

    settings: ExternalConfig
    genes: pl.DataFrame  # gene, gene_id: every measured gene, once
    conditions: tuple[str, ...]
    _long: pl.DataFrame | None
    _matrix: "_Matrix | None"

    def chunks(self, gene_ids: Sequence[str]) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
        """Yield some profiles, and their rows of some genes in the columns of ``SCHEMA``.

        A profile need not list any of the genes.
        """
        wanted = pl.Series("gene_id", list(gene_ids), dtype=pl.String)
        scale = 1 / LN2 if self.settings.unit == "ln" else 1.0
        units = [(pl.col(name) * scale).alias(name) for name in list(NUMBERS)[:2]]
        if self._long is not None:
            rows = self._long.filter(pl.col("gene_id").is_in(wanted.implode()))
            yield self._long.select(PROFILE).unique(maintain_order=True), rows.with_columns(units)
        elif self._matrix is not None:
            at = np.flatnonzero(self.genes["gene_id"].is_in(wanted.implode()).to_numpy())
            for profiles, rows in self._matrix.chunks(self.genes, at):
                yield profiles, rows.with_columns(units)


@dataclass(frozen=True)
class _Matrix:
    path: Path
    profiles: pl.DataFrame  # target_gene, target_gene_id, condition
    layers: dict[str, str | None]

    def chunks(self, genes: pl.DataFrame, at: Any) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
        with open_h5ad(self.path) as handle:
            for start in range(0, len(self.profiles), ROWS_AT_ONCE):
                own = self.profiles.slice(start, ROWS_AT_ONCE)
                pairs = own.join(genes[at], how="cross", maintain_order="left_right")
                values = {}
                for name, layer in self.layers.items():
                    block = (
                        np.full((len(own), len(at)), np.nan)
                        if layer is None
                        else handle[f"layers/{layer}"][start : start + len(own)][:, at]
                    )
                    values[name] = pl.Series(name, block.astype(np.float64).ravel()).fill_nan(None)
                _finite(values["log2_fold_change"], self.path)
                rows = pairs.with_columns(*values.values()).drop_nulls("log2_fold_change")
                yield own.select(PROFILE), rows.select(list(SCHEMA))


def open_external(settings: ExternalConfig) -> External:
    """Open a table of measured effects and check it.

    Raises
    ------
    DataError
        The file is missing or no such table, lacks a column, has dates for genes, an effect that
        is infinite or no number, or one gene of one knock-down and condition twice.
    """
    path = Path(settings.file)
    if not path.is_file():
        msg = f"external table '{path}' ({settings.source}) does not exist; correct its file."
        raise DataError(msg)
    opened = _open_h5ad(path, settings) if path.suffix == ".h5ad" else _open_long(path, settings)
    if len(set(settings.contexts.values())) < len(settings.contexts):
        msg = f"two conditions of external table '{settings.source}' map to one context; keep one."
        raise DataError(msg)
    for condition in settings.contexts:
        if condition not in opened.conditions:
            msg = (
                f"table '{path}' has no condition '{condition}'; it has "
                f"{', '.join(opened.conditions[:5])}; correct 'contexts' of external table "
                f"'{settings.source}'."
            )
            raise DataError(msg)
    return opened


def _names(
    table: pl.DataFrame, columns: tuple[str | None, str | None], names: tuple[str, str], path: Path
) -> list[pl.Series]:
    """Return symbol and id of genes; either stands in for the other where there is one alone."""
    found = [gene_names(table, column, path) for column in columns if column is not None]
    return [found[0].alias(names[0]), found[-1].alias(names[1])]


def _columns(
    found: Sequence[str], given: ExternalColumns, path: Path
) -> tuple[tuple[str | None, str | None], str | None]:
    """Return the columns of a knock-down's symbol and id, and that of its condition."""
    by_id = find_column(found, given.target_gene_id, TARGET_ID, "the id of the knock-down", path)
    symbol = find_column(found, given.target_gene, TARGET, "the knocked-down gene", path)
    if by_id is None and symbol is None:
        need_column(found, None, [*TARGET, *TARGET_ID], "the knocked-down gene", path)
    condition = find_column(found, given.condition, CONDITION, "the condition", path)
    return (symbol, by_id), condition


def _condition(table: pl.DataFrame, column: str | None) -> pl.Series:
    if column is None:
        return pl.repeat(EVERY, len(table), dtype=pl.String, eager=True).alias("condition")
    return table[column].cast(pl.String).fill_null(EVERY).alias("condition")


def _open_long(path: Path, settings: ExternalConfig) -> External:
    table, given = read_published(path), settings.columns
    found = table.columns
    target, condition = _columns(found, given, path)
    symbol = find_column(found, given.gene, GENE, "the measured gene", path)
    gene_id = find_column(found, given.gene_id, GENE_ID, "the id of the measured gene", path)
    if symbol is None and gene_id is None:
        need_column(found, None, [*GENE, *GENE_ID], "the measured gene", path)
    values = []
    for name, known in NUMBERS.items():
        column = find_column(found, getattr(given, name), known, name, path)
        if column is None and name == "log2_fold_change":
            need_column(found, None, known, "the log fold change", path)
        empty = pl.repeat(None, len(table), dtype=pl.Float64, eager=True)
        values.append((empty if column is None else numbers(table, column, path)).alias(name))
    long = pl.DataFrame(
        [
            *_names(table, target, ("target_gene", "target_gene_id"), path),
            _condition(table, condition),
            *_names(table, (symbol, gene_id), ("gene", "gene_id"), path),
            *values,
        ]
    ).drop_nulls("log2_fold_change")
    _once(long, ("target_gene_id", "condition", "gene_id"), path)
    genes = long.select("gene", "gene_id").unique("gene_id", maintain_order=True)
    conditions = tuple(long["condition"].unique().sort())
    return External(settings, genes, conditions, long.select(list(SCHEMA)), None)


def _open_h5ad(path: Path, settings: ExternalConfig) -> External:
    given = settings.columns
    with open_h5ad(path) as handle:
        found = column_names(handle["obs"])
        target, condition = _columns(found, given, path)
        used = [name for name in (*target, condition) if name is not None]
        obs = pl.DataFrame([read_column(handle["obs"], name) for name in dict.fromkeys(used)])
        var = handle["var"]
        symbol = find_column(column_names(var), given.gene, GENE, "the measured gene", path)
        gene_id = find_column(column_names(var), given.gene_id, GENE_ID, "its id", path)
        names = dict.fromkeys([symbol or "index", gene_id or "index"])
        measured = pl.DataFrame([read_column(var, name).alias(name) for name in names])
        layers = list(handle.get("layers", {}))
        chosen = {
            name: find_column(layers, getattr(given, name), known, name, path)
            for name, known in NUMBERS.items()
        }
        if chosen["log2_fold_change"] is None:
            need_column(layers, None, NUMBERS["log2_fold_change"], "the log fold change", path)
        for layer in filter(None, chosen.values()):
            if not hasattr(handle[f"layers/{layer}"], "shape"):
                msg = f"layer '{layer}' of '{path}' is sparse; write it dense, missing as NaN."
                raise DataError(msg)
    genes = pl.DataFrame(
        _names(measured, (symbol or "index", gene_id or "index"), ("gene", "gene_id"), path)
    )
    profiles = pl.DataFrame(
        [
            *_names(obs, target, ("target_gene", "target_gene_id"), path),
            _condition(obs, condition),
        ]
    )
    _once(genes, ("gene_id",), path)
    _once(profiles, ("target_gene_id", "condition"), path)
    conditions = tuple(profiles["condition"].unique().sort())
    return External(settings, genes, conditions, None, _Matrix(path, profiles, chosen))


def _once(frame: pl.DataFrame, keys: tuple[str, ...], path: Path) -> None:
    """Refuse a second row of the same keys: two contrasts must never be merged silently."""
    twice = frame.filter(pl.struct(keys).is_duplicated())
    if len(twice):
        what = ", ".join(str(value) for value in twice.select(keys).row(0))
        msg = (
            f"'{path}' has {what} more than once; keep one contrast of each, or name the column "
            "that tells them apart as condition."
        )
        raise DataError(msg)


def _finite(values: pl.Series, path: Path) -> None:
    if values.is_infinite().fill_null(value=False).any():
        msg = f"layer of log fold changes in '{path}' has an infinite value; leave it out as NaN."
        raise DataError(msg)
