"""Figures say what the tables say: order, marks, numbers, and the same bytes every time."""

import math

import numpy as np
import polars as pl
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from knockscreen.figures import cells as cell_figure
from knockscreen.figures import style
from knockscreen.figures.effects import volcano
from knockscreen.figures.programs import heatmap, measured, strongest
from knockscreen.figures.quality import qc
from knockscreen.figures.ranking import ranking
from knockscreen.figures.statistics import pearson, r_squared, spearman, variance_between
from knockscreen.figures.training import best_step, loss

SCORES = {"RORC": 0.3, "STAT3": 0.2, "NULL1": 0.01, "STAT5B": -0.25, "FOXP3": -0.4}


def texts(figure: Figure) -> str:
    """All text of a figure, one piece per line."""
    return "\n".join(str(t.get_text()) for t in figure.findobj(Text) if isinstance(t, Text))


def listed(figure: Figure, panel: int) -> list[str]:
    """Labels of a panel's rows, from top to bottom."""
    ax = figure.axes[panel]
    down = ax.get_ylim()[0] > ax.get_ylim()[1]
    labels = [t.get_text() for t in ax.get_yticklabels()]
    return labels if down else labels[::-1]


def rankings(scores: dict[str, float] = SCORES, **columns: object) -> pl.DataFrame:
    frames = []
    for direction, sign in (("toward", -1), ("away", 1)):
        order = sorted(scores, key=lambda gene, s=sign: s * scores[gene])
        rows = [
            {"program": "Treg", "context": "time=Rest", "target_gene": gene,
             "target_gene_id": f"ENSG_{gene}", "direction": direction, "rank": k,
             "rank_low": max(1, k - 1), "rank_high": k + 1, "score": scores[gene],
             "score_sd": 0.02, "evidence": "predicted_seen", "control_status": "passed"}
            for k, gene in enumerate(order, start=1)
        ]  # fmt: skip
        frames.append(pl.DataFrame(rows))
    shuffled = pl.concat(frames).sort("target_gene_id", "direction")
    return shuffled.with_columns(**{k: pl.lit(v) for k, v in columns.items()})


def test_ranking_lists_knockdowns_in_rank_order_whatever_the_order_of_rows() -> None:
    figure = ranking(rankings(), top=2, interval=0.9)
    assert listed(figure, 0) == ["RORC  1", "STAT3  2"]
    assert listed(figure, 1) == ["FOXP3  1", "STAT5B  2"]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (
            "exploratory",
            "Exploratory: the positive controls of the program fail (knock-downs seen).",
        ),
        ("not_tested", "No positive controls tested (knock-downs seen)."),
    ],
)
def test_a_ranking_that_its_controls_do_not_support_says_so(status: str, words: str) -> None:
    made = texts(ranking(rankings(control_status=status), top=2, interval=0.9))
    assert words in made.replace("\n", " ")
    assert "controls" not in texts(ranking(rankings(), top=2, interval=0.9))


def test_ranking_lists_nothing_on_the_side_it_does_not_move_to() -> None:
    figure = ranking(rankings({"A": 0.2, "B": 0.1}), top=5, interval=0.9)
    assert listed(figure, 0) == ["A  1", "B  2"]
    assert "goes this way: away from the program." in texts(figure).replace("\n", " ")


def test_planted_regulators_are_marked_only_where_known() -> None:
    real = texts(ranking(rankings(), top=2, interval=0.9))
    assert "planted" not in real
    made = texts(ranking(rankings(), top=2, interval=0.9, planted={"FOXP3": -1, "RORC": 1}))
    assert "2 of 2 planted regulators" in made
    assert "the other way" not in made


def test_a_planted_regulator_on_the_wrong_side_does_not_count() -> None:
    made = texts(ranking(rankings(), top=2, interval=0.9, planted={"FOXP3": 1, "RORC": 1}))
    assert "1 of 2 planted regulators" in made
    assert "planted, truly the other way" in made


def test_a_planted_regulator_that_was_not_screened_is_not_counted() -> None:
    made = texts(ranking(rankings(), top=2, interval=0.9, planted={"FOXP3": -1, "ABSENT": 1}))
    assert "1 of 1 planted regulators" in made


