"""QC keeps the cells it should, says why it drops others, and judges guides by t-test."""

import numpy as np
import polars as pl
import pytest
from scipy import stats

from fixtures.small_screen import settings, small_screen, write
from knockscreen.config import QcConfig
from knockscreen.data.knockdown import Moments, benjamini_hochberg, judge
from knockscreen.data.knockdown import test_guides as welch
from knockscreen.data.qc import QcStage, run_qc
from knockscreen.data.qc_tables import STATUS
from knockscreen.errors import DataError

TABLES = ("cells", "genes", "guides", "targets", "summary", "inputs")


def quality(tmp_path, adata=None, *, data=None, chunk_rows=7, **qc):
    """Run QC on one file and return its tables by name."""
    path = write(small_screen() if adata is None else adata, tmp_path / "a.h5ad")
    stage = QcStage.model_validate(
        {k: v for k, v in settings(qc=qc, data=data or {}).items() if k in {"data", "qc"}}
    )
    out = run_qc([path], stage, tmp_path / "qc", chunk_rows=chunk_rows)
    return {name: pl.read_parquet(out / f"{name}.parquet") for name in TABLES}


def test_all_cells_of_a_clean_screen_are_kept_and_counted(tmp_path):
    tables = quality(tmp_path)
    cells = tables["cells"]
    assert cells["status"].unique().to_list() == ["kept"]
    assert cells["library_size"].to_list() == [100.0] * 30
    assert cells["n_genes"].to_list() == [4] * 30
    assert cells["pct_mt"].to_list() == pytest.approx([2.0] * 30)
    assert cells["replicate"].null_count() == 30
    genes = tables["genes"]
    assert genes["n_cells"].to_list() == [30] * 4
    assert genes["mean_count"].to_list() == pytest.approx(small_screen().X.toarray().mean(0))
    assert tables["targets"].rows() == [
        ("STAT1", "ENSG1", "donor=D1", 8, "kept"),
        ("STAT1", "ENSG1", "donor=D2", 4, "kept"),
        ("JAK2", "ENSG2", "donor=D2", 4, "kept"),
    ]


def test_the_column_types_are_those_of_the_contract(tmp_path):
    schema = quality(tmp_path)["cells"].schema
    assert schema["file"] == pl.Int32
    assert schema["row"] == pl.Int64
    assert schema["library_size"] == pl.Float64
    assert (schema["n_genes"], schema["pct_mt"]) == (pl.Int32, pl.Float32)
    assert {schema[c] for c in ("target_gene", "guide_id", "donor", "context", "status")} == {
        pl.String
    }


def test_each_filter_drops_its_own_cell_and_the_first_reason_wins(tmp_path):
    adata = small_screen()
    counts = adata.X.toarray()
    adata.obs["keep"] = "yes"
    adata.obs["guide_umis"] = 9
    adata.obs["low_quality"] = False
    adata.obs.iloc[8, adata.obs.columns.get_loc("keep")] = "no"  # excluded
    guides = adata.obs["guide_id"].tolist()
    guides[8], guides[9], guides[10] = "multi-guide", None, "multi-guide"
    adata.obs["guide_id"] = guides
    adata.obs.iloc[[9, 11], adata.obs.columns.get_loc("guide_umis")] = 1
    counts[12] = (10, 5, 14, 1)  # 30 counts
    counts[13] = (100, 0, 0, 0)  # one gene
    counts[14] = (20, 10, 40, 30)  # 30 % mitochondrial
    adata.obs.iloc[[14, 15], adata.obs.columns.get_loc("low_quality")] = True
    adata.X = counts
    tables = quality(
        tmp_path,
        adata,
        data={"where": {"keep": ["yes"]}},
        min_counts=50,
        min_genes=3,
        max_pct_mt=10,
        min_guide_umis=3,
    )
    assert tables["cells"]["status"][8:16].to_list() == list(STATUS[:8])
    assert (
        tables["cells"]["status"].value_counts().filter(pl.col("status") == "kept")["count"][0]
        == 22
    )
    summary = tables["summary"]
    assert summary["filter"].to_list() == list(STATUS[:-1])
    assert (summary["cells_before"] - summary["cells_after"]).to_list() == [1] * 8 + [0] * 3
    assert summary["cells_before"][0] == 30
    assert summary["cells_after"][-1] == 22
    assert summary["cells_before"][1:].to_list() == summary["cells_after"][:-1].to_list()


