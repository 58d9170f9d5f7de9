"""Verbs for measured effects from elsewhere: into a run, or ranked alone."""

import logging
from pathlib import Path
from typing import Annotated, Literal

import typer

log = logging.getLogger(__name__)

Settings = Annotated[str, typer.Option(help="JSON text, or the path of a complete configuration.")]


def pairs(given: list[str] | None, option: str) -> dict[str, str]:
    """Return repeated ``key=value`` options as a mapping.

    Raises
    ------
    ConfigError
        One of them has no ``=``.
    """
    from knockscreen.errors import ConfigError

    found = {}
    for text in given or []:
        key, sign, value = text.partition("=")
        if not (key and sign and value):
            msg = f"{option} '{text}' is not of the form key=value."
            raise ConfigError(msg)
        found[key] = value
    return found


def load_external(
    store: Annotated[Path, typer.Option(help="Folder of the training store.")],
    output_dir: Annotated[Path, typer.Option(help="Folder for effects and program scores.")],
    settings: Settings,
) -> None:
    """Bring the measured tables that the configuration names onto the genes of a run."""
    import polars as pl

    from knockscreen.artifacts import read_json, write_manifest
    from knockscreen.config import read_stage
    from knockscreen.names import context_name
    from knockscreen.score import external_scores as loading
    from knockscreen.score.contexts import pooled_contexts
    from knockscreen.score.programs import load_programs

    config = read_stage(loading.ExternalStage, settings)
    panel = pl.read_parquet(store / "panel.parquet", columns=["gene_id", "gene"])
    factors = read_json(store / "store.json")["factors"]
    levels = pl.scan_parquet(store / "cells.parquet").select(pl.col("context").unique()).collect()
    separate = sorted(levels["context"].cast(pl.String)) if factors else [context_name({})]
    paths = loading.write_external(
        config.external, output_dir, load_programs(config.programs, store), panel,
        pooled_contexts(separate, config.rank.pool_over), min_genes=config.programs.min_genes,
    )  # fmt: skip
    files = [Path(table.file) for table in config.external]
    inputs = [store / "store.json", Path(config.programs.file), *files]
    for output in paths:
        write_manifest(
            output, stage="external", inputs=inputs, settings=config.model_dump(mode="json")
        )
    log.info("loaded %d external tables: %s", len(config.external), paths[0])


def rank_external(
    table: Annotated[Path, typer.Argument(help="Measured effects: .h5ad, .csv, .tsv, .parquet.")],
    programs: Annotated[Path, typer.Option(help="TSV of signed program genes.")],
    output_dir: Annotated[Path, typer.Option("--output-dir", "-o", help="Folder for the results.")],
    source: Annotated[str, typer.Option(help="Name of the table in the results.")] = "external",
    program: Annotated[
        list[str] | None, typer.Option(help="Programs to rank; repeatable; none: all.")
    ] = None,
    context: Annotated[
        list[str] | None,
        typer.Option(help="CONDITION=CONTEXT, e.g. Rest=time=Rest; repeatable; none: all."),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help="ROLE=COLUMN where no usual name is found, e.g. gene=symbol; repeatable"),
    ] = None,
    unit: Annotated[
        Literal["log2", "ln"], typer.Option(help="Logarithm of its fold changes.")
    ] = "log2",
    absent: Annotated[
        Literal["missing", "zero"],
        typer.Option(help="Genes that a profile does not list: not measured, or not changed."),
    ] = "missing",
    min_genes: Annotated[int, typer.Option(help="Program genes that a score needs.", min=1)] = 5,
    interval: Annotated[float, typer.Option(help="Coverage of the rank interval.")] = 0.9,
    seed: Annotated[int, typer.Option(help="Seed of the rank interval.", min=0)] = 1,
) -> None:
    """Rank the knock-downs of a measured table on gene programs, without any model or run."""
    from knockscreen.artifacts import atomic, write_manifest
    from knockscreen.config import ExternalConfig, RankConfig, validate
    from knockscreen.score import external_scores as ranking_of
    from knockscreen.score.external import open_external
    from knockscreen.score.program_files import read_programs
    from knockscreen.score.programs import program_matrix

    values = {
        "source": source, "file": str(table), "unit": unit, "absent": absent,
        "columns": pairs(column, "--column"), "contexts": pairs(context, "--context"),
    }  # fmt: skip
    settings = validate(ExternalConfig, values, where="the options")
    ranking = validate(
        RankConfig,
        {"pool_over": [], "interval": interval, "resamples": 200, "random_programs": 0},
        where="the options",
    )
    opened = open_external(settings)
    matrix = program_matrix(
        read_programs(programs), opened.genes["gene_id"].to_list(), opened.genes["gene"].to_list(),
        names=program or (), min_genes=min_genes,
    )  # fmt: skip
    for name, (n, total) in matrix.dropped.items():
        log.warning("program %s is left out: %d of its %d genes are measured", name, n, total)
    scored = ranking_of.rank_external_scores(opened, matrix, min_genes=min_genes)
    scores, rankings = ranking_of.rank_external(scored, ranking, seed)
    for name, frame in (("program_scores", scores), ("rankings", rankings)):
        for kind in ("parquet", "csv"):
            output = output_dir / f"{name}.{kind}"
            with atomic(output) as temporary:
                frame.write_parquet(temporary) if kind == "parquet" else frame.write_csv(temporary)
            write_manifest(
                output, stage="rank_external", inputs=[table, programs], settings=values, seed=seed
            )
    log.info(
        "ranked %d knock-downs on %d programs: %s",
        scores["target_gene_id"].n_unique(), len(matrix.names), output_dir / "rankings.csv",
    )  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add the verbs of this module to the command line."""
    for verb in (load_external, rank_external):
        app.command()(verb)
