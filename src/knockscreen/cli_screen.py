"""Verbs of a screen: ``plan``, ``generate-control``, ``generate-shard``, ``generate-matched``.

``program-weights`` says what a shard's draws may stop for (``screen.tolerance``).
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from knockscreen.config import ScreenConfig
    from knockscreen.data.cells import CellStore
    from knockscreen.sampling import Sampler, Screen
    from knockscreen.stopping import Until

log = logging.getLogger(__name__)

Settings = Annotated[
    str,
    typer.Option("--settings", "-s", help="Complete config file (YAML), or its sections as JSON."),
]
Store = Annotated[Path, typer.Option("--store", help="Training store, a folder.")]
Vae = Annotated[Path, typer.Option("--vae", help="vae.safetensors")]
Flow = Annotated[Path, typer.Option("--flow", help="flow.safetensors")]
Effect = Annotated[Path, typer.Option("--effect", help="effect.safetensors")]
Plan = Annotated[Path, typer.Option("--plan", help="plan.json")]


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command("plan")(plan)
    app.command("generate-control")(generate_control)
    app.command("program-weights")(program_weights)
    app.command("generate-shard")(generate_shard)
    app.command("generate-matched")(generate_matched)


def plan(
    settings: Settings,
    store: Store,
    effect: Effect,
    vae: Vae,
    flow: Flow,
    output_dir: Annotated[Path, typer.Option("--output-dir", "-o")],
) -> None:
    """List the candidates and their shards; estimate cells, work, time and disk."""
    import polars as pl

    from knockscreen import plan as planning
    from knockscreen.artifacts import atomic, require_file, write_json, write_manifest
    from knockscreen.config import expand_path
    from knockscreen.data.cells import CellStore

    seed, config = _read(settings)
    sampler = make_sampler(seed, config, vae, flow, effect)
    vocabulary = sampler.model.vocabulary
    cells = CellStore.open(store)
    known = planning.Known(
        vocabulary,
        frozenset(t for t in vocabulary.target_ids[1:] if sampler.is_seen(t)),
        frozenset(sampler.effects.featured()),
        pl.read_parquet(require_file(store / "panel.parquet", "normalize")),
    )
    which = config.candidates
    if which not in {"all", "measured"}:
        which = str(expand_path(which))
    candidates = planning.list_candidates(known, which, config.shards)
    contexts = planning.list_contexts(vocabulary, list(cells.library_size_log), config.contexts)
    screened = candidates.filter(pl.col("status") == "screened").height
    decoys = candidates.filter(pl.col("status") == "decoy").height
    listed = candidates.filter(pl.col("shard").is_not_null())["target_gene_id"].to_list()
    about = _estimate(sampler, config, contexts, listed, cells)
    about["decoys"] = decoys
    with atomic(output_dir / "candidates.parquet") as temporary:
        candidates.write_parquet(temporary)
    write_json(output_dir / "plan.json", about)
    write_manifest(
        output_dir / "plan.json",
        stage="plan",
        inputs=[flow, vae, effect, store / "panel.parquet"],
        settings=config.model_dump(),
        seed=seed,
    )
    log.info(
        "%d candidates and %d decoys x %d contexts x %d draws = %d cells: %s %.3g TFLOP, %.0f s "
        "of work in %d jobs (%.0f %% of it to start them), %.0f s on the %d cores of this machine, "
        "%.0f MB.",
        screened, decoys, len(contexts), config.draws, about["cells"],
        "about" if config.tolerance is None else "at most", about["flops"] / 1e12,
        about["seconds"], about["jobs"], 100 * about["overhead"], about["wall_seconds"],
        about["cores"], about["bytes"] / 1e6,
    )  # fmt: skip
    if decoys == 0:
        log.warning("no decoys, so rankings will have no p-values; set splits.decoys.")


def _estimate(
    sampler: "Sampler",
    config: "ScreenConfig",
    contexts: list[str],
    listed: list[str],
    store: "CellStore",
) -> dict[str, Any]:
    """Return the plan's numbers; the seconds from a probe, on a CPU those of one core."""
    import os
    import time

    from knockscreen import plan as planning
    from knockscreen import screening

    start = time.process_time()  # what this process needed to get here, as every job will
    genes = len(sampler.model.vocabulary.gene_ids)
    flops = planning.flops_per_cell(
        sampler.vae.settings,
        sampler.model.net.settings,
        genes,
        config.steps * planning.EVALUATIONS[config.solver],
    )
    cell = screening.seconds_per_cell(sampler, contexts, listed[0], flops)
    work = planning.Work(
        control=len(contexts) * config.draws,
        cells=len(listed) * len(contexts) * config.draws,
        matched=len(screening.matched_rows(store)),
        effects=len(listed) * len(contexts) * genes,
        shards=config.shards,
    )
    stages = planning.job_seconds(work, start=start, cell=cell)
    jobs = 2 * config.shards + 2 + planning.TABLE_JOBS
    cores = len(os.sched_getaffinity(0)) if sampler.device.type == "cpu" else 1
    return {
        "contexts": contexts,
        "draws": config.draws,
        "blocks": min(config.blocks, config.draws),
        "shards": config.shards,
        "cells": work.control + work.cells,
        "flops": flops * (work.control + work.cells),
        "jobs": jobs,
        "cores": cores,
        "seconds_per_cell": cell,
        "stages": stages,
        "seconds": sum(stages.values()),
        "wall_seconds": sum(stages.values()) / cores,
        "overhead": jobs * start / sum(stages.values()),
        "bytes": len(listed) * len(contexts) * genes * 4 * (6 + config.blocks),
    }


