"""Verbs of the screen: ``plan``, ``generate-control``, ``generate`` and ``generate-matched``."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

if TYPE_CHECKING:
    from knockscreen.config import ScreenConfig
    from knockscreen.sampling import Sampler, Screen

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
    app.command("generate")(generate)
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
    sampler = _sampler(seed, config, vae, flow, effect)
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
    about = _estimate(sampler, config, contexts, screened)
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
        "%d candidates x %d contexts x %d draws = %d cells: about %.3g TFLOP, %.0f s on this "
        "machine, %.0f MB.",
        screened, len(contexts), config.draws, about["cells"],
        about["flops"] / 1e12, about["seconds"], about["bytes"] / 1e6,
    )  # fmt: skip


def _estimate(
    sampler: "Sampler", config: "ScreenConfig", contexts: list[str], screened: int
) -> dict[str, Any]:
    import time

    from knockscreen import plan as planning
    from knockscreen.names import NTC
    from knockscreen.sampling import Screen

    evaluations = config.steps * planning.EVALUATIONS[config.solver]
    genes = len(sampler.model.vocabulary.gene_ids)
    per_cell = planning.flops_per_cell(
        sampler.vae.settings, sampler.model.net.settings, genes, evaluations
    )
    screen = Screen(sampler, contexts[:1])
    screen.generate(NTC)  # warm up
    began = time.perf_counter()
    screen.generate(NTC)
    seconds = (time.perf_counter() - began) / config.draws
    cells = (screened + 1) * len(contexts) * config.draws
    return {
        "contexts": contexts,
        "draws": config.draws,
        "blocks": min(config.blocks, config.draws),
        "shards": config.shards,
        "cells": cells,
        "flops": per_cell * cells,
        "seconds": seconds * cells,
        "bytes": screened * len(contexts) * genes * 4 * (6 + config.blocks),
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
    screen = _screen(_sampler(seed, config, vae, flow, effect), plan)
    screening.write_control(output, screen)
    write_manifest(
        output,
        stage="generate_control",
        inputs=[vae, flow, effect, plan],
        settings=config.model_dump(),
        seed=seed,
    )
    log.info("control in %d contexts -> %s", len(screen.contexts), output)


def generate(
    settings: Settings,
    effect: Effect,
    vae: Vae,
    flow: Flow,
    store: Annotated[Path | None, typer.Option("--store", help="Training store.")] = None,
    plan: Annotated[Path | None, typer.Option("--plan", help="plan.json of a screen.")] = None,
    candidates: Annotated[Path | None, typer.Option("--candidates")] = None,
    control: Annotated[Path | None, typer.Option("--control")] = None,
    shard: Annotated[int | None, typer.Option("--shard", help="Shard of the plan.")] = None,
    output: Annotated[Path | None, typer.Option("--output", help="Shard to write (.npz).")] = None,
    perturbation: Annotated[
        str | None, typer.Option("--perturbation", help="One knock-down, symbol or Ensembl id.")
    ] = None,
    context: Annotated[
        str | None, typer.Option("--context", help="Its context, donor=D1,time=Rest.")
    ] = None,
    draws: Annotated[int, typer.Option("--draws", min=1, help="Cells to generate.")] = 100,
    out: Annotated[Path | None, typer.Option("--out", help="Cells to write (.h5ad).")] = None,
) -> None:
    """Generate one shard of the screen, or the cells of one knock-down in one context."""
    from knockscreen.errors import ConfigError

    seed, config = _read(settings)
    sampler = _sampler(seed, config, vae, flow, effect)
    if perturbation is not None:
        if context is None or out is None:
            msg = "--perturbation needs --context factor=level,... and --out FILE.h5ad."
            raise ConfigError(msg)
        from knockscreen.generated import write_cells

        write_cells(out, sampler, [(perturbation, context)], draws)
        log.info("%d cells of %s in %s -> %s", draws, perturbation, context, out)
        return
    if plan is None or candidates is None or control is None or shard is None or output is None:
        msg = (
            "give --plan, --candidates, --control, --shard and --output for a shard of a screen, "
            "or --perturbation, --context and --out for one knock-down."
        )
        raise ConfigError(msg)
    _generate_shard(sampler, config, _Shard(plan, candidates, control, shard, output))


class _Shard(NamedTuple):
    plan: Path
    candidates: Path
    control: Path
    number: int
    output: Path


def _generate_shard(sampler: "Sampler", config: "ScreenConfig", shard: _Shard) -> None:
    import time

    import polars as pl

    from knockscreen import screening
    from knockscreen.artifacts import read_json, require_file, write_manifest
    from knockscreen.errors import ConfigError

    plan, candidates, control, number, output = shard
    screen = _screen(sampler, plan)
    shards = read_json(plan)["shards"]
    if not 0 <= number < shards:
        msg = f"--shard {number} is not in {plan}, which has shards 0 to {shards - 1}."
        raise ConfigError(msg)
    listed = pl.read_parquet(require_file(candidates, "plan"))
    mine = listed.filter(pl.col("shard") == number)
    rows = list(zip(mine["candidate"], mine["target_gene_id"], strict=True))
    began = last = time.monotonic()

    def progress(done: int) -> None:
        nonlocal last
        if time.monotonic() - last > 20:
            last = time.monotonic()
            log.info("%d of %d knock-downs, %.0f s", done, len(rows), last - began)

    screening.write_shard(output, screen, control, rows, progress)
    if config.save_cells:
        from knockscreen.generated import write_cells

        ids = [gene_id for _, gene_id in rows]
        pairs = [(gene_id, name) for gene_id in ids for name in screen.contexts]
        if pairs:
            write_cells(output.with_suffix(".h5ad"), sampler, pairs, screen.draws)
    write_manifest(
        output,
        stage="generate",
        inputs=[plan, candidates, control],
        settings=config.model_dump(),
        seed=sampler.settings.seed,
    )
    log.info("%d knock-downs in %.0f s -> %s", len(rows), time.monotonic() - began, output)


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
    sampler = _sampler(seed, config, vae, flow, effect)
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


def _sampler(seed: int, config: "ScreenConfig", vae: Path, flow: Path, effect: Path) -> "Sampler":
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


def _screen(sampler: "Sampler", plan: Path) -> "Screen":
    from knockscreen.artifacts import read_json
    from knockscreen.sampling import Screen

    return Screen(sampler, list(read_json(plan)["contexts"]))
