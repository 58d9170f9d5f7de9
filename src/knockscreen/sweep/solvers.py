"""How far each solver is from the exact path, and at what cost.

The exact path is that of the adaptive solver at a tight tolerance, from the same noise, so that a
difference is the solver's alone. Two things have to come out right: the effects, against which
there is the Monte-Carlo error of the screen's draws, and the cells, which differ among themselves.
K knock-downs, C contexts, R draws, G genes.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import polars as pl
from numpy.typing import NDArray

from knockscreen import flow
from knockscreen.names import NTC
from knockscreen.sampling import Sampler, Screen
from knockscreen.sweep.table import SOLVER, Setting, frame

Floats = NDArray[np.float64]

EXACT = partial(flow.dopri5, rtol=1e-5, atol=1e-6)
"""The reference: a hundredth of the usual tolerance, about what float32 can tell."""
PER_STEP = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4, "ab2": 1}
"""Evaluations of the velocity per step."""


@dataclass(frozen=True)
class Made:
    """Cells of some knock-downs and of control, as expectations over their counts."""

    cells: NDArray[np.float32]  # (1 + K, C, R, G) log1p CP10k, control first
    evaluations: float  # network passes per cell
    seconds: float  # per cell

    @property
    def paired(self) -> NDArray[np.float32]:
        """Paired differences (K, C, R, G) of knock-downs to control."""
        return np.asarray(self.cells[1:] - self.cells[0])


def make(sampler: Sampler, targets: Sequence[str], contexts: list[str]) -> Made:
    """Generate the draws of control and of the targets; count passes and seconds per cell."""
    passed = 0

    def count(module: object, inputs: tuple[object, ...]) -> None:
        nonlocal passed
        passed += len(inputs[0])  # type: ignore[arg-type]

    screen = Screen(sampler, contexts)
    hook = sampler.model.net.register_forward_pre_hook(count)
    began = time.perf_counter()
    try:
        cells = np.stack([screen.generate(name).log1p for name in (NTC, *targets)])
    finally:
        hook.remove()
    seconds = time.perf_counter() - began
    n = int(np.prod(cells.shape[:3]))
    return Made(cells, passed / n, seconds / n)


def settings(solvers: Sequence[str], evaluations: Sequence[int]) -> list[Setting]:
    """Return the settings to try: every solver with the steps that so many evaluations allow."""
    return [
        Setting(solver, n // PER_STEP[solver])
        for solver in solvers
        for n in sorted(set(evaluations))
        if n % PER_STEP[solver] == 0
    ]


def compare(made: Made, exact: Made, draws: int) -> dict[str, float]:
    """Return how far cells are from the exact ones.

    Parameters
    ----------
    draws
        Of the screen: they set the Monte-Carlo error that ``effect_error`` is a share of.

    Returns
    -------
    dict
        ``effect_rmse`` of delta (mean log1p CP10k, knock-down minus control) over genes, and its
        correlation ``effect_r``; ``effect_error``, the RMSE over the standard error of an effect
        (root mean square); ``cell_rmse`` of a cell's expected log1p CP10k, and ``cell_error``, that
        over the standard deviation between cells (root mean square over genes).
    """
    ours, theirs = made.paired.mean(axis=2), exact.paired.mean(axis=2)
    effect_rmse = float(np.sqrt(np.mean((ours - theirs) ** 2, dtype=float)))
    noise = float(np.sqrt(exact.paired.var(axis=2, ddof=1, dtype=float).mean() / draws))
    cell_rmse = float(np.sqrt(np.mean((made.cells - exact.cells) ** 2, dtype=float)))
    spread = float(np.sqrt(exact.cells.var(axis=2, ddof=1, dtype=float).mean()))
    constant = np.ptp(ours) == 0 or np.ptp(theirs) == 0
    r = float("nan") if constant else float(np.corrcoef(ours.ravel(), theirs.ravel())[0, 1])
    return {
        "effect_rmse": effect_rmse,
        "effect_r": r,
        "effect_error": effect_rmse / noise if noise > 0 else float("nan"),
        "cell_rmse": cell_rmse,
        "cell_error": cell_rmse / spread if spread > 0 else float("nan"),
    }


def sweep(
    sampler: Sampler,
    tried: Sequence[Setting],
    targets: Sequence[str],
    contexts: list[str],
    *,
    draws: int,
) -> pl.DataFrame:
    """Return the rows of every setting, and of the exact solver beside them.

    Parameters
    ----------
    draws
        Generated here per knock-down and context; the screen's are those of ``sampler``.
    """
    of_screen = sampler.settings.draws
    exact = make(sampler.changed(EXACT, draws=draws, solver="dopri5", steps=10), targets, contexts)
    rows = []
    for setting in (Setting("dopri5", 10), *tried):
        if setting.solver == "dopri5":
            made = exact
        else:
            changed = sampler.changed(draws=draws, solver=setting.solver, steps=setting.steps)
            made = make(changed, targets, contexts)
        found = compare(made, exact, of_screen)
        found |= {"evaluations": made.evaluations, "seconds_per_cell": made.seconds}
        pairs = len(targets) * len(contexts)
        rows += [setting.row(SOLVER, name, value, n=pairs) for name, value in found.items()]
    return frame(rows)


def choose(table: pl.DataFrame, tolerance: float) -> tuple[Setting, str]:
    """Return the cheapest setting whose errors are within the tolerance, and why it is chosen.

    The cheapest has the fewest evaluations, and among these the smallest error. Where none is
    within the tolerance, the most exact is taken.
    """
    wide = (
        table.filter(pl.col("part") == SOLVER, pl.col("solver") != "dopri5")
        .pivot("metric", index=["solver", "steps"], values="value")
        .with_columns(pl.max_horizontal("effect_error", "cell_error").alias("error"))
        .drop_nulls("error")
        .sort("evaluations", "error", "solver")
    )
    within = wide.filter(pl.col("error") <= tolerance)
    best = (within if within.height else wide.sort("error")).row(0, named=True)
    beside = (
        f"its effects are {best['effect_error']:.3f} standard errors of the screen's draws (root "
        f"mean square) from the exact solver's, its cells {best['cell_error']:.3f} standard "
        f"deviations, with {best['evaluations']:.0f} evaluations instead of "
        f"{_exact(table):.0f}"
    )
    if within.height:
        why = f"the fewest evaluations with both errors within {tolerance:g}: {beside}"
    else:
        why = f"nothing tried has both errors within {tolerance:g}; this is the nearest: {beside}"
    return Setting(str(best["solver"]), int(best["steps"])), why


def _exact(table: pl.DataFrame) -> float:
    rows = table.filter(pl.col("solver") == "dopri5", pl.col("metric") == "evaluations")
    return float(rows["value"][0])
