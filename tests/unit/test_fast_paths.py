"""Every fast path against the plain one (fixtures.straight), on random networks and cells."""

import itertools
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from fixtures import straight
from fixtures.models import FLOW, tiny_store, training
from knockscreen.config import read_config
from knockscreen.data.cells import CellStore
from knockscreen.models import vae as models
from knockscreen.models.vae import VAE_SIZES, Batch, TransformerVAE, VaeSettings
from knockscreen.models.velocity import FLOW_SIZES, Condition, VelocityNet, VelocitySettings
from knockscreen.nn import linear
from knockscreen.nn.likelihood import nb_log_prob, nb_sum_log_prob
from knockscreen.training import effect, flow, vae

GENES, CELLS = 60, 9
SEEDS = [0, 1, 2]
TINY = VaeSettings(VAE_SIZES["tiny"])


@pytest.fixture(params=["torch", "onednn"])
def maps(request, monkeypatch) -> None:
    """The linear maps of these narrow networks both ways: left to torch, and by oneDNN."""
    if request.param == "onednn":
        monkeypatch.setattr(linear, "WORTH", 0)


def make(seed: int, **changes) -> TransformerVAE:
    """A network of random weights, those that start at zero or one among them."""
    torch.manual_seed(seed)
    model = TransformerVAE(GENES, replace(TINY, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for buffer in model.buffers():
            buffer.add_(0.1 * torch.rand_like(buffer))
    return model


def batch(seed: int, density: float = 0.17) -> Batch:
    """Cells of which one has no count at all and one has them all."""
    generator = torch.Generator().manual_seed(seed)
    there = torch.rand(CELLS, GENES, generator=generator) < density
    counts = there * torch.poisson(torch.full((CELLS, GENES), 3.0), generator=generator).add(1)
    counts[2] = 0
    counts[3] = 1 + there[3].float()
    offset = 0.3 * torch.randn(CELLS, GENES, generator=generator)
    library = 500 + 500 * torch.rand(CELLS, generator=generator)
    return Batch(counts, counts, library, offset)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["softbin", "log1p"])
@pytest.mark.parametrize("linear", [0, 8])
def test_sparse_encoder_is_the_dense_one(seed, kind, linear):
    model, counts = make(seed, input=kind, linear=linear), batch(seed).counts
    assert counts.count_nonzero() < models.DENSE * counts.numel()
    plain, _ = straight.encode(model, counts)
    torch.testing.assert_close(model.encode(counts)[0], plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("density", [0.05, 0.3, 0.9])
def test_encoder_is_the_same_on_both_sides_of_the_density_that_it_changes_at(density):
    model, counts = make(5), batch(5, density).counts
    plain, _ = straight.encode(model, counts)
    torch.testing.assert_close(model.encode(counts)[0], plain, atol=1e-5, rtol=0)


def test_cells_without_any_count_are_encoded_alone_too():
    model, counts = make(2), torch.zeros(2, GENES)
    torch.testing.assert_close(
        model.encode(counts)[0], straight.encode(model, counts)[0], atol=1e-5, rtol=0
    )


def test_table_of_silent_genes_is_made_only_for_enough_cells(monkeypatch):
    model, counts = make(3), batch(3).counts
    assert model.pool_sparse(counts, None) is not None
    monkeypatch.setattr(models, "SILENT", 4 * GENES * 8 * (32 + 2) / len(counts) - 1)
    assert model.pool_sparse(counts, None) is None


@pytest.mark.parametrize("scale", [20.0, 200.0])
def test_sparse_encoder_survives_scores_that_overflow_an_exponential(scale):
    model, counts = make(4), batch(4).counts
    with torch.no_grad():
        model.pool.query.weight.mul_(scale)  # scores of hundreds: one gene takes all the weight
    exact, _ = straight.encode(model.double(), counts.double())
    found, _ = model.float().encode(counts)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found, exact.float(), atol=2e-3, rtol=0)


def test_part_of_the_panel_is_encoded_the_same_sparse_or_dense(monkeypatch):
    model, counts = make(3), batch(3).counts
    index = torch.randperm(GENES, generator=torch.Generator().manual_seed(3))[:40]
    sparse, _ = model.encode(counts[:, index], gene_index=index + 1)
    monkeypatch.setattr(models, "DENSE", 0.0)
    dense, _ = model.encode(counts[:, index], gene_index=index + 1)
    torch.testing.assert_close(sparse, dense, atol=1e-5, rtol=0)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("dispersion", "library"), [("shared", "all"), ("cell", "panel")])
def test_decoder_with_its_last_maps_folded_is_the_plain_one(seed, dispersion, library):
    model, given = make(seed, dispersion=dispersion, library=library), batch(seed)
    z = torch.randn(CELLS, 8, 8, generator=torch.Generator().manual_seed(seed))
    plain = straight.decode(model, z, given.library_size, given.offset)
    mu, theta = model.decode(z, given.library_size, given.offset)
    torch.testing.assert_close(mu, plain.mu, atol=0, rtol=1e-4)
    torch.testing.assert_close(theta.expand_as(mu), plain.theta, atol=0, rtol=1e-4)


@pytest.mark.usefixtures("maps")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dispersion", ["shared", "cell"])
@pytest.mark.parametrize("kind", ["softbin", "log1p"])
def test_loss_and_gradient_are_those_of_the_plain_network(seed, dispersion, kind):
    model, given = make(seed, dispersion=dispersion, input=kind, linear=8), batch(seed)
    gradients = []
    for loss in (model.loss(given)["loss"], straight.vae_loss(model, given)):
        model.zero_grad()
        loss.backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
        gradients[-1]["loss"] = loss.detach()
    for name, plain in gradients[1].items():
        size = max(1.0, float(plain.abs().max()))
        torch.testing.assert_close(gradients[0][name], plain, atol=2e-4 * size, rtol=0, msg=name)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("of_cell", [False, True])
