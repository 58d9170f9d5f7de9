"""What a database holds: its run, programs, contexts, and what the positive controls say."""

import duckdb
import polars as pl

from knockscreen.store import resolve
from knockscreen.store.connection import ask
from knockscreen.store.frames import CONTEXTS, CONTROLS, PROGRAMS, RUNS


def controls(
    connection: duckdb.DuckDBPyConnection,
    program: str | None = None,
    context: str | None = None,
) -> pl.DataFrame:
    """Return what the positive controls say of each program, and which came out right or wrong.

    ``controls`` lists them best first, each with the share of other knock-downs that it beats in
    its published direction.
    """
    name = None if program is None else resolve.program(connection, program)
    where = resolve.contexts(connection, context)
    return ask(
        connection,
        """
        with named as (
            select program, context, evidence, string_agg(
                target_gene || ' ' || coalesce(round(percentile, 2)::varchar, '-'), ', '
                order by percentile desc nulls last, target_gene) as controls
            from positive_controls group by all
        )
        select g.*, n.controls from gates g
        left join named n using (program, context, evidence)
        where ($program is null or program = $program) and list_contains($contexts, context)
        order by program, list_position($contexts, context), evidence
        """,
        {"program": name, "contexts": [found.context for found in where]},
        CONTROLS,
    )


def runs(connection: duckdb.DuckDBPyConnection) -> pl.DataFrame:
    """Return the run that this database was built from."""
    return ask(connection, "select * from runs", {}, RUNS)


def programs(connection: duckdb.DuckDBPyConnection) -> pl.DataFrame:
    """Return the programs, ranked or left out."""
    return ask(connection, "select * from programs", {}, PROGRAMS)


def contexts(connection: duckdb.DuckDBPyConnection) -> pl.DataFrame:
    """Return the contexts: separate ones, then pooled ones."""
    return ask(connection, "select * from contexts order by context_key", {}, CONTEXTS)
