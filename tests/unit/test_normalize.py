"""The store holds the panel counts of the kept cells; highly variable genes are scanpy's."""

import json

import numpy as np
import polars as pl
import pytest
from scipy import sparse

from fixtures.small_screen import GENES, settings, small_screen, write
from knockscreen.config import PanelConfig, ProgramsConfig
from knockscreen.data.cells import CellStore
from knockscreen.data.normalize import NormalizeStage, run_normalize
from knockscreen.data.panel import GeneSums, check_programs, choose_panel, variability
from knockscreen.data.qc import QcStage, run_qc
from knockscreen.data.vocab import Genes, target_table
from knockscreen.errors import ConfigError, DataError, UnknownNameError
from knockscreen.names import SPLITS, Split

PROGRAMS = pl.DataFrame({"program": ["P", "P", "Q"], "gene": ["STAT1", "IRF1", "IRF9"]})


def stage(**changes) -> NormalizeStage:
    values = {k: v for k, v in settings(**changes).items() if k != "qc"}
    return NormalizeStage.model_validate(values)


def stored(tmp_path, *files, rows=7, table=PROGRAMS, **changes) -> CellStore:
    """QC and normalise some screens (by default the small one) and open the store."""
    files = files or (small_screen(),)
    written = [write(adata, tmp_path / f"{'abc'[k]}.h5ad") for k, adata in enumerate(files)]
    qc = settings(**changes)
    run_qc(written, QcStage.model_validate({k: qc[k] for k in ("data", "qc")}), tmp_path / "qc")
    out = run_normalize(
        written,
        tmp_path / "qc",
        stage(**changes),
        tmp_path / "store",
        programs=table,
        chunk_rows=rows,
    )
    return CellStore.open(out)


def test_the_store_holds_the_counts_of_every_kept_cell(tmp_path):
    store = stored(tmp_path)
    assert (store.dense(np.arange(30)) == small_screen().X.toarray()).all()
    assert store.vocabulary.genes == tuple(GENES)
    assert store.library_size.tolist() == [100.0] * 30
    assert store.vocabulary.target_ids == ("non-targeting", "ENSG1", "ENSG2")
    names = small_screen().obs["target_gene"].to_list()
    assert [store.vocabulary.targets[t] for t in store.target] == names
    donors = small_screen().obs["donor"].to_list()
    assert [store.vocabulary.levels[0][c] for c in store.contexts[:, 0]] == donors
    assert not store.simulated


def test_the_files_are_of_the_types_that_readers_map(tmp_path):
    store = stored(tmp_path)
    found = {
        n: getattr(store, n).dtype
        for n in ("indptr", "indices", "counts", "library_size", "target")
    }
    assert found == {
        "indptr": np.int64,
        "indices": np.uint16,
        "counts": np.uint16,
        "library_size": np.float32,
        "target": np.int32,
    }
    assert (store.contexts.dtype, store.contexts.shape, store.split.dtype) == (
        np.int16,
        (30, 1),
        np.int8,
    )


def test_dropped_cells_are_not_stored_and_rows_stay_aligned(tmp_path):
    store = stored(tmp_path, qc={"min_cells": 5}, data={"contexts": {}})
    kept = np.flatnonzero(small_screen().obs["target_gene"] != "JAK2")
    assert (store.dense(np.arange(len(store))) == small_screen().X.toarray()[kept]).all()
    cells = pl.read_parquet(tmp_path / "store" / "cells.parquet")
    assert cells["barcode"].to_list() == small_screen().obs_names[kept].to_list()
    assert cells["target_gene_id"].to_list() == [
        store.vocabulary.target_ids[t] for t in store.target
    ]
    assert cells["split"].to_list() == [SPLITS[s] for s in store.split]
    assert store.contexts.shape == (len(kept), 0)


@pytest.mark.parametrize("rows", [1, 4, 1000])
def test_the_store_does_not_depend_on_the_chunk_size(tmp_path, rows):
    changes = {
        "panel": {"genes": 2, "targets": False},
        "splits": {"test": 0.25, "random_held_out_targets": 1},
    }
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    stored(tmp_path / "x", rows=30, **changes)
    stored(tmp_path / "y", rows=rows, **changes)
    for file in sorted((tmp_path / "x" / "store").iterdir()):
        if file.name != "panel.parquet":  # its moments are sums of floats
            assert (tmp_path / "y" / "store" / file.name).read_bytes() == file.read_bytes(), (
                file.name
            )


def test_a_cell_keeps_its_split_when_files_come_in_another_order(tmp_path):
    first, second = small_screen(), small_screen()
    second.obs_names = [f"other{k}" for k in range(30)]
    changes = {"splits": {"test": 0.3, "validation": 0.2, "random_held_out_targets": 1}}
    found = []
    for name, order in (("x", (0, 1)), ("y", (1, 0))):
        folder = tmp_path / name
        folder.mkdir()
        paths = [write(a, folder / f) for a, f in ((first, "a.h5ad"), (second, "b.h5ad"))]
        paths = [paths[k] for k in order]
        values = settings(**changes)
        run_qc(paths, QcStage.model_validate({k: values[k] for k in ("data", "qc")}), folder / "qc")
        run_normalize(paths, folder / "qc", stage(**changes), folder / "store", programs=PROGRAMS)
        found.append(pl.read_parquet(folder / "store" / "cells.parquet").sort("barcode"))
    assert found[0].equals(found[1])
    assert found[0]["split"].n_unique() == 4


