"""Fitting the linear part of the knock-downs from training cells."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from knockscreen import checkpoint
from knockscreen.data.cells import CellStore, Vocabulary
from knockscreen.data.features import coexpression, read_table, scrambled
from knockscreen.models import effect as linear
from knockscreen.models.effect import GRID, LinearEffect
from knockscreen.names import CP10K, UNSEEN_DECOY, Split, own_gene_id
from knockscreen.nn.likelihood import expected_log1p
from knockscreen.training.decoys import decoy_shifts, denoise_among_real

LIBRARIES = 64
"""Control library sizes over which a response curve is averaged."""


@dataclass(frozen=True)
class EffectModel:
    """What is known of every gene and every target before any network is trained."""

    vocabulary: Vocabulary
    features: NDArray[np.float32] | None
    """(G, F) of the panel genes, NaN where unknown."""
    linear: LinearEffect | None
    trained: tuple[bool, ...]
    """Which targets (by code) have training cells."""

    def own_gene(self, target_id: str) -> int:
        """Return the panel column of a target's own transcript, or -1."""
        ids, gene_id = self.vocabulary.gene_ids, own_gene_id(target_id)
        return ids.index(gene_id) if gene_id in ids else -1

    def features_of(self, gene_id: str) -> NDArray[np.float32] | None:
        """Return the features (F,) of a gene, or None where it has none."""
        row = self.own_gene(gene_id)
        if self.features is None or row < 0 or not np.isfinite(self.features[row]).all():
            return None
        if gene_id.startswith(UNSEEN_DECOY):
            return scrambled(self.features, row, gene_id)
        return np.asarray(self.features[row])

    def offsets(self, target_id: str) -> NDArray[np.float32]:
        """Return logit offsets (C, G) of a target, by Ensembl id; zeros for control."""
        v = self.vocabulary
        code = v.target_code(target_id)
        if self.linear is None or code == 0:
            return np.zeros((len(v.contexts), len(v.gene_ids)), dtype=np.float32)
        own = np.full(len(v.contexts), np.nan)
        if code > 0 and self.trained[code]:
            coordinates, own = self.linear.coordinates[code], self.linear.own[code]
        else:
            features = self.features_of(target_id)
            if features is None:
                coordinates = np.zeros_like(self.linear.coordinates[0])
            else:
                coordinates = self.linear.predict(features[None].astype(float))[0]
        return self.linear.offsets(coordinates, self.own_gene(target_id), own)

    def base(self) -> NDArray[np.float32]:
        """Return the logit offsets (C, G) of the contexts themselves."""
        v = self.vocabulary
        if self.linear is None:
            return np.zeros((len(v.contexts), len(v.gene_ids)), dtype=np.float32)
        return self.linear.base.astype(np.float32)

    def fingerprint(self) -> str:
        """Return a digest of everything fitted, at the precision that is written to disk."""
        parts = {} if self.linear is None else vars(self.linear)
        digest = hashlib.sha256(repr((self.vocabulary, self.trained)).encode())
        for name, value in {**parts, "features": self.features}.items():
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
) -> tuple[NDArray[np.float64], NDArray[np.int64], float, NDArray[np.float64]]:
    """Return log1p CP10k means (T, C, G), cells (T, C), one cell's noise, and control moments.

    The noise is the within-group standard deviation, root mean square over genes; the moments
    (2, C, G) are the mean and mean square of CP10k among controls.
    """
    v = store.vocabulary
    targets, contexts, genes = len(v.target_ids), len(v.contexts), len(v.gene_ids)
    context = store.context_index()
    sums = np.zeros((targets * contexts, genes))
    squares = np.zeros(genes)
    moments = np.zeros((2, contexts, genes))
    group = np.asarray(store.target).astype(np.int64) * contexts + context
    for piece, counts in store.chunks(rows):
        scaled = counts * (CP10K / store.library_size[piece][:, None])
        values = np.log1p(scaled)
        one_hot = np.zeros((len(piece), targets * contexts), dtype=np.float32)
        one_hot[np.arange(len(piece)), group[piece]] = 1
        sums += one_hot.T @ values
        squares += np.einsum("ij,ij->j", values, values, dtype=float)
        of_control = np.asarray(store.target)[piece] == 0
        for c in np.unique(context[piece][of_control]):
            mine = scaled[of_control & (context[piece] == c)].astype(float)
            moments[0, c] += mine.sum(0)
            moments[1, c] += (mine**2).sum(0)
    cells = np.bincount(group[rows], minlength=targets * contexts)
    means = sums / np.maximum(cells, 1)[:, None]
    within = squares - (means**2 * cells[:, None]).sum(0)
    noise = float(np.sqrt(max(within.mean() / max(1, len(rows) - (cells > 0).sum()), 1e-8)))
    moments /= np.maximum(cells[:contexts], 1)[:, None]
    return means.reshape(targets, contexts, genes), cells.reshape(targets, contexts), noise, moments


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


