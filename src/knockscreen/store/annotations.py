"""What the user knows of genes beside the screen: essential, druggable, a neighbour, anything.

Nothing is computed from it: a table of one row per gene, whose columns stand as they are beside
each knock-down (``targets.annotations``), so that no answer rests on knowledge of ours.
"""

from pathlib import Path

import polars as pl

from knockscreen.errors import DataError
from knockscreen.names import TARGET_GENE, TARGET_GENE_ID
from knockscreen.score.text_tables import missing_column, read_text_table
from knockscreen.store.tables import json_text

GENES = ("gene", "gene_id", "symbol", "gene_name", "target_gene", "target_gene_id")


def read_annotations(path: Path | str) -> pl.DataFrame:
    """Return ``key`` (upper-case symbol or Ensembl id) and ``annotations`` (JSON text) of a table.

    Empty cells are left out.

    Raises
    ------
    DataError
        The file is missing or no table, has no column of genes or no other, or names one twice.
    """
    table = read_text_table(path, "annotation file", "set annotations.file to a table, or to null")
    found = [name for name in GENES if name in table.columns]
    if not found:
        raise DataError(missing_column(f"annotation file '{path}'", GENES, table.columns, "genes"))
    gene, columns = found[0], [name for name in table.columns if name != found[0]]
    if not columns:
        msg = f"annotation file '{path}' has genes and no other column; add what is to be shown."
        raise DataError(msg)
    table = table.with_columns(key=pl.col(gene).str.strip_chars().str.to_uppercase())
    twice = table.filter(pl.col("key").is_duplicated())
    if not twice.is_empty():
        msg = f"gene {twice[gene][0]} stands twice in annotation file '{path}'; keep one row."
        raise DataError(msg)
    texts = [
        json_text({name: value for name, value in row.items() if value})
        for row in table.select(columns).iter_rows(named=True)
    ]
    return table.select("key", annotations=pl.Series(texts, dtype=pl.String))


def annotate(targets: pl.DataFrame, path: Path | str | None) -> pl.DataFrame:
    """Return targets with ``annotations``, matched by Ensembl id, else by symbol; NULL without."""
    if path is None:
        return targets.with_columns(annotations=pl.lit(None, pl.String))
    known = read_annotations(path)
    for column, name in ((TARGET_GENE_ID, "by_id"), (TARGET_GENE, "by_symbol")):
        key = pl.col(column).str.to_uppercase()
        targets = targets.with_columns(key=key).join(
            known.rename({"annotations": name}), on="key", how="left", maintain_order="left"
        )
    found = targets.with_columns(annotations=pl.coalesce("by_id", "by_symbol"))
    return found.drop("key", "by_id", "by_symbol")
