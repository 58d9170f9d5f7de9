"""Bulk insertion of effects: from the shards' Parquet files into tables in two sort orders.

Sorting one context at a time gives the same order as one sort over everything, in the memory of one
context. Names are replaced by small keys on the way.
"""

from pathlib import Path

import duckdb
import polars as pl

from knockscreen.errors import DataError, suggest

EFFECT_COLUMNS = (
    "target_gene_id", "context", "gene_id", "log2_fold_change", "delta", "delta_se", "mean_count",
    "control_mean_count",
)  # fmt: skip
MEASURED_COLUMNS = (
    "target_gene_id", "context", "gene_id", "log2_fold_change", "delta", "standard_error",
    "n_cells", "n_control_cells", "n_replicates", "n_control_replicates", "p_value", "fdr",
)  # fmt: skip
EXTERNAL_COLUMNS = (
    "source", "target_gene_id", "target_gene", "context", "gene_id", "log2_fold_change",
    "log2_fold_change_se", "p_value", "fdr",
)  # fmt: skip
CONTROL_TOLERANCE = 1e-3
MOVED, MOVED_FDR = 0.5, 0.05
"""A gene counts as moved from this log2 fold change on (predicted), up to this fdr (measured)."""


def significant(column: str) -> str:
    """Return a column in four significant digits, in SQL: this takes 21 bits, not 34.

    For what sampling leaves known to two at best: a standard error, a mean count.
    """
    return (
        f"case when {column} > 0 and isfinite({column})"
        f" then round({column}::double, (3 - floor(log10({column})))::integer)::float"
        f" else {column} end"
    )


def shards_of(results: Path) -> list[str]:
    """Return the effect files of a run, their columns checked.

    Raises
    ------
    DataError
        There are none, one is not Parquet, or one lacks a column.
    """
    folder = results / "score/effects"
    shards = sorted(folder.glob("*.parquet"))
    if not shards:
        msg = f"{folder} has no Parquet files; run knockscreen score before build-db."
        raise DataError(msg)
    for shard in shards:
        _check_columns(shard, EFFECT_COLUMNS)
    return [str(shard) for shard in shards]


def _check_columns(path: Path, columns: tuple[str, ...]) -> None:
    try:
        found = pl.read_parquet_schema(path)
    except pl.exceptions.PolarsError as error:
        msg = f"{path} is not a Parquet file ({str(error).splitlines()[0]}); score it again."
        raise DataError(msg) from None
    missing = [name for name in columns if name not in found]
    if missing:
        msg = f"{path} has no column '{missing[0]}' (it has {', '.join(found)}); score it again."
        raise DataError(msg)


def contexts_of(shards: list[str]) -> set[str]:
    """Return the contexts in the effect files, none if there are no files."""
    if not shards:
        return set()
    frame = pl.scan_parquet(shards).select(pl.col("context").unique()).collect(engine="streaming")
    return set(frame["context"])


def insert_context(
    connection: duckdb.DuckDBPyConnection, shards: list[str], key: int, name: str
) -> None:
    """Insert the effects in one context, by target and by gene, and what control expresses there.

    Raises
    ------
    DataError
        A knock-down appears twice, or the shards do not agree about the control cells.
    """
    connection.execute(
        f"""
        insert into effects_by_target
        select $key, t.target_key, g.gene_key, e.log2_fold_change, e.delta,
            {significant("e.delta_se")}, {significant("e.mean_count")}
        from read_parquet($shards) e
        join targets t using (target_gene_id)
        join genes g using (gene_id)
        where e.context = $name
        order by t.target_key, g.gene_key
        """,
        {"key": key, "shards": shards, "name": name},
    )
    twice = connection.sql(
        "select t.target_gene from effects_by_target e join targets t using (target_key)"
        " where e.context_key = $key group by all"
        " having count(*) > (select count(*) from genes where in_panel) limit 1",
        params={"key": key},
    ).fetchall()
    if twice:
        msg = (
            f"the effects of {twice[0][0]} in {name} are in more than one file of score/effects;"
            " remove shards of an older plan."
        )
        raise DataError(msg)
    connection.execute(
        """
        insert into effects_by_gene
        select context_key, gene_key, target_key, log2_fold_change, delta, delta_se
        from effects_by_target where context_key = $key
        order by gene_key, target_key
        """,
        {"key": key},
    )
    _insert_control(connection, shards, key, name)


def _insert_control(
    connection: duckdb.DuckDBPyConnection, shards: list[str], key: int, name: str
) -> None:
    connection.execute(
        """
        insert into control_expression
        select $key, g.gene_key, min(e.control_mean_count)
        from read_parquet($shards) e join genes g using (gene_id)
        where e.context = $name
        group by g.gene_key
        having max(e.control_mean_count) - min(e.control_mean_count)
            <= $tolerance * abs(min(e.control_mean_count))
        order by g.gene_key
        """,
        {"key": key, "shards": shards, "name": name, "tolerance": CONTROL_TOLERANCE},
    )
    differs = connection.sql(
        """
        select g.gene from genes g
        where g.gene_key in (select gene_key from effects_by_target where context_key = $key)
            and g.gene_key not in
                (select gene_key from control_expression where context_key = $key)
        limit 1
        """,
        params={"key": key},
    ).fetchall()
    if differs:
        msg = (
            f"control_mean_count of {differs[0][0]} in {name} differs between knock-downs in"
            " score/effects; score all shards of one plan again."
        )
        raise DataError(msg)