def test_a_filter_that_has_no_column_to_act_on_says_that_it_was_skipped(tmp_path):
    adata = small_screen()
    adata.var["gene_symbol"] = ["STAT1", "JAK2", "ACTB", "GAPDH"]
    tables = quality(tmp_path, adata, max_pct_mt=1, min_guide_umis=5)
    words = dict(tables["summary"].select("filter", "setting").rows())
    assert words["high_mt"].startswith("skipped")
    assert words["low_guide_umis"].startswith("skipped")
    assert words["low_quality"].startswith("skipped")
    assert tables["cells"]["pct_mt"].null_count() == 30
    assert set(tables["cells"]["status"]) == {"kept"}


def test_the_library_size_of_the_file_goes_before_the_row_sum(tmp_path):
    adata = small_screen()
    adata.obs["total"] = 200
    cells = quality(tmp_path, adata, data={"columns": {"library_size": "total"}})["cells"]
    assert cells["library_size"].to_list() == [200.0] * 30
    assert cells["pct_mt"].to_list() == pytest.approx([1.0] * 30)


def test_a_library_size_below_the_counts_is_refused(tmp_path):
    adata = small_screen()
    adata.obs["total"] = 60
    with pytest.raises(DataError, match="library size 60 of cell cell0 is below its 100 counts"):
        quality(tmp_path, adata, data={"columns": {"library_size": "total"}})
    assert not (tmp_path / "qc").exists()


def test_a_cell_without_counts_is_dropped_whatever_the_settings(tmp_path):
    adata = small_screen()
    counts = adata.X.toarray()
    counts[8] = 0
    adata.X = counts
    assert quality(tmp_path, adata)["cells"]["status"][8] == "low_counts"


@pytest.mark.parametrize("chunk_rows", [1, 4, 100])
def test_tables_do_not_depend_on_the_chunk_size(tmp_path, chunk_rows):
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    expected = quality(tmp_path / "x", chunk_rows=30, knockdown_test=True)
    found = quality(tmp_path / "y", chunk_rows=chunk_rows, knockdown_test=True)
    for name in ("cells", "genes", "targets", "summary"):
        assert found[name].equals(expected[name])
    numbers = pl.selectors.float()
    assert np.allclose(
        found["guides"].select(numbers), expected["guides"].select(numbers), rtol=1e-12
    )


def log_cp10k(adata, gene):
    counts = adata.X.toarray().astype(float)
    return np.log1p(counts[:, gene] / counts.sum(1) * 1e4)


def test_in_one_context_the_test_is_welchs(tmp_path):
    adata = small_screen()
    guides = quality(tmp_path, adata, data={"contexts": {}})["guides"]
    x, guide = log_cp10k(adata, 0), adata.obs["guide_id"].to_numpy()
    control = x[guide == "NT1"]
    for name in ("STAT1g1", "STAT1g2"):
        row = guides.row(by_predicate=pl.col("guide_id") == name, named=True)
        expected = stats.ttest_ind(x[guide == name], control, equal_var=False)
        assert row["statistic"] == pytest.approx(expected.statistic)
        assert row["p_value"] == pytest.approx(expected.pvalue)


def test_guide_means_are_cp10k_and_weighted_over_contexts(tmp_path):
    guides = quality(tmp_path)["guides"]
    row = guides.row(by_predicate=pl.col("guide_id") == "STAT1g1", named=True)
    # Controls: 20.5 of 100 counts in D1 and 10.5 in D2; the guide: 2.5 and 1.5; 4 cells in each.
    assert row["n_cells"] == 8
    assert row["control_mean"] == pytest.approx(1550)
    assert row["target_mean"] == pytest.approx(200)
    assert row["control_mean_count"] == pytest.approx(15.5)
    assert row["log2_fold_change"] == pytest.approx(np.log2(200 / 1550))


