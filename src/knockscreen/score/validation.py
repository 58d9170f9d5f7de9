"""A published screen beside scores of knock-downs: joined by gene, and judged.

The scores come from a run, from a measured table of other people's, or from any table with one
number per gene; each is a frame of target_gene, target_gene_id, value.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from knockscreen.errors import DataError
from knockscreen.gene_names import GeneNames
from knockscreen.score.agreement import Predictor, agreement
from knockscreen.score.external import External
from knockscreen.score.external_scores import own_genes, rank_external_scores
from knockscreen.score.programs import ProgramMatrix
from knockscreen.score.published import (
    ANY_GENE,
    find_column,
    gene_names,
    keep_rows,
    need_column,
    numbers,
    read_published,
)

log = logging.getLogger(__name__)

LEAST_GENES = 10
SIZES = ("n_de_genes", "effect_magnitude")
FDR = 0.1
"""Adjusted p-value of an external table below which a gene counts as differentially expressed."""


def read_values(
    path: Path,
    column: str,
    *,
    gene: str | None = None,
    where: Mapping[str, str] | None = None,
) -> pl.DataFrame:
    """Return one number per gene of a table, as target_gene, target_gene_id, value.

    Raises
    ------
    DataError
        A column is missing, a value is no finite number, or a gene stands twice.
    """
    table = keep_rows(read_published(path), where or {}, path)
    find_column(table.columns, column, (), "the value", path)
    names = gene_names(table, need_column(table.columns, gene, ANY_GENE, "the gene", path), path)
    twice = names.filter(names.is_duplicated())
    if len(twice):
        msg = (
            f"gene {twice[0]} stands {int((names == twice[0]).sum())} times in '{path}'; choose "
            "one row of each with a condition."
        )
        raise DataError(msg)
    values = numbers(table, column, path)
    frame = pl.DataFrame({"target_gene": names, "target_gene_id": names, "value": values})
    return frame.drop_nulls("value")


def external_values(
    table: External, condition: str, *, gene: str | None, programs: ProgramMatrix | None
) -> tuple[pl.DataFrame, dict[str, pl.DataFrame]]:
    """Return the score of each knock-down of a measured table, and the sizes to beat.

    The score is the log2 fold change of ``gene``, or the score of the one program. Sizes:
    ``n_de_genes`` (fdr below 0.1; without fdr, genes listed) and ``effect_magnitude``.

    Raises
    ------
    DataError
        The table has no such condition or gene.
    """
    if condition not in table.conditions:
        msg = (
            f"'{table.settings.file}' has no condition '{condition}'; it has "
            f"{', '.join(table.conditions[:5])}."
        )
        raise DataError(msg)
    mine = own_genes(pl.DataFrame({"target_gene": [gene or ""], "target_gene_id": ""}), table.genes)
    is_gene = pl.col("gene_id").is_in(mine.implode())
    if gene is not None and mine.item() is None:
        msg = f"'{table.settings.file}' measures no gene '{gene}', or several."
        raise DataError(msg)
    found, sizes = [], []
    for profiles, rows in table.chunks(table.genes["gene_id"].to_list()):
        here = profiles.filter(condition=condition)
        here = here.with_columns(own_genes(here, table.genes).alias("own"))
        others = rows.filter(condition=condition).join(
            here.select("target_gene_id", "own"), on="target_gene_id"
        )
        others = others.filter(pl.col("gene_id").ne_missing(pl.col("own")))
        sizes.append(_sizes(here, others))
        if gene is not None:
            left_out = pl.col("own").is_in(mine.implode()).fill_null(value=False)
            of = here.filter(~left_out).join(
                others.filter(is_gene).select("target_gene_id", value="log2_fold_change"),
                on="target_gene_id", how="left",
            )  # fmt: skip
            if table.settings.absent == "zero":
                of = of.with_columns(pl.col("value").fill_null(0.0))
            found.append(of)
    if programs is not None:
        scored = rank_external_scores(table, programs).filter(context=condition)
        found = [scored.rename({"score": "value"})]
    columns = ("target_gene", "target_gene_id")
    both = pl.concat(sizes)
    baselines = {name: both.select(*columns, value=name) for name in SIZES}
    return pl.concat(found).select(*columns, "value").drop_nulls("value"), baselines


def _sizes(here: pl.DataFrame, others: pl.DataFrame) -> pl.DataFrame:
    """Return the sizes of the knock-downs ``here`` from their rows of other genes; 0: no row."""
    is_de = (
        pl.when(pl.col("fdr").is_null().all()).then(pl.len()).otherwise((pl.col("fdr") < FDR).sum())
    )
    by_size = others.group_by("target_gene_id").agg(
        effect_magnitude=pl.col("log2_fold_change").pow(2).sum().sqrt(),
        n_de_genes=is_de.cast(pl.Float64),
    )
    size = here.join(by_size, on="target_gene_id", how="left")
    return size.with_columns(pl.col(*SIZES).fill_null(0.0))


def join_by_gene(screen: pl.DataFrame, values: pl.DataFrame, name: str) -> pl.DataFrame:
    """Return the genes of a screen that have a value, by Ensembl id or symbol in any case."""
    values = values.drop_nulls("value")
    known = GeneNames(values["target_gene_id"], values["target_gene"])
    at = pl.Series([known.find(gene) for gene in screen["gene"]], dtype=pl.UInt32)
    return screen.with_columns(values["value"].gather(at).alias(name)).drop_nulls(name)


def compare_with_screen(
    screen: pl.DataFrame,
    score: tuple[str, pl.DataFrame],
    baselines: Mapping[str, pl.DataFrame],
    *,
    fdr: float,
    resamples: int,
    seed: int,
) -> pl.DataFrame:
    """Return the agreement of a score with a screen, and of baselines on the same genes.

    Parameters
    ----------
    screen
        gene, effect (positive: the knock-down raises the phenotype), fdr.
    score
        Its name and one signed value per knock-down.
    baselines
        Name -> one size per knock-down.
    fdr
        Level below which the screen calls a gene a hit.

    Raises
    ------
    DataError
        Fewer than ten genes are in all of them.
    """
    joined = join_by_gene(screen, score[1], score[0])
    n_scored = len(joined)
    for name, values in baselines.items():
        joined = join_by_gene(joined, values, name)
    if len(joined) < LEAST_GENES:
        names = ", ".join(score[1]["target_gene"].head(3).to_list())
        msg = (
            f"{len(joined)} genes are in the screen, in the scores and in every baseline "
            f"({n_scored} in the first two), and {LEAST_GENES} are needed; the screen has genes "
            f"such as {', '.join(screen['gene'].head(3))}, the scores such as {names}."
        )
        raise DataError(msg)
    if len(joined) < n_scored:
        log.warning(
            "%d of the %d genes in the screen and in the scores are left out: no %s of them",
            n_scored - len(joined), n_scored, " or no ".join(baselines),
        )  # fmt: skip
    predictors = [Predictor(score[0], joined[score[0]].to_numpy(), signed=True, is_baseline=False)]
    predictors += [
        Predictor(name, joined[name].to_numpy(), signed=False, is_baseline=True)
        for name in baselines
    ]
    is_hit = (joined["fdr"] < fdr).to_numpy()
    effect = joined["effect"].to_numpy()
    return agreement(predictors, effect, is_hit, resamples=resamples, seed=seed)
