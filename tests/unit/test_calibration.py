"""Nulls of a ranking: p-values counted by hand, uniform without effect, and their limits."""

import numpy as np
import polars as pl
import pytest
from scipy.stats import kstest

from knockscreen.score.calibration import (
    FEWEST_DECOYS,
    calibrated,
    calibrated_measured,
    direction_p_value,
    empirical_p_value,
    shared_shift,
)
from knockscreen.score.concordance import with_concordance, with_tau


def rows(scores, *, evidence="predicted_seen", context="time=Rest", prefix="T", **columns):
    n = len(scores)
    values = {
        "context": context,
        "target_gene_id": [f"{prefix}{k:04d}" for k in range(n)],
        "evidence": evidence,
        "score": pl.Series(scores, dtype=pl.Float64),
        "score_sd": 0.0,
        "magnitude": 1.0,
        "specific_toward": 0.5,
        "specific_away": 0.5,
        "control_error": 0.0,
    }
    return pl.DataFrame(values | columns)


def test_p_value_counts_the_decoys_that_are_as_extreme_and_one_more():
    null = np.arange(1.0, 25.0)
    found = empirical_p_value(np.array([24.5, 24.0, 20.5, 0.0]), null)
    assert found.tolist() == [1 / 25, 2 / 25, 5 / 25, 25 / 25]


@pytest.mark.parametrize("n", [0, 1, FEWEST_DECOYS - 1])
def test_too_few_decoys_give_no_p_value_and_no_fdr(n):
    table = calibrated(rows([0.1, 0.2]), rows(np.linspace(-1, 1, n), prefix="decoy_"))
    for column in ("p_value_toward", "fdr_toward", "p_value_away", "fdr_away"):
        assert table[column].null_count() == 2
    assert table["n_decoys"].to_list() == [n, n]
    assert table["score_sd"].to_list() == [0.0, 0.0]


def test_a_program_is_specific_where_it_stands_out_of_random_ones_as_decoys_do_not():
    decoys = rows(np.zeros(99), prefix="decoy_", random_z=np.linspace(-3, 3, 99))
    shares = {"specific_toward": [0.01, 0.01, 0.2], "specific_away": [0.99, 0.99, 0.8]}
    table = calibrated(rows([1.0, 1.0, 1.0], random_z=[2.0, 9.0, 9.0], **shares), decoys)
    far = (np.linspace(-3, 3, 99) >= 2).sum() + 1
    assert table["program_specificity_p_toward"].to_list() == [far / 100, 0.01, 0.01]
    near = (np.linspace(-3, 3, 99) <= 2).sum() + 1
    assert table["program_specificity_p_away"].to_list() == [near / 100, 1.0, 1.0]
    every = pl.concat([decoys, decoys.with_columns(random_z=pl.lit(5.0))])  # of another program
    table = calibrated(rows([1.0, 1.0, 1.0], random_z=[2.0, 9.0, 9.0], **shares), decoys, every)
    assert table["program_specificity_p_toward"].to_list() == [(far + 99) / 199, 1 / 199, 1 / 199]
    few = calibrated(rows([1.0] * 3, random_z=[2.0, 9.0, 9.0], **shares), decoys.head(19))
    assert few["program_specificity_p_toward"].to_list() == shares["specific_toward"]
    unknown = dict.fromkeys(("specific_toward", "specific_away", "random_z"), pl.lit(None, float))
    table = calibrated(rows([1.0]).with_columns(**unknown), decoys)
    assert table["program_specificity_p_toward"].to_list() == [None]


def test_both_tails_are_counted_and_the_kinds_of_evidence_apart():
    rng = np.random.default_rng(0)
    decoys = pl.concat(
        [
            rows(rng.normal(0, 1, 99), prefix="decoy_"),
            rows(rng.normal(0, 0.1, 99), prefix="decoy_unseen_", evidence="predicted_unseen"),
        ]
    )
    table = calibrated(
        pl.concat([rows([-9, 0.5, 9]), rows([0.5, 0, 0], prefix="U", evidence="predicted_unseen")]),
        decoys,
    )
    p = {r["target_gene_id"]: (r["p_value_toward"], r["p_value_away"]) for r in table.to_dicts()}
    assert p["T0000"] == (1.0, 0.01)
    assert p["T0002"] == (0.01, 1.0)
    assert p["T0001"][0] > 0.1
    assert p["U0000"][0] == 0.01  # the same score as T0001, against its own null


