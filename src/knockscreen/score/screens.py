"""Pooled CRISPR screens of other people: MAGeCK gene tables, with their sign made explicit.

A screen sorts or grows cells and says, gene by gene, how far guides were enriched (``lfc``). What
that means for the phenotype depends on which population was divided by which, so it is asked for
and never assumed: ``effect`` is positive where the knock-down *raises* the phenotype.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import polars as pl

from knockscreen.errors import DataError, suggest
from knockscreen.score.published import (
    gene_names,
    keep_rows,
    numbers,
    read_published,
)

Direction = Literal["lower", "higher"]
"""What lfc < 0 means for the phenotype of the knock-down."""
COLUMNS = ("neg|lfc", "pos|lfc", "neg|fdr", "pos|fdr")
GENE = "id"


def read_screen(
    path: Path | str,
    direction_of_lfc: Direction,
    *,
    suffix: str | None = None,
    where: Mapping[str, str] | None = None,
) -> pl.DataFrame:
    """Return gene, effect and fdr of a MAGeCK gene table, one row per gene.

    ``fdr`` is that of the side that the gene is on: ``pos|fdr`` if lfc > 0, else ``neg|fdr``.

    Parameters
    ----------
    direction_of_lfc
        ``lower``: lfc < 0 means that the knock-down lowers the phenotype; ``higher``: raises it.
    suffix
        Of columns such as ``neg|fdr.Resting_Teff``, where one table holds several screens.
    where
        Column -> value of the rows to keep, where a column tells several screens apart.

    Raises
    ------
    DataError
        A column is missing, a gene stands twice, is a date, or has an lfc that is infinite or
        missing; the two lfc of a gene differ.
    """
    path = Path(path)
    table = keep_rows(read_published(path), where or {}, path)
    names = _columns(table.columns, suffix, path)
    gene = gene_names(table, GENE, path)
    values = {name: numbers(table, column, path) for name, column in names.items()}
    for name, column in values.items():
        if column.null_count():
            at = int(column.is_null().arg_true()[0])
            msg = f"column '{names[name]}' of '{path}' has no value for {gene[at]}; leave it out."
            raise DataError(msg)
    _check_unique(table, gene, path)
    lfc = values["neg|lfc"]
    differs = ((lfc - values["pos|lfc"]).abs() > 1e-9).arg_true()
    if len(differs):
        msg = (
            f"'{path}' has two different lfc for {gene[int(differs[0])]} (neg|lfc, pos|lfc); "
            "expected MAGeCK's one, the median of its guides."
        )
        raise DataError(msg)
    frame = pl.DataFrame({"gene": gene, "lfc": lfc, **values})
    return frame.select(
        "gene",
        effect=pl.col("lfc") if direction_of_lfc == "lower" else -pl.col("lfc"),
        fdr=pl.when(pl.col("lfc") > 0).then("pos|fdr").otherwise("neg|fdr"),
    )


def _columns(found: list[str], suffix: str | None, path: Path) -> dict[str, str]:
    """Return the column of each of ``COLUMNS``."""
    end = f".{suffix}" if suffix else ""
    names = {name: name + end for name in COLUMNS}
    if GENE in found and all(column in found for column in names.values()):
        return names
    suffixes = sorted(c.removeprefix("neg|lfc.") for c in found if c.startswith("neg|lfc."))
    if suffixes and GENE in found:
        given = f"'{suffix}' is none of them{suggest(suffix, suffixes)}" if suffix else "choose one"
        msg = f"'{path}' holds the screens {', '.join(suffixes)}: {given} with --suffix."
        raise DataError(msg)
    missing = next(name for name in (GENE, *names.values()) if name not in found)
    msg = (
        f"'{path}' is no MAGeCK gene table: it has no column '{missing}' (expected id, "
        f"{', '.join(COLUMNS)}; it has {', '.join(found[:8])}{', ...' if len(found) > 8 else ''})."
    )
    raise DataError(msg)


def _check_unique(table: pl.DataFrame, gene: pl.Series, path: Path) -> None:
    twice = gene.filter(gene.is_duplicated())
    if twice.is_empty():
        return
    of_one = table.filter(gene == twice[0])
    apart = [
        column
        for column in table.columns
        if table[column].dtype == pl.String
        and column != GENE
        and of_one[column].n_unique() == len(of_one)
    ]
    hint = "keep one row of each"
    if apart:
        levels = ", ".join(f"{apart[0]}={level}" for level in of_one[apart[0]].to_list())
        hint = f"choose one screen with --where ({levels})"
    msg = f"gene {twice[0]} stands {len(of_one)} times in '{path}'; {hint}."
    raise DataError(msg)
