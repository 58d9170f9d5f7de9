"""The questions that people ask of a database, one function each.

Every function takes a read-only connection and returns a polars frame whose columns and types stand
in :mod:`knockscreen.store.frames` and do not depend on the data: missing is null. Scores and deltas
are perturbed minus control, in log1p CP10k.
"""

from typing import Literal

import duckdb
import polars as pl

from knockscreen.errors import ConfigError, DatabaseError
from knockscreen.store import resolve
from knockscreen.store.cards import with_cards
from knockscreen.store.connection import ask, table
from knockscreen.store.frames import (
    COMPARE,
    EXPLAIN,
    MOVERS,
    SHOW,
    SHOW_GENES,
    SHOW_PROGRAMS,
    TOP,
)

Direction = Literal["toward", "away"]
Sign = Literal["up", "down"]
Evidence = Literal["predicted", "predicted_seen", "predicted_unseen", "measured"]

IS_EVIDENCE = {
    None: "evidence <> 'measured'",
    "predicted": "evidence <> 'measured'",
    "predicted_seen": "evidence = 'predicted_seen'",
    "predicted_unseen": "evidence = 'predicted_unseen'",
    "measured": "evidence = 'measured'",
}
UNSEEN = "evidence = 'predicted_unseen'"
"""False before true: what was never knocked down in training is a hypothesis, and comes last."""


def top(
    connection: duckdb.DuckDBPyConnection,
    program: str,
    context: str | None = None,
    *,
    direction: Direction = "toward",
    n: int | None = 20,
    evidence: Evidence | None = None,
    source: str | None = None,
) -> pl.DataFrame:
    """Return the first ``n`` knock-downs per context that move cells toward or away from a program.

    Predicted rows are ranked among themselves and carry the measured score where there is one.
    Those whose knock-down was in the training cells come first, whatever their rank: predictions of
    the others are hypotheses, too large as a rule. ``evidence="predicted"`` goes by the rank alone,
    ``"measured"`` gives the ranking of the real cells instead, and ``source`` that of a measured
    table from elsewhere, whose scores are in log2 fold changes.
    """
    evidence = "measured" if source is not None else evidence
    resolve.choice("direction", direction, ("toward", "away"))
    resolve.choice("evidence", evidence, tuple(IS_EVIDENCE))
    name = resolve.program(connection, program)
    where = resolve.contexts(connection, context)
    order = "rank" if evidence else f"{UNSEEN}, rank"
    frame = table(
        connection,
        f"""
        with chosen as (
            select * from rankings
            where program = $program and direction = $direction
                and list_contains($contexts, context) and {IS_EVIDENCE[evidence]}
                and source is not distinct from $source
            qualify row_number() over (partition by context order by {order}) <= $n
        )
        select r.*, m.score as measured_score, m.score_sd as measured_score_sd
        from chosen r
        left join (
            select context, target_gene_id, score, score_sd from rankings
            where program = $program and direction = $direction and evidence = 'measured'
                and source is null
        ) m on m.context = r.context and m.target_gene_id = r.target_gene_id
        order by list_position($contexts, r.context), {order}
        """,
        {"program": name, "direction": direction, "n": resolve.limit(n)}
        | {"source": resolve.source(connection, source)}
        | _names(where),
    )
    if frame.is_empty():
        kind = source or evidence or "predicted"
        msg = f"no {kind} ranking of {name} in {', '.join(c.context for c in where)}."
        raise DatabaseError(msg)
    return with_cards(connection, frame, where, TOP)


def _names(contexts: list[resolve.Context]) -> dict[str, list[str]]:
    return {"contexts": [context.context for context in contexts]}


def _keys(contexts: list[resolve.Context]) -> str:
    """Return the keys of the contexts for an SQL ``in``: literals, so that zone maps apply."""
    return f"({', '.join(str(context.key) for context in contexts)})"


def show_programs(
    connection: duckdb.DuckDBPyConnection, target: str, context: str | None = None
) -> pl.DataFrame:
    """Return how far one knock-down moves each program, predicted beside measured."""
    found = resolve.target(connection, target)
    where = resolve.contexts(connection, context)
    return ask(
        connection,
        """
        with scores as (
            select * from program_scores
            where target_key = $target and list_contains($contexts, context)
                and source is null
        ), predicted as (select * from scores where evidence <> 'measured'),
        measured as (select * from scores where evidence = 'measured')
        select coalesce(p.target_gene, m.target_gene) as target_gene,
            coalesce(p.target_gene_id, m.target_gene_id) as target_gene_id,
            coalesce(p.context, m.context) as context, coalesce(p.evidence, m.evidence) as evidence,
            coalesce(p.program, m.program) as program, p.score, p.score_sd,
            coalesce(p.n_genes, m.n_genes) as n_genes, p.rank_toward, p.rank_away, p.n_ranked,
            m.score as measured_score, m.score_sd as measured_score_sd, m.n_cells,
            coalesce(g.control_status, 'not_tested') as control_status, g.control_reason
        from predicted p full join measured m
            on m.context = p.context and m.program = p.program
        left join gates g on g.program = coalesce(p.program, m.program)
            and g.context = coalesce(p.context, m.context)
            and g.evidence = coalesce(p.evidence, m.evidence)
        order by list_position($contexts, coalesce(p.context, m.context)),
            abs(coalesce(p.score, m.score)) desc nulls last, coalesce(p.program, m.program)
        """,
        {"target": found.key} | _names(where),
        SHOW_PROGRAMS,
    )


