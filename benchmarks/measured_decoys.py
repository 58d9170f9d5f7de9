"""Do p-values of measured scores against measured decoys hold what they say.

    python benchmarks/measured_decoys.py screens null --seeds 1 2 3 4 5
    python benchmarks/measured_decoys.py screens network --seeds 1 2 3 4 5
    python benchmarks/measured_decoys.py units results/thp1 2      # and results/jurkat 8

screens
    A simulated screen for each seed (9,000 cells, as benchmarks/calibration.py has them), measured
    and counted against its decoys. ``null``, where no knock-down does anything: share of rows with
    FDR <= 0.1, share of p-values <= 0.05 of all rows, of the smallest and of the largest third of
    targets, and Kolmogorov-Smirnov p of the family named beforehand. ``network``: calls at FDR 0.1,
    the share of them whose true score is nothing or of the other sign, and the share of planted
    regulators that are called. The same for the test over replicates.
units
    Sets of control units (guides, wells) of a real screen that are left out of the control, scored
    as decoys are, and counted against decoys of the other units: share of p-values below 0.05 and
    their Kolmogorov-Smirnov p, over sets, both directions, and 40 programs of ten random genes.
    Beside it: decoys that ignore units, and scores that are not put in units of their error.
"""

import argparse
import json
import logging
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import polars as pl
from calibration import FAST, NAMED, NOTHING, truth
from scipy.stats import kstest

from knockscreen import cli_data, cli_model, cli_score, cli_simulate
from knockscreen.config import merge, read_values
from knockscreen.data.decoys import Decoys
from knockscreen.score.calibration import calibrated_measured, empirical_p_value
from knockscreen.score.cells import StoredCells, open_store
from knockscreen.score.measured_decoys import (
    ControlScores,
    control_scores,
    decoy_scores,
    draw_decoys,
)
from knockscreen.score.moments import replicate_units
from knockscreen.score.programs import ProgramMatrix

FDR = 0.1
SETS = 60
PROGRAMS = 40
DECOYS = 200
KEYS = ["program", "context", "target_gene_id"]


def measured(folder: Path, config: dict) -> pl.DataFrame:
    """Return the measured scores of a simulated screen with their p-values, one row a direction."""
    settings = json.dumps(config)
    if not (folder / "store").exists():
        cli_simulate.simulate(settings=settings, output_dir=folder / "input")
        files = sorted((folder / "input").glob("*.h5ad"))
        cli_data.qc(settings=settings, output_dir=folder / "qc", input=files)
        cli_data.normalize(settings, folder / "qc", folder / "store", files)
    cli_score.measure(folder / "store", folder / "measured", settings)
    scores = pl.read_parquet(folder / "measured" / "programs.parquet")
    decoys = pl.read_parquet(folder / "measured" / "decoys.parquet")
    parts = []
    scores = scores.rename({"p_value": "replicate_p", "fdr": "replicate_fdr"})
    scores = scores.with_columns(evidence=pl.lit("measured"))
    for (program,), rows in scores.group_by("program", maintain_order=True):
        parts.append(calibrated_measured(rows, decoys.filter(program=program).drop("program")))
    wide = pl.concat(parts)
    return pl.concat(
        wide.with_columns(
            direction=pl.lit(d), p_value=pl.col(f"p_value_{d}"), fdr=pl.col(f"fdr_{d}")
        )
        for d in ("toward", "away")
    )


def judge_null(rows: pl.DataFrame) -> dict[str, float]:
    third = rows["n_cells"].rank("average") / len(rows)
    few, many = (rows.filter(third <= 1 / 3), rows.filter(third > 2 / 3))
    named = rows.filter(program=NAMED[0], context=NAMED[1], direction="toward")["p_value"]
    return {
        "calls": (rows["fdr"] <= FDR).mean(),
        "p05": (rows["p_value"] <= 0.05).mean(),
        "p05_few": (few["p_value"] <= 0.05).mean(),
        "p05_many": (many["p_value"] <= 0.05).mean(),
        "named": kstest(named, "uniform").pvalue,
        "calls_replicates": (rows["replicate_fdr"] <= FDR).mean(),
        "p05_replicates": (rows["replicate_p"] <= 0.05).mean(),
    }


def judge_planted(rows: pl.DataFrame, folder: Path, config: dict) -> dict[str, float]:
    if not (folder / "effect").exists():
        effect = folder / "effect" / "effect.safetensors"
        cli_model.fit_effects(json.dumps(config), folder / "store", effect.parent)
    rows = rows.join(truth(folder, config), on=KEYS)
    sign = pl.when(pl.col("direction") == "toward").then(1).otherwise(-1)
    right_way = pl.col("score") * sign > 0
    rows = rows.with_columns(
        gain=pl.col("true") * sign, called=pl.col("fdr") <= FDR,
        replicates=(pl.col("replicate_fdr") <= FDR) & right_way,
    )  # fmt: skip
    planted = pl.read_csv(folder / "input" / "regulators.tsv", separator="\t").filter(
        pl.col("planted"), pl.col("screened"), pl.col("effect").abs() >= 0.05
    )
    planted = planted.select(
        "program", "target_gene_id", context="time=" + pl.col("time"),
        direction=pl.when(pl.col("effect") > 0).then(pl.lit("toward")).otherwise(pl.lit("away")),
    ).join(rows, on=[*KEYS, "direction"])  # fmt: skip
    found = {"planted": planted.height}
    for name in ("called", "replicates"):
        calls = rows.filter(name)
        found |= {
            f"n_{name}": calls.height,
            f"false_{name}": (calls["gain"] < NOTHING).mean() or 0.0,
            f"recall_{name}": planted[name].fill_null(value=False).mean(),
        }
    return found


