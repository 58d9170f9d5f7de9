"""Rankings of knock-downs per program, context and direction, with rank intervals.

T targets, R resamples, B draw blocks. Rank 1 is best; equal scores are ordered by
``target_gene_id``, so that a ranking is total and does not depend on shards. Predicted and measured
scores are ranked apart.

Rank intervals say how far a rank moves with the noise in the scores, and no more:

- predicted: bootstrap over draw blocks, the *same* blocks for every target, because draw r is
  paired across knock-downs; the spread is widened by ``sqrt(B / (B - 1))``, which a bootstrap of B
  blocks lacks;
- measured: scores redrawn from a normal distribution with their standard error.

``p_value`` and ``fdr`` of predicted rows are NULL until a null has been sampled: generated cells
are free, and a p-value over them would prove nothing. Measured rows carry those of replicates.

Measured rows of the run have no ``source``; those of a table from elsewhere have its name there,
and every source is ranked apart.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray

from knockscreen.artifacts import atomic, read_json
from knockscreen.config import NonNegative, RankConfig, Section
from knockscreen.errors import DataError
from knockscreen.names import Direction, Evidence
from knockscreen.score.candidates import read_candidates
from knockscreen.score.verdicts import NOT_TESTED, label

log = logging.getLogger(__name__)

Floats = NDArray[np.float64]
Ranks = NDArray[np.int32]

SCORES: dict[str, type[pl.DataType]] = {
    "program": pl.String,
    "context": pl.String,
    "target_gene_id": pl.String,
    "target_gene": pl.String,
    "evidence": pl.String,
    "score": pl.Float64,
    "score_sd": pl.Float64,
    "n_genes": pl.Int32,
    "source": pl.String,
}
TESTS: dict[str, type[pl.DataType]] = {"p_value": pl.Float64, "fdr": pl.Float64}
MEASURED_ONLY = (*TESTS, "source")
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
    "source": pl.String,
}


class RankStage(Section):
    """Sections of the configuration that ranking depends on."""

    seed: NonNegative
    rank: RankConfig


@dataclass(frozen=True)
class Scores:
    """Where the scores of a run lie: predicted, one file per shard, and measured."""

    shards: list[Path]
    measured: Path | None
    external: Path | None  # scores of measured tables from elsewhere
    candidates: pl.DataFrame  # screened ones: target_gene_id, target_gene, evidence
    symbols: dict[str, str]  # of every target of the store


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


def rank_scores(rows: pl.DataFrame, resampled: Floats | None, coverage: float) -> pl.DataFrame:
    """Rank the targets of one program, context and kind of evidence, in both directions.

    Parameters
    ----------
    rows
        One row per target, sorted by ``target_gene_id``, with no NULL score.
    resampled
        Scores (R, T) redrawn with their noise; None leaves intervals NULL.
    coverage
        Share of resamples that an interval holds.
    """
    frames = []
    uncertain = rows["score_sd"].is_not_null()
    both = ranks_both_ways(rows["score"].to_numpy())
    resampled_both = (None, None) if resampled is None else ranks_both_ways(resampled)
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
            *(pl.lit(None).alias(name) for name in MEASURED_ONLY if name not in rows.columns),
            pl.lit(NOT_TESTED).alias("control_status"),
            **bounds,
        )
        frames.append(frame.select(*RANKINGS).cast(pl.Schema(RANKINGS)).sort("rank"))
    return pl.concat(frames)


def find_scores(
    programs_dir: Path,
    measured: Path | None,
    candidates: Path,
    store: Path,
    *,
    external: Path | None = None,
) -> Scores:
    """Find the score files of a run: those of the shards that the candidate table names, no others.

    Raises
    ------
    DataError
        A shard's scores are missing, or nothing was screened.
    """
    table = read_candidates(candidates).filter(pl.col("status") == "screened")
    if table.is_empty():
        msg = (
            f"{candidates} has no screened candidate, so there is nothing to rank; check "
            "screen.candidates."
        )
        raise DataError(msg)
    found = {
        int(path.stem): path for path in Path(programs_dir).glob("*.parquet") if path.stem.isdigit()
    }
    wanted = sorted(table["shard"].unique().to_list())
    missing = [str(shard) for shard in wanted if shard not in found]
    if missing:
        msg = (
            f"{programs_dir} lacks the scores of shard {', '.join(missing[:5])} ({len(missing)} "
            f"of {len(wanted)} missing); run score for them."
        )
        raise DataError(msg)
    described = read_json(Path(store) / "store.json")
    return Scores(
        shards=[found[shard] for shard in wanted],
        measured=Path(measured) if measured else None,
        external=Path(external) if external else None,
        candidates=table.select("target_gene_id", "target_gene", "evidence"),
        symbols={t["target_gene_id"]: t["target_gene"] for t in described["targets"]},
    )


def _program_names(scores: Scores) -> list[str]:
    files = [*scores.shards, *(path for path in (scores.measured, scores.external) if path)]
    names = pl.scan_parquet(files, missing_columns="insert", extra_columns="ignore")
    return sorted(names.select(pl.col("program").unique()).collect()["program"].to_list())


def predicted_scores(scores: Scores, program: str) -> pl.DataFrame:
    """Return the predicted scores of one program, sorted by context and target, with ``blocks``.

    Raises
    ------
    DataError
        A screened candidate has no score, or two, in some context.
    """
    rows = pl.scan_parquet(scores.shards).filter(pl.col("program") == program).collect()
    rows = rows.join(scores.candidates, on="target_gene_id").rename({"score_se": "score_sd"})
    rows = rows.with_columns(pl.lit(None, pl.String).alias("source"))
    for (context,), part in rows.group_by("context"):
        if len(part) != len(scores.candidates) or part["target_gene_id"].is_duplicated().any():
            msg = (
                f"program {program} in {context} has {len(part)} scores for "
                f"{len(scores.candidates)} screened candidates; run score again for every shard."
            )
            raise DataError(msg)
    return (
        rows.select(*SCORES, "blocks").cast({"n_genes": pl.Int32}).sort("context", "target_gene_id")
    )


def measured_scores(scores: Scores, program: str) -> pl.DataFrame:
    """Return the measured scores of one program, sorted by context, source and target."""
    schema = pl.Schema(SCORES | TESTS)
    symbols = pl.DataFrame(
        {"target_gene_id": list(scores.symbols), "target_gene": list(scores.symbols.values())}
    )
    frames = [pl.DataFrame(schema=schema)]
    for path in (scores.measured, scores.external):
        if path is None:
            continue
        rows = pl.scan_parquet(path).filter(pl.col("program") == program).collect()
        if path == scores.measured:
            rows = rows.join(symbols, on="target_gene_id")
            rows = rows.with_columns(pl.lit(None, pl.String).alias("source"))
        rows = rows.rename({"standard_error": "score_sd"})
        rows = rows.with_columns(pl.lit(Evidence.MEASURED.value).alias("evidence"))
        frames.append(rows.select(*schema).cast(schema))
    return pl.concat(frames).sort("context", "source", "target_gene_id")


def _resample_predicted(rows: pl.DataFrame, settings: RankConfig, seed: int) -> Floats | None:
    lengths = rows["blocks"].list.len().unique().to_list()
    if lengths[0] < 2:
        return None
    if len(lengths) > 1:
        msg = (
            f"scores have {min(lengths)} to {max(lengths)} draw blocks; run generate and score "
            "again for every shard."
        )
        raise DataError(msg)
    blocks = rows["blocks"].list.to_array(lengths[0]).to_numpy()
    shares = block_shares(lengths[0], settings.resamples, np.random.default_rng([seed, 0]))
    return resample_blocks(rows["score"].to_numpy(), blocks, shares)


def resample_errors(rows: pl.DataFrame, settings: RankConfig, seed: int) -> Floats:
    """Return scores (R, T) redrawn from a normal distribution with their standard error."""
    error = rows["score_sd"].fill_null(0.0).to_numpy()
    noise = np.random.default_rng([seed, 1]).standard_normal((settings.resamples, len(rows)))
    return np.asarray(rows["score"].to_numpy() + error * noise)


def all_scores(scores: Scores) -> Iterator[tuple[str, pl.DataFrame]]:
    """Yield each program with its scores, predicted before measured."""
    for program in _program_names(scores):
        predicted, measured = predicted_scores(scores, program), measured_scores(scores, program)
        yield program, pl.concat([predicted.select(*SCORES), measured.select(*SCORES)])


def rank_program(
    scores: Scores, program: str, settings: RankConfig, seed: int
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the score rows and the ranking rows of one program, predicted before measured."""
    predicted, measured = predicted_scores(scores, program), measured_scores(scores, program)
    contexts = sorted({*predicted["context"], *measured["context"]})
    score_rows, ranking_rows = [], []
    for context in contexts:
        for rows, resample in ((predicted, _resample_predicted), (measured, resample_errors)):
            part = rows.filter(pl.col("context") == context)
            score_rows.append(part.select(*SCORES))
            scored = part.drop_nulls("score")
            for own in scored.partition_by("source", maintain_order=True):
                resampled = resample(own, settings, seed)
                ranking_rows.append(rank_scores(own, resampled, settings.interval))
    empty = pl.DataFrame(schema=RANKINGS)
    return pl.concat(score_rows), pl.concat([empty, *ranking_rows])


def rank_all(
    scores: Scores, settings: RankConfig, seed: int
) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """Yield score rows and ranking rows of one program after another, in order of their names."""
    for program in _program_names(scores):
        yield rank_program(scores, program, settings, seed)


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
) -> Sequence[Path]:
    """Write ``program_scores.parquet`` and ``rankings.parquet``, one program at a time.

    ``gates`` says what the positive controls make of each program; without it none was tested.
    """
    paths = [Path(output_dir) / name for name in ("program_scores.parquet", "rankings.parquet")]
    with atomic(paths[0]) as first, atomic(paths[1]) as second:
        writers: list[pq.ParquetWriter | None] = [None, None]
        try:
            for program_scores, rankings in rank_all(scores, settings, seed):
                frames = program_scores, label(rankings, gates)
                for i, (path, frame) in enumerate(zip((first, second), frames, strict=True)):
                    writers[i] = _append(writers[i], path, frame)
                log.info("ranked %s", frames[0]["program"][0])
        finally:
            for writer in writers:
                if writer is not None:
                    writer.close()
    return paths