def test_genes_never_knocked_down_have_a_p_value_and_no_fdr():
    decoys = rows(np.linspace(-1, 1, 99), prefix="decoy_unseen_", evidence="predicted_unseen")
    table = calibrated(rows([9.0, -0.001], prefix="U", evidence="predicted_unseen"), decoys)
    assert table["p_value_toward"].to_list() == [0.01, pytest.approx(0.51)]
    assert table["fdr_toward"].null_count() == table["fdr_away"].null_count() == 2


def test_p_values_of_scores_that_are_decoys_are_uniform():
    found = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        null, score = rng.standard_normal(199), rng.standard_normal(1)
        found.append(empirical_p_value(score, null)[0])
    assert kstest(found, "uniform").pvalue > 0.05


def test_a_shift_of_all_targets_is_taken_out_as_far_as_the_control_explains_it():
    scores, decoys = np.array([0.2, 0.3, 0.4, 5.0]), np.array([-0.1, 0.0, 0.1])
    assert shared_shift(scores, decoys, control_error=1.0) == pytest.approx(0.35)
    assert shared_shift(scores, decoys, control_error=0.1) == pytest.approx(0.2)
    assert shared_shift(scores, decoys, control_error=0.0) == 0.0


def test_an_error_of_the_control_makes_no_hits():
    rng = np.random.default_rng(0)
    targets, decoys = rng.normal(0.3, 0.1, 100), rows(rng.normal(0, 0.1, 200), prefix="decoy_")
    told = calibrated(rows(targets, control_error=0.2), decoys)
    untold = calibrated(rows(targets), decoys)
    assert (told["fdr_toward"] <= 0.1).sum() == 0
    assert (untold["fdr_toward"] <= 0.1).sum() > 80  # what the correction is for


def test_error_of_estimation_is_the_spread_of_the_decoys_less_monte_carlo():
    decoys = rows([-0.5, 0.5] * 20, prefix="decoy_", score_sd=0.3)
    table = calibrated(rows([0.0, 1.0], score_sd=0.4), decoys)
    own = 0.25 * 40 / 39 - 0.09
    assert table["noise_sd"].to_list() == pytest.approx([np.sqrt(own)] * 2)
    assert table["score_sd"].to_list() == pytest.approx([np.sqrt(0.16 + own)] * 2)


def test_a_prediction_leaves_open_what_trained_targets_vary_beyond_it():
    decoys = rows([-0.1, 0.1] * 20, prefix="decoy_")
    seen = rows([-1.0, 1.0] * 20)
    unseen = rows([-0.5, 0.5] * 20, prefix="U", evidence="predicted_unseen")
    table = calibrated(pl.concat([seen, unseen]), decoys).filter(evidence="predicted_unseen")
    assert table["noise_sd"][0] == pytest.approx(np.sqrt((1 - 0.01 - 0.25) * 40 / 39))


def test_direction_is_judged_among_knock_downs_of_like_magnitude():
    rng = np.random.default_rng(0)
    cosine = rng.uniform(-0.2, 0.2, 200)
    magnitude = np.geomspace(1, 100, 200)
    cosine[10], cosine[-1] = 0.9, 0.0  # weak and aimed; strongest of all and not aimed
    p = direction_p_value(cosine * magnitude, magnitude, matched=60)
    assert p[10] == 1 / 61
    assert p[-1] > 0.2


def test_direction_p_value_does_not_depend_on_units_and_needs_others():
    rng = np.random.default_rng(1)
    score, magnitude = rng.standard_normal(50), rng.uniform(1, 2, 50)
    assert (direction_p_value(score, magnitude) == direction_p_value(7 * score, magnitude)).all()
    few = direction_p_value(score[:20], magnitude[:20])
    assert np.isnan(few).all()
    magnitude[3] = 0
    assert np.isnan(direction_p_value(score, magnitude)).tolist() == [k == 3 for k in range(50)]