def random_matrix(cells: StoredCells) -> ProgramMatrix:
    rng = np.random.default_rng(7)
    weights = np.zeros((PROGRAMS, len(cells.gene_ids)))
    for row in weights:
        row[rng.choice(len(row), 10, replace=False)] = 1.0
    names = tuple(f"random{i}" for i in range(PROGRAMS))
    return ProgramMatrix(names, weights, cells.gene_ids, {})


def left_out(control: ControlScores, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return score and own error (C, P) of some control cells, as a decoy's."""
    groups = [[c] for c in range(control.contexts)]
    score, error, _ = decoy_scores(control, Decoys(("left out",), rows, 0 * rows), groups)
    return score[0], error[0]


def without(cells: StoredCells, out: np.ndarray) -> StoredCells:
    """Return the cells but those at positions ``out``."""
    keep = np.ones(len(cells.rows), dtype=bool)
    keep[out] = False
    part = {n: getattr(cells, n)[keep] for n in ("rows", "target", "context", "replicate", "guide")}
    return replace(cells, **part)


def units(folder: Path, size: int) -> None:
    cells = open_store(folder / "store")
    programs, unit = random_matrix(cells), replicate_units(cells, "auto")
    names = np.unique(unit[cells.target == 0])
    print(f"{len(names)} control units, {int((cells.target == 0).sum())} cells")
    rng = np.random.default_rng(0)
    sets = list(combinations(names.tolist(), size)) if len(names) < 12 else [
        tuple(rng.choice(names, size, replace=False)) for _ in range(SETS)
    ]  # fmt: skip
    sets = [sets[i] for i in rng.permutation(len(sets))[:SETS]]
    every = control_scores(cells, programs, unit)
    position = np.cumsum(cells.target == 0) - 1
    found: dict[str, list[np.ndarray]] = {"by unit": [], "cells at random": [], "raw scores": []}
    for number, chosen in enumerate(sets):
        out = np.flatnonzero(np.isin(unit, chosen) & (cells.target == 0))
        score, error = left_out(every, position[out])  # (C, P)
        rest = without(cells, out)
        for way, pairs in found.items():
            labels = replicate_units(rest, "auto")
            if way == "cells at random":
                labels = np.full(len(labels), -1)
            decoys = draw_decoys(rest, labels, n=DECOYS, seed=number)
            control = control_scores(rest, programs, replicate_units(rest, "auto"))
            null, null_error, _ = decoy_scores(
                control, decoys, [[c] for c in range(control.contexts)]
            )
            for c, p in np.ndindex(score.shape):
                if not np.isfinite(score[c, p]) or not np.isfinite(null[:, c, p]).any():
                    continue
                of_null = null[:, c, p] / (1 if way == "raw scores" else null_error[:, c, p])
                mine = score[c, p] / (1 if way == "raw scores" else error[c, p])
                of_null = of_null[np.isfinite(of_null)]
                pair = [empirical_p_value(np.array([s * mine]), s * of_null)[0] for s in (1, -1)]
                pairs.append(np.array(pair))
    for way, pairs in found.items():
        p = np.concatenate(pairs)
        print(f"{way}: {len(sets)} sets, p <= 0.05 in {np.mean(p <= 0.05):.3f}, "
              f"p <= 0.01 in {np.mean(p <= 0.01):.3f}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    modes = parser.add_subparsers(dest="what", required=True)
    screens = modes.add_parser("screens")
    screens.add_argument("mode", choices=["null", "network"])
    screens.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    screens.add_argument("--folder", type=Path, default=Path("results/measured_decoys"))
    of_units = modes.add_parser("units")
    of_units.add_argument("folder", type=Path)
    of_units.add_argument("size", type=int)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    if args.what == "units":
        units(args.folder, args.size)
        return
    for seed in args.seeds:
        config = merge(merge(read_values("config/config.yaml"), FAST), {
            "seed": seed, "simulate": {"mode": args.mode, "seed": seed},
            "splits": {"decoys": DECOYS},
        })  # fmt: skip
        folder = args.folder / f"{args.mode}{seed}"
        rows = measured(folder, config)
        judge = judge_null(rows) if args.mode == "null" else judge_planted(rows, folder, config)
        print(json.dumps({"seed": seed} | {k: round(v, 3) for k, v in judge.items()}), flush=True)


if __name__ == "__main__":
    main()
