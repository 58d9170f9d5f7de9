"""The linear part of a knock-down: a shift of log expression, for seen and unseen targets.

The mean effect of a knock-down, control to perturbed in log1p CP10k, is estimated from training
cells and denoised (:mod:`knockscreen.models.denoise`); that of a gene never knocked down is
predicted (:mod:`knockscreen.models.unseen`). The target's own transcript, which no other knock-down
moves alike, is kept as measured. The effect enters the decoder as an offset of the logits; the flow
learns what it leaves over.

Shapes: T targets, C contexts, G genes, Q grid points.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from knockscreen.models.unseen import Unseen

Array = NDArray[np.float64]
GRID = np.linspace(-6.0, 6.0, 33)
"""Offsets (natural log of expression) at which the response curves are tabulated."""


@dataclass(frozen=True)
class LinearEffect:
    """Denoised effects and the way to predict unseen ones."""

    unseen: Unseen
    """Also holds the denoised effects of the trained targets."""
    own: Array
    """(T, C) effect on the target's own transcript, log1p CP10k; NaN where not measured."""
    curves: Array
    """(C, G, Q) mean log1p CP10k of control cells whose expression is multiplied by e^GRID."""
    base: Array
    """(C, G) natural log of a context's control expression over its mean across contexts."""

    def trained(self, code: int) -> Array:
        """Return the denoised effect (C, G) of a trained target, log1p CP10k."""
        return np.asarray(self.unseen.mean + self.unseen.rest[code])

    def offsets(self, delta: Array, own_gene: int, own: Array) -> NDArray[np.float32]:
        """Return logit offsets (C, G) of one target from its effect (C, G), log1p CP10k.

        Parameters
        ----------
        own_gene
            Column of the target's own transcript, -1 where it is not on the panel.
        own
            (C,) effect on it, log1p CP10k; NaN: the middle of the measured ones.
        """
        delta = delta.copy()
        if own_gene >= 0:
            usual = np.nanmedian(self.own) if np.isfinite(self.own).any() else 0.0
            delta[:, own_gene] = np.where(np.isfinite(own), own, usual)
        middle = len(GRID) // 2
        wanted = self.curves[..., middle] + delta  # (C, G)
        return invert_curves(self.curves, wanted)


def invert_curves(curves: Array, wanted: Array) -> NDArray[np.float32]:
    """Return the offsets (C, G) at which rising curves (C, G, Q) over ``GRID`` reach ``wanted``.

    Values beyond the grid give its ends. A flat curve, of a gene that controls do not express,
    gives 0: no factor can be learned from it.
    """
    upper = np.clip((curves < wanted[..., None]).sum(-1), 1, len(GRID) - 1)  # (C, G)
    low = np.take_along_axis(curves, (upper - 1)[..., None], -1)[..., 0]
    high = np.take_along_axis(curves, upper[..., None], -1)[..., 0]
    share = np.clip((wanted - low) / np.maximum(high - low, 1e-9), 0, 1)
    offsets = GRID[upper - 1] + share * (GRID[1] - GRID[0])
    flat = curves[..., -1] - curves[..., 0] < 1e-9
    return np.where(flat, 0, offsets).astype(np.float32)
