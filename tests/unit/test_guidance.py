"""Guidance acts on the knock-down alone: on a flow trained on planted latents, and in its training.

The reference's guidance could not: its unconditional half was conditional, it read the weight of
one condition only, and its conditions were dropped together.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fixtures.models import CONTEXTS, FLOW, sampler_settings, training
from knockscreen.data.cells import CellStore
from knockscreen.models.velocity import Condition
from knockscreen.names import NTC
from knockscreen.sampling import Guidance, Sampler
from knockscreen.training.effect import load_effects
from knockscreen.training.flow import FlowLoss, fit_flow
from knockscreen.training.vae import load_vae

SHIFT = {"context": (0, 1.0), "knockdown": (1, 1.0)}
"""Latent dimension that each condition moves, and by how much between its two levels."""


@pytest.fixture(scope="module")
def planted(trained) -> Sampler:
    """A sampler whose flow was trained on latents (8, 8): one dimension per condition."""
    store = CellStore.open(trained / "store")
    rng = np.random.default_rng(0)
    latents = rng.normal(0, 0.5, (len(store), 8, 8))
    latents[..., 0] += np.asarray(store.contexts)[:, :1]
    latents[..., 1] += (np.asarray(store.target) == 1)[:, None]
    effects = load_effects(trained / "effect.safetensors")
    long = training(steps=160, batch_size=64, learning_rate=5e-3, ema_decay=0.95, validate_every=80)
    model, _ = fit_flow(store, latents, FLOW, long, effects, seed=1)
    vae, _ = load_vae(trained / "vae.safetensors")
    return Sampler(vae, model, effects, sampler_settings(steps=8))


def moved(sampler: Sampler, guidance: Guidance) -> dict[str, float]:
    """How far ENSG00's knock-down and the other donor move the dimension planted for them."""
    guided = sampler.changed(guidance=guidance)
    noise, _ = guided.noise(CONTEXTS[0], range(32))
    down, control = guided.target("ENSG00"), guided.target(NTC)
    here, there = ([name] * 32 for name in CONTEXTS)
    z = {
        "down": guided.latents(down, here, noise),
        "control": guided.latents(control, here, noise),
        "other": guided.latents(control, there, noise),
    }
    return {
        "knockdown": float((z["down"] - z["control"])[..., 1].mean()),
        "context": float((z["other"] - z["control"])[..., 0].mean()),
    }


def test_without_guidance_the_planted_effects_are_generated(planted):
    found = moved(planted, Guidance())
    assert found["knockdown"] == pytest.approx(1.0, abs=0.35)
    assert found["context"] == pytest.approx(1.0, abs=0.35)


def test_the_weight_of_the_knockdown_moves_its_effect_and_not_the_context(planted):
    none, strong = (moved(planted, Guidance("nested", 1.0, w)) for w in (1.0, 2.0))
    assert strong["knockdown"] > 1.3 * none["knockdown"]
    assert strong["context"] == pytest.approx(none["context"], rel=0.15)


def test_the_weight_of_the_context_moves_the_context_and_not_the_effect(planted):
    none, strong = (moved(planted, Guidance("nested", w, 1.0)) for w in (1.0, 2.0))
    assert strong["context"] > 1.3 * none["context"]
    assert strong["knockdown"] == pytest.approx(none["knockdown"], rel=0.15)


def test_weight_zero_takes_the_knockdown_away(planted):
    assert abs(moved(planted, Guidance("nested", 1.0, 0.0))["knockdown"]) < 1e-5


def test_weight_one_of_every_strategy_that_has_it_is_the_conditional_flow_bit_for_bit(planted):
    net, rows = planted.model.net, torch.arange(6)
    condition = Condition(torch.stack([rows % 2, 0 * rows], 1), rows % 4, None)
    condition = replace(condition, features=torch.randn(6, planted.width))
    x, t = torch.randn(6, 8, 8), torch.linspace(0, 1, 6)
    with torch.no_grad():
        expected = net(x, t, condition)
        for strategy in ("nested", "joint"):
            changed = planted.changed(guidance=Guidance(strategy, 1.0, 1.0))
            assert torch.equal(changed.velocity(condition)(x, t), expected)


