"""The model beside each baseline, with intervals over targets.

P targets, B bootstrap resamples, K programs. Generated cells are free, targets are not: the
interval is over targets, resampled with replacement.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import rankdata

from knockscreen.score.evaluate import (
    CEILING,
    MODEL,
    SPLIT_HALF,
    Answer,
    aggregate,
    as_ceiling,
)
from knockscreen.score.metrics import ALL, METRICS
from knockscreen.score.statistics import perfect_predictor_correlation

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

COVERAGE = 0.95
SCHEMA = {
    "split": pl.String,
    "context": pl.String,
    "metric": pl.String,
    "baseline": pl.String,
    "model_value": pl.Float64,
    "baseline_value": pl.Float64,
    "difference": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "best": pl.Float64,
    "n": pl.Int64,
    "verdict": pl.String,
}
"""Columns of ``summary.parquet``; ``verdict`` is wins, ties, loses, or NULL where undecided."""
RANK_RESAMPLES = 200
"""Resamples of a rank correlation at most: each sorts all targets for every program."""
FEWEST = 3
"""Targets that an interval needs."""


def verdict(low: float, high: float, best: float) -> str | None:
    """Return whether the model wins, ties or loses, from the interval of model minus baseline.

    >>> verdict(0.1, 0.2, best=1.0), verdict(0.1, 0.2, best=0.0), verdict(-0.1, 0.2, best=1.0)
    ('wins', 'loses', 'ties')
    """
    if not (np.isfinite(low) and np.isfinite(high)):
        return None
    if low <= 0 <= high:
        return "ties"
    return "wins" if (low > 0) == (best > 0) else "loses"


def interval(values: Floats) -> tuple[float, float]:
    """Return the percentile interval of bootstrap values; NaN where most are undefined."""
    defined = values[np.isfinite(values)]
    if len(defined) < 0.5 * len(values):
        return float("nan"), float("nan")
    tail = (1 - COVERAGE) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)


def compare(
    answers: Mapping[str, Answer], resamples: int, rng: np.random.Generator
) -> pl.DataFrame:
    """Return the model beside every other method of one case, metric by metric.

    Only targets for which both have a value are compared.
    """
    model = answers[MODEL]
    found = []
    others = [as_ceiling(a) if a.method == SPLIT_HALF else a for a in answers.values()]
    for answer in others:
        name = answer.method
        if name == MODEL:
            continue
        a, b = align(model, answer)
        for metric in METRICS:
            found.append(_row(metric, name, (model.values[metric][a], answer.values[metric][b]),
                              resamples, rng))  # fmt: skip
        found.append(_programs(name, (model, a), (answer, b), resamples, rng))
    frame = pl.DataFrame(found, schema={k: v for k, v in SCHEMA.items() if k in found[0]})
    fixed = (pl.lit(model.case.split).alias("split"), pl.lit(model.case.context).alias("context"))
    return (
        frame.with_columns(*fixed).select(*SCHEMA).with_columns(pl.selectors.float().fill_nan(None))
    )


def align(a: Answer, b: Answer) -> tuple[Ints, Ints]:
    """Return the rows of both answers that are of the same target."""
    _, of_a, of_b = np.intersect1d(a.case.targets, b.case.targets, return_indices=True)
    return of_a, of_b


def _row(
    metric: str,
    name: str,
    pair: tuple[Floats, Floats],
    resamples: int,
    rng: np.random.Generator,
) -> dict[str, object]:
    both = np.isfinite(pair[0]) & np.isfinite(pair[1])
    model, other = pair[0][both], pair[1][both]
    value, against = aggregate(model), aggregate(other)
    low = high = float("nan")
    if len(model) >= FEWEST:
        draws = rng.integers(0, len(model), (resamples, len(model)))
        low, high = interval(model[draws].mean(axis=1) - other[draws].mean(axis=1))
    return _summary(metric, name, (value, against), (low, high), len(model))


def _programs(
    name: str,
    model: tuple[Answer, Ints],
    other: tuple[Answer, Ints],
    resamples: int,
    rng: np.random.Generator,
) -> dict[str, object]:
    """Return the mean over programs of Spearman over targets, compared."""
    ours = _scores([model[0]], model[1])
    theirs = _scores(other[0].repeats or (other[0],), other[1])
    every = np.concatenate([*ours, *theirs], axis=-1)  # (n, K of all)
    usable = np.isfinite(every).all(axis=1)
    n = int(usable.sum())
    pairs = [[side[usable] for side in sides] for sides in (ours, theirs)]

    def values(sides: list[Floats], draws: Ints) -> Floats:
        halves = zip(sides[::2], sides[1::2], strict=True)
        found = np.mean([mean_spearman(made[draws], real[draws]) for made, real in halves], axis=0)
        if sides is pairs[1] and name == CEILING:
            found = np.array([perfect_predictor_correlation(r) for r in np.atleast_1d(found)])
        return np.asarray(found)

    value, against = (float(values(sides, np.arange(n)).mean()) for sides in pairs)
    low = high = float("nan")
    if n >= FEWEST:
        draws = rng.integers(0, n, (min(resamples, RANK_RESAMPLES), n))
        low, high = interval(values(pairs[0], draws) - values(pairs[1], draws))
    return _summary("program_spearman", name, (value, against), (low, high), n)


def _scores(answers: Sequence[Answer], rows: Ints) -> list[Floats]:
    """Return predicted and real program scores (n, K) of some targets, in turn for each answer."""
    return [part[rows] for a in answers for part in (a.scores, a.real_scores)]


def mean_spearman(made: Floats, real: Floats) -> Floats:
    """Return the mean over programs of Spearman's correlation over targets, of (..., n, K) scores.

    A program whose scores are constant on a side does not count; NaN where none is left, or with
    fewer than three targets.
    """
    if made.shape[-2] < FEWEST:
        return np.full(made.shape[:-2], np.nan)
    x, y = rankdata(made, axis=-2), rankdata(real, axis=-2)
    x, y = x - x.mean(axis=-2, keepdims=True), y - y.mean(axis=-2, keepdims=True)
    norm = np.sqrt((x**2).sum(axis=-2) * (y**2).sum(axis=-2))
    with np.errstate(divide="ignore", invalid="ignore"):
        found = (x * y).sum(axis=-2) / np.where(norm > 0, norm, np.nan)
        there = np.isfinite(found).sum(axis=-1)
        return np.asarray(np.nansum(found, axis=-1) / np.where(there > 0, there, np.nan))


def _summary(
    metric: str, name: str, values: tuple[float, float], bounds: tuple[float, float], n: int
) -> dict[str, object]:
    best = ALL[metric].best
    return {
        "metric": metric, "baseline": name, "model_value": values[0], "baseline_value": values[1],
        "difference": values[0] - values[1], "low": bounds[0], "high": bounds[1], "best": best,
        "n": n, "verdict": verdict(*bounds, best),
    }  # fmt: skip


def of_cells(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the summary rows of metrics that have one value per method and no interval."""
    keys = ["split", "context", "metric", "best"]
    model = rows.filter(pl.col("method") == MODEL).select(*keys, "n", model_value="value")
    others = rows.filter(~pl.col("method").is_in([MODEL, SPLIT_HALF]))
    frame = others.select(*keys, baseline="method", baseline_value="value").join(model, on=keys)
    blank = pl.lit(None, pl.Float64)
    return frame.with_columns(
        (pl.col("model_value") - pl.col("baseline_value")).alias("difference"),
        blank.alias("low"), blank.alias("high"), pl.lit(None, pl.String).alias("verdict"),
    ).select(*SCHEMA)  # fmt: skip
