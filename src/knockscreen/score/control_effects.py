"""Do the positive controls move this program, or would they move any program as far.

K controls, N random programs, G panel genes. Controls of one pathway move the same genes together,
so that they come out on one side of *any* program, and by luck on the right one: their AUROC alone
cannot tell. So the mean signed score of the controls,

    S = mean_k sign_k score_k,

is compared with that of random programs (:mod:`knockscreen.score.random_programs`: of like
expression, as co-expressed, the same that specificity is judged by): ``program_p`` =
(b + 1) / (N + 1), b random programs with an S as large.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from knockscreen.errors import DataError
from knockscreen.names import Evidence
from knockscreen.score.programs import ProgramMatrix
from knockscreen.score.random_programs import Background, random_programs

RANDOM_PROGRAMS = 999

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
ProgramP = Callable[[str, str, Sequence[str], Floats], float | None]
"""``program_p`` of context, evidence, ids of the controls found there and their signs."""


@dataclass(frozen=True)
class ControlEffects:
    """Effects of the knock-downs that are controls of any program, and the panel they are over."""

    programs: ProgramMatrix
    background: Background  # of control cells
    deltas: dict[tuple[str, bool, str], Floats]  # (context, is measured, target) -> (G,)

    def p_values(self, program: str) -> ProgramP:
        """Return what gives ``program_p`` in each context; its random programs are drawn once."""
        if program not in self.programs.names:
            return lambda context, evidence, targets, signs: None
        k = self.programs.names.index(program)
        weights = self.programs.weights[k : k + 1]
        one = replace(self.programs, names=(program,), weights=weights)
        drawn = random_programs(one, self.background, RANDOM_PROGRAMS)[0]
        every = np.vstack([weights / np.abs(weights).sum(), drawn])
        position = {gene_id: i for i, gene_id in enumerate(self.programs.gene_ids)}

        def p_value(
            context: str, evidence: str, targets: Sequence[str], signs: Floats
        ) -> float | None:
            keys = [(context, evidence == Evidence.MEASURED, target) for target in targets]
            if any(key not in self.deltas for key in keys):
                return None
            own = np.array([position.get(target, -1) for target in targets])
            deltas = np.stack([self.deltas[key] for key in keys])
            moved = mean_signed_score(deltas, own, signs, every)
            reached = np.sum(moved[1:] >= moved[0] - 1e-12)
            return float((reached + 1) / (len(drawn) + 1)) if np.isfinite(moved[0]) else None

        return p_value


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
        (N, G) weights, on the scale of scores: what is left without a control's own gene is scaled
        up to the absolute sum of all.
    """
    inside = np.flatnonzero(own >= 0)
    others = deltas.copy()
    others[inside, own[inside]] = 0.0
    total = np.abs(programs).sum(axis=1)[None]  # (1, N)
    left = np.repeat(total, len(own), axis=0)  # (K, N)
    left[inside] -= np.abs(programs[:, own[inside]]).T
    with np.errstate(invalid="ignore", divide="ignore"):
        scores = (others @ programs.T) * total / np.where(left > 1e-9 * total, left, np.nan)
    return np.asarray((signs[:, None] * scores).mean(axis=0))


def read_control_effects(
    predicted: Sequence[Path],
    measured: Path | None,
    targets: Sequence[str],
    programs: ProgramMatrix,
    background: Background,
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
    return ControlEffects(programs, background, deltas)
