"""The linear part of the cells: their principal components, into the latent and out of it.

What differs most between cells is a few directions that a linear map finds in seconds and a
transformer only after long training. They are fitted before the network is trained
(:mod:`knockscreen.training.linear_cells`), as the linear effect of a knock-down is, and frozen; the
network learns what they leave over. Shapes: B cells, G genes, K components. Row 0 of every table
stands for all genes off the panel, as in the network's gene table.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class LinearPart(NamedTuple):
    """What is fitted: everything that :class:`LinearCells` keeps."""

    scale: Tensor
    """() counts to which every cell is brought: the median sum over the panel."""
    shares: Tensor
    """(G + 1,) share of each gene in the mean counts of the panel; 0 for the rest."""
    mean: Tensor
    """(G + 1,) mean of x, the ln(1 + count) at that scale."""
    linear_in: Tensor
    """(G + 1, K) so that ``(x - mean) @ linear_in`` has unit variance over training cells."""
    linear_out: Tensor
    """(G + 1, K) logits per unit of each component."""


def log_scaled(counts: Tensor, scale: Tensor | float) -> Tensor:
    """Return x (B, G): ``ln(1 + counts * scale / sum of the cell's counts)``."""
    return torch.log1p(counts * (scale / counts.sum(1, keepdim=True).clamp_min(1)))


class LinearCells(nn.Module):
    """Components of a cell from its counts, and logits of its genes from the components.

    Buffers and no parameters: part of every checkpoint, and never trained with the network.
    """

    scale: Tensor
    shares: Tensor
    mean: Tensor
    linear_in: Tensor
    linear_out: Tensor

    def __init__(self, genes: int, components: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("shares", torch.cat([torch.zeros(1), torch.ones(genes) / genes]))
        self.register_buffer("mean", torch.zeros(genes + 1))
        self.register_buffer("linear_in", torch.zeros(genes + 1, components))
        self.register_buffer("linear_out", torch.zeros(genes + 1, components))

    def take(self, part: LinearPart) -> None:
        """Copy what was fitted."""
        for name, value in part._asdict().items():
            getattr(self, name).copy_(value)

    def encode(self, counts: Tensor, gene_index: Tensor | None = None) -> Tensor:
        """Return the components (B, K) of counts (B, G) of the genes ``gene_index`` (rows from 1).

        With a part of the panel, the scale falls to those genes' share of the mean counts, and the
        others add nothing, as if they were at their mean. A cell without a count is at 0, the mean.
        """
        with torch.autocast(counts.device.type, enabled=False):
            scale, mean, weights = self.scale, self.mean[1:], self.linear_in[1:]
            if gene_index is not None:
                scale = scale * self.shares[gene_index].sum()
                mean, weights = self.mean[gene_index], self.linear_in[gene_index]
            about = log_scaled(counts.float(), scale) - mean  # (B, G)
            known = counts.sum(1, keepdim=True) > 0
            return torch.where(known, about, 0.0) @ weights

    def decode(self, z: Tensor, index: Tensor) -> Tensor:
        """Return what components z (B, K) add to the logits (B, G') of the rows ``index``."""
        with torch.autocast(z.device.type, enabled=False):
            return z.float() @ self.linear_out[index].T
