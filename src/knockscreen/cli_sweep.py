"""The verb ``sweep``: solver, steps and guidance weights, chosen by validation cells alone."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import polars as pl

    from knockscreen.config import SweepConfig
    from knockscreen.sampling import Sampler
    from knockscreen.sweep.validation import Validation

log = logging.getLogger(__name__)

FEW = 6
"""Knock-downs that solvers are compared on at most."""


def sweep(
    settings: Annotated[
        str,
        typer.Option("--settings", "-s", help="Complete config file (YAML), or its sections."),
    ],
    store: Annotated[Path, typer.Option("--store", help="Training store, a folder.")],
    effect: Annotated[Path, typer.Option("--effect", help="effect.safetensors")],
    vae: Annotated[Path, typer.Option("--vae", help="vae.safetensors")],
    flow: Annotated[Path, typer.Option("--flow", help="flow.safetensors")],
    output_dir: Annotated[
        Path, typer.Option("--output-dir", "-o", help="Folder for sweep.parquet and chosen.json.")
    ],
) -> None:
    """Compare solvers with the exact one and guidance weights with none; choose by validation."""
    from knockscreen.artifacts import atomic, write_json, write_manifest
    from knockscreen.cli_screen import make_sampler
    from knockscreen.config import (
        EvaluateConfig,
        NonNegative,
        ScreenConfig,
        Section,
        SweepConfig,
        read_stage,
    )
    from knockscreen.sampling import Guidance
    from knockscreen.sweep.validation import read_validation

    class Stage(Section):
        seed: NonNegative
        screen: ScreenConfig
        evaluate: EvaluateConfig
        sweep: SweepConfig

    stage = read_stage(Stage, settings)
    config = stage.sweep
    sampler = make_sampler(stage.seed, stage.screen, vae, flow, effect)
    seen = read_validation(
        store, seed=stage.seed, targets=config.targets, cells=config.cells, settings=stage.evaluate
    )
    table, chosen = _sweep(sampler.changed(guidance=Guidance()), seen, store, config)
    with atomic(output_dir / "sweep.parquet") as temporary:
        table.write_parquet(temporary)
    write_json(output_dir / "chosen.json", chosen)
    for name in ("sweep.parquet", "chosen.json"):
        write_manifest(
            output_dir / name,
            stage="sweep",
            inputs=[vae, flow, effect, store / "store.json"],
            settings=stage.model_dump(mode="json"),
            seed=stage.seed,
        )
    log.info("%s -> %s", chosen["screen"], output_dir / "chosen.json")


def _sweep(
    sampler: "Sampler", seen: "Validation", store: Path, config: "SweepConfig"
) -> "tuple[pl.DataFrame, dict[str, object]]":
    import numpy as np
    import polars as pl

    from knockscreen.data.cells import CellStore
    from knockscreen.sweep import guidance, solvers
    from knockscreen.sweep.table import Setting

    few = [seen.target_ids[code] for code in seen.chosen[:: -(-len(seen.chosen) // FEW)]]
    tried = solvers.settings(config.solvers, config.evaluations)
    log.info("%d solver settings on %d knock-downs", len(tried), len(few))
    by_solver = solvers.sweep(sampler, tried, few, seen.contexts, draws=config.draws)
    solver, why_solver = solvers.choose(by_solver, config.tolerance)
    log.info("%s with %d steps: %s", solver.solver, solver.steps, why_solver)
    weights = guidance.weights(
        config.strategies, config.context_weights, config.perturbation_weights
    )
    judged = []
    asked = [Setting(solver.solver, solver.steps, g) for g in weights]
    log.info("%d guidance settings on %d knock-downs", len(asked), len(seen.chosen))
    for one in guidance.judge(sampler, asked, seen, CellStore.open(store), draws=config.draws):
        judged.append(one)
        log.info("%d of %d: %s", len(judged), len(asked), one.setting.guidance)
    rng = np.random.default_rng([sampler.settings.seed, 31])
    by_weight = guidance.compare(judged, config.resamples, rng)
    best, why_guidance = guidance.choose(by_weight)
    log.info("guidance: %s", why_guidance)
    chosen: dict[str, object] = {
        "screen": {"solver": solver.solver, "steps": solver.steps, "guidance": vars(best)},
        "reason": {"solver": why_solver, "guidance": why_guidance},
        "tolerance": config.tolerance,
        "judged_by": {
            "split": "validation", "knockdowns": len(seen.chosen), "cells": len(seen.rows),
        },
    }  # fmt: skip
    return pl.concat([by_solver, by_weight]), chosen


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(sweep)
