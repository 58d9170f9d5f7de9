"""One signed score per knock-down from a database, and the sizes that any score has to beat.

For :mod:`knockscreen.score.agreement`: what a screen of other people's is compared with.
"""

from typing import Literal

import duckdb
import polars as pl

from knockscreen.errors import ConfigError, DatabaseError
from knockscreen.store import resolve
from knockscreen.store.connection import ask, rows

Evidence = Literal["predicted", "predicted_seen", "predicted_unseen", "measured"]
SCHEMA = {"target_gene": pl.String(), "target_gene_id": pl.String(), "value": pl.Float64()}
FDR = 0.1
"""Level below which a measured gene counts as differentially expressed."""
OF_TARGETS = {
    "predicted": "t.evidence is not null",
    "predicted_seen": "t.evidence = 'predicted_seen'",
    "predicted_unseen": "t.evidence = 'predicted_unseen'",
    "measured": "true",
}


def _context(connection: duckdb.DuckDBPyConnection, name: str | None) -> resolve.Context:
    found = resolve.contexts(connection, name)
    if len(found) > 1:
        names = ", ".join(context.context for context in found)
        msg = f"a screen is compared with one context; choose one with --context: {names}."
        raise ConfigError(msg)
    return found[0]


def program_scores(
    connection: duckdb.DuckDBPyConnection,
    program: str,
    context: str | None,
    *,
    evidence: Evidence = "predicted",
    source: str | None = None,
) -> pl.DataFrame:
    """Return how far each knock-down moves a program; positive = toward it.

    Raises
    ------
    DatabaseError
        No knock-down has such a score.
    """
    is_evidence = "evidence <> 'measured'" if evidence == "predicted" else "evidence = $evidence"
    frame = ask(
        connection,
        f"""
        select target_gene, target_gene_id, score as value from program_scores
        where program = $program and context = $context and score is not null and {is_evidence}
            and source is not distinct from $source
        order by target_gene_id
        """,
        {
            "program": resolve.program(connection, program),
            "context": _context(connection, context).context,
            "source": source,
            **({} if evidence == "predicted" else {"evidence": evidence}),
        },
        SCHEMA,
    )
    return _some(frame, evidence, source)


def gene_effects(
    connection: duckdb.DuckDBPyConnection,
    gene: str,
    context: str | None,
    *,
    evidence: Evidence = "predicted",
    source: str | None = None,
) -> pl.DataFrame:
    """Return how far each knock-down moves one gene, its own knock-down left out."""
    found = resolve.gene(connection, gene)
    key = _context(connection, context).key
    table, column = _effects(evidence, source)
    frame = ask(
        connection,
        f"""
        select t.target_gene, t.target_gene_id, e.{column} as value
        from {table} e join targets t using (target_key)
        where e.gene_key = {found.key} and e.context_key = {key} and {OF_TARGETS[evidence]}
            and t.gene_key is distinct from e.gene_key and e.{column} is not null
        order by t.target_gene_id
        """,
        {"source": source} if source else {},
        SCHEMA,
    )
    return _some(frame, evidence, source)


def doubts(connection: duckdb.DuckDBPyConnection, program: str) -> list[str]:
    """Return what the positive controls say against a program of the run, in a sentence."""
    name = resolve.program(connection, program)
    query = "select control_status, control_reason from programs where program = ?"
    status, reason = rows(connection, query, name)[0]
    why = f" ({reason})" if reason else ""
    return [] if status == "passed" else [f"Positive controls of {name}: {status}{why}."]


def baselines(
    connection: duckdb.DuckDBPyConnection,
    context: str | None,
    *,
    evidence: Evidence = "predicted",
    source: str | None = None,
) -> dict[str, pl.DataFrame]:
    """Return sizes of knock-downs: ``effect_magnitude`` and, if measured, ``n_de_genes``.

    The magnitude is the root of the sum of squared effects over all genes but the target's own;
    DE genes are those with a measured fdr below 0.1, which knock-downs never made have not.
    """
    key = _context(connection, context).key
    found = {}
    wanted = {"effect_magnitude": (evidence, "sqrt(sum(e.{column} ^ 2))")}
    if evidence != "predicted_unseen":
        wanted["n_de_genes"] = ("measured", f"count(*) filter (e.fdr < {FDR})")
    for name, (kind, of) in wanted.items():
        table, column = _effects(kind, source)
        tested = "having count(e.fdr) > 0" if name == "n_de_genes" else ""
        frame = ask(
            connection,
            f"""
            select t.target_gene, t.target_gene_id, {of.format(column=column)} as value
            from {table} e join targets t using (target_key)
            where e.context_key = {key} and {OF_TARGETS[kind]}
                and t.gene_key is distinct from e.gene_key
            group by all {tested} order by t.target_gene_id
            """,
            {"source": source} if source else {},
            SCHEMA,
        )
        if len(frame):
            found[name] = frame
    return found


def _effects(evidence: str, source: str | None) -> tuple[str, str]:
    """Return the table of effects (as SQL) and its column."""
    if source:
        return "(select * from external_by_target where source = $source)", "log2_fold_change"
    return ("measured_by_target" if evidence == "measured" else "effects_by_gene"), "delta"


def _some(frame: pl.DataFrame, evidence: str, source: str | None) -> pl.DataFrame:
    if frame.is_empty():
        kind = f"measured ({source})" if source else evidence
        msg = f"the database has no {kind} row of this kind in that context."
        raise DatabaseError(msg)
    return frame
