"""Pooling of sparse counts: the tokens of genes without a count are the same for every cell.

An MCAB that pools with queries shared by all cells meets, for each gene at count zero, the same
key and the same value in every cell. What such genes add to the softmax is therefore made once per
gene, and summed over a cell's silent genes by one matrix product; keys and values of its own are
made for expressed genes alone. The result is that of the dense block, to rounding.
Shapes: B cells, G genes, n expressed genes of all cells, N queries, E width, H heads, d = E / H.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from knockscreen.nn.blocks import CrossAttentionBlock, merge_heads

LEAST = 1e-30
"""Smallest sum of a cell's weights that float32 still tells exactly."""


class Expressed(NamedTuple):
    """Where the counts above zero are, cell by cell."""

    cell: Tensor
    """(n,) row of each."""
    gene: Tensor
    """(n,) column of each."""
    per_cell: list[int]
    """How many each cell has."""
    silent: Tensor
    """(B, G) 1 where the count is zero, else 0."""


def expressed(counts: Tensor) -> Expressed:
    """Find the counts (B, G) that are not zero."""
    is_there = counts != 0
    cell, gene = is_there.nonzero(as_tuple=True)
    return Expressed(cell, gene, is_there.sum(1).tolist(), (~is_there).to(counts.dtype))


def attend_sparse(
    block: CrossAttentionBlock, queries: Tensor, tokens: Tensor, silent: Tensor, where: Expressed
) -> Tensor | None:
    """Return ``block.attend`` (B, N, E) of shared queries (N, E) over all genes of each cell.

    None where some cell's weights are lost beside that of a gene which is not silent in it: scores
    of a softmax that lie 70 apart. The dense block has to do it then.

    Parameters
    ----------
    tokens
        (n, E) tokens of the expressed genes, in the order of ``where``.
    silent
        (G, E) token of each gene at count zero.
    """
    q = block.queries(queries)[0]  # (H, N, d)
    q = q * q.shape[-1] ** -0.5
    s0, v0 = _scores_and_values(block, q, silent)  # (H, G, N), (H, G, d + 1)
    top0 = s0.detach().amax(1)  # (H, N)
    of_silent = _sum_silent(torch.exp(s0 - top0[:, None]), v0, where.silent)  # (B, H, N, d + 1)

    scores, values = _scores_and_values(block, q, tokens)
    s = torch.split(scores, where.per_cell, dim=1)
    v = torch.split(values, where.per_cell, dim=1)
    tops = [torch.maximum(one.detach().amax(1), top0) if one.shape[1] else top0 for one in s]
    of_expressed = [
        torch.exp(one - top[:, None]).transpose(1, 2) @ value  # (H, N, d + 1)
        for one, top, value in zip(s, tops, v, strict=True)
    ]
    shrunk = torch.exp(top0 - torch.stack(tops))[..., None]  # (B, H, N, 1)
    total = torch.stack(of_expressed) + shrunk * of_silent
    if bool((total[..., -1] < LEAST).any()):
        return None
    pooled = total[..., :-1] / total[..., -1:]  # (B, H, N, d)
    attended: Tensor = block.out(merge_heads(pooled))
    return queries + attended


def _scores_and_values(
    block: CrossAttentionBlock, q: Tensor, tokens: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the scores (H, M, N) of queries (H, N, d) on tokens (M, E), and their values.

    Values are (H, M, d + 1), the last of them 1, so that weighted sums count their weights too.
    """
    both = block.key_value(block.norm_memory(tokens))  # (M, 2 E)
    k, v = both.view(len(both), 2, block.heads, q.shape[2]).permute(1, 2, 0, 3)  # (H, M, d)
    return k @ q.transpose(1, 2), F.pad(v, (0, 1), value=1.0)


def _sum_silent(weight: Tensor, values: Tensor, silent: Tensor) -> Tensor:
    """Sum weighted values over each cell's silent genes: (B, H, N, d + 1).

    ``weight`` (H, G, N), ``values`` (H, G, d + 1), ``silent`` (B, G).
    """
    table = weight.transpose(0, 1)[..., None] * values.transpose(0, 1)[:, :, None]
    return (silent @ table.flatten(1)).view(len(silent), *table.shape[1:])
