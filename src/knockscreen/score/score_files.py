"""The score files of a run, read program by program: predicted (one or several models), measured.

Decoys come with the predicted scores and apart from the candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from knockscreen.artifacts import read_json
from knockscreen.errors import DataError
from knockscreen.names import Evidence
from knockscreen.score.candidates import read_candidates
from knockscreen.score.several_models import mean_over_models
from knockscreen.score.statistics import stretched

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
    "magnitude": pl.Float64,
}
MEASURED: dict[str, type[pl.DataType]] = dict.fromkeys(
    ("replicate_p_value", "replicate_fdr", "own_error", "control_error", "guide_concordance",
     "specific_toward", "specific_away", "random_z"),
    pl.Float64,
)  # fmt: skip
"""Further columns of measured scores; of tables from elsewhere they are NULL."""
TESTS = {"p_value": "replicate_p_value", "fdr": "replicate_fdr"}
"""What rankings call the test over replicates: their own p-values are against decoys."""
BESIDE = ("specific_toward", "specific_away", "random_z", "control_error", "blocks", "models")
"""Columns of a shard's scores beside those that are kept."""
CALIBRATED = ("magnitude", "specific_toward", "specific_away", "random_z", "control_error")
"""Columns that scores of stored effects (new programs) lack."""


@dataclass(frozen=True)
class Scores:
    """Where the scores of a run lie: predicted, one file per shard, and measured."""

    shards: list[Path]
    measured: Path | None
    measured_decoys: Path | None
    external: Path | None  # scores of measured tables from elsewhere
    candidates: pl.DataFrame  # screened ones: target_gene_id, target_gene, evidence
    decoys: pl.DataFrame  # target_gene_id, target_gene, evidence they are the null of
    symbols: dict[str, str]  # of every target of the store
    replicates: tuple[list[Path], ...] = ()  # shards of further models


def find_scores(
    programs_dir: Path,
    measured: Path | None,
    candidates: Path,
    store: Path,
    replicates: Sequence[Path] = (),
    *,
    external: Path | None = None,
    measured_decoys: Path | None = None,
) -> Scores:
    """Find the score files of a run: those of the shards that the candidate table names, no others.

    ``replicates`` are the folders of further models, with the same shards.

    Raises
    ------
    DataError
        A shard's scores are missing, or nothing was screened.
    """
    listed = read_candidates(candidates)
    table = listed.filter(pl.col("status") == "screened")
    decoys = listed.filter(pl.col("status") == "decoy")
    if table.is_empty():
        msg = (
            f"{candidates} has no screened candidate, so there is nothing to rank; check "
            "screen.candidates."
        )
        raise DataError(msg)
    wanted = sorted({*table["shard"], *decoys["shard"]})
    described = read_json(Path(store) / "store.json")
    return Scores(
        shards=_shard_files(Path(programs_dir), wanted),
        measured=Path(measured) if measured else None,
        measured_decoys=Path(measured_decoys) if measured_decoys else None,
        external=Path(external) if external else None,
        candidates=table.select("target_gene_id", "target_gene", "evidence"),
        decoys=decoys.select("target_gene_id", "target_gene", "evidence"),
        symbols={t["target_gene_id"]: t["target_gene"] for t in described["targets"]},
        replicates=tuple(_shard_files(Path(folder), wanted) for folder in replicates),
    )


def _shard_files(folder: Path, wanted: list[int]) -> list[Path]:
    found = {int(path.stem): path for path in folder.glob("*.parquet") if path.stem.isdigit()}
    missing = [str(shard) for shard in wanted if shard not in found]
    if missing:
        msg = (
            f"{folder} lacks the scores of shard {', '.join(missing[:5])} ({len(missing)} "
            f"of {len(wanted)} missing); run score for them."
        )
        raise DataError(msg)
    return [found[shard] for shard in wanted]


def program_names(scores: Scores) -> list[str]:
    """Return the programs that any file has scores of, in order."""
    files = [*scores.shards, *(path for path in (scores.measured, scores.external) if path)]
    names = pl.scan_parquet(files, missing_columns="insert", extra_columns="ignore")
    return sorted(names.select(pl.col("program").unique()).collect()["program"].to_list())


