"""Effects and program scores of a shard: hand-checkable numbers, symmetries, negative control."""

import numpy as np
import polars as pl
import pytest

from fixtures.shards import (
    CONTEXTS,
    GENE_IDS,
    GENES,
    TARGET_IDS,
    candidates,
    write_control,
    write_shard,
    write_store,
)
from knockscreen.errors import ConfigError, DataError
from knockscreen.score.contexts import pooled_contexts
from knockscreen.score.effects import log2_fold_change, program_scores, read_shard, write_effects
from knockscreen.score.programs import program_matrix
from knockscreen.score.random_programs import ProgramNull

TH2 = {"GATA3": 1.0, "IL4": 1.0, "IFNG": -1.0}
DELTA = np.array(  # (K, C, G), written with blocks one below and one above
    [
        [[-2.0, -0.5, 0.25, 0.0], [-1.0, -1.5, 0.75, 0.0]],
        [[0.5, 1.0, -1.5, -3.0], [0.5, 2.0, -0.5, -3.0]],
        [[-1.0, -1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]],
    ]
)
BLOCKS = np.stack([DELTA - 0.1, DELTA + 0.1])


def programs(weights=None, gene_ids=GENE_IDS, genes=GENES):
    weights = weights or TH2
    table = pl.DataFrame(
        {"program": "Th2", "gene": list(weights), "weight": list(weights.values())}
    )
    return program_matrix(table, gene_ids, genes)


def shard(folder, blocks=BLOCKS, *, order=(0, 1, 2), control=None, gene_ids=GENE_IDS, **arrays):
    """Write and read one shard of the given candidates."""
    order = list(order)
    names = [GENES[GENE_IDS.index(i)] for i in gene_ids]
    write_control(folder / "control.npz", control, blocks=len(blocks), gene_ids=gene_ids)
    path = write_shard(folder / "0.npz", order, blocks[:, order], gene_ids=gene_ids, **arrays)
    store = write_store(folder / "store", gene_ids=gene_ids, genes=names)
    return read_shard(path, folder / "control.npz", candidates(), store)


def effects(read, folder, pool_over=("donor",)):
    write_effects(read, folder / "effects.parquet", pool_over)
    return pl.read_parquet(folder / "effects.parquet")


def test_scores_are_weighted_means_without_the_target(tmp_path):
    scores = program_scores(shard(tmp_path), programs(), ["donor"])
    table = {(r["context"], r["target_gene_id"]): r for r in scores.iter_rows(named=True)}
    first, pooled = CONTEXTS[0], "time=Rest"
    assert table[first, "ENSG1"]["score"] == pytest.approx((-0.5 - 0.25) / 2)  # GATA3 left out
    assert table[first, "ENSG4"]["score"] == pytest.approx((0.5 + 1.0 + 1.5) / 3)
    assert table[first, "ENSG9"]["score"] == pytest.approx(-1.0)  # target not on the panel
    assert table[pooled, "ENSG4"]["score"] == pytest.approx((1.0 + (0.5 + 2.0 + 0.5) / 3) / 2)
    assert [table[first, t]["n_genes"] for t in TARGET_IDS] == [2, 3, 3]


def test_error_is_the_spread_of_blocks(tmp_path):
    scores = program_scores(shard(tmp_path), programs({"IL4": 1.0, "TBX21": 1.0}), [])
    row = scores.filter(context=CONTEXTS[0], target_gene_id="ENSG1").row(0, named=True)
    assert row["blocks"] == pytest.approx([-0.35, -0.15])
    assert row["score_se"] == pytest.approx(np.std([-0.35, -0.15], ddof=1) / np.sqrt(2))
    one = program_scores(shard(tmp_path, BLOCKS[:1]), programs(), [])
    assert one["score_se"].null_count() == len(one)


def test_blocks_that_were_not_drawn_count_for_nothing(tmp_path):
    rng = np.random.default_rng(4)
    blocks = rng.normal(size=(4, 3, 2, 4)).astype(np.float32)
    variance = rng.uniform(1, 2, size=(3, 2, 4)).astype(np.float32)
    full = shard(tmp_path / "a", blocks, delta_var=variance, n_draws=[100] * 3)
    blocks[2:, 1] = np.nan
    read = shard(tmp_path / "b", blocks, delta_var=variance, n_draws=[100, 50, 100])
    few = shard(tmp_path / "c", blocks[:2], delta_var=variance, n_draws=[50] * 3)
    mixed, whole, part = (program_scores(s, programs(), ["donor"]) for s in (read, full, few))
    stopped = pl.col("target_gene_id") == TARGET_IDS[1]
    assert mixed.filter(~stopped).equals(whole.filter(~stopped))
    ours, theirs = mixed.filter(stopped), part.filter(stopped)
    assert ours.drop("blocks").equals(theirs.drop("blocks"))
    assert set(ours["n_draws"]) == {50}
    assert ours["blocks"].list.head(2).equals(theirs["blocks"])
    assert ours["blocks"].list.tail(2).explode().is_nan().all()
    tables = [effects(s, tmp_path / name) for s, name in ((read, "b"), (full, "a"), (few, "c"))]
    assert tables[0].filter(~stopped).equals(tables[1].filter(~stopped))
    assert tables[0].filter(stopped).equals(tables[2].filter(stopped))


