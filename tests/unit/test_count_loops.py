"""Loops over stored counts, compiled, equal numpy on the dense matrix of fresh random counts."""

import numpy as np
import pytest
from scipy import sparse

from knockscreen.compiled import compiled
from knockscreen.data import count_loops
from knockscreen.data.count_loops import NO_COUNT, UNSORTED, WRONG_GENE, ZERO

GENES = 50


@pytest.fixture(params=[0, 1, 2])
def screen(request):
    """Dense counts of 80 cells, as a CSR triple too, and who is kept; one cell is empty."""
    rng = np.random.default_rng(request.param)
    dense = rng.poisson(rng.gamma(0.5, 2, GENES), (80, GENES)).astype(np.float64)
    dense[11] = 0
    stored = sparse.csr_matrix(dense.astype(np.float32))
    return dense, (stored.data, stored.indices, stored.indptr), rng.random(80) < 0.7, rng


def run(loop, *arguments):
    return compiled(getattr(count_loops, loop))(*arguments)


@pytest.mark.parametrize(
    ("values", "genes", "found"),
    [
        ([1, 2, 3], [0, 4, 49], 0),
        ([1, 0, 3], [0, 4, 49], ZERO),
        ([1, 2.5, 3], [0, 4, 49], NO_COUNT),
        ([1, 0.4, 3], [0, 4, 49], NO_COUNT | ZERO),
        ([1, 3e9, 3], [0, 4, 49], NO_COUNT),
        ([1, -2, 3], [0, 4, 49], NO_COUNT),
        ([1, np.nan, 3], [0, 4, 49], NO_COUNT),
        ([1, np.inf, 3], [0, 4, 49], NO_COUNT),
        ([1, 2, 3], [4, 0, 49], UNSORTED),
        ([1, 2, 3], [4, 4, 49], UNSORTED),
        ([1, 2, 3], [0, 4, 50], WRONG_GENE),
        ([1, 2, 3], [-1, 4, 49], WRONG_GENE),
        ([0, 2.5, 3], [4, 0, 50], ZERO | NO_COUNT | UNSORTED | WRONG_GENE),
    ],
)
def test_what_is_wrong_with_counts_is_found(values, genes, found):
    counts = np.array(values, np.float32), np.array(genes, np.int32), np.array([0, 3, 3], np.int32)
    assert run("faults", counts, GENES) == found


def test_sums_over_cells_are_those_of_the_dense_counts(screen):
    dense, stored, _, rng = screen
    chosen, total, part = rng.random(GENES) < 0.2, np.zeros(80), np.zeros(80)
    run("cell_sums", stored, chosen, total, part)
    assert (total == dense.sum(1)).all()
    assert (part == dense[:, chosen].sum(1)).all()


def test_each_cell_is_asked_for_its_own_gene(screen):
    dense, stored, _, rng = screen
    own, value = rng.integers(-1, GENES, 80), np.zeros(80)
    run("own_values", stored, own, value)
    assert (value == np.where(own < 0, 0, dense[np.arange(80), own])).all()


def test_sums_over_genes_are_of_kept_cells(screen):
    dense, stored, kept, _ = screen
    n, total = np.zeros(GENES, dtype=np.int64), np.zeros(GENES)
    run("gene_sums", stored, kept, n, total)
    assert (n == (dense[kept] > 0).sum(0)).all()
    assert (total == dense[kept].sum(0)).all()


def test_scaled_sums_are_by_batch_of_training_cells(screen):
    dense, stored, kept, rng = screen
    batch = np.where(kept, rng.integers(-1, 3, 80), -1)
    library = dense.sum(1) + rng.integers(1, 100, 80)
    sums, seen_other = [np.zeros((3, GENES)) for _ in range(3)], np.zeros(GENES, dtype=np.int64)
    highest = run("scaled_sums", stored, (kept, batch, library), tuple(sums), seen_other)
    scaled = dense / library[:, None] * 1e4
    for b in range(3):
        mine = scaled[batch == b]
        assert sums[0][b] == pytest.approx(mine.sum(0), rel=1e-12)
        assert sums[1][b] == pytest.approx((mine**2).sum(0), rel=1e-12)
        assert (sums[2][b] == (mine > 0).sum(0)).all()
    assert highest == dense[kept].max()
    assert (seen_other == (dense[kept & (batch < 0)] > 0).sum(0)).all()


@pytest.mark.parametrize("types", [(np.uint16, np.uint16), (np.uint32, np.uint32)])
def test_the_panel_of_kept_cells_is_cut_out(screen, types):
    dense, stored, kept, rng = screen
    panel = np.sort(rng.permutation(GENES)[:20])
    column = np.full(GENES, -1)
    column[panel] = np.arange(20)
    out = (np.empty(len(stored[0]) + 1, types[0]), np.empty(len(stored[0]) + 1, types[1]))
    lengths = np.zeros(80, dtype=np.int64)
    used = run("panel_values", stored, kept, column, (*out, lengths))
    expected = sparse.csr_matrix(dense[kept][:, panel])
    assert (out[0][:used] == expected.indices).all()
    assert (out[1][:used] == expected.data).all()
    assert (lengths[kept] == np.diff(expected.indptr)).all()
    assert not lengths[~kept].any()
