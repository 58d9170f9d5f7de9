"""The tables and views of a database as Parquet files, streamed."""

from collections.abc import Sequence
from pathlib import Path

import duckdb
import pyarrow.parquet as pq

from knockscreen.artifacts import atomic, write_manifest
from knockscreen.errors import UnknownNameError, suggest
from knockscreen.store.connection import rows

LARGE = ("effects", "movers", "measured_effects")
"""One row per knock-down, context and gene: exported where they are named."""

BATCH = 1_000_000


def names(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Return the tables and views that people ask for: those without numbered keys."""
    found = rows(
        connection,
        "select distinct table_name from duckdb_columns() where not internal"
        " and table_name not in (select table_name from duckdb_columns() where not internal"
        " and column_name in ('context_key') and table_name <> 'contexts')",
    )
    return sorted(name for (name,) in found)


def export(
    connection: duckdb.DuckDBPyConnection,
    database: Path,
    output: Path,
    wanted: Sequence[str] = (),
) -> list[Path]:
    """Write tables or views to ``output/<name>.parquet``; without names all but the large ones.

    Raises
    ------
    UnknownNameError
        A name is no table of the database; the nearest are given.
    """
    known = names(connection)
    for name in wanted:
        if name not in known:
            msg = f"unknown table '{name}'{suggest(name, known)}."
            raise UnknownNameError(msg)
    written = []
    for name in wanted or [name for name in known if name not in LARGE]:
        path = output / f"{name}.parquet"
        with atomic(path) as temporary:
            reader = connection.sql(f"select * from {name}").to_arrow_reader(BATCH)
            with pq.ParquetWriter(temporary, reader.schema, compression="zstd") as writer:
                for batch in reader:
                    writer.write_batch(batch)
        write_manifest(path, stage="export", inputs=[database])
        written.append(path)
    return written
