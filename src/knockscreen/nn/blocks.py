"""Attention and MLP blocks: tensors only, no genes and no conditions.

Shapes: B cells, G gene tokens, L latent tokens, E or D width, H heads.
Pre-layer-norm transformer blocks with SwiGLU (Shazeer 2020), the multi-head cross-attention block
(MCAB) that pools and un-pools sets (Lee et al. 2019, Set Transformer; scLDM 2025), and adaLN-Zero
conditioning (Peebles & Xie 2023, DiT).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from knockscreen.nn.linear import Linear, linear

LAYER_NORM_EPS = 1e-8


def swiglu_width(width: int, multiple: int = 4) -> int:
    """Return the hidden width of a SwiGLU that costs what a 4x MLP would: 8/3 width, rounded up."""
    return multiple * math.ceil(int(2 * 4 * width / 3) / multiple)


def layer_norm(width: int, *, affine: bool = True) -> nn.LayerNorm:
    """Return a layer norm with the epsilon used everywhere here."""
    return nn.LayerNorm(width, eps=LAYER_NORM_EPS, elementwise_affine=affine)


class SwiGLU(nn.Module):
    """``Wc(SiLU(W1 x) * W2 x)`` without biases."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = swiglu_width(width)
        self.gate = Linear(width, hidden, bias=False)
        self.value = Linear(width, hidden, bias=False)
        self.out = Linear(hidden, width, bias=False)

    def hidden(self, x: Tensor) -> Tensor:
        """Map (..., width) to the hidden layer (..., 8/3 width)."""
        hidden: Tensor = F.silu(self.gate(x)) * self.value(x)
        return hidden

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., width) to (..., width)."""
        mapped: Tensor = self.out(self.hidden(x))
        return mapped


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Reshape (B, N, E) to (B, H, N, E/H)."""
    b, n, width = x.shape
    return x.view(b, n, heads, width // heads).transpose(1, 2)  # (B, H, N, E/H)


def merge_heads(x: Tensor) -> Tensor:
    """Reshape (B, H, N, E/H) back to (B, N, E)."""
    b, heads, n, width = x.shape
    return x.transpose(1, 2).reshape(b, n, heads * width)  # (B, N, E)


class SelfAttention(nn.Module):
    """Multi-head self-attention with a fused projection, without biases."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width, bias=False)
        self.out = Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, E) to (B, N, E)."""
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        attended: Tensor = self.out(merge_heads(F.scaled_dot_product_attention(q, k, v)))
        return attended


class Block(nn.Module):
    """``x += MHA(LN x); x += SwiGLU(LN x)``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_attention = layer_norm(width)
        self.attention = SelfAttention(width, heads)
        self.norm_mlp = layer_norm(width)
        self.mlp = SwiGLU(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, E) to (B, N, E)."""
        x = x + self.attention(self.norm_attention(x))
        mixed: Tensor = x + self.mlp(self.norm_mlp(x))
        return mixed


class CrossAttentionBlock(nn.Module):
    """MCAB: ``y = S + MHA(q = LN S, kv = LN X); out = y + SwiGLU(LN y)``.

    With learned queries it pools a set (invariant to its order); with gene embeddings as queries
    it un-pools (equivariant to their order). Queries shared by all cells are projected once.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_query = layer_norm(width)
        self.norm_memory = layer_norm(width)
        self.norm_mlp = layer_norm(width)
        self.query = Linear(width, width, bias=False)
        self.key_value = Linear(width, 2 * width, bias=False)
        self.out = Linear(width, width, bias=False)
        self.mlp = SwiGLU(width)

    def attend(self, queries: Tensor, memory: Tensor) -> Tensor:
        """Return y (B, N, E) of queries (N, E), the same for every cell, over memory (B, M, E)."""
        q = self.queries(queries).expand(len(memory), -1, -1, -1)  # (B, H, N, E/H)
        k, v = (
            split_heads(part, self.heads)
            for part in self.key_value(self.norm_memory(memory)).chunk(2, dim=-1)
        )  # (B, H, M, E/H)
        attended: Tensor = self.out(merge_heads(F.scaled_dot_product_attention(q, k, v)))
        return queries + attended

    def queries(self, queries: Tensor) -> Tensor:
        """Return the projected queries (1, H, N, E/H) of (N, E)."""
        return split_heads(self.query(self.norm_query(queries)).unsqueeze(0), self.heads)

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        """Map queries (N, E), the same for every cell, and memory (B, M, E) to (B, N, E)."""
        return self.finish(self.attend(queries, memory))

    def finish(self, y: Tensor) -> Tensor:
        """Return the block's output (B, N, E) of what its attention gave."""
        mapped: Tensor = y + self.mlp(self.norm_mlp(y))
        return mapped

    def read(self, queries: Tensor, memory: Tensor, head: nn.Linear) -> Tensor:
        """Return ``head(self(queries, memory))`` (B, N, O) with the last maps made one.

        The head is linear, and so is the MLP's last map: their product, for an output of a few
        numbers, spares a third of the MLP.
        """
        y = self.attend(queries, memory)
        folded = head.weight @ self.mlp.out.weight  # (O, 8/3 E)
        out: Tensor = head(y) + linear(self.mlp.hidden(self.norm_mlp(y)), folded)
        return out


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return ``x * (1 + scale) + shift`` with (B, D) parameters over (B, N, D) tokens."""
    return torch.addcmul(shift.unsqueeze(1), x, 1 + scale.unsqueeze(1))


class AdaLNBlock(nn.Module):
    """A transformer block, its norms modulated and gated by the condition, zero at the start."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_attention = layer_norm(width, affine=False)
        self.attention = SelfAttention(width, heads)
        self.norm_mlp = layer_norm(width, affine=False)
        self.mlp = SwiGLU(width)
        self.modulation = Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Map tokens (B, N, D) under condition (B, D), after its SiLU, to (B, N, D)."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(condition).chunk(6, -1)
        attended = self.attention(modulate(self.norm_attention(x), shift_a, scale_a))
        x = torch.addcmul(x, gate_a.unsqueeze(1), attended)
        mixed = self.mlp(modulate(self.norm_mlp(x), shift_m, scale_m))
        return torch.addcmul(x, gate_m.unsqueeze(1), mixed)


def time_features(t: Tensor, width: int = 256, max_period: float = 1e4) -> Tensor:
    """Return sinusoids (B, width), cosines first, of flow time t (B,) in [0, 1]."""
    half = width // 2
    rates = torch.exp(-math.log(max_period) * torch.arange(half, device=t.device) / half)
    angles = t[:, None].float() * rates[None]  # (B, width/2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def position_table(tokens: int, width: int) -> Tensor:
    """Return fixed sin-cos positions (tokens, width), sines first, base 10,000."""
    half = width // 2
    rates = 1e4 ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(tokens, dtype=torch.float64)[:, None] * rates[None]
    return torch.cat([angles.sin(), angles.cos()], dim=-1).float()
