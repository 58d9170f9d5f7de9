"""How good a predicted knock-down is, as pure functions with their undefined cases stated.

P targets, G genes, R rivals, N cells, D dimensions. ``delta`` is the mean log1p CP10k (natural
log) of perturbed minus control cells of the same context. Undefined is NaN, never a number.

The names are those of cell-eval and Systema where they mean the same. One thing differs: callers
leave the target's own gene out of every metric (it is NaN in their arrays), since that it falls is
what was done, not what was predicted. Where the target is not on the panel the numbers agree.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.special import ndtr

from knockscreen.score.statistics import benjamini_hochberg, welch_t

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

FDR = 0.05
"""Benjamini-Hochberg level below which a gene counts as differentially expressed (DE)."""
MOST_CHANGED = 50
"""Genes of ``pearson_delta_top50``, by the size of the real delta."""
PRIOR_CELLS = 10.0
"""Weight, in cells, of the control's variance when a target's variance is estimated."""
DELTA = "delta: log1p CP10k, target's own gene left out"


@dataclass(frozen=True)
class Metric:
    """What a metric's values mean."""

    best: float
    chance: float | None
    """Value of a prediction that knows nothing of the target; None: depends on the data."""
    space: str
    is_correlation: bool = False
    """Its ceiling is corrected from halves to the full measurement, sqrt(2r / (1 + r))."""


METRICS: dict[str, Metric] = {
    "pearson_delta": Metric(1.0, 0.0, DELTA, is_correlation=True),
    "pearson_delta_top50": Metric(1.0, 0.0, f"{DELTA}, 50 most changed genes", is_correlation=True),
    "pearson_delta_perturbed_mean": Metric(
        1.0, 0.0, f"{DELTA}, minus the mean of the screened targets", is_correlation=True
    ),
    "discrimination_score_l1": Metric(1.0, 0.5, f"{DELTA}, L1 distance"),
    "centroid_accuracy": Metric(1.0, 0.5, f"{DELTA}, rivals' own genes too, Euclidean distance"),
    "mae_delta": Metric(0.0, None, DELTA),
    "weighted_r2_de": Metric(1.0, 0.0, f"{DELTA}, DE genes weighted by |t|"),
    "direction_match": Metric(1.0, 0.5, "sign of delta, DE genes"),
    "de_overlap_at_n": Metric(1.0, None, "DE genes by |delta|"),
    "de_precision": Metric(1.0, None, "called genes that are DE"),
    "de_recall": Metric(1.0, None, "DE genes that are called"),
    "de_auprc": Metric(1.0, None, "DE genes by |expected t|"),
}
"""Metrics with a value per target."""
OVER_TARGETS: dict[str, Metric] = {
    "program_spearman": Metric(1.0, 0.0, "program scores over targets", is_correlation=True)
}
"""Metrics with a value per program over all targets."""
OF_CELLS: dict[str, Metric] = {
    "mean_r2": Metric(1.0, 0.0, "per-gene mean of log1p CP10k over cells, about the identity"),
    "variance_r2": Metric(1.0, 0.0, "per-gene variance of log1p CP10k over cells, likewise"),
    "energy_distance": Metric(
        0.0, None, "20 principal components of training cells' log1p CP10k; Euclidean, unbiased"
    ),
    "mmd": Metric(
        0.0, None, "the same components; squared, unbiased; Gaussian kernels of the median distance"
        " times 1/2, 1 and 2"
    ),
}  # fmt: skip
"""Metrics of generated cells beside real ones of the same conditions."""
ALL = METRICS | OVER_TARGETS | OF_CELLS


def pearson(predicted: Floats, real: Floats) -> float:
    """Return Pearson's correlation over genes where both are finite; NaN if a side is constant.

    >>> round(pearson(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])), 6)
    1.0
    """
    both = np.isfinite(predicted) & np.isfinite(real)
    if both.sum() < 3:
        return float("nan")
    x, y = predicted[both], real[both]
    if np.ptp(x) <= 1e-12 * np.abs(x).max(initial=0) or np.ptp(y) <= 1e-12 * np.abs(y).max():
        return float("nan")
    x, y = x - x.mean(), y - y.mean()
    return float(np.clip(x @ y / np.sqrt((x @ x) * (y @ y)), -1, 1))


