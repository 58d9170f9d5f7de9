"""The regulatory network: regulators act on genes, and every knock-down spreads through it.

Expression deviates from baseline by x = A x + u on the natural-log scale: x = (I - A)^-1 u. Only
regulators have outgoing edges. A knock-down holds its regulator at a fixed x, which divides the
column of (I - A)^-1 by its own diagonal.

C contexts, R regulators (drivers), G genes, P programs.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from knockscreen.simulate.catalogue import Genes, edges

EDGE = 0.30
"""ln change of a gene per ln change of a regulator, for a planted weight of 1."""
LARGEST_RADIUS = 0.6
"""Spectral radius to which regulation among regulators is held; below 1 the response is finite."""
DONOR_SPREAD = 0.15
"""Donors scale a regulator's outgoing edges by up to this share, up or down."""
CROSS_TALK = (0.5, 0.28)
"""Share of the programs that a regulator also moves without a planted edge, and the standard
deviation of the weight with which it does."""
HIDDEN_MEMBERS = 16
"""Genes outside a program's list that move with it, per program."""
PRIVATE_EDGES = {"chromatin": 60, "essential": 100}
PRIVATE_EDGES_ELSEWHERE = 30
PRIVATE_SD = 0.08

ACTIVITY: dict[str, dict[str, float]] = {
    "Rest": {"TCR": 0.2, "proliferation": 0.4, "IL2": 0.6, "IFN": 0.8, "Th1": 0.7, "Th2": 0.7}
    | {"Th17": 0.7, "Treg": 1.0, "Tfh": 0.8},
    "Stim8hr": {"TCR": 1.2, "proliferation": 0.7, "IFN": 1.2, "Th1": 1.0, "Th2": 0.9, "Tfh": 0.9},
    "Stim48hr": {"TCR": 0.8, "proliferation": 1.3, "IL2": 1.2, "Th1": 1.2, "Th2": 1.2, "Th17": 1.2},
}
"""How strongly a pathway's regulators act at a time; 1 where nothing is said."""

SHIFT: dict[str, dict[str, float]] = {
    "Rest": {"activation": -0.5, "TCR_signalling": -0.5, "proliferation": -0.6, "exhaustion": -0.3},
    "Stim8hr": {"activation": 0.5, "TCR_signalling": 0.6, "interferon": 0.3, "IL2_signalling": 0.3},
    "Stim48hr": {"proliferation": 0.7, "activation": 0.3, "IL2_signalling": 0.4, "exhaustion": 0.3},
}
"""Baseline shift of a program at a time, ln units."""


@dataclass(frozen=True)
class Network:
    """Edges of the network, before any context.

    Attributes
    ----------
    drivers
        (R,) gene indices of the regulators.
    edges
        (R, G) ln change of the gene per ln change of the regulator.
    spectral_radius
        The largest over contexts, after it was held to :data:`LARGEST_RADIUS`.
    """

    drivers: NDArray[np.intp]
    edges: NDArray[np.float64]
    spectral_radius: float


