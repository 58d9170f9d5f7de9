"""Fitting the linear part of the knock-downs from training cells."""

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from knockscreen import checkpoint
from knockscreen.data.cells import CellStore, Vocabulary
from knockscreen.data.features import coexpression, read_table, scrambled
from knockscreen.errors import CheckpointError
from knockscreen.models.denoise import Measured, denoise
from knockscreen.models.effect import GRID, LinearEffect
from knockscreen.models.scrambled import predict_scrambled, with_decoys
from knockscreen.models.unseen import Unseen, fit_unseen
from knockscreen.names import CP10K, UNSEEN_DECOY, Split, own_gene_id
from knockscreen.nn.likelihood import expected_log1p
from knockscreen.training.decoys import decoy_shifts, denoise_decoys

LIBRARIES = 64
"""Control library sizes over which a response curve is averaged."""
COVARIANCE_CELLS = 20_000
"""Training cells that the covariance of single cells is estimated from, at most."""


@dataclass(frozen=True)
class EffectModel:
    """What is known of every gene and every target before any network is trained."""

    vocabulary: Vocabulary
    feature_ids: tuple[str, ...]
    """Genes that features are known of or could be: the panel's, then targets that are off it."""
    features: NDArray[np.float32] | None
    """(N, F) of those genes, NaN where unknown."""
    linear: LinearEffect | None
    trained: tuple[bool, ...]
    """Which targets (by code) have training cells."""

    def own_gene(self, target_id: str) -> int:
        """Return the panel column of a target's own transcript, or -1."""
        ids, gene_id = self.vocabulary.gene_ids, own_gene_id(target_id)
        return ids.index(gene_id) if gene_id in ids else -1

    def features_of(self, gene_id: str) -> NDArray[np.float32] | None:
        """Return the features (F,) of a gene, or None where it has none."""
        known = own_gene_id(gene_id)
        if self.features is None or known not in self.feature_ids:
            return None
        row = self.feature_ids.index(known)
        if not np.isfinite(self.features[row]).all():
            return None
        if gene_id.startswith(UNSEEN_DECOY):
            return scrambled(self.features, row, gene_id)
        return np.asarray(self.features[row])

    def featured(self) -> list[str]:
        """Return the genes that have features."""
        return [gene_id for gene_id in self.feature_ids if self.features_of(gene_id) is not None]

    def effect(self, target_id: str) -> NDArray[np.float64] | None:
        """Return the mean effect (C, G) on all but the own transcript, or None where unknown."""
        code = self.vocabulary.target_code(target_id)
        if self.linear is None or code == 0:
            return None
        if code > 0 and self.trained[code]:
            return self.linear.trained(code)
        if self.features_of(target_id) is None:
            return None
        row, column = self.feature_ids.index(own_gene_id(target_id)), self.own_gene(target_id)
        if target_id.startswith(UNSEEN_DECOY):
            return predict_scrambled(self.linear.unseen, row, column, target_id)
        return self.linear.unseen.predict(row, column)

    def offsets(self, target_id: str) -> NDArray[np.float32]:
        """Return logit offsets (C, G) of a target, by Ensembl id; zeros for control."""
        v = self.vocabulary
        delta = self.effect(target_id)
        if self.linear is None or delta is None:
            return np.zeros((len(v.contexts), len(v.gene_ids)), dtype=np.float32)
        code = v.target_code(target_id)
        measured = code > 0 and self.trained[code]
        own = self.linear.own[code] if measured else np.full(len(v.contexts), np.nan)
        return self.linear.offsets(delta, self.own_gene(target_id), own)

    def base(self) -> NDArray[np.float32]:
        """Return the logit offsets (C, G) of the contexts themselves."""
        v = self.vocabulary
        if self.linear is None:
            return np.zeros((len(v.contexts), len(v.gene_ids)), dtype=np.float32)
        return self.linear.base.astype(np.float32)

    def fingerprint(self) -> str:
        """Return a digest of everything fitted, at the precision that is written to disk."""
        digest = hashlib.sha256(repr((self.vocabulary, self.trained, self.feature_ids)).encode())
        for name, value in {**tensors_of(self.linear), "features": self.features}.items():
            if value is not None:
                digest.update(name.encode() + np.asarray(value, dtype=np.float32).tobytes())
        return digest.hexdigest()

    def table(self) -> NDArray[np.float32]:
        """Return the offsets (T, C, G) of context and target; of the context where not trained."""
        out = np.repeat(self.base()[None], len(self.vocabulary.target_ids), axis=0)
        for code, target_id in enumerate(self.vocabulary.target_ids):
            if self.trained[code]:
                out[code] += self.offsets(target_id)
        return out


