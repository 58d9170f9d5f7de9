"""What the user knows of genes beside the screen: essential, druggable, positions, anything.

A table of one row per gene, whose columns stand as they are beside each knock-down
(``targets.annotations``), so that no answer rests on knowledge of ours. What of it speaks against a
knock-down is ``targets.objection``: columns that the configuration names, and genes that start so
near the target that a CRISPRi guide may silence them too.
"""

from pathlib import Path

import numpy as np
import polars as pl

from knockscreen.config import AnnotationsConfig
from knockscreen.errors import DataError, suggest
from knockscreen.gene_names import GeneNames
from knockscreen.names import GENE, GENE_ID, TARGET_GENE, TARGET_GENE_ID
from knockscreen.score.text_tables import missing_column, read_text_table
from knockscreen.store.tables import json_text

GENES = ("gene", "gene_id", "symbol", "gene_name", "target_gene", "target_gene_id")
CHROMOSOME, START = "chromosome", "tss"
KEY = "gene key"
YES = ("yes", "true", "1")


def read_annotations(path: Path | str) -> pl.DataFrame:
    """Return ``gene key`` (symbol or Ensembl id) and the other columns, as text.

    Raises
    ------
    DataError
        The file is missing or no table, has no column of genes or no other, names a gene twice, or
        has a start that is no position.
    """
    table = read_text_table(path, "annotation file", "set annotations.file to a table, or to null")
    found = [name for name in GENES if name in table.columns]
    if not found:
        raise DataError(missing_column(f"annotation file '{path}'", GENES, table.columns, "genes"))
    gene, columns = found[0], [name for name in table.columns if name != found[0]]
    if not columns:
        msg = f"annotation file '{path}' has genes and no other column; add what is to be shown."
        raise DataError(msg)
    table = table.with_columns(pl.col(gene).str.strip_chars().alias(KEY))
    twice = table.filter(pl.col(KEY).str.to_uppercase().is_duplicated())
    if not twice.is_empty():
        msg = f"gene {twice[gene][0]} stands twice in annotation file '{path}'; keep one row."
        raise DataError(msg)
    if START in columns:
        start = pl.col(START).cast(pl.Int64, strict=False)
        odd = table.filter((pl.col(START) != "") & start.is_null())
        if not odd.is_empty():
            msg = (
                f"{START} of {odd[gene][0]} in annotation file '{path}' is '{odd[START][0]}', not "
                "a position in bases; correct it or leave it empty."
            )
            raise DataError(msg)
    return table.select(KEY, *columns)


def annotate(
    targets: pl.DataFrame, genes: pl.DataFrame, settings: AnnotationsConfig | None
) -> pl.DataFrame:
    """Return targets with ``annotations``, ``neighbours`` and ``objection``, NULL without.

    Genes are matched by Ensembl id, else by symbol.

    Parameters
    ----------
    genes
        Genes of the input, the possible neighbours.

    Raises
    ------
    DataError
        As :func:`read_annotations`, or a column of ``against`` is not in the table.
    """
    if settings is None or settings.file is None:
        nothing = ("annotations", "neighbours", "objection")
        return targets.with_columns(pl.lit(None, pl.String).alias(name) for name in nothing)
    table = read_annotations(settings.file)
    columns = table.columns[1:]
    for name in settings.against:
        if name not in columns:
            msg = (
                f"annotation file '{settings.file}' has no column '{name}', which "
                f"annotations.against names{suggest(name, columns)}."
            )
            raise DataError(msg)
    found = _matched(targets[TARGET_GENE_ID], targets[TARGET_GENE], table)
    neighbours = pl.Series([None] * found.height, dtype=pl.String)
    if settings.neighbours_within is not None and {CHROMOSOME, START} <= set(columns):
        others = _positions(
            genes[GENE_ID], genes[GENE], _matched(genes[GENE_ID], genes[GENE], table)
        )
        mine = _positions(targets[TARGET_GENE_ID], targets[TARGET_GENE], found)
        neighbours = _neighbours(mine, others, settings.neighbours_within)
    texts = [
        json_text({name: value for name, value in row.items() if value})
        if any(row.values())
        else None
        for row in found.iter_rows(named=True)
    ]
    near = pl.lit("may silence its neighbour ") + neighbours + " too"
    flags = [
        pl.when(pl.col(name).str.to_lowercase().is_in(YES)).then(pl.lit(f"your table says {name}"))
        for name in settings.against
    ]
    objection = found.select(pl.concat_str(near, *flags, separator="; ", ignore_nulls=True))
    return targets.with_columns(
        annotations=pl.Series(texts, dtype=pl.String),
        neighbours=neighbours,
        objection=objection.to_series().replace("", None),
    )


def _matched(ids: pl.Series, symbols: pl.Series, table: pl.DataFrame) -> pl.DataFrame:
    """Return the row of the table for each gene, by id, else by symbol; NULL without one."""
    known = GeneNames(table[KEY], [None] * table.height)
    at = pl.Series(map(known.find, ids, symbols), dtype=pl.UInt32)
    return table.drop(KEY).select(pl.all().gather(at))


def _positions(ids: pl.Series, symbols: pl.Series, rows: pl.DataFrame) -> pl.DataFrame:
    place = rows.select(CHROMOSOME, start=pl.col(START).cast(pl.Int64, strict=False))
    return place.with_columns(id=ids, gene=symbols)


def _neighbours(targets: pl.DataFrame, genes: pl.DataFrame, within: int) -> pl.Series:
    """Return what starts within so many bases of each target, the nearest first, else NULL."""
    placed = genes.drop_nulls([CHROMOSOME, "start"]).sort("start")
    by_chromosome = placed.partition_by(CHROMOSOME, as_dict=True)
    found: list[str | None] = []
    for row in targets.iter_rows(named=True):
        here, start = by_chromosome.get((row[CHROMOSOME],)), row["start"]
        if here is None or start is None:
            found.append(None)
            continue
        low, high = np.searchsorted(here["start"], [start - within, start + within + 1])
        near = here[low:high].filter(pl.col("id") != row["id"])
        near = near.with_columns(away=(pl.col("start") - start).abs()).sort("away", "gene")
        names = [f"{gene} ({away} bases)" for gene, away in near.select("gene", "away").iter_rows()]
        found.append(", ".join(names) or None)
    return pl.Series(found, dtype=pl.String)