def planted_edges(genes: Genes, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return (R, G) edges: the planted ones through programs and genes, and private weaker ones."""
    drivers = genes.where("regulator")
    row = {str(genes.gene[g]): i for i, g in enumerate(drivers)}
    column = {str(g): i for i, g in enumerate(genes.gene)}
    members = _hidden_members(genes, rng)
    weights = np.zeros((len(drivers), len(genes)))
    for regulator, acts_on, kind, weight in [*edges().iter_rows(), *_cross_talk(genes, rng)]:
        jitter = rng.uniform(0.5, 1.5, len(genes)) * (rng.random(len(genes)) > 0.1)
        if regulator not in row:
            continue
        if kind == "program":
            weights[row[regulator]] += (
                EDGE * weight * jitter * members[genes.programs.index(acts_on)]
            )
        elif acts_on in column:
            weights[row[regulator], column[acts_on]] += 2 * EDGE * weight
    free = np.flatnonzero(genes.role != "mitochondrial")
    for i, driver in enumerate(drivers):
        n = PRIVATE_EDGES.get(str(genes.module[driver]), PRIVATE_EDGES_ELSEWHERE)
        hit = rng.choice(free, min(n, len(free) // 8), replace=False)
        weights[i, hit] += rng.normal(0, PRIVATE_SD, len(hit))
    weights[np.arange(len(drivers)), drivers] = 0.0
    return weights


def _cross_talk(genes: Genes, rng: np.random.Generator) -> list[tuple[str, str, str, float]]:
    """Return further, random edges from regulators to programs, like rows of ``edges.tsv``."""
    share, sd = CROSS_TALK
    planted = {(regulator, acts_on) for regulator, acts_on, _, _ in edges().iter_rows()}
    rows = []
    for regulator in genes.gene[genes.where("regulator")]:
        weights = rng.normal(0, sd, len(genes.programs))
        drawn = rng.random(len(genes.programs)) < share
        for program, weight, is_drawn in zip(genes.programs, weights, drawn, strict=True):
            if is_drawn and (str(regulator), program) not in planted:
                rows.append((str(regulator), program, "program", float(weight)))
    return rows


def _hidden_members(genes: Genes, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return (P, G) program weights with further, unlisted genes that follow the program."""
    members = genes.weights.copy()
    pool = genes.where("background", "housekeeping")
    n = min(HIDDEN_MEMBERS, len(pool) // 12)
    for program in range(len(members)):
        hit = rng.choice(pool, n, replace=False)
        members[program, hit] = rng.uniform(0.4, 1.0, n) * np.where(rng.random(n) < 0.75, 1, -1)
    return members


def activities(
    genes: Genes, contexts: list[tuple[str, str]], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return (C, R) factors on each regulator's outgoing edges for (donor, time) contexts."""
    drivers = genes.where("regulator")
    modules = [str(genes.module[g]) for g in drivers]
    names = sorted(set(modules))
    times = list(dict.fromkeys(time for _, time in contexts))
    donors = list(dict.fromkeys(donor for donor, _ in contexts))
    unknown = rng.uniform(0.7, 1.3, (len(times), len(names)))
    spread = rng.uniform(1 - DONOR_SPREAD, 1 + DONOR_SPREAD, (len(donors), len(drivers)))
    rows = []
    for donor, time in contexts:
        at_time = [
            ACTIVITY[time].get(m, 1.0)
            if time in ACTIVITY
            else unknown[times.index(time), names.index(m)]
            for m in modules
        ]
        rows.append(np.array(at_time) * spread[donors.index(donor)])
    return np.array(rows)


def build(genes: Genes, activity: NDArray[np.float64], rng: np.random.Generator) -> Network:
    """Return the network; regulation among regulators is held to the largest spectral radius."""
    drivers = genes.where("regulator")
    weights = planted_edges(genes, rng)
    among = weights[:, drivers]
    radius = max(spectral_radius(among * a[:, None]) for a in activity)
    if radius > LARGEST_RADIUS:
        weights[:, drivers] *= LARGEST_RADIUS / radius
        radius = LARGEST_RADIUS
    return Network(drivers=drivers, edges=weights, spectral_radius=radius)


def spectral_radius(matrix: NDArray[np.float64]) -> float:
    """Return the largest absolute eigenvalue of a square matrix (0 for an empty one)."""
    return float(np.abs(np.linalg.eigvals(matrix)).max(initial=0.0))


def response(network: Network, activity: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (R, G): ln change of every gene when a regulator is held 1 ln unit above baseline.

    ``activity`` (R,) scales the outgoing edges in one context. The regulator's own entry is 1.
    """
    edges_here = network.edges * activity[:, None]  # (R, G)
    among = edges_here[:, network.drivers]  # (R, R), row acts on column
    spread = np.linalg.inv(np.eye(len(among)) - among)  # sum over all paths between regulators
    total = spread @ edges_here  # (R, G)
    total[:, network.drivers] = spread
    return np.asarray(total / np.diag(spread)[:, None])
