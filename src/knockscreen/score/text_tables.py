"""CSV and TSV tables that people write: read in one way, and one sentence for a missing column."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from knockscreen.errors import DataError, nearest

MISSING = ["", "NA", "NaN", "nan", "NULL", "None", "N/A"]
SHOWN = 8
"""Columns of a file that a message lists at most."""


def read_text_table(
    path: Path | str, what: str, instead: str, *, typed: bool = False
) -> pl.DataFrame:
    """Return a table, gzipped or not: commas in a ``.csv`` file, tabs in any other.

    Lines that begin with ``#`` are comments. All columns are text; ``typed``: numbers where all
    values are, and :data:`MISSING` is missing.

    Parameters
    ----------
    what
        What the file is, for messages, such as "control file".
    instead
        What to do if there is no such file.

    Raises
    ------
    DataError
        The file is missing, or no table.
    """
    path = Path(path)
    if not path.is_file():
        msg = f"{what} '{path}' does not exist; {instead}."
        raise DataError(msg)
    kind = "CSV" if ".csv" in path.name.lower() else "TSV"
    try:
        return pl.read_csv(
            path, separator="," if kind == "CSV" else "\t", comment_prefix="#",
            infer_schema=typed, infer_schema_length=None, null_values=MISSING if typed else None,
        )  # fmt: skip
    except (pl.exceptions.PolarsError, UnicodeDecodeError, OSError) as error:
        msg = f"{what} '{path}' is not a {kind} table: {str(error).splitlines()[0]}."
        raise DataError(msg) from error


def missing_column(where: str, names: Sequence[str], found: Sequence[str], what: str = "") -> str:
    """Return the sentence for a table that has none of the columns ``names``.

    >>> missing_column("control file 'a.tsv'", ["direction"], ["gene", "directon"])
    "control file 'a.tsv' has no column 'direction'; nearest: directon."
    >>> missing_column("'a.csv'", ["gene", "symbol"], ["name"], "the gene")
    "'a.csv' has no column for the gene: none of gene, symbol; it has name."
    """
    wanted = f" for {what}" if what else ""
    named = [name for name in found if name.strip()]
    near = nearest(names[0], named) if len(names) == 1 else []
    if near:
        has = f"nearest: {', '.join(near)}"
    elif named:
        has = f"it has {', '.join(named[:SHOWN])}{', ...' if len(named) > SHOWN else ''}"
    else:
        has = "its first line names no columns"
    if len(names) == 1:
        return f"{where} has no column '{names[0]}'{wanted}; {has}."
    return f"{where} has no column{wanted}: none of {', '.join(names)}; {has}."
