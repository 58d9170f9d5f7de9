"""Program scores and rankings of measured tables from elsewhere.

U genes used by programs, P programs, N profiles (a knock-down in a context). The score is that of
:mod:`knockscreen.score.programs` over log2 fold changes: a weighted mean, in log2 units, positive
toward the program, the knock-down's own gene left out. Its standard error takes the genes for
independent, which they are not: it is a lower bound, and no p-value is made of it.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from knockscreen.artifacts import atomic
from knockscreen.config import ExternalConfig, NonNegative, ProgramsConfig, RankConfig, Section
from knockscreen.errors import DataError, suggest
from knockscreen.gene_names import GeneNames
from knockscreen.names import Evidence
from knockscreen.score.external import External, open_external
from knockscreen.score.programs import ProgramMatrix
from knockscreen.score.rank import RANKINGS, rank_scores, resample_errors
from knockscreen.score.score_files import SCORES

Floats = NDArray[np.float64]
PROFILE = ["target_gene_id", "target_gene", "context"]
SCORE_SCHEMA: dict[str, type[pl.DataType]] = {
    "program": pl.String,
    "context": pl.String,
    "target_gene_id": pl.String,
    "target_gene": pl.String,
    "source": pl.String,
    "score": pl.Float64,
    "standard_error": pl.Float64,
    "n_genes": pl.Int32,
    "p_value": pl.Float64,
    "fdr": pl.Float64,
}
EFFECT_SCHEMA: dict[str, type[pl.DataType]] = {
    "source": pl.String,
    "target_gene_id": pl.String,
    "target_gene": pl.String,
    "context": pl.String,
    "gene_id": pl.String,
    "log2_fold_change": pl.Float32,
    "log2_fold_change_se": pl.Float32,
    "p_value": pl.Float64,
    "fdr": pl.Float64,
}


class ExternalStage(Section):
    """Sections of the configuration that external tables depend on."""

    seed: NonNegative
    programs: ProgramsConfig
    rank: RankConfig
    external: list[ExternalConfig]


def score_profiles(
    profiles: pl.DataFrame,
    rows: pl.DataFrame,
    genes: pl.DataFrame,
    programs: ProgramMatrix,
    settings: ExternalConfig,
    *,
    min_genes: int = 1,
) -> pl.DataFrame:
    """Return the program scores of whole profiles, in the columns of ``SCORE_SCHEMA``.

    Parameters
    ----------
    profiles
        target_gene_id, target_gene, context: the knock-downs to score, once each.
    rows
        target_gene, target_gene_id, context, gene_id, log2_fold_change, standard_error: one row
        per measured gene.
    genes
        gene, gene_id: names of the measured genes, to know a knock-down's own.
    min_genes
        Program genes that a profile needs; with fewer its score is missing.
    """
    profiles = profiles.select(PROFILE)
    used = programs.columns
    columns = pl.DataFrame({"gene_id": [programs.gene_ids[i] for i in used]}).with_row_index("g")
    at = rows.join(profiles.with_row_index("n"), on=PROFILE).join(columns, on="gene_id")
    n, g = at["n"].to_numpy(), at["g"].to_numpy()
    effect, error = (np.full((len(profiles), len(used)), np.nan) for _ in range(2))
    effect[n, g], error[n, g] = (at[c].to_numpy() for c in ("log2_fold_change", "standard_error"))
    if settings.absent == "zero":
        effect = np.nan_to_num(effect, nan=0.0)
    column = {gene_id: i for i, gene_id in enumerate(columns["gene_id"])}
    for i, own in enumerate(own_genes(profiles, genes)):
        if own in column:
            effect[i, column[own]] = np.nan
    score, spread, n_genes = _project(effect, error, programs.weights[:, used])
    enough = n_genes >= min_genes
    long = profiles.join(pl.DataFrame({"program": programs.names}), how="cross")
    return long.with_columns(
        pl.lit(settings.source).alias("source"),
        pl.Series("score", np.where(enough, score, np.nan).ravel()).fill_nan(None),
        pl.Series("standard_error", np.where(enough, spread, np.nan).ravel()).fill_nan(None),
        pl.Series("n_genes", n_genes.ravel()),
        pl.lit(None).alias("p_value"),
        pl.lit(None).alias("fdr"),
    ).select(pl.col(c).cast(t) for c, t in SCORE_SCHEMA.items())


def own_genes(profiles: pl.DataFrame, genes: pl.DataFrame) -> pl.Series:
    """Return the gene_id of each knock-down's own gene, by its id, else its symbol; null: none.

    >>> genes = pl.DataFrame({"gene": ["STAT6"], "gene_id": ["ENSG1"]})
    >>> own_genes(pl.DataFrame({"target_gene": ["STAT6"], "target_gene_id": ["S"]}), genes).item()
    'ENSG1'
    """
    known, keys = GeneNames(genes["gene_id"], genes["gene"]), genes["gene_id"]
    names = ["target_gene_id", "target_gene"]
    targets = profiles.select(names).unique()
    at = pl.Series([known.find(*row) for row in targets.iter_rows()], dtype=pl.UInt32)
    found = targets.with_columns(keys.gather(at).alias("own"))
    return profiles.join(found, on=names, how="left", nulls_equal=True, maintain_order="left")[
        "own"
    ]


def _project(effect: Floats, error: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """Return scores, standard errors and numbers of genes (N, P) from effects (N, U); NaN: none."""
    there = np.isfinite(effect)
    total = there @ np.abs(weights).T
    with np.errstate(divide="ignore", invalid="ignore"):
        score = np.nan_to_num(effect) @ weights.T / np.where(total > 0, total, np.nan)
        squared = np.where(there, error, 0.0) ** 2 @ (weights**2).T  # NaN where one is not known
        return score, np.sqrt(squared) / total, there @ (weights != 0).T.astype(np.float64)


def named_contexts(rows: pl.DataFrame, settings: ExternalConfig) -> pl.DataFrame:
    """Return rows with ``context`` for ``condition``; conditions that no context is for are out."""
    pairs = list(settings.contexts.items())
    schema = dict.fromkeys(("condition", "context"), pl.String)
    return rows.join(pl.DataFrame(pairs, schema=schema, orient="row"), on="condition")


def write_external(
    tables: Iterable[ExternalConfig],
    folder: Path,
    programs: ProgramMatrix,
    panel: pl.DataFrame,
    contexts: Iterable[str],
    *,
    min_genes: int,
) -> list[Path]:
    """Write ``effects.parquet`` and ``programs.parquet`` of all tables on the genes of a run.

    Parameters
    ----------
    panel
        gene_id, gene, in_panel: the run's genes; effects are kept on all, scores use the panel.
    contexts
        Names of the run's contexts, pooled ones too.

    Raises
    ------
    DataError
        A table is not what it should be, maps to a context that the run has not, or shares no gene
        with it.
    """
    known = sorted(contexts)
    effects, scores = [pl.DataFrame(schema=EFFECT_SCHEMA)], [pl.DataFrame(schema=SCORE_SCHEMA)]
    for settings in tables:
        for context in settings.contexts.values():
            if context not in known:
                msg = (
                    f"external table '{settings.source}' maps to context '{context}', which the "
                    f"run has not{suggest(context, known)}."
                )
                raise DataError(msg)
        opened, n_effects = open_external(settings), 0
        for profiles, rows in opened.chunks(opened.genes["gene_id"].to_list()):
            own = _on_run(named_contexts(rows, settings), panel)
            knockdowns = _on_run(named_contexts(profiles, settings), panel)
            named = own.rename({"standard_error": "log2_fold_change_se"})
            named = named.with_columns(pl.lit(settings.source).alias("source"))
            effects.append(named.select(pl.col(c).cast(t) for c, t in EFFECT_SCHEMA.items()))
            found = score_profiles(knockdowns, own, panel, programs, settings, min_genes=min_genes)
            scores.append(found)
            n_effects += len(own)
        if not n_effects:
            msg = (
                f"external table '{settings.source}' has no gene of the run in a mapped condition; "
                "check its genes and contexts."
            )
            raise DataError(msg)
    paths = [Path(folder) / "effects.parquet", Path(folder) / "programs.parquet"]
    with atomic(paths[0]) as first, atomic(paths[1]) as second:
        pl.concat(effects).sort("source", "context", "target_gene_id", "gene_id").write_parquet(
            first
        )
        pl.concat(scores).sort("source", "program", "context", "target_gene_id").write_parquet(
            second
        )
    return paths


def _on_run(rows: pl.DataFrame, panel: pl.DataFrame) -> pl.DataFrame:
    """Return rows with the run's ids: null for a gene, the table's for a knock-down it has not.

    Raises
    ------
    DataError
        Two rows would become one, as the table has a gene of the run under two names.
    """
    keys = ["target_gene_id", "context"]
    named = rows.with_columns(
        pl.coalesce(own_genes(rows, panel), "target_gene_id").alias("target_gene_id")
    )
    if "gene" in rows.columns:
        genes = rows.select(target_gene="gene", target_gene_id="gene_id")
        named = named.with_columns(own_genes(genes, panel).alias("gene_id"))
        named = named.drop_nulls("gene_id")
        keys.append("gene_id")
    twice = named.filter(pl.struct(keys).is_duplicated())
    if len(twice):
        what = ", ".join(str(value) for value in twice.select(keys).row(0))
        msg = f"an external table has {what} of the run under two names; keep one row of each."
        raise DataError(msg)
    return named


def rank_external_scores(
    table: External, programs: ProgramMatrix, *, min_genes: int = 1
) -> pl.DataFrame:
    """Return the program scores of one table without any run, in the columns of ``SCORE_SCHEMA``.

    Contexts are those that ``table.settings.contexts`` names, or the conditions themselves.
    """
    config = table.settings
    if not config.contexts:
        names = {condition: condition for condition in table.conditions}
        config = config.model_copy(update={"contexts": names})
    used = [programs.gene_ids[i] for i in programs.columns]
    frames = [
        score_profiles(
            named_contexts(profiles, config), named_contexts(rows, config), table.genes,
            programs, config, min_genes=min_genes,
        )
        for profiles, rows in table.chunks(used)
    ]  # fmt: skip
    return pl.concat(frames).sort("program", "context", "target_gene_id")


def rank_external(
    scores: pl.DataFrame, settings: RankConfig, seed: int
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the score rows and the rankings of :func:`rank_external_scores`."""
    scores = scores.rename({"standard_error": "score_sd"})
    scores = scores.with_columns(
        pl.lit(Evidence.MEASURED.value).alias("evidence"),
        pl.lit(None, pl.Float64).alias("magnitude"),
    )
    scores = scores.select(*SCORES)
    rankings = [pl.DataFrame(schema=RANKINGS)]
    for part in scores.drop_nulls("score").partition_by("program", "context", maintain_order=True):
        resampled = resample_errors(part, settings, seed)
        rankings.append(rank_scores(part, resampled, settings.interval))
    return scores, pl.concat(rankings)
