"""What other contexts say of a score: do donors agree, is it in one context alone.

Rows are the scores of one program and one kind of evidence, one for each context and target.
"""

import polars as pl

from knockscreen.names import parse_context

KEYS = ["context", "target_gene_id"]


def over_contexts(rows: pl.DataFrame) -> pl.DataFrame:
    """Return scores of one program with ``donor_concordance``, ``donor_sd`` and ``tau``."""
    return with_tau(with_concordance(rows))


def with_tau(rows: pl.DataFrame) -> pl.DataFrame:
    """Return scores with ``tau``: how far an effect is confined to few contexts.

    Over the contexts with as many factors as the row's, of the scores x with its sign (others are
    0): ``sum(1 - x / max x) / (n - 1)`` (Yanai 2005, Bioinformatics). 0: alike in all; 1: in one
    alone. NULL where there is one such context, or the score is 0 or missing.
    """
    names = rows["context"].unique()
    level = pl.col("context").replace_strict(
        names, [len(parse_context(name)) for name in names], return_dtype=pl.Int64
    )
    group = ["target_gene_id", "level"]
    tau = pl.lit(None, pl.Float64)
    for sign in (1, -1):
        x = (sign * pl.col("score")).clip(lower_bound=0.0)
        total, most, n = (found.over(group) for found in (x.sum(), x.max(), x.count()))
        here = (sign * pl.col("score") > 0) & (n > 1)
        tau = pl.when(here).then((n - total / most) / (n - 1)).otherwise(tau)
    return rows.with_columns(level.alias("level")).with_columns(tau.alias("tau")).drop("level")


def with_concordance(rows: pl.DataFrame) -> pl.DataFrame:
    """Return scores of one program with ``donor_concordance`` and ``donor_sd`` of pooled rows.

    They are the share of the separate contexts behind a pooled score that have its sign, and the
    standard deviation of their scores; NULL in separate contexts, and with fewer than two behind.
    """
    names = rows["context"].unique().to_list()
    factors = max((len(parse_context(name)) for name in names), default=0)
    separate = [name for name in names if len(parse_context(name)) == factors]
    of = [
        (name, level)
        for name in names
        if len(parse_context(name)) < factors
        for level in separate
        if parse_context(name).items() <= parse_context(level).items()
    ]
    pairs = pl.DataFrame(of, schema={"context": pl.String, "level": pl.String}, orient="row")
    levels = rows.select(pl.col("context").alias("level"), "target_gene_id", at_level="score")
    joined = rows.select(*KEYS, "score").join(pairs, on="context").join(
        levels.drop_nulls(), on=["level", "target_gene_id"]
    )  # fmt: skip
    agrees = pl.col("at_level").sign() == pl.col("score").sign()
    found = joined.group_by(KEYS).agg(
        pl.when(pl.len() > 1).then(agrees.mean()).alias("donor_concordance"),
        pl.col("at_level").std().alias("donor_sd"),
    )
    return rows.join(found, on=KEYS, how="left", maintain_order="left")
