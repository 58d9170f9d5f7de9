"""The training store as the models see it: contexts, rows, and refusals."""

import json

import numpy as np
import pytest

from fixtures.models import CONTEXTS, tiny_store
from fixtures.shards import write_store
from knockscreen.data.cells import CellStore, Vocabulary
from knockscreen.errors import DataError, UnknownNameError
from knockscreen.names import Split


def vocabulary(**factors) -> Vocabulary:
    return Vocabulary(
        gene_ids=("ENSG1",),
        genes=("GATA3",),
        factors=tuple(factors),
        levels=tuple(tuple(levels) for levels in factors.values()),
        target_ids=("non-targeting", "ENSG1"),
        targets=("non-targeting", "GATA3"),
    )


TWO = vocabulary(donor=["D1", "D2"], time=["Rest", "Stim8hr", "Stim48hr"])


def test_contexts_are_all_combinations_first_factor_slowest():
    assert TWO.contexts[:4] == (
        "donor=D1,time=Rest",
        "donor=D1,time=Stim8hr",
        "donor=D1,time=Stim48hr",
        "donor=D2,time=Rest",
    )
    assert TWO.context_levels[[0, 3]].tolist() == [[0, 0], [1, 0]]
    for name, codes in zip(TWO.contexts, TWO.context_levels, strict=True):
        assert TWO.context_codes(name).tolist() == codes.tolist()


def test_screen_without_factors_has_one_context_named_all():
    none = vocabulary()
    assert none.contexts == ("all",)
    assert none.context_levels.shape == (1, 0)
    assert none.context_codes("all").tolist() == []


@pytest.mark.parametrize("factors", [{}, None, {"time": ["Rest", "Stim8hr"]}])
def test_context_of_each_cell_is_the_one_of_its_level_codes(tmp_path, factors):
    store = CellStore.open(tiny_store(tmp_path / "store", factors=factors))
    index = store.context_index()
    codes = store.vocabulary.context_levels[index]
    assert codes.shape == store.contexts.shape
    assert (codes == store.contexts).all()
    assert len(np.unique(index)) == (1 if factors == {} else 2)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("donr=D1,time=Rest", "unknown context factor 'donr' in .*; nearest: donor"),
        ("donor=D1", "does not say which time; available: Rest, Stim8hr, Stim48hr"),
        ("donor=D1,time=Stim9hr", "unknown time 'Stim9hr' in .*; nearest: Stim"),
    ],
)
def test_wrong_contexts_are_named(name, sentence):
    with pytest.raises(UnknownNameError, match=sentence):
        TWO.context_codes(name)


def test_targets_are_found_by_symbol_or_id():
    assert [TWO.target_code(n) for n in ("GATA3", "ENSG1", "non-targeting", "IL4")] == [1, 1, 0, -1]


def test_rows_come_back_as_they_were_written_in_any_order(tmp_path):
    counts = np.array([[0, 1, 0, 5], [0, 0, 0, 0], [7, 0, 2, 1]])
    store = CellStore.open(write_store(tmp_path / "store", counts))
    assert store.dense(np.array([2, 1, 0, 2])).tolist() == counts[[2, 1, 0, 2]].tolist()
    assert store.dense(np.array([], dtype=int)).shape == (0, 4)
    pieces = list(store.chunks(np.arange(3), size=2))
    assert [len(rows) for rows, _ in pieces] == [2, 1]
    assert np.concatenate([piece for _, piece in pieces]).tolist() == counts.tolist()


def test_splits_and_controls_are_told_apart(tmp_path):
    store = CellStore.open(tiny_store(tmp_path / "store"))
    parts = [store.rows(split) for split in Split]
    assert sum(map(len, parts)) == len(store) == 200
    assert len(store.rows(Split.TRAIN, Split.TEST)) == len(parts[0]) + len(parts[2])
    assert store.is_control.mean() == 0.4
    assert set(store.library_size_log) == set(CONTEXTS)


def test_folder_that_is_no_store_and_another_format_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"is not a training store .* run 'knockscreen normalize'"):
        CellStore.open(tmp_path)
    folder = write_store(tmp_path / "store")
    about = json.loads((folder / "store.json").read_text())
    (folder / "store.json").write_text(json.dumps({**about, "format": 2}))
    with pytest.raises(DataError, match="has format 2, this version reads 1"):
        CellStore.open(folder)
