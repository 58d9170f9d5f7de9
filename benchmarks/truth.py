"""Rank correlation of program scores with the truth of a simulated run, predicted and measured.

python benchmarks/truth.py results/demo [PROGRAM ...]

The true score of a knock-down is the weighted mean of its true log2 fold changes over the program's
genes on the panel, its own gene left out, averaged over the contexts that a pooled context holds.
Then, over the programs, pooled contexts and both directions: the share of the first ten of a list
that truly move the program that way by 0.05 or more, and their mean true score; for predicted ones
by rank, and for those alone that were knocked down in training.
"""

import sys
from pathlib import Path

import numpy as np
import polars as pl
from scipy.stats import spearmanr

from knockscreen.names import parse_context

LEAST = 0.05


def true_scores(truth: dict[str, np.ndarray], weights: np.ndarray, rows: list[int]) -> np.ndarray:
    """Return true scores (T,) from effects (C, T, G), averaged over some contexts."""
    effect = truth["log2_fold_change"][rows].mean(0)
    own = {gene_id: i for i, gene_id in enumerate(truth["gene_id"])}
    scores = np.empty(len(effect))
    for t, target in enumerate(truth["target_gene_id"]):
        w = weights.copy()
        if target in own:
            w[own[target]] = 0
        scores[t] = effect[t] @ w / np.abs(w).sum()
    return scores


def main(run: Path, wanted: list[str]) -> None:
    with np.load(run / "input" / "truth.npz") as file:
        truth = {name: file[name] for name in file.files}
    programs = pl.read_csv("config/programs.tsv", separator="\t")
    panel = pl.read_parquet(run / "store" / "panel.parquet").filter("in_panel")["gene"].to_list()
    scores = pl.read_parquet(run / "rank" / "program_scores.parquet")
    column = {gene: i for i, gene in enumerate(truth["gene"])}
    row = {target: i for i, target in enumerate(truth["target_gene_id"])}
    contexts = [parse_context(str(name)) for name in truth["contexts"]]
    pooled = [c for c in scores["context"].unique().sort() if "donor" not in c]
    tables = []
    print(f"{'program':16s}{'evidence':18s}" + "".join(f"{c:>18s}" for c in pooled))
    for program in wanted or scores["program"].unique().sort().to_list():
        weights = np.zeros(len(column))
        for gene, weight in programs.filter(program=program).select("gene", "weight").iter_rows():
            if gene in panel:
                weights[column[gene]] = weight
        for evidence in ("predicted_seen", "measured", "predicted_unseen"):
            cells = []
            for name in pooled:
                levels = parse_context(name)
                rows = [i for i, c in enumerate(contexts) if levels.items() <= c.items()]
                mine = scores.filter(program=program, evidence=evidence, context=name)
                true = true_scores(truth, weights, rows)[[row[t] for t in mine["target_gene_id"]]]
                tables.append(mine.with_columns(true=pl.Series(true)))
                r = spearmanr(mine["score"], true)[0] if mine.height > 2 else np.nan
                cells.append(f"{r:10.2f} (n={mine.height:3d})")
            print(f"{program:16s}{evidence:18s}" + "".join(f"{c:>18s}" for c in cells))
    first_ten(pl.concat(tables).filter(pl.col("evidence") != "measured"))


def first_ten(rows: pl.DataFrame) -> None:
    """Print how many of the first ten are right, of all predicted ones and of trained ones."""
    for name, part in (
        ("all predicted", rows),
        ("knocked down in training", rows.filter(evidence="predicted_seen")),
        ("never knocked down", rows.filter(evidence="predicted_unseen")),
    ):
        right, moved = [], []
        for _, one in part.group_by("program", "context"):
            for sign in (1, -1):
                best = one.sort(sign * pl.col("score"), descending=True).head(10)
                true = sign * best["true"].to_numpy()
                right.append((true >= LEAST).mean())
                moved.append(true.mean())
        slope = (part["score"] * part["true"]).sum() / (part["score"] ** 2).sum()
        print(
            f"first ten, {name}: {np.mean(right):.2f} move it by {LEAST:g} or more, "
            f"{np.mean(moved):.3f} in the mean; slope of truth on score {slope:.2f}"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