def fit_effects(store: CellStore, *, features: str, feature_dims: int, rank: int) -> EffectModel:
    """Return gene features, and the low-rank effects of the training split (``rank`` 0: none)."""
    v = store.vocabulary
    rows = store.rows(Split.TRAIN)
    of_genes = None
    if features == "coexpression":
        of_genes = coexpression(store, feature_dims)
    elif features != "none":
        of_genes = read_table(features, store)
    of_cells = np.append(np.asarray(store.target)[rows], store.decoy_target)
    present = np.bincount(of_cells, minlength=len(v.target_ids)) > 0
    trained = tuple(bool(p) for p in present)
    model = EffectModel(v, of_genes, None, trained)
    if rank == 0:
        return model
    means, cells, noise, moments = log1p_moments(store, rows)
    weights = linear.effective_cells(cells)
    shifts = np.where((weights > 0)[..., None], means - means[:1], 0.0)
    own_gene = np.array([model.own_gene(t) for t in v.target_ids])
    n = v.n_real
    measured = linear.Measured(shifts[:n], weights[:n], own_gene[:n], noise, v.context_levels)
    of_decoys = decoy_shifts(store, means[0], cells[0])
    basis, coordinates = denoise_among_real(
        measured, *of_decoys, lambda rows: linear.low_rank(rows, rank)
    )
    own = np.full(weights.shape, np.nan)
    for code in np.flatnonzero(own_gene >= 0):
        seen = weights[code] > 0
        if seen.any():
            pooled = np.average(shifts[code, :, own_gene[code]], weights=weights[code])
            own[code] = np.where(seen, shifts[code, :, own_gene[code]], pooled)
    of_targets = None if of_genes is None else target_features(v, of_genes)
    ridge = linear.fit_ridge(coordinates, weights, of_targets)
    curves = response_curves(store, means, moments)
    fitted = LinearEffect(basis, coordinates, ridge, own, curves, context_base(moments[0]))
    return EffectModel(v, of_genes, fitted, trained)


def context_base(control: NDArray[np.float64], pseudocount: float = 0.05) -> NDArray[np.float64]:
    """Return log ratios (C, G) of control CP10k in each context to the mean of the contexts.

    Contexts without control cells (all zero) get 0, and do not count in the mean.
    """
    known = control.sum(1) > 0
    mean = control[known].mean(0)
    base = np.log((control + pseudocount) / (mean + pseudocount))
    base[~known] = 0
    return np.asarray(base)


def target_features(vocabulary: Vocabulary, features: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return features (T, F) of the targets from those of the panel genes; NaN where unknown."""
    row = {gene_id: i for i, gene_id in enumerate(vocabulary.gene_ids)}
    out = np.full((len(vocabulary.target_ids), features.shape[1]), np.nan)
    for code, target_id in enumerate(vocabulary.target_ids):
        if target_id in row:
            out[code] = features[row[target_id]]
    return out


LINEAR_PARTS = ("basis", "coordinates", "ridge", "own", "curves", "base")


def save_effects(path: Path, model: EffectModel, notes: dict[str, object]) -> None:
    """Write the effects with their gene order and vocabularies."""
    tensors = {"empty": torch.zeros(1)}
    if model.features is not None:
        tensors["features"] = torch.from_numpy(model.features)
    if model.linear is not None:
        for part in LINEAR_PARTS:
            tensors[part] = torch.from_numpy(getattr(model.linear, part)).float()
    about = {
        "kind": "effects",
        "vocabulary": checkpoint.describe_vocabulary(model.vocabulary),
        "trained": list(model.trained),
        "notes": notes,
    }
    checkpoint.save(path, tensors, about)


def load_effects(path: Path | str) -> EffectModel:
    """Return the effects written by :func:`save_effects`."""
    tensors, about = checkpoint.load(path, "effects")
    fitted = None
    if "basis" in tensors:
        fitted = LinearEffect(*(tensors[part].double().numpy() for part in LINEAR_PARTS))
    features = tensors["features"].numpy() if "features" in tensors else None
    return EffectModel(checkpoint.read_vocabulary(about), features, fitted, tuple(about["trained"]))
