"""Can the error of predictions for genes never knocked down be learned from the screened targets.

    python benchmarks/measured_decoys.py screens network --seeds 1 2 3 4 5     # makes the screens
    python benchmarks/unseen_intervals.py results/measured_decoys --seeds 1 2 3 4 5

Every trained target of a planted screen is predicted from its features as if it had never been
knocked down (left out of the effects that it is predicted from). The mean square of measured less
predicted scores, less the error of measurement, is the error of such a prediction. With it, for
every program, pooled over donors, of the genes never knocked down:

coverage: share of their true scores inside prediction +- 1.645 errors (0.90 is claimed), and of
those that truly move (|true| >= 0.005); width: of the interval over the standard deviation of the
true scores; called: rows whose sign is sure (probability of the other sign <= 0.1); wrong: share of
them with the other sign; nothing: with no true effect. Beside it the coverage of zero +- the error.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import polars as pl
from calibration import FAST, NOTHING, truth
from scipy.stats import norm

from knockscreen.config import merge, read_values
from knockscreen.score.program_files import read_programs
from knockscreen.score.programs import ProgramMatrix, program_matrix
from knockscreen.training.effect import EffectModel, load_effects

Z = 1.645
SURE = 0.1
KEYS = ["program", "context", "target_gene_id"]


def left_out(model: EffectModel) -> dict[str, np.ndarray]:
    """Return the effect (C, G) of every trained target, predicted without itself."""
    unseen = model.linear.unseen
    trained = np.flatnonzero(unseen.rows >= 0)
    found = {}
    for code in trained.tolist():
        target = model.vocabulary.target_ids[code]
        parts = unseen.parts(int(unseen.rows[code]), model.own_gene(target), code)
        mean = unseen.mean - unseen.rest[code] / max(len(trained) - 1, 1)
        found[target] = mean + parts @ unseen.weights
    return found


def scored(effects: dict[str, np.ndarray], model: EffectModel, programs: ProgramMatrix) -> dict:
    """Return the score (P,) of each target, pooled over contexts, its own gene left out."""
    out = {}
    for target, delta in effects.items():
        weights, _ = programs.without(model.own_gene(target))
        out[target] = (delta @ weights.T).mean(axis=0)
    return out


def judge(folder: Path, config: dict) -> dict[str, float]:
    model = load_effects(folder / "effect" / "effect.safetensors")
    v = model.vocabulary
    programs = program_matrix(
        read_programs(config["programs"]["file"]), v.gene_ids, v.genes,
        min_genes=config["programs"]["min_genes"],
    )  # fmt: skip
    real = pl.read_parquet(folder / "measured" / "programs.parquet")
    true = truth(folder, config).filter(~pl.col("context").str.contains("donor"))
    seen = scored(left_out(model), model, programs)
    ids = [g for g in model.featured() if v.target_code(g) < 0]
    new = scored({g: model.effect(g) for g in ids}, model, programs)
    parts = []
    for p, name in enumerate(programs.names):
        here = real.filter(program=name).filter(~pl.col("context").str.contains("donor"))
        here = here.filter(pl.col("target_gene_id").is_in(list(seen)))
        predicted = np.array([seen[t][p] for t in here["target_gene_id"]])
        residual = here["score"].to_numpy() - predicted
        error = (residual**2).mean() - (here["standard_error"].to_numpy() ** 2).mean()
        frame = pl.DataFrame({"target_gene_id": ids, "predicted": [new[g][p] for g in ids]})
        frame = frame.join(true.filter(program=name), on="target_gene_id")
        parts.append(frame.with_columns(error=pl.lit(np.sqrt(max(error, 0.0)))))
    rows = pl.concat(parts)
    miss = (rows["true"] - rows["predicted"]).abs()
    inside = miss <= Z * rows["error"]
    moved = rows["true"].abs() >= NOTHING
    wrong_sign = norm.cdf(-(rows["predicted"].abs() / rows["error"]).to_numpy())
    called = rows.filter(pl.Series(wrong_sign <= SURE))
    product = called["true"] * called["predicted"]
    return {
        "n": len(rows),
        "moved": moved.mean(),
        "coverage": inside.mean(),
        "coverage_moved": inside.filter(moved).mean(),
        "coverage_of_zero": (rows["true"].abs() <= Z * rows["error"]).mean(),
        "width": (2 * Z * rows["error"]).mean() / rows["true"].std(),
        "error": rows["error"].mean(),
        "rmse": (miss**2).mean() ** 0.5,
        "called": len(called),
        "wrong": (product < 0).mean() if len(called) else float("nan"),
        "nothing": (called["true"].abs() < NOTHING).mean() if len(called) else float("nan"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    args = parser.parse_args()
    for seed in args.seeds:
        changes = {"seed": seed, "simulate": {"mode": "network", "seed": seed}}
        config = merge(merge(read_values("config/config.yaml"), FAST), changes)
        found = judge(args.folder / f"network{seed}", config)
        print(json.dumps({"seed": seed} | {k: round(v, 3) for k, v in found.items()}), flush=True)


if __name__ == "__main__":
    main()
