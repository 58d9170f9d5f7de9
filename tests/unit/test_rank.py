"""Rankings: order, ties, intervals over paired draws, and no trace of shards in the result."""

import numpy as np
import polars as pl
import pytest

from fixtures.shards import candidates, write_store
from knockscreen.config import RankConfig
from knockscreen.errors import DataError
from knockscreen.score.rank import (
    _resample_predicted,
    block_shares,
    rank_interval,
    rank_scores,
    ranks_both_ways,
    resample_blocks,
    write_rankings,
)
from knockscreen.score.score_files import find_scores, predicted_scores
from knockscreen.score.statistics import stretched

SETTINGS = RankConfig(pool_over=["donor"], interval=0.9, resamples=200, random_programs=0)
KEY = ["program", "context", "target_gene_id"]


def score_table(scores, spread=0.0, *, program="Th2", context="time=Rest", blocks=4, seed=0):
    """Rows of one program and context: target -> score, blocks scattered about it."""
    noise = np.random.default_rng(seed).normal(size=(len(scores), blocks)) * spread
    noise -= noise.mean(axis=1, keepdims=True)
    values = [
        None if s is None else (s + n).tolist() for s, n in zip(scores.values(), noise, strict=True)
    ]
    errors = noise.std(axis=1, ddof=1) / np.sqrt(blocks)
    return pl.DataFrame(
        {
            "program": program,
            "context": context,
            "target_gene_id": list(scores),
            "score": pl.Series(list(scores.values()), dtype=pl.Float64),
            "score_se": errors,
            "n_genes": pl.Series([5] * len(scores), dtype=pl.Int32),
            "magnitude": 1.0,
            "specific_toward": 0.5,
            "specific_away": 0.5,
            "control_error": 0.0,
            "blocks": pl.Series(values, dtype=pl.List(pl.Float64)),
        }
    )


def write_screen(folder, table, *, shards=None, measured=None):
    """Write the score table, divided into shards, with its candidates and store."""
    targets = sorted(table["target_gene_id"].unique())
    shards = shards or [0] * len(targets)
    store = write_store(folder / "store", targets=[(t, f"symbol_{t}") for t in targets])
    listed = candidates(targets, [f"symbol_{t}" for t in targets], shards)
    listed.write_parquet(folder / "candidates.parquet")
    (folder / "programs").mkdir()
    for shard in set(shards):
        own = [t for t, s in zip(targets, shards, strict=True) if s == shard]
        part = table.filter(pl.col("target_gene_id").is_in(own)).sort(KEY)
        part.write_parquet(folder / "programs" / f"{shard}.parquet")
    if measured is not None:
        measured.write_parquet(folder / "measured.parquet")
    return store


def ranked(folder, seed=0, settings=SETTINGS):
    measured = folder / "measured.parquet"
    scores = find_scores(
        folder / "programs", measured if measured.exists() else None,
        folder / "candidates.parquet", folder / "store",
    )  # fmt: skip
    return [pl.read_parquet(p) for p in write_rankings(scores, folder / "rank", settings, seed)]


def order(rankings, **where):
    return rankings.filter(**where).sort("rank")["target_gene_id"].to_list()


def test_toward_and_away_are_opposite_orders(tmp_path):
    write_screen(tmp_path, score_table({"A": 0.1, "B": -0.3, "C": 0.7}, 0.01))
    scores, rankings = ranked(tmp_path)
    assert order(rankings, direction="toward") == ["C", "A", "B"]
    assert order(rankings, direction="away") == ["B", "A", "C"]
    assert rankings["target_gene"].to_list()[0] == "symbol_C"
    assert scores["evidence"].to_list() == ["predicted_seen", "predicted_seen", "predicted_unseen"]


def test_ties_are_ordered_by_target_gene_id_in_both_directions(tmp_path):
    write_screen(tmp_path, score_table({"C": 0.0, "A": 0.0, "B": 0.0, "D": 1.0}))
    _, rankings = ranked(tmp_path)
    assert order(rankings, direction="toward") == ["D", "A", "B", "C"]
    assert order(rankings, direction="away") == ["A", "B", "C", "D"]


@pytest.mark.parametrize("levels", [5, 10**9])
def test_ranks_are_permutations_best_first_whatever_the_ties(levels):
    values = np.random.default_rng(0).integers(levels, size=(20, 50)).astype(float)
    for ranks, sign in zip(ranks_both_ways(values), (1, -1), strict=True):
        assert np.array_equal(np.sort(ranks), np.tile(np.arange(1, 51), (20, 1)))
        assert np.array_equal(np.argsort(ranks), np.argsort(-sign * values, kind="stable"))


