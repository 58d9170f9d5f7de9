"""Are the p-values, FDR and rank intervals of a ranking what they say, on screens with known truth.

    python benchmarks/calibration.py null --seeds 1 2 3 4 5
    python benchmarks/calibration.py network --seeds 1 2 3 4 5

simulates a screen for each seed (``null``: no knock-down does anything), runs every stage from QC
to ranking with small networks and short training (``--full``: those of config.yaml), and prints
one line for each seed:

null
    calls: share of ranking rows (both directions) with FDR <= 0.1; families: share of programs x
    contexts whose scores are not distributed as those of the decoys (Kolmogorov-Smirnov p < 0.05;
    0.05 is expected); named: that p of one family chosen beforehand; spread: standard deviation of
    the scores over that of the decoys; shift: their median in that unit (medians over families).
network
    false: share of the rows with FDR <= 0.1 whose true score is nothing (less than 0.005; the noise
    of a score is 0.03) or has the other sign; recall:
    share of the screened planted regulators (true effect at that time of 0.05 log2 at least) called
    in the right direction; coverage: share of rank intervals that hold the true rank, of trained
    targets (moved: of those with a true effect) and of genes never knocked down. Equal true scores
    share a range of ranks, and an interval holds it if it meets it.

The true score of a knock-down has the strength of the guides that its cells have, and is in the
unit of the score: true changes of expression pass through the response curves of control cells.
"""

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.stats import ks_2samp, rankdata

from knockscreen import cli_data, cli_model, cli_score, cli_screen, cli_simulate
from knockscreen.config import merge, read_values
from knockscreen.names import is_decoy
from knockscreen.score.program_files import read_programs
from knockscreen.score.programs import program_matrix
from knockscreen.simulate.world import MEAN_STRENGTH
from knockscreen.training.effect import EffectModel, load_effects

FDR = 0.1
NOTHING = 0.005
"""True scores below it (log1p CP10k) count as no effect, and as equal."""
NAMED = ("Treg", "time=Stim8hr")
FAST: dict[str, Any] = {
    "simulate": {"times": ["Stim8hr"], "cells": 9000},
    "vae": {"size": "tiny", "training": {"steps": 60, "validate_every": 30}},
    "flow": {"size": "tiny", "training": {"steps": 100, "validate_every": 50}},
    "screen": {"draws": 6, "blocks": 3, "steps": 4, "shards": 1},
}


def run(folder: Path, config: dict[str, Any]) -> None:
    """Run every stage from the simulation to the ranking, skipping what is there."""
    settings = json.dumps(config)
    store, effect = folder / "store", folder / "effect" / "effect.safetensors"
    vae, flow = folder / "vae" / "vae.safetensors", folder / "flow" / "flow.safetensors"
    plan, listed = folder / "screen" / "plan.json", folder / "screen" / "candidates.parquet"
    control, shard = folder / "screen" / "control.npz", folder / "screen" / "0.npz"
    scores = folder / "programs" / "0.parquet"
    if not (folder / "input").exists():
        cli_simulate.simulate(settings=settings, output_dir=folder / "input")
    if not store.exists():
        files = sorted((folder / "input").glob("*.h5ad"))
        cli_data.qc(settings=settings, output_dir=folder / "qc", input=files)
        cli_data.normalize(settings, folder / "qc", store, files)
    if not effect.exists():
        cli_model.fit_effects(settings, store, effect.parent)
    if not flow.exists():
        cli_model.train_vae(settings, store, effect, vae.parent)
        cli_model.encode(settings, store, effect, vae, folder / "latents")
        cli_model.train_flow(settings, store, effect, folder / "latents", flow.parent)
    if not shard.exists():
        cli_screen.plan(settings, store, effect, vae, flow, plan.parent)
        cli_screen.generate_control(settings, store, effect, vae, flow, plan, control)
        cli_screen.generate_shard(
            settings, store, effect, vae, flow, plan, listed, control, shard=0, output=shard
        )  # fmt: skip
    if not scores.exists():
        cli_score.score(shard, control, listed, store, folder / "effects.parquet", scores, settings)
    cli_score.rank(scores.parent, listed, store, folder / "rank", settings)


