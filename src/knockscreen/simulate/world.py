"""The simulated world: baseline, effects and guides, everything but the cells.

C contexts (donor x time), R drivers (genes whose knock-down moves others), G genes, P programs.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from knockscreen.config import SimulateConfig
from knockscreen.errors import ConfigError
from knockscreen.names import context_name
from knockscreen.simulate import anchored, network
from knockscreen.simulate.catalogue import Genes, edges, first_genes

STRENGTH = (0.70, 0.95)
"""Range of the share of the target's transcript that an active guide removes."""
MEAN_STRENGTH = sum(STRENGTH) / 2
KNOCKDOWN = -np.log1p(-MEAN_STRENGTH)
"""ln units by which the average active guide lowers its target's own transcript."""
LARGEST_EFFECT = 2.0
"""ln units towards which effects on other genes saturate."""
REGULATOR_SHARE = 0.75
"""Share of the screened targets that are regulators."""
SCREENED_REGULATORS = 0.65
"""Largest share of a pathway's regulators that are screened; the rest is never perturbed."""
ALWAYS = (
    *("FOXP3", "STAT5B", "IL2RA", "TBX21", "STAT4", "GATA3"),
    *("STAT6", "RORC", "STAT3", "ZAP70", "LCK", "LAT"),
)
"""Regulators that every screen of sufficient size perturbs."""
GENERAL = ("POLR2A", "HSPA5")
"""Genes of general, strong effect, screened next."""
CONTROL_GUIDES = 12
MITOCHONDRIAL_SHARE = 0.03
DRIVER_SD = 0.28
"""Fluctuation of a regulator's expression from cell to cell, ln units; it drives its targets."""
PROGRAM_SD = 0.18
"""Fluctuation of a program's activity from cell to cell, ln units."""
LARGEST_SD = 0.9


@dataclass(frozen=True)
class Guides:
    """The guide library: non-targeting guides first.

    Attributes
    ----------
    guide_id
        (N,) names, as in the study: ``FOXP3-1``, ``NTC-001``.
    target
        (N,) gene index, -1 for non-targeting guides.
    strength
        (N,) share of the target's transcript removed, 0 for inactive and non-targeting guides.
    frequency
        (N,) share of the cells, summing to 1.
    """

    guide_id: NDArray[np.str_]
    target: NDArray[np.intp]
    strength: NDArray[np.float64]
    frequency: NDArray[np.float64]


@dataclass(frozen=True)
class World:
    """All that decides a cell's expected counts.

    Attributes
    ----------
    genes
        The columns of the count matrix.
    contexts
        (donor, time) in file order.
    baseline
        (C, G) mean relative expression of control cells, summing to 1.
    size
        (G,) NB size (inverse dispersion) of a cell's counts around its own mean.
    drivers
        (R,) gene indices whose knock-down moves other genes.
    effect
        (C, R, G) ln change of other genes under the average active guide; own entry 0.
    own
        (C, G) ln change of a target's own transcript under the average active guide.
    fluctuation
        (C, R, G) ln change of every gene per standard deviation of a driver's fluctuation.
    program_loading
        (P, G) ln change per standard deviation of a program's activity.
    guides
        The guide library.
    spectral_radius
        Of regulation among regulators; NaN without a network.
    """

    genes: Genes
    contexts: list[tuple[str, str]]
    baseline: NDArray[np.float64]
    size: NDArray[np.float32]
    drivers: NDArray[np.intp]
    effect: NDArray[np.float32]
    own: NDArray[np.float64]
    fluctuation: NDArray[np.float32]
    program_loading: NDArray[np.float32]
    guides: Guides
    spectral_radius: float

    @property
    def context_names(self) -> list[str]:
        """Return the printed names, such as ``donor=D1,time=Rest``."""
        return [context_name({"donor": donor, "time": time}) for donor, time in self.contexts]

    @property
    def screened(self) -> NDArray[np.intp]:
        """Return the gene indices of the screened targets, sorted."""
        return np.unique(self.guides.target[self.guides.target >= 0])


def build_world(settings: SimulateConfig) -> World:
    """Return the world that ``settings`` describe, the same for the same seed.

    Raises
    ------
    ConfigError
        More targets than genes, no or repeated donors or times.
    DataError
        Anchored mode: an input file is missing or not what it should be.
    """
    for key, values in (("donors", settings.donors), ("times", settings.times)):
        if not values or len(set(values)) != len(values):
            msg = f"simulate.{key} is {values}; give at least one name, each once."
            raise ConfigError(msg)
    contexts = [(donor, time) for time in settings.times for donor in settings.donors]
    rng = np.random.default_rng([settings.seed, 0])
    if settings.mode == "anchored":
        return _anchored_world(settings, contexts, rng)
    return _network_world(settings, contexts, rng)


