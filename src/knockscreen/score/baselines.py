"""What a prediction has to beat: simple answers from the training cells alone.

T targets, C contexts, G panel genes, F features. Each baseline is a delta (T, C, G) in log1p
CP10k, NaN where it has no answer; none sees a held-out cell.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import svds

from knockscreen.artifacts import read_json
from knockscreen.errors import DataError
from knockscreen.score.holdout import Holdout
from knockscreen.score.ridge import ridge_fit

Array = NDArray[np.floating]
Floats = NDArray[np.float64]

FEWEST = 4
"""Training targets with features that ridge and nearest genes need."""
NO_ANSWER = {
    "other_context": "not in another context of training",
    "additive": "no training cells",
    "ridge": "no gene features",
    "k_nearest": "no gene features",
    "measured_training": "no training cells",
    "low_rank": "no training cells",
    "perturbation_mean": "no training cells in the context",
    "no_change": "",
    "model": "not generated",
}
"""Why a method has no prediction."""


@dataclass(frozen=True)
class Training:
    """What baselines are made of: effects in the training cells, and gene features."""

    delta: Array  # (T, C, G); NaN without cells; row 0 (control) NaN
    cells: NDArray[np.int64]  # (T, C)
    features: Floats | None  # (T, F) of the targets; NaN where unknown

    @property
    def there(self) -> NDArray[np.bool_]:
        """Which targets and contexts (T, C) have training cells."""
        return np.asarray(self.cells > 0)

    @classmethod
    def of(cls, held: Holdout, features: Floats | None) -> "Training":
        """Take the training cells of the knock-downs."""
        cells, delta = held.train.n.copy(), held.train.delta.copy()
        cells[0], delta[0] = 0, np.nan
        return cls(delta, cells, features)


def read_features(effect: Path | str, held: Holdout) -> Floats | None:
    """Return the gene features (T, F) of the targets that ``fit-effects`` wrote, or None.

    Raises
    ------
    DataError
        The file is missing, broken, or of another panel.
    """
    from safetensors import SafetensorError, safe_open

    effect = Path(effect)
    about = read_json(effect.with_suffix(".json"))
    if tuple(about["vocabulary"]["gene_ids"]) != held.gene_ids:
        msg = f"{effect} is of another panel than the store; run 'knockscreen fit-effects' again."
        raise DataError(msg)
    try:
        with safe_open(effect, framework="np") as file:
            if "features" not in file.keys():  # noqa: SIM118 (not a mapping)
                return None
            of_genes = file.get_tensor("features").astype(np.float64)
    except (OSError, SafetensorError) as error:
        msg = f"{effect} cannot be read ({error}); run 'knockscreen fit-effects' again."
        raise DataError(msg) from error
    if "feature_ids" not in about:
        msg = f"{effect} was fitted by an earlier version; run 'knockscreen fit-effects' again."
        raise DataError(msg)
    row = {gene_id: i for i, gene_id in enumerate(about["feature_ids"])}
    out = np.full((len(held.target_gene_ids), of_genes.shape[1]), np.nan)
    for code, target_id in enumerate(held.target_gene_ids):
        if target_id in row:
            out[code] = of_genes[row[target_id]]
    return out


def no_change(train: Training) -> Array:
    """Predict the control."""
    return np.broadcast_to(np.float32(0), train.delta.shape)


def context_means(train: Training) -> Array:
    """Return the mean delta (C, G) of each context's training targets; NaN without any."""
    count = train.there.sum(axis=0)[:, None]
    with np.errstate(invalid="ignore"):
        return np.asarray(np.nansum(train.delta, axis=0) / np.where(count > 0, count, np.nan))


def perturbation_mean(train: Training) -> Array:
    """Predict the mean of the training targets of the context, whatever the target."""
    return np.broadcast_to(context_means(train), train.delta.shape)


def other_context(train: Training) -> Array:
    """Predict the mean of the same target's training effects in all other contexts."""
    there = train.there[:, :, None]
    total = np.nansum(train.delta, axis=1, keepdims=True)
    own = np.where(there, train.delta, 0)
    count = there.sum(axis=1, keepdims=True) - there
    with np.errstate(invalid="ignore"):
        return np.asarray((total - own) / np.where(count > 0, count, np.nan), dtype=np.float32)


