"""The VAE: sizes, symmetries of its gene sets, and its loss."""

import math
from dataclasses import replace

import pytest
import torch

from knockscreen.models.vae import (
    VAE_SIZES,
    Batch,
    TransformerVAE,
    VaeSettings,
    count_parameters,
    remove_offset,
)
from knockscreen.nn.likelihood import nb_log_prob

GENES = 11
TINY = VaeSettings(VAE_SIZES["tiny"])
ORDER = torch.tensor([4, 0, 10, 7, 1, 9, 2, 8, 3, 6, 5])


def make(seed: int = 0, **changes) -> TransformerVAE:
    torch.manual_seed(seed)
    return TransformerVAE(GENES, replace(TINY, **changes)).eval()


def counts(cells: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.poisson(torch.full((cells, GENES), 3.0), generator=generator)


def latents(cells: int = 5) -> torch.Tensor:
    return torch.randn(cells, 8, 8, generator=torch.Generator().manual_seed(2))


LIBRARY = torch.tensor([100.0, 200, 300, 400, 500])


def test_released_size_has_as_many_parameters_as_the_reference():
    with torch.device("meta"):
        model = TransformerVAE(3699, VaeSettings(VAE_SIZES["cd4"]))
    assert count_parameters(model) == 15_221_887


@pytest.mark.parametrize("kind", ["softbin", "log1p"])
def test_encoding_does_not_depend_on_the_order_of_genes(kind):
    model = make(input=kind)
    straight, _ = model.encode(counts())
    shuffled, _ = model.encode(counts()[:, ORDER], gene_index=ORDER + 1)
    torch.testing.assert_close(shuffled, straight, atol=1e-5, rtol=0)


def test_encoding_depends_on_which_gene_has_which_count():
    model = make()
    straight, _ = model.encode(counts())
    assert (model.encode(counts()[:, ORDER])[0] - straight).abs().max() > 1e-2


@pytest.mark.parametrize("dispersion", ["shared", "cell"])
@pytest.mark.parametrize("library", ["all", "panel"])
def test_decoding_follows_the_order_of_genes(dispersion, library):
    model = make(dispersion=dispersion, library=library)
    offset = torch.randn(5, GENES, generator=torch.Generator().manual_seed(3))
    straight = model.decode(latents(), LIBRARY, offset)
    shuffled = model.decode(latents(), LIBRARY, offset[:, ORDER], gene_index=ORDER + 1)
    torch.testing.assert_close(shuffled.mu, straight.mu[:, ORDER], atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(shuffled.theta, straight.theta[..., ORDER], atol=0, rtol=1e-5)


@pytest.mark.parametrize("library", ["all", "panel"])
def test_some_genes_can_be_queried_alone_and_keep_their_proportions(library):
    model = make(library=library)
    whole = model.decode(latents(), LIBRARY).mu
    part = model.decode(latents(), LIBRARY, gene_index=ORDER[:3] + 1).mu
    torch.testing.assert_close(part / part[:, :1], (whole / whole[:, 4:5])[:, ORDER[:3]])
    shared_out = part.sum(1) / LIBRARY
    if library == "panel":  # the softmax runs over the queried genes alone
        torch.testing.assert_close(shared_out, torch.ones(5))
    else:  # the token for all other genes keeps its part
        assert (shared_out < 0.999).all()


def test_means_of_the_panel_add_up_to_less_than_a_library_over_all_genes():
    total = make().decode(latents(), LIBRARY).mu.sum(1)
    assert (total < LIBRARY).all()
    torch.testing.assert_close(make(library="panel").decode(latents(), LIBRARY).mu.sum(1), LIBRARY)


@pytest.mark.parametrize("library", ["all", "panel"])
def test_offset_multiplies_the_odds_of_a_gene(library):
    model = make(library=library)
    before = model.decode(latents(), LIBRARY).mu / LIBRARY[:, None]
    offset = torch.zeros(5, GENES)
    offset[:, 3] = math.log(2)
    after = model.decode(latents(), LIBRARY, offset).mu / LIBRARY[:, None]
    gene, others = before[:, 3], [0, 1, 2, *range(4, GENES)]
    torch.testing.assert_close(after[:, 3], 2 * gene / (1 + gene))
    torch.testing.assert_close(after[:, others], before[:, others] / (1 + gene)[:, None])


def test_a_zero_count_says_nothing_as_log1p_and_something_as_softbin():
    zeros = torch.zeros(2, GENES)
    assert (make(input="log1p").tokens(zeros) == 0).all()
    assert (make(input="softbin").tokens(zeros).abs().sum(-1) > 0).all()


def test_dispersion_is_per_gene_or_per_cell():
    shared = make(dispersion="shared").decode(latents(), LIBRARY).theta
    each = make(dispersion="cell").decode(latents(), LIBRARY).theta
    assert shared.shape == (GENES,)
    assert each.shape == (5, GENES)
    assert (each.std(0) > 0).all()


def test_unknown_input_and_uneven_heads_are_refused():
    with pytest.raises(ValueError, match="vae input 'bins' is neither softbin nor log1p"):
        make(input="bins")
    with pytest.raises(ValueError, match="width 32 is not a multiple of the heads 5 and 2"):
        make(size=replace(TINY.size, self_heads=5))


def test_latents_are_normalised_per_token():
    mean, log_variance = make().encode(counts())
    assert log_variance is None
    torch.testing.assert_close(mean.mean(-1), torch.zeros(5, 8), atol=1e-5, rtol=0)
    torch.testing.assert_close(mean.square().mean(-1), torch.ones(5, 8), atol=1e-4, rtol=0)


def test_loss_is_the_negative_log_likelihood_of_the_decoded_counts():
    model = make()
    loss = model.loss(Batch(counts(), counts(), LIBRARY), kl_weight=1.0)
    mu, theta = model.decode(model.encode(counts())[0], LIBRARY)
    torch.testing.assert_close(loss["loss"], -nb_log_prob(counts(), mu, theta).sum(1).mean())
    assert loss["kl"] == 0


def test_variational_loss_adds_the_weighted_divergence_from_a_standard_normal():
    model = make(variational=True)
    torch.nn.init.zeros_(model.to_log_variance.weight)  # log variance -4 everywhere
    batch = Batch(counts(), counts(), LIBRARY)
    loss = model.loss(batch, kl_weight=0.1, noise=latents())
    closed_form = 0.5 * 8 * 8 * (1 + math.exp(-4) - 1 + 4)  # means have unit square on average
    torch.testing.assert_close(loss["kl"].item(), closed_form, rtol=1e-4, atol=0)
    torch.testing.assert_close(loss["loss"], loss["nll"] + 0.1 * loss["kl"])
    assert loss["nll"] != model.loss(batch, kl_weight=0.1, noise=-latents())["nll"]


@pytest.mark.parametrize("changes", [{}, {"dispersion": "cell", "variational": True}])
def test_every_parameter_learns(changes):
    model = make(**changes)
    model.loss(Batch(counts(), counts(), LIBRARY), kl_weight=0.1, noise=latents())[
        "loss"
    ].backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_new_model_predicts_the_mean_shares_it_is_given():
    model = make(dispersion="cell")
    shares = torch.tensor([0.5, *([0.04] * 5), *([0.05] * 6)])
    model.start_from_moments(shares, torch.ones(11))
    now = model.gene_table.weight @ model.head.weight[0]
    torch.testing.assert_close(now - now[0], (shares / shares[0]).log(), atol=1e-5, rtol=1e-5)


def test_new_model_has_the_shared_dispersion_it_is_given():
    model = make()
    theta = torch.linspace(0.1, 9, 11)
    model.start_from_moments(torch.full((12,), 1 / 12), theta)
    z = torch.zeros(1, model.settings.size.latent_tokens, model.settings.size.latent_dim)
    torch.testing.assert_close(model.decode(z, torch.tensor([100.0])).theta, theta)


def test_removing_an_offset_undoes_it_up_to_a_limit():
    offset = torch.tensor([[math.log(0.5), -9.0, math.log(4.0)]])
    shown = remove_offset(torch.tensor([[2.0, 1.0, 8.0]]), offset)
    torch.testing.assert_close(shown, torch.tensor([[4.0, math.exp(2.0), 2.0]]))