def show_genes(
    connection: duckdb.DuckDBPyConnection,
    target: str,
    context: str | None = None,
    *,
    n: int | None = 20,
) -> pl.DataFrame:
    """Return the genes that one knock-down moves most, per context, predicted beside measured."""
    found = resolve.target(connection, target)
    where = resolve.contexts(connection, context)
    keys = _keys(where)
    return ask(
        connection,
        f"""
        with predicted as (
            select context_key, gene_key, log2_fold_change, delta, delta_se
            from effects_by_target where target_key = {found.key} and context_key in {keys}
        ), measured as (
            select context_key, gene_key, log2_fold_change, delta, standard_error
            from measured_by_target where target_key = {found.key} and context_key in {keys}
        )
        select $target_gene as target_gene, $target_gene_id as target_gene_id, c.context,
            case when p.delta is null then 'measured' else $evidence end as evidence,
            g.gene, g.gene_id, p.log2_fold_change, p.delta, p.delta_se,
            m.log2_fold_change as measured_log2_fold_change, m.delta as measured_delta,
            m.standard_error as measured_standard_error,
            coalesce(g.gene_key = t.gene_key, false) as is_target
        from predicted p full join measured m using (context_key, gene_key)
        join contexts c using (context_key)
        join genes g using (gene_key)
        join targets t on t.target_key = {found.key}
        qualify row_number() over (
            partition by context_key
            order by abs(coalesce(p.delta, m.delta)) desc nulls last, gene_key
        ) <= $n
        order by context_key, abs(coalesce(p.delta, m.delta)) desc nulls last, gene_key
        """,
        {
            "target_gene": found.target_gene,
            "target_gene_id": found.target_gene_id,
            "evidence": found.evidence,
            "n": resolve.limit(n),
        },
        SHOW_GENES,
    )


def show(
    connection: duckdb.DuckDBPyConnection,
    target: str,
    context: str | None = None,
    *,
    n: int | None = 20,
) -> pl.DataFrame:
    """Return all about one knock-down: rows with ``part`` program, then rows with ``part`` gene."""
    programs = show_programs(connection, target, context)
    genes = show_genes(connection, target, context, n=n)
    if programs.is_empty() and genes.is_empty():
        raise resolve.not_screened(resolve.target(connection, target))
    parts = [
        programs.with_columns(part=pl.lit("program")),
        genes.with_columns(part=pl.lit("gene")),
    ]
    return pl.concat(parts, how="diagonal").select(list(SHOW))


def movers(
    connection: duckdb.DuckDBPyConnection,
    gene: str,
    context: str | None = None,
    *,
    direction: Sign | None = None,
    n: int | None = 20,
) -> pl.DataFrame:
    """Return the knock-downs that move one gene most, per context, up and down or one of them.

    Those never knocked down in training come after the others. The knock-down of the gene itself is
    among them, with ``is_target`` true.
    """
    resolve.choice("direction", direction, ("up", "down", None))
    found = resolve.gene(connection, gene)
    where = resolve.contexts(connection, context)
    sign = {"up": "and delta > 0", "down": "and delta < 0", None: ""}[direction]
    chosen = f"""
        select e.* from effects_by_gene e join targets t using (target_key)
        where e.gene_key = {found.key} and e.context_key in {_keys(where)} {sign}
        qualify row_number() over (
            partition by e.context_key order by t.{UNSEEN}, abs(e.delta) desc, e.target_key
        ) <= {resolve.limit(n)}
    """
    keys = [
        row[0] for row in connection.sql(f"select distinct target_key from ({chosen})").fetchall()
    ]
    only = f"({', '.join(map(str, keys)) or 'null'})"
    return ask(
        connection,
        f"""
        select $gene as gene, $gene_id as gene_id, c.context, t.target_gene, t.target_gene_id,
            e.log2_fold_change, e.delta, e.delta_se, t.evidence,
            coalesce(t.gene_key = {found.key}, false) as is_target,
            m.delta as measured_delta, m.standard_error as measured_standard_error
        from ({chosen}) e
        join targets t using (target_key)
        join contexts c using (context_key)
        left join (
            select * from measured_by_target where gene_key = {found.key}
                and context_key in {_keys(where)} and target_key in {only}
        ) m on m.context_key = e.context_key and m.target_key = e.target_key
        order by e.context_key, t.{UNSEEN}, abs(e.delta) desc, e.target_key
        """,
        {"gene": found.gene, "gene_id": found.gene_id},
        MOVERS,
    )