def test_files_may_be_given_in_any_order_after_qc(tmp_path):
    store = stored(tmp_path, small_screen(), small_screen()[:20].copy())
    again = run_normalize(
        [tmp_path / "b.h5ad", tmp_path / "a.h5ad"],
        tmp_path / "qc",
        stage(),
        tmp_path / "again",
        programs=PROGRAMS,
    )
    assert (np.load(again / "counts.npy") == store.counts).all()


def test_the_panel_drops_genes_but_not_from_the_library_size(tmp_path):
    store = stored(tmp_path, panel={"genes": 1, "targets": True, "programs": False})
    assert "MT-CO1" not in store.vocabulary.genes
    assert set(store.vocabulary.genes) >= {"STAT1", "JAK2"}
    order = [GENES.index(g) for g in store.vocabulary.genes]
    assert order == sorted(order)
    assert (store.dense(np.arange(30)) == small_screen().X.toarray()[:, order]).all()
    assert store.library_size.tolist() == [100.0] * 30


def test_library_size_log_is_of_training_controls(tmp_path):
    adata = small_screen()
    counts = adata.X.toarray().astype(float)
    counts[:, 2] += np.arange(30)
    adata.X = counts
    store = stored(tmp_path, adata, splits={"test": 0.4})
    for k, donor in enumerate(("D1", "D2")):
        mine = (
            store.is_control
            & (store.contexts[:, 0] == k)
            & (store.split == SPLITS.index(Split.TRAIN))
        )
        log = np.log(counts.sum(1)[mine])
        assert 0 < mine.sum() < len(mine)
        assert store.library_size_log[f"donor={donor}"] == pytest.approx(
            (log.mean(), log.std(ddof=1))
        )


def test_counts_beyond_16_bits_are_kept(tmp_path):
    adata = small_screen()
    adata.X[3, 2] = 70_000
    store = stored(tmp_path, adata)
    assert store.counts.dtype == np.uint32
    assert store.dense(np.array([3]))[0, 2] == 70_000


def test_what_is_simulated_says_so(tmp_path):
    adata = small_screen()
    adata.uns["simulated"] = True
    assert stored(tmp_path, adata).simulated


def test_the_panel_table_says_why_a_gene_is_on_it(tmp_path):
    stored(tmp_path, panel={"genes": 1, "min_cells": 30})
    panel = pl.read_parquet(tmp_path / "store" / "panel.parquet")
    assert panel.columns == [
        "gene_id",
        "gene",
        "in_panel",
        "is_hvg",
        "is_program",
        "is_target",
        "n_cells",
        "mean",
        "dispersion",
    ]
    assert panel["is_program"].to_list() == [True, False, False, False]
    assert panel["is_target"].to_list() == [True, True, False, False]
    assert panel["is_hvg"].sum() == 1
    assert panel["n_cells"].to_list() == [30] * 4


def simulated_sums(counts, batch):
    sums = GeneSums.zeros(batch.max() + 1, counts.shape[1])
    sums.n += np.bincount(batch)
    stored = sparse.csr_matrix(counts)
    triple = (stored.data, stored.indices, stored.indptr)
    sums.add(triple, np.ones(len(batch), dtype=bool), batch, counts.sum(1).astype(float))
    return sums


@pytest.mark.parametrize("batches", [1, 3])
def test_highly_variable_genes_are_those_of_scanpy(batches):
    import anndata
    import scanpy

    rng = np.random.default_rng(0)
    mean = rng.gamma(0.6, 3, 250)
    size = rng.uniform(0.3, 5, 250)
    counts = rng.negative_binomial(size, size / (size + mean), (240, 250)).astype(np.float64)
    counts[:, 7] = 0
    batch = np.arange(240) % batches
    adata = anndata.AnnData(counts.copy())
    adata.obs["batch"] = [f"b{k}" for k in batch]
    scanpy.pp.normalize_total(adata, target_sum=1e4)
    scanpy.pp.log1p(adata)
    key = {"batch_key": "batch"} if batches > 1 else {}
    scanpy.pp.highly_variable_genes(adata, n_top_genes=60, flavor="seurat", **key)
    found = variability(simulated_sums(counts, batch), 60, np.ones(250, bool))
    expected = adata.var["highly_variable"].to_numpy()
    assert expected.sum() == 60
    assert ((found.rank < 60) == expected).all()
    seen = np.arange(250) != 7
    assert found.dispersion[seen] == pytest.approx(
        adata.var["dispersions_norm"].to_numpy()[seen], abs=1e-4, nan_ok=True
    )
    assert found.mean[seen] == pytest.approx(adata.var["means"].to_numpy()[seen], abs=1e-4)


