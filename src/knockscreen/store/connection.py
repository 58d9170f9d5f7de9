"""The door to a database: finding it, opening it read-only, and asking it for typed frames."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from knockscreen.errors import DatabaseError, UnknownNameError, suggest

FILE = "screen.duckdb"
RESULTS = Path("results")
SCHEMA_VERSION = 7
"""Raised when a table or column changes its name or meaning; another version is refused."""

BUILD = (
    "knockscreen build-db --results-dir {folder} --programs <programs.file of the run>"
    " --output {path} --settings <configuration of the run>"
)
CLOSED = "the database was closed; open it again."


def databases(results: Path = RESULTS) -> dict[str, Path]:
    """Return the databases under ``results`` by name of their run."""
    return {path.parent.name: path for path in sorted(results.glob(f"*/{FILE}"))}


def find_database(
    path: Path | str | None = None, run: str | None = None, results: Path = RESULTS
) -> Path:
    """Return the database at ``path`` (a file or a run's folder), of ``run``, or of the only run.

    Raises
    ------
    DatabaseError
        There is no database, or several and no name says which.
    UnknownNameError
        ``run`` is not a run under ``results``.
    """
    if path is not None:
        path = Path(path)
        return path / FILE if path.is_dir() else path
    known = databases(results)
    if run is not None:
        if run in known or (results / run).is_dir():
            return results / run / FILE
        msg = f"there is no run '{run}' under {results}/{suggest(run, known)}."
        raise UnknownNameError(msg)
    if not known:
        msg = (
            f"there is no database under {results}/; 'make screen' builds the demonstration,"
            f" '{BUILD.format(folder='results/<run>', path=f'results/<run>/{FILE}')}' one of yours."
        )
        raise DatabaseError(msg)
    if len(known) > 1:
        msg = f"there are several runs under {results}/: {', '.join(known)}; choose one with --run."
        raise DatabaseError(msg)
    return next(iter(known.values()))


def connect(path: Path) -> duckdb.DuckDBPyConnection:
    """Open the database read-only, without access to any other file.

    Raises
    ------
    DatabaseError
        It is missing, busy, no DuckDB file, no database of ours, or of another schema version.
    """
    if not path.is_file():
        command = BUILD.format(folder=path.parent, path=path)
        msg = f"database {path} does not exist; build it with '{command}'."
        if path.suffix != Path(FILE).suffix:
            near = suggest(path.name, databases(path.parent))
            msg = f"{path} is neither a database nor the folder of a run{near}."
        raise DatabaseError(msg)
    config: dict[str, Any] = {"enable_external_access": False, "memory_limit": "2GB"}
    try:
        connection = duckdb.connect(path, read_only=True, config=config)
    except duckdb.Error as error:
        raise DatabaseError(_why_not_open(path, " ".join(str(error).split()))) from None
    try:
        found = connection.sql("select schema_version from runs").fetchall()
    except duckdb.Error:
        connection.close()
        msg = f"{path} is a DuckDB file but no knockscreen database; build-db writes one."
        raise DatabaseError(msg) from None
    if found != [(SCHEMA_VERSION,)]:
        connection.close()
        version = found[0][0] if found else "unknown"
        msg = (
            f"{path} has schema version {version}, this knockscreen reads {SCHEMA_VERSION};"
            f" build it again with '{BUILD.format(folder=path.parent, path=path)}'."
        )
        raise DatabaseError(msg)
    return connection


def _why_not_open(path: Path, reason: str) -> str:
    if "lock" in reason or "different configuration" in reason:
        holder = re.search(r"\(PID (\d+)\)", reason)
        who = f"process {holder.group(1)}" if holder else "another process or connection"
        return f"{path} is open for writing by {who}; close it there and ask again."
    if "not a valid DuckDB" in reason or "read enough bytes" in reason:
        return f"{path} is not a DuckDB database (or was cut short); build it again with build-db."
    if "version number" in reason:
        return f"{path} was written by another version of DuckDB ({reason}); build it again."
    return f"{path} cannot be opened: {reason.rstrip('.')}."


def ask(
    connection: duckdb.DuckDBPyConnection,
    sql: str,
    params: Mapping[str, Any],
    schema: Mapping[str, pl.DataType],
) -> pl.DataFrame:
    """Return the rows of ``sql`` with exactly the columns and types of ``schema``."""
    frame = table(connection, sql, params)
    return frame.select(pl.col(name).cast(dtype) for name, dtype in schema.items())


def table(
    connection: duckdb.DuckDBPyConnection, sql: str, params: Mapping[str, Any] | None = None
) -> pl.DataFrame:
    """Return the rows of ``sql`` with the types that DuckDB gives them."""
    try:
        frame: pl.DataFrame = connection.sql(sql, params=dict(params or {})).pl()
    except duckdb.ConnectionException as error:
        raise DatabaseError(CLOSED) from error
    return frame


def rows(connection: duckdb.DuckDBPyConnection, sql: str, *params: Any) -> list[tuple[Any, ...]]:
    """Return the rows of ``sql`` as tuples; ``?`` stands for each of ``params``."""
    try:
        return connection.sql(sql, params=list(params)).fetchall()
    except duckdb.ConnectionException as error:
        raise DatabaseError(CLOSED) from error