def test_score_is_null_where_only_the_target_is_left(tmp_path):
    scores = program_scores(shard(tmp_path), programs({"GATA3": 1.0}), [])
    own = scores.filter(target_gene_id="ENSG1")
    assert (
        own["score"].to_list() == own["blocks"].to_list() == own["score_se"].to_list() == [None] * 2
    )
    assert own["n_genes"].to_list() == [0, 0]
    assert scores.filter(pl.col("target_gene_id") != "ENSG1")["score"].null_count() == 0


def test_control_against_control_is_exactly_zero(tmp_path):
    counts = np.array([[0.0, 1.0, 2.5, 7.0], [0.3, 0.0, 0.1, 0.7]])
    read = shard(
        tmp_path, np.zeros((2, 3, 2, 4)), control=counts, mean_count=np.stack([counts] * 3)
    )
    table = effects(read, tmp_path)
    for column in ("log2_fold_change", "delta", "delta_se"):
        assert table[column].unique().to_list() == [0.0]
    scores = program_scores(read, programs(), ["donor"])
    assert scores["score"].unique().to_list() == scores["score_se"].unique().to_list() == [0.0]


def test_flipped_weights_flip_the_score_exactly(tmp_path):
    read = shard(tmp_path)
    plus = program_scores(read, programs(), ["donor"])
    minus = program_scores(read, programs({g: -w for g, w in TH2.items()}), ["donor"])
    assert plus["score"].to_list() == (-minus["score"]).to_list()
    assert plus["score_se"].to_list() == minus["score_se"].to_list()


def test_order_of_genes_does_not_matter(tmp_path):
    order = [2, 0, 3, 1]
    ids = [GENE_IDS[i] for i in order]
    permuted = shard(tmp_path / "b", BLOCKS[..., order], gene_ids=ids)
    straight = shard(tmp_path / "a")
    a = program_scores(straight, programs(), ["donor"])
    b = program_scores(permuted, programs(None, ids, [GENES[i] for i in order]), ["donor"])
    np.testing.assert_allclose(a["score"], b["score"], rtol=1e-12)
    assert effects(straight, tmp_path / "a").equals(effects(permuted, tmp_path / "b"))


def test_scores_do_not_depend_on_what_else_is_in_the_shard(tmp_path):
    rng = np.random.default_rng(0)
    blocks = rng.normal(size=(4, 3, 2, 4)).astype(np.float32)
    whole = program_scores(shard(tmp_path / "a", blocks, order=(2, 0, 1)), programs(), ["donor"])
    for i, target in enumerate(TARGET_IDS):
        alone = program_scores(shard(tmp_path / str(i), blocks, order=(i,)), programs(), ["donor"])
        assert alone.equals(whole.filter(target_gene_id=target))


def test_effects_are_long_sorted_and_flag_the_target(tmp_path):
    table = effects(shard(tmp_path, order=(1, 0, 2)), tmp_path)
    assert len(table) == 3 * 3 * 4
    keys = table.select("context", "target_gene_id", "gene_id")
    assert keys.equals(keys.sort("context", "target_gene_id", "gene_id"))
    flagged = table.filter("is_target", context="time=Rest").select(
        "target_gene_id", "gene_id", "delta"
    )
    assert flagged.rows() == [("ENSG1", "ENSG1", -1.5), ("ENSG4", "ENSG4", -3.0)]
    assert table.schema["delta"] == pl.Float32
    assert table.schema["context"] == pl.String


def test_monte_carlo_error_shrinks_with_draws_and_combines_over_contexts(tmp_path):
    variance = np.full((3, 2, 4), 0.25)
    variance[:, 1] = 1.0
    table = effects(shard(tmp_path, delta_var=variance), tmp_path)  # 100 draws
    error = dict(table.group_by("context").agg(pl.col("delta_se").mean()).iter_rows())
    assert error[CONTEXTS[0]] == pytest.approx(0.05)
    assert error[CONTEXTS[1]] == pytest.approx(0.1)
    assert error["time=Rest"] == pytest.approx(np.hypot(0.05, 0.1) / 2)


