"""The transformer VAE: counts -> latent tokens -> negative-binomial counts.

A cell is a set of gene-count tokens. An MCAB pools them into L learned latent tokens (invariant to
gene order), self-attention blocks refine them, a projection gives the latent z (B, L, D). The
decoder un-pools with gene embeddings as queries (equivariant), one table shared with the encoder.
After scLDM (arXiv 2511.02986); sizes and counts in ``VAE_SIZES``. With a linear part, the last
tokens are components of the cells, which the transformers neither make nor see
(:mod:`knockscreen.models.linear_cells`). Shapes: B cells, G genes, L latent tokens, T of them the
transformer's, D latent width, E width.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from knockscreen.models.linear_cells import LinearCells
from knockscreen.nn.blocks import Block, CrossAttentionBlock, layer_norm
from knockscreen.nn.likelihood import nb_sum_log_prob
from knockscreen.nn.linear import Linear
from knockscreen.nn.sparse import attend_sparse, expressed

BINS = 10
BIN_HIDDEN = 64
DENSE = 0.5
"""Share of counts above zero from which a cell's tokens are all made, as they are on a GPU."""
SILENT = 4 * 2**20
"""Bytes per cell that the table of silent genes may take: it is made once for all cells."""


@dataclass(frozen=True)
class VaeSize:
    """The numbers that make a named size."""

    width: int
    layers: int
    self_heads: int
    cross_heads: int
    latent_tokens: int
    latent_dim: int


VAE_SIZES = {
    "tiny": VaeSize(32, 1, 2, 2, 8, 8),
    "small": VaeSize(64, 2, 4, 4, 16, 16),
    "base": VaeSize(128, 4, 4, 4, 64, 16),
    "cd4": VaeSize(256, 8, 4, 4, 256, 16),
}


@dataclass(frozen=True)
class VaeSettings:
    """What the network is; enough, with the gene order, to rebuild it."""

    size: VaeSize
    input: str = "softbin"
    dispersion: str = "shared"
    library: str = "all"
    variational: bool = False
    linear: int = 0
    """Components of the linear part of the cells, a multiple of the latent width."""

    @property
    def tokens(self) -> int:
        """Latent tokens of a cell: the transformer's, and those of the linear part."""
        return self.size.latent_tokens + self.linear // self.size.latent_dim


class Batch(NamedTuple):
    """The cells of one training step."""

    counts: Tensor
    """(B, G) counts shown to the encoder."""
    target: Tensor
    """(B, G) counts to predict, the same without thinning."""
    library_size: Tensor
    """(B,) library size of ``target``."""
    offset: Tensor | None = None
    """(B, G) linear part of each cell's knock-down."""

    def part(self, cells: slice) -> "Batch":
        """Return the batch of some of its cells."""
        offset = None if self.offset is None else self.offset[cells]
        counts, target, library_size = (x[cells] for x in self[:3])
        return Batch(counts, target, library_size, offset)


class Decoded(NamedTuple):
    """NB parameters of the panel genes."""

    mu: Tensor
    """(B, G) mean counts."""
    theta: Tensor
    """(G,) or (B, G) inverse dispersion."""


