"""When a knock-down has draws enough: the simulation error of its program scores is small.

Simulation error alone: how well the model's own answer is known, not whether the answer is right.
B blocks drawn, C contexts, G panel genes, P programs.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from knockscreen.artifacts import require_file
from knockscreen.errors import DataError
from knockscreen.names import own_gene_id

Floats = NDArray[np.float64]


def scoring_weights(weights: Floats, own: int) -> Floats:
    """Return weights (P, G) without gene ``own``, divided by their absolute sum.

    ``delta @ weights.T`` are program scores. ``own`` is the panel column of the knocked-down gene,
    -1 if it is not on the panel; rows of programs that have no other gene are NaN.
    """
    weights = weights.copy()
    if own >= 0:
        weights[:, own] = 0.0
    total = np.abs(weights).sum(axis=1, keepdims=True)
    return np.where(total > 0, weights / np.where(total > 0, total, 1.0), np.nan)


def score_errors(block_delta: NDArray[np.float32], weights: Floats) -> Floats:
    """Return standard errors (C, P), sd / sqrt(B), of the program scores of blocks (B, C, G)."""
    scores = block_delta.astype(np.float64) @ weights.T
    return np.asarray(scores.std(axis=0, ddof=1) / np.sqrt(len(block_delta)))


@dataclass(frozen=True)
class Until:
    """Draw until every program score of every context is known to ``tolerance``.

    A pooled score is a mean over contexts, so its error over the same blocks is no larger.
    """

    tolerance: float
    """Largest standard error of a score over its blocks, in the unit of a score (log1p CP10k)."""
    gene_ids: tuple[str, ...]  # (G,)
    weights: Floats  # (P, G) signed weights of the programs

    def reached(self, gene_id: str, block_delta: NDArray[np.float32]) -> bool:
        """Return whether a target's blocks (B, C, G) of paired differences, B > 1, are enough."""
        own = own_gene_id(gene_id)
        column = self.gene_ids.index(own) if own in self.gene_ids else -1
        weights = scoring_weights(self.weights, column)
        errors = score_errors(block_delta, weights[~np.isnan(weights).any(axis=1)])
        return bool((errors <= self.tolerance).all())


def read_until(path: Path, tolerance: float) -> Until:
    """Return the rule from the weights that ``program-weights`` wrote.

    Raises
    ------
    DataError
        The file is missing or broken.
    """
    try:
        with np.load(require_file(path, "program-weights"), allow_pickle=False) as file:
            return Until(tolerance, tuple(file["gene_ids"].tolist()), file["weights"])
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        msg = f"{path} is no whole file of weights ({error}); run program-weights again."
        raise DataError(msg) from error