def test_missing_rank_interval_is_left_blank() -> None:
    rows = rankings().with_columns(
        pl.lit(None, pl.Int32).alias("rank_low"), pl.lit(None, pl.Float64).alias("score_sd")
    )
    assert "1\N{EN DASH}2" in texts(ranking(rankings(), top=1, interval=0.9))
    assert "1\N{EN DASH}2" not in texts(ranking(rows, top=1, interval=0.9))


@pytest.mark.parametrize(("evidence", "shown"), [("predicted_unseen", 1), ("predicted_seen", 0)])
def test_unseen_is_explained_only_where_it_occurs(evidence: str, shown: int) -> None:
    figure = ranking(rankings(evidence=evidence), top=2, interval=0.9)
    assert texts(figure).split("\n").count("not seen") == shown


def test_only_simulated_screens_say_so() -> None:
    assert "simulated screen" in texts(ranking(rankings(), top=2, interval=0.9, simulated=True))
    assert "simulated screen" not in texts(ranking(rankings(), top=2, interval=0.9))


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_the_same_table_gives_the_same_bytes(kind: str) -> None:
    first, second = (style.render(ranking(rankings(), top=3, interval=0.9), kind) for _ in "ab")
    assert first == second
    assert b"<dc:date>" not in first
    other = style.render(ranking(rankings({"A": 0.1}), top=3, interval=0.9), kind)
    assert other != first


def program_scores() -> pl.DataFrame:
    values = {"Treg": {"A": 1.0, "B": -0.5, "C": 0.1}, "Th1": {"A": 0.02, "B": 0.01, "C": -0.03}}
    return pl.DataFrame(
        [
            {"program": program, "context": "all", "target_gene": gene, "target_gene_id": gene,
             "evidence": "predicted_seen", "score": score, "score_sd": 0.02}
            for program, genes in values.items()
            for gene, score in genes.items()
        ]
    )  # fmt: skip


def test_every_program_is_represented_among_the_strongest() -> None:
    assert set(strongest(program_scores(), 2)) == {"A", "C"}


def test_heatmap_colours_each_score_at_its_place() -> None:
    figure = heatmap(program_scores(), top=3, interval_z=1.64)
    mesh = figure.axes[0].collections[0]
    values = np.asarray(mesh.get_array())
    rows, columns = listed(figure, 0), [t.get_text() for t in figure.axes[0].get_xticklabels()]
    assert values[rows.index("B"), columns.index("Treg")] == -0.5
    assert values[rows.index("C"), columns.index("Th1")] == -0.03
    low, high = mesh.get_clim()
    assert low == -high


def test_heatmap_leaves_a_missing_score_blank() -> None:
    table = program_scores().filter((pl.col("target_gene") != "B") | (pl.col("program") == "Th1"))
    figure = heatmap(table, top=3, interval_z=1.64)
    assert np.ma.count_masked(figure.axes[0].collections[0].get_array()) == 1


def pairs(predicted: list[float], real: list[float]) -> pl.DataFrame:
    n = len(real)
    return pl.DataFrame(
        {"program": ["IFN"] * n, "context": ["all"] * n, "evidence": ["predicted_seen"] * n,
         "target_gene": [f"G{i}" for i in range(n)], "predicted": predicted, "measured": real,
         "measured_error": [0.1] * (n - 1) + [None], "n_cells": [10] * n}
    )  # fmt: skip


def test_measured_prints_the_rank_correlation_and_its_ceiling() -> None:
    ceiling = {"spearman_half": 0.5, "ceiling": 0.82, "splits": 9}
    text = texts(measured(pairs([0.1, 0.2, 0.9], [1.0, 2.0, 3.0]), ceiling=ceiling, top=9))
    assert "Spearman 1.00" in text
    assert "Split-half ceiling 0.82" in text


@pytest.mark.parametrize("ceiling", [None, {"spearman_half": None, "ceiling": None, "splits": 0}])
def test_a_ceiling_that_was_not_estimated_is_not_a_number(ceiling: dict[str, None] | None) -> None:
    text = texts(measured(pairs([0.1, 0.2, 0.9], [1.0, 2.0, 3.0]), ceiling=ceiling, top=9))
    assert "ceiling: not estimated" in text