def log1p_moments(
    store: CellStore, rows: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """Return log1p CP10k means (T, C, G), cells (T, C), and control moments.

    The moments (2, C, G) are the mean and mean square of CP10k among controls.
    """
    v = store.vocabulary
    targets, contexts, genes = len(v.target_ids), len(v.contexts), len(v.gene_ids)
    context = store.context_index()
    sums = np.zeros((targets * contexts, genes))
    moments = np.zeros((2, contexts, genes))
    group = np.asarray(store.target).astype(np.int64) * contexts + context
    by_group = rows[np.argsort(group[rows], kind="stable")]
    for piece, counts in store.chunks(by_group):
        scaled = counts * (CP10K / store.library_size[piece][:, None])
        inside, start = np.unique(group[piece], return_index=True)
        sums[inside] += np.add.reduceat(np.log1p(scaled), start, axis=0, dtype=float)
        of_control = np.asarray(store.target)[piece] == 0
        for c in np.unique(context[piece][of_control]):
            mine = scaled[of_control & (context[piece] == c)].astype(float)
            moments[0, c] += mine.sum(0)
            moments[1, c] += (mine**2).sum(0)
    cells = np.bincount(group[rows], minlength=targets * contexts)
    means = sums / np.maximum(cells, 1)[:, None]
    moments /= np.maximum(cells[:contexts], 1)[:, None]
    return means.reshape(targets, contexts, genes), cells.reshape(targets, contexts), moments


def cell_covariance(
    store: CellStore, rows: NDArray[np.int64], means: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the covariance (G, G) of log1p CP10k of single cells about ``means`` (T, C, G).

    Of at most ``COVARIANCE_CELLS`` of the rows, taken evenly.
    """
    taken = rows[:: max(1, len(rows) // COVARIANCE_CELLS)]
    target, context = np.asarray(store.target), store.context_index()
    total = np.zeros((means.shape[2], means.shape[2]))
    for piece, counts in store.chunks(taken):
        values = np.log1p(counts * (CP10K / store.library_size[piece][:, None]))
        about = values - means[target[piece], context[piece]]
        total += about.T @ about
    return total / max(len(taken), 1)


def response_curves(
    store: CellStore, means: NDArray[np.float64], moments: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return mean log1p CP10k (C, G, Q) of control cells whose expression is multiplied by e^GRID.

    Each gene is an NB with the control's mean and overdispersion (by moments), averaged over
    quantiles of the control's library sizes; the curve is then moved to pass through the control's
    measured mean at offset 0.
    """
    v = store.vocabulary
    rows = store.rows(Split.TRAIN)
    rows = rows[store.is_control[rows]]
    context = store.context_index()
    curves = np.zeros((len(v.contexts), len(v.gene_ids), len(GRID)))
    for c in range(len(v.contexts)):
        mine = np.asarray(store.library_size)[rows[context[rows] == c]]
        if not len(mine):
            continue
        library = np.quantile(mine.astype(float), (np.arange(LIBRARIES) + 0.5) / LIBRARIES)
        mean, square = moments[0, c], moments[1, c]
        poisson = mean * CP10K * (1 / library).mean()
        extra = np.maximum(square - mean**2 - poisson, 1e-3 * mean**2 + 1e-12)
        theta = torch.from_numpy(np.clip(mean**2 / extra, 1e-2, 1e4))
        size = torch.from_numpy(library)[:, None]
        for q, offset in enumerate(GRID):
            mu = torch.from_numpy(mean * np.exp(offset) / CP10K)[None] * size
            curves[c, :, q] = expected_log1p(mu, theta, CP10K / size).mean(0).numpy()
        ratio = means[0, c] / np.maximum(curves[c, :, len(GRID) // 2], 1e-12)
        curves[c] *= ratio[:, None]
    return curves


def fit_effects(
    store: CellStore, *, features: str, feature_dims: int, rank: int, keep_cells: float
) -> EffectModel:
    """Return gene features, and the denoised effects of the training split (``rank`` 0: none).

    ``keep_cells``: with n cells, n / (n + keep_cells) is kept of what the components do not hold.
    """
    v = store.vocabulary
    rows = store.rows(Split.TRAIN)
    n = v.n_real
    ids = (*v.gene_ids, *(t for t in v.target_ids[1:n] if t not in set(v.gene_ids)))
    of_genes = None
    if features == "coexpression":
        of_genes = coexpression(store, feature_dims)
        blank = np.full((len(ids) - len(of_genes), of_genes.shape[1]), np.nan, dtype=np.float32)
        of_genes = np.concatenate([of_genes, blank])
    elif features != "none":
        symbol = dict(zip((*v.target_ids, *v.gene_ids), (*v.targets, *v.genes), strict=True))
        of_genes = read_table(features, ids, tuple(symbol[i] for i in ids))
    of_cells = np.append(np.asarray(store.target)[rows], store.decoy_target)
    present = np.bincount(of_cells, minlength=len(v.target_ids)) > 0
    model = EffectModel(v, ids, of_genes, None, tuple(bool(p) for p in present))
    if rank == 0:
        return model
    means, cells, moments = log1p_moments(store, rows)
    shifts = np.where(((cells > 0) & (cells[:1] > 0))[..., None], means - means[:1], 0.0)
    own_gene = np.array([model.own_gene(t) for t in v.target_ids])
    covariance = cell_covariance(store, rows, means)
    measured = Measured(shifts[:n], cells[:n], own_gene[:n], covariance, v.context_levels)
    by = partial(denoise, rank=rank, keep_cells=keep_cells)
    effects = by(measured)
    decoys = denoise_decoys(measured, effects[0], decoy_shifts(store, means[0], cells[0]), by)
    profiles = None
    if of_genes is not None and features != "coexpression":
        profiles = of_genes.astype(float)
    place = {gene_id: i for i, gene_id in enumerate(ids)}
    at = np.array([place.get(t, -1) for t in v.target_ids[:n]])
    unseen = with_decoys(fit_unseen(measured, effects, profiles, at), decoys)
    curves = response_curves(store, means, moments)
    own = own_effects(shifts, cells, own_gene)
    fitted = LinearEffect(unseen, own, curves, context_base(moments[0]))
    return EffectModel(v, ids, of_genes, fitted, model.trained)


def own_effects(
    shifts: NDArray[np.float64], cells: NDArray[np.int64], own_gene: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Return the effects (T, C) on the targets' own transcripts, as measured.

    A context without cells gets the mean over the target's cells elsewhere; NaN for a target
    without cells or off the panel.
    """
    seen = (cells > 0) & (cells[:1] > 0)
    seen[0] = False
    own = np.full(cells.shape, np.nan)
    for code in np.flatnonzero((own_gene >= 0) & seen.any(axis=1)):
        values = shifts[code, :, own_gene[code]]
        pooled = np.average(values[seen[code]], weights=cells[code, seen[code]])
        own[code] = np.where(seen[code], values, pooled)
    return own


def context_base(control: NDArray[np.float64], pseudocount: float = 0.05) -> NDArray[np.float64]:
    """Return log ratios (C, G) of control CP10k in each context to the mean of the contexts.

    Contexts without control cells (all zero) get 0, and do not count in the mean.
    """
    known = control.sum(1) > 0
    mean = control[known].mean(0)
    base = np.log((control + pseudocount) / (mean + pseudocount))
    base[~known] = 0
    return np.asarray(base)


def target_features(model: EffectModel) -> NDArray[np.float64]:
    """Return features (T, F) of the targets; NaN where unknown."""
    width = 0 if model.features is None else model.features.shape[1]
    out = np.full((len(model.vocabulary.target_ids), width), np.nan)
    for code, target_id in enumerate(model.vocabulary.target_ids):
        found = model.features_of(target_id)
        if found is not None:
            out[code] = found
    return out


UNSEEN_PARTS = ("mean", "rest", "profiles", "rows", "correlation", "spread", "weights")
LINEAR_PARTS = ("own", "curves", "base")


def tensors_of(linear: LinearEffect | None) -> dict[str, NDArray[np.floating]]:
    """Return the arrays of a linear effect by name; none where there is none."""
    if linear is None:
        return {}
    parts = {name: getattr(linear.unseen, name) for name in UNSEEN_PARTS}
    return parts | {name: getattr(linear, name) for name in LINEAR_PARTS}


def save_effects(path: Path, model: EffectModel, notes: dict[str, object]) -> None:
    """Write the effects with their gene order and vocabularies."""
    tensors = {"empty": torch.zeros(1)}
    if model.features is not None:
        tensors["features"] = torch.from_numpy(model.features)
    for name, value in tensors_of(model.linear).items():
        tensors[name] = torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32))
    about = {
        "kind": "effects",
        "vocabulary": checkpoint.describe_vocabulary(model.vocabulary),
        "feature_ids": list(model.feature_ids),
        "trained": list(model.trained),
        "notes": notes,
    }
    checkpoint.save(path, tensors, about)


def load_effects(path: Path | str) -> EffectModel:
    """Return the effects written by :func:`save_effects`."""
    tensors, about = checkpoint.load(path, "effects")
    fitted = None
    if "curves" in tensors:
        arrays = {name: value.double().numpy() for name, value in tensors.items()}
        arrays["rows"] = arrays["rows"].round().astype(np.int64)
        unseen = Unseen(**{name: arrays[name] for name in UNSEEN_PARTS})
        fitted = LinearEffect(unseen, *(arrays[name] for name in LINEAR_PARTS))
    features = tensors["features"].numpy() if "features" in tensors else None
    if "feature_ids" not in about:
        msg = f"{path} was fitted by an earlier version; run 'knockscreen fit-effects' again."
        raise CheckpointError(msg)
    known, trained = tuple(about["feature_ids"]), tuple(about["trained"])
    return EffectModel(checkpoint.read_vocabulary(about), known, features, fitted, trained)