def generate_control(
    settings: Settings,
    store: Store,
    effect: Effect,
    vae: Vae,
    flow: Flow,
    plan: Plan,
    output: Annotated[Path, typer.Option("--output", "-o")],
) -> None:
    """Generate the control cells that every knock-down is paired with."""
    from knockscreen import screening
    from knockscreen.artifacts import write_manifest

    seed, config = _read(settings)
    screen = _screen(make_sampler(seed, config, vae, flow, effect), plan, config)
    screening.write_control(output, screen)
    write_manifest(
        output,
        stage="generate_control",
        inputs=[vae, flow, effect, plan],
        settings=config.model_dump(),
        seed=seed,
    )
    log.info("control in %d contexts -> %s", len(screen.contexts), output)


def program_weights(
    settings: Settings,
    store: Store,
    output: Annotated[Path, typer.Option("--output", "-o", help="weights.npz")],
) -> None:
    """Write the weights of the programs, by whose scores draws stop (screen.tolerance)."""
    import numpy as np

    from knockscreen.artifacts import atomic, write_manifest
    from knockscreen.config import ProgramsConfig, Section, read_stage
    from knockscreen.score.programs import load_programs

    class Stage(Section):
        programs: ProgramsConfig

    config = read_stage(Stage, settings).programs
    programs = load_programs(config, store)
    with atomic(output) as temporary, temporary.open("wb") as handle:
        np.savez(
            handle,
            allow_pickle=False,
            programs=np.array(programs.names),
            gene_ids=np.array(programs.gene_ids),
            weights=programs.weights,
        )
    write_manifest(
        output,
        stage="program_weights",
        inputs=[store / "store.json", Path(config.file)],
        settings=config.model_dump(),
    )
    log.info("weights of %d programs -> %s", len(programs.names), output)


