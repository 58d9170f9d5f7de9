"""The linear effects of decoys: measured against their own controls, denoised among real targets.

A decoy of n cells is part of the N controls that it is compared with. Its difference to them has
variance ``s^2 (1/n - 1/N)``; times ``sqrt(N / (N - n))`` it is ``s^2 / n``, the part of a real
target's noise that is its own. (The rest, ``s^2 / N``, is an error of the control: all real targets
of a context share it, so that no spread among decoys could tell of it. The ranking takes it out.)

Denoising borrows strength between targets, and a row has a say in what counts as signal. So a decoy
is denoised as one more row among the real targets, a few decoys at a time: it is treated as a
target without effect would be, and the real targets are estimated without any decoy.

Shapes: T real targets, J decoys, C contexts, G genes, K components.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from knockscreen.data.cells import CellStore
from knockscreen.models.effect import Measured
from knockscreen.names import CP10K

Array = NDArray[np.float64]
SHARE = 0.1
"""Most decoys denoised at a time, as a share of the real targets."""

LowRank = Callable[[Measured], tuple[Array, Array]]


def decoy_shifts(
    store: CellStore, control_mean: Array, control_cells: NDArray[np.integer]
) -> tuple[Array, Array]:
    """Return mean differences of decoys to control (J, C, G), log1p CP10k, and effective cells.

    Parameters
    ----------
    control_mean
        (C, G) mean log1p CP10k of the training controls, and their number ``control_cells`` (C,).
    """
    contexts, genes = control_mean.shape
    codes, starts = np.unique(store.decoy_target, return_index=True)
    context = store.context_index()
    shifts, weights = np.zeros((len(codes), contexts, genes)), np.zeros((len(codes), contexts))
    ends = np.append(starts, len(store.decoy_rows))
    for j in range(len(codes)):
        rows = store.decoy_rows[ends[j] : ends[j + 1]]
        sums = np.zeros((contexts, genes))
        for piece, counts in store.chunks(rows):
            values = np.log1p(counts * (CP10K / store.library_size[piece][:, None]))
            of_context = context[piece][None] == np.arange(contexts)[:, None]
            sums += of_context.astype(np.float32) @ values
        n = np.bincount(context[rows], minlength=contexts).astype(float)
        there = n > 0
        spread = np.sqrt(control_cells / np.maximum(control_cells - n, 1))
        mean = sums[there] / n[there, None]
        shifts[j, there] = (mean - control_mean[there]) * spread[there, None]
        weights[j] = n * control_cells / np.maximum(n + control_cells, 1)
    return shifts, weights


def denoise_among_real(
    real: Measured, shifts: Array, weights: Array, low_rank: LowRank
) -> tuple[Array, Array]:
    """Return components (K, G) and coordinates (T + J, C, K) of real targets and decoys.

    The real targets are estimated alone; the components are theirs and whatever the decoys need.
    """
    basis, coordinates = low_rank(real)
    trained = int((real.weights.sum(1) > 0).sum())
    batch = max(1, int(SHARE * trained))
    deltas = [np.zeros((0, *shifts.shape[1:]))]
    for start in range(0, len(shifts), batch):
        some = slice(start, start + batch)
        own_gene = np.append(real.own_gene, np.full(len(shifts[some]), -1))
        joined = replace(
            real,
            shifts=np.concatenate([real.shifts, shifts[some]]),
            weights=np.concatenate([real.weights, weights[some]]),
            own_gene=own_gene,
        )
        found, where = low_rank(joined)
        deltas.append(where[len(real.shifts) :] @ found)
    return extend_basis(basis, coordinates, np.concatenate(deltas))


def extend_basis(basis: Array, coordinates: Array, more: Array) -> tuple[Array, Array]:
    """Return orthonormal components that also hold ``more`` (J, C, G), and all coordinates.

    ``basis`` (K, G) is kept as its first rows, ``coordinates`` (T, C, K) are padded with zeros.
    """
    inside = more @ basis.T  # (J, C, K)
    rest = (more - inside @ basis).reshape(-1, basis.shape[1])
    _, s, vt = np.linalg.svd(rest, full_matrices=False)
    added = vt[s > 1e-6 * max(float(np.abs(more).max(initial=0.0)), 1e-12)]
    outside = (rest @ added.T).reshape(*more.shape[:2], len(added))
    padded = np.concatenate([coordinates, np.zeros((*coordinates.shape[:2], len(added)))], axis=2)
    return (
        np.concatenate([basis, added]),
        np.concatenate([padded, np.concatenate([inside, outside], axis=2)]),
    )
