"""The schema file: every column is explained, names that others rely on are there."""

from importlib.resources import files

import duckdb
import pytest

SCHEMA = (files("knockscreen.store") / "schema.sql").read_text()
DESIGN = {
    "runs", "genes", "targets", "contexts", "programs", "program_genes", "effects",
    "measured_effects", "program_scores", "rankings", "artifacts",
}  # fmt: skip
RANKING = {
    "program", "context", "target_gene", "target_gene_id", "direction", "rank", "rank_low",
    "rank_high", "score", "score_sd", "p_value", "fdr", "evidence", "control_status",
}  # fmt: skip


@pytest.fixture
def connection() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute(SCHEMA)
    return connection


def columns(connection: duckdb.DuckDBPyConnection) -> dict[tuple[str, str], str | None]:
    query = "select table_name, column_name, comment from duckdb_columns() where not internal"
    return {(t, c): comment for t, c, comment in connection.sql(query).fetchall()}


def test_every_column_of_every_table_and_view_says_what_it_is(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    silent = [name for name, comment in columns(connection).items() if not comment]
    assert silent == []
    assert len(columns(connection)) > 100


def test_every_table_and_view_says_what_it_is(connection: duckdb.DuckDBPyConnection) -> None:
    query = (
        "select table_name, comment from duckdb_tables() where not internal"
        " union all select view_name, comment from duckdb_views() where not internal"
    )
    comments = dict(connection.sql(query).fetchall())
    assert [name for name, comment in comments.items() if not comment] == []
    assert comments.keys() >= DESIGN


def test_a_score_or_effect_states_its_sign_and_its_unit(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    comments = columns(connection)
    deltas = {name: text or "" for name, text in comments.items() if name[1] == "delta"}
    scores = {name: text or "" for name, text in comments.items() if name[1] == "score"}
    assert len(deltas) == 6
    assert len(scores) == 5
    assert all("minus control" in text and "log1p" in text for text in deltas.values())
    assert all("positive = toward" in text and "CP10k" in text for text in scores.values())


def test_rankings_have_the_columns_that_are_promised(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    assert {c for t, c in columns(connection) if t == "rankings"} >= RANKING


def test_there_are_no_indexes(connection: duckdb.DuckDBPyConnection) -> None:
    assert connection.sql("select index_name from duckdb_indexes()").fetchall() == []


def test_no_column_defaults_to_a_number(connection: duckdb.DuckDBPyConnection) -> None:
    query = "select column_default from duckdb_columns() where not internal"
    assert {row[0] for row in connection.sql(query).fetchall()} == {None}
