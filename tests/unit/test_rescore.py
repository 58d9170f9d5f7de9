"""New programs for a finished run: the same scores as from the draws, and a database with them."""

import json
import re
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from fixtures.shards import GENE_IDS, GENES, candidates, write_control, write_shard, write_store
from fixtures.tiny_run import FACTORS, PROGRAMS, make_tiny_run, score
from knockscreen.cli import app
from knockscreen.errors import DataError
from knockscreen.score.effects import program_scores, read_shard, write_effects
from knockscreen.score.programs import program_matrix
from knockscreen.score.rescore import beside_scores, read_deltas, score_frame, scores
from knockscreen.store.build import build
from knockscreen.store.extend import extend

TABLE = pl.DataFrame(
    [("A", "GATA3", 1.0), ("A", "IL4", -2.0), ("A", "IFNG", 0.5), ("B", "GATA3", 1.0)],
    schema=["program", "gene", "weight"],
    orient="row",
)


def test_scores_from_stored_effects_are_those_from_the_draws(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write_shard(tmp_path / "0.npz", [2, 0, 1], rng.normal(size=(2, 3, 2, 4)))
    write_control(tmp_path / "control.npz")
    write_store(tmp_path / "store")
    shard = read_shard(
        tmp_path / "0.npz", tmp_path / "control.npz", candidates(), tmp_path / "store"
    )
    write_effects(shard, tmp_path / "0.parquet", ["donor"])
    programs = program_matrix(TABLE, GENE_IDS, GENES)
    deltas = read_deltas(tmp_path / "0.parquet", programs.gene_ids)
    found = score_frame(deltas, programs, *scores(deltas, programs))
    beside = beside_scores(deltas, programs, scores(deltas, programs)[0], None).columns()
    found = found.with_columns(pl.Series("magnitude", beside["magnitude"]))
    expected = program_scores(shard, programs, ["donor"])
    keys = ["program", "context", "target_gene_id"]
    both = found.join(expected, on=keys, how="full", suffix="_drawn")
    assert both.height == expected.height == found.height
    assert both["score"].is_null().equals(both["score_drawn"].is_null())
    known = both.drop_nulls("score")
    assert known["score"].to_list() == pytest.approx(known["score_drawn"].to_list(), rel=1e-5)
    magnitudes = both["magnitude"].to_list(), both["magnitude_drawn"].to_list()
    assert magnitudes[0] == pytest.approx(magnitudes[1], rel=1e-5)
    assert both["n_genes"].equals(both["n_genes_drawn"], null_equal=True)
    only_gene = both.filter((pl.col("program") == "B") & (pl.col("target_gene_id") == "ENSG1"))
    assert only_gene["score"].null_count() == only_gene.height == 3


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny_run(tmp_path_factory.mktemp("work") / "results/tiny")
    (folder / "controls.tsv").write_text(
        "program\tgene\tdirection\tsource\nOne\tFOXP3\taway\tby hand\n"
    )
    settings = {
        "run": "tiny", "seed": 7,
        "programs": {"file": "", "extra": [], "names": [], "min_genes": 1},
        "gate": {"controls": str(folder / "controls.tsv"), "min_controls": 1, "min_auroc": 0.5,
                 "min_sign": 0.5, "max_p": 1.0},
        "rank": {"pool_over": ["donor"], "interval": 0.9, "resamples": 10, "random_programs": 0},
    }  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(settings))
    plain = json.dumps({"run": "tiny", "seed": 7})
    build(folder, folder / "programs.tsv", folder / "screen.duckdb", plain)
    (folder / "new.gmt").write_text("One_UP\tx\tIL2RA\tFOXP3\nOne_DN\tx\tIL17A\nTwo\tx\tRORC\n")
    return folder


def test_the_verb_ranks_new_programs_and_builds_a_copy(run: Path) -> None:
    """Program One has the genes and signs of Treg, so it has to get its scores and order."""
    before = (run / "screen.duckdb").read_bytes()
    done = CliRunner().invoke(
        app,
        ["score-programs", str(run / "new.gmt"), "--db", str(run), "--settings",
         str(run / "settings.json"), "--build", str(run / "new.duckdb")],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert (run / "screen.duckdb").read_bytes() == before
    rankings = pl.read_parquet(run / "programs/new/rank/rankings.parquet")
    for evidence, share in (("predicted_seen", 1.0), ("measured", 0.9)):
        rows = rankings.filter((pl.col("program") == "One") & (pl.col("evidence") == evidence))
        for row in rows.iter_rows(named=True):
            expected = share * score("Treg", row["target_gene"], row["context"])
            assert row["score"] == pytest.approx(expected, rel=1e-5)
            assert row["control_status"] == "passed"
            assert (row["score_sd"], row["rank_low"]) == (None, None)
    with duckdb.connect(run / "new.duckdb", read_only=True) as connection:
        status = connection.sql("select program, control_status from programs").fetchall()
        same = connection.sql(
            "select count(*), max(abs(a.score - b.score)), bool_and(a.rank_toward = b.rank_toward)"
            " from program_scores a join program_scores b"
            " using (target_key, context, evidence) where a.program = 'One' and b.program = 'Treg'"
        ).fetchall()[0]
        magnitudes = connection.sql(
            "select count(magnitude) from program_scores where program = 'One'"
        ).fetchall()[0][0]
        members = connection.sql(
            "select gene, weight from program_genes where program = 'One'"
        ).fetchall()
    assert dict(status)["One"] == "passed"
    assert same[0] == magnitudes == len(FACTORS) * 5  # predicted and measured
    assert same[1] < 1e-6
    assert same[2]
    assert dict(members) == PROGRAMS["Treg"]


def test_a_program_of_a_known_name_is_refused(run: Path, tmp_path: Path) -> None:
    programs = pl.DataFrame({"program": ["Treg"], "gene": ["IL2RA"], "weight": [1.0]})
    with pytest.raises(DataError, match=r"program Treg is in .* already; programs are never merge"):
        extend(run / "screen.duckdb", tmp_path / "x.duckdb", programs, run)
    assert not (tmp_path / "x.duckdb").exists()


@pytest.mark.parametrize(
    ("text", "controls", "message"),
    [
        ("Treg\tx\tIL2RA\n", "controls.tsv", "program Treg is in .* already"),
        ("New\tx\tIL2RA\n", "none.tsv", "control file '.*none.tsv' does not exist"),
    ],
)
def test_what_is_refused_leaves_nothing_behind(
    run: Path, tmp_path: Path, text: str, controls: str, message: str
) -> None:
    (tmp_path / "new.gmt").write_text(text)
    settings = json.loads((run / "settings.json").read_text())
    settings["gate"]["controls"] = str(run / controls)
    done = CliRunner().invoke(
        app,
        ["score-programs", str(tmp_path / "new.gmt"), "--db", str(run), "--settings",
         json.dumps(settings), "--output-dir", str(tmp_path / "out"), "--build",
         str(tmp_path / "new.duckdb")],
    )  # fmt: skip
    assert isinstance(done.exception, DataError)
    assert re.search(message, str(done.exception))
    assert [path.name for path in tmp_path.iterdir()] == ["new.gmt"]


def test_effects_of_another_panel_are_refused(run: Path) -> None:
    path = run / "score/effects/0.parquet"
    with pytest.raises(DataError, match=r"has gene_id 'ENSG0\d', which the run does not have"):
        read_deltas(path, ("ENSG01",))
    (run / "broken.parquet").write_text("no")
    with pytest.raises(DataError, match="is not a whole file of effects"):
        read_deltas(run / "broken.parquet", ("ENSG01",))