def test_what_no_null_was_sampled_for_is_null(tmp_path):
    write_screen(tmp_path, score_table({"A": 0.1, "B": -0.3}, 0.01))
    _, rankings = ranked(tmp_path)
    assert rankings["p_value"].null_count() == rankings["fdr"].null_count() == len(rankings)
    assert rankings["control_status"].unique().to_list() == ["not_tested"]


def test_target_without_score_is_listed_but_not_ranked(tmp_path):
    write_screen(tmp_path, score_table({"A": 0.1, "B": None, "C": 0.2}))
    scores, rankings = ranked(tmp_path)
    assert scores["score"].to_list() == [0.1, None, 0.2]
    assert order(rankings, direction="toward") == ["C", "A"]


def test_intervals_hold_the_rank_and_are_points_without_noise(tmp_path):
    scores = {f"T{i:02d}": i / 10 for i in range(12)}
    for name, spread in (("quiet", 0.0), ("noisy", 0.3)):
        (tmp_path / name).mkdir()
        write_screen(tmp_path / name, score_table(scores, spread))
    _, quiet = ranked(tmp_path / "quiet")
    _, noisy = ranked(tmp_path / "noisy")
    assert (quiet["rank_low"] == quiet["rank_high"]).all()
    assert noisy.select((pl.col("rank").is_between("rank_low", "rank_high")).all()).item()
    assert (noisy["rank_high"] > noisy["rank_low"]).mean() > 0.5


def test_noise_shared_by_all_targets_does_not_move_ranks():
    scores, shared = np.array([0.3, 0.2, 0.1]), np.array([5.0, -5.0, 2.0, -2.0])
    shares = block_shares(4, 100, np.random.default_rng(0))
    resampled = resample_blocks(scores, scores[:, None] + shared, shares)
    assert resampled.std() > 0.5
    low, high = rank_interval(ranks_both_ways(scores)[0], ranks_both_ways(resampled)[0], 0.9)
    assert low.tolist() == high.tolist() == [1, 2, 3]


def test_bootstrap_spread_is_the_standard_error_of_the_score():
    blocks = np.random.default_rng(1).normal(size=(3, 6))
    shares = block_shares(6, 20_000, np.random.default_rng(0))
    spread = resample_blocks(blocks.mean(axis=1), blocks, shares).std(axis=0)
    np.testing.assert_allclose(spread, blocks.std(axis=1, ddof=1) / np.sqrt(6), rtol=0.03)


def test_one_block_of_draws_gives_no_interval(tmp_path):
    table = score_table({"A": 0.1, "B": 0.2}, blocks=2)
    one = table.with_columns(pl.col("blocks").list.head(1), score_se=pl.lit(None, pl.Float64))
    write_screen(tmp_path, one)
    _, rankings = ranked(tmp_path)
    assert rankings["rank_low"].null_count() == rankings["rank_high"].null_count() == 4


def many(blocks=4):
    rng = np.random.default_rng(7)
    parts = [
        score_table(
            {f"T{i:02d}": v for i, v in enumerate(rng.normal(size=20))},
            0.5, program=program, context=context, seed=i, blocks=blocks,
        )
        for i, (program, context) in enumerate(
            (p, c) for p in ("Treg", "Th2") for c in ("donor=D1,time=Rest", "time=Rest")
        )
    ]  # fmt: skip
    return pl.concat(parts)


def test_one_shard_or_seven_give_the_same_bytes(tmp_path):
    for name, shards in (("one", [0] * 20), ("seven", [(3 * i) % 7 for i in range(20)])):
        (tmp_path / name).mkdir()
        write_screen(tmp_path / name, many(), shards=shards)
        ranked(tmp_path / name)
    for file in ("rankings", "program_scores"):
        one, seven = (tmp_path / name / "rank" / f"{file}.parquet" for name in ("one", "seven"))
        assert one.read_bytes() == seven.read_bytes()


def test_shards_of_an_earlier_run_are_not_read(tmp_path):
    write_screen(tmp_path, score_table({"A": 0.1, "B": 0.2}))
    stale = score_table({"A": 9.0, "B": -9.0})
    stale.write_parquet(tmp_path / "programs" / "5.parquet")
    _, rankings = ranked(tmp_path)
    assert rankings["score"].max() == 0.2


def test_tables_are_sorted_and_typed(tmp_path):
    write_screen(tmp_path, many())
    scores, rankings = ranked(tmp_path)
    assert scores.select(KEY).equals(scores.select(KEY).sort(KEY))
    keys = rankings.select("program", "context")
    assert keys.equals(keys.sort("program", "context"))
    assert rankings.schema["rank"] == pl.Int32
    assert rankings.schema["p_value"] == pl.Float64
    assert len(rankings) == 2 * 2 * 20 * 2


def measured_table(scores):
    rows = score_table(scores).drop("blocks").rename({"score_se": "standard_error"})
    return rows.with_columns(p_value=pl.lit(0.01), fdr=pl.lit(0.02))


