"""Rankings of knock-downs per program, context and direction, with rank intervals.

T targets, R resamples, B draw blocks. Rank 1 is best; equal scores are ordered by
``target_gene_id``, so that a ranking is total and does not depend on shards. Predicted and measured
scores are ranked apart.

Rank intervals say how far a rank moves with the noise in the scores:

- predicted: bootstrap over draw blocks, the *same* blocks for every target, because draw r is
  paired across knock-downs; the spread is widened by ``sqrt(B / (B - 1))``, which a bootstrap of B
  blocks lacks; likewise over the models of several training seeds. On top comes the error that
  the score has from few training cells, as the decoys show it, or that a prediction leaves open
  (:mod:`knockscreen.score.calibration`);
- measured: scores redrawn from a normal distribution with their standard error.

``p_value`` is of decoys, predicted ones of predicted rows and measured ones of measured rows;
``fdr`` is by Benjamini-Hochberg over the trained (or measured) targets of one program, context and
direction; both are NULL without decoys: generated cells are free, and a p-value over them would
prove nothing. Measured rows carry the two-sided test over replicates beside them
(``replicate_p_value``, ``replicate_fdr``).

Measured rows of the run have no ``source``; those of a table from elsewhere have its name there,
and every source is ranked apart.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray

from knockscreen.artifacts import atomic
from knockscreen.config import NonNegative, RankConfig, Section
from knockscreen.errors import DataError
from knockscreen.names import Direction, Evidence
from knockscreen.score.calibration import FEWEST_DECOYS, calibrated, calibrated_measured
from knockscreen.score.concordance import over_contexts
from knockscreen.score.score_files import (
    SCORES,
    Scores,
    decoy_standings,
    measured_decoys,
    measured_scores,
    predicted_scores,
    program_names,
)
from knockscreen.score.verdicts import NOT_TESTED, label

log = logging.getLogger(__name__)

Floats = NDArray[np.float64]
Ranks = NDArray[np.int32]

RANKINGS: dict[str, type[pl.DataType]] = {
    "program": pl.String,
    "context": pl.String,
    "target_gene": pl.String,
    "target_gene_id": pl.String,
    "direction": pl.String,
    "rank": pl.Int32,
    "rank_low": pl.Int32,
    "rank_high": pl.Int32,
    "score": pl.Float64,
    "score_sd": pl.Float64,
    "p_value": pl.Float64,
    "fdr": pl.Float64,
    "evidence": pl.String,
    "control_status": pl.String,
    "n_genes": pl.Int32,
    "n_decoys": pl.Int32,
    "program_specificity_p": pl.Float64,
    "direction_p": pl.Float64,
    "donor_concordance": pl.Float64,
    "donor_sd": pl.Float64,
    "source": pl.String,
    "guide_concordance": pl.Float64,
    "replicate_p_value": pl.Float64,
    "replicate_fdr": pl.Float64,
    "tau": pl.Float64,
}
BY_DIRECTION = ("p_value", "fdr", "program_specificity_p", "direction_p")
"""Columns of a ranking that differ between directions."""
ALIKE = (
    "n_decoys", "donor_concordance", "donor_sd", "source", "guide_concordance",
    "replicate_p_value", "replicate_fdr", "tau",
)  # fmt: skip
"""Columns that a score may lack, the same in both directions."""


class RankStage(Section):
    """Sections of the configuration that ranking depends on."""

    seed: NonNegative
    rank: RankConfig


def ranks_both_ways(values: Floats) -> tuple[Ranks, Ranks]:
    """Return ranks along the last axis toward (1 = highest) and away (1 = lowest).

    Equal values are ranked by position in both. Without ties one order is the other reversed, so
    only ties cost a second sort.

    >>> [ranks.tolist() for ranks in ranks_both_ways(np.array([0.2, 0.5, 0.2]))]
    [[2, 1, 3], [1, 3, 2]]
    """
    order = np.argsort(-values, axis=-1)
    by_rank = np.take_along_axis(values, order, axis=-1)
    if not np.any(by_rank[..., 1:] == by_rank[..., :-1]):
        toward = _ranks(order)
        return toward, np.int32(values.shape[-1] + 1) - toward
    stable = [np.argsort(sign * values, axis=-1, kind="stable") for sign in (-1, 1)]
    return _ranks(stable[0]), _ranks(stable[1])


def _ranks(order: NDArray[np.int64]) -> Ranks:
    ranks = np.empty(order.shape, dtype=np.int32)
    positions = np.arange(1, order.shape[-1] + 1, dtype=np.int32)
    np.put_along_axis(ranks, order, np.broadcast_to(positions, order.shape), axis=-1)
    return ranks


def rank_interval(ranks: Ranks, resampled: Ranks, coverage: float) -> tuple[Ranks, Ranks]:
    """Return central percentile intervals of resampled ranks (R, T) that hold ``ranks``."""
    tail = (1 - coverage) / 2
    low = np.quantile(resampled, tail, axis=0, method="lower").astype(np.int32)
    high = np.quantile(resampled, 1 - tail, axis=0, method="higher").astype(np.int32)
    return np.minimum(low, ranks), np.maximum(high, ranks)


def block_shares(blocks: int, resamples: int, rng: np.random.Generator) -> Floats:
    """Return how often each block is drawn in each bootstrap resample, as shares, shape (R, B)."""
    drawn = rng.integers(blocks, size=(resamples, blocks))
    counts = (drawn[:, :, None] == np.arange(blocks)).sum(axis=1)
    return np.asarray(counts, dtype=np.float64) / blocks


def resample_blocks(scores: Floats, blocks: Floats, shares: Floats) -> Floats:
    """Return bootstrap scores (R, T) from scores (T,) and block scores (T, B).

    The same resample of blocks is applied to every target; spread is widened by sqrt(B / (B - 1)).
    """
    n = blocks.shape[1]
    deviation = blocks - blocks.mean(axis=1, keepdims=True)
    return np.asarray(scores + np.sqrt(n / (n - 1)) * (shares @ deviation.T))


def rank_scores(
    rows: pl.DataFrame,
    resampled: Floats | None,
    coverage: float,
    still: Floats | None = None,
) -> pl.DataFrame:
    """Rank the targets of one program, context and kind of evidence, in both directions.

    Parameters
    ----------
    rows
        One row per target, sorted by ``target_gene_id``, with no NULL score.
    resampled
        Scores (R, T) redrawn with their noise; None leaves intervals NULL.
    coverage
        Share of resamples that an interval holds.
    still
        The same with the predictions of genes never knocked down at rest, as they are or, in every
        third resample, all alike: the intervals of all others are of these. How far each such
        prediction may be off says little of a trained target, whether they hold at all does.
    """
    frames = []
    rows = _with_missing(rows)
    uncertain = rows["score_sd"].is_not_null()
    both = ranks_both_ways(rows["score"].to_numpy())
    resampled_both: tuple[Ranks | None, Ranks | None] = (None, None)
    if resampled is not None:
        toward, away = ranks_both_ways(resampled)
        if still is not None:
            unseen = (rows["evidence"] == Evidence.PREDICTED_UNSEEN.value).to_numpy()
            rest = ranks_both_ways(still)
            toward, away = np.where(unseen, toward, rest[0]), np.where(unseen, away, rest[1])
        resampled_both = toward, away
    directions = (Direction.TOWARD, Direction.AWAY)
    for direction, ranks, moved in zip(directions, both, resampled_both, strict=True):
        bounds = {"rank_low": pl.lit(None), "rank_high": pl.lit(None)}
        if moved is not None:
            low, high = rank_interval(ranks, moved, coverage)
            bounds = {
                "rank_low": pl.when(uncertain).then(pl.Series(low)),
                "rank_high": pl.when(uncertain).then(pl.Series(high)),
            }
        frame = rows.with_columns(
            pl.lit(direction.value).alias("direction"),
            pl.Series("rank", ranks),
            pl.lit(NOT_TESTED).alias("control_status"),
            *(pl.col(f"{name}_{direction.value}").alias(name) for name in BY_DIRECTION),
            **bounds,
        )
        frames.append(frame.select(*RANKINGS).cast(pl.Schema(RANKINGS)).sort("rank"))
    return pl.concat(frames)


def _with_missing(rows: pl.DataFrame) -> pl.DataFrame:
    """Return rows with every column of a ranking that they lack: of both directions, else NULL."""
    missing = []
    for name in BY_DIRECTION:
        both = pl.col(name) if name in rows.columns else pl.lit(None)
        directed = [f"{name}_{direction.value}" for direction in Direction]
        missing += [both.alias(n) for n in directed if n not in rows.columns]
    missing += [pl.lit(None).alias(n) for n in ALIKE if n not in rows.columns]
    return rows.with_columns(missing)


def _resample_predicted(rows: pl.DataFrame, settings: RankConfig, seed: int) -> Floats | None:
    """Return scores (R, T) redrawn over draws and with the error of estimation, if known."""
    lengths = rows["blocks"].list.len().unique().to_list()
    if len(lengths) > 1:
        msg = (
            f"scores have {min(lengths)} to {max(lengths)} draw blocks; run generate and score "
            "again for every shard."
        )
        raise DataError(msg)
    noise = rows["noise_sd"].fill_null(0.0).to_numpy()
    if lengths[0] < 2 and rows["noise_sd"].null_count() == len(rows):
        return None
    score = rows["score"].to_numpy()
    resampled = np.broadcast_to(score, (settings.resamples, len(score)))
    for column, stream in (("blocks", 0), ("models", 3)):
        n = len(rows[column][0])
        if n > 1:
            parts = rows[column].list.to_array(n).to_numpy()
            shares = block_shares(n, settings.resamples, np.random.default_rng([seed, stream]))
            resampled = resampled + resample_blocks(np.zeros(len(score)), parts, shares)
    rng = np.random.default_rng([seed, 2])
    shared = rows["shared_sd"].fill_null(0.0).to_numpy() * rng.standard_normal((len(resampled), 1))
    resampled = resampled + shared + noise * rng.standard_normal(resampled.shape)
    if "rest_at" in rows.columns:  # in every third resample
        rest = rows["rest_at"].fill_null(float("nan")).to_numpy()
        resampled[::3] = np.where(np.isnan(rest), resampled[::3], rest + shared[::3])
    return np.asarray(resampled)


def resample_errors(rows: pl.DataFrame, settings: RankConfig, seed: int) -> Floats:
    """Return scores (R, T) redrawn from a normal distribution with their standard error."""
    error = rows["score_sd"].fill_null(0.0).to_numpy()
    noise = np.random.default_rng([seed, 1]).standard_normal((settings.resamples, len(rows)))
    return np.asarray(rows["score"].to_numpy() + error * noise)


def all_scores(scores: Scores) -> Iterator[tuple[str, pl.DataFrame]]:
    """Yield each program with its scores, predicted before measured."""
    for program in program_names(scores):
        predicted, _ = predicted_scores(scores, program)
        measured = measured_scores(scores, program)
        yield program, pl.concat([predicted.select(*SCORES), measured.select(*SCORES)])


def rank_program(
    scores: Scores,
    program: str,
    settings: RankConfig,
    seed: int,
    nulls: tuple[pl.DataFrame, pl.DataFrame],
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the score rows and the ranking rows of one program, predicted before measured.

    ``nulls`` are the decoys of all programs, predicted (:func:`decoy_standings`) and measured.
    """
    predicted, decoys = predicted_scores(scores, program)
    predicted = over_contexts(calibrated(predicted, decoys, nulls[0]))
    measured = measured_scores(scores, program)
    if not measured.is_empty():
        parts = []
        for own in measured.partition_by("source", maintain_order=True):
            of_run = own["source"].null_count() == len(own)
            every = nulls[1] if of_run else nulls[1].clear()
            tested = calibrated_measured(own, every.filter(program=program), every)
            parts.append(over_contexts(tested))
        measured = pl.concat(parts)
    contexts = sorted({*predicted["context"], *measured["context"]})
    score_rows, ranking_rows = [], []
    for context in contexts:
        for rows, resample in ((predicted, _resample_predicted), (measured, resample_errors)):
            part = rows.filter(pl.col("context") == context)
            score_rows.append(part.select(*SCORES).cast(pl.Schema(SCORES)))
            for own in part.drop_nulls("score").partition_by("source", maintain_order=True):
                resampled, still = resample(own, settings, seed), None
                unseen = pl.col("evidence") == Evidence.PREDICTED_UNSEEN.value
                if own.select(unseen.any() & ~unseen.all()).item():
                    at_rest = own.with_columns(
                        noise_sd=pl.when(~unseen).then("noise_sd"),
                        rest_at=pl.when(unseen).then(pl.col("score").filter(unseen).median()),
                    )
                    still = resample(at_rest, settings, seed)
                ranking_rows.append(rank_scores(own, resampled, settings.interval, still))
    empty = pl.DataFrame(schema=RANKINGS)
    return pl.concat(score_rows), pl.concat([empty, *ranking_rows])


