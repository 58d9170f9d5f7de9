"""Linear maps on a CPU by oneDNN, which torch has with it and by itself uses for other types only.

In float32 torch multiplies by MKL, whose code for processors of other makers than Intel is half as
wide as AVX-512: on the one of docs/performance.md oneDNN is 1.7 to 2.4 times as fast. The sums are
the same to rounding.
Shapes: K inputs, N outputs, M rows.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WORTH = 2**13
"""Weights (N K) from which the start of oneDNN, some 20 microseconds, is made up for. It does not
depend on the rows, so that a row's result does not either, but for rounding where it is alone."""

HAS_ONEDNN = hasattr(torch.ops.mkldnn, "_linear_pointwise")


# An operator of its own, as the compiler takes oneDNN's only for weights that never change; not by
# ``custom_op``, whose first call imports the compiler (0.7 s).
torch.library.define("knockscreen::product", "(Tensor x, Tensor weight) -> Tensor")
product = torch.ops.knockscreen.product
"""Return ``x weight^T`` (M, N) of x (M, K) and weight (N, K) by oneDNN."""


def _product(x: Tensor, weight: Tensor) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return out


def _shape(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(len(x), len(weight))


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradient(ctx: Any, of_out: Tensor) -> tuple[Tensor | None, Tensor | None]:
    x, weight = ctx.saved_tensors
    of_x, of_weight = ctx.needs_input_grad
    return (
        product(of_out, weight.t()) if of_x else None,
        _of_weight(of_out, x) if of_weight else None,
    )


def _of_weight(of_out: Tensor, x: Tensor) -> Tensor:
    """Return ``of_out^T x`` (N, K); oneDNN copies the first factor, so the narrower comes first."""
    narrow = x.shape[1] < of_out.shape[1]
    found: Tensor = product(x.t(), of_out.t()).t() if narrow else product(of_out.t(), x.t())
    return found


torch.library.impl("knockscreen::product", "CPU", _product)
torch.library.register_fake("knockscreen::product", _shape)
torch.library.register_autograd("knockscreen::product", _gradient, setup_context=_save)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x weight^T + bias`` (..., N) of x (..., K) and weight (N, K)."""
    if (
        not HAS_ONEDNN
        or x.device.type != "cpu"
        or x.dtype != torch.float32
        or torch.is_autocast_enabled("cpu")
        or weight.numel() < WORTH
        or not x.numel()  # oneDNN has no gradient of no rows
    ):
        return F.linear(x, weight, bias)
    out: Tensor = product(x.flatten(0, -2), weight).unflatten(0, x.shape[:-1])
    return out if bias is None else out + bias


class Linear(nn.Linear):
    """``torch.nn.Linear``, the same weights and names, by :func:`linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., K) to (..., N)."""
        return linear(x, self.weight, self.bias)
