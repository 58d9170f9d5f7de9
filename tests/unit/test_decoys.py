"""Decoys: which control cells they take, how noisy they are, and that nothing else meets them."""

from functools import partial

import numpy as np
import polars as pl
import pytest

from fixtures.models import GENE_IDS, tiny_store
from knockscreen.data.cells import CellStore
from knockscreen.data.decoys import Decoys, choose_decoys
from knockscreen.data.features import scrambled
from knockscreen.models.denoise import Measured, denoise
from knockscreen.models.scrambled import scramble, sides
from knockscreen.models.unseen import likeness, principal_axes
from knockscreen.names import NTC, SPLITS, Split
from knockscreen.training.decoys import control_error, decoy_shifts, denoise_decoys
from knockscreen.training.effect import fit_effects

FIT = {"features": "coexpression", "feature_dims": 4, "rank": 2, "keep_cells": 500}
TRAIN = SPLITS.index(Split.TRAIN)


def screen(n_control=120, guides=6):
    """Cells of target A (2 guides; 9 in c1, 4 in c2) and B (1 guide; 5 in c1), and controls."""
    kinds = [("A", "a1", "c1", 5), ("A", "a2", "c1", 4), ("A", "a1", "c2", 4), ("B", "b", "c1", 5)]
    rows = [(target, guide, context) for target, guide, context, n in kinds for _ in range(n)]
    rows += [
        (NTC, f"ntc{k % guides}", "c1" if k < n_control // 2 else "c2") for k in range(n_control)
    ]
    return pl.DataFrame(rows, schema=["target_gene_id", "guide_id", "context"], orient="row")


def choose(cells, n=10, *, split=None, lot=None, seed=1) -> Decoys:
    split = np.full(len(cells), TRAIN, dtype=np.int8) if split is None else split
    lot = np.random.default_rng(0).random(len(cells)) if lot is None else lot
    return choose_decoys(cells, split, lot, n=n, seed=seed)


def shape(cells, decoys, k):
    """Return (cells in c1, cells in c2) and the guides of decoy k."""
    mine = cells[decoys.rows[decoys.number == k]]
    counts = tuple((mine["context"] == c).sum() for c in ("c1", "c2"))
    return counts, mine["guide_id"].n_unique()


def test_decoys_have_the_cells_and_the_guides_of_real_targets_in_turn():
    cells = screen()
    decoys = choose(cells)
    assert decoys.ids[:2] == ("decoy_0001", "decoy_0002")
    assert len(decoys.ids) == 10
    shapes = [shape(cells, decoys, k) for k in range(10)]
    assert sorted(set(shapes)) == [((5, 0), 1), ((9, 4), 2)]
    assert shapes[:2] * 5 == shapes


def test_decoys_are_training_controls_and_nobody_twice_in_one():
    cells = screen()
    split = np.full(len(cells), TRAIN, dtype=np.int8)
    split[::3] = SPLITS.index(Split.TEST)
    decoys = choose(cells, split=split)
    assert (cells["target_gene_id"].to_numpy()[decoys.rows] == NTC).all()
    assert (split[decoys.rows] == TRAIN).all()
    pairs = np.stack([decoys.number, decoys.rows])
    assert np.unique(pairs, axis=1).shape == pairs.shape


def test_more_guides_are_taken_where_few_do_not_hold_the_cells():
    cells = screen(n_control=120, guides=20)  # 3 controls of a guide in a context
    decoys = choose(cells)
    assert {shape(cells, decoys, k)[0] for k in range(10)} == {(9, 4), (5, 0)}
    assert min(shape(cells, decoys, k)[1] for k in range(10)) >= 2


def test_a_decoy_takes_at_most_half_of_the_controls():
    cells = screen(n_control=12, guides=3)
    decoys = choose(cells)
    assert {shape(cells, decoys, k)[0] for k in range(10)} == {(3, 3), (3, 0)}


def test_decoys_without_known_guides_are_random_cells():
    cells = screen().with_columns(guide_id=pl.lit(None, pl.String))
    decoys = choose(cells)
    assert {len(decoys.rows[decoys.number == k]) for k in range(10)} == {13, 5}


def test_decoys_do_not_depend_on_the_order_of_the_cells():
    cells, lot = screen(), np.random.default_rng(0).random(len(screen()))
    order = np.random.default_rng(1).permutation(len(cells))
    here, there = choose(cells, lot=lot), choose(cells[order], lot=lot[order])
    for k in range(10):
        moved = np.sort(order[there.rows[there.number == k]])
        assert moved.tolist() == here.rows[here.number == k].tolist()


@pytest.mark.parametrize("cells", [screen(), screen().filter(pl.col("target_gene_id") != NTC)])
def test_no_decoys_are_made_of_nothing(cells):
    n = 0 if (cells["target_gene_id"] == NTC).any() else 5
    assert choose(cells, n=n).ids == ()


def with_decoys(folder, n=12, cells=200, seed=0) -> CellStore:
    """The tiny store with decoys of 12 training controls in each context."""
    store = CellStore.open(tiny_store(folder, cells=cells, seed=seed))
    pool = np.flatnonzero((store.target == 0) & (store.split == TRAIN))
    context = store.context_index()[pool]
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(pool[context == c])[:12] for _ in range(n) for c in (0, 1)]
    targets = len(store.vocabulary.target_ids)
    np.save(folder / "decoy_rows.npy", np.concatenate(rows))
    np.save(folder / "decoy_target.npy", np.repeat(targets + np.arange(n), 24))
    text = (folder / "store.json").read_text()
    ids = ", ".join(f'"decoy_{k + 1:04d}"' for k in range(n))
    (folder / "store.json").write_text(text[:-1] + f', "decoys": [{ids}]}}')
    return CellStore.open(folder)