def insert_measured(
    connection: duckdb.DuckDBPyConnection, paths: list[str], key: int, name: str
) -> None:
    """Insert the measured effects in one context; nothing if the run has no files of them."""
    if not paths:
        return
    for path in paths:
        _check_columns(Path(path), MEASURED_COLUMNS)
    connection.execute(
        """
        insert into measured_by_target
        select $key, t.target_key, g.gene_key, e.log2_fold_change, e.delta, e.standard_error,
            e.n_cells, e.n_control_cells, e.n_replicates, e.n_control_replicates, e.p_value, e.fdr
        from read_parquet($paths) e
        join targets t using (target_gene_id)
        join genes g using (gene_id)
        where e.context = $name
        order by t.target_key, g.gene_key
        """,
        {"key": key, "paths": paths, "name": name},
    )


def insert_sizes(connection: duckdb.DuckDBPyConnection, key: int) -> None:
    """Insert how much each knock-down changes in all, in one context, its own gene left out."""
    up = {"false": f"log2_fold_change >= {MOVED}", "true": f"fdr <= {MOVED_FDR} and delta > 0"}
    down = {"false": f"log2_fold_change <= -{MOVED}", "true": f"fdr <= {MOVED_FDR} and delta < 0"}
    known = {"false": "true", "true": "count(fdr) > 0"}
    for measured, table in (("false", "effects_by_target"), ("true", "measured_by_target")):
        n_up, n_down = (
            f"case when {known[measured]} then count(*) filter (not own and {moved[measured]}) end"
            for moved in (up, down)
        )
        connection.execute(
            f"""
            insert into effect_sizes
            select {key}, target_key, {measured},
                sqrt(sum(delta::double * delta) filter (not own)), {n_up}, {n_down},
                max(log2_fold_change) filter (own)
            from (
                select e.*, coalesce(e.gene_key = t.gene_key, false) as own
                from {table} e join targets t using (target_key) where e.context_key = {key}
            )
            group by target_key
            order by target_key
            """
        )


def insert_external(
    connection: duckdb.DuckDBPyConnection, paths: list[str], key: int, name: str
) -> None:
    """Insert the effects that tables from elsewhere have in one context; nothing without files."""
    if not paths:
        return
    connection.execute(
        """
        insert into external_by_target
        select $key, t.target_key, g.gene_key, e.source, e.log2_fold_change,
            e.log2_fold_change_se, e.p_value, e.fdr
        from read_parquet($paths) e
        join targets t using (target_gene_id)
        join genes g using (gene_id)
        where e.context = $name
        order by t.target_key, e.source, g.gene_key
        """,
        {"key": key, "paths": paths, "name": name},
    )


def external_targets(results: Path) -> tuple[list[str], pl.DataFrame]:
    """Return the file of external effects, if there is one, and the knock-downs it names."""
    path = results / "external/effects.parquet"
    if not path.exists():
        return [], pl.DataFrame(schema={"target_gene_id": pl.String, "target_gene": pl.String})
    _check_columns(path, EXTERNAL_COLUMNS)
    scores = pl.scan_parquet(results / "external/programs.parquet")
    frames = [
        frame.select("target_gene_id", "target_gene") for frame in (pl.scan_parquet(path), scores)
    ]
    found = pl.concat(frames).unique("target_gene_id", keep="first", maintain_order=True).collect()
    return [str(path)], found


def check(
    connection: duckdb.DuckDBPyConnection,
    shards: list[str],
    measured: list[str],
    external: list[str],
) -> None:
    """Refuse a database in which an effect is missing because a name was not known.

    Raises
    ------
    DataError
        A target or gene of the effects is not among those of the run.
    """
    tables = {
        "effects_by_target": shards,
        "measured_by_target": measured,
        "external_by_target": external,
    }
    for table, paths in tables.items():
        if not paths:
            continue
        inserted = connection.sql(f"select count(*) from {table}").fetchall()[0][0]
        expected = connection.sql(
            "select count(*) from read_parquet($paths)", params={"paths": paths}
        ).fetchall()[0][0]
        if inserted != expected:
            _name_unknown(connection, paths)
            msg = (
                f"{expected:,} effects in {paths[0]} and beside it became {inserted:,} rows;"
                " names of targets or genes are not unique."
            )
            raise DataError(msg)


def _name_unknown(connection: duckdb.DuckDBPyConnection, paths: list[str]) -> None:
    lists = {
        "target_gene_id": ("targets", "screen/candidates.parquet"),
        "gene_id": ("genes", "store/panel.parquet"),
        "context": ("contexts", "screen/plan.json"),
    }
    for column, (table, source) in lists.items():
        unknown = connection.sql(
            f"select distinct {column} from read_parquet($paths)"
            f" where {column} is null or {column} not in (select {column} from {table}) limit 1",
            params={"paths": paths},
        ).fetchall()
        if unknown:
            known = [row[0] for row in connection.sql(f"select {column} from {table}").fetchall()]
            name = str(unknown[0][0])
            msg = (
                f"{column} '{name}' in {paths[0]} (or beside it) is not in {source}"
                f"{suggest(name, known)}; run the stages after plan again."
            )
            raise DataError(msg)
