"""Verbs for what a user brings: a signature to undo, new programs to rank toward."""

import logging
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from knockscreen.score.rescore import RescoreStage

from knockscreen import cli_output as out
from knockscreen.cli_output import text
from knockscreen.cli_query import (
    ContextOption,
    DbOption,
    FormatOption,
    NOption,
    RunOption,
    emit,
    open_screen,
)

log = logging.getLogger(__name__)

REVERSE = (
    "score: minus the cosine with the signature, 1 undoes it exactly whatever the size;"
    " projection: minus the weighted mean change (log1p CP10k). up and down: the same for the"
    " genes up and down in the signature; knock-downs that undo both come first. The order is a"
    " prediction, not a test."
)


def register(app: typer.Typer) -> None:
    """Add the verbs of this module to the command line."""
    app.command("reverse")(reverse)
    app.command("score-programs")(score_programs)


def reverse(
    signature: Annotated[
        Path, typer.Argument(help="CSV or TSV: gene, and weight or log2_fold_change.")
    ],
    context: ContextOption = None,
    mimic: Annotated[
        bool, typer.Option("--mimic", help="Knock-downs that make it, not that undo it.")
    ] = False,
    by: Annotated[
        Literal["score", "projection"],
        typer.Option(help="Order by direction alone, or by direction and size."),
    ] = "score",
    n: NOption = 20,
    format: FormatOption = "table",
    db: DbOption = None,
    run: RunOption = None,
) -> None:
    """Show which knock-downs undo a signature of your own."""
    from knockscreen.store.reverse import place, read_signature

    columns = [
        ("rank", text("rank")),
        ("target", text("target_gene")),
        ("score", text("score")),
        ("projection", text("projection")),
        ("up", text("up_score")),
        ("down", text("down_score")),
        ("both", text("both_arms")),
        ("measured score", text("measured_score")),
        ("measured projection", text("measured_projection")),
        ("evidence", text("evidence")),
    ]
    with closing(open_screen(db, run)) as screen:
        given = read_signature(signature)
        frame = screen.reverse(given, context, n=n, mimic=mimic, by=by)
        title = f"knock-downs that {'make' if mimic else 'undo'} {signature.name}"
        unknown = place(screen.connection, given).unknown
        notes = [REVERSE, out.EVIDENCE]
        if unknown:
            names = ", ".join(unknown[:5]) + ", ..." * (len(unknown) > 5)
            notes.append(f"{len(unknown)} of {given.height} genes are not on the panel: {names}")
        emit(screen, format, frame, lambda: out.by_context(title, columns, frame), notes)


def score_programs(
    programs: Annotated[
        Path, typer.Argument(help="TSV of programs, .gmt, or a table of DE (TSV, CSV, .gz).")
    ],
    run: RunOption = None,
    db: DbOption = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Where to; else results/<run>/programs/<name of the file>.")
    ] = None,
    build: Annotated[
        Path | None, typer.Option(help="Also a copy of the database with the new programs.")
    ] = None,
    settings: Annotated[
        str | None, typer.Option(help="JSON text or YAML; else the settings of the run.")
    ] = None,
    contrast: Annotated[str | None, typer.Option(help="Of a table of DE: which one.")] = None,
    name: Annotated[str | None, typer.Option(help="Of a table of DE: name of the program.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Of a table of DE: genes per arm.")] = 100,
    arms: Annotated[
        Literal["any", "both"], typer.Option(help="both: refuse programs of one sign.")
    ] = "any",
) -> None:
    """Rank a finished run toward new programs, from its stored effects, in seconds."""
    from knockscreen.config import ProgramSource, read_stage
    from knockscreen.score.gate import read_controls
    from knockscreen.score.program_files import read_source
    from knockscreen.score.rescore import RescoreStage, rank_new, rescore_run
    from knockscreen.store.extend import extend, refuse_known

    with closing(open_screen(db, run)) as screen:
        database, stored = screen.path, str(screen.run["config"])
    config = read_stage(RescoreStage, settings or stored)
    source = ProgramSource(file=str(programs), contrast=contrast, name=name, top=top, arms=arms)
    table = read_source(source)
    read_controls(config.gate.controls)  # what is wrong is said before anything is written
    if build is not None:
        refuse_known(database, table)
    output = output_dir or database.parent / "programs" / programs.name.split(".")[0]
    files = rescore_run(database.parent, table, config, output)
    gates = rank_new(database.parent, table, config, output)
    _manifests(output, [programs, *files], config)
    for program, status, reason in gates.iter_rows():
        log.info("%s: %s (%s)", program, status, reason)
    log.info("ranked: %s", output / "rank/rankings.parquet")
    if build is not None:
        log.info("database: %s", extend(database, build, table, output))


def _manifests(output: Path, inputs: list[Path], config: "RescoreStage") -> None:
    from knockscreen.artifacts import write_manifest

    for path in sorted(output.glob("rank/*.parquet")) + sorted(output.glob("gate/*.parquet")):
        write_manifest(
            path,
            stage="score_programs",
            inputs=inputs,
            settings=config.model_dump(mode="json"),
            seed=config.seed,
        )