def test_decoys_are_in_the_vocabulary_and_in_no_cell(tmp_path):
    store = with_decoys(tmp_path)
    v = store.vocabulary
    assert v.n_real == 5
    assert v.target_ids[5:] == tuple(f"decoy_{k:04d}" for k in range(1, 13))
    assert store.target.max() < 5 <= store.decoy_target.min()


def test_real_targets_are_estimated_as_if_there_were_no_decoys(tmp_path):
    alone = CellStore.open(tiny_store(tmp_path / "alone"))
    (tmp_path / "both").mkdir()
    both = with_decoys(tmp_path / "both")
    plain, mixed = (fit_effects(s, **FIT) for s in (alone, both))
    assert mixed.trained == (*plain.trained, *[True] * 12)
    for target in (*alone.vocabulary.target_ids, "ENSG05"):
        np.testing.assert_allclose(mixed.offsets(target), plain.offsets(target), atol=1e-5)
    assert np.abs(mixed.offsets("decoy_0001")).max() > 0


def test_raw_decoys_have_the_own_noise_of_an_inert_target():
    """Variance over decoys, s^2/n, although they share cells with the control they are held to."""
    rng = np.random.default_rng(3)
    pool, n = 60, 20
    measured, wanted = [], []
    for _ in range(40):
        cells = rng.standard_normal(pool)
        some = np.stack([rng.permutation(cells)[:n] for _ in range(50)])
        measured.append(((some.mean(1) - cells.mean()) * np.sqrt(pool / (pool - n))).var())
        wanted.append(cells.var(ddof=1) / n)
    assert np.mean(measured) == pytest.approx(np.mean(wanted), rel=0.05)


def test_decoy_shifts_are_scaled_differences_to_all_controls(tmp_path):
    store = with_decoys(tmp_path, n=2)
    pool = np.flatnonzero((store.target == 0) & (store.split == TRAIN))
    values = np.log1p(store.dense(pool) * (1e4 / store.library_size[pool])[:, None])
    context = store.context_index()
    mean = np.stack([values[context[pool] == c].mean(0) for c in (0, 1)])
    cells = np.bincount(context[pool])
    shifts, counts = decoy_shifts(store, mean, cells)
    mine = store.decoy_rows[:12]  # of the first decoy, in the first context
    direct = np.log1p(store.dense(mine) * (1e4 / store.library_size[mine])[:, None]).mean(0)
    scale = np.sqrt(cells[0] / (cells[0] - 12))
    np.testing.assert_allclose(shifts[0, 0], (direct - mean[0]) * scale, atol=1e-5)
    assert counts.tolist() == [[12, 12], [12, 12]]


