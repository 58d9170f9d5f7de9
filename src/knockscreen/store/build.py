"""Build the ranking database of a run from its Parquet files.

The database is written to a temporary name and renamed, so that readers see the old one or the new
one, never half of one. The small tables come from :mod:`knockscreen.store.tables`, the effects from
:mod:`knockscreen.store.effects`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from knockscreen import artifacts
from knockscreen.config import (
    AnnotationsConfig,
    NonNegative,
    ProgramsConfig,
    Section,
    read_stage,
    read_values,
)
from knockscreen.errors import DataError
from knockscreen.score.program_files import all_programs, read_programs
from knockscreen.store import effects, tables
from knockscreen.store.annotations import annotate
from knockscreen.store.connection import SCHEMA_VERSION
from knockscreen.store.evaluation import evaluation_tables
from knockscreen.store.tables import json_text

Progress = Callable[[int, int, str], None]
RANKING_COLUMNS = (
    "program", "context", "target_gene", "target_gene_id", "direction", "rank", "rank_low",
    "rank_high", "score", "score_sd", "p_value", "fdr", "evidence", "control_status", "n_genes",
    "n_decoys", "program_specificity_p", "direction_p", "donor_concordance", "donor_sd", "source",
    "guide_concordance", "replicate_p_value", "replicate_fdr", "tau",
)  # fmt: skip
SCORE_COLUMNS = (
    "program", "context", "target_gene_id", "target_gene", "evidence", "score", "score_sd",
    "n_genes", "magnitude", "source",
)  # fmt: skip
HALF_COLUMNS = (
    "program", "context", "target_gene_id", "score_half_a", "score_half_b", "n_cells",
    "n_replicates",
)  # fmt: skip
CEILING_COLUMNS = ("program", "context", "n_targets", "spearman_half", "ceiling", "splits")
DISK_FULL = ("No space left", "File too large", "Could not write", "Could not truncate", "max_temp")


class DatabaseStage(Section):
    """The settings that building reads; whatever else is given is stored as the run's settings."""

    run: str
    seed: NonNegative
    programs: ProgramsConfig | None = None
    annotations: AnnotationsConfig | None = None


@dataclass(frozen=True)
class Resources:
    """What a build may use. A sort larger than ``memory`` goes to disk beside the output."""

    memory: str = "2GB"
    threads: int = 0


def build(
    results: Path,
    programs: Path,
    output: Path,
    settings: str,
    *,
    resources: Resources | None = None,
    progress: Progress = lambda done, total, what: None,
) -> Path:
    """Build ``output`` from the files in ``results``; an older database stays if anything fails.

    Parameters
    ----------
    results
        Folder of the run, ``results/<run>``.
    programs
        TSV of signed program genes, the one that was ranked.
    settings
        JSON text or the path of a YAML configuration: needs ``run`` and ``seed``; all is stored.
    progress
        Called with the steps done, the steps in all, and what comes next.

    Raises
    ------
    DataError
        A file is missing, lacks a column or names something unknown, or the disk is full.
    """
    stage = read_stage(DatabaseStage, settings)
    values = {"run": stage.run, "seed": stage.seed, "config": json_text(read_values(settings))}
    table = _programs(programs, stage.programs)
    with artifacts.atomic(output) as temporary:
        try:
            with duckdb.connect(temporary) as connection:
                _limit(connection, resources or Resources())
                _fill(connection, results, (table, stage.annotations), values, progress)
                connection.execute("checkpoint")
            _verify(temporary)
        except duckdb.Error as error:
            raise _as_data_error(error, output) from error
    inputs = [results / "screen/candidates.parquet", results / "rank/rankings.parquet", programs]
    artifacts.write_manifest(
        output, stage="build_db", inputs=inputs, settings=stage.model_dump(), seed=stage.seed
    )
    return output


def _programs(path: Path, settings: ProgramsConfig | None) -> pl.DataFrame:
    """Return the programs of the file, and of the further files that the settings name."""
    if settings is None:
        return read_programs(path)
    return all_programs(settings.model_copy(update={"file": str(path)}))


