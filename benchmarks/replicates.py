"""Tests of measured effects against each other: false positives, power and time.

python benchmarks/replicates.py truth results/demo     # a simulated run with its true effects
python benchmarks/replicates.py null results/flat      # a simulated run without any effect
python benchmarks/replicates.py controls results/thp1  # sets of control units as knock-downs

More arguments: how many knock-downs (or control units in a set), and methods. ``replicates`` is
what `knockscreen measure` does; ``welch`` Welch's t over unit means; ``limma`` the moderated t of
unweighted unit means; ``cells`` Welch's t over cells; ``wilcoxon`` rank sums over cells; ``deseq2``
on pseudobulk counts (pydeseq2) where it is installed: pip install pydeseq2.
Contexts that differ by donor alone are pooled, with donor as a block.
"""

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
from scipy import sparse, stats

from knockscreen.names import parse_context
from knockscreen.score.cells import StoredCells, open_store
from knockscreen.score.contexts import pooled_contexts
from knockscreen.score.moments import group_moments, pseudobulks, replicate_units
from knockscreen.score.rank_sums import rank_sum_test, sort_controls
from knockscreen.score.replicates import (
    judge,
    moderate,
    overdispersion,
    pooled_variance,
    summarise,
)
from knockscreen.score.statistics import benjamini_hochberg

FDR = 0.1
SETS = 36
"""Sets of control units tested per context."""
NONE = np.zeros(0, dtype=np.int64)
Side = np.ndarray  # positions of cells


def sides(cells: StoredCells, target: Side, control: Side, members: list[int]) -> Iterator[tuple]:
    """Yield a side's label and its cells in the pooled contexts."""
    for label, chosen in (("knockdown", target), ("control", control)):
        yield label, chosen[np.isin(cells.context[chosen], members)]


