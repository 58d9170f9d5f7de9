"""The sweep: errors of solvers, resampled metrics of cells, choices that need a clear reason."""

import numpy as np
import polars as pl
import pytest
from scipy.spatial.distance import cdist, pdist

from fixtures.models import CONTEXTS, load_sampler
from knockscreen.figures.sweep import sweep as draw
from knockscreen.sampling import Guidance
from knockscreen.score.populations import Space, energy_distance, r_squared
from knockscreen.sweep import guidance, solvers
from knockscreen.sweep.guidance import ERROR, compare, interval, resamples, weights
from knockscreen.sweep.solvers import Made
from knockscreen.sweep.table import Setting, frame
from knockscreen.sweep.validation import Cells


def test_errors_of_a_solver_are_those_of_the_closed_form():
    exact = np.zeros((2, 1, 2, 1), dtype=np.float32)  # control and a knock-down, 2 draws, 1 gene
    exact[1, 0, :, 0] = (1.0, 3.0)  # effects 1 and 3: mean 2, variance 2
    near = exact.copy()
    near[1] += 0.5
    found = solvers.compare(Made(near, 1, 0.0), Made(exact, 1, 0.0), draws=8)
    assert found["effect_rmse"] == pytest.approx(0.5)
    assert found["effect_error"] == pytest.approx(0.5 / np.sqrt(2 / 8))
    assert found["cell_rmse"] == pytest.approx(np.sqrt(0.25 / 2))  # half of the cells are off
    assert found["cell_error"] == pytest.approx(np.sqrt(0.125) / 1.0)  # variances 0 and 2
    assert np.isnan(found["effect_r"])  # one gene, one knock-down: nothing to correlate


