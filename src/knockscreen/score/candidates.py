"""The candidate table of a screen, read with one sentence for what is wrong with it."""

from pathlib import Path

import polars as pl

from knockscreen.errors import DataError, suggest

COLUMNS = ("candidate", "target_gene", "target_gene_id", "evidence", "status", "shard")


def read_candidates(path: Path | str) -> pl.DataFrame:
    """Return the candidate table that the planner wrote.

    Raises
    ------
    DataError
        The file is missing, is not Parquet, or lacks a column.
    """
    table = read_table(path, "plan")
    for column in COLUMNS:
        if column not in table.columns:
            msg = (
                f"{path} has no column '{column}'{suggest(column, table.columns)}; run plan again."
            )
            raise DataError(msg)
    return table


def read_table(path: Path | str, stage: str) -> pl.DataFrame:
    """Return the Parquet table that ``stage`` wrote, or say that it has to be run (again)."""
    if not Path(path).is_file():
        msg = f"{path} does not exist; run {stage} first."
        raise DataError(msg)
    try:
        return pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        msg = (
            f"{path} is not a whole Parquet file ({str(error).splitlines()[0]}); run {stage} again."
        )
        raise DataError(msg) from error
