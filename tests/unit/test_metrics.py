"""Metrics of a predicted knock-down: closed forms, extremes, and what is undefined."""

import numpy as np
import pytest

from knockscreen.score import metrics
from knockscreen.score.metrics import (
    Rivals,
    average_precision,
    centroid_accuracy,
    direction_match,
    discrimination_score,
    expected_calls,
    farther,
    mae,
    moderated_variance,
    most_changed,
    overlap_at_n,
    pearson,
    precision_recall,
    t_test,
    weighted_r2,
)

GENES = 60


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def rivals(real: np.ndarray) -> Rivals:
    return Rivals(real, np.eye(len(real), dtype=bool), no_own(len(real)), len(real))


def discriminate(predicted: np.ndarray, real: np.ndarray, own: np.ndarray) -> np.ndarray:
    return discrimination_score(
        *farther(predicted, real, own, rivals(real), squared=False), len(real)
    )


def no_own(n: int) -> np.ndarray:
    return np.full(n, -1)


def test_perfect_prediction_has_the_best_value_of_every_metric(rng: np.random.Generator) -> None:
    real = rng.normal(size=GENES)
    de = np.abs(real) > 1
    precision, recall = precision_recall(de, de)
    found = {
        "pearson_delta": pearson(real, real),
        "mae_delta": mae(real, real),
        "weighted_r2_de": weighted_r2(real, real, de * 1.0),
        "direction_match": direction_match(real, real, de),
        "de_overlap_at_n": overlap_at_n(real, de, real, de),
        "de_precision": precision,
        "de_recall": recall,
        "de_auprc": average_precision(np.abs(real), de),
    }
    assert found == pytest.approx({name: metrics.METRICS[name].best for name in found})


def test_perfect_predictions_are_told_apart_perfectly(rng: np.random.Generator) -> None:
    real = rng.normal(size=(7, GENES))
    for squared in (False, True):
        count, of = farther(real, real, no_own(7), rivals(real), squared=squared)
        assert discrimination_score(count, of, 7).tolist() == [1.0] * 7
        assert centroid_accuracy(count, of).tolist() == [1.0] * 7


def test_discrimination_is_one_minus_rank_over_targets() -> None:
    real = np.array([[0.0, 0.0], [1.0, 0.0], [5.0, 0.0], [9.0, 0.0]])
    predicted = np.array([[4.0, 0.0], [1.1, 0.0], [5.0, 0.0], [0.0, 0.0]])
    # Distances of the first: 4, 3, 1, 5, so rank 2 of 4; the last is farthest: rank 3.
    assert discriminate(predicted, real, no_own(4)).tolist() == [0.5, 1.0, 1.0, 0.25]


def test_the_same_prediction_for_every_target_is_at_chance(rng: np.random.Generator) -> None:
    real = rng.normal(size=(9, GENES))
    same = np.tile(rng.normal(size=GENES), (9, 1))
    count, of = farther(same, real, no_own(9), rivals(real), squared=True)
    assert discrimination_score(count, of, 9).mean() == pytest.approx((9 + 1) / (2 * 9))
    assert centroid_accuracy(count, of).mean() == pytest.approx(0.5)


def test_shuffled_predictions_are_at_chance(rng: np.random.Generator) -> None:
    real = rng.normal(size=(30, GENES))
    found = [discriminate(real[rng.permutation(30)], real, no_own(30)).mean() for _ in range(30)]
    assert np.mean(found) == pytest.approx(31 / 60, abs=0.04)
    others = [pearson(real[i], real[i - 1]) for i in range(30)]
    assert np.mean(others) == pytest.approx(0, abs=0.1)


def test_the_own_gene_does_not_help_to_tell_targets_apart() -> None:
    real = np.array([[-9.0, 0.1, 0.0], [0.0, -9.0, 0.3]])
    only_own = np.array([[-9.0, 0.0, 0.3], [0.0, -9.0, 0.0]])
    own = np.array([0, 1])
    # Without the own gene: 0.1 + 0.3 to itself, 9 + 0 to the other; 0 + 0.3 to itself, 9 to it.
    masked = farther(only_own, real, own, rivals(real), squared=False)[0]
    assert masked.tolist() == [1.0, 1.0]
    changed = only_own.copy()
    changed[[0, 1], own] = 100.0
    again = farther(changed, real, own, rivals(real), squared=False)[0]
    assert again.tolist() == masked.tolist()


def test_rivals_without_their_own_genes_leave_no_change_at_chance(
    rng: np.random.Generator,
) -> None:
    """Strong knock-downs on a small panel: with them, every rival is far from any prediction."""
    real = 0.1 * rng.normal(size=(40, GENES))
    own = np.arange(40)
    real[own, own] = -3.0
    nothing = np.zeros_like(real)
    masked = Rivals(real, np.eye(40, dtype=bool), own, 40)
    count, of = farther(nothing, real, own, masked, squared=True)
    assert centroid_accuracy(count, of).mean() == pytest.approx(0.5, abs=0.05)
    count, of = farther(nothing, real, own, rivals(real), squared=True)
    assert centroid_accuracy(count, of).mean() == 1.0