def test_two_targets_have_no_rank_correlation() -> None:
    assert "Spearman not defined" in texts(measured(pairs([0.1, 0.2], [1.0, 2.0]), top=9))


def test_measured_shows_the_largest_measured_scores_first() -> None:
    figure = measured(pairs([0.0, 0.0, 0.0, 0.0], [0.1, -2.0, 1.0, 0.2]), top=2)
    assert listed(figure, 0) == ["G2", "G1"]


def effects(**columns: pl.Expr) -> pl.DataFrame:
    table = pl.DataFrame(
        {"gene": ["FOXP3", "IL2RA", "CTLA4", "IFNG", "ACTB"], "context": ["time=Rest"] * 5,
         "log2_fold_change": [-2.0, -1.0, -0.5, 0.8, 0.0], "delta": [-1.0, -0.6, -0.3, 0.5, 0.0],
         "delta_se": [0.01, 0.02, 0.02, 0.02, 0.02],
         "is_target": [True, False, False, False, False],
         "measured_delta": [-0.9, -0.5, -0.2, 0.4, 0.0], "measured_cells": [40] * 5}
    )  # fmt: skip
    return table.with_columns(**columns)


def test_volcano_names_the_genes_that_move_but_not_the_target_in_its_title() -> None:
    text = texts(volcano(effects(), target_gene="FOXP3"))
    assert "FOXP3 knock-down: up IFNG; down IL2RA, CTLA4" in text.replace("\n", " ")


def test_volcano_does_not_call_simulation_noise_a_p_value() -> None:
    assert "(not a p-value)" in texts(volcano(effects(), target_gene="FOXP3"))


def test_volcano_shows_measured_effects_only_where_they_exist() -> None:
    assert len(volcano(effects(), target_gene="FOXP3").axes) == 2
    blank = effects(measured_delta=pl.lit(None, pl.Float64))
    figure = volcano(blank, target_gene="FOXP3")
    assert len(figure.axes) == 1
    assert "not measured in this context" in texts(figure)


def test_volcano_without_any_error_says_so_and_draws_no_point() -> None:
    figure = volcano(effects(delta_se=pl.lit(0.0)), target_gene="FOXP3")
    assert "No gene has a Monte-Carlo" in texts(figure)


def curves() -> pl.DataFrame:
    rows = [("train", s, 2.0 / s) for s in range(1, 11)]
    rows += [("validation", 4, 0.7), ("validation", 8, 0.4), ("validation", 10, 0.4)]
    table = pl.DataFrame(rows, schema=["split", "step", "loss"], orient="row")
    return pl.concat([table.with_columns(pl.lit(m).alias("model")) for m in ("vae", "flow")])


def test_best_step_is_the_earliest_lowest_validation_loss() -> None:
    assert best_step(curves().filter(pl.col("model") == "vae")) == (8, 0.4)


def test_a_run_without_validation_has_no_best_step() -> None:
    table = curves().filter(pl.col("split") == "train")
    assert best_step(table) is None
    assert "never validated" in texts(loss(table))


def test_loss_marks_the_best_step_of_each_model() -> None:
    text = texts(loss(curves()))
    assert "VAE 0.4000 at step 8" in text
    assert "flow 0.4000 at step 8" in text


def qc_tables() -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    summary = pl.DataFrame(
        {"step": [0, 1], "filter": ["multi_guide", "few_genes"], "setting": ["", "200"],
         "cells_before": [100, 90], "cells_after": [90, 60]}
    )  # fmt: skip
    histograms = pl.DataFrame(
        {"context": ["a", "a", "a", "a"], "measure": ["library_size", "library_size", "n_genes",
         "n_genes"], "bin": [3.0, 3.05, 2.5, 2.55], "width": [0.05] * 4, "n": [10, 50, 30, 30]}
    )  # fmt: skip
    guides = pl.DataFrame(
        {"log2_fold_change": [-2.0, 0.1, None], "fdr": [1e-9, 0.8, None],
         "status": ["kept", "inactive", "not_judged"]}
    )  # fmt: skip
    return summary, histograms, guides


