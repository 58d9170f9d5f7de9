"""Tables that other people published: read whole, their columns found, their usual faults refused.

CSV, TSV and Parquet, gzipped or not. What spreadsheets do to gene names (1-Mar for MARCHF1) is
refused by name, since such a row can no longer be told from others.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import polars as pl

from knockscreen.errors import DataError, suggest
from knockscreen.score.text_tables import missing_column, read_text_table

_MONTHS = "jan|feb|mar|apr|may|jun|jul|aug|sep|sept|oct|nov|dec"
DATE = re.compile(
    rf"(\d{{1,2}}[-/]({_MONTHS})([-/]\d{{2,4}})?|({_MONTHS})[-/]\d{{1,4}}|\d{{4}}-\d{{2}}-\d{{2}}.*"
    r"|\d{1,2}/\d{1,2}/\d{2,4})",
    re.IGNORECASE,
)
TARGET = ("target_gene", "target_contrast_gene_name", "perturbed_gene_name", "perturbed_gene")
TARGET_ID = ("target_gene_id", "target_contrast", "perturbed_gene_id")
ANY_GENE = (*TARGET, "regulator", "gene", "Gene", "gene_symbol", "symbol", "id", *TARGET_ID)


def read_published(path: Path | str) -> pl.DataFrame:
    """Return the table in ``path``: .csv, .tsv, .txt (tabs) or .parquet, ``.gz`` or not.

    Raises
    ------
    DataError
        The file is missing, of another kind, not such a table, or has no rows.
    """
    path = Path(path)
    kind = path.name.lower().removesuffix(".gz").rsplit(".", maxsplit=1)[-1]
    if kind not in {"csv", "tsv", "txt", "parquet"}:
        msg = f"'{path}' is not a .csv, .tsv, .txt or .parquet table (or one of these with .gz)."
        raise DataError(msg)
    if kind == "parquet" and path.is_file():
        try:
            table = pl.read_parquet(path)
        except (pl.exceptions.PolarsError, OSError) as error:
            msg = f"'{path}' cannot be read as a parquet table: {str(error).splitlines()[0]}."
            raise DataError(msg) from error
    else:
        table = read_text_table(path, "table", "give a CSV, TSV or Parquet file", typed=True)
    if table.is_empty():
        msg = f"table '{path}' has no rows."
        raise DataError(msg)
    return table


def find_column(
    found: Sequence[str], given: str | None, known: Iterable[str], what: str, path: Path
) -> str | None:
    """Return the column ``given``, or the first of the ``known`` ones that is there, or None.

    Raises
    ------
    DataError
        ``given`` is not a column.
    """
    if given is not None and given not in found:
        raise DataError(missing_column(f"'{path}'", [given], found, what))
    return given or next((name for name in known if name in found), None)


def need_column(
    found: Sequence[str], given: str | None, known: Sequence[str], what: str, path: Path
) -> str:
    """Return a column as :func:`find_column` does, or say which names were looked for."""
    name = find_column(found, given, known, what, path)
    if name is None:
        raise DataError(missing_column(f"'{path}'", known, found, what))
    return name


def numbers(table: pl.DataFrame, column: str, path: Path) -> pl.Series:
    """Return a column as finite float64 numbers, missing where the table has none.

    Raises
    ------
    DataError
        A value is text, or infinite.
    """
    values = table[column]
    cast = values.cast(pl.Float64, strict=False)
    text = (cast.is_null() & values.is_not_null()).arg_true()
    if len(text):
        msg = f"column '{column}' of '{path}' holds '{values[int(text[0])]}', which is no number."
        raise DataError(msg)
    infinite = cast.is_infinite().fill_null(value=False).arg_true()
    if len(infinite):
        row = int(infinite[0])
        msg = (
            f"column '{column}' of '{path}' is infinite in row {row + 1} (and {len(infinite) - 1} "
            "more); leave such rows out, or give the value the method truncates at."
        )
        raise DataError(msg)
    return cast.fill_nan(None).alias(column)


def gene_names(table: pl.DataFrame, column: str, path: Path) -> pl.Series:
    """Return a column of gene names.

    Raises
    ------
    DataError
        A name is missing, or a spreadsheet made a date of it.
    """
    names = table[column].cast(pl.String).str.strip_chars()
    empty = (names.is_null() | (names == "")).arg_true()
    if len(empty):
        msg = f"column '{column}' of '{path}' has no gene in row {int(empty[0]) + 1}; fill it in."
        raise DataError(msg)
    dates = [name for name in names.unique().sort() if DATE.fullmatch(name)]
    if dates:
        msg = (
            f"column '{column}' of '{path}' holds dates in place of genes ({', '.join(dates[:5])}; "
            f"{len(dates)} in all): a spreadsheet changed the names of MARCHF, SEPTIN or DELEC1 "
            "genes; use the original table."
        )
        raise DataError(msg)
    return names


def keep_rows(table: pl.DataFrame, where: Mapping[str, str], path: Path) -> pl.DataFrame:
    """Return the rows in which every column of ``where`` has its value.

    Raises
    ------
    DataError
        There is no such column, or no such row.
    """
    for column, value in where.items():
        find_column(table.columns, column, (), "a condition", path)
        levels = table[column].cast(pl.String)
        if not (levels == value).any():
            known = levels.drop_nulls().unique().sort().to_list()
            msg = f"no row of '{path}' has {column} '{value}'{suggest(value, known)}."
            raise DataError(msg)
        table = table.filter(levels == value)
    if table.is_empty():
        msg = f"no row of '{path}' has {', '.join(f'{c}={v}' for c, v in where.items())} at once."
        raise DataError(msg)
    return table
