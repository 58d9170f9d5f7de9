"""The simulated truth: it is what the cells do."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fixtures.simulated import settings
from knockscreen.config import SimulateConfig
from knockscreen.simulate import cells, world
from knockscreen.simulate.truth import true_effects


def two_guide_world(target: str) -> tuple[world.World, SimulateConfig]:
    """A world with one average guide against ``target`` and one non-targeting guide."""
    chosen = settings(genes=200)
    here = world.build_world(chosen)
    index = int(np.flatnonzero(here.genes.gene == target)[0])
    guides = world.Guides(
        guide_id=np.array(["NTC-001", f"{target}-1"]),
        target=np.array([-1, index]),
        strength=np.array([0.0, world.MEAN_STRENGTH]),
        frequency=np.array([0.5, 0.5]),
    )
    return replace(here, guides=guides), chosen


def test_the_truth_is_what_happens_to_the_means() -> None:
    here, chosen = two_guide_world("ZAP70")
    context = cells.context_of(here, chosen, 2)  # D1, Stim8hr
    block = cells.sample_block(here, context, 8000, np.random.default_rng(0))
    alone = block.second < 0
    control, treated = (block.counts[alone & (block.guide == g)] for g in (0, 1))
    seen = control.mean(axis=0) > 0.05
    log_ratio = np.log(treated.mean(axis=0)[seen] / control.mean(axis=0)[seen])
    variance = sum(c.var(axis=0) / c.mean(axis=0) ** 2 / len(c) for c in (control, treated))[seen]

    def misfit(gene: str) -> float:
        index = np.flatnonzero(here.genes.gene == gene)
        truth = true_effects(here, index)[2, 0, seen] * np.log(2)
        return float(np.mean((log_ratio - truth) ** 2 / variance))

    assert misfit("ZAP70") < 1.5
    assert misfit("FOXP3") > 5


def test_control_cells_have_the_baseline_means() -> None:
    here, chosen = two_guide_world("ZAP70")
    context = cells.context_of(here, chosen, 0)
    block = cells.sample_block(here, context, 6000, np.random.default_rng(0))
    mean = block.counts[(block.guide <= 0) & (block.second < 0)].mean(axis=0)
    ordinary = here.genes.role != "mitochondrial"
    expected = here.baseline[0][ordinary] / here.baseline[0][ordinary].sum()
    assert np.abs(np.log(mean[ordinary] / mean[ordinary].sum() / expected)).max() < 0.25


def test_guide_strength_scales_the_effect_and_inactive_guides_do_nothing() -> None:
    here, chosen = two_guide_world("ZAP70")
    strength = np.array([0.0, 0.0])
    context = cells.context_of(here, chosen, 2)
    silent = replace(here, guides=replace(here.guides, strength=strength))
    assert not cells.knockdown(silent, context, np.array([0, 1, -1])).any()
    weak = replace(here, guides=replace(here.guides, strength=np.array([0.0, 0.5])))
    index = here.guides.target[1]
    change = cells.knockdown(weak, context, np.array([1]))[0]
    assert change[index] == pytest.approx(np.log(0.5))
    others = np.arange(len(here.genes)) != index
    row = np.flatnonzero(here.drivers == index)[0]
    expected = here.effect[2, row] * 0.5 / world.MEAN_STRENGTH
    np.testing.assert_allclose(change[others], expected[others], rtol=1e-5)


def test_in_control_cells_a_regulator_varies_with_what_it_regulates() -> None:
    here, chosen = two_guide_world("STAT1")
    context = cells.context_of(here, chosen, 2)
    block = cells.sample_block(here, context, 6000, np.random.default_rng(0))
    counts = block.counts[(block.guide == 0) & (block.second < 0)]
    logs = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
    regulator = int(here.guides.target[1])
    together = np.corrcoef(logs.T)[regulator]
    effect = true_effects(here, np.array([regulator]))[2, 0]
    moved = (np.abs(effect) > 0.3) & (np.arange(len(effect)) != regulator)
    assert moved.sum() >= 10
    aligned = together[moved] * -np.sign(effect[moved])
    chance = 1 / np.sqrt(len(counts) * moved.sum())  # standard error of the mean of no correlation
    assert aligned.mean() > 8 * chance


def test_the_truth_file_covers_every_gene_in_every_context(tiny: Path) -> None:
    truth = np.load(tiny / "truth.npz")
    assert truth["log2_fold_change"].shape == (4, 150, 150)
    assert truth["contexts"][0] == "donor=D1,time=Rest"
    assert truth["complete"]
    assert truth["screened"].sum() == 16
    np.testing.assert_allclose(truth["baseline"].sum(axis=1), 1, rtol=1e-5)
    own = truth["log2_fold_change"][:, np.arange(150), np.arange(150)]
    np.testing.assert_allclose(own, np.log2(1 - 0.825), rtol=1e-5)
    unscreened = ~truth["screened"] & (truth["role"] == "regulator")
    assert (np.abs(truth["log2_fold_change"][:, unscreened]) > 0.3).sum() > 1000


def test_in_null_mode_only_the_target_itself_goes_down() -> None:
    chosen = settings(mode="null")
    log2 = true_effects(world.build_world(chosen), np.arange(150))
    own = np.eye(150, dtype=bool)
    assert (log2[:, own] < -2).all()
    assert not log2[:, ~own].any()


def test_counts_look_like_cells(full: world.World) -> None:
    chosen = settings(genes=800, library_size=2500)
    context = cells.context_of(full, chosen, 1)
    block = cells.sample_block(full, context, 2000, np.random.default_rng(0))
    good = block.counts[~block.low_quality]
    assert 0.3 < (good == 0).mean() < 0.7
    assert np.median(good.sum(axis=1)) == pytest.approx(context.library, rel=0.15)
    mitochondrial = good[:, full.genes.where("mitochondrial")].sum(axis=1) / good.sum(axis=1)
    assert np.median(mitochondrial) == pytest.approx(world.MITOCHONDRIAL_SHARE, rel=0.2)
    assert 0.005 < (mitochondrial > 0.08).mean() < 0.05
    low = block.counts[block.low_quality].sum(axis=1)
    assert np.median(low) < 0.6 * context.library
    mean, variance = good.mean(axis=0), good.var(axis=0)
    assert (variance > mean)[mean > 0.5].mean() > 0.95
