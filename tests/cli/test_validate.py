"""validate, rank-external and load-external as a user types them."""

import json
import sys

import numpy as np
import polars as pl
import pytest

from fixtures.shards import write_store
from fixtures.tiny_run import SETTINGS, make_tiny_run
from knockscreen import cli
from knockscreen.store.build import build

SYMBOLS = [f"G{i}" for i in range(40)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A screen of 40 genes with 8 hits, planted scores, sizes, and effects on IL2 and IFNG."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    lfc = np.where(np.arange(40) < 8, -2.0, 0.1) + rng.normal(size=40) * 0.05
    fdr = np.where(np.arange(40) < 8, 0.001, 0.8)
    pl.DataFrame(
        {"id": SYMBOLS, "neg|lfc": lfc, "pos|lfc": lfc, "neg|fdr": fdr, "pos|fdr": fdr}
    ).write_csv("screen.csv")
    score = lfc + rng.normal(size=40) * 0.1
    pl.DataFrame({"gene": SYMBOLS, "score": score, "flat": np.ones(40)}).write_csv("scores.csv")
    pl.DataFrame({"gene": SYMBOLS, "n_de": rng.integers(0, 9, 40)}).write_csv("sizes.csv")
    pl.DataFrame(
        {"target_gene": SYMBOLS * 2, "gene": ["IL2"] * 40 + ["IFNG"] * 40,
         "log_fc": np.concatenate([score, rng.normal(size=40)]), "culture_condition": "Rest"}
    ).write_csv("effects.csv")  # fmt: skip
    (tmp_path / "programs.tsv").write_text(
        "program\tgene\tweight\nCytokines\tIL2\t1\nCytokines\tIFNG\t1\nAlone\tIL2\t1\n"
    )
    return tmp_path


def knockscreen(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["knockscreen", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code


def validate(monkeypatch, *more, direction="lower"):
    return knockscreen(
        monkeypatch, "validate", "--screen", "screen.csv", "--direction-of-lfc", direction,
        "--resamples", "100", *more,
    )  # fmt: skip


SCORES = ("--scores", "scores.csv", "--score-column", "score")


def found(rows, **where):
    return next(row for row in rows if where.items() <= row.items())


def test_scores_are_judged_beside_a_baseline(folder, monkeypatch, capsys):
    more = ("--baseline", "sizes.csv", "--baseline-column", "n_de", "--format", "json")
    assert validate(monkeypatch, *SCORES, *more, "-o", "out.csv") == 0
    rows = json.loads(capsys.readouterr().out)
    assert found(rows, predictor="score", hits="lowers", metric="auroc")["value"] == 1
    assert found(rows, predictor="score", hits="any", metric="sign")["value"] == 1
    beaten = found(rows, against="n_de", hits="lowers", metric="auroc")
    assert beaten["low"] > 0
    assert found(rows, predictor="score", hits="raises", metric="auroc")["value"] is None
    assert len(pl.read_csv("out.csv")) == len(rows)
    assert set(json.loads((folder / "out.csv.manifest.json").read_text())["inputs"]) == {
        "screen.csv", "scores.csv", "sizes.csv"
    }  # fmt: skip


def test_the_stated_direction_turns_the_sign_and_nothing_else(folder, monkeypatch, capsys):
    values = {}
    for direction in ("lower", "higher"):
        assert validate(monkeypatch, *SCORES, "--format", "json", direction=direction) == 0
        rows = json.loads(capsys.readouterr().out)
        values[direction] = {
            (row["hits"], row["metric"]): row["value"] for row in rows if row["value"] is not None
        }
    lower, higher = values["lower"], values["higher"]
    assert higher["all genes", "spearman"] == pytest.approx(-lower["all genes", "spearman"])
    assert (lower["any", "sign"], higher["any", "sign"]) == (1, 0)
    assert higher["any", "auroc"] == lower["any", "auroc"]


def test_a_measured_table_is_held_against_a_screen_by_gene_or_program(folder, monkeypatch, capsys):
    by_gene = ("--table", "effects.csv", "--gene", "IL2", "--format", "json")
    assert validate(monkeypatch, *by_gene) == 0
    rows = json.loads(capsys.readouterr().out)
    assert found(rows, predictor="IL2", hits="lowers", metric="auroc")["value"] == 1
    assert {row["against"] for row in rows} == {None, "n_de_genes", "effect_magnitude"}
    program = ("--table", "effects.csv", "--program", "Cytokines", "--programs", "programs.tsv")
    assert validate(monkeypatch, *program) == 0
    assert "lfc < 0 means the knock-down lowers the phenotype" in capsys.readouterr().out


def test_a_run_is_held_against_a_screen(folder, monkeypatch, capsys, caplog):
    run = make_tiny_run(folder / "tiny")
    build(run, run / "programs.tsv", run / "screen.duckdb", SETTINGS)
    monkeypatch.setattr("knockscreen.score.validation.LEAST_GENES", 3)
    names = ["FOXP3", "RORC", "STAT3"]
    pl.DataFrame(
        {"id": names, "neg|lfc": [-1.0, 1, 0.5], "pos|lfc": [-1.0, 1, 0.5],
         "neg|fdr": [0.01, 1.0, 1.0], "pos|fdr": [1.0, 0.01, 1.0]}
    ).write_csv("screen.csv")  # fmt: skip
    more = ("--db", "tiny", "--program", "Treg", "--context", "time=Rest", "--format", "json")
    assert validate(monkeypatch, *more, "--evidence", "predicted") == 2  # n_de of two alone
    assert "2 genes are in the screen, in the scores and in every base" in capsys.readouterr().err
    monkeypatch.setattr("knockscreen.score.validation.LEAST_GENES", 2)
    assert validate(monkeypatch, *more) == 0
    printed = capsys.readouterr()
    rows = json.loads(printed.out)
    assert found(rows, predictor="Treg", hits="any", metric="sign")["value"] == 1
    assert "simulated" in printed.err
    assert "1 of the 3 genes in the screen and in the scores are left out" in caplog.text
    more = ("--db", "tiny", "--program", "treg", "--context", "time=Rest", "--fdr", "0.001")
    assert validate(monkeypatch, *more) == 0
    printed = capsys.readouterr().out
    assert "Positive controls of Treg: exploratory (passes in 0" in printed
    assert "calls no gene a hit at 0.001" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "say what the screen measured: --gene"),
        (("--gene", "IL2", "--program", "X"), "say what the screen measured"),
        ((*SCORES, "--gene", "IL2"), "--scores has its own numbers"),
        ((*SCORES, "--table", "effects.csv"), "give --table or --scores, not both"),
        (("--scores", "scores.csv"), "--scores needs --score-column"),
        ((*SCORES[:3], "scor"), "has no column 'scor' for the value; nearest: score"),
        ((*SCORES, "--baseline-column", "n_de"), "--baseline-column needs --baseline"),
        ((*SCORES, "--baseline", "sizes.csv"), "--baseline needs --baseline-column"),
        ((*SCORES, "--where", "phenotype"), "--where 'phenotype' is not of the form key=value"),
        ((*SCORES, "--where", "cell=T"), "has no column 'cell' for a condition"),
        ((*SCORES, "-o", "out.xlsx"), "'out.xlsx' is neither .csv nor .parquet"),
        (("--table", "effects.csv", "--program", "Cytokines"), "needs --programs"),
        (("--table", "effects.csv", "--gene", "IL4"), "measures no gene 'IL4'"),
        (
            ("--db", "nothing", "--gene", "IL2"),
            "nothing is neither a database nor the folder of a run",
        ),
    ],
)
def test_wrong_choices_are_one_line_and_exit_code_2(
    folder, monkeypatch, capsys, arguments, message
):
    assert validate(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (folder / "out.xlsx").exists()


def test_no_direction_no_answer(folder, monkeypatch, capsys):
    assert knockscreen(monkeypatch, "validate", "--screen", "screen.csv", *SCORES) == 2
    assert "--direction-of-lfc" in capsys.readouterr().err


def test_rank_external_writes_scores_and_rankings_of_the_table(folder, monkeypatch, capsys):
    line = ("rank-external", "effects.csv", "--programs", "programs.tsv", "-o", "out",
            "--source", "mine", "--min-genes", "1")  # fmt: skip
    assert knockscreen(monkeypatch, *line) == 0
    rankings = pl.read_parquet("out/rankings.parquet")
    best = rankings.filter(program="Alone", direction="away").sort("rank")["target_gene"]
    assert sorted(best[:8]) == SYMBOLS[:8]  # the hits lower IL2
    assert rankings.equals(pl.read_csv("out/rankings.csv", schema=rankings.schema))
    assert rankings["source"].unique().to_list() == ["mine"]
    assert (folder / "out/rankings.csv.manifest.json").exists()
    assert knockscreen(monkeypatch, *line[:5], "bad", "--program", "Nine") == 2
    assert "unknown program 'Nine' in programs.names" in capsys.readouterr().err
    assert not (folder / "bad").exists()


def test_load_external_puts_tables_onto_the_genes_of_a_run(folder, monkeypatch, capsys):
    store = write_store(
        folder / "store", np.ones((4, 4), dtype=int), [0, 1, 0, 1], [[0, 0], [0, 0], [1, 0], [1, 0]]
    )
    cells = pl.read_parquet(store / "cells.parquet")
    names = [f"donor=D{i},time=Rest" for i in (1, 1, 2, 2)]
    cells.with_columns(context=pl.Series(names)).write_parquet(store / "cells.parquet")
    pl.DataFrame({"gene_id": ["ENSG3"], "gene": ["IFNG"]}).write_parquet(store / "panel.parquet")
    (folder / "programs.tsv").write_text("program\tgene\tweight\nCytokines\tIFNG\t1\n")
    table = {"source": "mine", "file": "effects.csv", "unit": "log2", "absent": "missing",
             "contexts": {"Rest": "time=Rest"}}  # fmt: skip
    settings = {
        "seed": 1,
        "programs": {"file": "programs.tsv", "names": [], "min_genes": 1},
        "rank": {"pool_over": ["donor"], "interval": 0.9, "resamples": 50, "random_programs": 0},
        "external": [table],
    }
    line = ("load-external", "--store", "store", "--output-dir", "external", "--settings")
    assert knockscreen(monkeypatch, *line, json.dumps(settings)) == 0
    scores = pl.read_parquet("external/programs.parquet")
    effects = pl.read_csv("effects.csv").filter(gene="IFNG").sort("target_gene")
    assert scores.sort("target_gene")["score"].to_list() == pytest.approx(
        effects["log_fc"].to_list()
    )
    assert scores["context"].unique().to_list() == ["time=Rest"]
    settings["external"] = [table | {"contexts": {"Rest": "time=rest"}}]
    assert knockscreen(monkeypatch, *line, json.dumps(settings)) == 2
    assert "maps to context 'time=rest', which the run has not; nearest: time=Rest" in (
        capsys.readouterr().err
    )
