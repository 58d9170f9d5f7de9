"""What validation cells say of generated ones: effects target by target, and cells together.

Nothing here reads a test cell or a cell of a held-out target or context.
P targets, G genes, U units (targets with validation cells), N cells, B resamples of targets.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from knockscreen.config import EvaluateConfig
from knockscreen.data.cells import CellStore
from knockscreen.errors import DataError
from knockscreen.names import CP10K, Split
from knockscreen.score.cases import Case, make_case
from knockscreen.score.evaluate import judge
from knockscreen.score.holdout import SCREENED, read_holdout
from knockscreen.score.populations import FITTED, Space
from knockscreen.score.programs import ProgramMatrix

Array = NDArray[np.floating]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

OF_EFFECTS = ("pearson_delta", "centroid_accuracy", "mae_delta")
"""Metrics with a value per target; ``centroid_accuracy`` is the discrimination."""
OF_CELLS = ("mean_r2", "variance_r2", "energy_distance")
FEWEST = 10
"""Targets that an interval needs: resamples of fewer hardly vary, and look too sure."""


@dataclass(frozen=True)
class Validation:
    """The validation cells of the screened targets, as a question to every setting."""

    case: Case
    chosen: Ints  # (P',) codes of the targets that are generated
    contexts: list[str]
    target_ids: tuple[str, ...]
    gene_ids: tuple[str, ...]
    rows: Ints  # (N,) of the store: knocked-down validation cells that are matched
    unit: Ints  # (N,) 0 to U - 1: their targets
    real: Array  # (N, G) their log1p CP10k
    scale: Array  # (N, 1) from counts to CP10k
    space: Space

    def effects(self, delta: Callable[[str], Array]) -> dict[str, Floats]:
        """Return the metrics (P,) of a setting's effects, NaN for targets not generated.

        Parameters
        ----------
        delta
            From a target's id to its generated effects (C, G), in the order of ``contexts``.
        """
        case = self.case
        pooled = np.full(case.real.shape, np.nan)
        for i in np.flatnonzero(np.isin(case.targets, self.chosen)):
            of_target = delta(self.target_ids[case.targets[i]])[case.members]  # (M, G)
            pooled[i] = case.weights[i] @ of_target
        none = ProgramMatrix((), np.zeros((0, case.real.shape[1])), self.gene_ids)
        answer = judge(case, "model", pooled, none)
        return {name: answer.values[name] for name in OF_EFFECTS}

    def cells(self, counts: NDArray[np.integer]) -> "Cells":
        """Return generated counts (N, G) of the matched cells beside these."""
        made = np.log1p(counts * self.scale).astype(np.float32)
        return Cells(made, self.real, self.unit, self.space)


def read_validation(
    store: Path | str, *, seed: int, targets: int, cells: int, settings: EvaluateConfig
) -> Validation:
    """Read what the validation cells say, pooled over all contexts.

    Parameters
    ----------
    targets, cells
        Targets and cells that are generated at most, a fixed sample of them.

    Raises
    ------
    DataError
        There are no validation cells of knock-downs, or too few of each.
    """
    opened = CellStore.open(store)
    mine = opened.rows(Split.VALIDATION)
    mine = mine[np.asarray(opened.target)[mine] > 0]
    if not len(mine):
        msg = (
            f"{store} has no knocked-down validation cells to choose by; raise splits.validation"
            " and run normalize and the training again."
        )
        raise DataError(msg)
    held = read_holdout(store, seed=seed, judged_by=Split.VALIDATION)
    members = range(len(held.contexts))
    case = make_case(held, SCREENED, "all", members, settings=settings)
    if not len(case.targets):
        msg = (
            f"no knock-down in {store} has {settings.min_cells} validation cells or more to choose"
            " by; raise splits.validation, or lower evaluate.min_cells."
        )
        raise DataError(msg)
    rng = np.random.default_rng([seed, 30])
    chosen = np.sort(rng.permutation(case.targets)[:targets])
    rows = np.sort(rng.permutation(mine)[:cells])
    train = opened.rows(Split.TRAIN)
    fitted = log1p_cp10k(opened, np.sort(rng.permutation(train)[:FITTED]))
    _, unit = np.unique(np.asarray(opened.target)[rows], return_inverse=True)
    scale = (CP10K / np.asarray(opened.library_size)[rows, None]).astype(np.float32)
    return Validation(
        case, chosen, list(held.contexts), held.target_gene_ids, held.gene_ids, rows,
        unit.reshape(-1).astype(np.int64), log1p_cp10k(opened, rows), scale, Space.fit(fitted),
    )  # fmt: skip


def log1p_cp10k(store: CellStore, rows: Ints) -> Array:
    """Return log1p CP10k (n, G) of some rows."""
    scale = CP10K / np.asarray(store.library_size)[rows, None]
    return np.asarray(np.log1p(store.dense(rows) * scale), dtype=np.float32)


class Cells:
    """Generated beside real cells, summed by unit so that units can be resampled."""

    def __init__(self, made: Array, real: Array, unit: Ints, space: Space) -> None:
        self.n = np.bincount(unit).astype(float)  # (U,)
        self.sums = [self._by_unit(values, unit) for values in (made, real)]
        self.squares = [self._by_unit(values.astype(float) ** 2, unit) for values in (made, real)]
        a, b = space(made), space(real)
        pairs = ((a, b), (a, a), (b, b))
        self.distances = [self._by_unit(self._by_unit(cdist(x, y), unit).T, unit) for x, y in pairs]

    @staticmethod
    def _by_unit(values: Array, unit: Ints) -> Floats:
        out = np.zeros((int(unit.max()) + 1, values.shape[1]))
        np.add.at(out, unit, values)
        return out

    def metrics(self, weights: Floats) -> dict[str, Floats]:
        """Return the metrics (B,) of resamples in which unit u occurs ``weights[:, u]`` times.

        The energy distance is over pairs of other cells, also where a cell occurs again.
        """
        total = (weights @ self.n)[:, None]  # (B, 1)
        means = [weights @ s / total for s in self.sums]
        variances = [
            (weights @ q - total * m**2) / np.maximum(total - 1, 1)
            for q, m in zip(self.squares, means, strict=True)
        ]
        n = total[:, 0]
        others = n**2 - weights**2 @ self.n
        across, within_made, within_real = (
            np.einsum("bu,uv,bv->b", weights, d, weights, optimize=True) for d in self.distances
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            energy = 2 * across / n**2 - (within_made + within_real) / others
        return {
            "mean_r2": r_squared(*means),
            "variance_r2": r_squared(*variances),
            "energy_distance": np.where(others > 0, energy, np.nan),
        }


def r_squared(predicted: Floats, real: Floats) -> Floats:
    """Return R2 (B,) about the identity over the last axis; NaN where ``real`` is constant."""
    total = ((real - real.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
    rest = ((real - predicted) ** 2).sum(axis=1)
    return np.asarray(1 - rest / np.where(total > 0, total, np.nan))
