"""Verbs that ask a finished screen: one question each, read-only."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from knockscreen import cli_output as out
from knockscreen.cli_output import Format, interval, spread, text

if TYPE_CHECKING:
    import polars as pl

    from knockscreen.store.screen import Screen

FormatOption = Annotated[Format, typer.Option("--format", help="How to print.")]
DbOption = Annotated[
    Path | None, typer.Option(help="Database, or a run's folder; else that of the only run.")
]
RunOption = Annotated[str | None, typer.Option(help="Name of the run under results/.")]
ContextOption = Annotated[
    str | None,
    typer.Option(help="factor=level[,factor=level]; else the pooled contexts, or all."),
]
NOption = Annotated[int, typer.Option("-n", min=0, help="Rows per context; 0: all.")]
ProgramArgument = Annotated[str, typer.Argument(metavar="PROGRAM", help="Name of a program.")]
TargetArgument = Annotated[str, typer.Argument(metavar="TARGET", help="Symbol or Ensembl id.")]

PROGRAM_NAMES = "knockscreen programs lists the names."
RUN_COLUMNS = (
    "run", "created", "simulated", "n_cells", "n_genes", "n_targets", "n_contexts", "draws", "seed",
    "knockscreen_version",
)  # fmt: skip
UNSEEN = (
    "fdr is not given for genes never knocked down: p_value says that features single them out."
)
UNCALIBRATED = (
    "fdr is not computed in this database (fewer than 20 decoys): the order is a prediction, not"
    " a test."
)


def register(app: typer.Typer) -> None:
    """Add the verbs of this module to the command line."""
    verbs = (top, show, movers, compare, explain, controls, runs, programs, contexts, metrics, sql)
    for verb in verbs:
        app.command(verb.__name__)(verb)


def open_screen(db: Path | None, run: str | None) -> "Screen":
    """Open the database that the options name, or that of the only run."""
    from knockscreen.store.connection import find_database
    from knockscreen.store.screen import Screen

    return Screen(find_database(db, run))


def emit(screen: "Screen", format: Format, frame: Any, draw: Any, notes: Sequence[str]) -> None:
    """Print an answer, and whether the run is simulated."""
    simulated = bool(screen.run["simulated"])
    out.emit(frame, format, draw, simulated=simulated, notes=notes)


def top(
    program: Annotated[str, typer.Option(help=f"Name of a program; {PROGRAM_NAMES}")],
    context: ContextOption = None,
    direction: Annotated[
        Literal["toward", "away"], typer.Option(help="Knock-downs that raise or lower it.")
    ] = "toward",
    n: NOption = 20,
    evidence: Annotated[
        Literal["predicted", "predicted_seen", "predicted_unseen", "measured"] | None,
        typer.Option(
            help="Which ranking; measured: the real cells. Without it predicted ones, those that "
            "were knocked down in training first."
        ),
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="Ranking of this measured table from elsewhere instead.")
    ] = None,
    format: FormatOption = "table",
    db: DbOption = None,
    run: RunOption = None,
) -> None:
    """Show the best knock-downs for a program."""
    columns = [
        ("rank", interval("rank", "rank_low", "rank_high")),
        ("target", text("target_gene")),
        ("score", spread("score", "score_sd")),
        ("measured", spread("measured_score", "measured_score_sd")),
        ("fdr", text("fdr")),
        ("evidence", text("evidence")),
        ("controls", text("control_status")),
        ("cells", text("n_cells")),
        ("carried by", text("top_genes")),
        ("caveat", text("caveat")),
    ]
    with closing(open_screen(db, run)) as screen:
        frame = screen.top(
            program, context, direction=direction, n=n, evidence=evidence, source=source
        )
        notes = [out.SCORE, out.EVIDENCE]
        by_replicates = frame["replicate_fdr"].is_not_null().any()
        if by_replicates:
            columns.insert(5, ("fdr, replicates", text("replicate_fdr")))
        elif frame["fdr"].is_null().all():
            unseen = (frame["evidence"] == "predicted_unseen").all()
            notes.append(UNSEEN if unseen else UNCALIBRATED)
        notes += out.control_notes(frame)
        title = f"{frame['program'][0]}, {direction}"
        if source is not None:
            title += f", as {source} measured it (log2 fold changes)"
        emit(screen, format, frame, lambda: out.by_context(title, columns, frame), notes)


def show(
    target: TargetArgument,
    context: ContextOption = None,
    n: NOption = 20,
    format: FormatOption = "table",
    db: DbOption = None,
    run: RunOption = None,
) -> None:
    """Show one knock-down: programs and genes it moves, predicted beside measured."""
    programs_columns = [
        ("program", text("program")),
        ("score", spread("score", "score_sd")),
        ("measured", spread("measured_score", "measured_score_sd")),
        ("rank toward", text("rank_toward")),
        ("rank away", text("rank_away")),
        ("of", text("n_ranked")),
        ("cells", text("n_cells")),
        ("genes", text("n_genes")),
        ("evidence", text("evidence")),
        ("controls", text("control_status")),
    ]
    genes_columns = [
        ("gene", _gene),
        ("delta", spread("delta", "delta_se")),
        ("log2 fc", text("log2_fold_change")),
        ("measured delta", spread("measured_delta", "measured_standard_error")),
        ("measured log2 fc", text("measured_log2_fold_change")),
        ("evidence", text("evidence")),
    ]
    with closing(open_screen(db, run)) as screen:
        frame = screen.show(target, context, n=n)
        name = frame["target_gene"][0]

        def draw() -> None:
            of = frame.filter(frame["part"] == "program")
            out.by_context(f"{name}: programs moved", programs_columns, of)
            of = frame.filter(frame["part"] == "gene")
            out.by_context(f"{name}: genes moved most", genes_columns, of)

        notes = [out.SCORE, out.DELTA, out.EVIDENCE]
        notes += [f"caveat: {caveat}" for caveat in screen.caveats(target)]
        emit(screen, format, frame, draw, notes)


def _gene(row: out.Row) -> str:
    return f"{row['gene']}{' *' if row['is_target'] else ''}"


def movers(
    gene: Annotated[str, typer.Argument(metavar="GENE", help="Symbol or Ensembl id.")],
    context: ContextOption = None,
    direction: Annotated[
        Literal["up", "down"] | None, typer.Option(help="Only knock-downs that move it so.")
    ] = None,
    n: NOption = 20,
    format: FormatOption = "table",
    db: DbOption = None,
    run: RunOption = None,
) -> None:
    """Show which knock-downs move a gene."""
    columns = [
        ("target", lambda row: f"{row['target_gene']}{' *' if row['is_target'] else ''}"),
        ("delta", spread("delta", "delta_se")),
        ("log2 fc", text("log2_fold_change")),
        ("measured delta", spread("measured_delta", "measured_standard_error")),
        ("evidence", text("evidence")),
    ]
    with closing(open_screen(db, run)) as screen:
        frame = screen.movers(gene, context, direction=direction, n=n)
        title = f"knock-downs that move {frame['gene'][0] if frame.height else gene}"
        draw = lambda: out.by_context(title, columns, frame)  # noqa: E731
        emit(screen, format, frame, draw, [out.DELTA, out.EVIDENCE])


def compare(
    program_a: Annotated[str, typer.Argument(metavar="PROGRAM_A", help="Name of a program.")],
    program_b: Annotated[str, typer.Argument(metavar="PROGRAM_B", help="Name of another.")],
    context: ContextOption = None,
    n: NOption = 20,
    format: FormatOption = "table",
    db: DbOption = None,
    run: RunOption = None,
) -> None:
    """Show the knock-downs that separate two programs."""
    with closing(open_screen(db, run)) as screen:
        frame = screen.compare(program_a, program_b, context, n=n)
        a, b = (frame[name][0] if frame.height else "" for name in ("program_a", "program_b"))
        columns = [
            ("target", text("target_gene")),
            (f"{a} - {b}", text("difference")),
            ("measured", text("measured_difference")),
            (a, spread("score_a", "score_sd_a")),
            (b, spread("score_b", "score_sd_b")),
            ("evidence", text("evidence")),
            (f"controls {a}", text("control_status_a")),
            (f"controls {b}", text("control_status_b")),
        ]
        draw = lambda: out.by_context(f"{a} against {b}", columns, frame)  # noqa: E731
        emit(screen, format, frame, draw, [out.SCORE, out.EVIDENCE])


def explain(
    target: TargetArgument,
    program: ProgramArgument,
    context: ContextOption = None,
    format: FormatOption = "table",
    db: DbOption = None,
    run: RunOption = None,
) -> None:
    """Show the genes that carry a score."""
    columns = [
        ("gene", _gene),
        ("weight", text("weight")),
        ("delta", spread("delta", "delta_se")),
        ("contribution", text("contribution")),
        ("measured delta", text("measured_delta")),
        ("measured contribution", text("measured_contribution")),
        ("on panel", text("in_panel")),
    ]
    with closing(open_screen(db, run)) as screen:
        frame = screen.explain(target, program, context)
        title = f"{frame['target_gene'][0]} on {frame['program'][0]}"
        sums = _sums(frame)
        notes = [
            f"score in {name}: {out.number(score)} predicted, {out.number(measured)} measured,"
            " the sum of the contributions."
            for name, score, measured in sums
        ]
        notes += [f"positive controls in {c}: {s}." for c, s in _statuses(frame)]
        notes += [out.DELTA, "Genes off the panel and the target itself (*) carry nothing."]
        emit(screen, format, frame, lambda: out.by_context(title, columns, frame), notes)


def _statuses(frame: "pl.DataFrame") -> list[tuple[str, str]]:
    """Return context and control status of the program, in order."""
    rows = frame.select("context", "control_status").unique(maintain_order=True).rows()
    return [(str(context), str(status)) for context, status in rows]


def _sums(frame: "pl.DataFrame") -> list[tuple[str, float | None, float | None]]:
    """Return context, score and measured score, each the sum of its contributions."""
    sums = []
    for name in frame["context"].unique(maintain_order=True):
        part = frame.filter(frame["context"] == name)
        columns = (part[column] for column in ("contribution", "measured_contribution"))
        score, measured = (None if c.is_null().all() else float(c.sum()) for c in columns)
        sums.append((str(name), score, measured))
    return sums


def runs(format: FormatOption = "table", db: DbOption = None, run: RunOption = None) -> None:
    """Show the runs that have a database."""
    from knockscreen.store.connection import databases, find_database
    from knockscreen.store.screen import Screen

    columns = [(name.replace("_", " "), text(name)) for name in RUN_COLUMNS]
    # Without a name, the question is about all of them.
    paths = [] if db or run else list(databases().values())
    frames = []
    for path in paths or [find_database(db, run)]:
        with closing(Screen(path)) as screen:
            frames.append(screen.runs())
    frame = frames[0]
    for more in frames[1:]:
        frame = frame.vstack(more)
    simulated = bool(frame["simulated"].any())
    rows = frame.iter_rows(named=True)
    out.emit(frame, format, lambda: out.table("runs", columns, rows), simulated=simulated)


def programs(format: FormatOption = "table", db: DbOption = None, run: RunOption = None) -> None:
    """Show the programs of a run and how many of their genes are on the panel."""
    columns = [
        ("program", text("program")),
        ("genes", text("n_genes")),
        ("on panel", text("n_panel_genes")),
        ("status", text("status")),
        ("controls", text("control_status")),
        ("why", text("control_reason")),
        ("description", text("description")),
    ]
    with closing(open_screen(db, run)) as screen:
        frame = screen.programs()
        rows = frame.iter_rows(named=True)
        emit(screen, format, frame, lambda: out.table("programs", columns, rows), [])


def controls(
    program: Annotated[str | None, typer.Option(help=f"One program; {PROGRAM_NAMES}")] = None,
    context: ContextOption = None,
    format: FormatOption = "table",
    db: DbOption = None,
    run: RunOption = None,
) -> None:
    """Show what the positive controls say of each program: is its ranking to be believed?"""
    columns = [
        ("program", text("program")),
        ("evidence", text("evidence")),
        ("controls", text("control_status")),
        ("n", text("n_controls")),
        ("of", text("n_others")),
        ("AUROC", text("auroc")),
        ("AUPRC (chance)", out.with_chance("auprc", "auprc_chance")),
        ("sign", text("sign_share")),
        ("p", text("permutation_p")),
        ("program p", text("program_p")),
        ("why not", text("control_reason")),
        ("controls, share of others beaten", text("controls")),
    ]
    with closing(open_screen(db, run)) as screen:
        frame = screen.controls(program, context)
        title = "positive controls"
        notes = [out.CONTROLS]
        emit(screen, format, frame, lambda: out.by_context(title, columns, frame), notes)


def contexts(format: FormatOption = "table", db: DbOption = None, run: RunOption = None) -> None:
    """Show the contexts of a run, pooled ones last."""
    columns = [
        ("context", text("context")),
        ("pooled over", text("pooled_over")),
        ("cells", text("n_cells")),
        ("control cells", text("n_control_cells")),
    ]
    with closing(open_screen(db, run)) as screen:
        frame = screen.contexts()
        rows = frame.iter_rows(named=True)
        emit(screen, format, frame, lambda: out.table("contexts", columns, rows), [])


def metrics(
    context: Annotated[
        str | None, typer.Option(help="factor=level[,factor=level]; else all taken together.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="screened, held_out_target or held_out_context.")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="One metric, e.g. pearson_delta.")] = None,
    format: FormatOption = "table",
    db: DbOption = None,
    run: RunOption = None,
) -> None:
    """Show how good predictions are on held-out cells, beside baselines and the ceiling."""
    columns = [
        ("metric", text("metric")),
        ("model", text("model_value")),
        ("baseline", text("baseline")),
        ("its value", text("baseline_value")),
        ("difference", interval("difference", "low", "high")),
        ("best", text("best")),
        ("n", text("n")),
        ("verdict", text("verdict")),
    ]
    with closing(open_screen(db, run)) as screen:
        frame = screen.metrics(context, split=split, metric=metric)

        def draw() -> None:
            for name in frame["split"].unique(maintain_order=True):
                of = frame.filter(frame["split"] == name)
                title = f"{name}, {of['context'][0]}"
                out.table(title, columns, of.iter_rows(named=True))

        emit(screen, format, frame, draw, [out.DIFFERENCE])


def sql(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="One reading SQL statement.")],
    format: FormatOption = "table",
    db: DbOption = None,
    run: RunOption = None,
) -> None:
    """Ask in SQL, read-only; docs/database.md describes the tables."""
    with closing(open_screen(db, run)) as screen:
        frame = screen.sql(query)
        columns = [(name, text(name)) for name in frame.columns]
        rows = frame.iter_rows(named=True)
        emit(screen, format, frame, lambda: out.table("", columns, rows), [])
