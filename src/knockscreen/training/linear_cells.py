"""Fitting the linear part of the cells, before the network that learns the rest.

The same idea as the linear effect of a knock-down (:mod:`knockscreen.training.effect`): what a
linear map says about a cell is found in seconds and exactly, and a transformer trained for minutes
does not find it. Principal components of the cells go into the latent; their logits, the genes'
means and dispersions are fitted by the likelihood of counts that the components were not made from,
so that a cell's own counting noise is not taken for its state.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from knockscreen.models.linear_cells import LinearPart, log_scaled
from knockscreen.models.vae import Batch, remove_offset
from knockscreen.nn.likelihood import nb_log_prob, thin

CELLS = 20_000
"""Training cells that the components are estimated from, at most."""
CHUNK = 4096
STEPS = 200
BATCH = 256
LEARNING_RATE = 0.02
THINNING = 0.5
"""Share of each cell's molecules hidden from its components, and predicted from them."""

Read = Callable[[NDArray[np.int64]], Batch]
"""Rows of a store -> their counts, library sizes and offsets."""


@dataclass(frozen=True)
class Moments:
    """Parameters of the likelihood that are fitted with the linear part."""

    shares: Tensor
    """(G + 1,) expression of the rest and of each gene at the mean of all components."""
    theta: Tensor
    """(G,) inverse dispersion."""


def components(
    read: Read, rows: NDArray[np.int64], count: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return scale (), shares (G,), mean (G,) and weights (G, K) of the cells' components.

    Principal components of standardised x: eigenvectors of the correlation of the genes, largest
    first, the largest weight of each positive, scaled to unit variance. Components that the cells
    do not have (fewer genes, or cells) are zero.
    """
    pieces = [rows[i : i + CHUNK] for i in range(0, len(rows), CHUNK)]

    def shown(piece: NDArray[np.int64]) -> Tensor:
        batch = read(piece)
        return remove_offset(batch.counts, batch.offset).cpu()

    sums = torch.cat([shown(piece).sum(1) for piece in pieces])
    scale = sums.median().clamp_min(1)
    total, mean = torch.zeros(1).double(), torch.zeros(1).double()
    square = torch.zeros(1, 1).double()
    for piece in pieces:
        counts = shown(piece)
        x = log_scaled(counts, scale).double()
        total, mean, square = total + counts.double().sum(0), mean + x.sum(0), square + x.T @ x
    mean = mean / len(rows)
    covariance = square / len(rows) - torch.outer(mean, mean)
    sd = covariance.diagonal().clamp_min(0).sqrt()
    inverse = torch.where(sd > 1e-6, 1 / sd.clamp_min(1e-6), 0.0)
    values, vectors = torch.linalg.eigh(covariance * torch.outer(inverse, inverse))
    values, vectors = values.flip(0)[:count], vectors.flip(1)[:, :count]  # (K,), (G, K)
    sign = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    known = (values > 1e-6 * values[0].clamp_min(1e-12)) & (torch.arange(len(values)) < len(rows))
    unit = torch.where(known, sign[0] / values.clamp_min(1e-12).sqrt(), 0.0)
    weights = F.pad(inverse[:, None] * vectors * unit, (0, count - len(values)))
    return scale, (total / total.sum()).float(), mean.float(), weights.float()


def fit_linear(
    read: Read,
    rows: NDArray[np.int64],
    start: Moments,
    count: int,
    *,
    rest: bool,
    generator: torch.Generator,
) -> tuple[LinearPart, Moments]:
    """Return the linear part of ``count`` components, and the means and dispersions beside it.

    Parameters
    ----------
    rest
        Whether library sizes are over all genes, those off the panel being row 0.
    generator
        Of the minibatches and of the thinning; the fit is a function of cells and generator.
    """
    scale, shares, mean, weights = components(read, rows[:: max(1, len(rows) // CELLS)], count)
    first = 0 if rest else 1
    genes = len(mean)
    out = torch.zeros(genes + 1, count, requires_grad=True)
    bias = start.shares.clamp_min(1e-7).log().requires_grad_()
    log_theta = start.theta.log().requires_grad_()
    optimizer = torch.optim.Adam([out, bias, log_theta], lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        drawn = torch.randint(0, len(rows), (BATCH,), generator=generator).numpy()
        batch = read(rows[drawn])
        offset = None if batch.offset is None else batch.offset.cpu()
        stays, hidden = thin(batch.counts.cpu(), THINNING, generator)
        about = log_scaled(remove_offset(stays, offset), scale) - mean
        z = torch.where(stays.sum(1, keepdim=True) > 0, about, 0.0) @ weights  # (B, K)
        logits = bias + z @ out.T  # (B, G + 1)
        if offset is not None:
            logits = logits + F.pad(offset, (1, 0))
        share = torch.softmax(logits[:, first:], dim=-1)[:, 1 - first :]  # (B, G)
        mu = share * batch.library_size.cpu()[:, None] * THINNING
        loss = -nb_log_prob(hidden, mu, log_theta.exp()).sum(1).mean()
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        part = LinearPart(
            scale,
            F.pad(shares, (1, 0)),
            F.pad(mean, (1, 0)),
            F.pad(weights, (0, 0, 1, 0)),
            out.detach(),
        )
        return part, Moments(torch.softmax(bias, 0), log_theta.exp())