class SoftBin(nn.Module):
    """A count as a mixture of ten learned vectors: ``softmax(W2 SiLU(W1 x + b1) + b2) @ bins``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(1, BIN_HIDDEN)
        self.outer = nn.Linear(BIN_HIDDEN, BINS)
        self.bins = nn.Parameter(torch.randn(BINS, width))

    def forward(self, x: Tensor) -> Tensor:
        """Map counts (..., 1) to (..., E)."""
        hidden = F.silu(self.inner(x)).flatten(0, -2)  # (n, 64)
        logits = self.outer.weight @ hidden.T + self.outer.bias[:, None]
        weights = torch.softmax(logits, dim=0)  # (10, n): far quicker this way round
        mixed: Tensor = weights.T @ self.bins  # (n, E)
        return mixed.view(*x.shape[:-1], mixed.shape[1])


class TransformerVAE(nn.Module):
    """Counts in, latent tokens, NB parameters out.

    Row 0 of the gene table is the mask token of the reference; here it stands for "every other
    gene", so that library sizes over all genes keep their meaning on a panel.
    """

    def __init__(self, genes: int, settings: VaeSettings) -> None:
        super().__init__()
        size = settings.size
        if size.width % size.self_heads or size.width % size.cross_heads:
            heads = f"{size.self_heads} and {size.cross_heads}"
            msg = f"width {size.width} is not a multiple of the heads {heads}"
            raise ValueError(msg)
        if settings.linear % size.latent_dim:
            msg = f"linear {settings.linear} is no multiple of the latent width {size.latent_dim}"
            raise ValueError(msg)
        self.genes = genes
        self.settings = settings
        width, dim = size.width, size.latent_dim
        self.gene_table = nn.Embedding(genes + 1, width)
        if settings.input == "softbin":
            self.count_input: nn.Module | None = SoftBin(width)
        elif settings.input == "log1p":
            self.count_input = None
        else:
            msg = f"vae input '{settings.input}' is neither softbin nor log1p"
            raise ValueError(msg)
        self.inducing = nn.Parameter(torch.randn(size.latent_tokens, width))
        self.pool = CrossAttentionBlock(width, size.cross_heads)
        self.encoder = nn.ModuleList(Block(width, size.self_heads) for _ in range(size.layers))
        self.to_latent = Linear(width, dim, bias=False)
        self.to_log_variance = Linear(width, dim) if settings.variational else None
        self.latent_norm = layer_norm(dim, affine=False)
        self.from_latent = Linear(dim, width, bias=False)
        self.decoder = nn.ModuleList(Block(width, size.self_heads) for _ in range(size.layers))
        self.unpool = CrossAttentionBlock(width, size.cross_heads)
        shared = settings.dispersion == "shared"
        self.head = Linear(width, 1 if shared else 2)
        self.log_theta = nn.Embedding(genes + 1, 1) if shared else None
        self.linear = LinearCells(genes, settings.linear) if settings.linear else None
        self._init_weights()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.gene_table.weight, std=0.5)
        nn.init.normal_(self.inducing, std=1.0)
        if self.log_theta is not None:
            nn.init.ones_(self.log_theta.weight)
        if self.to_log_variance is not None:
            nn.init.constant_(self.to_log_variance.bias, -4.0)

    @torch.no_grad()
    def start_from_moments(self, shares: Tensor, theta: Tensor) -> None:
        """Make the new head predict ``shares`` (G + 1,), rest first, and ``theta`` (G,).

        Where the dispersion is of each cell, it is left to training.
        """
        if self.log_theta is not None:
            self.log_theta.weight[1:, 0] = torch.log(theta)
        direction = self.head.weight[0]
        wanted = torch.log(shares.clamp_min(1e-7)).to(direction)
        wanted = wanted - wanted.mean()
        now = self.gene_table.weight @ direction
        self.gene_table.weight += torch.outer(wanted - now, direction) / direction.square().sum()

    @torch.no_grad()
    def start_silent(self) -> None:
        """Make the decoder's network add nothing at first: the logits are the gene table's alone.

        As adaLN-Zero does it, by zero outputs of the last block; training finds its way from there.
        """
        self.unpool.out.weight.zero_()
        self.unpool.mlp.out.weight.zero_()

    def tokens(self, counts: Tensor, gene_index: Tensor | None = None) -> Tensor:
        """Return gene-count tokens (B, G, E); rows ``gene_index`` (G,) of the table start at 1."""
        table = self.gene_table.weight[1:] if gene_index is None else self.gene_table(gene_index)
        if self.count_input is None:
            return table[None] * torch.log1p(counts)[..., None]  # (B, G, E)
        added: Tensor = self.count_input(counts[..., None])
        return table[None] + added

    def pool_sparse(self, counts: Tensor, gene_index: Tensor | None) -> Tensor | None:
        """Return ``pool`` of ``tokens(counts)`` (B, T, E), with tokens of expressed genes alone.

        None where that is slower (many genes are expressed; few cells; on a GPU) or not exact.
        """
        size = self.settings.size
        of_silent = 4 * counts.shape[1] * size.latent_tokens * (size.width + size.cross_heads)
        dense = counts.count_nonzero() >= DENSE * counts.numel()
        if counts.device.type != "cpu" or dense or of_silent > SILENT * len(counts):
            return None
        table = self.gene_table.weight[1:] if gene_index is None else self.gene_table(gene_index)
        where = expressed(counts)
        value = counts[where.cell, where.gene][:, None]  # (n, 1)
        own = F.embedding(where.gene, table)  # (n, E)
        if self.count_input is None:
            tokens, silent = own * torch.log1p(value), torch.zeros_like(table)
        else:
            tokens = own + self.count_input(value)
            silent = table + self.count_input(value.new_zeros(1, 1))
        y = attend_sparse(self.pool, self.inducing, tokens, silent, where)
        return None if y is None else self.pool.finish(y)

    def encode(
        self, counts: Tensor, gene_index: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the latent mean (B, L, D), and its log variance (B, T, D) for a variational model.

        The components of a linear part are as they are: unit variance over cells, no norm.

        Parameters
        ----------
        counts
            (B, G) raw counts.
        gene_index
            (G,) row of each column in the gene table; default: the panel in order, 1..G.
        """
        x = self.pool_sparse(counts, gene_index)
        if x is None:
            x = self.pool(self.inducing, self.tokens(counts, gene_index))  # (B, T, E)
        for block in self.encoder:
            x = block(x)
        mean = self.latent_norm(self.to_latent(x))  # (B, T, D)
        if self.linear is not None:
            components = self.linear.encode(counts, gene_index)  # (B, K)
            shape = len(components), -1, mean.shape[2]
            mean = torch.cat([mean.float(), components.reshape(shape)], dim=1)  # (B, L, D)
        if self.to_log_variance is None:
            return mean, None
        return mean, self.to_log_variance(x).clamp(-12, 4)

    def decode(
        self,
        z: Tensor,
        library_size: Tensor,
        offset: Tensor | None = None,
        gene_index: Tensor | None = None,
    ) -> Decoded:
        """Return NB parameters for latents z (B, L, D) at library sizes (B,).

        The mean of gene g is ``library_size * softmax(logits + offset)_g``, over the panel and,
        where the library is counted over all genes, the token that stands for the rest.

        Parameters
        ----------
        offset
            (B, G) linear part of a knock-down, natural log of expression: odds against every other
            token are multiplied by e^offset.
        gene_index
            (G,) rows of the gene table to decode; default: the panel in order, 1..G. The softmax
            runs over the queried genes only (and the rest where the library is over all genes),
            so means of a part of the panel share out the library size among that part.
        """
        own = self.settings.size.latent_tokens
        x = self.from_latent(self.latent_norm(z[:, :own]))  # (B, T, E)
        for block in self.decoder:
            x = block(x)
        first = 0 if self.settings.library == "all" else 1
        if gene_index is None:
            index = torch.arange(first, self.genes + 1, device=z.device)
        else:
            rest = gene_index.new_zeros(1 - first)
            index = torch.cat([rest, gene_index])
        out = self.unpool.read(self.gene_table(index), x, self.head)  # (B, G', 1 or 2)
        logits = out[..., 0].float()
        if self.linear is not None:
            logits = logits + self.linear.decode(z[:, own:].flatten(1), index)
        if offset is not None:
            logits = logits + F.pad(offset, (1 - first, 0))
        share = torch.softmax(logits, dim=-1)[:, 1 - first :]  # (B, G)
        if self.log_theta is not None:
            theta = self.log_theta(index[1 - first :])[:, 0].float().exp()  # (G,)
        else:
            theta = out[:, 1 - first :, 1].float().clamp(-6, 8).exp()  # (B, G)
        return Decoded(share * library_size[:, None], theta)

    def loss(
        self, batch: Batch, *, kl_weight: float = 0.0, noise: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the mean over cells of the NB negative log-likelihood and of the KL term.

        Parameters
        ----------
        noise
            (B, T, D) standard normal for the variational model; without it the mean is decoded.
        """
        mean, log_variance = self.encode(remove_offset(batch.counts, batch.offset))
        z = mean
        kl = mean.new_zeros(())
        if log_variance is not None:
            tokens = self.settings.size.latent_tokens
            own, components = mean[:, :tokens], mean[:, tokens:]
            if noise is not None:
                z = torch.cat([own + noise * (0.5 * log_variance).exp(), components], dim=1)
            kl = 0.5 * (own.square() + log_variance.exp() - 1 - log_variance).sum((1, 2)).mean()
        decoded = self.decode(z, batch.library_size, batch.offset)
        nll = -nb_sum_log_prob(batch.target, decoded.mu, decoded.theta) / len(mean)
        return {"loss": nll + kl_weight * kl, "nll": nll, "kl": kl}


def remove_offset(counts: Tensor, offset: Tensor | None, most: float = 2.0) -> Tensor:
    """Return counts (B, G) as they would be without the linear effect: ``counts * e^-offset``.

    The encoder then sees a perturbed cell in the frame of a control cell. Factors are at most
    ``e^most``, so that a single molecule of a silenced gene does not become a hundred.
    """
    return counts if offset is None else counts * torch.exp((-offset).clamp(max=most))


def count_parameters(module: nn.Module) -> int:
    """Return the number of parameters, frozen ones included."""
    return sum(parameter.numel() for parameter in module.parameters())