def test_a_solver_like_the_exact_one_has_no_error_and_every_one_its_price(trained):
    sampler = load_sampler(trained, draws=4)
    tried = solvers.settings(["euler", "rk4", "ab2"], [4, 16, 6])
    assert [(s.solver, s.steps) for s in tried] == [
        ("euler", 4), ("euler", 6), ("euler", 16), ("rk4", 1), ("rk4", 4),
        ("ab2", 4), ("ab2", 6), ("ab2", 16),
    ]  # fmt: skip
    table = solvers.sweep(sampler, tried, ["ENSG00", "ENSG01"], CONTEXTS, draws=2)
    wide = table.pivot("metric", index=["solver", "steps"], values="value")
    exact = wide.filter(pl.col("solver") == "dopri5").row(0, named=True)
    assert exact["effect_rmse"] == exact["cell_rmse"] == 0
    assert exact["evaluations"] > 16
    by = {(r["solver"], r["steps"]): r for r in wide.iter_rows(named=True)}
    for solver, cost in (("euler", 1), ("rk4", 4), ("ab2", 1)):
        assert by[solver, 16 // cost]["evaluations"] == 16
    assert 0 < by["euler", 16]["cell_rmse"] < by["euler", 4]["cell_rmse"]


def errors(*rows):
    """A table of solver, steps, evaluations, effect error, cell error; beside the exact solver."""
    names = ("evaluations", "effect_error", "cell_error")
    return frame([
        Setting(solver, steps).row("solver", name, value, n=1)
        for solver, steps, *values in (*rows, ("dopri5", 10, 80, 0.0, 0.0))
        for name, value in zip(names, values, strict=True)
    ])  # fmt: skip


def test_the_cheapest_solver_within_the_tolerance_is_chosen():
    table = errors(
        ("euler", 8, 8, 0.3, 0.01), ("ab2", 8, 8, 0.09, 0.02), ("rk4", 2, 8, 0.02, 0.02),
        ("ab2", 12, 12, 0.01, 0.01), ("ab2", 4, 4, 0.02, 0.2),
    )  # fmt: skip
    best, why = solvers.choose(table, 0.1)
    assert (best.solver, best.steps) == ("rk4", 2)
    assert "the fewest evaluations with both errors within 0.1" in why
    assert "8 evaluations instead of 80" in why


def test_without_a_solver_within_the_tolerance_the_nearest_is_chosen_and_it_says_so():
    best, why = solvers.choose(errors(("euler", 8, 8, 0.3, 0.2), ("ab2", 8, 8, 0.2, 0.25)), 0.1)
    assert (best.solver, best.steps) == ("ab2", 8)
    assert why.startswith("nothing tried has both errors within 0.1")


def test_every_pair_of_weights_is_tried_once_and_no_guidance_first():
    found = weights(["nested", "joint", "additive"], [1.0, 1.5], [1.0, 2.0])
    assert found == [
        Guidance(), Guidance("nested", 1.0, 2.0), Guidance("nested", 1.5, 1.0),
        Guidance("nested", 1.5, 2.0), Guidance("joint", 2.0, 2.0), Guidance("additive", 1.0, 1.0),
        Guidance("additive", 1.0, 2.0), Guidance("additive", 1.5, 1.0),
        Guidance("additive", 1.5, 2.0),
    ]  # fmt: skip


@pytest.fixture
def cells():
    """30 made and real cells of 3 targets, 6 genes, and the space of distances."""
    rng = np.random.default_rng(0)
    made, real = rng.normal(size=(30, 6)), rng.normal(size=(30, 6)) + 0.5 * np.arange(6)
    unit = np.arange(30) % 3
    return made.astype(np.float32), real.astype(np.float32), unit, Space.fit(real)


def test_metrics_of_all_targets_once_are_those_of_the_evaluation(cells):
    made, real, unit, space = cells
    found = Cells(made, real, unit, space).metrics(np.ones((1, 3)))
    expected = {
        "mean_r2": r_squared(made.mean(0), real.mean(0)),
        "variance_r2": r_squared(made.var(0, ddof=1), real.var(0, ddof=1)),
        "energy_distance": energy_distance(space(made), space(real)),
    }
    assert {k: v[0] for k, v in found.items()} == pytest.approx(expected, rel=1e-5)


def test_a_resample_is_the_cells_of_its_targets_over_again(cells):
    made, real, unit, space = cells
    found = Cells(made, real, unit, space).metrics(np.array([[2.0, 1.0, 0.0]]))
    rows = np.concatenate([np.flatnonzero(unit == u) for u in (0, 0, 1)])
    a, b = made[rows], real[rows]
    assert found["mean_r2"][0] == pytest.approx(r_squared(a.mean(0), b.mean(0)), rel=1e-5)
    assert found["variance_r2"][0] == pytest.approx(
        r_squared(a.var(0, ddof=1), b.var(0, ddof=1)), rel=1e-5
    )
    copies = (rows[:, None] != rows).sum()  # ordered pairs of other cells, not of copies
    inside = sum(2 * pdist(space(x)).sum() / copies for x in (a, b))
    expected = 2 * cdist(space(a), space(b)).mean() - inside
    assert found["energy_distance"][0] == pytest.approx(expected, rel=1e-5)


NONE = Guidance()
STRONG = Guidance("nested", 1.0, 2.0)


def judged(cells, effects, *, better: float = 0.0, by=NONE):
    made, real, unit, space = cells
    values = {
        "pearson_delta": effects + better, "centroid_accuracy": effects, "mae_delta": effects,
    }  # fmt: skip
    return guidance.Judged(Setting("ab2", 4, by), values, Cells(made, real, unit, space))


def test_the_same_cells_under_two_names_tie_and_no_guidance_is_kept(cells):
    effects = np.random.default_rng(1).normal(size=20)
    same = [judged(cells, effects), judged(cells, effects, by=STRONG)]
    table = compare(same, 200, np.random.default_rng(0))
    rows = table.filter(pl.col("difference").is_not_null())
    assert rows["difference"].to_list() == [0.0] * 6
    assert set(rows.filter(pl.col("verdict").is_not_null())["verdict"]) == {"ties"}
    best, why = guidance.choose(table)
    assert best == Guidance()
    assert why.startswith("none of 1 other settings is clearly better")


def test_a_weight_that_is_better_for_every_target_is_chosen_with_its_gain(cells):
    effects = np.random.default_rng(1).normal(size=20)
    two = [judged(cells, effects), judged(cells, effects, better=0.1, by=STRONG)]
    best, why = guidance.choose(compare(two, 200, np.random.default_rng(0)))
    assert best == STRONG
    assert "pearson_delta +0.100 (+0.100 to +0.100)" in why


def test_a_weight_that_is_better_on_one_metric_and_worse_on_another_is_not_chosen(cells):
    effects = np.random.default_rng(1).normal(size=20)
    worse = judged(cells, effects, better=0.1, by=STRONG)
    worse.effects["mae_delta"] = effects + 0.2
    table = compare([judged(cells, effects), worse], 200, np.random.default_rng(0))
    best, why = guidance.choose(table)
    assert best == Guidance()
    assert "1 win one of the two, and lose another" in why


def test_a_difference_that_chance_can_make_is_not_a_reason(cells):
    """Nineteen settings of pure noise: one in twenty would win by an interval of its own."""
    rng = np.random.default_rng(2)
    base = rng.normal(size=30)
    settings = [Guidance("nested", 1.0, 1 + k / 10) for k in range(20)]
    noisy = [judged(cells, base + 0.3 * rng.normal(size=30) * (k > 0), by=g)
             for k, g in enumerate(settings)]  # fmt: skip
    assert guidance.choose(compare(noisy, 2000, rng))[0] == Guidance()


def test_too_few_targets_have_no_interval(cells):
    effects = np.random.default_rng(1).normal(size=5)
    two = [judged(cells, effects), judged(cells, effects, better=0.1, by=STRONG)]
    table = compare(two, 50, np.random.default_rng(0))
    assert table["low"].null_count() == len(table)
    assert guidance.choose(table)[0] == Guidance()


def test_intervals_widen_with_the_number_of_settings():
    values = np.random.default_rng(0).normal(size=4000)
    one, many = interval(values, ERROR), interval(values, ERROR / 20)
    assert one == pytest.approx((-1.96, 1.96), abs=0.1)
    assert many == pytest.approx((-3.02, 3.02), abs=0.35)


def test_resamples_hold_as_many_targets_as_there_are():
    drawn = resamples(7, 30, np.random.default_rng(0))
    assert (drawn[0] == 1).all()
    assert (drawn.sum(axis=1) == 7).all()
    assert len(np.unique(drawn, axis=0)) > 20


def swept() -> pl.DataFrame:
    """Both parts of a sweep, by hand: two solvers, no guidance and one weight."""
    rows = [
        Setting(solver, steps).row("solver", metric, value, n=1)
        for solver, steps, values in (
            ("euler", 4, (4, 0.3, 0.2)), ("ab2", 4, (4, 0.05, 0.02)), ("dopri5", 10, (80, 0, 0)),
        )
        for metric, value in zip(("evaluations", "effect_error", "cell_error"), values, strict=True)
    ]  # fmt: skip
    for metric in ("pearson_delta", "centroid_accuracy", "mae_delta", "mean_r2", "variance_r2"):
        rows.append(Setting("ab2", 4).row("guidance", metric, 0.5, n=20))
        change = {"difference": 0.1, "low": 0.05, "high": 0.15, "verdict": "wins", "n": 20}
        rows.append(Setting("ab2", 4, STRONG).row("guidance", metric, 0.6, **change))
    return frame(rows)


CHOSEN = {
    "screen": {"solver": "ab2", "steps": 4, "guidance": vars(STRONG)},
    "judged_by": {"split": "validation", "knockdowns": 20, "cells": 1234},
}


def test_the_figure_says_what_was_chosen_and_by_whom_and_leaves_no_panel_unexplained():
    figure = draw(swept(), CHOSEN, tolerance=0.1)
    said = " ".join(text.get_text() for text in figure.texts)
    assert "ab2 with 4 steps; nested guidance, context 1 and knock-down 2" in said
    assert "1,234 cells of 20 knock-downs" in said
    panels = {ax.get_title(loc="left").strip(): ax for ax in figure.axes}
    curves = {line.get_label(): line.get_ydata() for line in panels["Error of effects"].get_lines()}
    assert curves["euler"].tolist() == [0.3]
    assert curves["ab2"].tolist() == [0.05]
    assert "dopri5" not in curves, "its error is none by definition"
    missing = panels["energy distance"].texts
    assert any("No value without guidance" in text.get_text() for text in missing)
    bars = [list(line.get_ydata()) for line in panels["pearson delta"].get_lines()]
    assert pytest.approx([0.55, 0.65]) in bars, "of the difference, about the unguided value"


def test_the_figure_of_a_sweep_without_weights_says_no_guidance():
    none = CHOSEN | {"screen": CHOSEN["screen"] | {"guidance": vars(NONE)}}
    alone = swept().filter(pl.col("difference").is_null())
    said = " ".join(text.get_text() for text in draw(alone, none, tolerance=0.1).texts)
    assert "no guidance" in said
