"""Random programs like a given one: does a knock-down move this program, or any such genes.

Every gene of a program is replaced by another gene of like mean expression and keeps its weight.
Genes of a program rise and fall together, so that their mean is noisier than that of unrelated
genes; a random program has to do so too. Replacements are therefore drawn with more or less
preference for co-expression with a seed gene (against it, for negative weights), and of several
proposals those are kept whose variance in control cells, ``w' R w / w' w`` with R the correlation
of genes among control cells, is nearest the program's. What is left of a difference is taken out by
scaling.

Shapes: P programs, N random programs for each, G panel genes.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from knockscreen.data.cells import CellStore
from knockscreen.names import CP10K, Split
from knockscreen.score.programs import ProgramMatrix

Floats = NDArray[np.float64]

CELLS = 2000
"""Training control cells that the correlation is estimated from, at most."""
PROPOSALS = 4
"""Proposals for each random program that is kept."""
LIKE = 40
"""Genes nearest in mean expression that may replace a gene, at least."""
AT_ONCE = 2_000_000
"""Correlations looked up at a time: 16 MB."""
LEAST = 1e-3
"""Smallest coherence told from 0."""


@dataclass(frozen=True)
class Background:
    """What control cells say of the panel genes."""

    expression: Floats  # (G,) mean log1p CP10k
    correlation: Floats  # (G, G) within contexts; 0 with a gene that is silent
    error: dict[str, Floats]  # context -> (P,) standard error of the controls' mean score


@dataclass(frozen=True)
class ProgramNull:
    """What the scores of a shard are compared with."""

    weights: NDArray[np.float32]  # (P, N, G) of random programs
    control_error: dict[str, Floats]  # context -> (P,)

    @cached_property
    def sparse(self) -> sparse.csr_array:
        """The weights as a sparse matrix (P N, G): a program is a few dozen genes of thousands."""
        return sparse.csr_array(self.weights.reshape(-1, self.weights.shape[2]))

    def pooled_error(self, contexts: Sequence[str], average: Floats) -> Floats:
        """Return errors (P, X) of the control in contexts that average (X, C) over others."""
        unknown = np.full(len(self.weights), np.nan)
        squared = np.stack([self.control_error.get(name, unknown) for name in contexts]) ** 2
        return np.asarray(np.sqrt(average**2 @ squared).T)


@dataclass(frozen=True)
class Beside:
    """What is said of each score beside it, filled in candidate by candidate.

    X contexts, K candidates.
    """

    magnitude: Floats  # (X, K)
    toward: Floats  # (P, X, K)
    away: Floats  # (P, X, K)
    z: Floats  # (P, X, K) of the score among the random programs
    error: Floats  # (P, X) of the control

    @classmethod
    def empty(cls, p: int, x: int, k: int) -> "Beside":
        """Return it with nothing known yet."""
        toward, away, z = (np.full((p, x, k), np.nan) for _ in range(3))
        return cls(np.zeros((x, k)), toward, away, z, np.full((p, x), np.nan))

    def add(self, k: int, delta: Floats, score: Floats, null: ProgramNull | None) -> None:
        """Add candidate ``k`` from its effects (X, G), its own gene 0, and its scores (P, X)."""
        self.magnitude[:, k] = np.sqrt((delta**2).sum(axis=1))
        if null is None or not null.weights.shape[1]:
            return
        p, n, _ = null.weights.shape
        moved = null.sparse @ np.ascontiguousarray(delta.T, dtype=np.float32)  # (P N, X)
        moved = moved.reshape(p, n, -1)
        known = np.isfinite(score)
        for found, sign in ((self.toward, 1), (self.away, -1)):
            b = (sign * moved >= sign * score[:, None]).sum(axis=1)  # (P, X)
            found[:, :, k] = np.where(known, (b + 1) / (n + 1), np.nan)
        spread = moved.std(axis=1, dtype=np.float64)
        np.divide(
            score - moved.mean(axis=1, dtype=np.float64), spread, self.z[:, :, k], where=spread > 0
        )

    def columns(self) -> dict[str, Floats]:
        """Return the columns of score tables, programs slowest and candidates fastest."""
        return {
            "magnitude": np.broadcast_to(self.magnitude, self.toward.shape).ravel(),
            "specific_toward": self.toward.ravel(),
            "specific_away": self.away.ravel(),
            "random_z": self.z.ravel(),
            "control_error": np.repeat(self.error[:, :, None], self.magnitude.shape[1], 2).ravel(),
        }


def program_null(folder: Path | str, programs: ProgramMatrix, n: int) -> ProgramNull:
    """Return ``n`` random programs for each, and what control cells leave open about each."""
    background = control_background(folder, programs)
    return ProgramNull(random_programs(programs, background, n), background.error)


def control_background(folder: Path | str, programs: ProgramMatrix) -> Background:
    """Return expression, correlation and errors from training control cells, evenly taken."""
    store = CellStore.open(folder)
    every = store.rows(Split.TRAIN)
    every = every[store.is_control[every]]
    rows = every
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), CELLS)).astype(np.int64))]
    scaled = store.dense(rows) * (CP10K / store.library_size[rows][:, None])
    values = np.log1p(scaled).astype(np.float64)
    expression = values.mean(axis=0)
    of_cell = store.context_index()
    context, cells = of_cell[rows], np.bincount(of_cell[every])
    weights, _ = programs.without(-1)
    error = {}
    for c in np.unique(context):
        inside = context == c
        values[inside] -= values[inside].mean(axis=0)
        freedom = max(int(inside.sum()) - 1, 1)
        variance = ((values[inside] @ weights.T) ** 2).sum(axis=0) / freedom
        error[store.vocabulary.contexts[c]] = np.sqrt(variance / cells[c])
    norm = np.sqrt((values**2).sum(axis=0))
    values /= np.where(norm > 0, norm, np.inf)
    return Background(expression, values.T @ values, error)


def coherence(genes: NDArray[np.intp], weights: Floats, correlation: Floats) -> Floats:
    """Return ``w' R w / w' w`` of programs (N, k) over genes (N, k): 1 where they are unrelated.

    >>> coherence(np.array([[0, 1]]), np.ones((1, 2)), np.array([[1.0, 0.5], [0.5, 1.0]])).tolist()
    [1.5]
    """
    quadratic = np.empty(len(genes))
    size = max(1, AT_ONCE // genes.shape[1] ** 2)
    for start in range(0, len(genes), size):
        part, w = genes[start : start + size], weights[start : start + size]
        between = correlation[part[:, :, None], part[:, None, :]]  # (n, k, k)
        quadratic[start : start + size] = np.einsum("nk,nkl,nl->n", w, between, w, optimize=True)
    return np.asarray(quadratic / (weights**2).sum(axis=1))


def random_programs(programs: ProgramMatrix, background: Background, n: int) -> NDArray[np.float32]:
    """Return weights (P, N, G) of random programs, on the scale of scores (absolute sum 1).

    A function of the program, the panel and the control cells alone.
    """
    out = np.zeros((len(programs.names), n, len(programs.gene_ids)), dtype=np.float32)
    if n == 0:
        return out
    for p, (name, row) in enumerate(zip(programs.names, programs.weights, strict=True)):
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
        rng = np.random.default_rng([seed, 41])
        genes = rng.permutation(np.flatnonzero(row))
        weights = row[genes]
        proposals = _propose(genes, weights, background, PROPOSALS * n, rng)
        wanted = coherence(genes[None], weights[None], background.correlation)
        found = coherence(
            proposals, np.broadcast_to(weights, proposals.shape), background.correlation
        )
        found, wanted = np.maximum(found, LEAST), np.maximum(wanted, LEAST)
        near = np.argsort(np.abs(np.log(found / wanted)), kind="stable")[:n]
        scale = np.sqrt(wanted / found[near]) / np.abs(weights).sum()
        out[p, np.arange(n)[:, None], proposals[near]] = weights * scale[:, None]
    return out


def _propose(
    genes: NDArray[np.intp],
    weights: Floats,
    background: Background,
    n: int,
    rng: np.random.Generator,
) -> NDArray[np.intp]:
    """Return replacements (N, k) of the genes of a program, co-expressed to a random degree.

    Genes of the program are not drawn, but from a panel that has too few others.
    """
    by_expression = np.argsort(background.expression, kind="stable")
    size, total = len(genes), len(by_expression)
    place = np.argsort(by_expression, kind="stable")
    taken = np.zeros((n, total), dtype=bool)
    if total >= 2 * size:
        taken[:, genes] = True
    seed = rng.choice(np.flatnonzero(~taken[0]), n)
    preference = rng.uniform(size=(n, 1))
    drawn = np.zeros((n, size), dtype=np.intp)
    for i, gene in enumerate(genes):
        near = by_expression[_window(place[gene], total, max(LIKE, 3 * size))]  # (W,)
        pull = np.sign(weights[i]) * background.correlation[seed[:, None], near]  # (N, W)
        wish = preference * pull + (1 - preference) * rng.uniform(-1, 1, pull.shape)
        drawn[:, i] = near[np.argmax(np.where(taken[:, near], -np.inf, wish), axis=1)]
        taken[np.arange(n), drawn[:, i]] = True
    return drawn


def _window(middle: int, length: int, size: int) -> slice:
    """Return ``size`` neighbouring positions about ``middle``, fewer only if there are fewer."""
    start = max(0, min(middle - size // 2, length - size))
    return slice(start, min(start + size, length))
