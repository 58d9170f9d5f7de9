"""Generated cells: paired by common random numbers, whatever the batches and shards."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from fixtures.models import (
    CONTEXTS,
    GENE_IDS,
    load_sampler,
    sampler_settings,
    tiny_store,
    train_models,
)
from knockscreen import screening
from knockscreen.data.cells import CellStore
from knockscreen.errors import CheckpointError, DataError, UnknownNameError
from knockscreen.generated import resolve_target
from knockscreen.models.velocity import UNSEEN
from knockscreen.names import NTC, Split
from knockscreen.sampling import (
    Guidance,
    Screen,
    block_means,
    control_statistics,
    draw_generator,
    shard_statistics,
)

CANDIDATES = [(0, "ENSG00"), (1, "ENSG01"), (2, "ENSG05"), (3, "ENSG99"), (4, "ENSG02")]


@pytest.fixture(scope="module")
def sampler(trained):
    return load_sampler(trained)


@pytest.fixture(scope="module")
def screen(sampler):
    return Screen(sampler, CONTEXTS)


def test_control_against_control_differs_by_exactly_nothing(screen):
    control = control_statistics(screen)["draw_log1p"]
    (same,) = shard_statistics(screen, [NTC], control)
    for name in ("delta_mean", "delta_var", "block_delta"):
        assert (same[name] == 0).all()


def test_knockdown_differs_from_control(screen):
    control = control_statistics(screen)["draw_log1p"]
    (down,) = shard_statistics(screen, ["ENSG00"], control)
    assert (down["delta_mean"][:, 0] < -0.5).all()  # its own transcript
    assert (down["delta_var"] > 0).any()


@pytest.mark.parametrize("batch", [1, 5, 16])
def test_draws_do_not_depend_on_the_batch_size(trained, screen, batch):
    other = Screen(load_sampler(trained, batch_size=batch), CONTEXTS)
    assert torch.equal(other.noise, screen.noise)
    assert torch.equal(other.library, screen.library)
    for gene_id in (NTC, "ENSG01", "ENSG05"):
        ours, theirs = screen.generate(gene_id), other.generate(gene_id)
        np.testing.assert_allclose(theirs.log1p, ours.log1p, atol=1e-5)
        np.testing.assert_allclose(theirs.mean_count, ours.mean_count, rtol=1e-5)


def test_noise_of_a_draw_is_a_function_of_seed_context_and_draw(trained, sampler):
    few, library = sampler.noise(CONTEXTS[0], range(3))
    late, _ = sampler.noise(CONTEXTS[0], range(2, 5))
    assert torch.equal(few[2], late[0])
    assert not torch.equal(few, sampler.noise(CONTEXTS[1], range(3))[0])
    assert not torch.equal(few, load_sampler(trained, seed=6).noise(CONTEXTS[0], range(3))[0])
    assert len(set(library.tolist())) == 3
    assert draw_generator(1, "a", 2).random() == draw_generator(1, "a", 2).random()


def test_library_sizes_follow_those_of_control_cells(sampler):
    _, library = sampler.noise(CONTEXTS[0], range(4000))
    assert library.log().mean().item() == pytest.approx(np.log(2000), abs=0.02)
    assert library.log().std().item() == pytest.approx(0.2, abs=0.02)


def test_contexts_screened_beside_do_not_matter(sampler, screen):
    alone = Screen(sampler, CONTEXTS[1:]).generate("ENSG00")
    np.testing.assert_allclose(alone.log1p[0], screen.generate("ENSG00").log1p[1], atol=1e-5)


@pytest.fixture(scope="module")
def control(screen, tmp_path_factory):
    path = tmp_path_factory.mktemp("screen") / "control.npz"
    screening.write_control(path, screen)
    return path


def write(path, screen, control, candidates):
    screening.write_shard(path, screen, control, candidates, lambda done: None)
    with np.load(path) as file:
        return dict(file)


def test_one_shard_or_three_in_any_order_give_the_same_arrays(trained, control, tmp_path):
    whole = write(
        tmp_path / "all.npz", Screen(load_sampler(trained), CONTEXTS), control, CANDIDATES
    )
    for number, part in enumerate((CANDIDATES[3:], CANDIDATES[:1], CANDIDATES[1:3][::-1])):
        fresh = Screen(load_sampler(trained), CONTEXTS)
        shard = write(tmp_path / f"{number}.npz", fresh, control, part)
        assert shard["candidate"].tolist() == [k for k, _ in part]
        for name in set(shard) - {"candidate", "meta"}:
            axis = 1 if name == "block_delta" else 0
            expected = np.take(whole[name], shard["candidate"], axis=axis)
            assert np.array_equal(shard[name], expected), name


def test_shard_files_hold_what_scoring_reads(screen, control, tmp_path):
    shard = write(tmp_path / "0.npz", screen, control, CANDIDATES[:2])
    meta = json.loads(str(shard["meta"]))
    assert meta == {"contexts": CONTEXTS, "gene_ids": GENE_IDS, "draws": 8, "blocks": 2}
    assert shard["delta_mean"].shape == (2, 2, 12)
    assert shard["block_delta"].shape == (2, 2, 2, 12)
    np.testing.assert_allclose(shard["block_delta"].mean(0), shard["delta_mean"], atol=1e-6)
    with np.load(control) as file:
        np.testing.assert_allclose(
            shard["mean_log1p"] - file["mean_log1p"], shard["delta_mean"], atol=1e-5
        )
        np.testing.assert_allclose(file["block_log1p"].mean(0), file["mean_log1p"], atol=1e-5)
    assert ((shard["detection"] > 0) & (shard["detection"] <= 1)).all()


def test_shard_without_candidates_is_empty_and_whole(screen, control, tmp_path):
    shard = write(tmp_path / "0.npz", screen, control, [])
    assert shard["delta_mean"].shape == (0, 2, 12)
    assert shard["block_delta"].shape == (2, 0, 2, 12)


def test_control_of_another_plan_is_refused(trained, control, tmp_path):
    other = Screen(load_sampler(trained, draws=6), CONTEXTS)
    with pytest.raises(DataError, match=r"control\.npz was generated for another plan"):
        write(tmp_path / "0.npz", other, control, CANDIDATES)
    assert not (tmp_path / "0.npz").exists()
    with pytest.raises(DataError, match="run 'knockscreen generate-control' first"):
        write(tmp_path / "0.npz", other, tmp_path / "none.npz", CANDIDATES)


def test_control_draws_of_another_shape_are_refused(screen):
    with pytest.raises(
        DataError, match=r"draws, genes\) \(2, 3, 12\), the screen wants \(2, 8, 12"
    ):
        next(shard_statistics(screen, [NTC], np.zeros((2, 3, 12), dtype=np.float32)))


def test_targets_are_known_by_their_code_or_by_their_features(sampler):
    assert sampler.target(NTC).code == 0
    assert sampler.target("ENSG01").code == 2
    assert sampler.target("ENSG05").code == UNSEEN
    assert sampler.target("ENSG05").features.abs().sum() > 0
    assert sampler.target("ENSG99").features.abs().sum() == 0  # trained, not on the panel
    assert [sampler.is_seen(g) for g in (NTC, "ENSG00", "ENSG05", "ENSG99")] == [
        True, True, False, True,
    ]  # fmt: skip


def test_gene_that_nothing_is_known_of_is_named(sampler):
    with pytest.raises(UnknownNameError, match=r"'ENSG77' was never knocked .*; nearest: ENSG"):
        sampler.target("ENSG77")


def test_unknown_context_is_named(sampler):
    with pytest.raises(UnknownNameError, match=r"'donor=D3,time=Rest'; nearest: donor=D"):
        sampler.noise("donor=D3,time=Rest", range(2))


@pytest.mark.parametrize("strategy", ["nested", "joint", "additive"])
def test_guidance_on_the_knockdown_moves_its_cells(trained, screen, strategy):
    strong = Guidance(strategy, context=1.0, perturbation=2.0)
    guided = Screen(load_sampler(trained, guidance=strong), CONTEXTS)
    ours, theirs = screen.generate("ENSG00"), guided.generate("ENSG00")
    own = (theirs.log1p - ours.log1p)[..., 0]
    assert own.mean() < -0.1  # the knock-down is deeper
    moved = guided.sampler.latents(guided.sampler.target("ENSG00"), guided.rows, guided.noise)
    plain = screen.sampler.latents(screen.sampler.target("ENSG00"), screen.rows, screen.noise)
    assert ((moved - plain) / screen.sampler.scale).abs().max() > 1e-2


def test_blocks_divide_the_draws_evenly(trained, screen):
    assert screen.blocks().tolist() == [0] * 4 + [1] * 4
    thirds = Screen(load_sampler(trained, draws=7, blocks=3), CONTEXTS[:1]).blocks()
    assert np.bincount(thirds).tolist() == [3, 2, 2]
    values = np.arange(8, dtype=np.float32).reshape(1, 8, 1)
    assert block_means(values, screen.blocks()).flatten().tolist() == [1.5, 5.5]


def test_single_draw_has_no_variance_and_no_nan(trained):
    one = Screen(load_sampler(trained, draws=1, blocks=1), CONTEXTS)
    control = control_statistics(one)["draw_log1p"]
    (statistics,) = shard_statistics(one, ["ENSG00"], control)
    assert (statistics["delta_var"] == 0).all()
    assert (statistics["var_log1p"] == 0).all()


def test_matched_cells_have_the_condition_and_library_of_test_cells(trained, sampler):
    store = CellStore.open(trained / "store")
    rows = screening.matched_rows(store)
    counts = screening.matched_cells(sampler, store, rows)
    assert rows.tolist() == store.rows(Split.TEST).tolist()
    share = counts.sum(1) / store.library_size[rows]
    assert 0.3 < share.mean() < 0.7  # half of a cell lies on the panel
    assert np.corrcoef(counts.sum(1), store.library_size[rows])[0, 1] > 0.5
    assert (screening.matched_cells(sampler, store, rows) == counts).all()
    few = screening.matched_rows(store, most=5)
    assert screening.matched_cells(sampler, store, few).shape == (5, 12)
    assert set(few) <= set(rows)


def test_matched_cells_of_a_store_without_test_cells_are_of_validation(trained, sampler):
    store = CellStore.open(trained / "store")
    split = np.where(np.asarray(store.split) == 2, 0, store.split)
    rows = screening.matched_rows(replace(store, split=split))
    assert rows.tolist() == store.rows(Split.VALIDATION).tolist()


def test_library_over_the_panel_gives_counts_on_the_scale_of_all_genes(trained, tmp_path):
    store = CellStore.open(trained / "store")
    sampler = load_sampler(train_models(store, tmp_path, library="panel"))
    rows = screening.matched_rows(store)
    counts = screening.matched_cells(sampler, store, rows)
    share = counts.sum(1) / store.library_size[rows]
    real = store.dense(rows).sum(1) / store.library_size[rows]
    assert share.mean() == pytest.approx(real.mean(), abs=0.05)
    control = Screen(sampler, CONTEXTS).generate(NTC)
    np.testing.assert_allclose(control.mean_count.sum(1), 0.45 * 2000, rtol=0.2)


def test_screen_without_context_factors_has_one_context(tmp_path):
    store = CellStore.open(tiny_store(tmp_path / "store", factors={}))
    screen = Screen(load_sampler(train_models(store, tmp_path)), ["all"])
    control = control_statistics(screen)["draw_log1p"]
    (down,) = shard_statistics(screen, ["ENSG00"], control)
    assert down["delta_mean"].shape == (1, 12)
    assert down["delta_mean"][0, 0] < -0.5
    counts = screening.matched_cells(screen.sampler, store, screening.matched_rows(store))
    assert counts.any()


def test_names_are_found_by_symbol_or_id_in_any_case(sampler):
    assert [resolve_target(sampler, n) for n in ("g5", "ENSG05", "off", "Non-Targeting")] == [
        "ENSG05", "ENSG05", "ENSG99", NTC,
    ]  # fmt: skip
    with pytest.raises(UnknownNameError, match="unknown target 'G77'; nearest: G"):
        resolve_target(sampler, "G77")


def test_checkpoints_of_two_panels_are_refused(trained, tmp_path):
    from knockscreen import checkpoint

    tensors, about = checkpoint.load(trained / "vae.safetensors", "vae")
    about["vocabulary"]["gene_ids"][3] = "ENSG33"
    checkpoint.save(tmp_path / "vae.safetensors", tensors, about)
    paths = [trained / "flow.safetensors", trained / "effect.safetensors"]
    with pytest.raises(CheckpointError, match="entry 4 is 'ENSG33' there and 'ENSG03'"):
        screening.load_sampler(
            tmp_path / "vae.safetensors", *paths, sampler_settings(), torch.device("cpu")
        )
