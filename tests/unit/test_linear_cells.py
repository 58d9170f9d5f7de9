"""The linear part of the cells: it finds what cells share, and not what counting adds."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fixtures.models import load_sampler, sampler_settings, tiny_store, train_models, training
from fixtures.shards import write_store
from knockscreen.data.cells import CellStore
from knockscreen.embedding import embed_counts
from knockscreen.errors import CheckpointError
from knockscreen.models.linear_cells import LinearCells, LinearPart
from knockscreen.models.vae import (
    VAE_SIZES,
    Batch,
    TransformerVAE,
    VaeSettings,
    count_parameters,
)
from knockscreen.names import Split
from knockscreen.nn.likelihood import nb_sample
from knockscreen.training import vae
from knockscreen.training.linear_cells import Moments, components, fit_linear
from knockscreen.training.transfer import read_vae

GENES = 12
TINY = VaeSettings(VAE_SIZES["tiny"], linear=8)
ORDER = torch.tensor([4, 0, 10, 7, 11, 1, 9, 2, 8, 3, 6, 5])
LOADINGS = np.array([0.5, 0.5, -0.5, 0.5, *[0.0] * 8])
"""Of the planted factor, natural log of expression: genes 0, 1 and 3 rise together, 2 falls."""
CPU = torch.device("cpu")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def planted(cells: int = 800, loadings=LOADINGS, seed: int = 0):
    """Poisson counts (N, G), half of a library of 2,000 on the panel, and the factor (N,)."""
    rng = np.random.default_rng(seed)
    factor = rng.standard_normal(cells)
    rates = np.exp(np.outer(factor, loadings)) / (2 * GENES)
    return rng.poisson(2000 * rates / (rates.sum(1, keepdims=True) + 0.5)), factor


def reader(counts: np.ndarray):
    """Rows -> a batch of those cells, of libraries of 2,000."""
    table = torch.from_numpy(counts.astype(np.float32))

    def read(rows):
        return Batch(table[rows], table[rows], torch.full((len(rows),), 2000.0))

    return read


FLAT = Moments(torch.tensor([0.5, *([0.5 / GENES] * GENES)]), torch.full((GENES,), 20.0))


def fit(counts: np.ndarray, count: int = 8, seed: int = 0, rest: bool = True):
    rows = np.arange(len(counts))
    return fit_linear(reader(counts), rows, FLAT, count, rest=rest, generator=seeded(seed))


@pytest.fixture(scope="module")
def fitted() -> LinearPart:
    return fit(planted()[0])[0]


def random_part(model: TransformerVAE, seed: int = 5) -> TransformerVAE:
    """Fill the linear part with numbers, no two genes alike."""
    part = model.linear
    g, k = part.linear_in.shape[0] - 1, part.linear_in.shape[1]
    shares = torch.rand(g, generator=seeded(seed))
    part.take(
        LinearPart(
            torch.tensor(40.0),
            torch.cat([torch.zeros(1), shares / shares.sum()]),
            torch.rand(g + 1, generator=seeded(seed + 1)),
            torch.randn(g + 1, k, generator=seeded(seed + 2)),
            0.3 * torch.randn(g + 1, k, generator=seeded(seed + 3)),
        )
    )
    return model


def make(**changes) -> TransformerVAE:
    torch.manual_seed(0)
    return random_part(TransformerVAE(GENES, replace(TINY, **changes)).eval())


def counts(cells: int = 5) -> torch.Tensor:
    return torch.poisson(torch.full((cells, GENES), 3.0), generator=seeded(1))


LIBRARY = torch.tensor([100.0, 200, 300, 400, 500])


def test_components_and_logits_by_hand():
    part = LinearCells(2, 1)
    part.take(
        LinearPart(
            torch.tensor(10.0),
            torch.tensor([0.0, 0.25, 0.75]),
            torch.tensor([0.0, 1.0, 2.0]),
            torch.tensor([[0.0], [2.0], [-1.0]]),
            torch.tensor([[0.5], [1.0], [-1.0]]),
        )
    )
    x = np.log1p([5.0, 5.0])  # (1, 1) brought to a sum of 10
    z = part.encode(torch.tensor([[1.0, 1.0]]))
    assert z.item() == pytest.approx(2 * (x[0] - 1) - (x[1] - 2), rel=1e-5)
    alone = part.encode(torch.tensor([[3.0]]), torch.tensor([2]))  # brought to three quarters of 10
    assert alone.item() == pytest.approx(2 - np.log1p(7.5), rel=1e-5)
    logits = part.decode(torch.tensor([[2.0]]), torch.tensor([0, 2, 1]))
    assert logits.tolist() == [[1.0, -2.0, 2.0]]


def test_latent_has_a_token_more_for_every_eight_components_and_no_parameter():
    model = make()
    assert (model.settings.tokens, model.settings.size.latent_tokens) == (9, 8)
    assert model.encode(counts())[0].shape == (5, 9, 8)
    assert count_parameters(model) == count_parameters(
        TransformerVAE(GENES, replace(TINY, linear=0))
    )
    with pytest.raises(ValueError, match="linear 12 is no multiple of the latent width 8"):
        make(linear=12)


def test_encoding_does_not_depend_on_the_order_of_genes():
    model = make()
    straight, _ = model.encode(counts())
    shuffled, _ = model.encode(counts()[:, ORDER], gene_index=ORDER + 1)
    torch.testing.assert_close(shuffled, straight, atol=1e-4, rtol=1e-4)
    assert straight[:, 8].std(0).min() > 0.1  # the components do say something


@pytest.mark.parametrize("library", ["all", "panel"])
def test_decoding_follows_the_order_of_genes(library):
    model = make(library=library)
    z = torch.randn(5, 9, 8, generator=seeded(2))
    straight = model.decode(z, LIBRARY)
    shuffled = model.decode(z, LIBRARY, gene_index=ORDER + 1)
    torch.testing.assert_close(shuffled.mu, straight.mu[:, ORDER], atol=1e-3, rtol=1e-4)
    part = model.decode(z, LIBRARY, gene_index=ORDER[:3] + 1).mu
    torch.testing.assert_close(
        part / part[:, :1], straight.mu[:, ORDER[:3]] / straight.mu[:, ORDER[:1]]
    )


def test_components_multiply_the_odds_of_a_gene_and_the_transformer_does_not_see_them():
    model = make()
    z = torch.randn(5, 9, 8, generator=seeded(2))
    moved = z.clone()
    moved[:, 8] = torch.randn(5, 8, generator=seeded(3))
    before, after = (model.decode(x, LIBRARY).mu for x in (z, moved))
    change = (moved - z)[:, 8] @ model.linear.linear_out[1:].T
    ratio = (after / before).log()
    torch.testing.assert_close(ratio - ratio[:, :1], change - change[:, :1], atol=1e-4, rtol=1e-4)


def test_halves_of_a_mean_cell_add_up_to_the_whole():
    part = make().linear
    cell = part.shares[None, 1:] * 500
    first, second = torch.arange(1, 6), torch.arange(6, GENES + 1)
    whole = part.encode(cell)
    halves = part.encode(cell[:, :5], first) + part.encode(cell[:, 5:], second)
    torch.testing.assert_close(halves, whole, atol=1e-3, rtol=1e-4)


def test_cell_without_a_count_is_at_the_mean():
    assert not make().linear.encode(torch.zeros(2, GENES)).any()


def test_planted_factor_is_the_first_component(fitted):
    cells, factor = planted(seed=1)  # other cells than those of the fit
    part = LinearCells(GENES, 8)
    part.take(fitted)
    z = part.encode(torch.from_numpy(cells.astype(np.float32))).numpy()
    assert abs(np.corrcoef(z[:, 0], factor)[0, 1]) > 0.9
    slopes = fitted.linear_out[1:, 0].numpy()
    assert abs(np.corrcoef(slopes, LOADINGS)[0, 1]) > 0.98


def test_components_have_unit_variance_mean_zero_and_a_fixed_sign():
    cells, _ = planted()
    rows = np.arange(len(cells))
    scale, shares, mean, weights = components(reader(cells), rows, 4)
    table = torch.from_numpy(cells.astype(np.float32))
    assert scale == table.sum(1).median()
    torch.testing.assert_close(shares, table.sum(0) / table.sum())
    x = torch.log1p(table * (scale / table.sum(1, keepdim=True)))
    z = (x - mean) @ weights
    torch.testing.assert_close(z.mean(0), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.T @ z / len(z), torch.eye(4), atol=1e-3, rtol=0)
    standardised = weights * x.std(0)[:, None]
    assert (standardised.gather(0, standardised.abs().argmax(0, keepdim=True)) > 0).all()


def test_components_that_the_cells_do_not_have_are_zero():
    cells, _ = planted(6)
    cells[:, 7] = 3  # a gene that hardly varies is no harm either
    weights = components(reader(cells), np.arange(6), 16)[3]
    assert weights.shape == (GENES, 16)
    assert weights[:, 0].any()
    assert not weights[:, 6:].any()
    assert weights.isfinite().all()


def test_counting_noise_is_not_taken_for_a_state_of_the_cell(fitted):
    noise, moments = fit(planted(loadings=0 * LOADINGS)[0])
    assert noise.linear_in[1:].std() > 0.1  # there are components: noise has some too
    assert noise.linear_out.std() < 0.02
    assert fitted.linear_out[:, 0].std() > 0.2
    torch.testing.assert_close(moments.shares, FLAT.shares, rtol=0.03, atol=0)


def test_panel_library_leaves_the_rest_out():
    cells, _ = planted(400)
    part, _ = fit(cells, rest=False)
    assert not part.linear_out[0].any()
    assert part.linear_out[1:].any()


def test_fit_is_a_function_of_cells_and_seed(fitted):
    again = fit(planted()[0])[0]
    assert all(torch.equal(a, b) for a, b in zip(again, fitted, strict=True))
    other = fit(planted()[0], seed=1)[0]
    assert torch.equal(other.linear_in, fitted.linear_in)  # nothing is drawn for the components
    assert not torch.equal(other.linear_out, fitted.linear_out)


@pytest.fixture(scope="module")
def correlated(tmp_path_factory) -> CellStore:
    """A store of 600 cells with one factor."""
    cells, _ = planted(600)
    folder = tmp_path_factory.mktemp("linear") / "store"
    split = np.where(np.arange(600) % 6 == 5, 1, 0)
    ids = [f"ENSG{k:02d}" for k in range(GENES)]
    library = np.full(600, 2000)
    names = {"genes": [f"G{k}" for k in range(GENES)], "gene_ids": ids}
    return CellStore.open(write_store(folder, cells, library_size=library, split=split, **names))


@pytest.mark.parametrize(("linear", "low", "high"), [(8, 0.6, 1.0), (0, -0.2, 0.2)])
def test_generated_cells_have_the_planted_correlation_which_the_network_alone_lacks(
    correlated, linear, low, high
):
    torch.manual_seed(0)
    model = TransformerVAE(GENES, replace(TINY, linear=linear))
    rows = correlated.rows(Split.TRAIN)
    vae.prepare(model, correlated, rows, vae.Offsets(correlated, None, CPU), seed=0)
    table = torch.from_numpy(correlated.dense(rows))
    with torch.no_grad():
        z, _ = model.encode(table)
        made = model.decode(z, torch.full((len(rows),), 2000.0))
        cells = nb_sample(made.mu, made.theta, seeded(1))
    real, ours = (np.corrcoef(np.log1p(x.numpy()).T) for x in (table, cells))
    assert real[0, 1] > 0.8
    assert low < ours[0, 1] < high
    assert low < -ours[0, 2] < high
    assert abs(ours[5, 8] - real[5, 8]) < 0.2


def test_new_model_is_its_linear_part_alone_and_predicts_the_means_of_the_cells(correlated):
    torch.manual_seed(0)
    model = TransformerVAE(GENES, TINY)
    rows = correlated.rows(Split.TRAIN)
    vae.prepare(model, correlated, rows, vae.Offsets(correlated, None, CPU), seed=0)
    table = torch.from_numpy(correlated.dense(rows))
    with torch.no_grad():
        made = model.decode(model.encode(table)[0], torch.full((len(rows),), 2000.0)).mu
    torch.testing.assert_close(made.mean(0), table.mean(0), rtol=0.03, atol=0)
    part = model.linear.decode(model.linear.encode(table), torch.arange(GENES + 1))
    bias = model.gene_table.weight @ model.head.weight[0]
    alone = torch.softmax(part + bias, dim=1)[:, 1:] * 2000
    torch.testing.assert_close(made, alone, rtol=1e-4, atol=1e-3)  # the network is silent yet


def test_resumed_training_is_the_one_that_was_never_interrupted(correlated, tmp_path, monkeypatch):
    whole, _ = vae.fit_vae(correlated, TINY, training(), seed=1)
    true_loss = TransformerVAE.loss

    def stops(model, *args, **kwargs):
        if model.training and (tmp_path / "last.safetensors").is_file():
            raise KeyboardInterrupt
        return true_loss(model, *args, **kwargs)

    monkeypatch.setattr(TransformerVAE, "loss", stops)
    with pytest.raises(KeyboardInterrupt):
        vae.fit_vae(correlated, TINY, training(), seed=1, resume_dir=tmp_path)
    monkeypatch.setattr(TransformerVAE, "loss", true_loss)
    again, progress = vae.fit_vae(correlated, TINY, training(), seed=1, resume_dir=tmp_path)
    assert progress.step == 6
    state = again.state_dict()
    assert {"linear.linear_in", "linear.mean", "linear.scale"} <= set(state)
    assert all(torch.equal(state[name], value) for name, value in whole.state_dict().items())


def test_linear_part_is_not_trained_with_the_network(correlated):
    torch.manual_seed(1)
    model = TransformerVAE(GENES, TINY)
    rows = correlated.rows(Split.TRAIN)
    vae.prepare(model, correlated, rows, vae.Offsets(correlated, None, CPU), seed=1)
    trained, _ = vae.fit_vae(correlated, TINY, training(), seed=1)
    before, after = model.state_dict(), trained.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before if n.startswith("linear."))
    assert not torch.equal(before["head.weight"], after["head.weight"])


@pytest.mark.parametrize("changes", [{}, {"dispersion": "cell", "variational": True}])
def test_variational_noise_is_of_the_transformer_alone(changes):
    model = make(**changes)
    batch = Batch(counts(), counts(), LIBRARY)
    noise = torch.randn(5, 8, 8, generator=seeded(4))
    losses = model.loss(batch, kl_weight=0.1, noise=noise)
    losses["loss"].backward()
    assert losses["nll"].isfinite()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_start_from_other_cells_keeps_the_network_and_refits_the_linear_part(correlated, tmp_path):
    other = make()
    path = tmp_path / "vae.safetensors"
    vae.save_vae(path, other, correlated, {})
    start = read_vae(path, correlated.vocabulary, TINY)
    still = training(learning_rate=1e-12, steps=3)
    model, _ = vae.fit_vae(correlated, TINY, still, seed=1, start=start)
    fresh, _ = vae.fit_vae(correlated, TINY, still, seed=1)
    assert torch.equal(model.linear.linear_out, fresh.linear.linear_out)
    torch.testing.assert_close(model.pool.query.weight, other.pool.query.weight)
    torch.testing.assert_close(model.log_theta.weight[1:], fresh.log_theta.weight[1:])
    assert "; the linear part of the cells is fitted anew; " in start.report


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("with_linear")
    return train_models(CellStore.open(tiny_store(folder / "store")), folder, linear=8)


def test_components_of_half_of_the_genes_are_those_of_all_and_not_half_of_them(correlated):
    torch.manual_seed(0)
    model = TransformerVAE(GENES, TINY).eval()
    rows = correlated.rows(Split.TRAIN)
    vae.prepare(model, correlated, rows, vae.Offsets(correlated, None, CPU), seed=0)
    cells = correlated.dense(rows)
    some = np.array([0, 2, 4, 5, 6, 7])  # half of the genes of the factor, and of the others
    first = model.settings.size.latent_tokens * model.settings.size.latent_dim
    whole = embed_counts(model, cells, np.arange(GENES))[:, first]
    filled = embed_counts(model, cells[:, some], some)[:, first]
    left_out = model.linear.encode(torch.from_numpy(cells[:, some]), torch.from_numpy(some + 1))
    assert np.polyfit(whole, left_out[:, 0].numpy(), 1)[0] < 0.65
    assert 0.75 < np.polyfit(whole, filled, 1)[0] < 1.25
    assert np.corrcoef(whole, filled)[0, 1] > 0.85


def test_generated_latents_have_the_components_too(models):
    sampler = load_sampler(models)
    name = sampler.model.vocabulary.contexts[0]
    noise, library = sampler.noise(name, range(4))
    z = sampler.latents(sampler.target("ENSG01"), [name] * 4, noise)
    assert z.shape == (4, 9, 8)
    decoded = sampler.decode(z, library, sampler.target("ENSG01"), [name] * 4)
    assert decoded.mu.isfinite().all()


def test_flow_and_vae_of_different_trainings_are_refused(models, trained):
    from knockscreen import screening

    paths = [trained / "vae.safetensors", models / "flow.safetensors"]
    sentence = r"flow\.safetensors makes latents of 9 x 8 and .*vae\.safetensors reads 8 x 8"
    with pytest.raises(CheckpointError, match=sentence):
        screening.load_sampler(*paths, models / "effect.safetensors", sampler_settings(), CPU)


def test_cells_with_some_of_the_genes_can_be_embedded(models):
    model, _ = vae.load_vae(models / "vae.safetensors")
    store = CellStore.open(models / "store")
    cells = store.dense(np.arange(200))
    whole = embed_counts(model, cells, np.arange(GENES))
    most = embed_counts(model, cells[:, :10], np.arange(10))
    assert most.shape == whole.shape == (200, 72)
    assert np.isfinite(most).all()
    assert np.corrcoef(whole[:, 64], most[:, 64])[0, 1] > 0.7  # the first component
