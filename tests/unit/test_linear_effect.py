"""The linear effect: offsets that say what was planted, and files that keep it."""

import numpy as np
import pytest
import torch

from fixtures.models import EFFECTS, GENE_IDS, tiny_store
from knockscreen.data.cells import CellStore
from knockscreen.models.effect import GRID, invert_curves
from knockscreen.nn.likelihood import expected_log1p
from knockscreen.training import effect as training


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
    return training.fit_effects(
        store, features="coexpression", feature_dims=4, rank=4, keep_cells=300
    )


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
    model = training.fit_effects(store, features="none", feature_dims=4, rank=0, keep_cells=300)
    assert model.linear is None
    assert model.features is None
    assert (model.table() == 0).all()
