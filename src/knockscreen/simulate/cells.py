"""Sampling cells: guides, library sizes, expression states and negative binomial counts.

Cells come in blocks of fixed size, each with its own generator seeded by (seed, file, block), so
that the same cells arise whatever is held in memory at once. n cells, G genes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from knockscreen.config import SimulateConfig
from knockscreen.simulate.world import MEAN_STRENGTH, World

BLOCK = 1024
MULTI_GUIDE = 0.04
NO_GUIDE = 0.02
DAMAGED = 0.03
"""Share of cells with few counts."""
HIGH_MITOCHONDRIAL = 0.03
LIBRARY_SD = 0.4
"""Standard deviation of ln library size."""
LIBRARY_FACTOR = {"Rest": 0.85, "Stim8hr": 1.05, "Stim48hr": 1.1}
LANES = 2


@dataclass(frozen=True)
class Cells:
    """One block of cells.

    Attributes
    ----------
    counts
        (n, G) UMI counts.
    guide, second
        (n,) index into the guide library; -1 for cells without a guide, ``second`` is -1 but for
        cells with two guides.
    guide_umis
        (n,) UMIs of the top guide.
    low_quality
        (n,) the flag of the study: damaged cells and part of the highly mitochondrial ones.
    lane
        (n,) 10x lane, from 0.
    puromycin
        (n,) counts of the resistance marker.
    """

    counts: NDArray[np.int64]
    guide: NDArray[np.int64]
    second: NDArray[np.int64]
    guide_umis: NDArray[np.int64]
    low_quality: NDArray[np.bool_]
    lane: NDArray[np.int64]
    puromycin: NDArray[np.int64]


@dataclass(frozen=True)
class Context:
    """What the cells of one file share, prepared once.

    Attributes
    ----------
    index
        Position of the file in ``world.contexts``; part of every block's seed.
    log_mean
        (G,) ln relative expression, less half the variance of the fluctuations, so that the mean
        over cells is the baseline.
    loading
        (R + P, G) ln change per standard deviation of a driver or program.
    effect
        (R, G) and own (G,): as in :class:`~knockscreen.simulate.world.World`.
    driver_row
        (G,) row of a gene in ``effect``, -1 for genes that move nothing else.
    library
        Median counts per cell.
    """

    index: int
    log_mean: NDArray[np.float32]
    loading: NDArray[np.float32]
    effect: NDArray[np.float32]
    own: NDArray[np.float64]
    driver_row: NDArray[np.intp]
    library: float


def context_of(world: World, settings: SimulateConfig, index: int) -> Context:
    """Return what the cells of file ``index`` share."""
    loading = np.concatenate([world.fluctuation[index], world.program_loading])
    log_mean = np.log(world.baseline[index]) - 0.5 * (loading.astype(np.float64) ** 2).sum(axis=0)
    driver_row = np.full(len(world.genes), -1)
    driver_row[world.drivers] = np.arange(len(world.drivers))
    return Context(
        index=index,
        log_mean=log_mean.astype(np.float32),
        loading=loading,
        effect=world.effect[index],
        own=world.own[index],
        driver_row=driver_row,
        library=settings.library_size * LIBRARY_FACTOR.get(world.contexts[index][1], 1.0),
    )


def knockdown(world: World, context: Context, guide: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return (n, G) ln change of expression under ``guide`` (n,); -1 and controls change nothing.

    A guide of strength s lowers its target to 1 - s, and moves other genes in proportion to s; the
    average active guide does what the truth file says.
    """
    shift = np.zeros((len(guide), len(world.genes)), dtype=np.float32)
    strength = np.where(guide >= 0, world.guides.strength[guide], 0.0)
    target = np.where(guide >= 0, world.guides.target[guide], -1)
    active = np.flatnonzero((strength > 0) & (target >= 0))
    row = context.driver_row[target[active]]
    moves = active[row >= 0]
    share = (strength[moves] / MEAN_STRENGTH).astype(np.float32)
    shift[moves] = context.effect[row[row >= 0]] * share[:, None]
    relative = np.log1p(-strength[active]) / np.log1p(-MEAN_STRENGTH)
    shift[active, target[active]] = context.own[target[active]] * relative
    return shift


def sample_block(world: World, context: Context, n: int, rng: np.random.Generator) -> Cells:
    """Return ``n`` cells of one context."""
    guide, second = _assign_guides(world, n, rng)
    library = context.library * np.exp(rng.normal(0, LIBRARY_SD, n))
    damaged = rng.random(n) < DAMAGED
    library[damaged] *= rng.uniform(0.04, 0.2, n)[damaged]
    mitochondrial = rng.random(n) < HIGH_MITOCHONDRIAL
    excess = np.where(mitochondrial, rng.uniform(3, 8, n), 1.0)
    state = rng.standard_normal((n, len(context.loading)), dtype=np.float32)
    log_mean = state @ context.loading  # (n, G)
    log_mean += context.log_mean
    log_mean += np.log(library, dtype=np.float64).astype(np.float32)[:, None]
    log_mean += knockdown(world, context, guide)
    with_two = np.flatnonzero(second >= 0)
    log_mean[with_two] += knockdown(world, context, second[with_two])
    columns = world.genes.where("mitochondrial")
    log_mean[:, columns] += np.log(excess).astype(np.float32)[:, None]
    mean = np.exp(log_mean, out=log_mean)
    mean *= (
        rng.standard_gamma(np.broadcast_to(world.size, mean.shape), dtype=np.float32) / world.size
    )
    umis = 3 + rng.negative_binomial(2, 2 / 22, n)
    return Cells(
        counts=rng.poisson(mean),
        guide=guide,
        second=second,
        guide_umis=np.where(guide >= 0, umis, rng.integers(0, 3, n)),
        low_quality=damaged | (mitochondrial & (rng.random(n) < 0.5)),
        lane=rng.integers(0, LANES, n),
        puromycin=rng.poisson(6.0, n),
    )


def _assign_guides(
    world: World, n: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    edges = np.cumsum(world.guides.frequency)
    last = len(edges) - 1
    guide = np.minimum(np.searchsorted(edges, rng.random(n), side="right"), last)
    second = np.minimum(np.searchsorted(edges, rng.random(n), side="right"), last)
    kind = rng.random(n)
    second[kind >= MULTI_GUIDE] = -1
    second[second == guide] = -1
    guide[(kind >= MULTI_GUIDE) & (kind < MULTI_GUIDE + NO_GUIDE)] = -1
    return guide.astype(np.int64), second.astype(np.int64)


def cells_per_file(world: World, settings: SimulateConfig) -> list[int]:
    """Return how many cells each file gets: unequal, summing to ``simulate.cells``."""
    rng = np.random.default_rng([settings.seed, 1])
    share = rng.uniform(0.85, 1.15, len(world.contexts))
    edges = np.round(np.cumsum(share) / share.sum() * settings.cells).astype(int)
    return [int(n) for n in np.diff(edges, prepend=0)]


def blocks(world: World, settings: SimulateConfig, index: int, n: int) -> Iterator[Cells]:
    """Yield the ``n`` cells of file ``index``, block by block."""
    context = context_of(world, settings, index)
    for block, start in enumerate(range(0, n, BLOCK)):
        rng = np.random.default_rng([settings.seed, 2, index, block])
        yield sample_block(world, context, min(BLOCK, n - start), rng)
