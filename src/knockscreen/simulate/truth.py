"""What is true in the simulated screen: every gene's knock-down in every context."""

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from knockscreen.artifacts import atomic
from knockscreen.config import SimulateConfig
from knockscreen.simulate.catalogue import edges
from knockscreen.simulate.world import World

LN2 = np.log(2.0)
LARGEST = 1 << 30
"""Bytes of effects beyond which genes whose knock-down moves nothing else are left out."""
SMALLEST_SCORE = 0.05
"""log2 units by which a knock-down moves a program, on average, to be listed as its regulator."""


def true_effects(world: World, targets: NDArray[np.intp]) -> NDArray[np.float32]:
    """Return (C, T, G) log2 fold changes of mean expression under the average active guide."""
    contexts, n = len(world.contexts), len(world.genes)
    log2 = np.zeros((contexts, len(targets), n), dtype=np.float32)
    row = {int(g): i for i, g in enumerate(world.drivers)}
    for t, target in enumerate(targets):
        if int(target) in row:
            log2[:, t] = world.effect[:, row[int(target)]] / LN2
        log2[:, t, target] = world.own[:, target] / LN2
    return log2


def write_truth(world: World, settings: SimulateConfig, path: Path) -> None:
    """Write ``truth.npz``.

    Its arrays: ``log2_fold_change`` (C, T, G) of every gene's knock-down by the average active
    guide; ``contexts`` (C,); ``target_gene``, ``target_gene_id``, ``screened`` (T,); ``gene``,
    ``gene_id``, ``role`` (G,); ``baseline`` (C, G) mean relative expression of control cells;
    ``guide_id``, ``guide_target_id``, ``guide_strength`` of the library (strength 0: inactive).
    ``complete`` says whether T covers every gene; the missing ones move nothing but themselves.
    """
    n = len(world.genes)
    complete = 4 * len(world.contexts) * n * n <= LARGEST
    targets = np.arange(n) if complete else np.union1d(world.drivers, world.screened)
    guides = world.guides
    with atomic(path) as temporary, temporary.open("wb") as handle:
        np.savez_compressed(
            handle,
            log2_fold_change=true_effects(world, targets),
            contexts=np.array(world.context_names),
            target_gene=world.genes.gene[targets],
            target_gene_id=world.genes.gene_id[targets],
            screened=np.isin(targets, world.screened),
            gene=world.genes.gene,
            gene_id=world.genes.gene_id,
            role=world.genes.role,
            baseline=world.baseline.astype(np.float32),
            guide_id=guides.guide_id,
            guide_target_id=np.where(guides.target >= 0, world.genes.gene_id[guides.target], "NTC"),
            guide_strength=guides.strength,
            complete=np.array(complete),
            mode=np.array(settings.mode),
            seed=np.array(settings.seed),
        )


def program_effects(world: World) -> pl.DataFrame:
    """Return the true effect of every driver's knock-down on every program, by time.

    ``effect`` is the signed mean of log2 fold changes over the program's genes (the target's own
    left out), averaged over donors; ``sign`` is that of its mean over times, +1 toward the program.
    """
    weights = world.genes.weights  # (P, G)
    effects = true_effects(world, world.drivers)  # (C, R, G)
    effects[:, np.arange(len(world.drivers)), world.drivers] = 0.0
    present = np.abs(weights).sum(axis=1)[:, None] - np.abs(weights[:, world.drivers])  # (P, R)
    scores = np.einsum("crg,pg->cpr", effects, weights) / np.maximum(present, 1)
    planted = {(p, r) for r, p, kind, _ in edges().iter_rows() if kind == "program"}
    times = list(dict.fromkeys(time for _, time in world.contexts))
    screened = set(world.screened.tolist())
    rows = []
    for p, program in enumerate(world.genes.programs):
        for r, gene in enumerate(world.drivers):
            sign = int(np.sign(scores[:, p, r].mean()))
            for time in times:
                at_time = [c for c, (_, t) in enumerate(world.contexts) if t == time]
                symbol, identifier = str(world.genes.gene[gene]), str(world.genes.gene_id[gene])
                effect = float(scores[at_time, p, r].mean())
                direct = (program, symbol) in planted
                rows.append(
                    (program, time, symbol, identifier, sign, effect, direct, int(gene) in screened)
                )
    return pl.DataFrame(
        rows,
        schema={
            "program": pl.String,
            "time": pl.String,
            "target_gene": pl.String,
            "target_gene_id": pl.String,
            "sign": pl.Int8,
            "effect": pl.Float64,
            "planted": pl.Boolean,
            "screened": pl.Boolean,
        },
        orient="row",
    )


def write_regulators(world: World, path: Path) -> None:
    """Write ``regulators.tsv``: the knock-downs that move a program, strongest first."""
    table = program_effects(world)
    strength = pl.col("effect").mean().over("program", "target_gene_id").abs()
    table = (
        table.with_columns(strength.alias("strength"))
        .filter(pl.col("strength") >= SMALLEST_SCORE)
        .sort(
            ["program", "strength", "target_gene_id", "time"],
            descending=[False, True, False, False],
        )
        .drop("strength")
        .with_columns(pl.col("effect").round(4))
    )
    with atomic(path) as temporary:
        table.write_csv(temporary, separator="\t")