def test_a_baseline_that_differs_between_contexts_is_no_knockdown():
    """A guide whose cells lie mostly where the target is low must not look active."""
    rng = np.random.default_rng(1)
    control = np.r_[rng.normal(1, 0.1, 50), rng.normal(3, 0.1, 50)]
    guide = np.r_[rng.normal(1, 0.1, 20), rng.normal(3, 0.1, 2)]
    per_context = welch(
        moments([[guide[:20], guide[20:]]]),
        moments([[control[:50]], [control[50:]]]),
        np.array([0]),
    )
    pooled = welch(moments([[guide]]), moments([[control]]), np.array([0]))
    assert pooled.p_value[0] < 1e-4
    assert per_context.p_value[0] > 0.05


def moments(groups):
    """Sums over groups of expression values, a list of rows of arrays."""
    shape = (len(groups), len(groups[0]))
    sums = Moments.zeros(*shape)
    for i, row in enumerate(groups):
        for j, x in enumerate(row):
            sums.n[i, j], sums.x[i, j], sums.xx[i, j] = len(x), x.sum(), (x * x).sum()
            sums.cp10k[i, j] = sums.counts[i, j] = np.expm1(x).sum()
            sums.library[i, j] = 1e4 * len(x)
    return sums


def test_the_null_p_values_of_unequal_contexts_are_uniform():
    rng = np.random.default_rng(2)
    shape = 400
    guides = [[rng.normal(1, 0.3, 12), rng.normal(2, 0.6, 5)] for _ in range(shape)]
    controls = [
        [rng.normal(1, 0.3, 60) for _ in range(shape)],
        [rng.normal(2, 0.6, 40) for _ in range(shape)],
    ]
    found = welch(moments(guides), moments(controls), np.arange(shape))
    assert stats.kstest(found.p_value, "uniform").pvalue > 0.01


def test_benjamini_hochberg_is_scipys_and_passes_over_what_was_not_tested():
    p = np.random.default_rng(0).uniform(size=50) ** 2
    with_gaps = np.insert(p, [0, 10, 50], np.nan)
    found = benjamini_hochberg(with_gaps)
    assert found[~np.isnan(with_gaps)] == pytest.approx(stats.false_discovery_control(p))
    assert np.isnan(found).sum() == 3


def test_the_inactive_guide_is_dropped_and_its_target_stays(tmp_path):
    tables = quality(tmp_path, knockdown_test=True, knockdown_min_cells=3)
    status = dict(tables["guides"].select("guide_id", "status").rows())
    assert status == {"STAT1g1": "kept", "STAT1g2": "inactive", "JAK2g1": "kept"}
    assert set(tables["cells"].filter(pl.col("guide_id") == "STAT1g2")["status"]) == {
        "inactive_guide"
    }
    assert tables["targets"]["n_cells"].to_list() == [4, 4, 4]


def test_a_target_without_an_active_guide_is_an_inactive_target(tmp_path):
    adata = small_screen()
    adata = adata[adata.obs["guide_id"] != "STAT1g1"].copy()
    tables = quality(tmp_path, adata, knockdown_test=True)
    assert set(tables["cells"].filter(pl.col("target_gene") == "STAT1")["status"]) == {
        "inactive_target"
    }
    assert tables["targets"].rows() == [
        ("STAT1", "ENSG1", "donor=D1", 4, "inactive_target"),
        ("JAK2", "ENSG2", "donor=D2", 4, "kept"),
    ]


@pytest.mark.parametrize(
    "lenient",
    [{"knockdown_min_cells": 4}, {"knockdown_min_expression": 25.0}, {"knockdown_test": False}],
)
def test_a_guide_that_cannot_be_judged_is_kept(tmp_path, lenient):
    tables = quality(tmp_path, **{"knockdown_test": True, "knockdown_min_cells": 3, **lenient})
    row = tables["guides"].row(by_predicate=pl.col("guide_id") == "STAT1g2", named=True)
    assert row["status"] == "not_judged"
    assert set(tables["cells"]["status"]) == {"kept"}


