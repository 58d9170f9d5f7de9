"""The Python API of a finished screen: one method per verb of the command line."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import duckdb
import polars as pl

from knockscreen.errors import DatabaseError
from knockscreen.store import evaluation, lists, queries, resolve, sql
from knockscreen.store.connection import CLOSED, connect, find_database
from knockscreen.store.reverse import By, read_signature, reverse


class Screen:
    """A finished screen, opened read-only. Close it, or use it in a ``with`` block.

    Every method returns a polars frame with fixed columns and types; missing is null.

    Examples
    --------
    >>> import knockscreen
    >>> with knockscreen.open("results/demo") as screen:  # doctest: +SKIP
    ...     screen.top("Treg", "time=Stim8hr", n=5)
    """

    def __init__(self, path: Path | str) -> None:
        self.path = find_database(path)
        self._opened = connect(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Screen({str(self.path)!r})"

    @property
    def _connection(self) -> duckdb.DuckDBPyConnection:
        """A cursor of its own for each question, so that threads may ask at once."""
        try:
            return self._opened.cursor()
        except duckdb.ConnectionException as error:
            raise DatabaseError(CLOSED) from error

    def close(self) -> None:
        """Close the database."""
        self._opened.close()

    @property
    def connection(self) -> duckdb.DuckDBPyConnection:
        """The read-only connection, for questions that no method asks."""
        return self._opened

    @property
    def run(self) -> dict[str, Any]:
        """The row of table ``runs``."""
        return self.runs().row(0, named=True)

    def default_contexts(self) -> list[str]:
        """Return the contexts that a question without one is about: the pooled ones, else all."""
        return [context.context for context in resolve.contexts(self._connection, None)]

    def top(
        self,
        program: str,
        context: str | None = None,
        *,
        direction: queries.Direction = "toward",
        n: int | None = 20,
        evidence: queries.Evidence | None = None,
        source: str | None = None,
    ) -> pl.DataFrame:
        """Return the first ``n`` knock-downs per context; see :func:`.queries.top`."""
        return queries.top(
            self._connection, program, context,
            direction=direction, n=n, evidence=evidence, source=source,
        )  # fmt: skip

    def show(self, target: str, context: str | None = None, *, n: int | None = 20) -> pl.DataFrame:
        """Return programs and genes moved by one knock-down; see :func:`.queries.show`."""
        return queries.show(self._connection, target, context, n=n)

    def show_programs(self, target: str, context: str | None = None) -> pl.DataFrame:
        """Return programs moved by one knock-down; see :func:`.queries.show_programs`."""
        return queries.show_programs(self._connection, target, context)

    def show_genes(
        self, target: str, context: str | None = None, *, n: int | None = 20
    ) -> pl.DataFrame:
        """Return genes moved by one knock-down; see :func:`.queries.show_genes`."""
        return queries.show_genes(self._connection, target, context, n=n)

    def movers(
        self,
        gene: str,
        context: str | None = None,
        *,
        direction: queries.Sign | None = None,
        n: int | None = 20,
    ) -> pl.DataFrame:
        """Return the knock-downs that move a gene; see :func:`.queries.movers`."""
        return queries.movers(self._connection, gene, context, direction=direction, n=n)

    def compare(
        self, program_a: str, program_b: str, context: str | None = None, *, n: int | None = 20
    ) -> pl.DataFrame:
        """Return the knock-downs that separate two programs; see :func:`.queries.compare`."""
        return queries.compare(self._connection, program_a, program_b, context, n=n)

    def explain(self, target: str, program: str, context: str | None = None) -> pl.DataFrame:
        """Return the genes that carry a score; see :func:`.queries.explain`."""
        return queries.explain(self._connection, target, program, context)

    def reverse(
        self,
        signature: pl.DataFrame | Path | str,
        context: str | None = None,
        *,
        n: int | None = 20,
        mimic: bool = False,
        by: By = "score",
    ) -> pl.DataFrame:
        """Return the knock-downs that undo (or make) a signature; see :func:`.reverse.reverse`.

        ``signature`` is a frame with gene and weight (or log2_fold_change), or a CSV or TSV of it.
        """
        frame = signature if isinstance(signature, pl.DataFrame) else read_signature(signature)
        return reverse(self._connection, frame, context, n=n, mimic=mimic, by=by)

    def controls(self, program: str | None = None, context: str | None = None) -> pl.DataFrame:
        """Return what the positive controls say of programs; see :func:`.lists.controls`."""
        return lists.controls(self._connection, program, context)

    def runs(self) -> pl.DataFrame:
        """Return the run of this database."""
        return lists.runs(self._connection)

    def programs(self) -> pl.DataFrame:
        """Return the programs, ranked or left out."""
        return lists.programs(self._connection)

    def contexts(self) -> pl.DataFrame:
        """Return the contexts, separate ones first."""
        return lists.contexts(self._connection)

    def metrics(
        self, context: str | None = None, *, split: str | None = None, metric: str | None = None
    ) -> pl.DataFrame:
        """Return the model beside baselines and ceiling; see :func:`.evaluation.metrics`."""
        return evaluation.metrics(self._connection, context, split=split, metric=metric)

    def sql(self, query: str) -> pl.DataFrame:
        """Return the rows of one reading SQL statement; see :func:`.sql.sql`."""
        return sql.sql(self._connection, query)

    def export(self, output: Path | str, tables: Sequence[str] = ()) -> list[Path]:
        """Write tables or views as Parquet files; see :func:`.export.export`."""
        from knockscreen.store.export import export  # pyarrow's writer is slow to load

        return export(self._connection, self.path, Path(output), tables)

    def caveats(self, target: str) -> list[str]:
        """Return what speaks against the numbers of one knock-down, a sentence each."""
        found = resolve.target(self._connection, target)
        notes = []
        if found.evidence == "predicted_unseen":
            notes.append(
                f"{found.target_gene} was never knocked down in training: prediction only."
            )
        if found.status == "not_a_candidate":
            notes.append(f"{found.target_gene} was measured but not generated.")
        if found.objection:
            notes.append(f"{found.target_gene}: {found.objection}.")
        lost = resolve.lost_contexts(self._connection, found.key)
        if lost:
            notes.append(f"QC dropped its cells: {lost}.")
        return notes


def open_screen(path: Path | str) -> Screen:
    """Open the screen in a run's folder (``results/demo``) or a database file, read-only.

    Raises
    ------
    DatabaseError
        The database is missing, busy, of another version, or not a database.
    """
    return Screen(path)
