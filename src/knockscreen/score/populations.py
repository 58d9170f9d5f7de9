"""Generated cells beside the real held-out cells of the same conditions and library sizes.

N cells, G panel genes, D principal components. Three stand-ins are judged like the generated
cells: real training cells of the same targets and contexts (``measured_training``), training
control cells of the same contexts (``no_change``), and one half of the held-out cells against the
other (``ceiling``).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.spatial.distance import cdist, pdist

from knockscreen.errors import DataError
from knockscreen.names import CP10K, SPLITS, Split
from knockscreen.score.cells import StoredCells, open_store
from knockscreen.score.evaluate import CEILING, EVERY, MODEL, SCHEMA
from knockscreen.score.holdout import SCREENED
from knockscreen.score.metrics import OF_CELLS

Array = NDArray[np.floating]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

COMPONENTS = 20
FITTED = 4000
"""Training cells that the components are fitted on at most."""
FEWEST = 20
"""Cells per side below which nothing is said."""
FEW_CELLS = f"fewer than {FEWEST} cells on a side"
NO_MATCH = "no training cells of the same targets and contexts"


def r_squared(predicted: Floats, real: Floats) -> float:
    """Return 1 - residual / total sum of squares about the identity; NaN for constant ``real``.

    >>> r_squared(np.array([1.0, 2.0]), np.array([1.0, 2.0]))
    1.0
    """
    total = float(np.sum((real - real.mean()) ** 2))
    return 1 - float(np.sum((real - predicted) ** 2)) / total if total > 0 else float("nan")


def energy_distance(a: Floats, b: Floats) -> float:
    """Return 2 E|x - y| - E|x - x'| - E|y - y'| of two samples, Euclidean, over distinct pairs.

    Unbiased: near 0, also below it, for two samples of one distribution, whatever their sizes.
    """
    return float(2 * cdist(a, b).mean() - pdist(a).mean() - pdist(b).mean())


def mmd(a: Floats, b: Floats) -> float:
    """Return the squared maximum mean discrepancy of two samples, unbiased.

    The mean over Gaussian kernels exp(-d^2 / (2 s^2)) with s the median distance between the pooled
    points times 1/2, 1 and 2. NaN where all points are one.
    """
    inside_a, inside_b, across = pdist(a), pdist(b), cdist(a, b)
    median = float(np.median(np.concatenate([inside_a, inside_b, across.ravel()])))
    if not median > 0:
        return float("nan")
    total = 0.0
    for scale in (0.5, 1.0, 2.0):
        width = 2 * (scale * median) ** 2
        kernels = [float(np.exp(-(d**2) / width).mean()) for d in (inside_a, inside_b, across)]
        total += kernels[0] + kernels[1] - 2 * kernels[2]
    return total / 3


@dataclass(frozen=True)
class Space:
    """Principal components of log1p CP10k, fitted on real training cells."""

    mean: Floats  # (G,)
    axes: Floats  # (D, G)

    @classmethod
    def fit(cls, values: Array) -> "Space":
        """Fit up to 20 components to cells (N, G)."""
        mean = values.mean(axis=0, dtype=np.float64)
        centred = values - mean
        _, vectors = np.linalg.eigh(centred.T @ centred)
        return cls(mean, vectors[:, ::-1][:, :COMPONENTS].T)

    def __call__(self, values: Array) -> Floats:
        """Return the coordinates (N, D) of cells (N, G)."""
        return np.asarray((values - self.mean) @ self.axes.T)


def compare_cells(made: Array, real: Array, space: Space) -> dict[str, float]:
    """Return the metrics of generated cells (N, G) beside real ones, log1p CP10k."""
    if min(len(made), len(real)) < FEWEST:
        return dict.fromkeys(OF_CELLS, float("nan"))
    a, b = space(made), space(real)
    return {
        "mean_r2": r_squared(made.mean(axis=0, dtype=float), real.mean(axis=0, dtype=float)),
        "variance_r2": r_squared(made.var(axis=0, ddof=1, dtype=float),
                                 real.var(axis=0, ddof=1, dtype=float)),
        "energy_distance": energy_distance(a, b),
        "mmd": mmd(a, b),
    }  # fmt: skip


def _log1p(cells: StoredCells, rows: Ints) -> Array:
    values: Any = cells.cp10k(rows)
    return np.asarray(np.log1p(values.toarray()), dtype=np.float32)


def _draw(pool: Ints, wanted: Ints, key: Ints, rng: np.random.Generator) -> Ints:
    """Return a row of ``pool`` with the same key for each of ``wanted``, -1 where there is none."""
    out = np.full(len(wanted), -1, dtype=np.int64)
    order = pool[np.lexsort((rng.random(len(pool)), key[pool]))]
    sorted_keys = key[order]
    for value in np.unique(key[wanted]):
        low, high = np.searchsorted(sorted_keys, [value, value + 1])
        mine = np.flatnonzero(key[wanted] == value)
        if high > low:
            out[mine] = order[low + np.arange(len(mine)) % (high - low)]
    return out


def measure_cells(
    store: Path, matched: Path, *, most: int, rng: np.random.Generator
) -> pl.DataFrame:
    """Return the rows of ``metrics.parquet`` that compare cells, per context and over all.

    Parameters
    ----------
    most
        Cells looked at per context, and over all contexts, at most.
    """
    cells = open_store(store)
    rows, made = _read_matched(matched, cells)
    split = np.asarray(np.load(store / "split.npy"))
    train = np.flatnonzero(split == SPLITS.index(Split.TRAIN))
    space = Space.fit(_log1p(cells, np.sort(rng.permutation(train)[:FITTED])))
    key = cells.target * len(cells.contexts) + cells.context
    control = train[cells.target[train] == 0]
    stand_ins = {"measured_training": _draw(train, rows, key, rng),
                 "no_change": _draw(control, rows, cells.context, rng)}  # fmt: skip
    contexts: dict[str, Ints] = {
        name: np.flatnonzero(cells.context[rows] == i) for i, name in enumerate(cells.contexts)
    }
    if len(contexts) > 1:
        contexts[EVERY] = np.arange(len(rows))
    found = []
    for name, inside in contexts.items():
        take = np.sort(rng.permutation(inside)[:most])
        real = _log1p(cells, rows[take])
        fake = np.log1p(made[take] * (CP10K / cells.library_size[rows[take]])[:, None])
        sides = {MODEL: (fake.astype(np.float32), real)}
        for method, stand_in in stand_ins.items():
            there = stand_in[take] >= 0
            sides[method] = (_log1p(cells, stand_in[take][there]), real)
        halves = rng.permutation(len(take)) % 2 == 0
        sides[CEILING] = (real[halves], real[~halves])
        for method, (a, b) in sides.items():
            why = NO_MATCH if method in stand_ins and not len(a) else FEW_CELLS
            found += [
                (SCREENED, name, None, EVERY, method, metric, None, value, OF_CELLS[metric].best,
                 len(a), None if np.isfinite(value) else why)
                for metric, value in compare_cells(a, b, space).items()
            ]  # fmt: skip
    return pl.DataFrame(found, schema=SCHEMA, orient="row").with_columns(
        pl.col("value").fill_nan(None)
    )


def _read_matched(path: Path, cells: StoredCells) -> tuple[Ints, NDArray[Any]]:
    """Return store rows (N,) and generated counts (N, G)."""
    try:
        with np.load(path, allow_pickle=False) as file:
            rows, counts = file["rows"], file["counts"]
    except (OSError, KeyError, ValueError) as error:
        msg = (
            f"{path} is not a file of matched cells ({error}); run 'knockscreen generate-matched'."
        )
        raise DataError(msg) from error
    if counts.shape[1] != len(cells.gene_ids) or (len(rows) and rows.max() >= len(cells.rows)):
        msg = f"{path} is of another store; run 'knockscreen generate-matched' again."
        raise DataError(msg)
    return rows.astype(np.int64), counts