def rank_all(
    scores: Scores, settings: RankConfig, seed: int, beside: Sequence[Scores] = ()
) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """Yield score rows and ranking rows of one program after another, in order of their names."""
    standings = pl.concat([decoy_standings(part) for part in (scores, *beside)])
    nulls = standings, measured_decoys(scores)
    for program in program_names(scores):
        yield rank_program(scores, program, settings, seed, nulls)


def _append(writer: pq.ParquetWriter | None, path: Path, frame: pl.DataFrame) -> pq.ParquetWriter:
    table: Any = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
    if writer is None:
        writer = pq.ParquetWriter(path, table.schema, compression="zstd", store_schema=False)
    writer.write_table(table)
    return writer


def write_rankings(
    scores: Scores,
    output_dir: Path,
    settings: RankConfig,
    seed: int,
    gates: pl.DataFrame | None = None,
    *,
    beside: Sequence[Scores] = (),
) -> Sequence[Path]:
    """Write ``program_scores.parquet`` and ``rankings.parquet``, one program at a time.

    ``gates`` says what the positive controls make of each program; without it none was tested.
    ``beside`` are scores of the same run on other programs, whose decoys count too
    (``program_specificity_p``).
    """
    paths = [Path(output_dir) / name for name in ("program_scores.parquet", "rankings.parquet")]
    decoys = scores.decoys.filter(evidence=Evidence.PREDICTED_SEEN.value).height
    if decoys < FEWEST_DECOYS:
        log.warning(
            "%d decoys, and %d are needed: predicted rows get no p-value and no FDR",
            decoys, FEWEST_DECOYS,
        )  # fmt: skip
    with atomic(paths[0]) as first, atomic(paths[1]) as second:
        writers: list[pq.ParquetWriter | None] = [None, None]
        try:
            for program_scores, rankings in rank_all(scores, settings, seed, beside):
                frames = program_scores, label(rankings, gates)
                for i, (path, frame) in enumerate(zip((first, second), frames, strict=True)):
                    writers[i] = _append(writers[i], path, frame)
                log.info("ranked %s", frames[0]["program"][0])
        finally:
            for writer in writers:
                if writer is not None:
                    writer.close()
    return paths
