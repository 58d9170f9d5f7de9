"""Measured effects and scores: by hand, by brute force over the cells, and on the real screen."""

import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import stats

from fixtures.shards import GENE_IDS, GENES, TARGET_IDS, write_store
from knockscreen.errors import DataError
from knockscreen.score.cells import open_store
from knockscreen.score.measured import write_measured
from knockscreen.score.moments import replicate_units
from knockscreen.score.programs import program_matrix

TABLE = pl.DataFrame(
    {"program": ["Th2", "Th2", "Th2"], "gene": ["GATA3", "IL4", "IFNG"], "weight": [1.0, 1.0, -1.0]}
)
LIBRARY = 1000
REST_1, REST_2 = [0, 0], [1, 0]  # donor D1, D2 at rest


def programs(table=TABLE):
    return program_matrix(table, GENE_IDS, GENES)


def log1p(counts, library=LIBRARY):
    return np.log1p(np.asarray(counts) / library * 1e4)


def measure(store, folder, *, table=TABLE, pool_over=("donor",), **options):
    paths = write_measured(store, folder, programs(table), pool_over, seed=3, **options)
    return [pl.read_parquet(path) for path in paths]


@pytest.fixture
def random_store(tmp_path):
    """90 cells: control and three targets in two contexts, with replicates r1 and r2."""
    rng = np.random.default_rng(0)
    target = np.repeat([0, 1, 2, 3, 0], [30, 20, 20, 10, 10])
    contexts = np.stack([rng.integers(2, size=90), np.zeros(90)], axis=1).astype(int)
    counts = rng.poisson(2 + 3 * (target[:, None] == [0, 1, 2, 3]))
    library = counts.sum(axis=1) + rng.integers(50, 500, size=90)
    replicate = [f"r{i}" for i in rng.integers(1, 3, size=90)]
    return counts, target, contexts, library, replicate


def hand_made(folder, **options):
    """Two controls and two GATA3 knock-downs in donor D1; one of each in donor D2."""
    counts = [[2, 0, 1, 0], [4, 0, 1, 0], [1, 3, 1, 0], [1, 5, 1, 0], [2, 1, 0, 0], [2, 0, 1, 0]]
    target = [0, 0, 1, 1, 0, 1]
    contexts = [REST_1] * 4 + [REST_2] * 2
    return write_store(folder, counts, target, contexts, library_size=[LIBRARY] * 6, **options)


def test_delta_is_the_mean_log1p_difference_to_controls_of_the_same_context(tmp_path):
    effects, *_ = measure(hand_made(tmp_path / "store"), tmp_path)
    il4 = effects.filter(pl.col("gene_id") == "ENSG2").sort("context")
    first, second = log1p([3, 5]).mean(), -log1p(1)
    assert il4["context"].to_list() == ["donor=D1,time=Rest", "donor=D2,time=Rest", "time=Rest"]
    assert il4["delta"].to_list() == pytest.approx([first, second, (first + second) / 2])
    assert il4["n_cells"].to_list() == [2, 1, 3]
    assert il4["n_control_cells"].to_list() == [2, 1, 3]


def test_one_cell_has_no_standard_error_and_silent_genes_have_effect_zero(tmp_path):
    effects, *_ = measure(hand_made(tmp_path / "store"), tmp_path)
    error = dict(
        effects.filter(pl.col("gene_id") == "ENSG2").select("context", "standard_error").iter_rows()
    )
    assert error["donor=D1,time=Rest"] == pytest.approx(log1p([3, 5]).std(ddof=1) / np.sqrt(2))
    assert error["donor=D2,time=Rest"] is None
    assert error["time=Rest"] is None
    silent = effects.filter(pl.col("gene_id") == "ENSG4")
    assert silent["delta"].to_list() == [0, 0, 0]
    assert silent["log2_fold_change"].to_list() == [0, 0, 0]


def test_fold_change_is_of_mean_counts_per_ten_thousand(tmp_path):
    effects, *_ = measure(hand_made(tmp_path / "store"), tmp_path)
    gata3 = effects.filter(pl.col("is_target"), context="donor=D1,time=Rest")
    assert gata3["gene_id"].to_list() == ["ENSG1"]
    assert gata3["log2_fold_change"].item() == pytest.approx(np.log2(10.1 / 30.1))


def test_the_targets_own_gene_is_left_out_of_its_program_score(tmp_path):
    _, scores, *_ = measure(hand_made(tmp_path / "store"), tmp_path)
    first = scores.filter(context="donor=D1,time=Rest")
    assert first["n_genes"].to_list() == [2]
    assert first["score"].item() == pytest.approx(log1p([3, 5]).mean() / 2)