@pytest.mark.parametrize("features", [True, False])
@pytest.mark.parametrize("strategy", ["nested", "joint", "additive"])
def test_terms_in_one_pass_are_the_terms_one_by_one(planted, strategy, features):
    net, rows = planted.model.net, torch.arange(6)
    given = torch.randn(6, planted.width) if features else None
    full = Condition(torch.stack([rows % 2, 0 * rows], 1), rows % 4, given)
    x, t = torch.randn(6, 8, 8), torch.linspace(0, 1, 6)
    levels = torch.tensor(net.settings.levels).expand(6, -1)
    none = torch.full((6,), net.null_target())
    zero = None if given is None else torch.zeros_like(given)
    with torch.no_grad():
        v0, vc = (
            net(x, t, Condition(levels, none, zero)),
            net(x, t, Condition(full.contexts, none, zero)),
        )
        vp, vf = net(x, t, Condition(levels, full.target, given)), net(x, t, full)
        found = planted.changed(guidance=Guidance(strategy, 1.5, 2.5)).velocity(full)(x, t)
    expected = {
        "nested": v0 + 1.5 * (vc - v0) + 2.5 * (vf - vc),
        "joint": v0 + 2.5 * (vf - v0),
        "additive": v0 + 1.5 * (vc - v0) + 2.5 * (vp - v0),
    }
    torch.testing.assert_close(found, expected[strategy], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("guidance", "passes"),
    [
        (Guidance("nested", 1.0, 1.0), 1),
        (Guidance("joint", 1.0, 1.0), 1),
        (Guidance("nested", 1.0, 2.0), 2),
        (Guidance("nested", 2.0, 2.0), 2),
        (Guidance("nested", 2.0, 1.0), 3),
        (Guidance("joint", 2.0, 2.0), 2),
        (Guidance("additive", 1.0, 1.0), 3),
    ],
)
def test_no_pass_of_weight_zero_is_paid_for(planted, guidance, passes):
    rows = []
    hook = planted.model.net.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    noise, _ = planted.noise(CONTEXTS[0], range(2))
    euler = planted.changed(guidance=guidance, solver="euler", steps=1)
    euler.latents(euler.target("ENSG00"), CONTEXTS[:1] * 2, noise)
    hook.remove()
    assert rows == [2 * passes], "all terms in one pass of the network"


class Spy:
    """In the network's place: keeps the condition of every row."""

    def __init__(self, net):
        self.settings, self.null_target = net.settings, net.null_target

    def __call__(self, x, t, condition):
        self.seen = condition
        return torch.zeros_like(x)


def test_conditions_are_dropped_independently_so_each_is_learned_without_the_other(planted):
    spy, n = Spy(planted.model.net), 20_000
    settings = replace(FLOW, condition_dropout=0.3, target_dropout=0.0)
    contexts, target = torch.zeros(1, 2, dtype=torch.int64), torch.ones(1, dtype=torch.int64)
    features = torch.ones(5, planted.width)
    loss = FlowLoss(torch.zeros(1, 1, 1), contexts, target, features, settings)
    list(loss(spy, np.zeros(n, dtype=np.int64), torch.Generator().manual_seed(0)))
    donor = spy.seen.contexts[:, 0] == spy.settings.levels[0]
    time = spy.seen.contexts[:, 1] == spy.settings.levels[1]
    target = spy.seen.target == spy.null_target()
    shares = {
        "knock-down alone": (target & ~donor & ~time, 0.3 * 0.7 * 0.7),
        "context alone": (~target & donor & time, 0.7 * 0.3 * 0.3),
        "one factor alone": (~target & donor & ~time, 0.7 * 0.3 * 0.7),
        "all": (target & donor & time, 0.3**3),
    }
    for what, (rows, expected) in shares.items():
        assert rows.float().mean() == pytest.approx(expected, abs=0.015), what
    assert (spy.seen.features[target] == 0).all(), "a blank target has no features either"
    assert (spy.seen.features[~target] == 1).all()
