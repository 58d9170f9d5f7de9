"""Effects of decoys: beside those of trained targets, and of genes that were never knocked down.

A decoy of genes never knocked down is a gene whose profile is scrambled: along each principal axis
of all profiles it lies on a random side of their mean. How far it is from the mean, and how alike
it may be to other genes, is left; which genes it is like is lost. The genes that it goes up and
down with are scrambled in the same way.

Shapes: N genes with a profile, P length of a profile, C contexts, G panel genes, J decoys.
"""

import hashlib
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from knockscreen.models.unseen import Axes, Unseen

Array = NDArray[np.float64]


def with_decoys(unseen: Unseen, effects: Array) -> Unseen:
    """Return the effects of trained targets with those of decoys (J, C, G) after them."""
    nowhere = np.full(len(effects), -1)
    rest = np.concatenate([unseen.rest, effects - unseen.mean])
    return replace(unseen, rest=rest, rows=np.append(unseen.rows, nowhere))


def sides(name: str, n: int) -> Array:
    """Return n random signs that are a function of ``name`` alone; more only adds to them."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return np.where(np.random.default_rng(seed).random(n) < 0.5, -1.0, 1.0)


def scramble(values: Array, axes: Axes, name: str) -> Array:
    """Return a profile (P,) on random sides of the mean along the axes."""
    mean, directions = axes  # (P,), (P, P)
    return np.asarray(
        mean + directions @ (sides(name, len(values)) * (directions.T @ (values - mean)))
    )


def predict_scrambled(unseen: Unseen, row: int, column: int, name: str) -> Array:
    """Return the effect (C, G) of a decoy made of a gene by its profile and its panel column."""
    profiles = unseen.profiles.copy()
    profiles[row] = scramble(profiles[row], unseen.profile_axes, name)
    correlation = unseen.correlation
    if column >= 0:
        correlation = correlation.copy()
        correlation[column] = scramble(correlation[column], unseen.correlation_axes, name)
        correlation[column, column] = 0
    return replace(unseen, profiles=profiles, correlation=correlation).predict(row, column)
