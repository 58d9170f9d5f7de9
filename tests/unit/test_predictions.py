"""A run beside other measured tables: scores from the database, the source kept apart."""

from contextlib import closing
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fixtures.tiny_run import DELTA, FACTORS, GENES, IDS, SETTINGS, make_tiny_run, score
from knockscreen.errors import ConfigError, DatabaseError, UnknownNameError
from knockscreen.score.external_scores import EFFECT_SCHEMA, SCORE_SCHEMA
from knockscreen.store import queries
from knockscreen.store.build import build
from knockscreen.store.connection import connect
from knockscreen.store.predictions import baselines, gene_effects, program_scores

REST = "time=Rest"
OTHER = "other"
TWICE = 2.0  # the table from elsewhere has twice the run's effects, and one more knock-down


def with_external(folder: Path) -> Path:
    """The tiny run with a table from elsewhere in one context, which also has JAK1."""
    make_tiny_run(folder)
    targets = [*DELTA, "JAK1"]
    ids = IDS | {"JAK1": "ENSG77"}
    effects = [
        (OTHER, ids[t], t, REST, GENES[g], TWICE * DELTA.get(t, DELTA["RORC"])[g], 0.1, 0.01, fdr)
        for t in targets
        for g, fdr in zip(GENES, (0.01, 0.02, 0.03, 0.2, 0.9), strict=True)
    ]
    effects += [(OTHER, ids[t], t, REST, IDS["GAPDH"], 9.0, 0.1, 0.01, 0.9) for t in targets]
    with (folder / "programs.tsv").open("a") as file:  # a gene of Treg that the panel lacks
        file.write("Treg\tGAPDH\t1.0\tby hand\tprogram of Treg cells\n")
    scores = [
        ("Treg", REST, ids[t], t, OTHER, TWICE * score("Treg", t if t in DELTA else "RORC", REST),
         0.1, 3, None, None)
        for t in targets
    ]  # fmt: skip
    (folder / "external").mkdir()
    for name, rows, schema in (
        ("effects", effects, EFFECT_SCHEMA),
        ("programs", scores, SCORE_SCHEMA),
    ):
        frame = pl.DataFrame(rows, schema=schema, orient="row")
        frame.write_parquet(folder / f"external/{name}.parquet")
    _rank(folder, frame)
    measured = folder / "measured/effects.parquet"
    pl.read_parquet(measured).with_columns(fdr=pl.lit(0.02)).write_parquet(measured)
    return folder


def _rank(folder: Path, scores: pl.DataFrame) -> None:
    """Append the external scores to the run's, and their order to its rankings."""
    own = pl.read_parquet(folder / "rank/program_scores.parquet")
    rows = scores.rename({"standard_error": "score_sd"}).with_columns(evidence=pl.lit("measured"))
    both = pl.concat([own, rows], how="diagonal_relaxed").select(own.columns).cast(own.schema)
    both.write_parquet(folder / "rank/program_scores.parquet")
    rankings = pl.read_parquet(folder / "rank/rankings.parquet")
    ordered = rows.sort("score", descending=True).with_row_index("rank", 1)
    ordered = ordered.with_columns(
        direction=pl.lit("toward"), control_status=pl.lit("not_tested"),
        rank_low=pl.col("rank"), rank_high=pl.col("rank"),
    )  # fmt: skip
    both = pl.concat([rankings, ordered], how="diagonal_relaxed")
    both.select(rankings.columns).cast(rankings.schema).write_parquet(
        folder / "rank/rankings.parquet"
    )


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = with_external(tmp_path_factory.mktemp("tiny"))
    return build(folder, folder / "programs.tsv", folder / "screen.duckdb", SETTINGS)


@pytest.fixture(scope="module")
def connection(database: Path):
    with closing(connect(database)) as opened:
        yield opened


def values(frame: pl.DataFrame) -> dict[str, float]:
    return dict(frame.select("target_gene", "value").iter_rows())


def test_program_scores_are_of_one_kind_of_evidence_and_one_source(connection):
    predicted = values(program_scores(connection, "treg", REST))
    assert predicted == pytest.approx({t: score("Treg", t, REST) for t in DELTA})
    seen = values(program_scores(connection, "Treg", REST, evidence="predicted_seen"))
    assert set(seen) == {"FOXP3", "RORC"}
    measured = values(program_scores(connection, "Treg", REST, evidence="measured"))
    assert measured == pytest.approx({t: 0.9 * score("Treg", t, REST) for t in ("FOXP3", "RORC")})
    other = values(program_scores(connection, "Treg", REST, evidence="measured", source=OTHER))
    assert other["FOXP3"] == pytest.approx(2 * score("Treg", "FOXP3", REST))
    assert set(other) == {*DELTA, "JAK1"}


