"""Do the positive controls move this program, or would they move any program as far.

K controls, N random programs, G panel genes. Controls of one pathway move the same genes together,
so that they come out on one side of *any* program, and by luck on the right one: their AUROC alone
cannot tell. So the mean signed score of the controls,

    S = mean_k sign_k score_k,

is compared with that of random programs with the same weights on other genes of like expression:
``program_p`` = (b + 1) / (N + 1), b random programs with an S as large.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from knockscreen.errors import DataError
from knockscreen.names import Evidence
from knockscreen.score.programs import ProgramMatrix

RANDOM_PROGRAMS = 999
EXPRESSION_BINS = 10

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ControlEffects:
    """Effects of the knock-downs that are controls of any program, and the panel they are over."""

    programs: ProgramMatrix
    bins: Ints  # (G,) expression bin of each panel gene
    deltas: dict[tuple[str, bool, str], Floats]  # (context, is measured, target) -> (G,)

    def p_value(
        self, program: str, context: str, evidence: str, targets: Sequence[str], signs: Floats
    ) -> float | None:
        """Return ``program_p`` of controls that were found in one context; None without effects."""
        measured = evidence == Evidence.MEASURED
        keys = [(context, measured, target) for target in targets]
        if program not in self.programs.names or any(key not in self.deltas for key in keys):
            return None
        position = {gene_id: i for i, gene_id in enumerate(self.programs.gene_ids)}
        own = np.array([position.get(target, -1) for target in targets])
        weights = self.programs.weights[self.programs.names.index(program)]
        seed = np.random.default_rng(len(targets))
        drawn = random_weights(weights, self.bins, RANDOM_PROGRAMS, seed)
        deltas = np.stack([self.deltas[key] for key in keys])
        moved = mean_signed_score(deltas, own, signs, np.vstack([weights, drawn]))
        reached = np.sum(moved[1:] >= moved[0] - 1e-12)
        return float((reached + 1) / (len(drawn) + 1)) if np.isfinite(moved[0]) else None


def expression_bins(mean: Floats) -> Ints:
    """Return the bin of each gene by rank of its mean expression, as even as can be."""
    order = np.argsort(np.argsort(np.nan_to_num(mean), kind="stable"), kind="stable")
    return np.asarray(order * EXPRESSION_BINS // max(len(mean), 1), dtype=np.int64)


def random_weights(weights: Floats, bins: Ints, n: int, rng: np.random.Generator) -> Floats:
    """Return n programs (n, G) with the same weights on other genes of the same bin."""
    drawn = np.tile(weights, (n, 1))
    for name in np.unique(bins[weights != 0]):
        columns = np.flatnonzero(bins == name)
        drawn[:, columns] = rng.permuted(drawn[:, columns], axis=1)
    return drawn


def mean_signed_score(deltas: Floats, own: Ints, signs: Floats, programs: Floats) -> Floats:
    """Return the mean over controls of sign times score, for each of N programs, shape (N,).

    Parameters
    ----------
    deltas
        (K, G) effects of the controls.
    own
        (K,) column of each control's own gene, which is left out; -1: not on the panel.
    signs
        (K,) 1 for toward, -1 for away.
    programs
        (N, G) weights.
    """
    inside = np.flatnonzero(own >= 0)
    others = deltas.copy()
    others[inside, own[inside]] = 0.0
    total = np.repeat(np.abs(programs).sum(axis=1)[None], len(own), axis=0)  # (K, N)
    total[inside] -= np.abs(programs[:, own[inside]]).T
    with np.errstate(invalid="ignore", divide="ignore"):
        scores = (others @ programs.T) / total
    return np.asarray((signs[:, None] * scores).mean(axis=0))


def read_control_effects(
    predicted: Sequence[Path],
    measured: Path | None,
    targets: Sequence[str],
    programs: ProgramMatrix,
    mean: Floats,
) -> ControlEffects:
    """Read the effects of the controls alone from the files of a run.

    Raises
    ------
    DataError
        A file is not one of effects.
    """
    index = {gene_id: i for i, gene_id in enumerate(programs.gene_ids)}
    deltas: dict[tuple[str, bool, str], Floats] = {}
    for paths, is_measured in ((list(predicted), False), ([measured] if measured else [], True)):
        if not paths:
            continue
        try:
            rows = (
                pl.scan_parquet(paths)
                .select("context", "target_gene_id", "gene_id", "delta")
                .filter(pl.col("target_gene_id").cast(pl.String).is_in(list(targets)))
                .with_columns(pl.col("context", "target_gene_id", "gene_id").cast(pl.String))
                .collect(engine="streaming")
            )
        except (pl.exceptions.PolarsError, OSError) as error:
            msg = f"{paths[0]} is no file of effects ({str(error).splitlines()[0]}); score again."
            raise DataError(msg) from error
        for (context, target), part in rows.group_by("context", "target_gene_id"):
            values = np.zeros(len(index))
            columns = [index[gene_id] for gene_id in part["gene_id"]]
            values[columns] = part["delta"].fill_null(0.0).to_numpy()
            deltas[str(context), is_measured, str(target)] = values
    return ControlEffects(programs, expression_bins(mean), deltas)
