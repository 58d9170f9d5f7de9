"""Scores of several models, trained with different seeds, as one.

M models, T rows (a context and a target each), B draw blocks. The score is the mean over models,
``models`` has that of each; blocks are averaged over models block by block. ``score_sd`` is the
error of that mean: of the draws, and of the models, sd / sqrt(M).
"""

from collections.abc import Sequence

import numpy as np
import polars as pl

from knockscreen.errors import DataError

KEYS = ["context", "target_gene_id"]
AVERAGED = ("score", "magnitude", "specific_toward", "specific_away", "random_z")


def mean_over_models(models: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Return scores of one program averaged over models, with ``models``, a list for each row.

    Parameters
    ----------
    models
        Score rows of each model, sorted by context and target; what they share is of the first.

    Raises
    ------
    DataError
        The models scored different targets or contexts, or have different draw blocks.
    """
    first = models[0]
    for number, other in enumerate(models[1:], start=2):
        if not first.select(KEYS).equals(other.select(KEYS)):
            msg = (
                f"model {number} has scores of other targets or contexts than the first; run "
                "generate and score again for every model."
            )
            raise DataError(msg)
    scores = np.stack([m["score"].fill_null(np.nan).to_numpy() for m in models])  # (M, T)
    of_models = pl.Series("models", np.ascontiguousarray(scores.T)).cast(pl.List(pl.Float64))
    if len(models) == 1:
        return first.with_columns(of_models)
    means = {}
    for column in AVERAGED:
        values = np.stack([m[column].cast(pl.Float64).fill_null(np.nan).to_numpy() for m in models])
        means[column] = pl.Series(column, values.mean(axis=0)).fill_nan(None)
    draws = np.stack([m["score_sd"].fill_null(0.0).to_numpy() for m in models])
    variance = (draws**2).mean(axis=0) / len(models) + scores.var(axis=0, ddof=1) / len(models)
    return first.with_columns(
        *means.values(),
        of_models,
        pl.Series("score_sd", np.sqrt(variance)).fill_nan(None),
        _mean_blocks([m["blocks"] for m in models]),
    )


def _mean_blocks(blocks: Sequence[pl.Series]) -> pl.Series:
    """Return the draw blocks averaged over models; NULL where the first has none."""
    lengths = {n for column in blocks for n in column.drop_nulls().list.len().unique().to_list()}
    if len(lengths) > 1:
        msg = (
            f"the models have {min(lengths)} to {max(lengths)} draw blocks; run generate and score "
            "again for every model."
        )
        raise DataError(msg)
    if not lengths:
        return blocks[0]
    n = lengths.pop()
    known = blocks[0].is_not_null()
    empty = pl.Series([[float("nan")] * n], dtype=pl.List(pl.Float64))
    filled = [column.to_frame("b").select(pl.coalesce("b", pl.lit(empty))) for column in blocks]
    values = np.mean([c["b"].list.to_array(n).to_numpy() for c in filled], axis=0)
    mean = pl.Series("blocks", values).cast(pl.List(pl.Float64))
    return mean.to_frame().select(pl.when(known).then("blocks").alias("blocks"))["blocks"]
