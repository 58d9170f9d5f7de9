"""Draws that stop when the program scores are known: the same whatever the shards and batches."""

import numpy as np
import pytest
import torch

from fixtures.models import CONTEXTS, GENE_IDS, load_sampler
from knockscreen import screening
from knockscreen.errors import DataError
from knockscreen.names import CP10K, NTC
from knockscreen.nn.likelihood import detection_rate, expected_log1p, nb_sample
from knockscreen.sampling import Screen, block_means, control_statistics, shard_statistics
from knockscreen.stopping import Until, read_until, score_errors, scoring_weights

CANDIDATES = [(0, "ENSG00"), (1, "ENSG01"), (2, "ENSG05"), (3, "ENSG99"), (4, "ENSG02")]
NAMES = [gene_id for _, gene_id in CANDIDATES]
DRAWN = {"draws": 11, "blocks": 4}  # blocks of 3, 3, 3 and 2


def weights():
    return np.random.default_rng(3).normal(size=(5, 12)).round(1)


def until(tolerance):
    return Until(tolerance, tuple(GENE_IDS), weights())


@pytest.fixture(scope="module")
def screen(trained):
    return Screen(load_sampler(trained, **DRAWN), CONTEXTS, by_block=True)


@pytest.fixture(scope="module")
def control(screen):
    return control_statistics(screen)["draw_log1p"]


@pytest.fixture(scope="module")
def errors(screen, control):
    """Largest error of a score (K, 3) of each candidate after 2, 3 and 4 blocks."""
    table = []
    for gene_id, made in zip(NAMES, shard_statistics(screen, NAMES, control), strict=True):
        own = GENE_IDS.index(gene_id) if gene_id in GENE_IDS else -1
        scored = scoring_weights(weights(), own)
        table.append([score_errors(made["block_delta"][:n], scored).max() for n in (2, 3, 4)])
    return np.array(table)


@pytest.fixture(scope="module")
def between(errors):
    """A tolerance that some candidates meet after two blocks and others do not."""
    first = np.sort(errors[:, 0])
    return float(first[1:3].mean())


def test_without_a_tolerance_all_draws_are_made_as_in_one_piece(trained):
    screen = Screen(load_sampler(trained, **DRAWN), CONTEXTS)
    control = control_statistics(screen)["draw_log1p"]
    with pytest.raises(ValueError, match="this screen is not made by block"):
        next(shard_statistics(screen, ["ENSG01"], control, until(1.0)))
    s, target = screen.sampler, screen.sampler.target("ENSG01")
    mu, theta = s.decode(
        s.latents(target, screen.rows, screen.noise), screen.library, target, screen.rows
    )
    scale = CP10K / screen.library[:, None]
    sampled = nb_sample(mu, theta, torch.Generator().manual_seed(s.settings.seed))
    shape = (2, 11, -1)
    log1p = expected_log1p(mu, theta, scale).view(shape).numpy()
    (made,) = shard_statistics(screen, ["ENSG01"], control)
    expected = {
        "n_draws": 11,
        "mean_count": mu.view(shape).mean(1).numpy(),
        "mean_log1p": log1p.mean(1),
        "var_log1p": torch.log1p(sampled * scale).view(shape).var(1, unbiased=True).numpy(),
        "detection": detection_rate(mu, theta).view(shape).mean(1).numpy(),
        "delta_mean": (log1p - control).mean(1),
        "delta_var": (log1p - control).var(1, ddof=1),
        "block_delta": block_means(log1p - control, screen.blocks()),
    }
    assert set(made) == set(expected)
    for name, value in expected.items():
        assert np.array_equal(made[name], value), name


def test_knockdown_without_effect_stops_at_two_blocks_and_a_noisy_one_does_not(
    screen, control, errors
):
    none, noisy = shard_statistics(screen, [NTC, "ENSG00"], control, until(errors[0].min() / 2))
    assert none["n_draws"] == 6
    assert (none["delta_mean"] == 0).all()
    assert noisy["n_draws"] == 11
    assert not np.isnan(noisy["block_delta"]).any()