def _network_world(
    settings: SimulateConfig, contexts: list[tuple[str, str]], rng: np.random.Generator
) -> World:
    genes = first_genes(settings.genes, rng)
    activity = network.activities(genes, contexts, rng)
    net = network.build(genes, activity, rng)
    response = np.stack([network.response(net, a) for a in activity])  # (C, R, G)
    baseline = _baseline(genes, contexts, rng)
    size = np.exp(rng.normal(np.log(5.0), 0.4, len(genes)))
    targets = _choose_targets(genes, settings.targets, rng)
    effect = LARGEST_EFFECT * np.tanh(-KNOCKDOWN * response / LARGEST_EFFECT)
    effect[:, np.arange(len(net.drivers)), net.drivers] = 0.0
    if settings.mode == "null":
        effect[:] = 0.0
    loading = _program_loading(genes)
    fluctuation = DRIVER_SD * response
    _hold_variance(fluctuation, loading)
    return World(
        genes=genes,
        contexts=contexts,
        baseline=baseline,
        size=size.astype(np.float32),
        drivers=net.drivers,
        effect=effect.astype(np.float32),
        own=np.full((len(contexts), len(genes)), -KNOCKDOWN),
        fluctuation=fluctuation.astype(np.float32),
        program_loading=loading.astype(np.float32),
        guides=_guides(genes, targets, settings, rng),
        spectral_radius=net.spectral_radius,
    )


def _anchored_world(
    settings: SimulateConfig, contexts: list[tuple[str, str]], rng: np.random.Generator
) -> World:
    anchor = anchored.read_anchor(settings, times=[time for _, time in contexts])
    genes = anchor.genes
    shifts = rng.normal(0, 0.1, (len(settings.donors), len(genes)))
    donor = [settings.donors.index(d) for d, _ in contexts]
    baseline = anchor.relative_expression * np.exp(shifts[donor])
    effect = anchor.effect
    own = np.full((len(contexts), len(genes)), -KNOCKDOWN)
    index = np.arange(len(anchor.drivers))
    measured = effect[:, index, anchor.drivers]  # (C, R) the target's own change, where it is given
    own[:, anchor.drivers] = np.where(measured < 0, measured, -KNOCKDOWN)
    effect[:, index, anchor.drivers] = 0.0
    fluctuation = -DRIVER_SD / KNOCKDOWN * effect
    fluctuation[:, index, anchor.drivers] = DRIVER_SD
    loading = np.zeros((0, len(genes)))
    _hold_variance(fluctuation, loading)
    others = np.setdiff1d(
        np.arange(len(genes)), np.append(anchor.drivers, genes.where("mitochondrial"))
    )
    _check_targets(settings.targets, len(anchor.drivers) + len(others))
    filled = rng.choice(others, max(0, settings.targets - len(anchor.drivers)), replace=False)
    targets = np.append(anchor.drivers[: settings.targets], filled)
    return World(
        genes=genes,
        contexts=contexts,
        baseline=baseline / baseline.sum(axis=1, keepdims=True),
        size=anchor.size.astype(np.float32),
        drivers=anchor.drivers,
        effect=effect.astype(np.float32),
        own=own,
        fluctuation=fluctuation.astype(np.float32),
        program_loading=loading.astype(np.float32),
        guides=_guides(genes, targets, settings, rng),
        spectral_radius=float("nan"),
    )


