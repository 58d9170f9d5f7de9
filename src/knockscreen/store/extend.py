"""A copy of a database with new programs in it, ranked from the stored effects."""

import shutil
from pathlib import Path

import duckdb
import polars as pl

from knockscreen import artifacts
from knockscreen.errors import DataError
from knockscreen.store import tables
from knockscreen.store.build import RANKING_COLUMNS, insert, insert_rankings, insert_scores
from knockscreen.store.connection import connect, table


def refuse_known(database: Path, programs: pl.DataFrame) -> None:
    """Refuse programs of a name that the database has.

    Raises
    ------
    DataError
        A program of that name is in the database already.
    """
    with connect(database) as connection:
        known = table(connection, "select program from programs")["program"]
    shared = sorted(set(known) & set(programs["program"]))
    if shared:
        msg = (
            f"program {shared[0]} is in {database} already; programs are never merged: give the new"
            " one another name."
        )
        raise DataError(msg)


def extend(database: Path, output: Path, programs: pl.DataFrame, ranked: Path) -> Path:
    """Write a copy of ``database`` to ``output``, with the programs ranked in folder ``ranked``.

    Parameters
    ----------
    programs
        program, gene, weight, source, description of the new programs.
    ranked
        Folder with ``rank/`` and ``gate/``, as ``rank`` and ``gate`` write them.

    Raises
    ------
    DataError
        A program of that name is in the database already.
    """
    refuse_known(database, programs)
    with connect(database) as old:
        genes = table(old, "select * from genes order by gene_key")
    rankings = tables.read_table(ranked / "rank/rankings.parquet", RANKING_COLUMNS)
    members = tables.program_genes(programs, genes)
    gates = tables.gate_tables(ranked)
    with artifacts.atomic(output) as temporary:
        shutil.copyfile(database, temporary)
        with duckdb.connect(temporary) as connection:
            insert(connection, "program_genes", members.sort("program", "gene_key"))
            insert(connection, "programs", tables.programs(members, rankings, gates["gates"]))
            for name, frame in gates.items():
                insert(connection, name, frame)
            insert_rankings(connection, rankings)
            insert_scores(connection, ranked)
            connection.execute("checkpoint")
    artifacts.write_manifest(
        output, stage="score_programs", inputs=[ranked / "rank/rankings.parquet"]
    )
    return output
