"""The tiny scenario, really run: from simulated counts to database, figures and report."""

import hashlib
from pathlib import Path

import duckdb
import polars as pl
import pytest

from fixtures.workplace import TINY, Workplace

pytestmark = pytest.mark.workflow


def results(place: Workplace) -> Path:
    return place.folder / "results/tiny"


def rows(place: Workplace, question: str) -> list[tuple[object, ...]]:
    with duckdb.connect(str(results(place) / "screen.duckdb"), read_only=True) as connection:
        return connection.sql(question).fetchall()


def test_run_ends_with_a_ranking_in_the_database(ran: Workplace) -> None:
    ((ranked,),) = rows(ran, "select count(*) from rankings where evidence like 'predicted%'")
    ((best,),) = rows(ran, "select min(rank) from rankings")
    assert int(str(ranked)) > 0
    assert best == 1


def test_every_shard_is_scored_and_no_candidate_twice(ran: Workplace) -> None:
    candidates = pl.read_parquet(results(ran) / "screen/candidates.parquet")
    screened = candidates.filter(pl.col("status") == "screened")
    files = sorted((results(ran) / "score/programs").glob("*.parquet"))
    scored = pl.concat([pl.read_parquet(file) for file in files])
    key = ["program", "context", "target_gene_id"]
    assert len(files) == 2
    assert scored.select(key).is_duplicated().sum() == 0
    decoys = pl.col("target_gene_id").str.starts_with("decoy_")
    assert set(scored.filter(~decoys)["target_gene_id"]) == set(screened["target_gene_id"])
    assert scored.filter(decoys)["target_gene_id"].n_unique() >= 20
    shown = rows(ran, "select count(*) from targets where target_gene_id like 'decoy%'")
    assert shown == [(0,)]


def test_figures_are_drawn_and_logs_and_benchmarks_kept(ran: Workplace) -> None:
    names = "qc loss cells volcano ranking heatmap measured calibration evaluation targets"
    for name in names.split():
        assert "<svg" in (results(ran) / f"figures/{name}.svg").read_text()
    assert (results(ran) / "logs/train_vae.log").is_file()
    assert (results(ran) / "benchmarks/generate/0.tsv").read_text().startswith("s\t")


def test_second_call_has_nothing_to_do(ran: Workplace) -> None:
    assert ran.jobs("--configfile", TINY) == {}


def test_report_is_one_page_with_captions_that_quote_the_settings(ran: Workplace) -> None:
    page = results(ran) / "report.html"
    done = ran.run("--configfile", TINY, "--report", str(page))
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert "2500 cells" in text
    assert "at least 200 counts" in text


def test_stage_run_again_writes_the_same_bytes(ran: Workplace) -> None:
    table = results(ran) / "rank/rankings.parquet"
    before = hashlib.sha256(table.read_bytes()).hexdigest()
    done = ran.run("--configfile", TINY, "--forcerun", "rank", "--until", "rank")
    assert done.returncode == 0, done.stderr
    assert hashlib.sha256(table.read_bytes()).hexdigest() == before


def test_failed_stage_leaves_nothing_half_written_and_says_why(ran: Workplace) -> None:
    overlay = ran.overlay({"run": "broken", "qc": {"min_counts": 10**7}})
    done = ran.run("--configfile", TINY, overlay, "--show-failed-logs", "--until", "qc")
    assert done.returncode != 0
    assert "knockscreen: no " in done.stdout + done.stderr
    assert not list((ran.folder / "results/broken").glob("qc/*"))
