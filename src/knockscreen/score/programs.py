"""Gene programs as signed weights over the panel.

P programs, G panel genes. A program says which genes go up (weight > 0) and down (weight < 0) in a
cell state. The score of an effect is its weighted mean over the program's genes,
``sum_g w_g delta_g / sum_g |w_g|``, so it has the unit of the effect (log1p CP10k) whatever the
number of genes, and is positive when cells move toward the program.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from knockscreen.artifacts import read_json
from knockscreen.config import ProgramsConfig
from knockscreen.errors import DataError, UnknownNameError, suggest

log = logging.getLogger(__name__)

COLUMNS = ("program", "gene", "weight", "source", "description")
REQUIRED = ("program", "gene")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ProgramMatrix:
    """Signed weights of P programs over G panel genes.

    ``n_genes`` counts the genes with a weight on the panel; ``dropped`` maps every program that was
    left out to ``(genes on the panel, genes in the file)``.
    """

    names: tuple[str, ...]
    weights: Floats  # (P, G)
    gene_ids: tuple[str, ...]
    dropped: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def n_genes(self) -> NDArray[np.int64]:
        """Genes per program, shape (P,)."""
        return np.asarray(np.count_nonzero(self.weights, axis=1))

    @property
    def columns(self) -> NDArray[np.int64]:
        """Panel columns that any program uses, shape (U,)."""
        return np.flatnonzero(np.any(self.weights != 0, axis=0))

    def without(self, own: int) -> tuple[Floats, NDArray[np.int64]]:
        """Return scoring weights with gene ``own`` left out, and how many genes each keeps.

        Parameters
        ----------
        own
            Panel column of the knocked-down gene; -1 if it is not on the panel.

        Returns
        -------
        tuple
            Weights divided by their absolute sum, shape (P, G), so that ``delta @ weights.T`` are
            scores; rows of programs that have no gene left are NaN. Counts, shape (P,).
        """
        weights = self.weights.copy()
        if own >= 0:
            weights[:, own] = 0.0
        total = np.abs(weights).sum(axis=1, keepdims=True)
        with np.errstate(invalid="ignore"):
            scaled = np.where(total > 0, weights / np.where(total > 0, total, 1.0), np.nan)
        return scaled, np.count_nonzero(weights, axis=1)


def read_programs(path: Path | str) -> pl.DataFrame:
    """Return the program table in ``path`` (TSV) as program, gene, weight, source, description.

    A missing ``weight`` column means +1 for every gene; empty weights do too.

    Raises
    ------
    DataError
        The file is missing or empty, has unknown or missing columns, a gene twice in one program,
        or a weight that is not a finite number.
    """
    path = Path(path)
    if not path.is_file():
        msg = (
            f"program file '{path}' does not exist; set programs.file to a TSV of "
            f"{', '.join(COLUMNS)}."
        )
        raise DataError(msg)
    try:
        table = pl.read_csv(path, separator="\t", infer_schema=False, comment_prefix="#")
    except (pl.exceptions.PolarsError, UnicodeDecodeError) as error:
        msg = f"program file '{path}' is not a TSV table: {str(error).splitlines()[0]}."
        raise DataError(msg) from error
    _check_columns(table.columns, path)
    for column in COLUMNS:
        if column not in table.columns:
            table = table.with_columns(pl.lit(None, pl.String).alias(column))
    table = table.select(pl.col(c).str.strip_chars() for c in COLUMNS)
    table = table.with_columns(_weights(table, path))
    _check_rows(table, path)
    return table


def _check_columns(found: Sequence[str], path: Path) -> None:
    for column in found:
        if column not in COLUMNS:
            msg = f"unknown column '{column}' in program file '{path}'{suggest(column, COLUMNS)}."
            raise DataError(msg)
    for column in REQUIRED:
        if column not in found:
            msg = f"program file '{path}' has no column '{column}'; it has {', '.join(found)}."
            raise DataError(msg)


def _weights(table: pl.DataFrame, path: Path) -> pl.Series:
    text = table["weight"].fill_null("1").replace("", "1")
    weight = text.cast(pl.Float64, strict=False)
    bad = (weight.is_null() | ~weight.is_finite()).fill_null(value=True).arg_true()
    if len(bad):
        row = table.row(int(bad[0]), named=True)
        msg = (
            f"weight '{row['weight']}' of gene {row['gene']} in program {row['program']} of "
            f"'{path}' is not a finite number; give a signed number such as 1 or -1."
        )
        raise DataError(msg)
    return weight.alias("weight")


def _check_rows(table: pl.DataFrame, path: Path) -> None:
    if table.is_empty():
        msg = f"program file '{path}' has no rows; give one row per program and gene."
        raise DataError(msg)
    for column in REQUIRED:
        empty = (table[column].is_null() | (table[column] == "")).arg_true()
        if len(empty):
            msg = f"row {int(empty[0]) + 1} of program file '{path}' has no {column}."
            raise DataError(msg)
    twice = table.filter(pl.struct("program", "gene").is_duplicated())
    if not twice.is_empty():
        row = twice.row(0, named=True)
        msg = (
            f"gene {row['gene']} stands twice in program {row['program']} of '{path}'; keep one "
            "row."
        )
        raise DataError(msg)


def _select(table: pl.DataFrame, names: Sequence[str]) -> list[str]:
    """Return the programs to use, in the order of the file."""
    known = table["program"].unique(maintain_order=True).to_list()
    for name in names:
        if name not in known:
            msg = f"unknown program '{name}' in programs.names{suggest(name, known)}."
            raise UnknownNameError(msg)
    return [name for name in known if not names or name in names]


class _GeneIndex:
    """Finds panel columns by Ensembl id (with or without version) or by symbol."""

    def __init__(self, gene_ids: Sequence[str], genes: Sequence[str]) -> None:
        self.by_id = {gene_id: i for i, gene_id in enumerate(gene_ids)}
        self.by_symbol = {gene: i for i, gene in enumerate(genes)}
        self.ambiguous = {gene for gene, n in Counter(genes).items() if n > 1}

    def find(self, gene: str) -> int | None:
        if gene in self.by_id:
            return self.by_id[gene]
        if gene in self.ambiguous:
            msg = f"program gene {gene} names several genes of the panel; give its Ensembl id."
            raise DataError(msg)
        if gene in self.by_symbol:
            return self.by_symbol[gene]
        return self.by_id.get(gene.split(".", maxsplit=1)[0]) if gene.startswith("ENS") else None


def _match(rows: pl.DataFrame, index: _GeneIndex, n_genes: int) -> Floats:
    """Return the panel weights of one program, shape (G,)."""
    weights = np.zeros(n_genes)
    matched: dict[int, str] = {}
    for program, gene, weight in rows.select("program", "gene", "weight").iter_rows():
        column = index.find(gene)
        if column is None:
            continue
        if column in matched:
            msg = f"program {program} names one gene twice, as {matched[column]} and {gene}."
            raise DataError(msg)
        matched[column] = gene
        weights[column] = weight
    return weights


def program_matrix(
    table: pl.DataFrame,
    gene_ids: Sequence[str],
    genes: Sequence[str],
    *,
    names: Sequence[str] = (),
    min_genes: int = 1,
) -> ProgramMatrix:
    """Match programs to the panel; ``names`` selects programs, none means all of the table.

    Programs with fewer than ``min_genes`` genes on the panel are dropped and listed.

    Raises
    ------
    UnknownNameError
        A name in ``names`` is not in the table.
    DataError
        A program asked for by name has no gene on the panel, no program is left, a symbol and an
        Ensembl id of one program are the same gene, or a symbol is not unique on the panel.

    Examples
    --------
    >>> table = pl.DataFrame({"program": "A", "gene": ["STAT1", "ENSG2"], "weight": [1.0, -1.0]})
    >>> program_matrix(table, ["ENSG1", "ENSG2"], ["STAT1", "IRF1"]).weights.tolist()
    [[1.0, -1.0]]
    """
    index = _GeneIndex(gene_ids, genes)
    kept: dict[str, Floats] = {}
    dropped: dict[str, tuple[int, int]] = {}
    for name in _select(table, names):
        rows = table.filter(pl.col("program") == name)
        weights = _match(rows, index, len(gene_ids))
        n_matched = int(np.count_nonzero(weights))
        if n_matched == 0 and name in names:
            msg = (
                f"program {name} has no gene on the panel (0 of {len(rows)} matched); "
                "choose another, or give symbols or Ensembl ids."
            )
            raise DataError(msg)
        if n_matched < max(min_genes, 1):
            dropped[name] = (n_matched, len(rows))
        else:
            kept[name] = weights
    if not kept:
        counts = ", ".join(
            f"{name} {n} of {total}" for name, (n, total) in list(dropped.items())[:5]
        )
        msg = (
            f"no program has {max(min_genes, 1)} genes on the panel (matched: {counts}); lower "
            "programs.min_genes or use other programs."
        )
        raise DataError(msg)
    return ProgramMatrix(tuple(kept), np.stack(list(kept.values())), tuple(gene_ids), dropped)


def load_programs(settings: ProgramsConfig, store: Path | str) -> ProgramMatrix:
    """Return the configured programs on the panel of a store, listing those left out."""
    panel = read_json(Path(store) / "store.json")["genes"]
    matrix = program_matrix(
        read_programs(settings.file),
        [gene["gene_id"] for gene in panel],
        [gene["gene"] for gene in panel],
        names=settings.names,
        min_genes=settings.min_genes,
    )
    for name, (n, total) in matrix.dropped.items():
        log.warning(
            "program %s is left out: %d of its %d genes are on the panel, programs.min_genes is %d",
            name, n, total, settings.min_genes,
        )  # fmt: skip
    return matrix
