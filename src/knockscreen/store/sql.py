"""The door for questions in SQL: one reading statement at a time."""

import duckdb
import polars as pl

from knockscreen.errors import DatabaseError
from knockscreen.store.connection import table


def sql(connection: duckdb.DuckDBPyConnection, query: str) -> pl.DataFrame:
    """Return the rows of one reading statement.

    Raises
    ------
    DatabaseError
        It writes, is more than one statement, or is wrong (the message says what DuckDB says).
    """
    reading = {duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN}
    try:
        statements = connection.extract_statements(query)
        if len(statements) != 1:
            msg = f"one statement at a time; this is {len(statements)}."
            raise DatabaseError(msg)
        if statements[0].type not in reading:
            msg = (
                f"the database is read-only and this is {statements[0].type.name};"
                " ask with select, describe or show."
            )
            raise DatabaseError(msg)
        return _plain_numbers(table(connection, query))
    except pl.exceptions.PolarsError as error:
        what = str(error).splitlines()[0].split(" Hint:")[0]
        msg = f"SQL gives a type that no table here has ({what}); cast it, as in x::varchar."
        raise DatabaseError(msg) from None
    except duckdb.Error as error:
        what = " ".join(str(error).split(" LINE 1:")[0].split("LINE 1:")[0].split())
        tables = "runs, targets, genes, contexts, programs, rankings, program_scores, effects"
        hint = f" (tables: {tables}, ...)" if isinstance(error, duckdb.CatalogException) else ""
        msg = f"SQL refused: {what}{hint}"
        raise DatabaseError(msg) from None


def _plain_numbers(frame: pl.DataFrame) -> pl.DataFrame:
    """Return sums and decimals, which DuckDB gives 38 digits, as integers and floats."""
    casts = {}
    for name, dtype in frame.schema.items():
        if isinstance(dtype, pl.Decimal) or dtype in {pl.Int128, pl.UInt128}:
            whole = not isinstance(dtype, pl.Decimal) or dtype.scale == 0
            fits = frame[name].cast(pl.Float64).abs().le(2.0**62).all()
            casts[name] = pl.Int64() if whole and fits else pl.Float64()
    return frame.with_columns(pl.col(name).cast(dtype) for name, dtype in casts.items())
