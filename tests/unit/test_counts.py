"""Counts are read as they are, or refused by name."""

import re
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import polars as pl
import pytest
from scipy import sparse

from fixtures.small_screen import GENES, IDS, settings, small_screen, write
from knockscreen.config import DataConfig
from knockscreen.data.annotation import read_cells
from knockscreen.data.counts import Inputs, find_inputs
from knockscreen.errors import DataError, UnknownNameError


def opened(*paths: Path, **data: object) -> Inputs:
    return Inputs(paths, DataConfig.model_validate(settings(data=data)["data"]))


def read_all(*paths: Path, rows: int = 7, **data: object) -> np.ndarray:
    with opened(*paths, **data) as inputs:
        return np.concatenate([chunk.counts.toarray() for _, chunk in inputs.chunks(rows)])


def annotated(*paths: Path, **data: object) -> pl.DataFrame:
    with opened(*paths, **data) as inputs:
        return read_cells(inputs)


@pytest.mark.parametrize("rows", [1, 7, 1000])
@pytest.mark.parametrize("layout", ["csr", "csc", "dense"])
def test_counts_are_the_same_in_every_layout_and_chunk_size(tmp_path, layout, rows):
    adata = small_screen()
    expected = adata.X.toarray()
    adata.X = {"csr": adata.X, "csc": adata.X.tocsc(), "dense": expected}[layout]
    assert (read_all(write(adata, tmp_path / "a.h5ad"), rows=rows) == expected).all()


def test_what_is_mended_in_one_chunk_is_not_left_for_the_next(tmp_path):
    rng = np.random.default_rng()
    adata = small_screen()
    adata.X = sparse.csr_matrix(rng.poisson(0.7, adata.shape).astype(np.float32))
    expected = adata.X.toarray()
    for row in rng.choice(adata.n_obs, 10, replace=False):  # genes in no order, a stored zero
        mine = slice(*adata.X.indptr[row : row + 2])
        adata.X.indices[mine], adata.X.data[mine] = (
            adata.X.indices[mine][::-1].copy(), adata.X.data[mine][::-1].copy(),
        )  # fmt: skip
        if mine.stop > mine.start:
            expected[row, adata.X.indices[mine.start]] = adata.X.data[mine.start] = 0
    path = write(adata, tmp_path / "a.h5ad")
    for rows in (1, 4, 1000):
        assert (read_all(path, rows=rows) == expected).all()


def test_a_chunk_holds_no_more_values_than_asked_for_unless_one_row_does(tmp_path):
    with opened(write(small_screen(), tmp_path / "a.h5ad")) as inputs:
        sizes = [c.stop - c.start for c in inputs.files[0].chunks(rows=100, values=9)]
        assert max(sizes) == 2  # 4 values a row
        sizes = [c.stop - c.start for c in inputs.files[0].chunks(rows=100, values=1)]
        assert sizes == [1] * 30


def test_a_layer_is_read_where_it_is_named_and_others_are_listed(tmp_path):
    adata = small_screen()
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X * 0.5
    path = write(adata, tmp_path / "a.h5ad")
    assert (read_all(path, layer="counts") == adata.layers["counts"].toarray()).all()
    with pytest.raises(DataError, match="has no layers/raw; layers: counts; name the raw counts"):
        opened(path, layer="raw")


def test_files_with_the_genes_in_another_order_are_brought_into_the_first_ones(tmp_path):
    adata = small_screen()
    first = write(adata, tmp_path / "a.h5ad")
    second = write(adata[:, ::-1].copy(), tmp_path / "b.h5ad")
    both = read_all(first, second)
    assert (both[:30] == both[30:]).all()


def test_files_with_different_genes_are_refused(tmp_path):
    adata = small_screen()
    first = write(adata, tmp_path / "a.h5ad")
    second = write(adata[:, :3].copy(), tmp_path / "b.h5ad")
    with pytest.raises(
        DataError, match=r"0 are only in the former and 1 only in the latter, e.g. ENSG4"
    ):
        opened(first, second)