def _fill(
    connection: duckdb.DuckDBPyConnection,
    results: Path,
    given: tuple[pl.DataFrame, AnnotationsConfig | None],
    values: dict[str, Any],
    progress: Progress,
) -> None:
    """Create every table and fill it; ``given``: the programs, the annotations."""
    programs, annotations = given
    connection.execute((files("knockscreen.store") / "schema.sql").read_text())
    store = artifacts.read_json(results / "store/store.json")
    plan = artifacts.read_json(results / "screen/plan.json")
    rankings = tables.read_table(results / "rank/rankings.parquet", RANKING_COLUMNS)
    shards = effects.shards_of(results)
    names = set(plan["contexts"]) | set(rankings["context"].unique())
    measured = [str(path) for path in [results / "measured/effects.parquet"] if path.exists()]
    external, others = effects.external_targets(results)
    for paths in (shards, measured, external):
        names |= effects.contexts_of(paths)
    contexts = tables.contexts(results, store, names)
    total = contexts.height + 2

    progress(0, total, "genes, targets and programs")
    _insert_entities(connection, results, store, contexts, others, annotations=annotations)
    members = tables.program_genes(programs, tables.genes(results, store))
    insert(connection, "program_genes", members.sort("program", "gene_key", nulls_last=True))
    gates = tables.gate_tables(results)
    insert(connection, "programs", tables.programs(members, rankings, gates["gates"]))
    for name, frame in gates.items():
        insert(connection, name, frame)
    progress(1, total, "rankings and scores")
    insert_rankings(connection, rankings)
    insert_scores(connection, results)
    _insert_ceilings(connection, results)
    for done, (key, name) in enumerate(contexts.select("context_key", "context").iter_rows()):
        progress(2 + done, total, f"effects in {name}")
        effects.insert_context(connection, shards, key, name)
        effects.insert_measured(connection, measured, key, name)
        effects.insert_external(connection, external, key, name)
        effects.insert_sizes(connection, key)
    effects.check(connection, shards, measured, external)
    for name, frame in evaluation_tables(results).items():
        insert(connection, name, frame)
    insert(connection, "artifacts", tables.artifacts(results))
    _insert_run(connection, values, store, plan)
    progress(total, total, "done")


def _insert_entities(
    connection: duckdb.DuckDBPyConnection,
    results: Path,
    store: dict[str, Any],
    contexts: pl.DataFrame,
    external: pl.DataFrame,
    *,
    annotations: AnnotationsConfig | None,
) -> None:
    genes = tables.genes(results, store)
    insert(connection, "genes", genes)
    measured = tables.target_contexts(results)
    guides = tables.guides(results)
    controls = tables.gate_tables(results)["positive_controls"]
    targets = tables.targets(results, genes, measured, external)
    targets = tables.of_targets(targets, guides, genes, controls)
    insert(connection, "targets", annotate(targets, genes, annotations))
    keys = targets.select("target_gene_id", "target_key")
    measured = measured.join(keys, on="target_gene_id").sort("target_key", "context")
    insert(connection, "target_contexts", measured)
    guides = guides.join(keys, on="target_gene_id").sort("target_key", "guide_id")
    insert(connection, "guides", guides)
    insert(connection, "contexts", contexts)


def insert(connection: duckdb.DuckDBPyConnection, table: str, frame: pl.DataFrame) -> None:
    """Insert the columns of ``frame`` that ``table`` has, by name; the others become NULL."""
    known = connection.table(table).columns
    types = dict(zip(known, connection.table(table).types, strict=True))
    columns = [name for name in known if name in frame.columns]
    # A map arrives as JSON text and is cast by way of the JSON type.
    values = ", ".join(
        f"{name}::json::{types[name]} as {name}" if types[name].id == "map" else name
        for name in columns
    )
    connection.register("frame", frame.select(columns))
    connection.execute(f"insert into {table} by name select {values} from frame")
    connection.unregister("frame")


def insert_rankings(connection: duckdb.DuckDBPyConnection, rankings: pl.DataFrame) -> None:
    """Insert the rankings in the order in which they are asked for."""
    measured = pl.col("evidence") == "measured"
    order = ("program", "context", "direction", measured, "source", "rank", "target_gene_id")
    insert(connection, "rankings", rankings.sort(*order))