def test_no_replicates_no_p_value(tmp_path):
    effects, *_ = measure(hand_made(tmp_path / "store"), tmp_path)
    assert effects["p_value"].null_count() == len(effects)
    assert effects["fdr"].null_count() == len(effects)


def balanced(folder, spread, **options):
    """240 cells: control and three targets, 2 donors, 3 units a side of 10 cells each."""
    rng = np.random.default_rng(4)
    target, donor, unit, _ = np.array(list(np.ndindex(4, 2, 3, 10))).T
    level = np.exp(spread * rng.normal(size=(4, 2, 3, 4)))[target, donor, unit]
    counts = rng.poisson(20 * level)
    contexts = np.stack([donor, np.zeros_like(donor)], axis=1)
    names = [f"u{t}{d}{u}" for t, d, u in zip(target, donor, unit, strict=True)]
    store = write_store(
        folder,
        counts,
        target,
        contexts,
        library_size=[1000] * 240,
        **{options.get("column", "replicate"): names},
    )
    return store, log1p(counts).reshape(4, 2, 3, 10, 4).mean(axis=3)


@pytest.mark.parametrize("column", ["replicate", "guide"])
def test_p_values_are_over_pseudobulks_not_cells(tmp_path, column):
    store, means = balanced(tmp_path / "store", 1.0, column=column)
    effects, *_ = measure(store, tmp_path)
    one = effects.filter(target_gene_id="ENSG1", context="donor=D1,time=Rest")
    expected = stats.ttest_ind(means[1, 0], means[0, 0]).pvalue
    assert one["p_value"].to_list() == pytest.approx(expected)
    assert one["fdr"].to_list() == pytest.approx(stats.false_discovery_control(expected))
    assert one.select("n_replicates", "n_control_replicates").unique().row(0) == (3, 3)


def test_pooled_contexts_have_p_values_over_the_units_of_all_donors(tmp_path):
    store, means = balanced(tmp_path / "store", 1.0)
    effects, *_ = measure(store, tmp_path)
    one = effects.filter(target_gene_id="ENSG1", context="time=Rest")
    y = means[:2].reshape(12, 4)  # control D1, control D2, target D1, target D2: 3 units each
    design = np.repeat([[1, 0, 0], [0, 1, 0], [1, 0, 1], [0, 1, 1]], 3, axis=0).astype(float)
    fit, residual, *_ = np.linalg.lstsq(design, y, rcond=None)
    error = np.sqrt(residual / 9 * np.linalg.inv(design.T @ design)[2, 2])
    assert one["delta"].to_list() == pytest.approx(fit[2])
    np.testing.assert_allclose(one["standard_error"], error, rtol=0.05)  # s^2 differs by donor
    p = 2 * stats.t.sf(np.abs(fit[2]) / error, 9)
    np.testing.assert_allclose(one["p_value"], p, rtol=0.2)
    assert one["n_replicates"].unique().to_list() == [6]


def test_scores_carry_p_values_over_replicates_and_their_fdr_over_targets(tmp_path):
    store, means = balanced(tmp_path / "store", 1.0)
    _, scores, *_ = measure(store, tmp_path)
    here = scores.filter(context="donor=D1,time=Rest")
    weights = {1: [0, 1, -1, 0], 2: [1, 1, -1, 0], 3: [1, 1, -1, 0]}
    p = []
    for code, w in weights.items():
        a, b = (means[side, 0] @ w / np.abs(w).sum() for side in (code, 0))
        p.append(stats.ttest_ind(a, b).pvalue)
    assert here["p_value"].to_list() == pytest.approx(p)
    assert here["fdr"].to_list() == pytest.approx(stats.false_discovery_control(p))


def test_guides_are_the_replicates_unless_controls_have_only_one(tmp_path):
    options = {"library_size": [LIBRARY] * 4, "guide": ["n1", "n1", "a", "b"]}
    counts, context = [[2, 0, 1, 0]] * 4, [REST_1] * 4
    store = write_store(
        tmp_path, counts, [0, 0, 1, 1], context, replicate=["w1", "w2", "w3", "w4"], **options
    )
    cells = open_store(store)
    assert len(np.unique(replicate_units(cells, "auto"))) == 4  # the wells
    assert len(np.unique(replicate_units(cells, "guide"))) == 3


