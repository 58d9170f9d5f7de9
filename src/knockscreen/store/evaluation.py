"""The evaluation in the database: its two tables, and the question that shows them."""

from pathlib import Path

import duckdb
import polars as pl

from knockscreen.errors import UnknownNameError, suggest
from knockscreen.store.connection import ask
from knockscreen.store.frames import METRICS, Schema
from knockscreen.store.tables import read_table

METRIC_COLUMNS = (
    "split", "context", "target_gene_id", "target_gene", "method", "metric", "program", "value",
    "best", "n", "reason",
)  # fmt: skip
DIFFERENCE_COLUMNS = (
    "split", "context", "metric", "baseline", "model_value", "baseline_value", "difference", "low",
    "high", "best", "n", "verdict",
)  # fmt: skip


def evaluation_tables(results: Path) -> dict[str, pl.DataFrame]:
    """Return the rows of ``metrics`` and ``metric_differences``; none if nothing was evaluated."""
    folder = results / "evaluate"
    if not (folder / "metrics.parquet").exists():
        return {}
    return {
        "metrics": read_table(folder / "metrics.parquet", METRIC_COLUMNS),
        "metric_differences": read_table(folder / "summary.parquet", DIFFERENCE_COLUMNS),
    }


def metrics(
    connection: duckdb.DuckDBPyConnection,
    context: str | None = None,
    *,
    split: str | None = None,
    metric: str | None = None,
) -> pl.DataFrame:
    """Return the model beside every baseline and the ceiling, metric by metric.

    Parameters
    ----------
    context
        None: all contexts taken together, or the only one.
    split
        screened, held_out_target or held_out_context; None: every one.
    metric
        One metric; None: every one.

    Raises
    ------
    UnknownNameError
        The run was not evaluated, or not there; the nearest names are given.
    """
    rows = connection.sql("select distinct context, split, metric from metric_differences")
    known = rows.pl()
    if known.is_empty():
        msg = "this database holds no evaluation; run 'knockscreen evaluate', then build-db again."
        raise UnknownNameError(msg)
    contexts = known["context"].unique().sort().to_list()
    if context is None:
        context = "all" if "all" in contexts else contexts[0]
    context = next((name for name in contexts if name.lower() == context.lower()), context)
    for name, column in ((context, "context"), (split, "split"), (metric, "metric")):
        if name is not None and name not in known[column].to_list():
            near = suggest(name, known[column].unique().sort())
            msg = f"{column} '{name}' was not evaluated{near}."
            raise UnknownNameError(msg)
    schema: Schema = METRICS
    return ask(
        connection,
        """
        select * from metric_differences
        where context = $context and ($split is null or split = $split)
            and ($metric is null or metric = $metric)
        order by split desc, metric, baseline = 'ceiling' desc, baseline
        """,
        {"context": context, "split": split, "metric": metric},
        schema,
    )
