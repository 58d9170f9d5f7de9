"""Effects of knock-downs never made: alike genes, the gene's own pull, and their weights."""

from dataclasses import replace

import numpy as np
import pytest

from knockscreen.models.denoise import Measured
from knockscreen.models.unseen import (
    correlations,
    fit_unseen,
    likeness,
    nonnegative_least_squares,
)

GENES = 30


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def measured(rest: np.ndarray, own: np.ndarray, covariance: np.ndarray) -> Measured:
    targets, contexts, _ = rest.shape
    cells = np.full((targets, contexts), 100)
    return Measured(rest, cells, own, covariance, np.zeros((contexts, 1), dtype=int))


def two_families() -> tuple[Measured, np.ndarray]:
    """Genes 0-14 go together, 15-29 too; knock-downs of a family have one effect."""
    family = np.arange(GENES) // 15
    covariance = 0.6 * (family[:, None] == family) + 0.4 * np.eye(GENES)
    own = np.array([-1, 0, 1, 2, 3, 15, 16, 17, 18])
    signature = noise(2, GENES, seed=1)
    rest = np.zeros((9, 1, GENES))
    rest[1:, 0] = signature[family[own[1:]]]
    return measured(rest, own, covariance), signature


def test_unseen_gene_takes_after_the_trained_targets_it_is_alike():
    data, signature = two_families()
    fitted = fit_unseen(data, (np.zeros((1, GENES)), data.shifts), None, data.own_gene)
    for gene, family in ((9, 0), (25, 1)):
        effect = fitted.predict(gene, gene)[0]
        assert np.corrcoef(effect, signature[family])[0, 1] > 0.9
        assert np.corrcoef(effect, signature[1 - family])[0, 1] < 0.5


def pulling(sign: float) -> Measured:
    """Every knock-down lowers (or raises) what goes up with its gene."""
    mixing = noise(GENES, 4, seed=2)
    covariance = mixing @ mixing.T + 0.5 * np.eye(GENES)
    correlation, spread = correlations(covariance)
    own = np.array([-1, *range(12)])
    rest = np.zeros((13, 2, GENES))
    rest[1:] = -sign * (correlation[:12] * spread)[:, None]
    return measured(rest, own, covariance)


def test_pull_is_learned_with_its_size():
    data = pulling(0.7)
    fitted = fit_unseen(data, (np.zeros((2, GENES)), data.shifts), None, data.own_gene)
    correlation, spread = correlations(data.covariance)
    truth = -0.7 * correlation[20] * spread
    found = fitted.predict(20, 20)
    assert found.shape == (2, GENES)
    assert np.corrcoef(found[0], truth)[0, 1] > 0.95
    assert np.abs(found - truth).mean() < 0.25 * np.abs(truth).mean()


def test_pull_the_wrong_way_gets_no_weight():
    data = pulling(-0.7)
    fitted = fit_unseen(data, (np.zeros((2, GENES)), data.shifts), None, data.own_gene)
    assert fitted.weights[-1] == 0


def test_gene_off_the_panel_has_no_pull_and_needs_a_profile_of_the_table():
    data, signature = two_families()
    profiles = np.concatenate([np.eye(2)[np.arange(GENES) // 15], [[1.0, 0.0]]])
    profiles = np.concatenate([profiles, np.tile([0.3, -0.1], (len(profiles), 1))], axis=1)
    fitted = fit_unseen(data, (np.zeros((1, GENES)), data.shifts), profiles, data.own_gene)
    effect = fitted.predict(GENES, -1)[0]
    assert np.corrcoef(effect, signature[0])[0, 1] > 0.9
    assert (fitted.parts(GENES, -1)[..., -1] == 0).all()


def test_target_that_is_left_out_does_not_predict_itself():
    data, _ = two_families()
    fitted = fit_unseen(data, (np.zeros((1, GENES)), data.shifts), None, data.own_gene)
    rest = fitted.rest.copy()
    rest[1] *= 50
    changed = replace(fitted, rest=rest)
    np.testing.assert_array_equal(changed.parts(0, 0, left_out=1), fitted.parts(0, 0, left_out=1))
    assert np.abs(changed.parts(0, 0) - fitted.parts(0, 0)).max() > 1


@pytest.mark.parametrize("targets", [0, 3])
def test_too_few_targets_leave_the_common_mean(targets):
    data, _ = two_families()
    few = Measured(
        data.shifts[: 1 + targets], data.cells[: 1 + targets], data.own_gene[: 1 + targets],
        data.covariance, data.levels,
    )  # fmt: skip
    mean = np.full((1, GENES), 0.2)
    fitted = fit_unseen(few, (mean, few.shifts), None, few.own_gene)
    expected = 0.2 + (few.shifts[1:].mean(axis=0) if targets else 0)
    np.testing.assert_allclose(fitted.predict(9, 9), np.broadcast_to(expected, (1, GENES)))


def test_untrained_and_silent_genes_do_not_count():
    data, _ = two_families()
    data.cells[1] = 0
    covariance = data.covariance.copy()
    covariance[1], covariance[:, 1] = 0, 0
    silent = Measured(data.shifts, data.cells, data.own_gene, covariance, data.levels)
    fitted = fit_unseen(silent, (np.zeros((1, GENES)), data.shifts), None, data.own_gene)
    assert fitted.rows.tolist() == [-1, -1, -1, 2, 3, 15, 16, 17, 18]
    assert (fitted.rest[1] == 0).all()
    assert np.isnan(fitted.profiles[1]).all()


def test_likeness_is_pearson_correlation():
    a, b = noise(8), noise(3, 8, seed=1)
    expected = [np.corrcoef(a, row)[0, 1] for row in b]
    np.testing.assert_allclose(likeness(a, b), expected)
    assert likeness(np.ones(4), noise(2, 4)).tolist() == [0, 0]


def test_nonnegative_least_squares_is_that_of_scipy():
    from scipy.optimize import nnls

    for seed in range(20):
        x, y = noise(12, 3, seed=seed), noise(12, seed=seed + 100)
        expected, _ = nnls(x, y)
        found = nonnegative_least_squares(x.T @ x, x.T @ y)
        np.testing.assert_allclose(found, expected, atol=1e-9)
