"""Streamed moments and the t-test from them, against numpy and scipy on the dense cells."""

import numpy as np
import pytest
from scipy import stats

from fixtures.shards import write_store
from knockscreen.score.cells import open_store
from knockscreen.score.moments import group_moments
from knockscreen.score.statistics import welch_t

GENES = [f"G{k}" for k in range(30)]


def screen(folder, seed):
    """120 cells: half control; the first gene is silent, the last one abundant."""
    rng = np.random.default_rng(seed)
    rate = np.geomspace(0.02, 60, 30)
    rate[0] = 0
    counts = rng.poisson(rate * rng.gamma(4, 0.25, (120, 1)))
    library = counts.sum(axis=1) + rng.integers(50, 500, 120)
    target = np.arange(120) % 2 * (1 + np.arange(120) % 3)
    contexts = np.zeros((120, 2), dtype=int)
    store = write_store(folder, counts, target, contexts, library_size=library, genes=GENES,
                        gene_ids=GENES)  # fmt: skip
    return open_store(store), counts / library[:, None] * 1e4


@pytest.mark.parametrize("seed", range(3))
def test_moments_are_those_of_the_dense_cells(tmp_path, seed):
    cells, cp10k = screen(tmp_path / "store", seed)
    rng = np.random.default_rng(seed)
    rows, group = rng.permutation(120)[:90], rng.integers(4, size=90)
    group[group == 2] = 5  # no cell in group 2, none or some in 4 and 5
    found = group_moments(cells, rows, group, 7)
    for g in range(7):
        mine = cp10k[rows[group == g]]
        assert found.n[g] == len(mine)
        if not len(mine):
            assert np.isnan(found.mean[g]).all()
            continue
        logged = np.log1p(mine)
        assert found.mean[g] == pytest.approx(logged.mean(0), rel=1e-12)
        assert found.cp10k[g] == pytest.approx(mine.mean(0), rel=1e-12)
        assert found.variance[g] == pytest.approx(logged.var(0, ddof=1), rel=1e-9, abs=1e-12)


def test_the_t_test_from_sums_is_scipys(tmp_path):
    cells, cp10k = screen(tmp_path / "store", 4)
    moments = group_moments(cells, cells.rows[cells.target > 0], cells.target[cells.target > 0], 4)
    zero = np.zeros((cells.target == 0).sum(), dtype=int)
    control = group_moments(cells, cells.rows[cells.target == 0], zero, 1)
    parts = np.stack([m.variance / m.n[:, None] + np.zeros((4, 30)) for m in (moments, control)])
    freedoms = np.stack([m.n[:, None] - 1 + np.zeros((4, 1)) for m in (moments, control)])
    with np.errstate(divide="ignore", invalid="ignore"):
        t, p = welch_t(moments.mean - control.mean, parts, freedoms)
    logged = np.log1p(cp10k)
    for k in np.unique(cells.target[cells.target > 0]):
        sides = logged[cells.target == k][:, 1:], logged[cells.target == 0][:, 1:]
        exact = stats.ttest_ind(*sides, equal_var=False, axis=0)
        assert t[k, 1:] == pytest.approx(exact.statistic, rel=1e-9, nan_ok=True)
        assert p[k, 1:] == pytest.approx(exact.pvalue, rel=1e-9, nan_ok=True)
    assert np.isnan(t[:, 0]).all()  # the silent gene
    assert np.isnan(p[0]).all()  # no cell has target code 0 there