def insert_scores(connection: duckdb.DuckDBPyConnection, results: Path) -> None:
    """Insert the program scores by target, with their ranks and, where measured, their halves."""
    scores = tables.read_table(results / "rank/program_scores.parquet", SCORE_COLUMNS)
    halves_file = results / "measured/programs.parquet"
    keys = ["program", "context", "target_gene_id"]
    if halves_file.exists():
        halves = tables.read_table(halves_file, HALF_COLUMNS)
        halves = halves.with_columns(evidence=pl.lit("measured"), source=pl.lit(None, pl.String))
        on = [*keys, "evidence", "source"]
        scores = scores.join(halves, on=on, how="left", nulls_equal=True)
    connection.register("scores", scores)
    before = connection.sql("select count(*) from program_scores").fetchall()[0][0]
    halves_sql = ", ".join(
        f"s.{name}" if name in scores.columns else f"null as {name}"
        for name in ("n_cells", "n_replicates", "score_half_a", "score_half_b")
    )
    connection.execute(
        f"""
        with ranks as (
            select program, context, target_gene_id, evidence, source,
                max(rank) filter (direction = 'toward') as rank_toward,
                max(rank) filter (direction = 'away') as rank_away
            from rankings where program in (select program from scores) group by all
        ), sizes as (
            select program, context, evidence = 'measured' as is_measured, source,
                max(rank) as n_ranked
            from rankings where program in (select program from scores) group by all
        )
        insert into program_scores by name
        select t.target_key, s.target_gene, s.target_gene_id, s.context, s.program, s.evidence,
            s.source, s.score, s.score_sd, s.n_genes, s.magnitude, r.rank_toward, r.rank_away,
            case when r.rank_toward is not null then z.n_ranked end as n_ranked, {halves_sql}
        from scores s
        join targets t using (target_gene_id)
        left join ranks r on r.program = s.program and r.context = s.context
            and r.target_gene_id = s.target_gene_id and r.evidence = s.evidence
            and r.source is not distinct from s.source
        left join sizes z on z.program = s.program and z.context = s.context
            and z.is_measured = (s.evidence = 'measured')
            and z.source is not distinct from s.source
        order by t.target_key, s.context, s.program, s.evidence, s.source nulls first
        """
    )
    connection.unregister("scores")
    found = connection.sql("select count(*) from program_scores").fetchall()[0][0] - before
    if found != scores.height:
        msg = (
            f"{results / 'rank/program_scores.parquet'} has {scores.height:,} rows but {found:,} of"
            " them belong to a target of screen/candidates.parquet; run plan and rank again."
        )
        raise DataError(msg)


def _insert_ceilings(connection: duckdb.DuckDBPyConnection, results: Path) -> None:
    ceiling_file = results / "measured/ceiling.parquet"
    if ceiling_file.exists():
        ceilings = tables.read_table(ceiling_file, CEILING_COLUMNS)
        insert(connection, "ceilings", ceilings.sort("program", "context"))


def _insert_run(
    connection: duckdb.DuckDBPyConnection,
    values: dict[str, Any],
    store: dict[str, Any],
    plan: dict[str, Any],
) -> None:
    """Insert the one row of ``runs``: last, so that a database with it is whole."""
    counted = connection.sql(
        "select (select count(*) from targets where status = 'screened') as n_targets,"
        " (select count(*) from contexts where not is_pooled) as n_contexts,"
        " (select max(digest) from artifacts where artifact = 'store') as store_digest"
    ).fetchall()[0]
    row = dict(zip(("n_targets", "n_contexts", "store_digest"), counted, strict=True)) | {
        "created": datetime.now(UTC).replace(microsecond=0, tzinfo=None),
        "simulated": store.get("simulated"),
        "n_cells": store["n_cells"],
        "n_genes": len(store["genes"]),
        "draws": plan.get("draws"),
    }
    insert(connection, "runs", tables.runs(values | row))


def _limit(connection: duckdb.DuckDBPyConnection, resources: Resources) -> None:
    connection.execute(f"set threads = {artifacts.threads(resources.threads)}")
    try:
        connection.execute("set memory_limit = $1", [resources.memory])
    except duckdb.Error:
        msg = f"memory limit '{resources.memory}' is no size; give one such as 2GB."
        raise DataError(msg) from None


def _verify(path: Path) -> None:
    with duckdb.connect(path, read_only=True) as connection:
        found = connection.sql("select schema_version from runs").fetchall()
    if found != [(SCHEMA_VERSION,)]:
        msg = f"{path.name} was not written whole; build it again."
        raise DataError(msg)


def _as_data_error(error: duckdb.Error, output: Path) -> DataError:
    reason = " ".join(str(error).split()).split(" LINE 1:")[0]
    if any(text in reason for text in DISK_FULL):
        reason = f"the disk is full ({reason})"
    msg = f"cannot build {output}: {reason.rstrip('.')}; what was there before is unchanged."
    return DataError(msg)