def test_measured_scores_are_ranked_apart(tmp_path):
    measured = measured_table({"A": 5.0, "B": -5.0}).with_columns(
        standard_error=pl.Series([0.01, None])
    )
    table = score_table({"A": 0.1, "B": 0.2, "C": 0.3})
    write_screen(tmp_path, table, measured=measured)
    _, rankings = ranked(tmp_path)
    assert order(rankings, direction="toward", evidence="measured") == ["A", "B"]
    predicted = rankings.filter(pl.col("evidence") != "measured")
    assert order(predicted, direction="toward") == ["C", "B", "A"]
    found = rankings.filter(evidence="measured", direction="toward")
    assert found.select("rank", "rank_low", "rank_high").rows() == [(1, 1, 1), (2, None, None)]


def test_wider_errors_give_wider_measured_intervals():
    names = [f"T{i}" for i in range(10)]
    rows = pl.DataFrame(
        {
            "program": "Th2", "context": "all", "target_gene_id": names, "target_gene": names,
            "evidence": "measured", "score": np.arange(10.0), "score_sd": 0.1, "n_genes": 3,
        }
    )  # fmt: skip
    noise = np.random.default_rng(0).normal(size=(300, 10))
    widths = []
    for error in (0.01, 1.0, 5.0):
        found = rank_scores(rows, np.arange(10.0) + error * noise, 0.9)
        widths.append((found["rank_high"] - found["rank_low"]).mean())
    assert widths[0] == 0 < widths[1] < widths[2]


def test_missing_and_incomplete_shards_are_named(tmp_path):
    write_screen(tmp_path, many(), shards=[i % 2 for i in range(20)])
    path = tmp_path / "programs" / "1.parquet"
    kept = pl.read_parquet(path)
    kept.filter(pl.col("target_gene_id") != "T01").write_parquet(path)
    with pytest.raises(DataError, match="has 19 scores for 20 screened candidates"):
        ranked(tmp_path)
    assert not (tmp_path / "rank" / "rankings.parquet").exists()
    path.unlink()
    with pytest.raises(DataError, match=r"lacks the scores of shard 1 \(1 of 2 missing\)"):
        ranked(tmp_path)


def two_models(folder, **scores):
    """Write a screen of one model, and the scores of a second one beside it."""
    write_screen(folder, score_table(scores, 0.01))
    (folder / "second").mkdir()
    second = score_table({k: v + 0.2 for k, v in scores.items()}, 0.01).sort(KEY)
    second.write_parquet(folder / "second" / "0.parquet")
    return find_scores(
        folder / "programs", None, folder / "candidates.parquet", folder / "store",
        [folder / "second"],
    )  # fmt: skip


def test_scores_of_several_models_are_their_mean_with_the_error_between_them(tmp_path):
    scores = two_models(tmp_path, A=0.1, B=-0.3, C=0.7)
    paths = write_rankings(scores, tmp_path / "rank", SETTINGS, 0)
    table = pl.read_parquet(paths[0]).sort("target_gene_id")
    assert table["score"].to_list() == pytest.approx([0.2, -0.2, 0.8])
    between = np.std([0, 0.2], ddof=1) / np.sqrt(2)
    assert (table["score_sd"] > between).all()
    assert table["score_sd"].to_list() == pytest.approx([between] * 3, rel=0.01)


def test_models_that_agree_on_the_order_leave_no_doubt_about_it(tmp_path):
    """They differ by a shift of all scores: resampled models move all targets alike."""
    scores = two_models(tmp_path, A=0.1, B=-0.3, C=0.7)
    paths = write_rankings(scores, tmp_path / "rank", SETTINGS, 0)
    rankings = pl.read_parquet(paths[1])
    assert (rankings["rank_low"] == rankings["rank_high"]).all()


def test_a_model_of_other_targets_is_refused(tmp_path):
    scores = two_models(tmp_path, A=0.1, B=-0.3, C=0.7)
    score_table({"A": 0.1, "B": 0.2}).write_parquet(tmp_path / "second" / "0.parquet")
    with pytest.raises(DataError, match=r"model 2 has scores of other targets .*score again"):
        write_rankings(scores, tmp_path / "rank", SETTINGS, 0)
    (tmp_path / "second" / "0.parquet").unlink()
    with pytest.raises(DataError, match=r"second lacks the scores of shard 0"):
        find_scores(
            tmp_path / "programs", None, tmp_path / "candidates.parquet", tmp_path / "store",
            [tmp_path / "second"],
        )  # fmt: skip