def test_a_target_that_is_not_measured_is_kept_without_a_test(tmp_path):
    adata = small_screen()
    adata.obs["target_gene"] = adata.obs["target_gene"].replace("JAK2", "CAV1")
    row = (
        quality(tmp_path, adata, knockdown_test=True)["guides"]
        .filter(target_gene="CAV1")
        .row(0, named=True)
    )
    assert row["status"] == "not_judged"
    assert (row["control_mean"], row["p_value"], row["log2_fold_change"]) == (None, None, None)


def test_a_guide_without_one_count_of_its_target_has_a_finite_fold_change(tmp_path):
    adata = small_screen()
    counts = adata.X.toarray()
    n_control = counts[8 + 8 : 22, 1].sum()  # of the six control cells of the same donor
    counts[26:, 2] += counts[26:, 1]
    counts[26:, 1] = 0  # the four cells of JAK2g1
    adata.X = counts
    row = quality(tmp_path, adata)["guides"].filter(guide_id="JAK2g1").row(0, named=True)
    assert row["target_mean"] == 0
    assert row["log2_fold_change"] == pytest.approx(np.log2(0.5 / 400 / (n_control / 600)))


def test_significantly_up_is_not_a_knockdown():
    config = QcConfig.model_validate(settings()["qc"])
    x = np.random.default_rng(0).normal(2, 0.1, 30)
    up = welch(moments([[x[:10] + 1]]), moments([[x[10:]]]), np.array([0]))
    assert up.fdr[0] < 1e-6
    assert judge(up, config).tolist() == ["inactive"]


def test_a_target_with_one_cell_is_few_cells_and_no_crash(tmp_path):
    adata = small_screen()[:27].copy()  # one cell of JAK2
    tables = quality(tmp_path, adata, min_cells=2, knockdown_test=True)
    assert tables["cells"]["status"][26] == "few_cells"
    assert ("JAK2", "ENSG2", "donor=D2", 1, "few_cells") in tables["targets"].rows()


def test_few_cells_are_counted_per_target_and_context(tmp_path):
    tables = quality(tmp_path, min_cells=5)
    kept = tables["targets"].filter(status="kept")
    assert kept.select("target_gene", "context").rows() == [("STAT1", "donor=D1")]


def test_a_screen_without_knockdowns_is_fine(tmp_path):
    adata = small_screen()
    adata = adata[adata.obs["target_gene"] == "non-targeting"].copy()
    tables = quality(tmp_path, adata, knockdown_test=True)
    assert tables["guides"].is_empty()
    assert tables["targets"].is_empty()
    assert set(tables["cells"]["status"]) == {"kept"}


def without_controls_in_d2(adata):
    return adata[~((adata.obs["target_gene"] == "non-targeting") & (adata.obs["donor"] == "D2"))]


BAD = {
    "a context without controls": (
        without_controls_in_d2,
        {},
        r"context 'donor=D2' has no control cells among its 8 cells",
    ),
    "a context with few controls": (
        lambda a: a,
        {"min_control_cells": 7},
        r"'donor=D2' has 6 control cells .* qc.min_control_cells = 7",
    ),
    "no target left": (
        lambda a: a,
        {"min_cells": 99},
        r"no knock-down passes QC \(cells dropped: few_cells 16\)",
    ),
    "no control left": (
        lambda a: a,
        {"min_genes": 5},
        r"no control cell passes the cell filters \(few_genes 14\)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_qc_cannot_go_on_with_is_one_sentence_and_nothing_written(tmp_path, case):
    change, qc, message = BAD[case]
    with pytest.raises(DataError, match=message):
        quality(tmp_path, change(small_screen()).copy(), **qc)
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5ad"]


def test_an_earlier_result_stays_when_a_later_run_fails(tmp_path):
    before = quality(tmp_path)["cells"]
    with pytest.raises(DataError):
        quality(tmp_path, min_cells=99)
    assert pl.read_parquet(tmp_path / "qc" / "cells.parquet").equals(before)


def test_the_manifest_names_inputs_and_settings(tmp_path):
    import json

    quality(tmp_path, min_cells=3)
    manifest = json.loads((tmp_path / "qc.manifest.json").read_text())
    assert manifest["stage"] == "qc"
    assert list(manifest["inputs"]) == [str(tmp_path / "a.h5ad")]
    assert manifest["settings"]["qc"]["min_cells"] == 3
