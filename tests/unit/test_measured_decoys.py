"""Measured decoys: by hand, against the measuring of real targets, and as noisy as these."""

import json

import numpy as np
import polars as pl
import pytest

from fixtures.shards import GENE_IDS, GENES, write_store
from knockscreen.data.decoys import Decoys
from knockscreen.score.cells import open_store
from knockscreen.score.measured import write_measured
from knockscreen.score.measured_decoys import (
    control_scores,
    decoy_scores,
    draw_decoys,
    own_error,
    random_z,
)
from knockscreen.score.moments import replicate_units
from knockscreen.score.programs import program_matrix
from knockscreen.score.random_programs import ProgramNull
from knockscreen.score.replicates import summarise

TABLE = pl.DataFrame(
    {"program": ["Th2"] * 3, "gene": ["GATA3", "IL4", "IFNG"], "weight": [1.0, 1.0, -1.0]}
)
WEIGHTS = np.array([1, 1, -1, 0]) / 3
TARGETS = [(f"T{k}", f"T{k}") for k in range(1, 5)]


def screen(folder, *, guide_noise=0.0, seed=0, decoys=60, controls=40):
    """Two donors; ten control guides of ``controls`` cells in all; four targets of two guides."""
    rng = np.random.default_rng(seed)
    guides = [(0, f"n{k}", controls // 10) for k in range(10)] + [
        (t, f"g{t}{k}", 3 * t) for t in range(1, 5) for k in range(2)
    ]
    rows = [(t, g, d) for t, g, n in guides for d in (0, 1) for _ in range(n)]
    shift = {g: guide_noise * rng.normal(size=4) for _, g, _ in guides}
    mean = np.stack([20 * np.exp(shift[g]) for _, g, _ in rows])
    store = write_store(
        folder, rng.poisson(mean), [t for t, *_ in rows], [[d, 0] for *_, d in rows],
        library_size=[1000] * len(rows), guide=[g for _, g, _ in rows], targets=TARGETS,
    )  # fmt: skip
    header = store / "store.json"
    ids = [f"decoy_{k:04d}" for k in range(decoys)]
    header.write_text(json.dumps(json.loads(header.read_text()) | {"decoys": ids}))
    return store


def matrix():
    return program_matrix(TABLE, GENE_IDS, GENES)


def measure(store, folder, **options):
    paths = write_measured(store, folder, matrix(), ["donor"], seed=3, **options)
    return [pl.read_parquet(path) for path in paths]


def test_a_decoy_is_the_scaled_difference_of_its_cells_to_the_other_controls(tmp_path):
    store = screen(tmp_path / "store")
    cells = open_store(store)
    unit = replicate_units(cells, "auto")
    control = control_scores(cells, matrix(), unit)
    own = np.flatnonzero((control.context == 0) & np.isin(np.arange(80) % 7, (1, 3)))
    rest = np.setdiff1d(np.flatnonzero(control.context == 0), own)
    values = np.log1p(cells.cp10k(cells.rows[cells.target == 0]).toarray()) @ WEIGHTS
    score, error, n = decoy_scores(control, Decoys(("d",), own, 0 * own), [[0], [0, 1]])
    scale = np.sqrt(len(rest) / (len(rest) + len(own)))
    expected = (values[own].mean() - values[rest].mean()) * scale
    assert score[0, :, 0] == pytest.approx([expected, expected])  # it has no cells in donor 2
    assert n.tolist() == [[len(own), len(own)]]
    assert (error > 0).all()


def test_a_decoy_is_compared_with_random_programs_as_a_target_is(tmp_path):
    store = screen(tmp_path / "store")
    cells = open_store(store)
    context = cells.context[cells.target == 0]
    own = np.flatnonzero((context == 0) & np.isin(np.arange(80) % 7, (1, 3)))
    rest = np.setdiff1d(np.flatnonzero(context == 0), own)
    values = np.log1p(cells.cp10k(cells.rows[cells.target == 0]).toarray())
    delta = values[own].mean(axis=0) - values[rest].mean(axis=0)
    weights = np.random.default_rng(0).normal(size=(1, 30, 4)).astype(np.float32)
    null = ProgramNull(weights, {})
    found = random_z(cells, Decoys(("d",), own, 0 * own), matrix(), [[0], [0, 1], [1]], null)
    moved = weights[0] @ delta
    expected = (WEIGHTS @ delta - moved.mean()) / moved.std()
    assert found[0, :2, 0] == pytest.approx([expected, expected], rel=1e-5)
    assert np.isnan(found[0, 2, 0])  # it has no cells in donor 2
    decoys = measure(store, tmp_path, null=null)[3]
    assert decoys["random_z"].null_count() == 0
    assert measure(store, tmp_path)[3]["random_z"].null_count() == len(decoys)


def test_decoys_have_the_shape_of_real_targets(tmp_path):
    cells = open_store(screen(tmp_path / "store", controls=400))
    unit = replicate_units(cells, "auto")
    decoys = draw_decoys(cells, unit, n=8, seed=1)
    control = np.flatnonzero(cells.target == 0)
    shapes = []
    for k in range(8):
        rows = control[decoys.rows[decoys.number == k]]
        assert (cells.target[rows] == 0).all()
        counts = np.bincount(cells.context[rows], minlength=2)
        assert counts[0] == counts[1]
        shapes.append(int(counts[0]))
        assert 2 <= len(np.unique(cells.guide[rows])) <= 3
    assert sorted(shapes) == sorted([6, 12, 18, 24] * 2)  # cells of each target in each context


@pytest.mark.parametrize("guide_noise", [0.0, 0.3])
def test_decoys_are_as_noisy_as_targets_without_effect(tmp_path, guide_noise):
    """Scores in units of their error have the same spread, guides differing or not."""
    found = {"target": [], "decoy": []}
    for seed in range(12):
        store = screen(tmp_path / f"s{seed}", guide_noise=guide_noise, seed=seed, controls=200)
        _, scores, _, decoys = measure(store, tmp_path / f"m{seed}")
        for name, table, unit in (
            ("target", scores, "standard_error"), ("decoy", decoys, "own_error"),
        ):  # fmt: skip
            here = table.filter(pl.col("context") != "time=Rest")
            found[name] += (here["score"] / here[unit]).to_list()
    assert 0.75 < np.std(found["target"]) / np.std(found["decoy"]) < 1.33
    assert abs(np.mean(found["decoy"])) < 0.1


def test_errors_of_target_and_control_add_up(tmp_path):
    _, scores, *_ = measure(screen(tmp_path / "store", guide_noise=0.2), tmp_path)
    both = scores.select(pl.sum_horizontal(pl.col("own_error", "control_error").pow(2)).sqrt())
    np.testing.assert_allclose(both.to_series(), scores["standard_error"])


def test_a_knock_down_of_one_guide_is_judged_by_how_the_control_guides_differ():
    none, four = np.zeros(1, dtype=int), np.full(4, 9.0)
    guides = np.array([[0.0], [2.0], [0.0], [2.0]])  # sum of 9 * 1^2 over 3 degrees: phi 12
    control = summarise(np.zeros(4, dtype=int), four, guides, 1)
    one = summarise(none, np.array([4.0]), np.array([[1.0]]), 1)
    variance, n = np.ones((1, 1)), np.array([4.0])
    assert own_error(np.ones(1), (one, control), variance, n, [0]) == pytest.approx(np.sqrt(12 / 4))
    alone = summarise(none, np.array([9.0]), np.array([[0.0]]), 1)
    assert own_error(np.ones(1), (one, alone), variance, n, [0]) == pytest.approx(np.sqrt(1 / 4))


def test_same_seed_same_decoys_and_none_without(tmp_path):
    store = screen(tmp_path / "store")
    first, second = (measure(store, tmp_path / name)[3] for name in "ab")
    assert first.equals(second)
    assert first["target_gene_id"].n_unique() == 60
    *_, none = measure(screen(tmp_path / "other", decoys=0), tmp_path / "c")
    assert none.is_empty()


def test_guide_concordance_is_the_share_of_guides_with_the_sign_of_the_score(tmp_path):
    """Three guides up, up and down; one guide alone says nothing."""
    counts = [[5, 5, 5, 0]] * 4 + [[9, 5, 5, 0], [9, 5, 5, 0], [3, 5, 5, 0], [9, 5, 5, 0]]
    store = write_store(
        tmp_path / "store", counts, [0] * 4 + [1] * 3 + [2], [[0, 0]] * 8, library_size=[100] * 8,
        guide=["n1", "n1", "n2", "n2", "a", "b", "c", "d"], targets=TARGETS,
    )  # fmt: skip
    _, scores, *_ = measure(store, tmp_path)
    found = scores.filter(context="donor=D1,time=Rest").sort("target_gene_id")
    assert found["guide_concordance"].to_list() == [pytest.approx(2 / 3), None]


def test_guides_are_averaged_over_the_contexts_pooled(tmp_path):
    """Guide a is down in one donor and further up in the other: up."""
    counts = [[5, 5, 5, 0]] * 4 + [[3, 5, 5, 0], [20, 5, 5, 0], [9, 5, 5, 0], [9, 5, 5, 0]]
    donor = [[0, 0], [0, 0], [1, 0], [1, 0]] + [[0, 0], [1, 0]] * 2
    store = write_store(
        tmp_path / "store", counts, [0] * 4 + [1] * 4, donor, library_size=[100] * 8,
        guide=["n1", "n2", "n1", "n2", "a", "a", "b", "b"], targets=TARGETS,
    )  # fmt: skip
    _, scores, *_ = measure(store, tmp_path)
    found = dict(scores.select("context", "guide_concordance").iter_rows())
    assert found["time=Rest"] == 1
    assert found["donor=D1,time=Rest"] == 0.5


def test_too_few_control_cells_give_no_decoys(tmp_path, caplog):
    """Twelve cells are half of 24; the usual target of twelve and more has no like of it."""
    store = screen(tmp_path / "store", controls=20)
    with caplog.at_level("WARNING"):
        *_, decoys = measure(store, tmp_path)
    assert decoys.is_empty()
    assert (
        "time=Rest: too few control cells for decoys like the knock-downs (20 cells, not 30)"
        in (caplog.text)
    )
    *_, decoys = measure(screen(tmp_path / "large", controls=100), tmp_path / "b")
    assert decoys["context"].n_unique() == 3