def test_stops_at_the_first_block_that_is_enough(screen, control, errors, between):
    made = list(shard_statistics(screen, NAMES, control, until(between)))
    enough = np.column_stack([errors[:, :2] <= between, np.ones(len(NAMES), dtype=bool)])
    assert [int(m["n_draws"]) for m in made] == [(6, 9, 11)[k] for k in enough.argmax(axis=1)]
    assert len({int(m["n_draws"]) for m in made}) > 1


def test_stopped_draws_are_those_of_a_run_with_only_these(trained, screen, control):
    few = Screen(load_sampler(trained, draws=6, blocks=2), CONTEXTS, by_block=True)
    theirs = list(shard_statistics(few, NAMES, control_statistics(few)["draw_log1p"]))
    for ours, other in zip(
        shard_statistics(screen, NAMES, control, until(1e9)), theirs, strict=True
    ):
        assert ours["n_draws"] == other["n_draws"] == 6
        assert np.isnan(ours["block_delta"][2:]).all()
        ours["block_delta"] = ours["block_delta"][:2]
        for name in other:
            np.testing.assert_allclose(ours[name], other[name], atol=2e-5, rtol=1e-5, err_msg=name)


def write(path, screen, control, candidates, rule):
    screening.write_shard(path, screen, control, candidates, lambda done: None, until=rule)
    with np.load(path) as file:
        return dict(file)


@pytest.mark.parametrize("batch", [64, 1, 5])
def test_shards_their_order_and_batches_do_not_matter(trained, screen, tmp_path, between, batch):
    screening.write_control(tmp_path / "control.npz", screen)
    given = tmp_path / "control.npz"
    whole = write(tmp_path / "all.npz", screen, given, CANDIDATES, until(between))
    assert set(whole["n_draws"]) > {6}
    other = Screen(load_sampler(trained, batch_size=batch, **DRAWN), CONTEXTS, by_block=True)
    for number, part in enumerate((CANDIDATES[3:], CANDIDATES[:1], CANDIDATES[1:3][::-1])):
        shard = write(tmp_path / f"{number}.npz", other, given, part, until(between))
        for name in set(shard) - {"candidate", "meta"}:
            axis = 1 if name == "block_delta" else 0
            expected = np.take(whole[name], shard["candidate"], axis=axis)
            if batch == 64 or name == "n_draws":
                assert np.array_equal(shard[name], expected, equal_nan=True), name
            elif name != "var_log1p":  # of sampled counts
                np.testing.assert_allclose(shard[name], expected, atol=2e-5, rtol=1e-5)


def test_a_program_of_the_own_gene_alone_is_passed_over(control):
    alone = np.zeros((1, 12))
    alone[0, 0] = 1.0
    noise = np.random.default_rng(0).normal(size=(2, 2, 12)).astype(np.float32)
    rule = Until(1e-6, tuple(GENE_IDS), alone)
    assert rule.reached("ENSG00", noise)
    assert not rule.reached("ENSG01", noise)
    assert rule.reached("decoy_unseen_0001:ENSG00", noise)


def test_error_of_a_pooled_score_is_no_larger_than_the_largest_of_its_contexts():
    noise = np.random.default_rng(1).normal(size=(4, 3, 12)).astype(np.float32)
    scored = scoring_weights(weights(), 2)
    pooled = score_errors(noise.mean(axis=1, keepdims=True), scored)
    assert (pooled[0] <= score_errors(noise, scored).max(axis=0) + 1e-12).all()


def test_weights_of_another_panel_or_broken_are_refused(screen, tmp_path):
    screening.write_control(tmp_path / "control.npz", screen)
    other = Until(1.0, tuple(GENE_IDS[::-1]), weights())
    with pytest.raises(DataError, match="of another panel; run program-weights again"):
        write(tmp_path / "0.npz", screen, tmp_path / "control.npz", CANDIDATES, other)
    (tmp_path / "weights.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"weights\.npz is no whole file of weights"):
        read_until(tmp_path / "weights.npz", 1.0)
    with pytest.raises(DataError, match="run 'knockscreen program-weights' first"):
        read_until(tmp_path / "none.npz", 1.0)