def test_sparse_likelihood_and_its_gradient_are_the_dense_ones(seed, of_cell):
    generator = torch.Generator().manual_seed(seed)
    x = torch.poisson(torch.rand(CELLS, GENES, generator=generator), generator=generator).double()
    mu = (torch.rand(CELLS, GENES, generator=generator) * 4).double().requires_grad_()
    shape = (CELLS, GENES) if of_cell else (GENES,)
    theta = (torch.rand(shape, generator=generator) * 5 + 0.1).double().requires_grad_()
    found = []
    for total in (nb_sum_log_prob(x, mu, theta), nb_log_prob(x, mu, theta).sum()):
        found.append((total, *torch.autograd.grad(total, (mu, theta))))
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain)


def test_likelihood_of_cells_without_a_count_is_finite():
    mu, theta = torch.rand(3, 5), torch.ones(5)
    nothing = torch.zeros(3, 5)
    torch.testing.assert_close(
        nb_sum_log_prob(nothing, mu, theta), nb_log_prob(nothing, mu, theta).sum()
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("thinning", [0.0, 0.3])
def test_parts_of_a_minibatch_add_up_to_it(tmp_path, monkeypatch, seed, thinning):
    store = CellStore.open(tiny_store(tmp_path, seed=seed))
    torch.manual_seed(seed)
    model = TransformerVAE(12, replace(TINY, variational=True))
    loss = vae.make_loss(
        store,
        vae.Offsets(store, None, torch.device("cpu")),
        vae.VaeTraining(0.1, thinning),
        torch.device("cpu"),
    )
    rows, found = np.arange(50), []
    for most in (50, 7):
        monkeypatch.setattr(vae, "cells_in_cache", lambda model, most=most: most)
        model.zero_grad()
        parts = list(loss(model, rows, torch.Generator().manual_seed(seed)))
        assert len(parts) == -(-50 // most)
        sum(part["loss"] for part in parts).backward()
        gradient = {n: p.grad.clone() for n, p in model.named_parameters()}
        totals = {n: sum(part[n].detach() for part in parts) for n in ("loss", "nll", "kl")}
        found.append(gradient | totals)
    for name, whole in found[0].items():
        size = max(1.0, float(whole.abs().max()))
        torch.testing.assert_close(found[1][name], whole, atol=1e-4 * size, rtol=0, msg=name)


def test_parts_are_even_and_cover_the_cells():
    for cells, most in itertools.product((1, 5, 64), (1, 3, 64, 1000)):
        slices = vae.parts(cells, most)
        covered = [i for part in slices for i in range(cells)[part]]
        assert covered == list(range(cells))
        assert max(len(range(cells)[part]) for part in slices) <= most


@pytest.mark.usefixtures("maps")
@pytest.mark.parametrize("seed", SEEDS)
def test_velocity_and_its_gradient_are_the_plain_ones(seed):
    torch.manual_seed(seed)
    net = VelocityNet(VelocitySettings(FLOW_SIZES["tiny"], 4, 8, (2, 3), 5, 6))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    codes = torch.stack([torch.randint(0, 3, (CELLS,)), torch.randint(0, 4, (CELLS,))], dim=1)
    condition = Condition(codes, torch.randint(-1, 6, (CELLS,)), torch.randn(CELLS, 6))
    x, t = torch.randn(CELLS, 4, 8), torch.rand(CELLS)
    found = []
    for v in (net.learned(x, t, condition), straight.learned(net, x, t, condition)):
        net.zero_grad()
        v.square().sum().backward()
        learned = {n: p.grad.clone() for n, p in net.named_parameters() if p.requires_grad}
        found.append({"velocity": v.detach(), **learned})
    for name, plain in found[1].items():
        size = max(1.0, float(plain.abs().max()))
        torch.testing.assert_close(found[0][name], plain, atol=1e-4 * size, rtol=0, msg=name)


def test_long_trainings_are_worth_compiling_by_their_arithmetic_and_the_demo_is_not():
    config = read_config(str(Path(__file__).parents[2] / "config/config.yaml")).flow
    settings = training(steps=config.training.steps, batch_size=config.training.batch_size)
    net = VelocityNet(VelocitySettings(FLOW_SIZES["small"], 17, 16, (4, 3), 100, 32))
    assert config.compile == "auto"
    assert not flow.worth_compiling(net, settings)
    assert flow.worth_compiling(net, replace(settings, steps=20 * settings.steps))


def test_compiled_training_is_the_plain_one(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    store = CellStore.open(tiny_store(tmp_path))
    effects = effect.fit_effects(
        store, features="coexpression", feature_dims=4, rank=2, keep_cells=300
    )
    latents = np.random.default_rng(0).standard_normal((len(store), 8, 8))
    found = []
    for compiling in ("never", "always"):
        model, progress = flow.fit_flow(
            store, latents, FLOW, training(), effects, seed=1, compiling=compiling
        )
        found.append((model.net.state_dict(), progress.history))
    for name, plain in found[0][0].items():
        torch.testing.assert_close(found[1][0][name], plain, msg=name)
    assert [row["loss"] for row in found[1][1]] == pytest.approx(
        [row["loss"] for row in found[0][1]]
    )