BAD_VALUES = {
    "log": (lambda x: np.log1p(x / x.sum(1, keepdims=True) * 1e4), "non-integer.*log-transformed"),
    "normalised": (
        lambda x: x / 3,
        "non-integer values, e.g. 6.667 at cell cell0, gene STAT1; looks normalised",
    ),
    "negative": (lambda x: x - x.mean(0).round(), "has negative values, e.g. -.*looks scaled"),
    "nan": (lambda x: np.where(x == 87, np.nan, x), "missing or infinite values, e.g. nan"),
    "infinite": (lambda x: np.where(x == 87, np.inf, x), "missing or infinite values, e.g. inf"),
}


@pytest.mark.parametrize("kind", BAD_VALUES)
@pytest.mark.parametrize("layout", [sparse.csr_matrix, np.asarray])
def test_values_that_are_not_counts_are_refused_by_what_they_look_like(tmp_path, kind, layout):
    change, message = BAD_VALUES[kind]
    adata = small_screen()
    adata.X = layout(change(adata.X.toarray().astype(float)))
    with pytest.raises(DataError, match=message):
        read_all(write(adata, tmp_path / "a.h5ad"))


def test_log_counts_are_known_by_the_mark_that_scanpy_leaves(tmp_path):
    adata = small_screen()
    adata.X[0, 0] = 0.25
    adata.uns["log1p"] = {"base": 2}
    with pytest.raises(DataError, match="looks log-transformed"):
        read_all(write(adata, tmp_path / "a.h5ad"))


def test_the_last_chunk_is_checked_like_the_first(tmp_path):
    adata = small_screen()
    adata.X[29, 1] = 0.5
    with pytest.raises(DataError, match=r"e.g. 0.5 at cell cell29, gene JAK2"):
        read_all(write(adata, tmp_path / "a.h5ad"), rows=4)


def test_a_bad_value_names_its_own_gene_when_genes_were_reordered(tmp_path):
    adata = small_screen()
    bad = adata[:, ::-1].copy()
    bad.X[3, 1] = 0.5  # ACTB in this file
    paths = [write(adata, tmp_path / "a.h5ad"), write(bad, tmp_path / "b.h5ad")]
    with pytest.raises(DataError, match=r"b.h5ad .* at cell cell3, gene ACTB"):
        read_all(*paths)


def test_a_missing_file_and_a_file_that_is_not_an_h5ad_say_so(tmp_path):
    with pytest.raises(
        DataError, match=r"nothing.h5ad does not exist; check the path \(data.files"
    ):
        opened(tmp_path / "nothing.h5ad")
    text = tmp_path / "a.h5ad"
    text.write_text("gene,cell\n")
    with pytest.raises(DataError, match="is not an h5ad file"):
        opened(text)
    with h5py.File(tmp_path / "b.h5ad", "w") as handle:
        handle["matrix"] = np.zeros(3)
    with pytest.raises(DataError, match="not an h5ad file: it has no 'obs'"):
        opened(tmp_path / "b.h5ad")
    with pytest.raises(DataError, match="no counts files"):
        opened()


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.95])
def test_a_truncated_file_says_so(tmp_path, share):
    whole = write(small_screen(), tmp_path / "a.h5ad").read_bytes()
    cut = tmp_path / "cut.h5ad"
    cut.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match="truncated"):
        read_all(cut)