def families(folder: Path) -> pl.DataFrame:
    """Return the two-sample KS p-value of targets against decoys for each program and context.

    A shift that all targets share is taken out as in the ranking: here, all of it.
    """
    shard = pl.read_parquet(folder / "programs" / "0.parquet")
    seen = pl.read_parquet(folder / "screen" / "candidates.parquet").filter(
        evidence="predicted_seen"
    )
    shard = shard.join(seen.select("target_gene_id"), on="target_gene_id")
    rows = []
    for (program, context), part in shard.group_by("program", "context", maintain_order=True):
        decoy = np.array([is_decoy(t) for t in part["target_gene_id"]])
        score = part["score"].to_numpy()
        real = score[~decoy] - np.median(score[~decoy]) + np.median(score[decoy])
        spread = (real.std() / score[decoy].std(), np.median(score[~decoy]) / score[decoy].std())
        rows.append((program, context, ks_2samp(real, score[decoy]).pvalue, *spread))
    names = ["program", "context", "ks", "spread", "shift"]
    return pl.DataFrame(rows, schema=names, orient="row")


def truth(folder: Path, config: dict[str, Any]) -> pl.DataFrame:
    """Return the true score of every gene's knock-down: program, context, target_gene_id, true."""
    with np.load(folder / "input" / "truth.npz") as file:
        known = {name: file[name] for name in file.files}
    model = load_effects(folder / "effect" / "effect.safetensors")
    v = model.vocabulary
    programs = program_matrix(
        read_programs(config["programs"]["file"]), v.gene_ids, v.genes,
        min_genes=config["programs"]["min_genes"],
    )  # fmt: skip
    column = [list(known["gene_id"]).index(g) for g in v.gene_ids]
    contexts = [list(known["contexts"]).index(c) for c in v.contexts]
    share = _strength(folder, known)
    rows = []
    for t, target in enumerate(known["target_gene_id"].tolist()):
        change = known["log2_fold_change"][contexts, t] * np.log(2) * share.get(target, 1.0)
        total = np.log((known["baseline"][contexts] * np.exp(change)).sum(axis=1))
        change = change[:, column] - total[:, None]  # of counts per 10,000, not of molecules
        delta = _through_curves(model, change)
        weights, _ = programs.without(model.own_gene(target))
        for c, of_programs in enumerate(delta @ weights.T):
            rows += [
                (name, v.contexts[c], target, float(value))
                for name, value in zip(programs.names, of_programs, strict=True)
            ]
    names = ["program", "context", "target_gene_id", "true"]
    table = pl.DataFrame(rows, schema=names, orient="row")
    pooled = table.with_columns(pl.col("context").str.replace(r"^donor=[^,]+,", ""))
    keys = ["program", "context", "target_gene_id"]
    return pl.concat([table, pooled.group_by(keys).agg(pl.col("true").mean())])


