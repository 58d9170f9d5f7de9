"""The evaluation in the database and in its figures, and the pieces behind its summary."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from matplotlib.text import Text

from fixtures.tiny_run import SETTINGS, make_tiny_run
from knockscreen.errors import UnknownNameError
from knockscreen.figures import evaluation as figures
from knockscreen.score import compare
from knockscreen.score.baselines import (
    Training,
    additive,
    k_nearest,
    low_rank,
    other_context,
    ridge,
)
from knockscreen.score.populations import energy_distance, mmd, r_squared
from knockscreen.store.build import build
from knockscreen.store.screen import Screen


def database(folder: Path, *, measured: bool = True) -> Path:
    make_tiny_run(folder, measured=measured)
    return build(folder, folder / "programs.tsv", folder / "screen.duckdb", SETTINGS)


def test_metrics_are_of_all_contexts_unless_one_is_named(tmp_path: Path) -> None:
    with Screen(database(tmp_path)) as screen:
        frame = screen.metrics()
        assert frame["context"].unique().to_list() == ["all"]
        assert frame["baseline"].to_list() == ["ceiling", "perturbation_mean"]
        assert frame["verdict"].to_list() == ["loses", "wins"]
        assert set(screen.metrics("time=Rest")["context"]) == {"time=Rest"}
        with pytest.raises(UnknownNameError, match="metric 'pearson' was not evaluated; nearest"):
            screen.metrics(metric="pearson")
        with pytest.raises(UnknownNameError, match="split 'held_out_target' was not evaluated"):
            screen.metrics(split="held_out_target")


def test_a_run_that_was_not_evaluated_says_so(tmp_path: Path) -> None:
    with (
        Screen(database(tmp_path, measured=False)) as screen,
        pytest.raises(UnknownNameError, match="holds no evaluation; run 'knockscreen evaluate'"),
    ):
        screen.metrics()


def test_figures_name_the_baseline_that_is_hardest_to_beat(tmp_path: Path) -> None:
    metrics = pl.read_parquet(make_tiny_run(tmp_path) / "evaluate/metrics.parquet")
    drawn = figures.targets(metrics).findobj(Text)
    text = "\n".join(str(t.get_text()) for t in drawn if isinstance(t, Text))
    assert "perturbation mean (model better: 2 of 2)" in text
    assert figures.widest(metrics) == "all"


def test_verdict_follows_the_interval_and_the_best_value() -> None:
    assert compare.verdict(0.1, 0.3, best=1.0) == "wins"
    assert compare.verdict(0.1, 0.3, best=0.0) == "loses"
    assert compare.verdict(-0.3, -0.1, best=0.0) == "wins"
    assert compare.verdict(-0.1, 0.1, best=1.0) == "ties"
    assert compare.verdict(float("nan"), 0.1, best=1.0) is None


def test_mean_spearman_is_one_for_equal_order_and_passes_over_constant_programs() -> None:
    made = np.array([[1.0, 5.0], [2.0, 5.0], [9.0, 5.0], [10.0, 5.0]])
    real = np.array([[3.0, 1.0], [4.0, 2.0], [5.0, 3.0], [6.0, 4.0]])
    assert compare.mean_spearman(made, real) == 1.0
    assert compare.mean_spearman(np.stack([made, -made]), np.stack([real, real])).tolist() == [
        1,
        -1,
    ]
    assert np.isnan(compare.mean_spearman(made[:, 1:], real[:, 1:]))
    assert np.isnan(compare.mean_spearman(made[:2], real[:2]))


def training(delta: np.ndarray, features: np.ndarray | None = None) -> Training:
    cells = np.where(np.isfinite(delta[:, :, 0]), 10, 0)
    return Training(delta, cells, features)


def test_additive_recovers_an_additive_effect_that_was_not_measured() -> None:
    rng = np.random.default_rng(0)
    of_target, of_context = rng.normal(size=(6, 1, 4)), rng.normal(size=(1, 3, 4))
    truth = of_target + of_context
    seen = truth.copy()
    seen[0], seen[2, 1], seen[4, 0] = np.nan, np.nan, np.nan
    made = additive(training(seen))
    # Context means are over other targets where one is missing: exact only where none is.
    assert np.isnan(made[0]).all()
    seen = truth.copy()
    seen[0] = np.nan
    assert additive(training(seen))[1:] == pytest.approx(truth[1:])


def test_other_context_never_uses_the_context_it_predicts() -> None:
    delta = np.arange(12.0).reshape(2, 3, 2)
    delta[0] = np.nan
    made = other_context(training(delta))
    assert made[1, 0].tolist() == delta[1, 1:].mean(axis=0).tolist()
    alone = np.full((2, 2, 2), np.nan)
    alone[1, 0] = 1.0
    made = other_context(training(alone))
    assert np.isnan(made[1, 0]).all()
    assert made[1, 1].tolist() == [1.0, 1.0]


def test_low_rank_keeps_effects_of_that_rank_and_smooths_the_others() -> None:
    rng = np.random.default_rng(1)
    delta = rng.normal(size=(9, 1, 2)) @ rng.normal(size=(2, 12))
    delta[0] = np.nan
    assert low_rank(training(delta), 2)[1:] == pytest.approx(delta[1:], abs=1e-5)
    assert np.abs(low_rank(training(delta), 1)[1:] - delta[1:]).max() > 0.1


def test_feature_baselines_never_use_the_own_effect() -> None:
    rng = np.random.default_rng(2)
    features = rng.normal(size=(12, 3))
    delta = (features @ rng.normal(size=(3, 5)))[:, None]
    delta[0] = np.nan
    held_out = delta[11].copy()
    delta[11] = np.nan
    # Ridge shares one penalty, from a grid: a small change of one target leaves it where it is.
    for baseline, change in ((ridge, 0.01), (lambda t: k_nearest(t, 2), 100.0)):
        before = baseline(training(delta, features))
        changed = delta.copy()
        changed[4] += change
        after = baseline(training(changed, features))
        assert after[4] == pytest.approx(before[4], abs=1e-5), "its own effect does not matter"
        assert np.isfinite(before[11]).all()
    assert ridge(training(delta, features))[11] == pytest.approx(held_out, abs=0.05)
    assert np.isnan(ridge(training(delta, None))).all()


def test_distances_between_samples_of_one_distribution_are_near_zero() -> None:
    rng = np.random.default_rng(3)
    a, b, far = rng.normal(size=(300, 4)), rng.normal(size=(200, 4)), rng.normal(1, 1, (200, 4))
    assert abs(energy_distance(a, b)) < 0.05 < energy_distance(a, far)
    assert abs(mmd(a, b)) < 0.01 < mmd(a, far)
    assert np.isnan(mmd(np.zeros((3, 2)), np.zeros((3, 2))))


def test_energy_distance_of_two_points_masses_is_twice_their_distance() -> None:
    a, b = np.zeros((3, 2)), np.tile([3.0, 4.0], (4, 1))
    assert energy_distance(a, b) == pytest.approx(10.0)


def test_r2_is_about_the_identity_not_a_fitted_line() -> None:
    real = np.array([1.0, 2.0, 3.0])
    assert r_squared(real, real) == 1.0
    assert r_squared(2 * real, real) < 0
    assert np.isnan(r_squared(real, np.ones(3)))