def test_fold_change_is_on_counts_per_ten_thousand(tmp_path):
    control = np.array([[1.5, 0, 0, 0], [0.3, 0, 0, 0]])
    counts = np.zeros((3, 2, 4))
    counts[0, :, 0] = [0.7, 0.1]  # the store's library size is 10,000
    table = effects(shard(tmp_path, control=control, mean_count=counts), tmp_path)
    row = table.filter(target_gene_id="ENSG1", gene_id="ENSG1").sort("context")
    expected = [np.log2(0.8 / 1.6), np.log2(0.2 / 0.4), np.log2(0.5 / 1.0)]
    assert row["log2_fold_change"].to_list() == pytest.approx(expected)
    assert row["mean_count"].to_list() == pytest.approx([0.7, 0.1, 0.4])
    assert row["control_mean_count"].to_list() == pytest.approx([1.5, 0.3, 0.9])
    assert log2_fold_change(0.0, 0.0) == 0


def test_pooling_over_every_factor_is_called_all():
    assert pooled_contexts(CONTEXTS, ["donor", "time"])["all"] == [0, 1]
    assert list(pooled_contexts(CONTEXTS, [])) == CONTEXTS
    with pytest.raises(ConfigError, match="factor 'doner', which no context has; nearest: donor"):
        pooled_contexts(CONTEXTS, ["doner"])


def test_files_of_different_screens_are_refused(tmp_path):
    read_args = (tmp_path / "0.npz", tmp_path / "control.npz", candidates(), tmp_path / "store")
    shard(tmp_path)
    write_control(tmp_path / "control.npz", blocks=3)
    with pytest.raises(DataError, match=r"0\.npz and .*control\.npz are of different screens"):
        read_shard(*read_args)
    write_control(tmp_path / "control.npz")
    write_store(tmp_path / "store", gene_ids=GENE_IDS[::-1])
    with pytest.raises(DataError, match=r"0\.npz and .*store are of different screens"):
        read_shard(*read_args)
    write_store(tmp_path / "store")
    with pytest.raises(DataError, match="holds candidate 2, which the candidate table lacks"):
        read_shard(*read_args[:2], candidates().head(2), read_args[3])


def test_broken_and_missing_shards_are_named(tmp_path):
    shard(tmp_path)
    path = tmp_path / "0.npz"
    args = (tmp_path / "control.npz", candidates(), tmp_path / "store")
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match=r"0\.npz is not a whole shard file"):
        read_shard(path, *args)
    path.unlink()
    with pytest.raises(DataError, match=r"0\.npz does not exist; run generate first"):
        read_shard(path, *args)


def test_decoys_have_a_file_of_effects_of_their_own(tmp_path):
    write_control(tmp_path / "control.npz", blocks=2)
    path = write_shard(tmp_path / "0.npz", [0, 1], BLOCKS[:, :2])
    listed = candidates(targets=["ENSG1", "decoy_0001"], names=["GATA3", "decoy_0001"])
    read = read_shard(path, tmp_path / "control.npz", listed, write_store(tmp_path / "store"))
    found = {}
    for decoys in (False, True):
        write_effects(read, tmp_path / "effects.parquet", ["donor"], decoys=decoys)
        table = pl.read_parquet(tmp_path / "effects.parquet")
        found[decoys] = set(table["target_gene_id"].cast(pl.String)), len(table)
    assert found == {False: ({"ENSG1"}, 12), True: ({"decoy_0001"}, 12)}


def test_random_programs_and_magnitude_are_counted_without_the_own_gene(tmp_path):
    read = shard(tmp_path)
    null = ProgramNull(
        np.array([[[9, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, -1]]], dtype=np.float32),
        dict.fromkeys(CONTEXTS, np.array([0.3])),
    )
    rows = program_scores(read, programs(), ["donor"], null)
    table = {(r["context"], r["target_gene_id"]): r for r in rows.iter_rows(named=True)}
    own = table[CONTEXTS[0], "ENSG1"]  # delta -0.5, 0.25, 0 of IL4, IFNG, TBX21; score -0.375
    assert own["magnitude"] == pytest.approx(np.hypot(0.5, 0.25))
    assert own["specific_toward"] == 1.0  # 0, 0.25 and 0 are all at least the score
    assert own["specific_away"] == 1 / 4
    moved = np.array([0, 0.25, 0])
    assert own["random_z"] == pytest.approx((-0.375 - moved.mean()) / moved.std())
    assert own["control_error"] == pytest.approx(0.3)
    assert table["time=Rest", "ENSG1"]["control_error"] == pytest.approx(0.3 / np.sqrt(2))