def additive(train: Training) -> Array:
    """Predict context mean + target mean - grand mean, fitted to what was measured.

    The target's part is its mean difference to the context means over the contexts in which it has
    training cells, so that missing contexts do not tilt it.
    """
    means = context_means(train)
    with np.errstate(invalid="ignore"):
        count = train.there.sum(axis=1)[:, None]
        extra = np.nansum(train.delta - means, axis=1) / np.where(count > 0, count, np.nan)
    return np.asarray(means + extra[:, None], dtype=np.float32)


def _usable(train: Training, context: int) -> NDArray[np.bool_]:
    if train.features is None:
        return np.zeros(len(train.cells), dtype=bool)
    return np.asarray(train.there[:, context] & np.isfinite(train.features).all(axis=1))


def ridge(train: Training) -> Array:
    """Predict by ridge regression of the training effects on gene features, context by context.

    The penalty minimises the leave-one-out error. A target that was itself in the regression gets
    its leave-one-out prediction: the baseline never uses a target's own effect.
    """
    out = np.full(train.delta.shape, np.nan, dtype=np.float32)
    for c in range(train.delta.shape[1]):
        fit = _usable(train, c)
        if train.features is None or fit.sum() < FEWEST:
            continue
        n = train.cells[fit, c].astype(np.float64)
        effects = train.delta[fit, c].astype(np.float64)
        weights, left_out = ridge_fit(train.features[fit], effects, n)
        out[:, c] = weights[0] + train.features @ weights[1:]
        out[fit, c] = left_out
    return out


def k_nearest(train: Training, k: int) -> Array:
    """Predict the mean effect of the ``k`` training targets nearest in gene features (cosine).

    A target is never its own neighbour.
    """
    out = np.full(train.delta.shape, np.nan, dtype=np.float32)
    if train.features is None:
        return out
    known = np.isfinite(train.features).all(axis=1)
    unit = np.nan_to_num(train.features)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    for c in range(train.delta.shape[1]):
        fit = np.flatnonzero(_usable(train, c))
        if len(fit) < FEWEST:
            continue
        near = unit @ unit[fit].T  # (T, n)
        near[fit, np.arange(len(fit))] = -np.inf
        take = min(k, len(fit) - 1)
        chosen = np.argsort(-near, axis=1, kind="stable")[:, :take]
        rows = np.repeat(np.arange(len(unit)), take)
        shape = (len(unit), len(fit))
        mean = sparse.csr_matrix((np.full(len(rows), 1 / take), (rows, chosen.ravel())), shape)
        out[known, c] = (mean @ train.delta[fit, c].astype(np.float64))[known]
    return out


def measured_training(train: Training) -> Array:
    """Predict what the same target's training cells measured in the same context."""
    return train.delta


def low_rank(train: Training, components: int) -> Array:
    """Predict the training effects smoothed to a few components, added to their context's mean."""
    means = context_means(train)
    rows, columns = np.nonzero(train.there)
    rest = (train.delta - means)[rows, columns].astype(np.float64)  # (n, G)
    out = np.full(train.delta.shape, np.nan, dtype=np.float32)
    k = min(components, min(rest.shape) - 1)
    if k < 1:
        return out
    if min(rest.shape) <= 4 * k:
        u, s, vt = np.linalg.svd(rest, full_matrices=False)
        smooth = (u[:, :k] * s[:k]) @ vt[:k]
    else:
        start = np.random.default_rng(0).standard_normal(min(rest.shape))
        u, s, vt = svds(rest, k=k, v0=start)
        smooth = (u * s) @ vt
    out[rows, columns] = means[columns] + smooth
    return out


def baselines(
    train: Training, *, neighbours: int, components: int
) -> dict[str, Callable[[], Array]]:
    """Return the baselines by name, each made when it is called."""
    return {
        "no_change": lambda: no_change(train),
        "perturbation_mean": lambda: perturbation_mean(train),
        "other_context": lambda: other_context(train),
        "additive": lambda: additive(train),
        "ridge": lambda: ridge(train),
        "k_nearest": lambda: k_nearest(train, neighbours),
        "measured_training": lambda: measured_training(train),
        "low_rank": lambda: low_rank(train, components),
    }
