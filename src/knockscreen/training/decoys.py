"""The linear effects of decoys: measured against their own controls, denoised among real targets.

A decoy of n cells is part of the N controls that it is compared with. Its difference to them has
variance ``s^2 (1/n - 1/N)``; times ``sqrt(N / (N - n))`` it is ``s^2 / n``, the noise that is a
target's own. The error of the control's mean, ``s^2 / N``, is the same for all real targets of a
context: a decoy is given what denoising takes for it, the common mean of the targets as measured
less the shrunk one.

Denoising borrows strength between targets, and a row has a say in what counts as signal. So a decoy
is denoised as one more row among the real targets, a few decoys at a time: it is treated as a
target without effect would be, and the real targets are estimated without any decoy.

Shapes: T real targets (row 0 is control), J decoys, C contexts, G genes.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from knockscreen.data.cells import CellStore
from knockscreen.models.denoise import Measured
from knockscreen.names import CP10K

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
SHARE = 0.1
"""Most decoys denoised at a time, as a share of the real targets."""

Denoise = Callable[[Measured], tuple[Array, Array]]
"""Common mean (C, G) of the effects, and what each target adds to it (T, C, G)."""


def decoy_shifts(
    store: CellStore, control_mean: Array, control_cells: NDArray[np.integer]
) -> tuple[Array, Ints]:
    """Return scaled mean differences of decoys to control (J, C, G), log1p CP10k, and cells (J, C).

    Parameters
    ----------
    control_mean
        (C, G) mean log1p CP10k of the training controls, and their number ``control_cells`` (C,).
    """
    contexts, genes = control_mean.shape
    codes, starts = np.unique(store.decoy_target, return_index=True)
    ends = np.append(starts, len(store.decoy_rows))
    context = store.context_index()
    shifts = np.zeros((len(codes), contexts, genes))
    cells = np.zeros((len(codes), contexts), dtype=np.int64)
    for j in range(len(codes)):
        rows = store.decoy_rows[ends[j] : ends[j + 1]]
        sums = np.zeros((contexts, genes))
        for piece, counts in store.chunks(rows):
            values = np.log1p(counts * (CP10K / store.library_size[piece][:, None]))
            of_context = context[piece][None] == np.arange(contexts)[:, None]
            sums += of_context.astype(np.float32) @ values
        cells[j] = np.bincount(context[rows], minlength=contexts)
        there = cells[j] > 0
        rest = np.maximum(control_cells[there] - cells[j, there], 1)
        spread = np.sqrt(control_cells[there] / rest)[:, None]
        shifts[j, there] = (sums[there] / cells[j, there, None] - control_mean[there]) * spread
    return shifts, cells


def control_error(real: Measured, mean: Array) -> Array:
    """Return the error of the control (C, G): the targets' mean as measured less the shrunk one."""
    shifts = real.shifts.copy()
    rows = np.flatnonzero(real.own_gene >= 0)
    shifts[rows, :, real.own_gene[rows]] = 0
    n = np.where(real.cells[:1] > 0, real.cells, 0).astype(float)
    n[0] = 0
    raw = np.einsum("tc,tcg->cg", n, shifts) / np.maximum(n.sum(0), 1)[:, None]
    return np.asarray(raw - np.where(n.sum(0)[:, None] > 0, mean, 0))


def denoise_decoys(real: Measured, mean: Array, decoys: tuple[Array, Ints], by: Denoise) -> Array:
    """Return the effects (J, C, G) of decoys, denoised among the real targets.

    Parameters
    ----------
    mean
        (C, G) common mean of the real targets' effects, denoised.
    decoys
        Scaled differences to control (J, C, G) and cells (J, C), of :func:`decoy_shifts`.
    """
    shifts, cells = decoys
    shifts = shifts + np.where(cells[..., None] > 0, control_error(real, mean), 0)
    batch = max(1, int(SHARE * (real.cells[1:].sum(axis=1) > 0).sum()))
    found = [np.zeros((0, *shifts.shape[1:]))]
    for start in range(0, len(shifts), batch):
        some = slice(start, start + batch)
        joined = replace(
            real,
            shifts=np.concatenate([real.shifts, shifts[some]]),
            cells=np.concatenate([real.cells, cells[some]]),
            own_gene=np.append(real.own_gene, np.full(len(shifts[some]), -1)),
        )
        common, rest = by(joined)
        found.append(common + rest[len(real.shifts) :])
    return np.concatenate(found)
