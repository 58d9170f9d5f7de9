"""What is known of each row of a ranking beside its score, and what speaks against it.

The view ``ranking_cards`` says the same for SQL. Here only the rows that are shown are looked up,
by the keys that the tables are sorted by.
"""

import duckdb
import polars as pl

from knockscreen.store import resolve
from knockscreen.store.connection import table
from knockscreen.store.frames import Schema

TOP_GENES = 3


def with_cards(
    connection: duckdb.DuckDBPyConnection,
    rows: pl.DataFrame,
    where: list[resolve.Context],
    schema: Schema,
) -> pl.DataFrame:
    """Return rankings of one program in the columns of ``schema``, with what is known of each row.

    Parameters
    ----------
    rows
        Rows of table rankings, of one program, measured or predicted.
    where
        The contexts they are of.
    """
    ids = rows["target_gene_id"].unique()
    found = connection.sql(
        "select target_key from targets where list_contains($ids, target_gene_id)",
        params={"ids": ids.to_list()},
    ).fetchall()
    targets = f"({', '.join(str(key) for (key,) in found)})"
    contexts = f"({', '.join(str(context.key) for context in where)})"
    connection.register("shown", rows)
    try:
        cards = _cards(connection, targets, contexts)
    finally:
        connection.unregister("shown")
    source = rows["source"][0]
    effects = "measured_by_target" if rows["evidence"][0] == "measured" else "effects_by_target"
    if source is not None:
        effects = "(select *, log2_fold_change as delta from external_by_target)"
    genes = _top_genes(connection, effects, rows["program"][0], targets, contexts, source=source)
    frame = cards.join(genes, on=["context", "target_gene_id"], how="left", maintain_order="left")
    return frame.select(pl.col(name).cast(dtype) for name, dtype in schema.items())


def _cards(connection: duckdb.DuckDBPyConnection, targets: str, contexts: str) -> pl.DataFrame:
    return table(
        connection,
        f"""
        with scores as (
            select context, target_key, evidence, source,
                max(score) filter (program = 'activation') as activation,
                max(score) filter (program = 'proliferation') as proliferation
            from program_scores
            where target_key in {targets} and program in ('activation', 'proliferation')
            group by all
        ), cells as (
            select context, target_key, max(n_cells) as n_cells
            from program_scores
            where target_key in {targets} and evidence = 'measured' and source is null
            group by all
        )
        select r.*, g.control_reason, coalesce(k.n_cells, n.n_cells) as n_cells, t.n_guides,
            t.knockdown_status, t.on_target_log2_fold_change, t.baseline_expression,
            t.known_regulator, nullif(to_json(t.annotations)::varchar, 'null') as annotations,
            e.effect_size, e.n_up, e.n_down,
            s.activation as activation_score, s.proliferation as proliferation_score,
            caveats(r.direction, r.fdr, r.p_value * (r.n_decoys + 1) < 1.5, r.evidence,
                r.control_status, t.knockdown_status,
                t.objection, coalesce(k.n_cells, n.n_cells), r.score,
                case when r.program <> 'activation' then s.activation end,
                case when r.program <> 'proliferation' then s.proliferation end) as caveat
        from (select *, row_number() over () as position from shown) r
        join targets t on t.target_gene_id = r.target_gene_id
        join contexts c on c.context = r.context
        left join gates g on g.program = r.program and g.context = r.context
            and g.evidence = r.evidence and r.source is null
        left join (
            select * from effect_sizes where target_key in {targets} and context_key in {contexts}
        ) e on e.context_key = c.context_key and e.target_key = t.target_key
            and e.is_measured = (r.evidence = 'measured') and r.source is null
        left join (select * from target_contexts where target_key in {targets}) k
            on k.target_key = t.target_key and k.context = r.context and r.source is null
        left join cells n on n.target_key = t.target_key and n.context = r.context
            and r.source is null
        left join scores s on s.target_key = t.target_key and s.context = r.context
            and s.evidence = r.evidence and s.source is not distinct from r.source
        order by position
        """,
    )


def _top_genes(
    connection: duckdb.DuckDBPyConnection,
    effects: str,
    program: str,
    targets: str,
    contexts: str,
    *,
    source: str | None,
) -> pl.DataFrame:
    """Return the genes that carry most of each score, the largest part first.

    Genes that pull the other way than the score are none of them.
    """
    return table(
        connection,
        f"""
        select c.context, t.target_gene_id,
            string_agg(g.gene, ', ' order by e.size desc, e.gene_key) as top_genes
        from (
            select context_key, target_key, gene_key, part * sign(whole) as size
            from (
                select e.context_key, e.target_key, e.gene_key, p.weight * e.delta as part,
                    sum(part) over (partition by e.context_key, e.target_key) as whole
                from {effects} e
                join targets t using (target_key)
                join program_genes p on p.gene_key = e.gene_key
                where p.program = $program and p.in_panel and e.target_key in {targets}
                    and e.context_key in {contexts} and e.gene_key is distinct from t.gene_key
                    {"and e.source = $source" if source else ""}
            )
            where size > 0
            qualify row_number() over (
                partition by context_key, target_key order by size desc, gene_key
            ) <= {TOP_GENES}
        ) e
        join contexts c using (context_key)
        join targets t using (target_key)
        join genes g on g.gene_key = e.gene_key
        group by all
        """,
        {"program": program} | ({"source": source} if source else {}),
    )
