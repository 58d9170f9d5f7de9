"""Guidance weights judged by validation cells, beside no guidance.

What varies is the target: every number is over targets, and every interval resamples them. A
weight is preferred to no guidance only where it is clearly better; many weights are tried, so the
intervals are as wide as their number asks for (Bonferroni).
P targets, U units of cells, B resamples, S settings.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from knockscreen.data.cells import CellStore
from knockscreen.names import NTC
from knockscreen.sampling import Guidance, Sampler, Screen
from knockscreen.score.compare import verdict
from knockscreen.score.metrics import ALL
from knockscreen.screening import matched_cells
from knockscreen.sweep.table import GUIDANCE, Setting, frame
from knockscreen.sweep.validation import FEWEST, OF_CELLS, OF_EFFECTS, Cells, Validation

Floats = NDArray[np.float64]

ERROR = 0.05
"""Chance that any of the settings looks clearly better on a metric where none is."""
GAIN = ("pearson_delta", "centroid_accuracy")
"""Metrics that guidance has to improve to be worth its passes."""


def weights(
    strategies: Sequence[str], of_context: Sequence[float], of_perturbation: Sequence[float]
) -> list[Guidance]:
    """Return no guidance, then every other pair of weights of every strategy.

    The joint strategy has one weight, so only the perturbation's are tried.
    """
    found = [Guidance()]
    for strategy in strategies:
        for context in of_context:
            for perturbation in of_perturbation:
                pair = perturbation if strategy == "joint" else context
                guidance = Guidance(strategy, float(pair), float(perturbation))
                same = strategy == "joint" and perturbation == 1
                if guidance not in found and not same:
                    found.append(guidance)
    return found


@dataclass(frozen=True)
class Judged:
    """One setting and what validation cells say of it."""

    setting: Setting
    effects: dict[str, Floats]  # metric -> (P,)
    cells: Cells


def judge(
    sampler: Sampler, tried: Sequence[Setting], seen: Validation, store: CellStore, *, draws: int
) -> Iterator[Judged]:
    """Yield each setting judged; all of them share noise, library sizes and count sampling."""
    for setting in tried:
        changed = sampler.changed(
            draws=draws, solver=setting.solver, steps=setting.steps, guidance=setting.guidance
        )
        screen = Screen(changed, seen.contexts)
        control = screen.generate(NTC).log1p.mean(axis=1)

        def delta(
            gene_id: str, screen: Screen = screen, control: NDArray[np.float32] = control
        ) -> NDArray[np.float32]:
            return np.asarray(screen.generate(gene_id).log1p.mean(axis=1) - control)

        effects = seen.effects(delta)
        yield Judged(setting, effects, seen.cells(matched_cells(changed, store, seen.rows)))


def resamples(n: int, size: int, rng: np.random.Generator) -> Floats:
    """Return how often each of ``n`` targets occurs (1 + B, n); the first row is each once."""
    drawn = rng.multinomial(n, np.full(n, 1 / n), size=size)
    return np.concatenate([np.ones((1, n)), drawn]).astype(float)


def compare(judged: Sequence[Judged], size: int, rng: np.random.Generator) -> pl.DataFrame:
    """Return the rows of all settings; the first is the one that the others are compared to."""
    first = judged[0]
    level = ERROR / max(1, len(judged) - 1)
    of_units = resamples(len(first.cells.n), size, rng)
    bases = first.cells.metrics(of_units)
    rows = []
    for one in judged:
        for metric in OF_EFFECTS:
            both = np.isfinite(one.effects[metric]) & np.isfinite(first.effects[metric])
            n = int(both.sum())
            drawn = resamples(n, size, rng) / n if n else np.full((1 + size, 0), np.nan)
            pair = [drawn @ side.effects[metric][both] for side in (one, first)]
            rows.append(one.setting.row(GUIDANCE, metric, pair[0][0] if n else np.nan, n=n))
            if one is not first:
                rows[-1] |= difference(metric, pair[0] - pair[1], n, level)
        found = one.cells.metrics(of_units)
        n = int(one.cells.n.sum())
        for metric in OF_CELLS:
            rows.append(one.setting.row(GUIDANCE, metric, found[metric][0], n=n))
            if one is not first:
                change = found[metric] - bases[metric]
                rows[-1] |= difference(metric, change, len(first.cells.n), level)
    return frame(rows)


def difference(metric: str, change: Floats, targets: int, level: float) -> dict[str, object]:
    """Return a difference, its interval and its verdict; ``change`` (1 + B,) has itself first."""
    low, high = interval(change[1:], level) if targets >= FEWEST else (np.nan, np.nan)
    best = ALL[metric].best
    value = float(change[0]) if targets else float("nan")
    return {"difference": value, "low": low, "high": high, "verdict": verdict(low, high, best)}


def interval(values: Floats, level: float) -> tuple[float, float]:
    """Return the percentile interval that leaves out ``level`` of the resamples; NaN if undefined.

    >>> interval(np.arange(101.0), 0.1)
    (5.0, 95.0)
    """
    defined = values[np.isfinite(values)]
    if not len(defined) or len(defined) < 0.5 * len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [level / 2, 1 - level / 2])
    return float(low), float(high)


def choose(table: pl.DataFrame) -> tuple[Guidance, str]:
    """Return the guidance to use, and why: none, unless a weight is clearly better.

    Clearly better is a win on Pearson delta or on discrimination and a loss on no metric. Of
    several, the one that gains most on the two together.
    """
    key = ["strategy", "context_weight", "perturbation_weight"]
    rows = table.filter(pl.col("part") == GUIDANCE, pl.col("difference").is_not_null())
    tried = rows.select(key).n_unique()
    gains = pl.col("metric").is_in(list(GAIN))
    summary = rows.group_by(key).agg(
        ((pl.col("verdict") == "wins") & gains).any().alias("wins"),
        (pl.col("verdict") == "loses").any().alias("loses"),
        pl.col("difference").filter(gains).sum().alias("gain"),
    )
    better = summary.filter("wins", ~pl.col("loses")).sort(
        ["gain", *key], descending=[True, False, False, False]
    )
    if better.is_empty():
        won = summary.filter("wins").height
        why = (
            f"none of {tried} other settings is clearly better than no guidance on Pearson delta or"
            " discrimination without being clearly worse on another metric"
            + (f" ({won} win one of the two, and lose another)" if won else "")
        )
        return Guidance(), why
    row = better.row(0, named=True)
    of_best = rows.filter(*(pl.col(name) == row[name] for name in key), gains)
    gained = ", ".join(
        f"{metric} {difference:+.3f} ({low:+.3f} to {high:+.3f})"
        for metric, difference, low, high in of_best.select(
            "metric", "difference", "low", "high"
        ).iter_rows()
    )
    why = f"clearly better than no guidance on validation cells, and worse on no metric: {gained}"
    return Guidance(str(row[key[0]]), float(row[key[1]]), float(row[key[2]])), why
