"""The linear effect: shrinkage, ridge regression, and offsets that say what was planted."""

import numpy as np
import pytest
import torch

from fixtures.models import EFFECTS, GENE_IDS, tiny_store
from knockscreen.data.cells import CellStore
from knockscreen.models.effect import (
    GRID,
    PENALTIES,
    LinearEffect,
    Measured,
    denoise,
    effective_cells,
    fit_ridge,
    groupings,
    invert_curves,
    low_rank,
    ridge_fit,
    shrink_singular_values,
)
from knockscreen.nn.likelihood import expected_log1p
from knockscreen.training import effect as training


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("shape", [(200, 50), (50, 200), (80, 80)])
def test_noise_below_its_edge_leaves_exactly_nothing(shape):
    assert (shrink_singular_values(0.95 * noise(*shape), rank=10) == 0).all()


def test_planted_component_is_recovered_better_than_it_was_measured():
    u, v = noise(200, 1, seed=1), noise(1, 50, seed=2)
    planted = 0.5 * u @ v
    measured = planted + noise(200, 50)
    denoised = shrink_singular_values(measured, rank=5)
    raw, ours = ((m - planted) ** 2 for m in (measured, denoised))
    assert ours.mean() < 0.1 * raw.mean()
    assert np.linalg.matrix_rank(denoised) == 1
    assert (shrink_singular_values(measured, rank=0) == 0).all()


def test_strong_component_is_hardly_shrunk():
    strong = 100.0 * np.outer(np.ones(30), np.ones(20))
    np.testing.assert_allclose(shrink_singular_values(strong, rank=3), strong, rtol=1e-3)


def test_groupings_go_from_all_contexts_to_each_one():
    two_by_two = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    found = [codes.tolist() for codes in groupings(two_by_two)]
    assert found == [[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 2, 3]]


def test_groupings_that_say_the_same_are_listed_once():
    donors = np.array([[0, 0], [1, 0], [2, 0]])  # one time point
    assert [codes.tolist() for codes in groupings(donors)] == [[0, 0, 0], [0, 1, 2]]
    assert [codes.tolist() for codes in groupings(np.zeros((1, 0), dtype=int))] == [[0]]


LEVELS = np.array([[0], [1]])


def test_targets_without_effect_are_denoised_to_nothing():
    weights = np.full((60, 2), 25.0)
    shifts = 0.9 * noise(60, 2, 40) / np.sqrt(25.0)
    assert (denoise(shifts, weights, LEVELS, rank=5) == 0).all()


def test_effect_shared_by_contexts_is_recovered_better_than_it_was_measured():
    weights = np.full((60, 2), 25.0)
    planted = np.repeat((0.3 * noise(60, 1, seed=1) @ noise(1, 40, seed=2))[:, None], 2, axis=1)
    measured = planted + noise(60, 2, 40) / 5
    estimate = denoise(measured, weights, LEVELS, rank=5)
    assert ((estimate - planted) ** 2).mean() < 0.2 * ((measured - planted) ** 2).mean()


def test_effect_of_one_context_stays_in_it():
    weights = np.full((60, 2), 100.0)
    planted = np.zeros((60, 2, 40))
    planted[:, 1] = noise(60, 1, seed=1) @ noise(1, 40, seed=2)
    estimate = denoise(planted + noise(60, 2, 40) / 10, weights, LEVELS, rank=5)
    assert np.abs(estimate[:, 0]).mean() < 0.1 * np.abs(estimate[:, 1]).mean()


def test_missing_cells_are_filled_from_the_other_contexts():
    weights = np.full((60, 2), 100.0)
    weights[0, 1] = 0
    planted = np.repeat((noise(60, 1, seed=1) @ noise(1, 40, seed=2))[:, None], 2, axis=1)
    shifts = planted.copy()
    shifts[0, 1] = 0
    estimate = denoise(shifts, weights, LEVELS, rank=5)
    np.testing.assert_allclose(estimate[0, 1], planted[0, 1], atol=0.1)


def test_components_leave_out_the_own_transcript():
    weights = np.full((30, 1), 1e4)
    weights[0] = 0
    shifts = np.zeros((30, 1, 10))
    own = np.array([-1, *(np.arange(29) % 10)])
    shifts[np.arange(1, 30), 0, own[1:]] = -3.0
    measured = Measured(shifts, weights, own, 1.0, np.zeros((1, 1), dtype=int))
    _, coordinates = low_rank(measured, rank=3)
    assert (coordinates == 0).all()


def leave_one_out(features, outcome, weights, penalty):
    """Predict each row by a ridge regression of the others, solved outright."""
    x = np.concatenate([np.ones((len(features), 1)), features], axis=1)
    root = np.sqrt(weights / weights.mean())[:, None]
    predicted = np.zeros_like(outcome)
    for i in range(len(x)):
        rest = np.arange(len(x)) != i
        a, b = (x * root)[rest], (outcome * root)[rest]
        free = penalty * np.diag([0.0, *([1.0] * features.shape[1])])
        predicted[i] = x[i] @ np.linalg.solve(a.T @ a + free, a.T @ b)
    return predicted, float((((outcome - predicted) * root) ** 2).sum())