def most_changed(real: Floats, n: int = MOST_CHANGED) -> Ints:
    """Return the genes (at most ``n``) with the largest real delta, whatever its sign."""
    size = np.where(np.isfinite(real), np.abs(real), -1.0)
    order = np.argsort(-size, kind="stable")[:n]
    return order[size[order] >= 0]


def mae(predicted: Floats, real: Floats) -> float:
    """Return the mean absolute difference over genes where both are finite.

    >>> mae(np.array([1.0, 2.0]), np.array([1.5, 2.5]))
    0.5
    """
    both = np.isfinite(predicted) & np.isfinite(real)
    return float(np.abs(predicted[both] - real[both]).mean()) if both.any() else float("nan")


def weighted_r2(predicted: Floats, real: Floats, weights: Floats) -> float:
    """Return 1 - weighted residual sum of squares / weighted sum of squares of the real deltas.

    1 is perfect, 0 as good as no change at all, and it can be negative. The total is about zero,
    not about the genes' mean: DE genes often move one way. NaN without a gene of weight.

    >>> weighted_r2(np.array([1.0, 2, 3]), np.array([1.0, 2, 3]), np.ones(3))
    1.0
    """
    both = np.isfinite(predicted) & np.isfinite(real) & (weights > 0)
    x, y, w = predicted[both], real[both], weights[both]
    total = float(w @ y**2)
    return 1 - float(w @ (y - x) ** 2) / total if total > 0 else float("nan")


def direction_match(predicted: Floats, real: Floats, of: Bools) -> float:
    """Return the share of genes ``of`` whose predicted and real delta have one sign; 0 has none.

    >>> direction_match(np.array([1.0, -1, 0]), np.array([2.0, 3, 1]), np.ones(3, dtype=bool))
    0.3333333333333333
    """
    if not of.any():
        return float("nan")
    return float(np.mean(np.sign(predicted[of]) * np.sign(real[of]) > 0))


def overlap_at_n(predicted: Floats, called: Bools, real: Floats, of: Bools) -> float:
    """Return the share of the k real DE genes ``of`` among the k largest of the called genes.

    cell-eval's ``overlap_at_N``: both sets are sorted by size of change, k is the real set's size.
    0 where nothing is called; NaN where no gene is really DE (cell-eval says 0).
    """
    k = int(of.sum())
    if k == 0:
        return float("nan")
    size = np.where(called & np.isfinite(predicted), np.abs(predicted), -1.0)
    top = np.argsort(-size, kind="stable")[:k]
    return float(np.sum(of[top] & (size[top] >= 0))) / k


def precision_recall(called: Bools, of: Bools) -> tuple[float, float]:
    """Return the share of called genes that are DE, and the share of DE genes that are called.

    NaN where nothing is called, or nothing is DE.

    >>> precision_recall(np.array([True, True, False]), np.array([True, False, True]))
    (0.5, 0.5)
    """
    hits = float(np.sum(called & of))
    return (
        hits / float(called.sum()) if called.any() else float("nan"),
        hits / float(of.sum()) if of.any() else float("nan"),
    )


def average_precision(score: Floats, of: Bools) -> float:
    """Return the area under the precision-recall curve (steps); ties count as one threshold.

    A constant score gives the share of DE genes. NaN where no gene, or every gene, is DE.

    >>> average_precision(np.array([3.0, 2, 1]), np.array([True, False, True])).__round__(4)
    0.8333
    """
    known = np.isfinite(score)
    s, y = score[known], of[known]
    if not y.any() or y.all():
        return float("nan")
    order = np.argsort(-s, kind="stable")
    last = np.flatnonzero(np.append(np.diff(s[order]) != 0, True))
    hits = np.cumsum(y[order])[last]
    precision, recall = hits / (last + 1), hits / y.sum()
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


@dataclass(frozen=True)
class Rivals:
    """The real targets that predictions are told apart from."""

    real: Floats  # (R, G) deltas, finite
    same: Bools  # (P, R) whether a rival is the prediction's own target, which is passed over
    own: Ints  # (R,) column of the rival's own gene to leave out of distances to it; -1: none
    targets: int
    """Targets in all, the own one included; more than R + 1 where R are a sample."""


