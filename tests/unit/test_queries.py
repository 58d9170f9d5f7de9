"""Questions to the tiny run: answers known by hand, and one sentence for what is not there."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import polars as pl
import pytest

import knockscreen
from fixtures.tiny_run import DELTA, FACTORS, POOLED, PROGRAMS, SETTINGS, make_tiny_run, score
from knockscreen.errors import ConfigError, DatabaseError, ScreenError, UnknownNameError
from knockscreen.store import frames, resolve
from knockscreen.store.build import build
from knockscreen.store.connection import find_database
from knockscreen.store.screen import Screen

REST = "time=Rest"


def make_database(folder: Path, **options: bool) -> Path:
    make_tiny_run(folder, **options)
    return build(folder, folder / "programs.tsv", folder / "screen.duckdb", SETTINGS)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_database(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def screen(database: Path) -> Iterator[Screen]:
    with knockscreen.open(database.parent) as opened:
        yield opened


def test_top_puts_what_was_never_knocked_down_last_whatever_its_rank(screen: Screen) -> None:
    for direction, order in (("toward", [1, 3, 2]), ("away", [1, 3, 2])):
        frame = screen.top("Treg", REST, direction=direction)
        assert frame["rank"].to_list() == order
        assert frame["target_gene"].to_list()[-1] == "STAT3"
        first = screen.top("Treg", REST, direction=direction, n=2)
        assert first.equals(frame.head(2))
    movers = screen.movers("IL2RA", REST)
    assert movers["evidence"].to_list() == ["predicted_seen"] * 2 + ["predicted_unseen"]
    compared = screen.compare("Treg", "Th17", REST)
    assert compared["evidence"].to_list() == ["predicted_seen"] * 2 + ["predicted_unseen"]


def test_top_orders_predicted_knockdowns_by_score_where_that_is_asked(screen: Screen) -> None:
    frame = screen.top("Treg", REST, evidence="predicted")
    assert frame["target_gene"].to_list() == ["RORC", "STAT3", "FOXP3"]
    assert frame["rank"].to_list() == [1, 2, 3]
    expected = [score("Treg", target, REST) for target in frame["target_gene"]]
    assert frame["score"].to_list() == pytest.approx(expected)
    assert frame["evidence"].to_list() == ["predicted_seen", "predicted_unseen", "predicted_seen"]


def test_top_puts_the_measured_score_beside_the_predicted_one(screen: Screen) -> None:
    frame = screen.top("Treg", REST, evidence="predicted")
    expected = [0.9 * score("Treg", "RORC", REST), None, 0.9 * score("Treg", "FOXP3", REST)]
    assert frame["measured_score"].to_list() == pytest.approx(expected)


def test_away_is_the_other_way_round_with_the_same_signed_score(screen: Screen) -> None:
    toward = screen.top("Treg", REST, evidence="predicted")
    away = screen.top("Treg", REST, direction="away", evidence="predicted")
    assert away["target_gene"].to_list() == toward["target_gene"].to_list()[::-1]
    assert away["score"].to_list() == toward["score"].to_list()[::-1]


def test_measured_ranking_holds_measured_rows_alone(screen: Screen) -> None:
    frame = screen.top("Treg", REST, evidence="measured")
    assert frame["evidence"].unique().to_list() == ["measured"]
    assert frame["target_gene"].to_list() == ["RORC", "FOXP3"]


def test_evidence_chooses_rows_and_keeps_their_rank(screen: Screen) -> None:
    frame = screen.top("Treg", REST, evidence="predicted_unseen")
    assert frame.select("target_gene", "rank").rows() == [("STAT3", 2)]


def test_without_a_context_every_pooled_one_answers(screen: Screen) -> None:
    frame = screen.top("Treg", n=1)
    assert screen.default_contexts() == POOLED
    assert frame["context"].to_list() == POOLED


@pytest.mark.parametrize(
    "name", ["time=rest,donor=d2", "donor=D2,time=Rest", " donor=D2, time=Rest"]
)
def test_factors_of_a_context_come_in_any_order_and_case(screen: Screen, name: str) -> None:
    assert screen.top("Treg", name)["context"].unique().to_list() == ["donor=D2,time=Rest"]


def test_n_zero_is_all_and_n_is_per_context(screen: Screen) -> None:
    assert screen.top("Treg", n=0).height == 3 * len(POOLED)
    assert screen.top("Treg", n=2).height == 2 * len(POOLED)
    with pytest.raises(ConfigError, match="n is -1"):
        screen.top("Treg", n=-1)


def test_contributions_add_up_to_the_score_exactly(screen: Screen) -> None:
    for target in DELTA:
        for program in PROGRAMS:
            for context in FACTORS:
                frame = screen.explain(target, program, context)
                total = frame["contribution"].sum()
                assert total == pytest.approx(score(program, target, context), abs=1e-7)


def test_explain_leaves_out_the_target_and_genes_off_the_panel(screen: Screen) -> None:
    frame = screen.explain("RORC", "Th17", REST)
    left_out = frame.filter(pl.col("contribution").is_null())
    assert set(left_out["gene"]) == {"RORC", "NOSUCHGENE"}
    assert frame.filter("is_target")["gene"].to_list() == ["RORC"]
    assert frame.filter(~pl.col("in_panel"))["gene"].to_list() == ["NOSUCHGENE"]
    assert frame.row(0, named=True)["measured_contribution"] == pytest.approx(-0.54)


def test_show_gives_programs_and_genes_predicted_beside_measured(screen: Screen) -> None:
    frame = screen.show("FOXP3", REST)
    treg = frame.filter(pl.col("program") == "Treg").row(0, named=True)
    assert treg["score"] == pytest.approx(-0.2625)
    assert (treg["rank_toward"], treg["rank_away"], treg["n_ranked"]) == (3, 1, 3)
    assert treg["measured_score"] == pytest.approx(-0.23625)
    genes = frame.filter(pl.col("part") == "gene")
    assert genes["gene"].to_list() == ["FOXP3", "IL2RA", "IL17A", "RORC", "STAT3"]
    assert genes["is_target"].to_list() == [True, False, False, False, False]
    assert genes["measured_delta"].to_list() == pytest.approx((genes["delta"] * 0.9).to_list())


def test_show_of_a_never_measured_knockdown_has_null_beside_it(screen: Screen) -> None:
    frame = screen.show("STAT3", REST)
    assert frame["measured_score"].is_null().all()
    assert frame["measured_delta"].is_null().all()
    assert screen.caveats("STAT3") == ["STAT3 was never knocked down in training: prediction only."]
    assert screen.caveats("FOXP3") == []


@pytest.mark.parametrize("name", ["FOXP3", "foxp3", " Foxp3", "ENSG02", "ensg02.7"])
def test_a_gene_is_found_in_any_case_and_by_its_id(screen: Screen, name: str) -> None:
    assert screen.show(name, REST)["target_gene"].unique().to_list() == ["FOXP3"]
    assert screen.movers(name, REST)["gene"].unique().to_list() == ["FOXP3"]


def test_movers_orders_knockdowns_by_size_of_change(screen: Screen) -> None:
    frame = screen.movers("IL17A", REST)
    assert frame["target_gene"].to_list() == ["RORC", "FOXP3", "STAT3"]  # never knocked down: last
    assert frame["delta"].to_list() == pytest.approx([-0.6, 0.225, -0.3])
    assert frame["measured_delta"].to_list() == pytest.approx([-0.54, 0.2025, None])
    assert screen.movers("RORC", REST)["is_target"].to_list()[0] is True


def test_movers_of_one_sign(screen: Screen) -> None:
    assert screen.movers("IL17A", REST, direction="up")["target_gene"].to_list() == ["FOXP3"]
    assert screen.movers("STAT3", REST, direction="up").is_empty()


def test_compare_is_antisymmetric_and_largest_first(screen: Screen) -> None:
    ab, ba = screen.compare("Treg", "Th17", REST), screen.compare("Th17", "Treg", REST)
    assert ab["target_gene"].to_list() == ["RORC", "FOXP3", "STAT3"] == ba["target_gene"].to_list()
    assert ab["difference"].to_list() == pytest.approx((-ba["difference"]).to_list())
    assert ab["difference"][0] == pytest.approx(0.875)
    assert ab["measured_difference"].to_list() == pytest.approx([0.7875, -0.405, None])


def test_answers_have_the_declared_columns_and_types(screen: Screen) -> None:
    answers = {
        "TOP": screen.top("Treg"), "SHOW": screen.show("STAT3"), "MOVERS": screen.movers("IL2RA"),
        "SHOW_PROGRAMS": screen.show_programs("STAT3"), "SHOW_GENES": screen.show_genes("STAT3"),
        "COMPARE": screen.compare("Treg", "Th17"), "EXPLAIN": screen.explain("RORC", "Th17"),
        "RUNS": screen.runs(), "PROGRAMS": screen.programs(), "CONTEXTS": screen.contexts(),
    }  # fmt: skip
    for name, frame in answers.items():
        assert frame.schema == pl.Schema(getattr(frames, name)), name


def test_a_program_written_just_so_goes_before_one_in_another_case() -> None:
    with duckdb.connect() as connection:
        connection.execute(
            "create table programs as select * from (values ('Treg', 'ranked', 3, 3),"
            " ('TREG', 'ranked', 3, 3)) t(program, status, n_genes, n_panel_genes)"
        )
        found = [resolve.program(connection, name) for name in ("Treg", " TREG", "treg")]
    assert found == ["Treg", "TREG", "Treg"]


def test_an_id_that_the_input_has_with_its_version_is_found_as_it_is_written() -> None:
    with duckdb.connect() as connection:
        connection.execute(
            "create table genes as select 0 as gene_key, 'A' as gene, 'ENSG1.5' as gene_id,"
            " true as in_panel"
        )
        assert resolve.gene(connection, "ensg1.5").gene == "A"


def test_columns_and_types_do_not_depend_on_measured_data(tmp_path: Path) -> None:
    path = make_database(tmp_path / "tiny", measured=False, simulated=False)
    with Screen(path) as plain:
        assert plain.show("FOXP3").schema == pl.Schema(frames.SHOW)
        assert plain.top("Treg")["measured_score"].is_null().all()
        assert plain.run["simulated"] is False
        with pytest.raises(DatabaseError, match="no measured ranking of Treg"):
            plain.top("Treg", evidence="measured")


REFUSED = {
    "unknown program": (lambda s: s.top("Tregs"), "unknown program 'Tregs'; nearest: Treg."),
    "left out program": (lambda s: s.top("House"), "House was not ranked: 0 of its 1 genes"),
    "unknown context": (lambda s: s.top("Treg", "time=Rst"), "unknown context.*nearest: time=Rest"),
    "bare level": (lambda s: s.top("Treg", "Rest"), "unknown context 'Rest'; nearest: time=Rest"),
    "not pooled": (
        lambda s: s.top("Treg", "donor=D1"),
        "match: donor=D1,time=Rest, donor=D1,time=Stim8hr",
    ),
    "unknown target": (lambda s: s.show("FOXP33"), "unknown target 'FOXP33'; nearest: FOXP3"),
    "nothing near": (
        lambda s: s.show("XYZZY9"),
        "unknown target 'XYZZY9'; knockscreen sql \"select target_gene from targets\" lists",
    ),
    "no gene near": (lambda s: s.movers("XYZZY9"), 'sql "select gene from genes" lists'),
    "filtered": (lambda s: s.show("il2ra"), "IL2RA .*filtered .*few_cells in 4 contexts"),
    "not expressed": (lambda s: s.explain("GAPDH", "Treg"), "GAPDH was not .*not_expressed"),
    "not in library": (lambda s: s.show("TBX21"), "TBX21 was not screened: not_in_library"),
    "gene, no target": (lambda s: s.show("IL17A"), "IL17A was not screened: not_in_library"),
    "unknown gene": (lambda s: s.movers("IL17"), "unknown gene 'IL17'; nearest: IL17A"),
    "off panel": (lambda s: s.movers("GAPDH"), "GAPDH is not on the panel"),
    "itself": (lambda s: s.compare("Treg", "treg"), "Treg does not differ from itself"),
    "direction": (lambda s: s.top("Treg", direction="up"), "'up' is none of toward, away"),
    "evidence": (lambda s: s.top("Treg", evidence="seen"), "'seen' is none of predicted"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_there_is_one_sentence(screen: Screen, case: str) -> None:
    question, message = REFUSED[case]
    with pytest.raises(ScreenError, match=message) as caught:
        question(screen)
    assert "\n" not in str(caught.value)


def test_sql_reads(screen: Screen) -> None:
    frame = screen.sql("select sum(n_cells) as n, 1.5 as x from contexts where not is_pooled")
    assert frame.rows() == [(40, 1.5)]
    assert screen.sql("describe rankings").height == 25


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("drop table runs", "read-only and this is DROP"),
        ("insert into runs default values", "read-only and this is INSERT"),
        ("create temp table t as select 1", "read-only and this is CREATE"),
        ("copy runs to 'runs.csv'", "read-only and this is COPY"),
        ("attach 'other.duckdb'", "read-only and this is ATTACH"),
        ("set threads = 1", "read-only and this is SET"),
        ("select 1; drop table runs", "one statement at a time; this is 2"),
        ("", "one statement at a time; this is 0"),
        ("selec 1", "syntax error"),
        ("select * from ranking", "ranking does not exist.*rankings"),
        ("select nope from runs", "nope"),
        ("select * from read_csv('/etc/hosts')", "disabled"),
        ("select now() - created from runs", "a type that no table here has .* cast it"),
    ],
)
def test_sql_that_writes_or_is_wrong_is_refused(screen: Screen, query: str, message: str) -> None:
    with pytest.raises(DatabaseError, match=message) as caught:
        screen.sql(query)
    assert "\n" not in str(caught.value)
    assert screen.runs().height == 1


def test_missing_database_names_the_command_that_builds_it(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match=f"build-db --results-dir {tmp_path}/x "):
        Screen(tmp_path / "x/screen.duckdb")


def test_a_file_that_is_no_database_is_refused(tmp_path: Path, database: Path) -> None:
    for content in (b"", b"hello" * 1000, database.read_bytes()[:5000]):
        (tmp_path / "screen.duckdb").write_bytes(content)
        with pytest.raises(DatabaseError, match="is not a DuckDB database"):
            Screen(tmp_path)


def test_a_database_of_something_else_is_refused(tmp_path: Path) -> None:
    duckdb.connect(tmp_path / "screen.duckdb").close()
    with pytest.raises(DatabaseError, match="no knockscreen database"):
        Screen(tmp_path)


def test_another_schema_version_is_refused(tmp_path: Path, database: Path) -> None:
    (tmp_path / "screen.duckdb").write_bytes(database.read_bytes())
    with duckdb.connect(tmp_path / "screen.duckdb") as connection:
        connection.execute("update runs set schema_version = 99")
    with pytest.raises(DatabaseError, match="schema version 99, this knockscreen reads 7"):
        Screen(tmp_path)


def test_a_database_open_for_writing_is_one_sentence(tmp_path: Path, database: Path) -> None:
    path = tmp_path / "screen.duckdb"
    path.write_bytes(database.read_bytes())
    code = (
        "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('open', flush=True);"
        "sys.stdin.read()"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        with pytest.raises(DatabaseError, match=f"open for writing by process {writer.pid}"):
            Screen(path)
    with Screen(path) as opened:
        assert opened.runs().height == 1


def test_two_readers_at_once(database: Path) -> None:
    with Screen(database) as one, Screen(database) as other:
        assert one.programs().equals(other.programs())


def test_the_only_run_is_found_and_several_are_listed(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match=r"no database under .*make screen"):
        find_database(results=tmp_path)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "screen.duckdb").touch()
        if name == "one":
            assert find_database(results=tmp_path) == tmp_path / "one/screen.duckdb"
    with pytest.raises(DatabaseError, match=r"several runs .*: one, two; choose one with --run"):
        find_database(results=tmp_path)
    assert find_database(run="two", results=tmp_path) == tmp_path / "two/screen.duckdb"
    with pytest.raises(UnknownNameError, match=r"no run 'tow'.*nearest: two"):
        find_database(run="tow", results=tmp_path)


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, knockscreen; heavy = {'duckdb', 'polars', 'torch', 'pandas', 'anndata'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_package_says_what_it_does_not_have() -> None:
    with pytest.raises(AttributeError, match="no attribute 'opne'"):
        knockscreen.opne  # noqa: B018


def test_an_expressed_gene_off_the_panel_is_not_said_to_have_lost_its_cells(tmp_path: Path) -> None:
    """GAPDH as an expressed gene that was never knocked down, and that the panel left out."""
    make_tiny_run(tmp_path)
    path = tmp_path / "screen/candidates.parquet"
    table = pl.read_parquet(path)
    gapdh = pl.col("target_gene") == "GAPDH"
    filtered = pl.when(gapdh).then(pl.lit("filtered")).otherwise("status")
    table.with_columns(status=filtered).write_parquet(path)
    database = build(tmp_path, tmp_path / "programs.tsv", tmp_path / "screen.duckdb", SETTINGS)
    with Screen(database) as screen:
        with pytest.raises(DatabaseError, match=r"filtered \(it was not knocked down, and the pan"):
            screen.show("GAPDH")
        with pytest.raises(DatabaseError, match=r"filtered \(QC kept no cells of it\); few_cells"):
            screen.show("IL2RA")


def test_a_closed_screen_says_so(tmp_path: Path) -> None:
    run = make_tiny_run(tmp_path / "tiny")
    screen = Screen(build(run, run / "programs.tsv", run / "screen.duckdb", SETTINGS))
    screen.close()
    for question in (screen.programs, screen.default_contexts):
        with pytest.raises(DatabaseError, match="was closed; open it again"):
            question()


def test_threads_may_ask_one_screen_at_once(screen: Screen) -> None:
    alone = screen.top("Treg"), screen.show("FOXP3")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: (screen.top("Treg"), screen.show("FOXP3")), range(24)))
    assert all(top.equals(alone[0]) and show.equals(alone[1]) for top, show in found)


def test_a_folder_that_is_no_run_is_told_from_a_missing_database(tmp_path: Path) -> None:
    run = make_tiny_run(tmp_path / "tiny")
    build(run, run / "programs.tsv", run / "screen.duckdb", SETTINGS)
    with pytest.raises(DatabaseError, match=r"tinny is neither a database nor .*; nearest: tiny"):
        Screen(tmp_path / "tinny")
    with pytest.raises(DatabaseError, match=r"other\.duckdb does not exist; build it"):
        Screen(tmp_path / "other.duckdb")


def test_contexts_of_the_evaluation_are_found_in_any_case(screen: Screen) -> None:
    context = screen.metrics()["context"][0]
    assert screen.metrics(context.upper()).equals(screen.metrics(context))
