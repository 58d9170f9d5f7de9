"""Does a ranking tell this program from any genes, and a strong knock-down from an aimed one.

    python benchmarks/calibration.py network --seeds 1
    python benchmarks/specificity.py results/calibration/network1 --programs 20

on the generated knock-downs of a simulated screen (trained targets, pooled contexts):

programs    of the shipped programs and of as many random gene sets: rows called (FDR <= 0.1), rows
            called and specific (program_specificity_p <= 0.05), and the share of all rows
            that are specific by chance (p <= 0.05)
general     a knock-down twice as strong as the strongest, whose effect is of no direction: the mean
            effect of all trained targets and noise with the correlation of genes in control cells.
            Over 200 of them: how often it is first toward the program, and how often it also
            passes direction_p <= 0.05 or program_specificity_p <= 0.05 there
"""

import argparse
import json
from pathlib import Path

import numpy as np
import polars as pl

from knockscreen.config import read_values
from knockscreen.names import is_decoy
from knockscreen.score.calibration import calibrated, direction_p_value
from knockscreen.score.candidates import read_candidates
from knockscreen.score.effects import Shard, program_scores, read_shard
from knockscreen.score.program_files import read_programs
from knockscreen.score.programs import ProgramMatrix, program_matrix
from knockscreen.score.random_programs import control_background, program_null

FDR, SMALL = 0.1, 0.05
RANDOM = 200


def scored(run: Path, shard: Shard, programs: ProgramMatrix) -> pl.DataFrame:
    """Return rows of the trained targets and their decoys in pooled contexts."""
    null = program_null(run / "store", programs, RANDOM)
    rows = program_scores(shard, programs, ["donor"], null).rename({"score_se": "score_sd"})
    listed = read_candidates(run / "screen" / "candidates.parquet")
    rows = rows.join(listed.select("target_gene_id", "evidence"), on="target_gene_id")
    return rows.filter(~pl.col("context").str.contains("donor"), evidence="predicted_seen")


def judged(rows: pl.DataFrame, of_shipped: pl.DataFrame) -> pl.DataFrame:
    """Return calibrated rows, one program at a time beside the decoys of the shipped ones."""
    decoy = pl.col("target_gene_id").map_elements(is_decoy, return_dtype=pl.Boolean)
    parts = []
    for part in rows.partition_by("program"):
        every = pl.concat([part, of_shipped]).unique(["program", "context", "target_gene_id"])
        parts.append(calibrated(part.filter(~decoy), part.filter(decoy), every.filter(decoy)))
    return pl.concat(parts)


def summary(rows: pl.DataFrame) -> dict[str, float]:
    both = pl.concat(
        rows.select(fdr=f"fdr_{d}", p=f"program_specificity_p_{d}") for d in ("toward", "away")
    )
    called = both.filter(pl.col("fdr") <= FDR)
    return {
        "rows": both.height,
        "called": called.height,
        "called_and_specific": called.filter(pl.col("p") <= SMALL).height,
        "specific_share": round(float((both["p"] <= SMALL).mean()), 3),
    }


def general(run: Path, shard: Shard, programs: ProgramMatrix) -> dict[str, float]:
    """Plant knock-downs that are strong and not aimed, one at a time, and see where they rank."""
    rng = np.random.default_rng(0)
    background = control_background(run / "store", programs)
    null = program_null(run / "store", programs, RANDOM).weights
    seen = read_candidates(run / "screen" / "candidates.parquet").filter(
        evidence="predicted_seen", status="screened"
    )["target_gene_id"]
    chosen = np.isin(shard.target_gene_ids, seen.to_list())
    deltas = shard.delta_mean[chosen].mean(axis=1).astype(np.float64)  # (T, G)
    size = np.sqrt((deltas**2).sum(axis=1))
    weights, _ = programs.without(-1)
    scores = deltas @ weights.T  # (T, P)
    root = np.linalg.cholesky(background.correlation + 1e-3 * np.eye(len(background.correlation)))
    found = {"first": 0, "first_and_direction_p": 0, "first_and_specific": 0, "trials": 0}
    for _ in range(200):
        delta = deltas.mean(axis=0) + root @ rng.standard_normal(len(root)) * size.mean() / 10
        delta *= 2 * size.max() / np.sqrt((delta**2).sum())
        score = weights @ delta
        for p in range(len(score)):
            every, magnitude = np.append(scores[:, p], score[p]), np.append(size, 2 * size.max())
            first = score[p] > scores[:, p].max()
            aimed = direction_p_value(every, magnitude)[-1] <= SMALL
            b = (null[p] @ delta >= score[p]).sum()
            found["trials"] += 1
            found["first"] += int(first)
            found["first_and_direction_p"] += int(first and aimed)
            found["first_and_specific"] += int(first and (b + 1) / (RANDOM + 1) <= SMALL)
    return {k: round(v / found["trials"], 3) for k, v in found.items() if k != "trials"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--programs", type=int, default=20)
    args = parser.parse_args()
    screen = args.run / "screen"
    listed = read_candidates(screen / "candidates.parquet")
    shard = read_shard(screen / "0.npz", screen / "control.npz", listed, args.run / "store")
    panel = json.loads((args.run / "store" / "store.json").read_text())["genes"]
    ids, genes = [g["gene_id"] for g in panel], [g["gene"] for g in panel]
    file = read_values("config/config.yaml")["programs"]["file"]
    shipped = program_matrix(read_programs(file), ids, genes, min_genes=5)
    rng = np.random.default_rng(1)
    weights = np.zeros((args.programs, len(ids)))
    for row in weights:
        row[rng.choice(len(ids), 25, replace=False)] = 1.0
    chance = ProgramMatrix(tuple(f"random{k}" for k in range(args.programs)), weights, tuple(ids))
    of_shipped = scored(args.run, shard, shipped)
    print("shipped", json.dumps(summary(judged(of_shipped, of_shipped))))
    print("random ", json.dumps(summary(judged(scored(args.run, shard, chance), of_shipped))))
    print("general", json.dumps(general(args.run, shard, shipped)))


if __name__ == "__main__":
    main()
