"""One row per setting that was tried and number that was measured of it."""

from dataclasses import dataclass, field

import polars as pl

from knockscreen.sampling import Guidance

SOLVER, GUIDANCE = "solver", "guidance"
SCHEMA = {
    "part": pl.String,
    "solver": pl.String,
    "steps": pl.Int64,
    "strategy": pl.String,
    "context_weight": pl.Float64,
    "perturbation_weight": pl.Float64,
    "metric": pl.String,
    "value": pl.Float64,
    "difference": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "n": pl.Int64,
    "verdict": pl.String,
}
"""Columns of ``sweep.parquet``. ``part`` is what was varied, solver or guidance. ``difference`` is
that to no guidance, with its interval over targets; NULL where nothing is compared. ``n`` counts
what the value is of: pairs of knock-down and context, targets, or cells."""


@dataclass(frozen=True)
class Setting:
    """A way to generate cells that is tried."""

    solver: str
    steps: int
    guidance: Guidance = field(default_factory=Guidance)

    def row(self, part: str, metric: str, value: float, **more: object) -> dict[str, object]:
        """Return a row of the table."""
        g = self.guidance
        return {
            "part": part, "solver": self.solver, "steps": self.steps, "strategy": g.strategy,
            "context_weight": g.context, "perturbation_weight": g.perturbation, "metric": metric,
            "value": value, **more,
        }  # fmt: skip


def frame(rows: list[dict[str, object]]) -> pl.DataFrame:
    """Return rows as the table; NaN becomes NULL."""
    return pl.DataFrame(rows, schema=SCHEMA).with_columns(pl.selectors.float().fill_nan(None))
