"""Verb that builds the ranking database."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

logger = logging.getLogger(__name__)


def register(app: typer.Typer) -> None:
    """Add the verb of this module to the command line."""
    app.command("build-db")(build_db)
    app.command("export")(export)


def build_db(
    results_dir: Annotated[Path, typer.Option(help="Folder of the run, results/<run>.")],
    programs: Annotated[Path, typer.Option(help="TSV of the programs that were ranked.")],
    output: Annotated[Path, typer.Option(help="Database to write (.duckdb).")],
    settings: Annotated[str, typer.Option(help="JSON text, or a YAML configuration.")],
    memory: Annotated[str, typer.Option(help="Memory for sorting; the rest goes to disk.")] = "2GB",
    threads: Annotated[int, typer.Option(min=0, help="Threads; 0: all the job has.")] = 0,
) -> None:
    """Build the ranking database of a run from its Parquet files."""
    from knockscreen.store.build import Resources, build

    with _progress() as progress:
        build(
            results_dir,
            programs,
            output,
            settings,
            resources=Resources(memory=memory, threads=threads),
            progress=progress,
        )
    logger.info("database: %s (%.1f MB)", output, output.stat().st_size / 1e6)


def export(
    output_dir: Annotated[Path, typer.Option(help="Folder for the Parquet files.")],
    table: Annotated[
        list[str] | None,
        typer.Option(help="Table or view, repeatable; none: all but the effects gene by gene."),
    ] = None,
    db: Annotated[Path | None, typer.Option(help="Database, or a run's folder.")] = None,
    run: Annotated[str | None, typer.Option(help="Name of the run under results/.")] = None,
) -> None:
    """Write tables and views of a database as Parquet files."""
    from contextlib import closing

    from knockscreen.store import export as exporting
    from knockscreen.store.connection import find_database
    from knockscreen.store.screen import Screen

    with closing(Screen(find_database(db, run))) as screen:
        for path in exporting.export(screen.connection, screen.path, output_dir, table or ()):
            logger.info("%s (%.1f MB)", path, path.stat().st_size / 1e6)


@contextmanager
def _progress() -> Iterator[Callable[[int, int, str], None]]:
    """Yield a function that shows progress: a bar on a terminal, plain lines elsewhere."""
    if not sys.stderr.isatty():
        yield lambda done, total, what: logger.info("build-db %d/%d: %s", done, total, what)
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("build-db")
        yield lambda done, total, what: bar.update(
            task, completed=done, total=total, description=what
        )