def test_a_gene_variable_between_batches_only_is_not_taken_before_one_variable_within():
    rng = np.random.default_rng(1)
    counts = rng.poisson(rng.uniform(1, 20, 300), (200, 300))
    batch = np.repeat([0, 1], 100)
    counts[:100, 3] = rng.poisson(1, 100)  # a difference between batches alone
    counts[100:, 3] = rng.poisson(15, 100)
    counts[:, 4] = rng.negative_binomial(4, 1 / 3, 200)  # overdispersed in both, but less so
    within = variability(simulated_sums(counts, batch), 2, np.ones(300, bool))
    pooled = variability(simulated_sums(counts, np.zeros(200, int)), 2, np.ones(300, bool))
    assert pooled.rank[3] < pooled.rank[4]
    assert within.rank[4] == 0
    assert within.rank[3] > 20


def test_mitochondrial_and_rare_genes_are_never_highly_variable():
    rng = np.random.default_rng(2)
    counts = rng.poisson(5, (100, 20))
    counts[:, 0] = rng.negative_binomial(0.2, 0.02, 100)
    counts[:, 1] = 0
    counts[:3, 1] = 90
    names = ("MT-ND1", *(f"G{k}" for k in range(1, 20)))
    config = PanelConfig(genes=19, batch=[], programs=False, targets=False, min_cells=5)
    sums = simulated_sums(counts, np.zeros(100, int))
    panel = choose_panel(Genes(names, names), sums, config, set(), set())
    assert panel["is_hvg"].to_list() == [False, False] + [True] * 18
    assert panel["in_panel"].sum() == 18


def panel_of(*genes):
    return pl.DataFrame({"gene": genes, "gene_id": [f"E{g}" for g in genes], "in_panel": True})


def test_programs_that_are_left_out_are_listed_with_how_many_genes_matched(caplog):
    config = ProgramsConfig(file="p.tsv", names=[], min_genes=2)
    with caplog.at_level("INFO"):
        check_programs(PROGRAMS, panel_of("STAT1"), config)
    lines = [record.getMessage() for record in caplog.records]
    assert any("program P is left out: 1 of its 2 genes" in line for line in lines)
    assert any("program Q is left out: 0 of its 1 genes" in line for line in lines)


def test_programs_without_any_gene_on_the_panel_are_refused(tmp_path):
    programs = PROGRAMS.filter(pl.col("gene") != "STAT1")
    with pytest.raises(
        ConfigError, match=r"no program of programs.tsv .* panel of 4 genes \(P 0 of 1, Q 0 of 1\)"
    ):
        stored(tmp_path, table=programs)
    assert not (tmp_path / "store").exists()


BAD = {
    "held-out target": ({"splits": {"held_out_targets": ["STAT2"]}}, ConfigError, "nearest: STAT1"),
    "batch": (
        {"panel": {"batch": ["time"]}},
        ConfigError,
        "panel.batch names 'time', .* available: donor",
    ),
    "program": (
        {"programs": {"names": ["R"]}},
        UnknownNameError,
        "unknown program 'R' in programs.names",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_settings_that_the_data_do_not_have_are_refused(tmp_path, case):
    changes, error, message = BAD[case]
    with pytest.raises(error, match=message):
        stored(tmp_path, **changes)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5ad", "qc", "qc.manifest.json"]


def test_the_tables_of_another_qc_are_refused(tmp_path):
    stored(tmp_path)
    other = write(small_screen(), tmp_path / "other.h5ad")
    with pytest.raises(
        DataError,
        match=r"not those that QC in .* read .'a.h5ad' is not given.* run 'knockscreen qc'",
    ):
        run_normalize([other], tmp_path / "qc", stage(), tmp_path / "s", programs=PROGRAMS)
    write(small_screen()[:20].copy(), tmp_path / "a.h5ad")
    with pytest.raises(DataError, match="count 30 cells, not 20"):
        run_normalize(
            [tmp_path / "a.h5ad"], tmp_path / "qc", stage(), tmp_path / "s", programs=PROGRAMS
        )
    with pytest.raises(DataError, match="holds no QC tables"):
        run_normalize([other], tmp_path / "nowhere", stage(), tmp_path / "s", programs=PROGRAMS)


def test_store_json_lists_control_first_and_levels_sorted(tmp_path):
    stored(tmp_path)
    about = json.loads((tmp_path / "store" / "store.json").read_text())
    assert about["targets"][0] == {
        "target_gene_id": "non-targeting",
        "target_gene": "non-targeting",
    }
    assert about["factors"] == {"donor": ["D1", "D2"]}
    assert (about["n_cells"], about["format"]) == (30, 1)


def test_a_target_is_listed_once_and_by_id():
    pairs = [("B", "E2"), ("A", "E3"), ("non-targeting", "non-targeting"), ("B", "E2"), ("C", "E1")]
    assert target_table(pairs)["target_gene"].to_list() == ["non-targeting", "C", "B", "A"]
