"""How well scores of knock-downs agree with another screen, with intervals and beside baselines.

N genes, R bootstrap resamples. Every measure is computed with a weight per gene (how often a
resample drew it), so that one sort serves all resamples; ties count as half, as usual.

- ``auroc``, ``auprc``: of the screen's hits. Hits that *lower* the phenotype are ranked by -score,
  hits that *raise* it by score, all hits by |score|. A baseline without a sign (number of DE genes,
  effect magnitude) is ranked by its size in each case.
- ``spearman``: score against the screen's effect, over all genes.
- ``sign``: share of hits whose score has the sign of their effect; scores of 0 count as half.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

SCHEMA: dict[str, type[pl.DataType]] = {
    "predictor": pl.String,
    "against": pl.String,
    "hits": pl.String,
    "metric": pl.String,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "chance": pl.Float64,
    "n": pl.Int64,
    "n_hits": pl.Int64,
}
COVERAGE = 0.95
ROWS_AT_ONCE = 64
T = TypeVar("T")


@dataclass(frozen=True)
class Predictor:
    """Scores of knock-downs (N,): signed ones say a direction, others only a size."""

    name: str
    score: Floats
    signed: bool
    is_baseline: bool


@dataclass(frozen=True)
class _Order:
    """Genes from the lowest score, with the ends of runs of equal scores."""

    order: NDArray[np.intp]
    ends: NDArray[np.intp]

    @classmethod
    def of(cls, score: Floats) -> "_Order":
        order = np.argsort(score, kind="stable")
        return cls(order, np.flatnonzero(np.append(np.diff(score[order]) != 0, True)))

    def runs(self, weights: Floats) -> Floats:
        """Return sums of weights (..., N) over runs of equal scores (..., runs)."""
        total = np.cumsum(weights[..., self.order], axis=-1)[..., self.ends]
        return np.diff(total, prepend=0.0, axis=-1)


def auroc(order: _Order, hit: Bools, weights: Floats) -> Floats:
    """Return the area under the ROC curve for weights (..., N); NaN without hits or others."""
    hits, others = order.runs(weights * hit), order.runs(weights * ~hit)
    below = np.cumsum(others, axis=-1) - others / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((hits * below).sum(-1) / (hits.sum(-1) * others.sum(-1)))


def auprc(order: _Order, hit: Bools, weights: Floats) -> Floats:
    """Return average precision for weights (..., N); NaN without hits."""
    hits = order.runs(weights * hit)[..., ::-1]
    called = np.cumsum(order.runs(weights)[..., ::-1], axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(called > 0, np.cumsum(hits, axis=-1) / called, 0.0)
        return np.asarray((precision * hits).sum(-1) / hits.sum(-1))


def spearman(order: _Order, other: _Order, weights: Floats) -> Floats:
    """Return Spearman's correlation for weights (..., N), ties averaged; NaN if one is constant."""
    ranks = []
    for one in (order, other):
        run = one.runs(weights)
        middle = np.cumsum(run, axis=-1) - run / 2
        lengths = np.diff(one.ends, prepend=-1)
        rank = np.empty_like(weights)
        rank[..., one.order] = np.repeat(middle, lengths, axis=-1)
        mean = (rank * weights).sum(-1, keepdims=True) / weights.sum(-1, keepdims=True)
        ranks.append(rank - mean)
    x, y = ranks
    with np.errstate(divide="ignore", invalid="ignore"):
        norm = np.sqrt((weights * x * x).sum(-1) * (weights * y * y).sum(-1))
        return np.asarray((weights * x * y).sum(-1) / norm)


def sign_agreement(score: Floats, effect: Floats, hit: Bools, weights: Floats) -> Floats:
    """Return the share of hits whose score has the sign of their effect; NaN without hits."""
    same = np.where(score == 0, 0.5, np.sign(score) == np.sign(effect))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((weights * hit * same).sum(-1) / (weights * hit).sum(-1))


def agreement(
    predictors: list[Predictor],
    effect: Floats,
    is_hit: Bools,
    *,
    resamples: int,
    seed: int,
) -> pl.DataFrame:
    """Return every measure of every predictor with its bootstrap interval over genes.

    Rows with ``against`` are differences between the predictor and that baseline, on the same
    resamples. A measure that is undefined is missing.

    Parameters
    ----------
    effect
        Of the knock-down on the phenotype (N,), positive: raises it.
    is_hit
        Genes that the screen calls.
    """
    n = len(effect)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)
    weights = np.concatenate([np.ones((1, n)), drawn])
    kinds = {"any": is_hit, "lowers": is_hit & (effect < 0), "raises": is_hit & (effect > 0)}
    found: dict[tuple[str, str, str], Floats] = {}
    for one in predictors:
        for kind, hit in kinds.items():
            toward = {"any": np.abs(one.score), "lowers": -one.score, "raises": one.score}[kind]
            order = _Order.of(toward if one.signed else one.score)
            for metric, measure in (("auroc", auroc), ("auprc", auprc)):
                found[one.name, kind, metric] = _chunked(measure, order, hit, weights)
        if one.signed:
            ranked = (_Order.of(one.score), _Order.of(effect))
            found[one.name, "all genes", "spearman"] = _chunked(
                spearman, ranked[0], ranked[1], weights
            )
            found[one.name, "any", "sign"] = sign_agreement(one.score, effect, is_hit, weights)
    counts = {kind: int(hit.sum()) for kind, hit in kinds.items()}
    rows = [_row(key, None, values, n, counts) for key, values in found.items()]
    for one in predictors:
        for other in predictors:
            if one.is_baseline or not other.is_baseline:
                continue
            for (name, kind, metric), values in found.items():
                if name == one.name and (other.name, kind, metric) in found:
                    difference = values - found[other.name, kind, metric]
                    rows.append(_row((name, kind, metric), other.name, difference, n, counts))
    return pl.DataFrame(rows, schema=SCHEMA, orient="row").with_columns(
        pl.col(pl.Float64).fill_nan(None)
    )


def _chunked(
    measure: Callable[[_Order, T, Floats], Floats], one: _Order, two: T, weights: Floats
) -> Floats:
    """Return a measure for all rows of weights, a few at a time: memory stays that of those."""
    starts = range(0, len(weights), ROWS_AT_ONCE)
    return np.concatenate([measure(one, two, weights[i : i + ROWS_AT_ONCE]) for i in starts])


def _row(
    key: tuple[str, str, str], against: str | None, values: Floats, n: int, counts: dict[str, int]
) -> tuple[str | float | None, ...]:
    name, kind, metric = key
    hits = counts.get(kind)
    chance = {"auroc": 0.5, "spearman": 0.0, "sign": 0.5, "auprc": (hits or 0) / n}[metric]
    defined = values[1:][np.isfinite(values[1:])]
    tail = (1 - COVERAGE) / 2
    low, high = np.quantile(defined, [tail, 1 - tail]) if len(defined) else (np.nan, np.nan)
    if against is not None:
        chance = 0.0
    return (name, against, kind, metric, float(values[0]), float(low), float(high), chance, n, hits)