def _of_program(shards: list[Path], program: str) -> pl.DataFrame:
    rows = pl.scan_parquet(shards).filter(pl.col("program") == program).collect()
    rows = rows.rename({"score_se": "score_sd"}).cast({"n_genes": pl.Int32})
    rows = rows.with_columns(
        pl.lit(None, pl.String).alias("source"),
        *(pl.lit(None, pl.Float64).alias(n) for n in CALIBRATED if n not in rows.columns),
        _whole(rows["blocks"]),
    )
    return rows.sort("context", "target_gene_id")


def _whole(blocks: pl.Series) -> pl.Series:
    """Return lists of blocks with those not drawn (NaN) made up for: the same standard error."""
    lengths = blocks.drop_nulls().list.len().unique().to_list()
    if len(lengths) != 1 or not blocks.explode().is_nan().any():
        return blocks
    n = lengths[0]
    known = blocks.is_not_null()
    values = np.full((len(blocks), n), np.nan)
    values[known.to_numpy()] = blocks.drop_nulls().list.to_array(n).to_numpy()
    whole = pl.DataFrame({"blocks": stretched(values)}).cast(pl.List(pl.Float64))
    return whole.select(pl.when(known).then("blocks").alias("blocks"))["blocks"]


def predicted_scores(scores: Scores, program: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the predicted scores of one program, of candidates and of decoys, with ``blocks``.

    Sorted by context and target.

    Raises
    ------
    DataError
        A candidate or a decoy has no score, or two, in some context.
    """
    rows = mean_over_models([_of_program(p, program) for p in (scores.shards, *scores.replicates)])
    parts = []
    for listed, what in ((scores.candidates, "screened candidates"), (scores.decoys, "decoys")):
        found = rows.join(listed, on="target_gene_id")
        for (context,), part in found.group_by("context"):
            if len(part) != len(listed) or part["target_gene_id"].is_duplicated().any():
                msg = (
                    f"program {program} in {context} has {len(part)} scores for {len(listed)} "
                    f"{what}; run score again for every shard."
                )
                raise DataError(msg)
        parts.append(found.select(*SCORES, *BESIDE).sort("context", "target_gene_id"))
    return parts[0], parts[1]


def decoy_standings(scores: Scores) -> pl.DataFrame:
    """Return context, evidence and ``random_z`` of the decoys of all programs.

    How far each score of a decoy stands out of those of random programs; the mean over models.
    """
    keys = ["context", "target_gene_id", "program"]
    decoys = scores.decoys.select("target_gene_id", "evidence").lazy()
    models = []
    for shards in (scores.shards, *scores.replicates):
        rows = pl.scan_parquet(shards).join(decoys, on="target_gene_id")
        if "random_z" not in rows.collect_schema():
            return pl.DataFrame(
                schema={"context": pl.String, "evidence": pl.String, "random_z": float}
            )
        models.append(rows.select(*keys, "evidence", "random_z"))
    mean = pl.concat(models).group_by(*keys, "evidence").agg(pl.col("random_z").mean())
    return mean.sort(keys).select("context", "evidence", "random_z").collect()


def measured_scores(scores: Scores, program: str) -> pl.DataFrame:
    """Return the measured scores of one program, sorted by context, source and target."""
    schema = pl.Schema(SCORES | MEASURED)
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
        rows = rows.rename({"standard_error": "score_sd"} | TESTS)
        evidence = pl.lit(Evidence.MEASURED.value).alias("evidence")
        rows = rows.with_columns(evidence)
        missing = [pl.lit(None).alias(name) for name in schema if name not in rows.columns]
        frames.append(rows.with_columns(*missing).select(*schema).cast(schema))
    return pl.concat(frames).sort("context", "source", "target_gene_id")


def measured_decoys(scores: Scores) -> pl.DataFrame:
    """Return the scores of the measured decoys of all programs, with their ``own_error``."""
    schema = dict.fromkeys(("program", "context"), pl.String) | dict.fromkeys(
        ("score", "own_error", "random_z"), pl.Float64
    )
    if scores.measured_decoys is None:
        return pl.DataFrame(schema=schema)
    rows = pl.scan_parquet(scores.measured_decoys)
    missing = [pl.lit(None, pl.Float64).alias(n) for n in schema if n not in rows.collect_schema()]
    return rows.with_columns(missing).select(*schema).collect()