def _baseline(
    genes: Genes, contexts: list[tuple[str, str]], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return (C, G) relative expression: levels, programs moved by time, donor differences."""
    times = list(dict.fromkeys(time for _, time in contexts))
    donors = list(dict.fromkeys(donor for donor, _ in contexts))
    unknown = rng.normal(0, 0.3, (len(times), len(genes.programs)))
    donor_program = rng.normal(0, 0.1, (len(donors), len(genes.programs)))
    donor_gene = rng.normal(0, 0.1, (len(donors), len(genes)))
    mitochondrial = genes.where("mitochondrial")
    rows = []
    for donor, time in contexts:
        d = donors.index(donor)
        shift = (
            np.array([network.SHIFT[time].get(p, 0.0) for p in genes.programs])
            if time in network.SHIFT
            else unknown[times.index(time)]
        )
        moved = np.clip((shift + donor_program[d]) @ genes.weights, -1.2, 1.2)
        relative = np.exp(genes.level + moved + donor_gene[d])
        if len(mitochondrial) < len(genes):
            rest = relative.sum() - relative[mitochondrial].sum()
            share = MITOCHONDRIAL_SHARE / (1 - MITOCHONDRIAL_SHARE) * rest
            relative[mitochondrial] *= share / max(relative[mitochondrial].sum(), 1e-300)
        rows.append(relative / relative.sum())
    return np.array(rows)


def _program_loading(genes: Genes) -> NDArray[np.float64]:
    """Return (P, G): program activity moves its listed genes and, less, its direct regulators."""
    loading = PROGRAM_SD * genes.weights
    column = {str(g): i for i, g in enumerate(genes.gene)}
    for regulator, acts_on, kind, weight in edges().iter_rows():
        if kind == "program" and regulator in column and abs(weight) >= 0.5:
            program, gene = genes.programs.index(acts_on), column[regulator]
            if loading[program, gene] == 0:
                loading[program, gene] = 0.6 * PROGRAM_SD * np.sign(weight)
    return loading


def _hold_variance(fluctuation: NDArray[np.float64], loading: NDArray[np.float64]) -> None:
    """Scale a gene's fluctuations down, in place, where its standard deviation gets too large."""
    sd = np.sqrt((fluctuation**2).sum(axis=1) + (loading**2).sum(axis=0))  # (C, G)
    scale = LARGEST_SD / np.maximum(sd.max(axis=0), LARGEST_SD)
    fluctuation *= scale
    loading *= scale


def _check_targets(asked: int, possible: int) -> None:
    if asked > possible:
        msg = (
            f"simulate.targets is {asked}, but only {possible} genes can be knocked down; "
            "lower it or raise simulate.genes."
        )
        raise ConfigError(msg)


def _choose_targets(genes: Genes, n: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Return the screened targets: mostly regulators, some of every pathway left unscreened."""
    regulators = genes.where("regulator")
    others = genes.where("program", "housekeeping", "background")
    symbols = [str(g) for g in genes.gene]
    chosen = [symbols.index(name) for name in (*ALWAYS, *GENERAL) if name in symbols]
    quota: list[tuple[float, int]] = []
    for module in dict.fromkeys(genes.module[regulators]):
        inside = [int(g) for g in regulators if genes.module[g] == module]
        taken = sum(g in chosen for g in inside)
        free = rng.permutation([g for g in inside if g not in chosen])
        room = max(int(SCREENED_REGULATORS * len(inside)) - taken, 0)
        turn = (taken + np.arange(room) + rng.random(room)) / len(inside)
        quota += [(float(t), int(g)) for t, g in zip(turn, free, strict=False)]
    chosen += [g for _, g in sorted(quota)]  # every pathway gets its share at any n
    chosen = chosen[: min(n, max(round(REGULATOR_SHARE * n), min(n, len(ALWAYS))))]
    _check_targets(n, len(chosen) + len(others))
    return np.array(chosen + [int(g) for g in rng.choice(others, n - len(chosen), replace=False)])


def _guides(
    genes: Genes, targets: NDArray[np.intp], settings: SimulateConfig, rng: np.random.Generator
) -> Guides:
    """Return the library: unequal cell numbers per target and guide, a share of inactive guides."""
    per = settings.guides_per_target
    n = len(targets) * per
    strength = rng.uniform(*STRENGTH, n)
    inactive = rng.permutation(n)[: round(settings.inactive_guides * n)]
    strength[inactive] = 0.0
    cells = np.repeat(np.exp(rng.normal(0, 0.35, len(targets))), per) * np.exp(
        rng.normal(0, 0.2, n)
    )
    controls = np.exp(rng.normal(0, 0.2, CONTROL_GUIDES))
    frequency = np.concatenate(
        [
            settings.control_cells * controls / controls.sum(),
            (1 - settings.control_cells) * cells / cells.sum(),
        ]
    )
    names = [f"NTC-{i + 1:03d}" for i in range(CONTROL_GUIDES)]
    names += [f"{genes.gene[t]}-{k + 1}" for t in targets for k in range(per)]
    return Guides(
        guide_id=np.array(names, dtype=np.str_),
        target=np.append(np.full(CONTROL_GUIDES, -1), np.repeat(targets, per)),
        strength=np.append(np.zeros(CONTROL_GUIDES), strength),
        frequency=frequency / frequency.sum(),
    )