def test_qc_prints_cells_before_and_after_each_filter() -> None:
    summary, histograms, guides = qc_tables()
    text = texts(qc(summary.reverse(), histograms, guides))
    assert "keeps 60 of 100 cells (60%)" in text
    assert "90  \N{MINUS SIGN}10" in text
    assert "60  \N{MINUS SIGN}30" in text
    assert "2 judged by the expression of their target, 1 dropped" in text.replace("\n", " ")


def test_qc_of_knockouts_says_that_no_guide_was_judged() -> None:
    summary, histograms, guides = qc_tables()
    text = texts(qc(summary, histograms, guides.head(0)))
    assert "No guide was judged" in text


def normal(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def test_identical_cells_have_r_squared_one_in_mean_and_variance() -> None:
    real = np.abs(normal((30, 6)))
    placed = cell_figure.principal_map(real, real, real)
    same = cell_figure.profiles(real, real)
    figure = cell_figure.cells(placed, ["Rest"] * 30, same, factor="time", n_cells=30)
    assert "mean R² 1.000, variance R² 1.000" in texts(figure)


def test_map_does_not_depend_on_the_cells_that_it_shows() -> None:
    fitted, real, made = normal((40, 5)), normal((8, 5), 1), normal((8, 5), 2)
    alone = cell_figure.principal_map(fitted, real, made)
    swapped = cell_figure.principal_map(fitted, made * 7, real)
    np.testing.assert_allclose(alone.real, swapped.generated)


def test_map_finds_the_axis_along_which_cells_vary() -> None:
    fitted = normal((200, 4)) * [0.1, 5.0, 0.2, 1.0]
    cell = np.array([[0.0, 3.0, 0.0, 0.0]])
    placed = cell_figure.principal_map(fitted - fitted.mean(axis=0), cell, -cell)
    assert placed.real[0, 0] == pytest.approx(3.0, rel=0.01)
    np.testing.assert_allclose(placed.generated, -placed.real)


def test_generating_the_mean_of_the_real_values_explains_nothing() -> None:
    real = np.array([1.0, 2.0, 6.0])
    assert r_squared(np.full(3, 3.0), real) == 0.0
    assert r_squared(real, real) == 1.0
    assert r_squared(2 * real, real) < 0, "a straight line is not enough: it must be equality"


@pytest.mark.parametrize("statistic", [r_squared, spearman, pearson])
def test_a_constant_has_no_correlation(statistic: object) -> None:
    assert callable(statistic)
    assert math.isnan(statistic(np.arange(4.0), np.ones(4)))


def test_correlations_pass_over_missing_values() -> None:
    a, b = np.array([1.0, 2.0, np.nan, 4.0]), np.array([1.0, 4.0, 0.0, 16.0])
    assert spearman(a, b) == pytest.approx(1.0)
    assert 0.9 < pearson(a, b) < 1.0


def test_variance_between_one_group_and_itself_is_zero() -> None:
    assert variance_between(normal((9, 2)), np.zeros(9)) == pytest.approx(0.0)


def test_labels_cover_neither_each_other_nor_the_points() -> None:
    figure = style.new_figure(4, 3, style.Page("title"))
    ax = figure.add_subplot()
    x = y = np.array([0.5, 0.5, 0.52])
    ax.scatter(x, y)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    style.place_labels(ax, x, y, {0: "AAAA", 1: "BBBB", 2: "CCCC"})
    boxes = [t.get_window_extent() for t in ax.texts]
    assert len(boxes) == 3
    assert all(a.count_overlaps([b for b in boxes if b is not a]) == 0 for a in boxes)


def test_house_style_ignores_and_keeps_the_callers_settings() -> None:
    import matplotlib as mpl

    plain = style.render(ranking(rankings(), top=2, interval=0.9), "svg")
    with mpl.rc_context({"font.size": 30, "svg.fonttype": "none"}):
        assert style.render(ranking(rankings(), top=2, interval=0.9), "svg") == plain
        assert mpl.rcParams["font.size"] == 30