def test_leave_one_out_predictions_are_those_of_refitting_without_each_row():
    features, weights = noise(12, 3), np.arange(1.0, 13)
    outcome = features @ noise(3, 4, seed=1) + 0.5 + noise(12, 4, seed=2)
    beta, predicted = ridge_fit(features, outcome, weights)
    brute = [leave_one_out(features, outcome, weights, penalty) for penalty in PENALTIES]
    expected, _ = min(brute, key=lambda pair: pair[1])
    np.testing.assert_allclose(predicted, expected, rtol=1e-6)
    assert beta.shape == (4, 4)


def test_unseen_effects_are_predicted_from_features_where_they_tell():
    features = noise(40, 2)
    features[7] = np.nan  # off the panel
    coordinates = (features[:, :1] * 2 + 1)[:, None] * np.ones((1, 3, 1))  # (T, C, K)
    weights = np.full((40, 3), 10.0)
    ridge = fit_ridge(np.nan_to_num(coordinates), weights, features)
    empty = np.zeros((3, 5, len(GRID)))
    model = LinearEffect(
        np.ones((1, 5)), coordinates, ridge, np.zeros((40, 3)), empty, np.zeros((3, 5))
    )
    np.testing.assert_allclose(
        model.predict(np.array([[0.5, 9.0]])), np.full((1, 3, 1), 2.0), atol=1e-2
    )
    assert (fit_ridge(coordinates[:3], weights[:3], features[:3]) == 0).all()  # too few
    assert fit_ridge(coordinates, weights, None).shape == (1, 3)


def test_effective_cells_are_those_of_a_difference_of_two_means():
    cells = effective_cells(np.array([[100, 10, 0], [100, 0, 5], [300, 10, 5]]))
    np.testing.assert_allclose(cells, [[0, 0, 0], [50, 0, 0], [75, 5, 0]])


def curves_of(mu: np.ndarray, theta: float = 5.0) -> np.ndarray:
    """Response curves (1, G, Q) of NB genes at a library size of 10,000."""
    grid = torch.from_numpy(mu)[None] * torch.from_numpy(np.exp(GRID))[:, None]
    value = expected_log1p(grid, torch.tensor(theta), torch.ones(len(GRID), 1))
    return value.numpy().T[None]


@pytest.mark.parametrize("fold", [-2.3, -0.5, 0.0, 0.4, 1.7])
def test_offset_is_the_log_fold_change_behind_a_change_of_the_mean(fold):
    mu = np.array([0.02, 1.0, 40.0])
    changed = curves_of(mu * np.exp(fold))[..., len(GRID) // 2]
    np.testing.assert_allclose(invert_curves(curves_of(mu), changed), fold, atol=0.05)


def test_inversion_is_exact_on_the_grid_and_ends_with_it():
    curves = curves_of(np.array([1.0, 3.0]))
    np.testing.assert_allclose(invert_curves(curves, curves[..., 5]), GRID[5], atol=1e-6)
    np.testing.assert_allclose(invert_curves(curves, curves[..., -1] + 9), GRID[-1], atol=1e-6)
    np.testing.assert_allclose(invert_curves(curves, curves[..., 0] - 9), GRID[0], atol=1e-6)


def test_gene_that_controls_do_not_express_gets_no_offset():
    curves = curves_of(np.array([1.0, 0.0]))
    wanted = curves[..., len(GRID) // 2] + np.array([0.3, 1e-7])
    assert invert_curves(curves, wanted)[0, 1] == 0
    assert invert_curves(curves, wanted)[0, 0] > 0.1


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> training.EffectModel:
    store = CellStore.open(tiny_store(tmp_path_factory.mktemp("effect") / "store", cells=4000))
    return training.fit_effects(store, features="coexpression", feature_dims=4, rank=4)


@pytest.mark.parametrize("code", EFFECTS)
def test_offsets_reproduce_planted_log_fold_changes(fitted, code):
    offsets = fitted.table()[code]  # (C, G)
    planted = np.zeros(12)
    planted[list(EFFECTS[code])] = list(EFFECTS[code].values())
    np.testing.assert_allclose(offsets, np.tile(planted, (2, 1)), atol=0.15)


def test_control_and_targets_without_features_get_no_offset(fitted):
    assert (fitted.offsets("non-targeting") == 0).all()
    assert (fitted.offsets("ENSG77") == 0).all()  # neither trained nor on the panel
    assert fitted.features_of("ENSG77") is None


def test_unseen_target_on_the_panel_loses_its_own_transcript(fitted):
    own = fitted.offsets(GENE_IDS[5])[:, 5]
    np.testing.assert_allclose(own, -2.0, atol=0.4)  # what measured targets lose


def test_effects_survive_the_disk(fitted, tmp_path):
    training.save_effects(tmp_path / "effect.safetensors", fitted, {"note": 1})
    back = training.load_effects(tmp_path / "effect.safetensors")
    np.testing.assert_allclose(back.table(), fitted.table(), atol=1e-4)
    assert back.fingerprint() == fitted.fingerprint()
    assert (back.trained, back.vocabulary) == (fitted.trained, fitted.vocabulary)


def test_no_components_means_no_offsets(tmp_path):
    store = CellStore.open(tiny_store(tmp_path / "store"))
    model = training.fit_effects(store, features="none", feature_dims=4, rank=0)
    assert model.linear is None
    assert model.features is None
    assert (model.table() == 0).all()
