"""Gene features: co-expression among controls, or a table of the user's."""

import numpy as np
import pytest

from fixtures.shards import GENE_IDS, write_store
from knockscreen.data.cells import CellStore
from knockscreen.data.features import coexpression, read_table
from knockscreen.errors import DataError


@pytest.fixture
def store(tmp_path):
    """Genes 0 and 1 go together, 2 its own way, 3 is silent; one donor has twice the counts."""
    rng = np.random.default_rng(0)
    cells, donor = 400, np.repeat([0, 1], 200)
    shared = rng.gamma(2.0, 1.0, cells)
    rates = np.stack([9 * shared, 9 * shared, np.full(cells, 9.0), np.zeros(cells)], axis=1)
    counts = rng.poisson(rates * (1 + donor[:, None]))
    contexts = np.stack([donor, 0 * donor], axis=1)
    folder = write_store(
        tmp_path / "store", counts, contexts=contexts, library_size=np.full(cells, 1e4)
    )
    return CellStore.open(folder)


def test_genes_expressed_together_have_like_features(store):
    features = coexpression(store, dims=3)[:3]
    likeness = features @ features.T  # correlations within context
    np.testing.assert_allclose(np.diag(likeness), 1, atol=1e-5)
    assert likeness[0, 1] > 0.8
    assert abs(likeness[0, 2]) < 0.2  # donors alone would make it high


def test_silent_gene_has_no_features_and_dims_are_at_most_the_genes(store):
    features = coexpression(store, dims=99)
    assert features.shape == (4, 4)
    assert np.isnan(features[3]).all()
    assert np.isfinite(features[:3]).all()


def test_features_need_training_controls(store):
    from dataclasses import replace

    with pytest.raises(DataError, match="no training control cells to learn gene features from"):
        coexpression(replace(store, target=store.target + 1), dims=2)


def names(store):
    return store.vocabulary.gene_ids, store.vocabulary.genes


def write(tmp_path, text):
    path = tmp_path / "features.tsv"
    path.write_text(text)
    return path


def test_table_is_read_by_symbol_or_id_and_standardised(store, tmp_path):
    path = write(tmp_path, f"gene\tx\ty\nGATA3\t1\t5\n{GENE_IDS[1]}\t3\t5\nELSE\t9\t9\n")
    features = read_table(path, *names(store))
    assert features[:2].tolist() == [[-1, 0], [1, 0]]
    assert np.isnan(features[2:]).all()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "needs a header, a gene column and at least one number"),
        ("gene\nGATA3\n", "needs a header"),
        ("gene,x\nGATA3,one\n", r"line 2 \('GATA3'\): expected 1 finite numbers"),
        ("gene,x\nGATA3,nan\n", r"line 2 \('GATA3'\): expected 1 finite numbers, found nan; fill"),
        ("gene,x\nGATA3,1\n\n", r"line 3 \(''\): expected 1 finite numbers"),
        ("gene,x\nGATA3,1\nGATA3,2\n", r"has 'GATA3' twice \(line 3\)"),
        (f"gene,x\nGATA3,1\n{GENE_IDS[0]},1\n", f"GATA3 twice, as 'GATA3' and as '{GENE_IDS[0]}'"),
        ("gene,x\nGATA33,1\n", "none of the 4 panel genes: its first is 'GATA33', the panel's are"),
        (f"gene,x\n{GENE_IDS[0]}.7,1\n", "take the version off the ids"),
        ("gene,x\nGata3,1\n", "'GATA3' or 'ENSG1'; write the symbols in the same case"),
        ("gene,x\n2625,1\n7124,2\n", r"turn the numbers \(Entrez ids\?\) into symbols"),
        ("gene,x\nAT1G01010,1\n", "give symbols or Ensembl ids of the same species"),
    ],
)
def test_wrong_tables_are_one_sentence(store, tmp_path, text, sentence):
    with pytest.raises(DataError, match=sentence):
        read_table(write(tmp_path, text), *names(store))


def test_a_table_that_is_not_text_is_one_sentence(store, tmp_path):
    path = tmp_path / "features.parquet"
    path.write_bytes(b"PAR1\x80\xff\x00")
    with pytest.raises(DataError, match=r"is not a text table .*; write it as tab- or comma-"):
        read_table(path, *names(store))


def test_missing_table_names_its_setting(store, tmp_path):
    with pytest.raises(DataError, match=r"does not exist \(effect\.features\)"):
        read_table(tmp_path / "none.tsv", *names(store))