def test_effects_and_scores_agree_with_brute_force(tmp_path, random_store):
    counts, target, contexts, library, _ = random_store
    store = write_store(tmp_path / "store", counts, target, contexts, library_size=library)
    effects, scores, *_ = measure(store, tmp_path)
    values = log1p(counts, library[:, None])
    weights = {1: [0, 1, -1, 0], 2: [1, 1, -1, 0], 3: [1, 1, -1, 0]}  # without the target's gene
    for code, name in enumerate(TARGET_IDS, 1):
        for donor in (0, 1):
            context = f"donor=D{donor + 1},time=Rest"
            a = values[(target == code) & (contexts[:, 0] == donor)]
            b = values[(target == 0) & (contexts[:, 0] == donor)]
            found = effects.filter(target_gene_id=name, context=context)
            np.testing.assert_allclose(found["delta"], a.mean(0) - b.mean(0), rtol=1e-5)
            error = np.sqrt(a.var(0, ddof=1) / len(a) + b.var(0, ddof=1) / len(b))
            np.testing.assert_allclose(found["standard_error"], error, rtol=1e-5)
            w = np.array(weights[code]) / np.abs(weights[code]).sum()
            score = scores.filter(target_gene_id=name, context=context).row(0, named=True)
            assert score["score"] == pytest.approx((a @ w).mean() - (b @ w).mean())
            error = np.sqrt((a @ w).var(ddof=1) / len(a) + (b @ w).var(ddof=1) / len(b))
            assert score["standard_error"] == pytest.approx(error)


def test_pooled_score_is_the_mean_of_its_contexts(tmp_path, random_store):
    counts, target, contexts, library, _ = random_store
    store = write_store(tmp_path / "store", counts, target, contexts, library_size=library)
    _, scores, *_ = measure(store, tmp_path)
    pooled = scores.filter(context="time=Rest")
    separate = scores.filter(pl.col("context") != "time=Rest").group_by("target_gene_id")
    expected = separate.agg(
        pl.col("score").mean(),
        (pl.col("standard_error").pow(2).sum().sqrt() / 2).alias("standard_error"),
        pl.col("n_cells").sum(),
    ).sort("target_gene_id")
    for column in ("score", "standard_error", "n_cells"):
        np.testing.assert_allclose(pooled[column], expected[column])


def test_chunks_of_cells_do_not_change_the_result(tmp_path, random_store, monkeypatch):
    counts, target, contexts, library, _ = random_store
    store = write_store(tmp_path / "store", counts, target, contexts, library_size=library)
    whole = measure(store, tmp_path / "a")
    monkeypatch.setattr("knockscreen.score.moments.CHUNK", 7)
    for a, b in zip(whole, measure(store, tmp_path / "b"), strict=True):
        for column in a.columns:
            if a[column].dtype.is_float():
                np.testing.assert_allclose(
                    a[column].fill_null(9), b[column].fill_null(9), atol=1e-6
                )
            else:
                assert a[column].equals(b[column])


def test_cells_without_effect_score_within_their_standard_error(tmp_path):
    rng = np.random.default_rng(5)
    target = np.repeat([0, 1, 2, 3], 200)
    counts = rng.poisson(3, size=(800, 4))
    store = write_store(
        tmp_path / "store", counts, target, [REST_1] * 800, library_size=[500] * 800
    )
    _, scores, *_ = measure(store, tmp_path)
    z = scores["score"] / scores["standard_error"]
    assert z.abs().max() < 3


def test_halves_share_no_cell_and_average_to_the_score(tmp_path):
    rng = np.random.default_rng(1)
    target = np.repeat([0, 1, 2, 3], 40)
    counts = rng.poisson(3, size=(160, 4))
    store = write_store(
        tmp_path / "store", counts, target, [REST_1] * 160, library_size=[500] * 160
    )
    _, scores, *_ = measure(store, tmp_path, pool_over=())
    halves = scores.select("score_half_a", "score_half_b").to_numpy()
    np.testing.assert_allclose(halves.mean(axis=1), scores["score"])
    assert np.all(halves[:, 0] != halves[:, 1])


def test_ceiling_is_high_for_strong_effects_and_null_halves_agree_at_random(tmp_path):
    rng = np.random.default_rng(2)
    names = [(f"T{i}", f"T{i}") for i in range(12)]
    target = np.repeat(np.arange(13), 60)
    strong = 5 * np.exp(0.2 * target[:, None] * [0, 1, 0, 0])
    for name, mean, least, most in (("strong", strong, 0.95, 1.0), ("none", 5, -0.6, 0.6)):
        counts = rng.poisson(mean, size=(780, 4))
        contexts = [REST_1] * 780
        store = write_store(
            tmp_path / name, counts, target, contexts, library_size=[1000] * 780, targets=names
        )
        _, _, ceiling, _ = measure(store, tmp_path / f"{name}_out", pool_over=())
        row = ceiling.row(0, named=True)
        assert least <= row["spearman_half"] <= most
        assert (row["n_targets"], row["splits"]) == (12, 20)
        if row["spearman_half"] >= 0:
            r = row["spearman_half"]
            assert row["ceiling"] == pytest.approx(np.sqrt(2 * r / (1 + r)))
        else:
            assert row["ceiling"] is None


