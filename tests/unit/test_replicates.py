"""Replicates judge a knock-down: closed forms, invariances, negative controls."""

import numpy as np
import pytest
from scipy import stats
from scipy.special import polygamma

from knockscreen.score.replicates import (
    judge,
    moderate,
    overdispersion,
    pooled_variance,
    summarise,
    trigamma_inverse,
)


def judged(target, control, cells, variance=1.0, *, moderated=False):
    """Judge unit means (units, genes) per context, every unit of ``cells`` cells."""
    contexts = len(target)
    sides, numbers = [], []
    for side in (target, control):
        code = np.repeat(np.arange(contexts), [len(means) for means in side])
        n = np.full(len(code), float(cells))
        sides.append(summarise(code, n, np.concatenate(side), contexts))
        numbers.append(sides[-1].cells)
    delta = np.mean([t.mean(0) - c.mean(0) for t, c in zip(target, control, strict=True)], axis=0)
    s2 = np.full((contexts, len(delta)), variance)
    members = list(range(contexts))
    phi = overdispersion(*sides, s2, members)
    phi = moderate(*phi) if moderated else phi
    return judge(delta, phi, s2, (numbers[0], numbers[1]), members)


def test_equal_pseudobulks_in_one_context_give_students_t_test():
    rng = np.random.default_rng(0)
    target, control = rng.normal(size=(4, 6)), rng.normal(size=(7, 6))
    _, p = judged([target], [control], cells=1000)  # cells explain little: phi is far above 1
    assert p == pytest.approx(stats.ttest_ind(target, control).pvalue)


def test_one_pseudobulk_per_donor_gives_the_paired_t_test_over_donors():
    rng = np.random.default_rng(1)
    target, control = rng.normal(size=(5, 1, 6)), rng.normal(size=(5, 1, 6))
    error, p = judged(list(target), list(control), cells=1000)
    expected = stats.ttest_rel(target[:, 0], control[:, 0])
    assert p == pytest.approx(expected.pvalue)
    difference = (target - control)[:, 0]
    assert error == pytest.approx(difference.std(axis=0, ddof=1) / np.sqrt(5))


def test_pooled_noise_is_the_residual_of_the_additive_fit():
    rng = np.random.default_rng(2)
    target = [rng.normal(size=(2, 3)), rng.normal(size=(3, 3))]
    control = [rng.normal(size=(4, 3)), rng.normal(size=(5, 3))]
    y = np.concatenate([*target, *control])
    donor = np.repeat([0, 1, 0, 1], [2, 3, 4, 5])
    design = np.column_stack([donor == 0, donor == 1, np.repeat([1, 0], [5, 9])]).astype(float)
    fit, *_ = np.linalg.lstsq(design, y, rcond=None)
    sides = [
        summarise(
            np.repeat([0, 1], [len(m) for m in side]), np.full(n, 50.0), np.concatenate(side), 2
        )
        for side, n in ((target, 5), (control, 9))
    ]
    phi, freedom = overdispersion(*sides, np.ones((2, 3)), [0, 1])
    assert freedom == 14 - 3
    assert phi == pytest.approx(50 * ((y - design @ fit) ** 2).sum(axis=0) / freedom)


def test_a_donor_that_disagrees_counts_as_noise():
    rng = np.random.default_rng(3)
    noise = [rng.normal(size=(3, 2)) * 0.1 for _ in range(4)]
    agree = np.array([1.0, 1.0])
    oppose = np.array([1.0, -1.0])  # gene 1 goes the other way in the second donor
    target = [noise[0] + agree, noise[1] + oppose]
    _, p = judged(target, noise[2:], cells=100)
    assert p[0] < 1e-4
    assert p[1] > 0.5


def test_pseudobulks_never_count_as_more_alike_than_their_cells_allow():
    target, control = np.full((3, 1), 0.3), np.full((3, 1), 0.0)  # identical by chance
    error, p = judged([target], [control], cells=10, variance=1.0)
    assert error.item() == pytest.approx(np.sqrt(2 / 30))
    assert 0.2 < p.item() < 0.4


def test_one_unit_on_a_side_is_no_replicate():
    error, p = judged([np.zeros((1, 2))], [np.ones((5, 2))], cells=10)
    assert np.isnan(error).all()
    assert np.isnan(p).all()


def test_a_gene_silent_on_both_sides_is_no_test():
    _, p = judged([np.zeros((2, 1))], [np.zeros((2, 1))], cells=10, variance=0.0)
    assert np.isnan(p).all()


def test_moderation_recovers_the_prior_it_was_drawn_from():
    rng = np.random.default_rng(4)
    prior_freedom, prior, freedom = 8.0, 2.0, 5.0
    true = prior * prior_freedom / rng.chisquare(prior_freedom, size=20_000)
    phi = true * rng.chisquare(freedom, size=20_000) / freedom
    moderated, total = moderate(phi, freedom)
    assert total - freedom == pytest.approx(prior_freedom, rel=0.1)
    assert np.mean((np.log(moderated) - np.log(true)) ** 2) < np.mean(
        (np.log(phi) - np.log(true)) ** 2
    )


def test_equal_overdispersion_is_moderated_to_one_value_and_few_genes_to_none():
    assert moderate(np.full(20, 3.0), 4.0)[1] == np.inf
    few = np.array([1.0, 5.0])
    assert moderate(few, 4.0) == (pytest.approx(few), 4.0)


@pytest.mark.parametrize("x", [0.01, 0.5, 3.0, 400.0])
def test_trigamma_inverse_undoes_trigamma(x):
    assert trigamma_inverse(float(polygamma(1, x))) == pytest.approx(x)


def wells(rng, spread, *, shift=0.0, units=6, cells=30, genes=400):
    """Return the cells (units * cells, genes) of some wells, each shifted by a draw of its own."""
    well = rng.normal(size=(units, 1, genes)) * spread
    return (rng.normal(size=(units, cells, genes)) + well + shift).reshape(units * cells, genes)


def test_wells_that_differ_do_not_give_false_hits_and_cells_would():
    rng = np.random.default_rng(5)
    target, control = wells(rng, 0.5), wells(rng, 0.5)
    means = [side.reshape(6, 30, -1).mean(axis=1) for side in (target, control)]
    _, p = judged([means[0]], [means[1]], cells=30, moderated=True)
    assert 0.02 < np.mean(p < 0.05) < 0.09
    assert np.mean(stats.ttest_ind(target, control).pvalue < 0.05) > 0.4


def test_planted_effects_are_found_and_nulls_are_not():
    rng = np.random.default_rng(6)
    shift = np.where(np.arange(400) < 40, 1.0, 0.0)
    target, control = wells(rng, 0.2, shift=shift), wells(rng, 0.2)
    means = [side.reshape(6, 30, -1).mean(axis=1) for side in (target, control)]
    _, p = judged([means[0]], [means[1]], cells=30, moderated=True)
    assert np.mean(p[:40] < 0.001) > 0.9
    assert np.mean(p[40:] < 0.05) < 0.1


def test_variance_is_pooled_over_sides_by_their_cells():
    a, b = np.array([[2.0]]), np.array([[5.0]])
    assert pooled_variance(a, np.array([3.0]), b, np.array([5.0])).item() == pytest.approx(4.0)
    one_cell = pooled_variance(np.array([[np.nan]]), np.array([1.0]), b, np.array([5.0]))
    assert one_cell.item() == 5.0
    none = pooled_variance(np.array([[np.nan]]), np.array([1.0]), a * np.nan, np.array([1.0]))
    assert np.isnan(none.item())