def test_row_pointers_that_do_not_fit_are_refused(tmp_path):
    path = write(small_screen(), tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as handle:
        handle["X/indptr"][-1] = 7
    with pytest.raises(DataError, match=r"row pointers of X .* do not fit its values"):
        read_all(path)


def test_a_gene_index_beyond_the_genes_is_refused(tmp_path):
    path = write(small_screen(), tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as handle:
        handle["X/indices"][5] = 9
    with pytest.raises(DataError, match="points to a gene beyond its 4"):
        read_all(path)


@pytest.mark.parametrize(("column", "what"), [("gene_symbol", "symbol"), ("ensembl_id", "id")])
def test_duplicate_genes_are_refused(tmp_path, column, what):
    adata = small_screen()
    adata.var[column] = ["A", "B", "A", "C"]
    with pytest.raises(
        DataError, match=f"1 gene {what}s stand more than once in var of .*, e.g. A;"
    ):
        opened(write(adata, tmp_path / "a.h5ad"))


def test_genes_without_an_identifier_go_by_their_symbol(tmp_path):
    adata = small_screen()
    adata.var["ensembl_id"] = ["ENSG1", "", "nan", "ENSG4"]
    with opened(write(adata, tmp_path / "a.h5ad")) as inputs:
        assert inputs.genes.gene_ids == ("ENSG1", "JAK2", "ACTB", "ENSG4")
        assert inputs.genes.genes == tuple(GENES)


def test_an_index_of_ensembl_ids_is_taken_for_ids(tmp_path):
    adata = small_screen()
    adata.var = pd.DataFrame({"gene_name": GENES}, index=IDS)
    with opened(write(adata, tmp_path / "a.h5ad")) as inputs:
        assert (inputs.genes.gene_ids, inputs.genes.genes) == (tuple(IDS), tuple(GENES))


def test_targets_get_their_id_from_var_and_keep_their_symbol_where_not_measured(tmp_path):
    adata = small_screen()
    adata.obs["target_gene"] = adata.obs["target_gene"].replace("JAK2", "CAV1")
    cells = annotated(write(adata, tmp_path / "a.h5ad"))
    pairs = set(cells.select(pl.col("target_gene", "target_gene_id").cast(pl.String)).iter_rows())
    assert pairs == {("non-targeting",) * 2, ("STAT1", "ENSG1"), ("CAV1", "CAV1")}
    assert cells["is_control"].sum() == 14


def test_contexts_are_printed_in_the_order_of_the_configuration(tmp_path):
    adata = small_screen()
    adata.obs["time"] = 8
    cells = annotated(
        write(adata, tmp_path / "a.h5ad"), contexts={"time": "time", "donor": "donor"}
    )
    assert cells["context"].cast(pl.String).unique().sort().to_list() == [
        "time=8,donor=D1",
        "time=8,donor=D2",
    ]


def test_cells_without_a_guide_or_with_several_have_no_target(tmp_path):
    adata = small_screen()
    guides = adata.obs["guide_id"].tolist()
    guides[0], guides[9], guides[10] = "multi-guide", "", None
    adata.obs["guide_id"] = pd.Categorical(guides)
    cells = annotated(write(adata, tmp_path / "a.h5ad"))[[0, 9, 10, 11]]
    assert cells["status"].to_list() == ["multi_guide", "no_guide", "no_guide", None]
    assert cells["target_gene"].to_list() == [None, None, None, "STAT1"]
    assert cells["is_control"].to_list() == [False] * 4


def zhu2025(adata):
    ntc = adata.obs["target_gene"] == "non-targeting"
    adata.obs = pd.DataFrame(
        {
            "perturbed_gene_name": adata.obs["target_gene"].replace("non-targeting", "NTC"),
            "perturbed_gene_id": adata.obs["target_gene"].map(dict(zip(GENES, IDS, strict=True))),
            "guide_id": adata.obs["guide_id"],
            "guide_type": np.where(ntc, "non-targeting", "targeting"),
            "top_guide_UMI_counts": 9,
            "pct_counts_mt": 1.5,
            "low_quality": False,
            "lane_id": "L1",
        }
    )
    return adata


def test_zhu2025_files_tell_donor_and_condition_by_their_name(tmp_path):
    path = write(zhu2025(small_screen()), tmp_path / "D1_Stim8hr.assigned_guide.h5ad")
    factors = {"donor": "donor_id", "time": "culture_condition"}
    cells = annotated(path, preset="zhu2025", contexts=factors, control_labels=["NTC"])
    assert set(cells["context"].cast(pl.String)) == {"donor=D1,time=Stim8hr"}
    assert cells["is_control"].sum() == 14
    assert (
        cells.row(10, named=True).items()
        >= {
            "target_gene": "STAT1",
            "target_gene_id": "ENSG1",
            "replicate": "L1",
            "pct_mt": 1.5,
        }.items()
    )


def test_scldm_cd4_files_name_targets_by_id_alone(tmp_path):
    adata = small_screen()
    ids = adata.obs["target_gene"].replace(
        {"STAT1": "ENSG1", "JAK2": "ENSG2", "non-targeting": "NTC"}
    )
    adata.obs = pd.DataFrame({"donor_id": adata.obs["donor"], "guide_target_ensembl": ids})
    cells = annotated(
        write(adata, tmp_path / "a.h5ad"),
        preset="scldm_cd4",
        contexts={"donor": "donor_id"},
        control_labels=["NTC"],
    )
    assert set(cells["target_gene"].cast(pl.String)) == {"STAT1", "JAK2", "non-targeting"}
    assert cells["guide_id"].null_count() == 30


BAD_SETTINGS = {
    "target": (
        {"columns": {"target_gene": "target_gen"}},
        DataError,
        r"obs column 'target_gen' not found in .*; nearest: target_gene.* data.columns.target_gene",
    ),
    "context": (
        {"contexts": {"donor": "doner"}},
        DataError,
        r"obs column 'doner' not found in .*; nearest: donor; .* data.contexts.donor",
    ),
    "where column": (
        {"where": {"cell_type": ["T"]}},
        DataError,
        r"'cell_type' not found .* data.where",
    ),
    "where level": (
        {"where": {"donor": ["D3"]}},
        UnknownNameError,
        r"unknown level 'D3' of 'donor' .*nearest: D",
    ),
    "where nothing": (
        {"where": {"donor": ["D1"], "target_gene": ["JAK2"]}},
        DataError,
        "keeps no cell",
    ),
    "no controls": ({"control_labels": ["ctrl"]}, DataError, None),
    "var column": (
        {"columns": {"gene_id": "ensembl"}},
        DataError,
        r"var column 'ensembl' not found .*ensembl_id",
    ),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_settings_that_do_not_fit_the_file_are_refused_with_the_nearest_name(tmp_path, case):
    data, error, message = BAD_SETTINGS[case]
    adata = small_screen()
    if case == "no controls":
        adata.obs["target_gene"] = adata.obs["target_gene"].replace("non-targeting", "SAFE")
        message = (
            r"no control cells in .*labelled 'ctrl'; the commonest targets are SAFE, STAT1, JAK2"
        )
    with pytest.raises(error, match=message):
        annotated(write(adata, tmp_path / "a.h5ad"), **data)


def test_a_cell_without_a_context_level_is_refused_unless_it_is_left_out(tmp_path):
    adata = small_screen()
    adata.obs["donor"] = adata.obs["donor"].where(adata.obs_names != "cell3")
    adata.obs["use"] = np.where(adata.obs_names == "cell3", "no", "yes")
    path = write(adata, tmp_path / "a.h5ad")
    with pytest.raises(DataError, match=r"1 cells of .* have no value in obs column 'donor'"):
        annotated(path)
    assert annotated(path, where={"use": ["yes"]})["status"].value_counts().height == 2


def test_a_level_that_would_break_a_printed_context_is_refused(tmp_path):
    adata = small_screen()
    adata.obs["donor"] = "D1,pool"
    with pytest.raises(DataError, match=re.escape("level 'D1,pool' of obs column 'donor'")):
        annotated(write(adata, tmp_path / "a.h5ad"))


def test_a_mitochondrial_share_is_read_as_percent(tmp_path):
    adata = small_screen()
    adata.obs["p_mito"] = 0.04
    cells = annotated(write(adata, tmp_path / "a.h5ad"), columns={"pct_mt": "p_mito"})
    assert cells["pct_mt"].to_list() == pytest.approx([4.0] * 30)


def test_rare_encodings_are_read_like_plain_ones(tmp_path):
    adata = small_screen()
    adata.obs["library_size"] = pd.array([100] * 29 + [None], dtype="Int64")
    adata.obs["low_quality"] = pd.array([True] + [False] * 28 + [None], dtype="boolean")
    cells = annotated(write(adata, tmp_path / "a.h5ad"))
    assert cells["library_size"].to_list() == [100.0] * 29 + [None]
    assert cells["low_quality"].to_list() == [True] + [False] * 28 + [None]


def test_a_folder_stands_for_its_h5ad_files(tmp_path):
    for name in ("b.h5ad", "a.h5ad", "truth.npz"):
        (tmp_path / name).touch()
    assert [p.name for p in find_inputs([tmp_path])] == ["a.h5ad", "b.h5ad"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty has no .h5ad files"):
        find_inputs([tmp_path / "empty"])