BY = partial(denoise, rank=16, keep_cells=500.0)


def inert_screen(seed=0, error=0.0):
    """60 targets of 30 cells, the first 20 with strong effects; an error of the control in all."""
    rng = np.random.default_rng(seed)
    shifts = rng.standard_normal((61, 1, 40)) / np.sqrt(30)
    shifts[:21, 0] += np.outer(rng.standard_normal(21), rng.standard_normal(40))
    shifts -= error * rng.standard_normal(40)
    shifts[0] = 0
    cells = np.full((61, 1), 30)
    cells[0] = 300
    own_gene, levels = np.full(61, -1), np.zeros((1, 1), dtype=int)
    return rng, Measured(shifts, cells, own_gene, np.eye(40), levels)


@pytest.mark.parametrize("error", [0.0, 0.06])
def test_inert_targets_and_decoys_are_denoised_alike(error):
    """In what is their own; a shift that all targets share is for the ranking to take out."""
    rng, measured = inert_screen(error=error)
    decoys = rng.standard_normal((60, 1, 40)) / np.sqrt(30), np.full((60, 1), 30)
    mean, rest = BY(measured)
    real = (mean + rest)[21:, 0]
    null = denoise_decoys(measured, mean, decoys, BY)[:, 0]
    spread = [(part - part.mean(0)).std() for part in (real, null)]
    assert spread[0] == pytest.approx(spread[1], rel=0.15)
    assert 0 < spread[1] < 0.5 * decoys[0].std()  # neither left as measured nor wiped out


def test_control_error_is_what_denoising_takes_from_the_common_mean():
    _, measured = inert_screen(error=0.1)
    wanted = measured.shifts[1:, 0].mean(0) - 0.25
    np.testing.assert_allclose(control_error(measured, np.full((1, 40), 0.25))[0], wanted)


def test_scrambled_features_keep_the_distance_and_lose_the_direction():
    features = np.random.default_rng(0).normal(2, 1, (50, 30)).astype(np.float32)
    mean = features.mean(0)
    one, other = (scrambled(features, 7, name) for name in ("a", "b"))
    assert (one == scrambled(features, 7, "a")).all()
    assert (one != other).any()
    np.testing.assert_allclose(np.abs(one - mean), np.abs(features[7] - mean), atol=1e-4)
    assert 5 < (np.abs(one - features[7]) > 1e-3).sum() < 25


def test_an_unseen_decoy_lowers_the_transcript_of_its_gene(tmp_path):
    store = CellStore.open(tiny_store(tmp_path))
    model = fit_effects(store, **FIT)
    offsets = model.offsets(f"decoy_unseen_0001:{GENE_IDS[5]}")
    assert (offsets[:, 5] < -0.5).all()
    np.testing.assert_allclose(offsets[:, 5], model.offsets(GENE_IDS[5])[:, 5], atol=1e-6)


def test_scrambled_profiles_are_as_alike_to_genes_as_real_ones_but_to_others():
    rng = np.random.default_rng(0)
    profiles = rng.standard_normal((60, 3)) @ rng.standard_normal((3, 80))
    profiles += 0.3 * rng.standard_normal((60, 80))
    axes = principal_axes(profiles)
    moved = np.stack([scramble(p, axes, f"d{k}") for k, p in enumerate(profiles)])
    norms = [np.linalg.norm(p - axes[0], axis=1) for p in (profiles, moved)]
    np.testing.assert_allclose(*norms)
    real, null = (
        np.stack([likeness(p, profiles[30:]) for p in ps[:30]]) for ps in (profiles, moved)
    )
    assert np.quantile(real, 0.9) == pytest.approx(np.quantile(null, 0.9), abs=0.1)
    assert abs(np.corrcoef(real.ravel(), null.ravel())[0, 1]) < 0.3


def test_sides_depend_on_the_name_alone():
    assert (sides("a", 10) == sides("a", 10)).all()
    assert (sides("a", 10) == sides("a", 99)[:10]).all()
    assert (sides("a", 99) != sides("b", 99)).any()