def generate_shard(
    settings: Settings,
    store: Store,
    effect: Effect,
    vae: Vae,
    flow: Flow,
    plan: Plan,
    candidates: Annotated[Path, typer.Option("--candidates", help="candidates.parquet of plan.")],
    control: Annotated[Path, typer.Option("--control", help="control.npz of generate-control.")],
    shard: Annotated[int, typer.Option("--shard", help="Shard of the plan.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Shard to write (.npz).")],
    weights: Annotated[
        Path | None,
        typer.Option("--weights", help="weights.npz of program-weights, with screen.tolerance."),
    ] = None,
) -> None:
    """Generate one shard of the screen: statistics of its knock-downs against the control."""
    import time

    import polars as pl

    from knockscreen import screening
    from knockscreen.artifacts import read_json, require_file, write_manifest
    from knockscreen.errors import ConfigError

    seed, config = _read(settings)
    sampler = make_sampler(seed, config, vae, flow, effect)
    screen = _screen(sampler, plan, config)
    shards = read_json(plan)["shards"]
    if not 0 <= shard < shards:
        msg = f"--shard {shard} is not in {plan}, which has shards 0 to {shards - 1}."
        raise ConfigError(msg)
    listed = pl.read_parquet(require_file(candidates, "plan"))
    mine = listed.filter(pl.col("shard") == shard)
    rows = list(zip(mine["candidate"], mine["target_gene_id"], strict=True))
    began = time.monotonic()
    until = _until(config, weights)
    progress = _progress(len(rows), began)
    screening.write_shard(output, screen, control, rows, progress, until=until)
    if config.save_cells and rows:
        from knockscreen.generated import write_cells
        from knockscreen.names import is_decoy

        shown = [gene_id for _, gene_id in rows if not is_decoy(gene_id)]
        pairs = [(gene_id, name) for gene_id in shown for name in screen.contexts]
        write_cells(output.with_suffix(".h5ad"), sampler, pairs, screen.draws)
    write_manifest(
        output,
        stage="generate",
        inputs=[plan, candidates, control, *([weights] if until and weights else [])],
        settings=config.model_dump(),
        seed=sampler.settings.seed,
    )
    log.info("%d knock-downs in %.0f s -> %s", len(rows), time.monotonic() - began, output)


def _progress(rows: int, began: float) -> "Callable[[int], None]":
    import time

    last = began

    def progress(done: int) -> None:
        nonlocal last
        if time.monotonic() - last > 20:
            last = time.monotonic()
            log.info("%d of %d knock-downs, %.0f s", done, rows, last - began)

    return progress


def _until(config: "ScreenConfig", weights: Path | None) -> "Until | None":
    """Return when a target has draws enough; None: never before it has all."""
    from knockscreen.errors import ConfigError
    from knockscreen.stopping import read_until

    if config.tolerance is None:
        return None
    if weights is None:
        msg = (
            "screen.tolerance is set, so generate-shard needs the weights of the programs; run"
            " 'knockscreen program-weights' and give its file as --weights."
        )
        raise ConfigError(msg)
    return read_until(weights, config.tolerance)


def generate_matched(
    settings: Settings,
    store: Store,
    effect: Effect,
    vae: Vae,
    flow: Flow,
    output: Annotated[Path, typer.Option("--output", "-o")],
) -> None:
    """Generate a cell for each real test cell, of its condition and library size."""
    from knockscreen import screening
    from knockscreen.artifacts import write_manifest
    from knockscreen.data.cells import CellStore

    seed, config = _read(settings)
    sampler = make_sampler(seed, config, vae, flow, effect)
    n = screening.write_matched(output, sampler, CellStore.open(store))
    write_manifest(
        output,
        stage="generate_matched",
        inputs=[vae, flow, effect, store / "store.json"],
        settings=config.model_dump(),
        seed=seed,
    )
    log.info("%d cells -> %s", n, output)


def _read(settings: str) -> "tuple[int, ScreenConfig]":
    from knockscreen.config import NonNegative, ScreenConfig, Section, read_stage

    class Stage(Section):
        seed: NonNegative
        screen: ScreenConfig

    stage = read_stage(Stage, settings)
    return stage.seed, stage.screen


def make_sampler(
    seed: int, config: "ScreenConfig", vae: Path, flow: Path, effect: Path
) -> "Sampler":
    """Return the sampler of a screen's settings and three checkpoints."""
    import torch

    from knockscreen.artifacts import threads
    from knockscreen.sampling import Guidance, SamplerSettings
    from knockscreen.screening import load_sampler
    from knockscreen.training.loop import pick_device

    torch.set_num_threads(threads())
    settings = SamplerSettings(
        seed=seed,
        draws=config.draws,
        blocks=min(config.blocks, config.draws),
        solver=config.solver,
        steps=config.steps,
        guidance=Guidance(**config.guidance.model_dump()),
        batch_size=config.batch_size,
    )
    return load_sampler(vae, flow, effect, settings, pick_device(config.device))


def _screen(sampler: "Sampler", plan: Path, config: "ScreenConfig") -> "Screen":
    from knockscreen.artifacts import read_json
    from knockscreen.sampling import Screen

    contexts = list(read_json(plan)["contexts"])
    return Screen(sampler, contexts, by_block=config.tolerance is not None)