def test_same_seed_same_bytes(tmp_path, random_store):
    counts, target, contexts, library, _ = random_store
    store = write_store(tmp_path / "store", counts, target, contexts, library_size=library)
    for name in ("a", "b"):
        measure(store, tmp_path / name)
    for file in ("effects", "programs", "ceiling"):
        first, second = (tmp_path / name / f"{file}.parquet" for name in "ab")
        assert first.read_bytes() == second.read_bytes()


def test_splits_choose_cells_and_keep_controls(tmp_path):
    store = hand_made(tmp_path / "store", split=[0, 0, 0, 3, 0, 3])
    effects, *_ = measure(store, tmp_path, splits=["train"])
    assert effects["context"].unique().sort().to_list() == ["donor=D1,time=Rest", "time=Rest"]
    held_out, *_ = measure(store, tmp_path, splits=["held_out_target"])
    assert held_out.filter(context="donor=D1,time=Rest")["n_control_cells"].unique().to_list() == [
        2
    ]
    with pytest.raises(DataError, match="unknown split 'trian'; nearest: train"):
        measure(store, tmp_path, splits=["trian"])
    with pytest.raises(DataError, match="no knocked-down cells in test"):
        measure(store, tmp_path, splits=["test"])


def test_without_context_factors_there_is_one_context_called_all(tmp_path):
    counts, target = [[2, 0, 0, 0], [2, 0, 0, 0], [2, 4, 0, 0]], [0, 0, 1]
    store = write_store(tmp_path / "store", counts, target, np.zeros((3, 0)), factors=())
    effects, *_ = measure(store, tmp_path, pool_over=())
    assert effects["context"].unique().to_list() == ["all"]


def test_context_without_controls_is_named(tmp_path):
    store = write_store(tmp_path / "store", [[1, 0, 0, 0]] * 3, [0, 1, 1], [REST_1, REST_1, REST_2])
    with pytest.raises(DataError, match="context donor=D2,time=Rest has no control cells"):
        open_store(store)


DATA = Path(os.environ.get("KNOCKSCREEN_DATA", Path(__file__).parents[3] / "shared" / "data"))
THP1 = DATA / "counts" / "thp1_eccite_papalexi2021_panel.h5ad"


@pytest.mark.data
@pytest.mark.skipif(not THP1.is_file(), reason="no THP-1 screen: set KNOCKSCREEN_DATA")
def test_interferon_response_of_the_real_thp1_screen(tmp_path):
    import anndata

    data = anndata.read_h5ad(THP1)
    symbols = data.var["gene_symbol"].astype(str).tolist()
    targets = sorted(set(data.obs["target_gene"].astype(str)) - {"non-targeting"})
    ids = dict(zip(symbols, data.var["ensembl_id"].astype(str), strict=True))
    pairs = [(ids.get(name, name), name) for name in targets]
    code = {"non-targeting": 0} | {name: i for i, name in enumerate(targets, 1)}
    store = write_store(
        tmp_path / "store",
        data.X.toarray().astype(int),
        [code[name] for name in data.obs["target_gene"].astype(str)],
        np.zeros((data.n_obs, 1)),
        library_size=data.obs["n_counts_total"].to_numpy(),
        genes=symbols,
        gene_ids=list(ids.values()),
        targets=pairs,
        factors={"condition": ["stimulated"]},
    )
    genes = ["STAT1", "PSMB9", "UBE2L6"]
    table = pl.DataFrame({"program": ["IFNG"] * 3, "gene": genes, "weight": [1.0] * 3})
    matrix = program_matrix(table, list(ids.values()), symbols)
    paths = write_measured(store, tmp_path, matrix, ["condition"], seed=0)
    scores = pl.read_parquet(paths[1]).filter(context="all").sort("score")
    symbol = dict(pairs)
    top = [
        (symbol[i], round(s, 2)) for i, s in scores.select("target_gene_id", "score").iter_rows()
    ][:5]
    assert top == [
        ("STAT1", -1.20), ("JAK2", -0.89), ("IFNGR2", -0.87), ("IFNGR1", -0.86), ("IRF1", -0.10)
    ]  # fmt: skip
    ceiling = pl.read_parquet(paths[2]).filter(context="all").row(0, named=True)
    assert 0.4 < ceiling["spearman_half"] < ceiling["ceiling"] < 0.95