def with_decoys(folder, n):
    """Three targets, and ``n`` decoys whose scores are noise."""
    rng = np.random.default_rng(0)
    scores = {"A": 5.0, "B": 0.0, "C": -5.0} | {f"decoy_{k:04d}": rng.normal() for k in range(n)}
    write_screen(folder, score_table(scores, 0.01))
    listed = pl.read_parquet(folder / "candidates.parquet").with_columns(
        status=pl.when(pl.col("target_gene_id").str.starts_with("decoy_")).then(pl.lit("decoy"))
        .otherwise("status"),
        evidence=pl.lit("predicted_seen"),
    )  # fmt: skip
    listed.write_parquet(folder / "candidates.parquet")


def test_decoys_give_p_values_and_are_in_no_table(tmp_path, caplog):
    with_decoys(tmp_path, 39)
    table, rankings = ranked(tmp_path)
    for frame in (table, rankings):
        assert set(frame["target_gene_id"]) == {"A", "B", "C"}
    assert rankings["rank"].max() == 3
    best = rankings.filter(direction="toward", target_gene_id="A")
    assert best["p_value"].item() == 1 / 40
    assert best["fdr"].item() == pytest.approx(3 / 40)
    assert best["n_decoys"].item() == 39
    assert "are needed" not in caplog.text


def test_too_few_decoys_give_no_p_values_and_ranking_says_so(tmp_path, caplog):
    with_decoys(tmp_path, 19)
    _, rankings = ranked(tmp_path)
    assert rankings["n_decoys"].unique().to_list() == [19]
    assert rankings["fdr"].null_count() == rankings["p_value"].null_count() == len(rankings)
    assert "19 decoys, and 20 are needed" in caplog.text


def test_interval_of_a_trained_target_holds_its_rank_with_and_without_predictions():
    """B is third behind A and a prediction; if genes never knocked down are all alike, second."""
    rows = pl.DataFrame(
        {
            "target_gene_id": ["A", "B", "U1", "U2", "U3"],
            "evidence": ["predicted_seen"] * 2 + ["predicted_unseen"] * 3,
            "score": [0.9, 0.5, 0.7, 0.0, 0.0],
            "score_sd": 0.1,
            "noise_sd": [0.0, 0.0, None, None, None],
            "shared_sd": 0.0,
            "rest_at": [None, None, 0.0, 0.0, 0.0],
            "blocks": [[0.0]] * 5,
            "models": [[0.0]] * 5,
            **dict.fromkeys(("program", "context", "target_gene"), "x"),
            "n_genes": 5,
        }
    )
    still = _resample_predicted(rows, SETTINGS, 0)
    table = rank_scores(rows, still, 0.9, still).filter(direction="toward")
    found = {r["target_gene_id"]: (r["rank_low"], r["rank_high"]) for r in table.to_dicts()}
    assert found["A"] == (1, 1)
    assert found["B"] == (2, 3)


def test_resampled_spread_of_stopped_draws_is_their_standard_error():
    rng = np.random.default_rng(2)
    blocks = rng.normal(size=(40, 6))
    blocks[:20, 3:] = np.nan
    whole = stretched(blocks)
    assert np.array_equal(whole[20:], blocks[20:])
    np.testing.assert_allclose(whole[:20].mean(axis=1), blocks[:20, :3].mean(axis=1), atol=1e-12)
    error = whole[:20].std(axis=1, ddof=1) / np.sqrt(6)
    np.testing.assert_allclose(error, blocks[:20, :3].std(axis=1, ddof=1) / np.sqrt(3), rtol=1e-12)
    resampled = resample_blocks(np.zeros(40), whole, block_shares(6, 40_000, rng))
    np.testing.assert_allclose(resampled.std(axis=0)[:20], error, rtol=0.03)
    alone = stretched(np.array([[2.0, np.nan, np.nan]]))
    assert alone.tolist() == [[2.0, 2.0, 2.0]]


def test_targets_that_stopped_early_are_ranked_with_the_spread_of_their_own_blocks(tmp_path):
    table = score_table({"A": 0.30, "B": 0.28, "C": -0.2}, spread=0.1, blocks=4)
    lists = table["blocks"].to_list()
    lists[1] = [*lists[1][:2], float("nan"), float("nan")]
    stopped = table.with_columns(pl.Series("blocks", lists, dtype=pl.List(pl.Float64)))
    write_screen(tmp_path / "stopped", stopped)
    scores = find_scores(
        tmp_path / "stopped/programs", None, tmp_path / "stopped/candidates.parquet",
        tmp_path / "stopped/store",
    )  # fmt: skip
    read = predicted_scores(scores, "Th2")[0]
    found = read["blocks"].to_list()
    assert [found[0], found[2]] == [lists[0], lists[2]]
    spread = np.std(lists[1][:2], ddof=1) / np.sqrt(2)
    assert np.std(found[1], ddof=1) / np.sqrt(4) == pytest.approx(spread)
    rows, rankings = ranked(tmp_path / "stopped")
    assert rankings["rank_low"].null_count() == 0
    assert rows["score"].to_list() == table["score"].to_list()
