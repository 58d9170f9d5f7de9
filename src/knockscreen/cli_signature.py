"""Verbs for what a user brings: a signature to undo, new programs to rank toward."""

from contextlib import closing
from pathlib import Path
from typing import Annotated, Literal

import typer

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

REVERSE = (
    "score: minus the cosine with the signature, 1 undoes it exactly whatever the size;"
    " projection: minus the weighted mean change (log1p CP10k). up and down: the same for the"
    " genes up and down in the signature; knock-downs that undo both come first. The order is a"
    " prediction, not a test."
)


def register(app: typer.Typer) -> None:
    """Add the verbs of this module to the command line."""
    app.command("reverse")(reverse)


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
        draw = lambda: out.by_context(title, columns, frame)  # noqa: E731
        unknown = place(screen.connection, given).unknown
        notes = [REVERSE, out.EVIDENCE]
        if unknown:
            names = ", ".join(unknown[:5]) + ", ..." * (len(unknown) > 5)
            notes.append(f"{len(unknown)} of {given.height} genes are not on the panel: {names}")
        emit(screen, format, frame, draw, notes)
