"""Moments of knock-downs' cells and Welch's t-test from them, beside scanpy's t-test.

    python benchmarks/moments.py [--targets 500] [--rounds 5] [--record]

500 knock-downs x 100 cells x 3,700 genes (17 % of values not zero) against 5,000 control cells.
Ours reads raw counts from a training store on disk, as ``measure`` and ``evaluate`` do, scales and
logs them, sums, and tests target by target, as ``evaluate`` does; scanpy is given log1p CP10k in
memory. CPU seconds on one thread, compiled code warm. Prints how far the p-values of both lie from
scipy's in float64.
"""

import json
import tempfile
import warnings
from pathlib import Path

import anndata
import numba
import numpy as np
import pandas as pd
import polars as pl
import rounds
from scipy import sparse, stats
from synthetic import batches

from knockscreen.score.cells import StoredCells, open_store
from knockscreen.score.moments import group_moments
from knockscreen.score.statistics import welch_t

CELLS, CONTROLS, GENES = 100, 5_000, 3_700
CONTROL = "non-targeting"


def write_store(folder: Path, counts: sparse.csr_matrix, target: np.ndarray) -> StoredCells:
    """Write a training store of one context and open it."""
    n, genes = counts.shape
    named = [CONTROL, *(f"T{k:04d}" for k in range(1, target.max() + 1))]
    arrays = {
        "indptr": counts.indptr.astype(np.int64), "indices": counts.indices.astype(np.uint16),
        "counts": counts.data.astype(np.uint16), "target": target.astype(np.int32),
        "library_size": 2.0 * np.asarray(counts.sum(axis=1), dtype=np.float32).ravel(),
        "contexts": np.zeros((n, 1), dtype=np.int16), "split": np.zeros(n, dtype=np.int8),
    }  # fmt: skip
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", values)
    columns = {
        "replicate": pl.Series(["r"] * n),
        "guide_id": pl.Series([None] * n, dtype=pl.String),
    }
    pl.DataFrame(columns).write_parquet(folder / "cells.parquet")
    about = {
        "format": 1, "factors": {"donor": ["D1"]},
        "genes": [{"gene_id": f"G{k}", "gene": f"G{k}"} for k in range(genes)],
        "targets": [{"target_gene_id": name, "target_gene": name} for name in named],
    }  # fmt: skip
    (folder / "store.json").write_text(json.dumps(about))
    return open_store(folder)


def ours(cells: StoredCells) -> np.ndarray:
    moments = group_moments(cells, cells.rows, cells.target, int(cells.target.max()) + 1)
    squared_error = moments.variance / moments.n[:, None]
    found = np.empty((len(moments.n) - 1, moments.mean.shape[1]))
    for k in range(1, len(moments.n)):
        freedoms = moments.n[[k, 0], None] - 1
        delta = moments.mean[k] - moments.mean[0]
        found[k - 1] = welch_t(delta, squared_error[[k, 0]], freedoms)[1]
    return found


def scanpy(adata: anndata.AnnData) -> list[np.recarray]:
    import scanpy as sc

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.tl.rank_genes_groups(adata, "group", reference=CONTROL, method="t-test")
    found = adata.uns["rank_genes_groups"]
    return [found["names"], found["pvals"]]


def main() -> None:
    parser = rounds.parser(__doc__)
    parser.add_argument("--targets", type=int, default=500)
    options = parser.parse_args()
    numba.set_num_threads(1)  # scanpy's threads spin while they wait, which counts as work
    n = CONTROLS + options.targets * CELLS
    counts = sparse.vstack(list(batches(n, GENES, molecules=1_050))).tocsr()
    target = np.repeat(np.arange(options.targets + 1), [CONTROLS] + [CELLS] * options.targets)
    with tempfile.TemporaryDirectory() as folder:
        cells = write_store(Path(folder), counts, target)
        logged = sparse.csr_matrix(cells.cp10k(cells.rows), dtype=np.float32)
        logged.data = np.log1p(logged.data)
        obs = pd.DataFrame({"group": [cells.target_gene_ids[t] for t in target]})
        obs.index = obs.index.astype(str)
        var = pd.DataFrame(index=[str(g) for g in range(GENES)])
        adata = anndata.AnnData(logged, obs.astype("category"), var)
        found, (names, p_values) = ours(cells), scanpy(adata)
        for k in (1, options.targets):
            sides = [np.log1p(cells.cp10k(np.flatnonzero(target == t)).toarray()) for t in (k, 0)]
            exact = stats.ttest_ind(*sides, equal_var=False, axis=0).pvalue
            name = cells.target_gene_ids[k]
            theirs = np.empty(GENES)
            theirs[names[name].astype(int)] = p_values[name]
            far = [np.nanmax(np.abs(p - exact)) for p in (found[k - 1], theirs)]
            print(
                f"{name}: largest distance of p from scipy: ours {far[0]:.1e}, scanpy {far[1]:.1e}"
            )
        result = rounds.compare(
            lambda: ours(cells), lambda: scanpy(adata), rounds=options.rounds, warm=False
        )
    stage = f"moments and Welch t, {options.targets} knock-downs x {CELLS} cells x {GENES:,} genes"
    rounds.report(stage, "scanpy t-test", result, bar=5, record=options.record)


if __name__ == "__main__":
    main()
