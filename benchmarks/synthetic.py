"""Counts of cells that look like single-cell RNA: for benchmarks that need many, soon.

Molecules are drawn gene by gene from log-normal rates. Half of the cells are in another state,
in which a tenth of the genes are expressed otherwise, so that some genes are really variable.
"""

from collections.abc import Iterator

import numpy as np
from scipy import sparse

DRAWS = 1 << 20
"""Rates are rounded to whole parts of this."""


def profiles(genes: int, rng: np.random.Generator, spread: float) -> list[np.ndarray]:
    """Return, for each state, the gene of each of ``DRAWS`` equally likely molecules."""
    rate = rng.normal(0, spread, genes)
    other = rate.copy()
    moved = rng.choice(genes, genes // 10, replace=False)
    other[moved] += rng.normal(0, 1.0, len(moved))
    tables = []
    for log_rate in (rate, other):
        share = np.cumsum(np.exp(log_rate)) / np.exp(log_rate).sum()
        tables.append(np.searchsorted(share, (np.arange(DRAWS) + 0.5) / DRAWS).astype(np.int64))
    return tables


def batches(
    cells: int, genes: int, *, molecules: float, spread: float = 1.6, seed: int = 0, size: int = 500
) -> Iterator[sparse.csr_matrix]:
    """Yield float32 CSR counts (at most ``size``, genes), ``molecules`` a cell in the median."""
    rng = np.random.default_rng(seed)
    tables = profiles(genes, rng, spread)
    for start in range(0, cells, size):
        n = min(size, cells - start)
        depth = np.maximum(1, molecules * np.exp(rng.normal(0, 0.4, n))).astype(np.int64)
        total = np.zeros((n, genes), dtype=np.int64)
        state = rng.integers(2, size=n)
        for s, table in enumerate(tables):
            row = np.repeat(np.flatnonzero(state == s), depth[state == s])
            gene = table[rng.integers(DRAWS, size=len(row))]
            total += np.bincount(row * genes + gene, minlength=n * genes).reshape(n, genes)
        yield sparse.csr_matrix(total, dtype=np.float32)


def log1p_cp10k(cells: int, genes: int, *, molecules: float, seed: int = 0) -> sparse.csr_matrix:
    """Return log1p CP10k (cells, genes), float32 CSR, as if the genes held half of the counts."""
    parts = []
    for counts in batches(cells, genes, molecules=molecules, seed=seed):
        scale = 5e3 / np.asarray(counts.sum(axis=1)).ravel()
        counts.data = np.log1p(counts.data * np.repeat(scale, np.diff(counts.indptr)))
        counts.data = counts.data.astype(np.float32)
        parts.append(counts)
    return sparse.vstack(parts).tocsr()
