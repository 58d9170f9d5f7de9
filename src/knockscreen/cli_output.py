"""How answers are printed: a table for people, CSV or JSON for programs."""

import json
import math
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import typer

if TYPE_CHECKING:
    import polars as pl

Format = Literal["table", "csv", "json"]
Row = Mapping[str, Any]
Column = tuple[str, Callable[[Row], str]]
MISSING = "-"
SIMULATED = "The input cells are simulated: no finding about real cells."
SCORE = (
    "score: change of the program (weighted mean of log1p CP10k, knock-down minus control);"
    " positive = toward it. \u00b1 and the ranks in brackets hold the draws, the models and what"
    " few training cells leave open for predicted rows, the standard error for measured ones."
)
EVIDENCE = (
    "predicted_seen: generated, the knock-down was in the training cells; predicted_unseen: it"
    " was not; measured: the real cells. - is missing: not known or not computed."
)
DIFFERENCE = (
    "difference: model minus baseline, with its 95 % bootstrap interval over targets; best is the"
    " value of a perfect prediction. ceiling: one half of the held-out cells predicting the other."
)
CONTROLS = (
    "controls: knock-downs with a published effect on the program. AUROC: share of the other"
    " knock-downs that they beat in their direction, 0.5 by chance; p: over random sets of"
    " knock-downs; program p: over random programs. exploratory: they do not come out, do not"
    " rely on the ranking."
)
DELTA = "delta: change of the gene in log1p CP10k, knock-down minus control; * the target itself."


def number(value: float | None) -> str:
    """Return a number with three significant digits, integers whole, missing as a dash."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def text(name: str) -> Callable[[Row], str]:
    """Return the formatter of one column."""

    def formatted(row: Row) -> str:
        value = row[name]
        if value is None or isinstance(value, bool | int | float):
            return number(value)
        return str(value)

    return formatted


def spread(value: str, sd: str) -> Callable[[Row], str]:
    """Return the formatter of a number with its standard deviation or error."""

    def formatted(row: Row) -> str:
        if row[value] is None or row[sd] is None:
            return number(row[value])
        return f"{number(row[value])} \u00b1 {row[sd]:.2g}"

    return formatted


def interval(value: str, low: str, high: str) -> Callable[[Row], str]:
    """Return the formatter of a rank with its interval."""

    def formatted(row: Row) -> str:
        if row[low] is None or row[high] is None:
            return number(row[value])
        return f"{number(row[value])} ({number(row[low])}-{number(row[high])})"

    return formatted


def with_chance(value: str, chance: str) -> Callable[[Row], str]:
    """Return the formatter of a number with what it is by chance."""

    def formatted(row: Row) -> str:
        if row[value] is None or row[chance] is None:
            return number(row[value])
        return f"{number(row[value])} ({row[chance]:.2g})"

    return formatted


def control_notes(frame: "pl.DataFrame") -> list[str]:
    """Return a line per context and evidence whose ranking the controls do not support."""
    rows = frame.select("context", "evidence", "control_status", "control_reason").unique(
        maintain_order=True
    )
    return [
        f"{status} in {context} ({evidence}): {reason or 'the gate was not run'}."
        for context, evidence, status, reason in rows.iter_rows()
        if status != "passed"
    ]


def emit(
    frame: "pl.DataFrame",
    format: Format,
    show: Callable[[], None],
    *,
    simulated: bool,
    notes: Sequence[str] = (),
) -> None:
    """Print ``frame`` as CSV or JSON, or call ``show`` and print the notes below it.

    What is simulated says so: below a table, and on stderr beside CSV and JSON.
    """
    if format == "table":
        show()
        for note in [*notes, *([SIMULATED] if simulated else [])]:
            typer.echo(note)
        return
    if format == "csv":
        typer.echo(_flat(frame).write_csv(), nl=False)
    else:
        typer.echo(json.dumps(_finite(frame).to_dicts(), default=str, allow_nan=False, indent=1))
    if simulated:
        typer.echo(SIMULATED, err=True)


def _finite(frame: "pl.DataFrame") -> "pl.DataFrame":
    """Return ``frame`` with null where a float is not finite, since JSON has no such number."""
    import polars as pl

    floats = pl.selectors.float()
    return frame.with_columns(pl.when(floats.is_finite()).then(floats))


def _flat(frame: "pl.DataFrame") -> "pl.DataFrame":
    """Return ``frame`` with nested columns as JSON text and bytes as hex, as CSV has neither."""
    import polars as pl

    binary = pl.selectors.binary()
    frame = frame.with_columns(binary.bin.encode("hex"))
    nested = [name for name, dtype in frame.schema.items() if dtype.is_nested()]
    return frame.with_columns(
        pl.Series(
            name,
            [value and json.dumps(value, default=str) for value in frame[name].to_list()],
            dtype=pl.String,
        )
        for name in nested
    )


def table(title: str, columns: Sequence[Column], rows: Iterable[Row]) -> None:
    """Print a table: as wide as the terminal, or as it needs where there is none."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    terminal = sys.stdout.isatty()
    console = Console(
        width=shutil.get_terminal_size().columns if terminal else 400,
        markup=False,
        highlight=False,
        emoji=False,
    )
    drawn = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    cells = [[formatted(row) for _, formatted in columns] for row in rows]
    for position, (name, _) in enumerate(columns):
        words = any(row[position][:1].isalpha() for row in cells)
        drawn.add_column(name, justify="left" if words else "right")
    for row in cells:
        drawn.add_row(*row)
    console.print(drawn)


def by_context(title: str, columns: Sequence[Column], frame: "pl.DataFrame") -> None:
    """Print one table per context, the context in its title."""
    if frame.is_empty():
        typer.echo(f"{title}: none.")
    for name in frame["context"].unique(maintain_order=True):
        rows = frame.filter(frame["context"] == name)
        table(f"{title}, {name}", columns, rows.iter_rows(named=True))
