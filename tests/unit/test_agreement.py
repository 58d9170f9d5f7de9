"""Agreement with a screen: against sklearn and scipy, by hand, and on planted truth."""

import numpy as np
import polars as pl
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from knockscreen.score.agreement import (
    Predictor,
    _Order,
    agreement,
    auprc,
    auroc,
    sign_agreement,
    spearman,
)


@pytest.fixture
def resample():
    """60 genes with ties, drawn 60 times with replacement: weights and the genes drawn."""
    rng = np.random.default_rng(0)
    score = rng.integers(0, 12, size=60).astype(float)
    effect = np.round(score + rng.normal(size=60) * 4)
    hit = effect > 8
    drawn = rng.integers(60, size=60)
    return score, effect, hit, np.bincount(drawn, minlength=60).astype(float)[None], drawn


def test_weighted_measures_are_those_of_the_resampled_genes(resample):
    score, effect, hit, weights, drawn = resample
    order = _Order.of(score)
    y, s = hit[drawn], score[drawn]
    assert auroc(order, hit, weights).item() == pytest.approx(roc_auc_score(y, s))
    assert auprc(order, hit, weights).item() == pytest.approx(average_precision_score(y, s))
    expected = stats.spearmanr(s, effect[drawn])[0]
    assert spearman(order, _Order.of(effect), weights).item() == pytest.approx(expected)


def test_a_constant_score_is_chance(resample):
    _, effect, hit, weights, _ = resample
    order, one = _Order.of(np.zeros(60)), np.ones((1, 60))
    assert auroc(order, hit, weights).item() == pytest.approx(0.5)
    assert auprc(order, hit, one).item() == pytest.approx(hit.mean())
    assert np.isnan(spearman(order, _Order.of(effect), one)).all()


def test_no_hit_is_undefined_not_zero():
    order, none, one = _Order.of(np.arange(5.0)), np.zeros(5, dtype=bool), np.ones((1, 5))
    assert np.isnan(auroc(order, none, one)).all()
    assert np.isnan(auprc(order, none, one)).all()
    assert np.isnan(sign_agreement(np.ones(5), np.ones(5), none, one)).all()


def test_sign_counts_hits_alone_and_zero_as_half():
    score, effect = np.array([1.0, -1, 0, -5]), np.array([2.0, 2, 2, 2])
    hit = np.array([True, True, True, False])
    assert sign_agreement(score, effect, hit, np.ones((1, 4))).item() == pytest.approx(0.5)


def rows(score, effect, is_hit, *, resamples=200, baselines=()):
    predictors = [Predictor("score", score, signed=True, is_baseline=False)]
    predictors += [
        Predictor(f"size{i}", b, signed=False, is_baseline=True) for i, b in enumerate(baselines)
    ]
    return agreement(predictors, effect, is_hit, resamples=resamples, seed=1)


def planted(n=400, hits=60, seed=0):
    """Hits that lower (first half) and raise the phenotype, and genes that do nothing."""
    rng = np.random.default_rng(seed)
    effect = rng.normal(size=n) * 0.1
    effect[: hits // 2] -= 1
    effect[hits // 2 : hits] += 1
    return effect, np.arange(n) < hits, rng


def value(frame, **where):
    where = {"against": None} | where
    against = where.pop("against")
    found = frame.filter(
        pl.col("against").is_null() if against is None else pl.col("against") == against
    ).filter(**where)
    return found.row(0, named=True)


def test_a_planted_score_is_recovered_and_its_negative_fails_by_sign():
    effect, hit, rng = planted()
    score = effect + rng.normal(size=len(effect)) * 0.2
    right, wrong = rows(score, effect, hit), rows(-score, effect, hit)
    for kind in ("any", "lowers", "raises"):
        assert value(right, hits=kind, metric="auroc")["value"] > 0.95
    assert value(wrong, hits="any", metric="auroc")["value"] > 0.95  # size alone tells hits
    assert value(wrong, hits="lowers", metric="auroc")["value"] < 0.1
    assert value(wrong, hits="any", metric="sign")["value"] < 0.05
    spearmans = [value(f, metric="spearman")["value"] for f in (right, wrong)]
    assert spearmans[0] == pytest.approx(-spearmans[1])


def test_intervals_of_noise_hold_chance_about_as_often_as_they_say():
    held = []
    for seed in range(20):
        effect, hit, rng = planted(seed=seed)
        frame = rows(rng.normal(size=len(effect)), effect, hit).filter(pl.col("metric") != "auprc")
        held += frame.select(pl.col("chance").is_between("low", "high")).to_series().to_list()
    assert 0.87 < sum(held) / len(held) <= 1.0


def test_chance_of_auprc_is_the_share_of_hits():
    effect, hit, _ = planted()
    frame = rows(effect, effect, hit)
    assert value(frame, hits="any", metric="auprc")["chance"] == pytest.approx(60 / 400)
    assert value(frame, hits="lowers", metric="auprc")["chance"] == pytest.approx(30 / 400)


def test_a_score_that_is_only_size_does_not_beat_the_size_baseline():
    effect, hit, rng = planted()
    size = np.abs(effect) + rng.normal(size=len(effect)) * 0.2
    score = size * rng.choice([-1.0, 1.0], size=len(effect))  # directions at random
    frame = rows(score, effect, hit, baselines=[size])
    any_hit = value(frame, hits="any", metric="auroc", against="size0")
    assert any_hit["low"] <= 0 <= any_hit["high"]
    assert value(frame, hits="lowers", metric="auroc", against="size0")["high"] < 0


def test_more_genes_give_narrower_intervals_and_the_same_seed_the_same_rows():
    widths = []
    for n in (100, 1600):
        effect, hit, rng = planted(n, hits=n // 5)
        frame = rows(effect + rng.normal(size=n), effect, hit)
        row = value(frame, hits="any", metric="auroc")
        widths.append(row["high"] - row["low"])
        assert rows(effect, effect, hit).equals(rows(effect, effect, hit))
    assert widths[1] < widths[0] / 2