def test_random_directions_have_uniform_p_values():
    rng = np.random.default_rng(2)
    magnitude = rng.lognormal(size=2000)
    p = direction_p_value(rng.standard_normal(2000) * magnitude, magnitude)
    assert kstest(p, "uniform").pvalue > 0.05


def test_concordance_is_the_share_of_donors_with_the_sign_of_the_pooled_score():
    contexts = [f"donor=D{k},time=Rest" for k in range(4)]
    scores = [0.3, 0.1, -0.1, 0.5]
    table = pl.concat(
        [rows([s], context=c) for c, s in zip(contexts, scores, strict=True)]
        + [rows([0.2], context="time=Rest")]
    )
    found = {r["context"]: r for r in with_concordance(table).to_dicts()}
    assert found["time=Rest"]["donor_concordance"] == 0.75
    assert found["time=Rest"]["donor_sd"] == pytest.approx(np.std(scores, ddof=1))
    assert all(found[c]["donor_concordance"] is None for c in contexts)


def test_one_donor_is_no_concordance():
    table = pl.concat([rows([0.3], context="donor=D1,time=Rest"), rows([0.3], context="time=Rest")])
    assert with_concordance(table)["donor_concordance"].null_count() == 2


def test_tau_says_how_few_contexts_an_effect_is_in():
    contexts = [f"time=T{k}" for k in range(4)]
    for scores, expected in (
        ([0.2, 0.2, 0.2, 0.2], [0, 0, 0, 0]),
        ([0.4, 0, 0, 0], [1, None, None, None]),
        ([0.4, 0.2, 0, -0.1], [2.5 / 3, 2.5 / 3, None, 1]),
    ):
        table = pl.concat(rows([s], context=c) for c, s in zip(contexts, scores, strict=True))
        found = with_tau(table)["tau"].to_list()
        assert found == [None if e is None else pytest.approx(e) for e in expected]
    assert with_tau(rows([0.3], context="time=T0"))["tau"].to_list() == [None]


def test_tau_compares_pooled_contexts_with_pooled_ones_alone():
    table = pl.concat(
        [rows([0.3], context=f"donor=D{d},time=T{t}") for d in (1, 2) for t in (1, 2)]
        + [rows([s], context=f"time=T{t}") for t, s in ((1, 0.3), (2, -0.3))]
    )
    found = dict(with_tau(table).select("context", "tau").iter_rows())
    assert [found["time=T1"], found["time=T2"]] == [1, 1]
    assert found["donor=D1,time=T1"] == 0


def measured(scores, own_error, prefix="T"):
    return rows(scores, prefix=prefix, evidence="measured").with_columns(
        own_error=pl.Series(own_error, dtype=pl.Float64)
    )


def test_measured_scores_are_counted_in_units_of_their_own_error():
    """The same score is a find where cells are many, and none where they are few."""
    rng = np.random.default_rng(0)
    error = rng.uniform(0.01, 1, 199)
    decoys = measured(rng.normal(size=199) * error, error, "decoy_")
    table = calibrated_measured(measured([0.2, 0.2, 0.2], [0.02, 1.0, None]), decoys)
    p = table["p_value_toward"].to_list()
    assert p[0] == 1 / 200
    assert p[1] > 0.2
    assert p[2] is None
    assert table["n_decoys"].to_list() == [199] * 3


def test_measured_p_values_are_uniform_whatever_the_cells():
    rng = np.random.default_rng(5)
    errors = [rng.uniform(0.01, 1, n) for n in (300, 5000)]
    target, decoy = (measured(rng.normal(size=len(e)) * e, e) for e in errors)
    table = calibrated_measured(target, decoy)
    for direction in ("toward", "away"):
        assert kstest(table[f"p_value_{direction}"], "uniform").pvalue > 0.05
    few = table.filter(pl.col("own_error") < 0.2)["p_value_toward"]
    assert kstest(few, "uniform").pvalue > 0.05
    assert (table["fdr_toward"] <= 0.1).mean() < 0.005
