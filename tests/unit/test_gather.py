"""Rows of a store are gathered alike by compiled loops and by numpy, and never from outside it."""

import numpy as np
import pytest
from scipy import sparse

from fixtures.models import tiny_store
from knockscreen import compiled
from knockscreen.data import gather
from knockscreen.data.cells import CellStore
from knockscreen.data.gather import dense_rows, token_rows
from knockscreen.errors import DataError


def stored(seed, *, cells=60, genes=40, count=np.uint16, index=np.uint16):
    counts = np.random.default_rng(seed).poisson(0.4, (cells, genes))
    counts[7] = 0
    matrix = sparse.csr_matrix(counts)
    triple = (matrix.data.astype(count), matrix.indices.astype(index), matrix.indptr.astype(int))
    return counts, triple


@pytest.fixture(params=["compiled", "numpy"])
def way(request, monkeypatch):
    """Both ways of gathering: as of a large store, and as on an image without numba."""
    assert compiled.available()
    monkeypatch.setattr(gather, "LARGE", 0)
    if request.param == "numpy":
        monkeypatch.setattr(gather, "available", lambda: False)
    return request.param


@pytest.mark.parametrize("types", [(np.uint16, np.uint16), (np.uint32, np.uint32)])
@pytest.mark.parametrize("seed", range(3))
def test_dense_rows_are_the_counts_in_any_order(way, seed, types):
    counts, triple = stored(seed, count=types[0], index=types[1])
    rows = np.random.default_rng(seed).integers(60, size=100)
    found = dense_rows(triple, rows, 40)
    assert found.dtype == np.float32
    assert (found == counts[rows]).all()
    assert dense_rows(triple, np.zeros(0, int), 40).shape == (0, 40)


@pytest.mark.parametrize("seed", range(3))
def test_tokens_are_the_expressed_genes_and_zeros_after_them(way, seed):
    counts, triple = stored(seed)
    rows = np.append(np.random.default_rng(seed).permutation(60)[:30], 7)
    found = token_rows(triple, rows, 40)
    assert found.gene.shape == (31, found.length.max())
    for i, row in enumerate(rows):
        n = found.length[i]
        assert found.gene[i, :n].tolist() == np.flatnonzero(counts[row]).tolist()
        assert found.count[i, :n].tolist() == counts[row][counts[row] > 0].tolist()
        assert not found.gene[i, n:].any()
        assert not found.count[i, n:].any()
    assert token_rows(triple, np.zeros(0, int), 40).gene.shape == (0, 0)


@pytest.mark.parametrize("rows", [[-1], [60]])
def test_rows_that_are_not_there_are_refused(way, rows):
    with pytest.raises(IndexError, match="not all among the 60"):
        dense_rows(stored(0)[1], np.array(rows), 40)


def test_a_damaged_store_is_refused_not_read_beyond_its_end(monkeypatch):
    monkeypatch.setattr(gather, "LARGE", 0)
    _, (counts, indices, indptr) = stored(0)
    with pytest.raises(DataError, match="cell 3 of the training store is damaged"):
        dense_rows((counts, indices, indptr), np.array([3]), int(indices[indptr[3]]))
    with pytest.raises(DataError, match="cell 59 of the training store is damaged"):
        token_rows((counts[:-1], indices[:-1], indptr), np.array([59]), 40)


def test_the_store_on_disk_is_gathered_without_being_read_whole(tmp_path, way):
    store = CellStore.open(tiny_store(tmp_path / "store"))
    assert isinstance(store.counts, np.memmap)
    rows = np.random.default_rng(0).permutation(len(store))
    dense, tokens = store.dense(rows), store.tokens(rows)
    assert (tokens.length == (dense > 0).sum(1)).all()
    again = np.zeros_like(dense)
    np.add.at(again, (np.arange(len(rows))[:, None], tokens.gene), tokens.count)
    assert (again == dense).all()
