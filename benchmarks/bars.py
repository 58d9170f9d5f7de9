"""The evaluation of the model on simulated and real screens, over seeds: run it, then show it.

python benchmarks/bars.py run demo deep thp1 jurkat --seeds 0 1 2
python benchmarks/bars.py show demo deep thp1 jurkat [--context all] [--split screened]

The second prints the mean over seeds as Markdown; beside each baseline is, seed by seed, whether
the model wins (+), ties (=) or loses (-) against it, from the 95 % interval over targets.

demo    the simulated screen as it is
deep    trained on fewer cells, judged by 22,000: screened targets, 16 targets never trained on,
        and every other target without one of its contexts
thp1    real THP-1 cells, a quarter of them held out
jurkat  real Jurkat cells, likewise

A seed is that of the simulated world, of the split and of the training; runs are
results/bar-NAME-SEED.
"""

import argparse
import subprocess
from pathlib import Path

import numpy as np
import polars as pl
import yaml

METRICS = (
    "pearson_delta", "pearson_delta_top50", "pearson_delta_perturbed_mean",
    "discrimination_score_l1", "de_recall", "de_precision", "de_auprc", "direction_match",
    "program_spearman", "mean_r2", "variance_r2", "energy_distance",
)  # fmt: skip
SCREEN = {"candidates": "measured", "draws": 48}
BARS = {
    "demo": {"screen": SCREEN},
    "deep": {
        "screen": SCREEN,
        "simulate": {"cells": 60000},
        "splits": {"test": 0.68, "validation": 0.017, "random_held_out_targets": 16},
    },
    "thp1": {"splits": {"test": 0.25}},
    "jurkat": {"splits": {"test": 0.25}},
}


def overlay(name: str, seed: int) -> Path:
    """Write the overlay of a run and return its path."""
    run = f"bar-{name}-{seed}"
    values = {"run": run, "seed": seed, **BARS[name]}
    values["splits"] = {"seed": seed, **values.get("splits", {})}
    if name in ("demo", "deep"):
        values["simulate"] = {"seed": seed, **values.get("simulate", {})}
    if name == "deep":
        qc = f"results/{run}/qc/targets.parquet"
        path = write(run, values)
        snakemake(path, name, qc)
        values["splits"]["held_out_contexts"] = rotated(pl.read_parquet(qc))
    return write(run, values)


def rotated(targets: pl.DataFrame) -> list[dict[str, object]]:
    """Hold out one context of every target, each context of as many targets."""
    contexts = targets["context"].cast(pl.String).unique().sort().to_list()
    names = targets.filter(pl.col("status").cast(pl.String) == "kept")["target_gene_id"]
    ids = names.cast(pl.String).unique().sort().to_list()
    ids = [name for name in ids if name != "non-targeting"]
    return [
        {"context": context, "targets": ids[i :: len(contexts)]}
        for i, context in enumerate(contexts)
    ]


def write(run: str, values: dict[str, object]) -> Path:
    path = Path(f"results/{run}.yaml")
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(values))
    return path


def snakemake(path: Path, name: str, target: str) -> None:
    base = [f"config/scenarios/{name}.yaml"] if name in ("thp1", "jurkat") else []
    command = ["snakemake", "--quiet", "rules", "host", "reason", "progress", "--nolock"]
    subprocess.run([*command, target, "--configfile", *base, str(path)], check=True)


def show(name: str, context: str, splits: list[str]) -> None:
    """Print the mean over seeds, each baseline's, the ceiling's, and how often the model won."""
    folders = sorted(Path("results").glob(f"bar-{name}-[0-9]/evaluate"))
    found = pl.concat([pl.read_parquet(f / "metrics.parquet") for f in folders])
    against = pl.concat([pl.read_parquet(f / "summary.parquet") for f in folders])
    if context not in found["context"]:
        context = found["context"].sort()[0]  # a screen of one context
    where = (pl.col("context") == context) & pl.col("program").is_null()
    found = found.filter(where, target_gene="all").filter(pl.col("method") != "all")
    against = against.filter(context=context)
    for split in splits or found["split"].unique().sort().to_list():
        part = found.filter(split=split)
        if part.is_empty():
            continue
        methods = ["model", *sorted(set(part["method"]) - {"model", "ceiling", "split_half"})]
        methods = [*methods, "split_half", "ceiling"]
        print(f"\n{name}, {split}, {context}: mean of {len(folders)} seeds\n")
        print("| metric | " + " | ".join(m.replace("_", " ") for m in methods) + " |")
        print("| --- " * (len(methods) + 1) + "|")
        for metric in METRICS:
            rows = part.filter(metric=metric)
            if rows.is_empty():
                continue
            cells = []
            for method in methods:
                values = rows.filter(method=method)["value"].drop_nulls().to_numpy()
                text = "-" if not len(values) else f"{np.mean(values):.3f}"
                verdicts = against.filter(split=split, metric=metric, baseline=method)["verdict"]
                wins = "".join({"wins": "+", "loses": "-", "ties": "="}[v] for v in verdicts if v)
                cells.append(f"{text} {wins}".strip())
            print(f"| `{metric}` | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["run", "show"])
    parser.add_argument("names", nargs="+", choices=list(BARS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--context", default="all")
    parser.add_argument("--split", nargs="*", default=[])
    given = parser.parse_args()
    for name in given.names:
        if given.what == "show":
            show(name, given.context, given.split)
            continue
        for seed in given.seeds:
            path = overlay(name, seed)
            snakemake(path, name, f"results/bar-{name}-{seed}/evaluate/metrics.parquet")


if __name__ == "__main__":
    main()
