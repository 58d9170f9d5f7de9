"""Denoising: noise goes, what is planted stays, and the control's noise is not an effect."""

import numpy as np
import pytest

from knockscreen.models.denoise import (
    Measured,
    common_means,
    denoise,
    groupings,
    particular,
    shrink_axes,
    shrink_singular_values,
)


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


def apart(rest, cells, **changes):
    """What each target's own means say, with next to nothing kept of what components leave."""
    return particular(rest, cells, LEVELS, **{"rank": 5, "keep_cells": 1e12, **changes})


def test_targets_without_effect_are_denoised_to_nothing():
    cells = np.full((60, 2), 25)
    shifts = 0.9 * noise(60, 2, 40) / np.sqrt(25.0)
    assert np.abs(apart(shifts, cells)).max() < 1e-9


def test_effect_shared_by_contexts_is_recovered_better_than_it_was_measured():
    cells = np.full((60, 2), 25)
    planted = np.repeat((0.3 * noise(60, 1, seed=1) @ noise(1, 40, seed=2))[:, None], 2, axis=1)
    measured = planted + noise(60, 2, 40) / 5
    estimate = apart(measured, cells)
    assert ((estimate - planted) ** 2).mean() < 0.2 * ((measured - planted) ** 2).mean()


def test_effect_of_one_context_stays_in_it():
    cells = np.full((60, 2), 100)
    planted = np.zeros((60, 2, 40))
    planted[:, 1] = noise(60, 1, seed=1) @ noise(1, 40, seed=2)
    estimate = apart(planted + noise(60, 2, 40) / 10, cells)
    assert np.abs(estimate[:, 0]).mean() < 0.1 * np.abs(estimate[:, 1]).mean()


def test_missing_cells_are_filled_from_the_other_contexts():
    cells = np.full((60, 2), 100)
    cells[0, 1] = 0
    planted = np.repeat((noise(60, 1, seed=1) @ noise(1, 40, seed=2))[:, None], 2, axis=1)
    shifts = planted.copy()
    shifts[0, 1] = 0
    np.testing.assert_allclose(apart(shifts, cells)[0, 1], planted[0, 1], atol=0.1)


def test_half_of_what_components_leave_is_kept_at_keep_cells():
    cells = np.full((30, 1), 100)
    shifts = 0.05 * noise(30, 1, 20)  # far below the noise of 100 cells: no component
    kept = particular(shifts, cells, LEVELS[:1], rank=5, keep_cells=100.0)
    np.testing.assert_allclose(kept, shifts / 2, atol=1e-12)


def test_mean_that_is_all_noise_goes_and_a_strong_one_stays():
    variance = np.ones(400)
    assert np.mean(shrink_axes(noise(400), variance) ** 2) < 0.3
    strong = 50 + noise(400)
    np.testing.assert_allclose(shrink_axes(strong, variance), strong, rtol=0.01)
    assert (shrink_axes(np.zeros(5), np.zeros(5)) == 0).all()


def planted_screen(controls: int, mean: float = 0.0, seed: int = 0) -> Measured:
    """60 targets of 400 cells, isotropic cells, nothing but a common mean; own gene off."""
    rng = np.random.default_rng(seed)
    control = rng.standard_normal((1, 1, 50)) / np.sqrt(controls)
    shifts = mean + rng.standard_normal((61, 1, 50)) / 20 - control
    cells = np.full((61, 1), 400)
    cells[0], shifts[0] = controls, 0
    return Measured(shifts, cells, np.full(61, -1), np.eye(50), np.zeros((1, 1), dtype=int))


def test_noise_of_few_controls_is_not_taken_for_an_effect_of_every_knock_down():
    measured = planted_screen(controls=25)
    found, _ = denoise(measured, rank=5, keep_cells=300)
    raw = measured.shifts[1:].mean(axis=(0, 1))
    assert np.mean(raw**2) > 0.02  # 1 / 25 in every gene, whatever the number of targets
    assert np.mean(found**2) < 0.3 * np.mean(raw**2)


def test_effect_that_all_knock_downs_share_is_kept():
    found, rest = denoise(planted_screen(controls=4000, mean=0.5), rank=5, keep_cells=300)
    np.testing.assert_allclose(found, 0.5, atol=0.1)
    assert np.abs(rest[1:].mean(axis=0)).max() < 0.05


def test_axes_of_the_cells_do_not_matter_to_a_noiseless_effect():
    planted = 2 * noise(61, 1, seed=3) @ noise(1, 50, seed=4)
    measured = planted_screen(controls=10**6)
    mixing = noise(50, 50, seed=5)
    sure = Measured(
        planted[:, None], np.full((61, 1), 10**6), measured.own_gene, mixing @ mixing.T,
        measured.levels,
    )  # fmt: skip
    mean, rest = denoise(sure, rank=5, keep_cells=300)
    np.testing.assert_allclose((mean + rest)[1:, 0], planted[1:], atol=0.05)


def test_context_without_targets_gets_the_mean_of_the_others():
    cells = np.array([[1000, 1000], *[[100, 0]] * 20])
    shifts = np.full((21, 2, 6), 3.0)
    shifts[:, 1] = 0
    _, shrunk = common_means(shifts, cells, np.full(6, 0.01), LEVELS)
    np.testing.assert_allclose(shrunk[1], 3.0, rtol=0.01)


def test_own_transcript_is_left_out():
    shifts = np.zeros((31, 1, 10))
    own = np.array([-1, *(np.arange(30) % 10)])
    shifts[np.arange(1, 31), 0, own[1:]] = -3.0
    cells = np.full((31, 1), 1000)
    levels = np.zeros((1, 1), dtype=int)
    mean, rest = denoise(Measured(shifts, cells, own, np.eye(10), levels), rank=3, keep_cells=1)
    assert (mean == 0).all()
    assert (rest == 0).all()


def test_context_without_controls_says_nothing():
    measured = planted_screen(controls=100)
    measured.cells[0] = 0
    mean, rest = denoise(measured, rank=5, keep_cells=300)
    assert (mean == 0).all()
    assert (rest == 0).all()