def _strength(folder: Path, known: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the mean strength of the guides of each target's cells, over the average guide's."""
    guides = dict(zip(known["guide_id"].tolist(), known["guide_strength"].tolist(), strict=True))
    cells = pl.read_parquet(folder / "store" / "cells.parquet").filter(~pl.col("is_control"))
    strength = pl.col("guide_id").replace_strict(guides, default=None, return_dtype=pl.Float64)
    table = cells.group_by("target_gene_id").agg(strength.mean())
    return {target: value / MEAN_STRENGTH for target, value in table.iter_rows()}


def _through_curves(model: EffectModel, change: np.ndarray) -> np.ndarray:
    """Return changes of mean log1p CP10k (C, G) of changes of log expression (C, G)."""
    from knockscreen.models.effect import GRID

    assert model.linear is not None
    curves = model.linear.curves
    out = np.zeros_like(change, dtype=float)
    for c, g in np.ndindex(change.shape):
        out[c, g] = np.interp(change[c, g], GRID, curves[c, g]) - curves[c, g, len(GRID) // 2]
    return out


def judge_null(folder: Path) -> dict[str, float]:
    rankings = pl.read_parquet(folder / "rank" / "rankings.parquet")
    seen = rankings.filter(evidence="predicted_seen")  # genes never knocked down have no FDR
    found = {"calls": float(np.mean(seen["fdr"].to_numpy() <= FDR))}
    ks = families(folder)
    named = ks.filter(program=NAMED[0], context=NAMED[1])["ks"].item()
    return found | {
        "families": float((ks["ks"] < 0.05).mean()),
        "named": named,
        "spread": float(ks["spread"].median()),
        "shift": float(ks["shift"].abs().median()),
    }


def judge_planted(folder: Path, config: dict[str, Any]) -> dict[str, float]:
    keys = ["program", "context", "target_gene_id"]
    table = pl.read_parquet(folder / "rank" / "rankings.parquet")
    table = table.join(truth(folder, config), on=keys)
    sign = pl.when(pl.col("direction") == "toward").then(1).otherwise(-1)
    table = table.with_columns(gain=pl.col("true") * sign, called=pl.col("fdr") <= FDR)
    seen = table.filter(evidence="predicted_seen")  # genes never knocked down have no FDR
    calls = seen.filter("called")
    false = float((calls["gain"] < NOTHING).mean() or 0.0)
    found: dict[str, float] = {"calls": calls.height, "false": false}
    planted = pl.read_csv(folder / "input" / "regulators.tsv", separator="\t").filter(
        pl.col("planted"), pl.col("screened"), pl.col("effect").abs() >= 0.05
    )
    planted = planted.select(
        "program", "target_gene_id", context="time=" + pl.col("time"),
        direction=pl.when(pl.col("effect") > 0).then(pl.lit("toward")).otherwise(pl.lit("away")),
    )  # fmt: skip
    recalled = planted.join(seen, on=[*keys, "direction"])
    found |= {"planted": recalled.height, "recall": float(recalled["called"].mean() or 0.0)}
    return found | coverage(table.filter(direction="toward"))


def coverage(table: pl.DataFrame) -> dict[str, float]:
    """Return the share of rank intervals that meet the range of the true rank."""
    parts = []
    for part in table.partition_by("program", "context"):
        true = np.where(np.abs(part["true"]) < NOTHING, 0.0, part["true"])
        low, high = rankdata(-true, method="min"), rankdata(-true, method="max")
        inside = (part["rank_low"].to_numpy() <= high) & (part["rank_high"].to_numpy() >= low)
        width = (part["rank_high"] - part["rank_low"]).to_numpy() / part.height
        kept = part.select("evidence", "true")
        parts.append(kept.with_columns(inside=pl.Series(inside), width=pl.Series(width)))
    every = pl.concat(parts)
    seen = every.filter(evidence="predicted_seen")
    unseen = every.filter(evidence="predicted_unseen")
    moved = seen.filter(pl.col("true").abs() >= NOTHING)
    return {
        "coverage_seen": float(seen["inside"].mean()),
        "coverage_moved": float(moved["inside"].mean()),
        "width_seen": float(seen["width"].mean()),
        "coverage_unseen": float(unseen["inside"].mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mode", choices=["null", "network"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--decoys", type=int, default=200)
    parser.add_argument("--folder", type=Path, default=Path("results/calibration"))
    parser.add_argument("--full", action="store_true", help="networks and training of config.yaml")
    args = parser.parse_args()
    fast = {k: v for k, v in FAST.items() if k not in ("vae", "flow")} if args.full else FAST
    logging.basicConfig(level=logging.WARNING)
    for seed in args.seeds:
        began = time.perf_counter()
        config = merge(merge(read_values("config/config.yaml"), fast), {
            "seed": seed, "simulate": {"mode": args.mode, "seed": seed},
            "splits": {"decoys": args.decoys},
        })  # fmt: skip
        folder = args.folder / f"{args.mode}{seed}{'-full' if args.full else ''}"
        run(folder, config)
        judge = judge_null(folder) if args.mode == "null" else judge_planted(folder, config)
        seconds = time.perf_counter() - began
        print(json.dumps({"seed": seed} | {k: round(v, 3) for k, v in judge.items()}
                         | {"seconds": round(seconds)}), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
