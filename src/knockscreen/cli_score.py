"""Verbs that turn generated and real cells into effects, program scores and rankings."""

import logging
from pathlib import Path
from typing import Annotated

import typer

log = logging.getLogger(__name__)

Settings = Annotated[str, typer.Option(help="JSON text, or the path of a complete configuration.")]
StoreDir = Annotated[Path, typer.Option(help="Folder of the training store.")]


def score(
    shard: Annotated[Path, typer.Option(help="Sufficient statistics of the candidates (.npz).")],
    control: Annotated[
        Path, typer.Option(help="Statistics of the generated control cells (.npz).")
    ],
    candidates: Annotated[Path, typer.Option(help="Candidate table (.parquet).")],
    store: StoreDir,
    effects: Annotated[Path, typer.Option(help="Output: effects per target, context and gene.")],
    programs_out: Annotated[Path, typer.Option(help="Output: program scores.")],
    settings: Settings,
    decoys_out: Annotated[
        Path | None, typer.Option(help="Output: effects of the decoys, for new programs.")
    ] = None,
) -> None:
    """Score one shard: effects gene by gene, and programs moved, against generated control."""
    from knockscreen.artifacts import atomic, write_manifest
    from knockscreen.config import read_stage
    from knockscreen.score import effects as scoring
    from knockscreen.score.candidates import read_candidates
    from knockscreen.score.programs import load_programs
    from knockscreen.score.random_programs import program_null

    config = read_stage(scoring.ScoreStage, settings)
    programs = load_programs(config.programs, store)
    read = scoring.read_shard(shard, control, read_candidates(candidates), store)
    null = program_null(store, programs, config.rank.random_programs)
    table = scoring.program_scores(read, programs, config.rank.pool_over, null)
    with atomic(effects) as first, atomic(programs_out) as second:
        rows = scoring.write_effects(read, first, config.rank.pool_over)
        table.write_parquet(second, row_group_size=max(len(table) // len(programs.names), 1))
    if decoys_out is not None:
        with atomic(decoys_out) as third:
            scoring.write_effects(read, third, config.rank.pool_over, decoys=True)
    inputs = [shard, control, candidates, store / "store.json", Path(config.programs.file)]
    for output in (effects, programs_out):
        write_manifest(
            output, stage="score", inputs=inputs, settings=config.model_dump(mode="json")
        )
    log.info(
        "scored %d knock-downs: %s effects, %d programs",
        len(read.target_gene_ids), f"{rows:,}", len(programs.names),
    )  # fmt: skip


def measure(
    store: StoreDir,
    output_dir: Annotated[
        Path, typer.Option(help="Folder for effects, programs, ceiling, decoys.")
    ],
    settings: Settings,
    splits: Annotated[
        list[str] | None, typer.Option(help="Cells to use, e.g. train; repeatable; none: all.")
    ] = None,
) -> None:
    """Measure the knock-downs in the real cells, with standard errors and split-half ceiling."""
    from knockscreen.artifacts import write_manifest
    from knockscreen.config import read_stage
    from knockscreen.score import measured
    from knockscreen.score.programs import load_programs
    from knockscreen.score.random_programs import program_null

    config = read_stage(measured.MeasureStage, settings)
    programs = load_programs(config.programs, store)
    null = program_null(store, programs, config.rank.random_programs)
    paths = measured.write_measured(
        store, output_dir, programs, config.rank.pool_over,
        seed=config.seed, splits=splits or (), replicates=config.measured.replicates, null=null,
    )  # fmt: skip
    for output in paths:
        write_manifest(
            output,
            stage="measure",
            inputs=[store / "store.json", Path(config.programs.file)],
            settings=config.model_dump(mode="json"),
            seed=config.seed,
            notes={"splits": splits or "all"},
        )


def rank(
    programs_dir: Annotated[Path, typer.Option(help="Folder of the shards' program scores.")],
    candidates: Annotated[Path, typer.Option(help="Candidate table (.parquet).")],
    store: StoreDir,
    output_dir: Annotated[Path, typer.Option(help="Folder for scores and rankings.")],
    settings: Settings,
    measured: Annotated[
        Path | None,
        typer.Option(help="Measured program scores, ranked apart; none: predicted only."),
    ] = None,
    replicate_dir: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of the program scores of a further model; repeatable."),
    ] = None,
    external: Annotated[
        Path | None,
        typer.Option(help="Program scores of measured tables from elsewhere, each ranked apart."),
    ] = None,
    gates: Annotated[
        Path | None, typer.Option(help="What the positive controls say; none: nothing tested.")
    ] = None,
    measured_decoys: Annotated[
        Path | None, typer.Option(help="Program scores of measured decoys; none: no p-values.")
    ] = None,
) -> None:
    """Rank knock-downs per program, context and direction, from the scores of all shards.

    With several models (replicates) scores are their mean, and intervals hold how they differ.
    """
    from knockscreen.artifacts import write_manifest
    from knockscreen.config import read_stage
    from knockscreen.score import rank as ranking
    from knockscreen.score.candidates import read_table
    from knockscreen.score.score_files import find_scores

    config = read_stage(ranking.RankStage, settings)
    scores = find_scores(
        programs_dir, measured, candidates, store, replicate_dir or (),
        external=external, measured_decoys=measured_decoys,
    )  # fmt: skip
    labels = read_table(gates, "gate") if gates else None
    more = [path for path in (measured, measured_decoys, external, gates) if path]
    for output in ranking.write_rankings(scores, output_dir, config.rank, config.seed, labels):
        write_manifest(
            output,
            stage="rank",
            inputs=[
                *scores.shards,
                *(path for shards in scores.replicates for path in shards),
                candidates,
                *more,
            ],
            settings=config.model_dump(mode="json"),
            seed=config.seed,
        )
    log.info("ranked %d candidates: %s", len(scores.candidates), output_dir / "rankings.parquet")


def gate(
    programs_dir: Annotated[Path, typer.Option(help="Folder of the shards' program scores.")],
    candidates: Annotated[Path, typer.Option(help="Candidate table (.parquet).")],
    store: StoreDir,
    output_dir: Annotated[Path, typer.Option(help="Folder for controls and gates.")],
    settings: Settings,
    measured: Annotated[
        Path | None, typer.Option(help="Measured program scores; none: predicted only.")
    ] = None,
    effects_dir: Annotated[
        Path | None, typer.Option(help="Folder of the shards' effects; none: no random programs.")
    ] = None,
    measured_effects: Annotated[
        Path | None, typer.Option(help="Measured effects, gene by gene.")
    ] = None,
    replicate_dir: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of the program scores of a further model; repeatable."),
    ] = None,
) -> None:
    """Ask the positive controls whether a program's ranking is to be believed."""
    from knockscreen.artifacts import write_manifest
    from knockscreen.config import read_stage
    from knockscreen.score import gate as gating
    from knockscreen.score.programs import load_programs
    from knockscreen.score.rank import all_scores
    from knockscreen.score.score_files import find_scores
    from knockscreen.score.verdicts import overall

    stage = read_stage(gating.GateStage, settings)
    config, controls = stage.gate, gating.read_controls(stage.gate.controls)
    effects = None
    if effects_dir is not None:
        programs = load_programs(stage.programs, store)
        files = sorted(effects_dir.glob("*.parquet"))
        effects = gating.effects_of_controls(controls, programs, store, files, measured_effects)
    scores = find_scores(programs_dir, measured, candidates, store, replicate_dir or ())
    paths = [output_dir / name for name in ("controls.parquet", "gates.parquet")]
    gates = gating.write_gates(all_scores(scores), controls, config, paths, effects)
    for output in paths:
        write_manifest(
            output,
            stage="gate",
            inputs=[*scores.shards, candidates, Path(config.controls)],
            settings=stage.model_dump(mode="json"),
        )
    for program, status, reason in overall(gates).iter_rows():
        log.info("%s: %s (%s)", program, status, reason)


def register(app: typer.Typer) -> None:
    """Add the verbs of this module to the command line."""
    for verb in (score, measure, gate, rank):
        app.command()(verb)
