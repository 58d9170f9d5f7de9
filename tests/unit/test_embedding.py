"""Embedding any file: genes are matched by name, and a gene that is not there is not a zero."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from knockscreen.cli_embed import _data
from knockscreen.data.cells import Vocabulary
from knockscreen.data.counts import CountsFile
from knockscreen.data.h5ad import open_h5ad
from knockscreen.data.vocab import Genes
from knockscreen.embedding import (
    FILLINGS,
    KEY,
    embed_chunks,
    embed_counts,
    match_genes,
    write_embedding,
)
from knockscreen.errors import DataError
from knockscreen.models.vae import VAE_SIZES, TransformerVAE, VaeSettings

IDS = ("ENSG1", "ENSG2", "ENSG3", "ENSG4", "ENSG5")
GENES = ("STAT1", "JAK2", "ACTB", "FOXP3", "IL2RA")
PANEL = Vocabulary(IDS, GENES, (), (), (), ())


def match(ids, genes=None):
    return match_genes(
        Genes(tuple(ids), tuple(genes or ids)), PANEL, file=Path("a.h5ad"), vae=Path("vae")
    )


@pytest.fixture(scope="module")
def model() -> TransformerVAE:
    torch.manual_seed(0)
    return TransformerVAE(5, VaeSettings(VAE_SIZES["tiny"])).eval()


COUNTS = np.random.default_rng(0).poisson(3.0, (9, 5)).astype(np.float32)


def write(path: Path, counts=COUNTS, ids=IDS, genes=GENES, **parts) -> Path:
    var = pd.DataFrame({"gene_symbol": genes, "ensembl_id": ids}, index=list(genes))
    obs = pd.DataFrame({"kind": ["T cell"] * len(counts)}, index=[f"c{i}" for i in range(9)])
    anndata.AnnData(sparse.csr_matrix(counts), obs, var, **parts).write_h5ad(path)
    return path


def embedded(model, path: Path, output: Path, layer: str | None = None) -> np.ndarray:
    with open_h5ad(path) as handle:
        file = CountsFile(path, handle, _data(path, layer, None, None))
        found = match_genes(file.genes, PANEL, file=path, vae=Path("vae"))
        write_embedding(output, model, file, found, {"what": "a test"})
    return anndata.read_h5ad(output).obsm[KEY]


def test_genes_are_matched_by_id_whatever_their_order_and_version():
    found = match(["ENSG9", "ENSG3.12", "ENSG1", "ENSG5"])
    assert found.panel.tolist() == [0, 2, 4]
    assert found.columns.tolist() == [2, 1, 3]
    assert (found.by_id, found.by_symbol) == (3, 0)


def test_symbols_serve_where_ids_do_not():
    found = match(["x", "ENSG2", "y"], ["FOXP3", "other name", "STAT1"])
    assert dict(zip(found.panel.tolist(), found.columns.tolist(), strict=True)) == {
        0: 2,
        1: 1,
        3: 0,
    }
    assert (found.by_id, found.by_symbol) == (1, 2)


def test_a_column_stands_for_one_gene_only():
    found = match(["ENSG1"], ["JAK2"])  # the id of one panel gene, the symbol of another
    assert found.panel.tolist() == [0]


def test_no_gene_in_common_is_refused_by_name():
    with pytest.raises(DataError, match=r"a.h5ad has none of the 5 genes .* its first is 'Stat1'"):
        match(["ENSMUSG1"], ["Stat1"])


def test_embedding_is_that_of_the_encoder_in_any_gene_order(model, tmp_path):
    order = [3, 0, 4, 1, 2]
    names = {"ids": [IDS[i] for i in order], "genes": [GENES[i] for i in order]}
    path = write(tmp_path / "a.h5ad", COUNTS[:, order], **names)
    with torch.no_grad():
        expected = model.encode(torch.from_numpy(COUNTS))[0].flatten(1).numpy()
    np.testing.assert_allclose(embedded(model, path, tmp_path / "out"), expected, atol=1e-5)


def test_a_gene_that_the_file_lacks_is_what_the_model_expects_and_not_a_zero(model, tmp_path):
    path = write(tmp_path / "a.h5ad", COUNTS[:, :3], IDS[:3], GENES[:3])
    ours = embedded(model, path, tmp_path / "out")
    shown = torch.from_numpy(COUNTS)
    with torch.no_grad():
        z, _ = model.encode(shown[:, :3], gene_index=torch.tensor([1, 2, 3]))
        for _ in range(FILLINGS):
            shares = model.decode(z, torch.ones(9)).mu
            library = shown[:, :3].sum(1) / shares[:, :3].sum(1)
            expected = model.decode(z, library).mu
            assert torch.allclose(expected[:, :3].sum(1), shown[:, :3].sum(1), rtol=1e-4)
            z, _ = model.encode(torch.cat([shown[:, :3], expected[:, 3:]], 1))
    np.testing.assert_allclose(ours, z.flatten(1), atol=1e-4)
    zeros = COUNTS.copy()
    zeros[:, 3:] = 0
    assert np.abs(ours - embed_counts(model, zeros, np.arange(5))).max() > 1e-2


def test_empty_cell_is_an_empty_cell_whatever_is_missing(model):
    empty = np.zeros((1, 5), dtype=np.float32)
    whole = embed_counts(model, empty, np.arange(5))
    np.testing.assert_allclose(embed_counts(model, empty[:, :2], np.arange(2)), whole, atol=1e-6)


def test_genes_off_the_panel_change_nothing(model, tmp_path):
    path = write(tmp_path / "a.h5ad")
    extra = np.concatenate([COUNTS, 100 * COUNTS[:, :1]], 1)
    more = write(tmp_path / "b.h5ad", extra, (*IDS, "ENSG9"), (*GENES, "ALB"))
    a, b = embedded(model, path, tmp_path / "x"), embedded(model, more, tmp_path / "y")
    assert np.array_equal(a, b)


def test_chunks_do_not_change_the_latents(model, tmp_path):
    path = write(tmp_path / "a.h5ad")
    with open_h5ad(path) as handle:
        file = CountsFile(path, handle, _data(path, None, None, None))
        found = match_genes(file.genes, PANEL, file=path, vae=Path("vae"))
        small, whole = (
            np.concatenate([z for _, z, _ in embed_chunks(model, file, found, size)])
            for size in (2, 512)
        )
    np.testing.assert_allclose(small, whole, atol=1e-5)  # rounding


def test_the_rest_of_the_file_is_kept(model, tmp_path):
    parts = {"obsm": {"X_pca": COUNTS[:, :2]}, "layers": {"raw": sparse.csr_matrix(COUNTS)}}
    path = write(tmp_path / "a.h5ad", np.log1p(COUNTS), **parts, uns={"source": "a test"})
    latents = embedded(model, path, tmp_path / "out.h5ad", layer="raw")
    before, after = anndata.read_h5ad(path), anndata.read_h5ad(tmp_path / "out.h5ad")
    assert latents.shape == (9, 64)
    assert after.obs.equals(before.obs)
    assert (after.X != before.X).nnz == 0
    assert np.array_equal(after.obsm["X_pca"], before.obsm["X_pca"])
    assert after.uns["source"] == "a test"
    assert after.uns[KEY] == {"what": "a test", "cells_without_counts": 0}
    again = embedded(model, tmp_path / "out.h5ad", tmp_path / "again.h5ad", layer="raw")
    assert np.array_equal(again, latents)


def test_cells_without_counts_are_counted(model, tmp_path):
    counts = COUNTS.copy()
    counts[[2, 5]] = 0
    embedded(model, write(tmp_path / "a.h5ad", counts), tmp_path / "out.h5ad")
    assert anndata.read_h5ad(tmp_path / "out.h5ad").uns[KEY]["cells_without_counts"] == 2


def test_counts_that_are_not_raw_are_refused_and_nothing_is_left(model, tmp_path):
    path = write(tmp_path / "a.h5ad", np.log1p(COUNTS))
    with pytest.raises(DataError, match=r"non-integer values, e\.g\. .* at cell c0, gene STAT1"):
        embedded(model, path, tmp_path / "out.h5ad")
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5ad"]