def test_a_sample_of_rivals_estimates_the_score(rng: np.random.Generator) -> None:
    real = rng.normal(size=(200, 10))
    predicted = real + 2 * rng.normal(size=real.shape)
    every = discriminate(predicted, real, no_own(200)).mean()
    chosen = np.arange(0, 200, 4)
    some = Rivals(real[chosen], np.arange(200)[:, None] == chosen, no_own(50), 200)
    sampled = discrimination_score(
        *farther(predicted, real, no_own(200), some, squared=False), 200
    ).mean()
    assert sampled == pytest.approx(every, abs=0.05)


def test_a_missing_prediction_is_not_a_number() -> None:
    real = np.array([[0.0, 1.0], [1.0, 0.0]])
    made = np.array([[np.nan, np.nan], [1.0, 0.0]])
    assert np.isnan(discriminate(made, real, no_own(2))).tolist() == [True, False]


def test_metrics_without_an_answer_are_not_a_number() -> None:
    x, none = np.array([1.0, 2.0, 3.0]), np.zeros(3, dtype=bool)
    every = ~none
    undefined = [
        pearson(np.zeros(3), x),
        pearson(x[:2], x[:2]),
        mae(np.full(3, np.nan), x),
        weighted_r2(x, x, np.zeros(3)),
        direction_match(x, x, none),
        overlap_at_n(x, every, x, none),
        precision_recall(none, every)[0],
        precision_recall(every, none)[1],
        average_precision(x, none),
        average_precision(x, every),
    ]
    assert np.isnan(undefined).all()
    assert precision_recall(none, every)[1] == 0.0
    assert overlap_at_n(x, none, x, every) == 0.0


def test_no_change_has_no_direction_and_no_weighted_r2() -> None:
    real, de = np.array([0.5, -0.5, 1.0]), np.ones(3, dtype=bool)
    assert direction_match(np.zeros(3), real, de) == 0.0
    assert weighted_r2(np.zeros(3), real, np.ones(3)) == 0.0
    assert weighted_r2(-real, real, np.ones(3)) == pytest.approx(-3.0)


def test_nan_genes_are_passed_over() -> None:
    real = np.array([1.0, 2.0, 4.0, np.nan])
    made = np.array([2.0, 3.0, 5.0, 50.0])
    assert pearson(made, real) == pytest.approx(1.0)
    assert mae(made, real) == 1.0
    assert most_changed(real, 2).tolist() == [2, 1]


def test_overlap_counts_the_largest_called_genes() -> None:
    real = np.array([3.0, -2.0, 0.1, 0.2])
    of = np.array([True, True, False, False])
    made = np.array([0.1, -2.0, 5.0, 0.0])
    every = np.ones(4, dtype=bool)
    assert overlap_at_n(made, every, real, of) == 0.5  # the two largest are genes 2 and 1
    assert overlap_at_n(made, np.array([True, True, False, True]), real, of) == 1.0


def test_average_precision_of_a_constant_score_is_the_share_of_de_genes() -> None:
    of = np.array([True, False, False, True, False])
    assert average_precision(np.ones(5), of) == pytest.approx(0.4)
    assert average_precision(np.array([5.0, 1, 1, 4, 1]), of) == 1.0


def test_t_is_welchs() -> None:
    from scipy.stats import ttest_ind

    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 2, size=9), rng.normal(0, 1, size=14)
    expected = ttest_ind(a, b, equal_var=False)
    parts = np.array([[a.var(ddof=1) / 9], [b.var(ddof=1) / 14]])
    t, fdr = t_test(np.array([a.mean() - b.mean()]), parts, np.array([[8.0], [13.0]]))
    assert t[0] == pytest.approx(expected.statistic)
    assert fdr[0] == pytest.approx(expected.pvalue)  # one gene: nothing to correct


def test_cells_without_an_effect_call_few_genes(rng: np.random.Generator) -> None:
    """Eight sparse cells: unmoderated, every gene that none of them has would be called."""
    control, target = rng.poisson(0.3, (400, 300)), rng.poisson(0.3, (8, 300))
    usual = control.var(axis=0, ddof=1)
    variance = moderated_variance(target.var(axis=0, ddof=1), np.array([8.0]), usual)
    parts = np.stack([variance / 8, usual / 400])
    _, fdr = t_test(target.mean(axis=0) - control.mean(axis=0), parts, np.array([[17.0], [399.0]]))
    assert np.mean(fdr < metrics.FDR) <= 0.01
    bare = np.stack([target.var(axis=0, ddof=1) / 8, usual / 400])
    _, wrong = t_test(target.mean(axis=0) - control.mean(axis=0), bare, np.array([[7.0], [399.0]]))
    assert np.mean(wrong < metrics.FDR) > 0.05


def test_calls_depend_on_the_experiment_not_on_generated_cells() -> None:
    t = np.array([[5.0, 0.5, -6.0, np.nan, 0.0]])
    assert expected_calls(t).tolist() == [[True, False, True, False, False]]
    assert not expected_calls(np.zeros((1, 5))).any()


def test_every_metric_says_its_best_value_and_its_space() -> None:
    assert {m.best for m in metrics.ALL.values()} == {0.0, 1.0}
    assert all(m.space for m in metrics.ALL.values())