def units(cells: StoredCells, chosen: Side, unit: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return context (B,), cells (B,), means (B, G) of pseudobulks, and each cell's pseudobulk."""
    pairs, code = np.unique(
        np.stack([cells.context[chosen], unit[chosen]], 1), axis=0, return_inverse=True
    )
    found = group_moments(cells, cells.rows[chosen], code.reshape(-1), len(pairs))
    return pairs[:, 0], found.n, found.mean, code.reshape(-1)


def replicates(cells, target, control, unit, members):
    c = len(cells.contexts)
    moments = [group_moments(cells, cells.rows[s], cells.context[s], c) for s in (target, control)]
    both = [pseudobulks(cells, s, unit, NONE)[0] for s in (target, control)]
    t, k = moments
    variance = pooled_variance(t.variance, t.n, k.variance, k.n)
    delta = (t.mean - k.mean)[members].mean(axis=0)
    phi = moderate(*overdispersion(*both, variance, members))
    return judge(delta, phi, variance, (t.n, k.n), members)[1]


def welch(cells, target, control, unit, members):
    (ct, _, yt, _), (cc, _, yc, _) = (units(cells, s, unit) for s in (target, control))
    centre = {m: yc[cc == m].mean(axis=0) for m in members}
    a, b = (
        np.stack([y - centre[m] for m, y in zip(c, ys, strict=True) if m in members])
        for c, ys in ((ct, yt), (cc, yc))
    )
    return stats.ttest_ind(a, b, equal_var=False, axis=0).pvalue


def limma(cells, target, control, unit, members):
    c = len(cells.contexts)
    both = []
    for side in (target, control):
        context, _, means, _ = units(cells, side, unit)
        both.append(summarise(context, np.ones(len(context)), means, c))
    one = np.ones((c, len(cells.gene_ids)))
    phi, freedom = overdispersion(*both, one, members)
    phi, freedom = moderate(np.where(phi > 1e-12, phi, np.nan), freedom)
    delta = (both[0].mean - both[1].mean)[members].mean(axis=0)
    each = sum(1 / side.cells[members] for side in both).sum() / len(members) ** 2
    return 2 * stats.t.sf(np.abs(delta) / np.sqrt(phi * each), freedom)


def cells_t(cells, target, control, unit, members):
    c = len(cells.contexts)
    t, k = (group_moments(cells, cells.rows[s], cells.context[s], c) for s in (target, control))
    delta = (t.mean - k.mean)[members].mean(axis=0)
    parts = [m.variance[members] / m.n[members][:, None] for m in (t, k)]
    error = np.sqrt(sum(parts).sum(axis=0)) / len(members)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(error > 0, 2 * stats.norm.sf(np.abs(delta) / error), np.nan)


def wilcoxon(cells, target, control, unit, members):
    values = []
    for _, chosen in sides(cells, target, control, members):
        logged = cells.cp10k(cells.rows[chosen])
        logged.data = np.log1p(logged.data)
        values.append(logged)
    one = np.zeros(values[0].shape[0], dtype=np.int64)
    return rank_sum_test(values[0], one, 1, sort_controls(values[1])).p_value[0]


def deseq2(cells, target, control, unit, members):
    import pandas as pd
    from pydeseq2.dds import DeseqDataSet
    from pydeseq2.ds import DeseqStats

    counts, meta = [], []
    for label, chosen in sides(cells, target, control, members):
        context, _, _, code = units(cells, chosen, unit)
        rows = cells.rows[chosen]
        raw = sparse.diags(cells.library_size[rows] / 1e4) @ cells.cp10k(rows)
        sums = sparse.csr_matrix((np.ones(len(code)), (code, np.arange(len(code)))))
        counts.append(np.rint((sums @ raw).toarray()).astype(int))
        meta += [(label, f"context{m}") for m in context]
    table = np.concatenate(counts)
    names = [f"bulk{i}" for i in range(len(table))]
    frame = pd.DataFrame(meta, columns=["side", "context"], index=names)
    use = table.sum(axis=0) > 0
    fitted = DeseqDataSet(
        counts=pd.DataFrame(table[:, use], index=names), metadata=frame, quiet=True, n_cpus=1,
        design="~context + side" if len(members) > 1 else "~side",
    )  # fmt: skip
    fitted.deseq2()
    tested = DeseqStats(
        fitted, contrast=["side", "knockdown", "control"], quiet=True, n_cpus=1,
        independent_filter=False, cooks_filter=False,
    )  # fmt: skip
    tested.summary()
    p = np.full(table.shape[1], np.nan)
    p[use] = tested.results_df["pvalue"].to_numpy()
    return p


METHODS: dict[str, Callable] = {
    "replicates": replicates, "welch": welch, "limma": limma, "cells": cells_t,
    "wilcoxon": wilcoxon, "deseq2": deseq2,
}  # fmt: skip


def report(name: str, p: np.ndarray, seconds: float, truth: np.ndarray | None) -> None:
    """Print rates of p-values (tests, G); truth holds true log2 fold changes of the same shape."""
    tested = np.isfinite(p)
    called = np.nan_to_num(np.array([benjamini_hochberg(row) for row in p]), nan=1.0) < FDR
    line = (
        f"{name:12s} tests {len(p):4d}  p<0.05 {np.mean(p[tested] < 0.05):.4f}  p<0.001 "
        f"{np.mean(p[tested] < 0.001):.4f}  any call {called.any(axis=1).mean():.3f}  calls "
        f"{called.sum(axis=1).mean():6.2f}  {1e3 * seconds / len(p):8.1f} ms"
    )
    if truth is not None:
        large, none = np.abs(truth) >= 0.5, np.abs(truth) < 0.02
        line += (
            f"  power {called[large].mean():.3f}  false share "
            f"{(called & none).sum() / max(called.sum(), 1):.3f}  null p<0.05 "
            f"{np.mean(p[none & tested] < 0.05):.4f}"
        )
    print(line, flush=True)


def knockdowns(run: Path, name: str, most: int) -> tuple[np.ndarray, float, np.ndarray | None]:
    """Test knock-downs of a run, contexts pooled over donors; the own gene is left out."""
    cells = open_store(run / "store")
    unit = replicate_units(cells, "auto")
    control = np.flatnonzero(cells.target == 0)
    with np.load(run / "input" / "truth.npz") as file:
        truth = {
            key: file[key] for key in ("log2_fold_change", "gene_id", "target_gene_id", "contexts")
        }
    column = [list(truth["gene_id"]).index(g) for g in cells.gene_ids]
    at = [list(truth["contexts"]).index(c) for c in cells.contexts]
    found, true, seconds = [], [], 0.0
    for code in np.unique(cells.target)[1:][:most]:
        target = np.flatnonzero(cells.target == code)
        gene_id = cells.target_gene_ids[code]
        row = list(truth["target_gene_id"]).index(gene_id)
        for context, members in pooled_contexts(cells.contexts, ["donor"]).items():
            there = [m for m in members if np.any(cells.context[target] == m)]
            if "donor" in parse_context(context) or not there:
                continue
            start = time.perf_counter()
            p = METHODS[name](cells, target, control, unit, there)
            seconds += time.perf_counter() - start
            found.append(np.where(np.array(cells.gene_ids) == gene_id, np.nan, p))
            effects = truth["log2_fold_change"][[at[m] for m in there], row]
            true.append(effects.mean(axis=0)[column])
    return np.array(found), seconds, np.array(true)


def controls(run: Path, name: str, size: int) -> tuple[np.ndarray, float, None]:
    """Test sets of ``size`` control units against the other ones, context by context."""
    cells = open_store(run / "store")
    unit = replicate_units(cells, "auto")
    rng = np.random.default_rng(0)
    everyone = np.flatnonzero((cells.target == 0) & (unit >= 0))
    found, seconds = [], 0.0
    for m in range(len(cells.contexts)):
        control = everyone[cells.context[everyone] == m]
        names = np.unique(unit[control])
        sets = (
            list(combinations(names, size))
            if len(names) < 12
            else [rng.choice(names, size, replace=False) for _ in range(SETS)]
        )
        for chosen in sets[:SETS]:
            inside = np.isin(unit[control], chosen)
            start = time.perf_counter()
            found.append(METHODS[name](cells, control[inside], control[~inside], unit, [m]))
            seconds += time.perf_counter() - start
    return np.array(found), seconds, None


def main(kind: str, run: Path, most: int, names: list[str]) -> None:
    for name in names or METHODS:
        try:
            if kind == "controls":
                p, seconds, truth = controls(run, name, most)
            else:
                p, seconds, truth = knockdowns(run, name, most)
        except ImportError as error:
            print(f"{name:12s} not installed ({error.name})")
            continue
        report(name, p, seconds, truth if kind == "truth" else None)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    arguments = sys.argv[1:]
    number = int(arguments[2]) if len(arguments) > 2 else 2 if arguments[0] == "controls" else 60
    main(arguments[0], Path(arguments[1]), number, arguments[3:])
