"""The verbs that ask: tables for people, CSV and JSON for programs, exit code 2 for bad input."""

import json
import subprocess
import sys
from io import StringIO
from pathlib import Path

import jsonschema
import polars as pl
import pytest
from typer.testing import CliRunner, Result

from fixtures.tiny_run import SETTINGS, make_tiny_run
from knockscreen.cli import app
from knockscreen.errors import DatabaseError, UnknownNameError
from knockscreen.store import frames
from knockscreen.store.screen import Screen

ROOT = Path(__file__).parents[2]

VERBS = {
    "top": (["top", "--program", "Treg"], frames.TOP),
    "show": (["show", "FOXP3"], frames.SHOW),
    "movers": (["movers", "IL17A"], frames.MOVERS),
    "compare": (["compare", "Treg", "Th17"], frames.COMPARE),
    "explain": (["explain", "RORC", "Treg"], frames.EXPLAIN),
    "controls": (["controls"], frames.CONTROLS),
    "reverse": (["reverse", "signature.csv"], frames.REVERSE),
    "runs": (["runs"], frames.RUNS),
    "programs": (["programs"], frames.PROGRAMS),
    "contexts": (["contexts"], frames.CONTEXTS),
    "metrics": (["metrics"], frames.METRICS),
    "sql": (["sql", "select program, count(*) as n from rankings group by program"], None),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with one run whose database the verb built."""
    work = tmp_path_factory.mktemp("work")
    run = make_tiny_run(work / "results/tiny")
    done = CliRunner().invoke(
        app,
        ["build-db", "--results-dir", str(run), "--programs", str(run / "programs.tsv"),
         "--output", str(run / "screen.duckdb"), "--settings", SETTINGS],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    (work / "signature.csv").write_text("gene,weight\nIL2RA,1\nIL17A,-1\nNOSUCHGENE,1\n")
    return work


@pytest.fixture
def work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def ask(*arguments: str) -> Result:
    done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


@pytest.mark.usefixtures("work")
@pytest.mark.parametrize("verb", VERBS)
def test_json_is_a_list_of_rows_with_the_columns_of_the_database(verb: str) -> None:
    arguments, schema = VERBS[verb]
    rows = json.loads(ask(*arguments, "--format", "json").stdout)
    assert rows
    if schema is not None:
        assert all(list(row) == list(schema) for row in rows)


@pytest.mark.usefixtures("work")
@pytest.mark.parametrize("verb", frames.ANSWERS)
def test_json_keeps_the_schema_that_is_published(verb: str) -> None:
    """A column that changes its name or type breaks other people's scripts: see the schema file."""
    published = json.loads((ROOT / "workflow/schemas/answers.schema.json").read_text())
    rows = json.loads(ask(*VERBS[verb][0], "--format", "json").stdout)
    jsonschema.validate(rows, published["$defs"][verb])
    with pytest.raises(jsonschema.ValidationError, match="'more' was unexpected"):
        jsonschema.validate([rows[0] | {"more": 1}], published["$defs"][verb])


def test_the_published_schema_is_the_one_of_the_code() -> None:
    published = (ROOT / "workflow/schemas/answers.schema.json").read_text()
    assert published == frames.json_schema(), (
        "python -m knockscreen.store.frames > workflow/schemas/answers.schema.json"
    )


@pytest.mark.usefixtures("work")
def test_export_writes_tables_that_read_back_as_they_were(tmp_path: Path) -> None:
    ask("export", "--output-dir", str(tmp_path))
    names = {path.stem for path in tmp_path.glob("*.parquet")}
    assert names >= {"rankings", "ranking_cards", "programs", "contexts", "gates", "targets"}
    assert not names & {"effects", "movers", "effects_by_target", "effects_by_gene"}
    with Screen(Path("results/tiny")) as screen:
        rankings = screen.sql("select * from rankings")
        ask("export", "--output-dir", str(tmp_path), "--table", "effects")
        effects = screen.sql("select * from effects")
    assert pl.read_parquet(tmp_path / "rankings.parquet").equals(rankings)
    assert pl.read_parquet(tmp_path / "effects.parquet").equals(effects)
    assert (tmp_path / "effects.parquet.manifest.json").is_file()
    with pytest.raises(UnknownNameError, match="unknown table 'ranking'; nearest: rankings"):
        ask("export", "--output-dir", str(tmp_path), "--table", "ranking")


@pytest.mark.usefixtures("work")
@pytest.mark.parametrize("verb", VERBS)
def test_csv_holds_the_same_rows_as_json(verb: str) -> None:
    arguments, _ = VERBS[verb]
    csv = pl.read_csv(StringIO(ask(*arguments, "--format", "csv").stdout), infer_schema=False)
    rows = json.loads(ask(*arguments, "--format", "json").stdout)
    assert csv.columns == list(rows[0])
    assert csv.height == len(rows)


@pytest.mark.usefixtures("work")
@pytest.mark.parametrize("verb", VERBS)
def test_every_output_of_a_simulated_run_says_so(verb: str) -> None:
    arguments, _ = VERBS[verb]
    assert "simulated" in ask(*arguments).stdout
    for format in ("csv", "json"):
        done = ask(*arguments, "--format", format)
        assert "simulated: no finding" in done.stderr
        assert "simulated: no finding" not in done.stdout


@pytest.mark.usefixtures("work")
def test_missing_values_are_null_in_json_and_a_dash_in_the_table() -> None:
    row = json.loads(ask("top", "--program", "Treg", "--format", "json").stdout)[2]
    assert (row["fdr"], row["p_value"], row["measured_score"]) == (None, None, None)
    line = next(
        line for line in ask("top", "--program", "Treg").stdout.splitlines() if "STAT3" in line
    )
    cells = "2 (1-3) STAT3 0.075 ± 0.02 - - predicted_unseen not_tested - IL17A never"
    assert line.split()[: len(cells.split())] == cells.split()  # IL2RA pulls the other way


@pytest.mark.usefixtures("work")
def test_a_table_says_what_a_score_is_and_that_nothing_was_tested() -> None:
    text = ask("top", "--program", "Treg").stdout
    assert "log1p CP10k, knock-down minus control" in text
    assert "predicted_unseen: it was not" in text
    assert "fdr is not computed in this database" in text
    unseen = ask("top", "--program", "Treg", "--evidence", "predicted_unseen").stdout
    assert "fdr is not given for genes never knocked down" in unseen
    assert "not computed in this database" not in unseen
    assert "exploratory in time=Rest (predicted_seen): AUROC 0.50 < 0.7." in text


@pytest.mark.usefixtures("work")
@pytest.mark.parametrize("verb", ["top", "show", "compare", "explain", "programs", "controls"])
def test_a_program_that_fails_its_controls_is_exploratory_in_every_output(verb: str) -> None:
    arguments = {"explain": ["explain", "FOXP3", "Treg"]}.get(verb, VERBS[verb][0])
    assert "exploratory" in ask(*arguments).stdout
    assert "exploratory" in ask(*arguments, "--format", "json").stdout


@pytest.mark.usefixtures("work")
def test_reverse_names_the_genes_that_the_panel_lacks() -> None:
    text = ask("reverse", "signature.csv", "--context", "time=Rest").stdout
    assert "knock-downs that undo signature.csv, time=Rest" in text
    assert "1 of 3 genes are not on the panel: NOSUCHGENE" in text


@pytest.mark.usefixtures("work")
def test_explain_states_the_sum() -> None:
    text = ask("explain", "FOXP3", "Treg", "--context", "time=Rest").stdout
    assert "score in time=Rest: -0.263 predicted, -0.236 measured" in text


@pytest.mark.usefixtures("work")
def test_options_reach_the_question() -> None:
    arguments = ("top", "--program", "treg", "--context", "time=Stim8hr", "--direction", "away")
    rows = json.loads(
        ask(*arguments, "-n", "1", "--evidence", "measured", "--format", "json").stdout
    )
    assert [(r["context"], r["direction"], r["evidence"], r["target_gene"]) for r in rows] == [
        ("time=Stim8hr", "away", "measured", "FOXP3")
    ]


@pytest.mark.usefixtures("work")
def test_sql_numbers_that_json_does_not_have_are_null() -> None:
    query = "select 'nan'::double as x, 'inf'::float as y, [1, 2] as l, 2::hugeint as h"
    rows = json.loads(ask("sql", query, "--format", "json").stdout)
    assert rows == [{"x": None, "y": None, "l": [1, 2], "h": 2}]
    assert '"[1, 2]"' in ask("sql", query, "--format", "csv").stdout
    assert "6162" in ask("sql", "select 'ab'::blob as b", "--format", "csv").stdout


def test_a_database_is_named_by_path_by_folder_or_by_run(work: Path) -> None:
    run = work / "results/tiny"
    for choice in (("--db", str(run)), ("--db", str(run / "screen.duckdb")), ("--run", "tiny")):
        assert ask("programs", *choice, "--format", "json").stdout.startswith("[")


def test_runs_lists_all_and_other_verbs_ask_which(work: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / "results" / name).mkdir(parents=True)
        copy = tmp_path / "results" / name / "screen.duckdb"
        copy.write_bytes((work / "results/tiny/screen.duckdb").read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert len(json.loads(ask("runs", "--format", "json").stdout)) == 2
        with pytest.raises(DatabaseError, match=r"several runs .*one, two"):
            ask("programs")


def test_bad_input_is_one_line_and_exit_code_two(work: Path) -> None:
    code = "from knockscreen.cli import main; main()"
    for arguments, message in (
        (["top", "--program", "Tregs"], "unknown program 'Tregs'; nearest: Treg."),
        (["show", "t-BET"], "unknown target 't-BET'; nearest: TBX21 (T-bet)."),
        (["movers", "CD25"], "unknown gene 'CD25'; nearest: IL2RA (CD25)."),
        (["show", "TBX21"], "TBX21 was not screened: not_in_library"),
        (["sql", "drop table runs"], "the database is read-only and this is DROP"),
        (["top", "--program", "Treg", "--run", "tinny"], "no run 'tinny'"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True, text=True, check=False, cwd=work,
        )  # fmt: skip
        assert done.returncode == 2
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1
        assert message in done.stderr


def test_asking_loads_neither_models_nor_file_readers(work: Path) -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom knockscreen.cli import app\n"
        "done = CliRunner().invoke(app, ['top', '--program', 'Treg'])\n"
        "heavy = {'torch', 'anndata', 'scanpy', 'pandas', 'scipy', 'matplotlib'}\n"
        "print(done.exit_code, sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=work
    )
    assert done.stdout.strip() == "0 []"
