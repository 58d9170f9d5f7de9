"""Linear maps on a CPU by oneDNN, which torch has with it and by itself uses for other types only.

In float32 torch multiplies by MKL, whose code for processors of other makers than Intel is half as
wide as AVX-512: on the one of docs/performance.md oneDNN is 1.7 to 2.4 times as fast. The sums are
the same to rounding.
Shapes: K inputs, N outputs, M rows.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WORTH = 2**20
"""Multiplications (M N K) from which oneDNN's start, 10 microseconds, is made up for."""

HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(
    torch.ops.mkldnn, "_linear_pointwise"
)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x weight^T + bias`` (M, N) by oneDNN, which autograd knows nothing of."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


class _Linear(torch.autograd.Function):
    """The map and the products of its gradient."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx, of_out: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        of_x = product(of_out, weight.t()) if wanted[0] else None
        of_weight = product(of_out.t(), x.t()) if wanted[1] else None
        of_bias = of_out.sum(0) if wanted[2] else None
        return of_x, of_weight, of_bias


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x weight^T + bias`` (..., N) of x (..., K) and weight (N, K)."""
    if (
        not HAS_ONEDNN
        or x.device.type != "cpu"
        or x.dtype != torch.float32
        or torch.is_autocast_enabled("cpu")
        or x.numel() * len(weight) < WORTH
    ):
        return F.linear(x, weight, bias)
    out: Tensor = _Linear.apply(x.flatten(0, -2), weight, bias)
    return out.unflatten(0, x.shape[:-1])


class Linear(nn.Linear):
    """``torch.nn.Linear``, the same weights and names, by :func:`linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., K) to (..., N)."""
        return linear(x, self.weight, self.bias)