def test_effects_on_a_gene_leave_out_its_own_knockdown(connection):
    predicted = values(gene_effects(connection, "RORC", REST))
    expected = {t: DELTA[t]["RORC"] * FACTORS[REST] for t in ("FOXP3", "STAT3")}
    assert predicted == pytest.approx(expected, rel=1e-6)
    measured = values(gene_effects(connection, "RORC", REST, evidence="measured"))
    assert measured == pytest.approx({"FOXP3": 0.9 * expected["FOXP3"]}, rel=1e-6)
    other = values(gene_effects(connection, "RORC", REST, evidence="measured", source=OTHER))
    assert other["FOXP3"] == pytest.approx(2 * DELTA["FOXP3"]["RORC"])


def test_sizes_are_the_norm_of_the_other_genes_and_the_number_of_de_genes(connection):
    found = baselines(connection, REST)
    others = [d for g, d in DELTA["FOXP3"].items() if g != "FOXP3"]
    magnitude = values(found["effect_magnitude"])
    assert magnitude["FOXP3"] == pytest.approx(np.linalg.norm(others) * FACTORS[REST], rel=1e-6)
    assert values(found["n_de_genes"]) == {"FOXP3": 4, "RORC": 4}  # fdr 0.02, own gene left out
    never_made = baselines(connection, REST, evidence="predicted_unseen")
    assert {name: len(frame) for name, frame in never_made.items()} == {"effect_magnitude": 1}
    other = baselines(connection, REST, evidence="measured", source=OTHER)
    assert values(other["n_de_genes"]) == {"FOXP3": 2, "RORC": 2, "STAT3": 3, "JAK1": 3}


def test_other_questions_do_not_see_the_table_from_elsewhere(connection):
    top = queries.top(connection, "Treg", REST)
    assert top["target_gene"].to_list() == ["RORC", "FOXP3", "STAT3"]
    measured = queries.top(connection, "Treg", REST, evidence="measured")
    assert measured["target_gene"].to_list() == ["RORC", "FOXP3"]
    other = queries.top(connection, "Treg", REST, source=OTHER)
    assert other["target_gene"].to_list() == ["RORC", "JAK1", "STAT3", "FOXP3"]
    assert other["source"].unique().to_list() == [OTHER]
    assert other["control_status"].unique().to_list() == ["not_tested"]
    assert other["effect_size"].null_count() == other["n_cells"].null_count() == 4
    assert other["top_genes"][0].startswith("IL17A")  # GAPDH, off the panel, carries nothing
    assert len(queries.show_programs(connection, "FOXP3", REST)) == 2
    assert len(queries.show_genes(connection, "FOXP3", REST)) == len(GENES)
    assert len(queries.compare(connection, "Treg", "Th17", REST)) == len(DELTA)


def test_the_view_of_measured_effects_tells_the_sources_apart(connection):
    rows = connection.sql(
        "select source, count(*), count(delta), count(log2_fold_change_se), count(n_cells)"
        " from measured_effects where context = 'time=Rest' group by all order by all"
    ).fetchall()
    assert rows == [(OTHER, 24, 0, 24, 0), (None, 10, 10, 0, 10)]
    ranks = connection.sql(
        "select rank_toward, n_ranked from program_scores where source = 'other' order by all"
    ).fetchall()
    assert ranks == [(1, 4), (2, 4), (3, 4), (4, 4)]
    status = connection.sql("select status from targets where target_gene = 'JAK1'").fetchall()
    assert status == [("not_a_candidate",)]


def test_what_is_not_there_is_one_sentence(connection):
    with pytest.raises(DatabaseError, match=r"no measured \(nobody\) row of this kind"):
        program_scores(connection, "Treg", REST, evidence="measured", source="nobody")
    with pytest.raises(UnknownNameError, match=r"no measured table 'othr' .*nearest: other"):
        queries.top(connection, "Treg", REST, source="othr")
    with pytest.raises(ConfigError, match="choose one with --context: time=Rest, time=Stim8hr"):
        gene_effects(connection, "RORC", None)
