"""The rank-sum test is scipy's, to the last digits: ties, zeros, empty groups, any order."""

import numpy as np
import pytest
from scipy import sparse, stats

from knockscreen.score import rank_sums
from knockscreen.score.rank_sums import over_strata, rank_sum_test, sort_controls


def screen(seed, *, cells=(40, 1, 7, 260), controls=150, genes=24, dtype=np.float64):
    """Groups of cells and controls; genes from silent to abundant, whole numbers or not."""
    rng = np.random.default_rng(seed)
    rate = np.exp(rng.uniform(-4, 2, genes))
    rate[0], rate[1] = 0, 50
    group = np.repeat(np.arange(len(cells)), cells)
    shift = np.exp(rng.normal(0, 0.7, (len(cells), genes)))[group]
    values = [rng.poisson(rate * shift), rng.poisson(rate, (controls, genes))]
    scaled = rng.integers(2, size=genes) == 1  # half of the genes have no ties but zeros
    sizes = [rng.uniform(0.5, 2, (len(v), 1)) for v in values]
    dense = [
        np.log1p(np.where(scaled, v * s, v)).astype(dtype)
        for v, s in zip(values, sizes, strict=True)
    ]
    return dense[0], group, dense[1]


def run(cells, group, controls, n_groups=None):
    n_groups = n_groups or int(group.max()) + 1
    sorted_controls = sort_controls(sparse.csr_matrix(controls))
    return rank_sum_test(sparse.csr_matrix(cells), group, n_groups, sorted_controls)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("seed", range(4))
def test_p_values_are_those_of_scipy(seed, dtype):
    cells, group, controls = screen(seed, dtype=dtype)
    found = run(cells, group, controls)
    for k in range(4):
        both = cells[group == k].astype(np.float64), controls.astype(np.float64)
        exact = stats.mannwhitneyu(*both, axis=0, method="asymptotic")
        assert (found.u[k] == exact.statistic).all()
        assert found.p_value[k] == pytest.approx(exact.pvalue, rel=1e-9, abs=0)


def test_far_apart_groups_keep_the_digits_of_tiny_p_values():
    rng = np.random.default_rng(1)
    cells, controls = rng.poisson(9, (400, 3)) + 1.0, rng.poisson(0.5, (3000, 3)) + 0.0
    found = run(cells, np.zeros(400, int), controls)
    exact = stats.mannwhitneyu(cells, controls, axis=0, method="asymptotic").pvalue
    assert exact.max() < 1e-150
    assert found.p_value[0] == pytest.approx(exact, rel=1e-9, abs=0)


def test_order_of_cells_and_size_of_batches_change_nothing(monkeypatch):
    cells, group, controls = screen(9)
    whole = run(cells, group, controls)
    monkeypatch.setattr(rank_sums, "VALUES_AT_ONCE", 50)
    order = np.random.default_rng(2).permutation(len(cells))
    found = run(cells[order], group[order], controls[::-1])
    assert (found.u == whole.u).all()
    assert (found.p_value == whole.p_value).all()


def test_zeros_that_are_stored_count_as_zeros():
    cells, group, controls = screen(3)
    stored = sparse.csr_matrix(np.ones_like(cells))
    stored.data = cells.ravel()
    exact = run(cells, group, controls).p_value
    found = rank_sum_test(stored, group, 4, sort_controls(sparse.csr_matrix(controls)))
    assert (found.p_value == exact).all()


def test_silent_genes_say_nothing_and_groups_without_cells_are_not_tested():
    found = run(np.zeros((2, 1)), np.array([0, 2]), np.zeros((3, 1)))
    assert found.p_value[[0, 2], 0].tolist() == [1, 1]
    assert found.auroc[[0, 2], 0].tolist() == [0.5, 0.5]
    assert np.isnan([found.p_value[1, 0], found.u[1, 0], found.auroc[1, 0]]).all()


def test_what_cannot_be_ranked_is_refused():
    with pytest.raises(ValueError, match="negative or missing"):
        sort_controls(sparse.csr_matrix([[-1.0]]))
    with pytest.raises(ValueError, match="no control cells"):
        sort_controls(sparse.csr_matrix((0, 2)))
    with pytest.raises(ValueError, match=r"shape \(1, 2\), expected \(1, 1\)"):
        run(np.ones((1, 2)), np.zeros(1, int), np.ones((1, 1)))


def test_z_has_the_sign_of_the_shift_and_the_p_value_of_the_test():
    cells, group, controls = screen(5)
    found = run(cells, group, controls)
    assert found.p_value == pytest.approx(2 * stats.norm.sf(np.abs(found.z)), rel=1e-9)
    far = found.p_value < 0.05
    assert far.any()
    assert (np.sign(found.z)[far] == np.sign(found.auroc - 0.5)[far]).all()
    assert (found.z[:, 0] == 0).all()  # a silent gene


def test_one_stratum_has_its_own_p_values():
    cells, group, controls = screen(6)
    found = run(cells, group, controls)
    alone = over_strata(found.z[3:], np.array([260]), np.array([150]))
    assert alone == pytest.approx(found.p_value[3], rel=1e-12)


def test_strata_are_pooled_as_van_elteren_does():
    rng = np.random.default_rng(7)
    n, n_control = np.array([12, 30]), np.array([70, 20])
    z, top, bottom = [], 0.0, 0.0
    for mine, theirs, level in zip(n, n_control, (0.0, 50.0), strict=True):
        cells = level + rng.uniform(0.2, 1.2, (mine, 4))  # no ties
        controls = level + rng.uniform(0, 1, (theirs, 4))
        z.append(run(cells, np.zeros(mine, int), controls).z[0])
        off = stats.mannwhitneyu(cells, controls, axis=0).statistic - mine * theirs / 2
        top = top + (off - np.sign(off) / 2) / (mine + theirs + 1)
        bottom = bottom + mine * theirs / 12 / (mine + theirs + 1)
    exact = 2 * stats.norm.sf(np.abs(top) / np.sqrt(bottom))
    assert over_strata(np.stack(z), n, n_control) == pytest.approx(exact, rel=1e-9)