def farther(
    predicted: Floats, real: Floats, own: Ints, rivals: Rivals, *, squared: bool
) -> tuple[Floats, Ints]:
    """Return how many rivals are farther from each prediction than its own target is.

    Parameters
    ----------
    predicted, real
        (P, G) deltas of the same targets, with finite values (the own gene too).
    own
        (P,) column of each target's own gene, left out of all its distances; -1: none.
    squared
        Euclidean distance instead of L1.

    Returns
    -------
    tuple
        Counts (P,), a tie counting as half, and how many rivals there were (P,). NaN for a
        prediction that is not finite.
    """
    power = 2 if squared else 1
    distance = cdist(predicted, rivals.real, "sqeuclidean" if squared else "cityblock")
    to_own = (np.abs(predicted - real) ** power).sum(axis=1)
    rows = np.flatnonzero(own >= 0)
    at = predicted[rows, own[rows]]
    distance[rows] -= np.abs(at[:, None] - rivals.real[:, own[rows]].T) ** power
    to_own[rows] -= np.abs(at - real[rows, own[rows]]) ** power
    for r in np.flatnonzero(rivals.own >= 0):
        gene = rivals.own[r]
        term = np.abs(predicted[:, gene] - rivals.real[r, gene]) ** power
        distance[:, r] -= np.where(own == gene, 0.0, term)
    difference = distance - to_own[:, None]
    near = np.abs(difference) <= 1e-9 * (np.abs(distance) + np.abs(to_own)[:, None])
    score = np.where(near, 0.5, difference > 0) * ~rivals.same
    count = np.where(np.isfinite(to_own), score.sum(axis=1), np.nan)
    return count, np.asarray((~rivals.same).sum(axis=1))


def discrimination_score(count: Floats, rivals: Ints, targets: int) -> Floats:
    """Return 1 - rank / P from the counts of :func:`farther`; rank 0 is the nearest of P targets.

    cell-eval's and the Virtual Cell Challenge's score, 1 at best and (P + 1) / 2P by chance. Chance
    is more where the targets' own genes fall far and the panel is small: every rival is then far
    from any prediction (:func:`centroid_accuracy` leaves their own genes out too). Of a sample of
    rivals, the rank among all P targets is the share that is closer times P - 1.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        closer = 1 - count / rivals
        return np.asarray(1 - closer * (targets - 1) / targets)


def centroid_accuracy(count: Floats, rivals: Ints) -> Floats:
    """Return the share of other targets' centroids that are farther than the own one (Systema)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(count / rivals)


def moderated_variance(variance: Floats, n: Floats, control: Floats) -> Floats:
    """Return a target's variance of cells, moderated by the control's (as if of ten more cells).

    Among a handful of cells a gene that none of them expresses has no variance at all, and would
    be differentially expressed with certainty.
    """
    own = np.where(n > 1, np.nan_to_num(variance) * (n - 1), 0.0)
    return np.asarray((own + PRIOR_CELLS * control) / (np.maximum(n - 1, 0) + PRIOR_CELLS))


def t_test(delta: Floats, parts: Floats, freedoms: Floats) -> tuple[Floats, Floats]:
    """Return Welch's t and its FDR over genes (the last axis); a NaN or constant gene is no test.

    Parameters
    ----------
    delta
        (..., G).
    parts
        (K, ..., G) parts of the squared standard error: variance / cells of every group of cells.
    freedoms
        (K, ..., 1) degrees of freedom of each part.
    """
    t, p = welch_t(delta, parts, freedoms)
    return t, benjamini_hochberg(p)


def expected_calls(t: Floats) -> Bools:
    """Return which genes an experiment is expected to call DE, from the t that it would show.

    ``t`` (..., G) is a predicted delta over the standard error of a real experiment of that many
    cells. A gene is called if, were the experiment to show just that t, its Benjamini-Hochberg FDR
    over the genes would be below 5 %. Nothing here depends on how many cells were generated.
    """
    p = 2 * ndtr(-np.abs(t))
    return np.asarray(np.nan_to_num(benjamini_hochberg(p), nan=1.0) < FDR)