def compare(
    connection: duckdb.DuckDBPyConnection,
    program_a: str,
    program_b: str,
    context: str | None = None,
    *,
    n: int | None = 20,
) -> pl.DataFrame:
    """Return the knock-downs that separate two programs: largest |score_a - score_b| first.

    Those never knocked down in training come after the others.

    A positive ``difference`` moves cells toward A and away from B, or more toward A than toward B.

    Raises
    ------
    ConfigError
        Both are one program.
    """
    a, b = (resolve.program(connection, name) for name in (program_a, program_b))
    if a == b:
        msg = f"{a} does not differ from itself; give two programs, or ask top for one."
        raise ConfigError(msg)
    where = resolve.contexts(connection, context)
    return ask(
        connection,
        f"""
        with scores as (
            select * from rankings where direction = 'toward' and program in ($a, $b)
                and list_contains($contexts, context) and source is null
        ), pairs as (
            select a.context, a.target_gene, a.target_gene_id, a.evidence, a.score as score_a,
                a.score_sd as score_sd_a, b.score as score_b, b.score_sd as score_sd_b,
                a.score - b.score as difference, a.control_status as control_status_a,
                b.control_status as control_status_b
            from (select * from scores where program = $a) a
            join (select * from scores where program = $b) b
                using (context, target_gene_id, evidence)
        )
        select $a as program_a, $b as program_b, p.*, m.difference as measured_difference
        from pairs p
        left join (select * from pairs where evidence = 'measured') m
            on m.context = p.context and m.target_gene_id = p.target_gene_id
        where p.evidence <> 'measured'
        qualify row_number() over (
            partition by p.context order by p.{UNSEEN}, abs(p.difference) desc, p.target_gene_id
        ) <= $n
        order by list_position($contexts, p.context), p.{UNSEEN}, abs(p.difference) desc,
            p.target_gene_id
        """,
        {"a": a, "b": b, "n": resolve.limit(n)} | _names(where),
        COMPARE,
    )


def explain(
    connection: duckdb.DuckDBPyConnection,
    target: str,
    program: str,
    context: str | None = None,
) -> pl.DataFrame:
    """Return the genes that carry a score: their contributions add up to it.

    contribution = weight * delta / sum of |weight| over the program's genes on the panel, the
    target itself left out; null for the genes left out.
    """
    found = resolve.target(connection, target)
    name = resolve.program(connection, program)
    where = resolve.contexts(connection, context)
    keys = _keys(where)
    frame = ask(
        connection,
        f"""
        with members as (
            select p.gene, p.gene_id, p.gene_key, p.weight, p.in_panel,
                coalesce(p.gene_key = t.gene_key, false) as is_target,
                case when p.in_panel and not is_target then p.weight end
                    / sum(case when p.in_panel and not is_target then abs(p.weight) end) over ()
                    as share
            from program_genes p join targets t on t.target_key = {found.key}
            where p.program = $program
        )
        select $target_gene as target_gene, $target_gene_id as target_gene_id,
            $program as program, c.context, $evidence as evidence, p.gene, p.gene_id, p.weight,
            e.delta, e.delta_se, p.share * e.delta::double as contribution,
            m.delta as measured_delta, p.share * m.delta::double as measured_contribution,
            p.in_panel, p.is_target, coalesce(s.control_status, 'not_tested') as control_status
        from members p
        cross join (select * from contexts where context_key in {keys}) c
        left join (
            select * from effects_by_target
            where target_key = {found.key} and context_key in {keys}
        ) e on e.context_key = c.context_key and e.gene_key = p.gene_key
        left join (
            select * from measured_by_target
            where target_key = {found.key} and context_key in {keys}
        ) m on m.context_key = c.context_key and m.gene_key = p.gene_key
        left join gates s on s.program = $program and s.context = c.context
            and s.evidence = $evidence
        order by c.context_key, abs(coalesce(contribution, measured_contribution)) desc nulls last,
            p.gene
        """,
        {
            "program": name,
            "target_gene": found.target_gene,
            "target_gene_id": found.target_gene_id,
            "evidence": found.evidence,
        },
        EXPLAIN,
    )
    if frame["delta"].is_null().all() and frame["measured_delta"].is_null().all():
        raise resolve.not_screened(found)
    return frame
