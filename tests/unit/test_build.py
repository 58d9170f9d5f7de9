"""Building the database: what goes in comes out, what is wrong is refused, the old file stays."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest

from fixtures.tiny_run import DELTA, FACTORS, GENES, IDS, SETTINGS, make_tiny_run, score
from knockscreen.errors import ConfigError, DataError
from knockscreen.score.programs import program_matrix
from knockscreen.store.build import Resources, build
from knockscreen.store.tables import program_genes


def built(folder: Path, **options: Any) -> Path:
    return build(folder, folder / "programs.tsv", folder / "screen.duckdb", SETTINGS, **options)


def ask(path: Path, query: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(path, read_only=True) as connection:
        return connection.sql(query).fetchall()


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(make_tiny_run(tmp_path_factory.mktemp("tiny")))


def rewrite(path: Path, change: Any) -> None:
    change(pl.read_parquet(path)).write_parquet(path)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_tiny_run(tmp_path / "tiny")


def test_every_effect_comes_out_as_it_went_in(database: Path) -> None:
    query = "select target_gene, context, gene, delta, is_target from {}"
    expected = {
        (t, c, g): (pytest.approx(DELTA[t][g] * f, rel=1e-6), t == g)
        for t in DELTA
        for c, f in FACTORS.items()
        for g in GENES
    }
    for view in ("effects", "movers"):
        found = {row[:3]: row[3:] for row in ask(database, query.format(view))}
        assert found == expected


def test_errors_and_counts_keep_four_significant_digits(run: Path) -> None:
    rng = np.random.default_rng()
    given = {}
    for k, path in enumerate(sorted((run / "score/effects").glob("*.parquet"))):
        frame = pl.read_parquet(path)
        error = (10.0 ** rng.uniform(-9, 3, frame.height)).astype(np.float32)
        error[:4] = [0, np.inf, np.nan, 123456] if k == 0 else error[:4]
        frame = frame.with_columns(delta_se=pl.Series(error), mean_count=pl.Series(error))
        frame.write_parquet(path)
        given |= {row[:3]: row[3] for row in frame.select(
            "target_gene_id", "context", "gene_id", "delta_se").iter_rows()}  # fmt: skip
    query = "select target_gene_id, context, gene_id, delta_se from {}"
    path = built(run)
    for view in ("effects", "movers"):
        found = {row[:3]: row[3] for row in ask(path, query.format(view))}
        assert found.keys() == given.keys()
        kept = [found[key] for key in given]
        assert kept == pytest.approx(list(given.values()), rel=5.1e-4, nan_ok=True)
    differ = "select count(*) from effects where mean_count is distinct from delta_se"
    assert ask(path, differ) == [(0,)]


def test_both_orders_are_sorted(database: Path) -> None:
    for table, order in (
        ("effects_by_target", "context_key, target_key, gene_key"),
        ("effects_by_gene", "context_key, gene_key, target_key"),
        ("measured_by_target", "context_key, target_key, gene_key"),
    ):
        rows = ask(database, f"select {order} from {table}")
        assert rows == sorted(rows)
        assert len(rows) in {len(DELTA) * 30, 2 * 30}


def test_missing_is_null_and_never_zero(database: Path) -> None:
    assert ask(database, "select count(p_value), count(fdr) from rankings") == [(0, 0)]
    assert ask(database, "select n_cells from targets where target_gene = 'STAT3'") == [(None,)]
    assert ask(database, "select gene_id from program_genes where gene = 'NOSUCHGENE'") == [(None,)]
    assert ask(database, "select count(dispersion) from genes") == [(0,)]


def test_not_a_number_becomes_null(run: Path) -> None:
    nan = pl.lit(float("nan"))
    rewrite(run / "rank/rankings.parquet", lambda f: f.with_columns(score_sd=nan))
    assert ask(built(run), "select count(score_sd), count(score) from rankings")[0][0] == 0


def test_scores_carry_ranks_of_their_own_kind(database: Path) -> None:
    query = (
        "select evidence, score, rank_toward, rank_away, n_ranked, score_half_a, n_cells"
        " from program_scores where program = 'Treg' and target_gene = 'FOXP3'"
        " and context = 'time=Rest' order by evidence"
    )
    measured, predicted = ask(database, query)
    value = score("Treg", "FOXP3", "time=Rest")
    assert predicted == ("predicted_seen", pytest.approx(value), 3, 1, 3, None, None)
    assert measured == ("measured", pytest.approx(0.9 * value), 2, 1, 2, 0.1, 3)


def test_contexts_count_cells_and_pooled_ones_sum_them(database: Path) -> None:
    query = "select context, is_pooled, pooled_over, n_cells, n_control_cells from contexts"
    rows = ask(database, query)
    assert ("donor=D1,time=Rest", False, None, 10, 4) in rows
    assert ("time=Rest", True, "donor", 20, 8) in rows
    assert [row[1] for row in rows] == [False] * 4 + [True] * 2
    levels = "select levels['time'] from contexts where context = 'time=Rest'"
    assert ask(database, levels) == [("Rest",)]


def test_run_row_says_what_was_built_and_from_what(database: Path) -> None:
    query = "select run, seed, simulated, n_cells, n_genes, n_targets, n_contexts, draws from runs"
    assert ask(database, query) == [("tiny", 7, True, 40, 5, 3, 4, 16)]
    assert ask(database, "select store_digest, config from runs") == [("abcd", SETTINGS)]
    assert ask(database, "select artifact, stage from artifacts") == [("store", "normalize")]


def test_guides_say_whether_the_knockdown_worked(database: Path) -> None:
    query = (
        "select target_gene, n_guides, n_guides_kept, knockdown_status,"
        " on_target_log2_fold_change from targets where target_gene <> 'GAPDH' order by target_gene"
    )
    assert ask(database, query) == [
        ("FOXP3", 3, 2, "confirmed", pytest.approx((-2.0 * 6 - 1.0 * 2) / 8)),
        ("IL2RA", 1, 0, "inactive", None),
        ("RORC", 1, 1, "not_measurable", None),
        ("STAT3", None, None, None, None),
        ("TBX21", None, None, None, None),
    ]


def test_where_no_guide_was_judged_nothing_is_said_of_the_knockdown(run: Path) -> None:
    rewrite(run / "qc/guides.parquet", lambda f: f.with_columns(status=pl.lit("not_judged")))
    path = built(run)
    query = "select distinct knockdown_status from targets where n_guides is not null"
    assert ask(path, query) == [("not_assessed",)]
    query = "select count(*) from ranking_cards where caveat like '%could not be measured%'"
    assert ask(path, query) == [(0,)]


def test_effect_sizes_leave_out_the_target_itself(database: Path) -> None:
    query = (
        "select is_measured, effect_size, n_up, n_down, e.on_target_log2_fold_change"
        " from effect_sizes e join targets t using (target_key) join contexts c using (context_key)"
        " where t.target_gene = 'RORC' and context = 'time=Stim8hr' order by is_measured"
    )
    predicted, measured = ask(database, query)
    size = 1.5 * (0.1**2 + 0.2**2 + 0.8**2) ** 0.5
    own = -1.2 * 1.5 / np.log(2)
    assert predicted == (False, pytest.approx(size), 0, 1, pytest.approx(own, rel=1e-6))
    assert measured[:4] == (True, pytest.approx(0.9 * size), 2, 1), "fdr 0.02 everywhere"


def test_without_fdr_no_measured_gene_is_counted(run: Path) -> None:
    path = run / "measured/effects.parquet"
    pl.read_parquet(path).with_columns(fdr=pl.lit(None, pl.Float64)).write_parquet(path)
    query = "select distinct n_up, n_down from effect_sizes where is_measured"
    assert ask(built(run), query) == [(None, None)]


def test_a_program_says_why_its_controls_fail_or_were_not_tested(database: Path) -> None:
    query = "select program, control_status, control_reason from programs order by program"
    assert ask(database, query) == [
        ("House", "not_tested", "not ranked"),
        ("Th17", "not_tested", "no controls for this program"),
        ("Treg", "exploratory", "passes in 0 of the 2 contexts tested (AUROC 0.50 < 0.7)"),
    ]


def test_without_a_gate_nothing_is_tested_and_that_is_said(run: Path) -> None:
    for name in ("gates", "controls"):
        (run / f"gate/{name}.parquet").unlink()
    query = "select distinct control_status, control_reason from programs where status = 'ranked'"
    assert ask(built(run), query) == [("not_tested", "the gate was not run")]


def test_every_gene_says_whether_it_was_screened(database: Path) -> None:
    found = dict(ask(database, "select gene, status from gene_status"))
    assert found == {
        "IL2RA": "filtered", "FOXP3": "screened", "RORC": "screened", "IL17A": "not_in_library",
        "STAT3": "screened", "GAPDH": "not_expressed",
    }  # fmt: skip


def test_the_card_of_a_ranking_says_what_speaks_against_it(database: Path) -> None:
    query = (
        "select target_gene, caveat from ranking_cards where program = 'Treg'"
        " and direction = 'toward' and context = 'time=Rest' and evidence <> 'measured'"
        " order by target_gene"
    )
    assert dict(ask(database, query)) == {
        "FOXP3": "the positive controls of the program fail; few cells (3)",
        "RORC": "the positive controls of the program fail;"
        " the knock-down itself could not be measured; few cells (3)",
        "STAT3": "never knocked down in training; no positive controls tested",
    }


@pytest.mark.parametrize(
    ("direction", "fdr", "score", "expected"),
    [
        ("toward", 0.05, -0.02, "unlike the usual knock-down, yet not toward by itself"),
        ("away", 0.05, 0.02, "unlike the usual knock-down, yet not away by itself"),
        ("away", 0.05, -0.02, None),
        ("toward", 0.3, -0.02, "fdr above 0.1"),
        ("toward", 0.3, 0.02, "fdr above 0.1"),
        ("toward", None, -0.02, None),
    ],
)
def test_a_call_against_its_own_sign_says_so(
    database: Path, direction: str, fdr: float | None, score: float, expected: str | None
) -> None:
    rest = "'predicted_seen', 'passed', 'confirmed', null, 100"
    fdr_sql = "null" if fdr is None else fdr
    query = f"select caveats('{direction}', {fdr_sql}, false, {rest}, {score}, null, null)"
    assert ask(database, query) == [(expected,)]


def test_a_row_beyond_every_decoy_says_that_decoys_are_too_few(database: Path) -> None:
    rest = "'predicted_seen', 'passed', 'confirmed', null, 100, 0.02, null, null"
    query = f"select caveats('toward', fdr, true, {rest}) from (values (0.12), (0.08)) t(fdr)"
    beyond = "fdr above 0.1, though beyond every decoy: more decoys would tell"
    assert ask(database, query) == [(beyond,), (None,)]


def test_genes_of_programs_are_those_that_scoring_finds_also_where_ids_have_versions() -> None:
    ids, symbols = ["ENSG1.5", "ENSG2.1", "ENSG3"], ["A", "B", "C"]
    names = ["ENSG1.5", "ENSG1", "B", "ENSG3.2", "c", "NONE"]
    given = pl.DataFrame({"program": names, "gene": names, "weight": 1.0})
    scored = program_matrix(given, ids, symbols)
    panel = pl.DataFrame({"gene_id": ids, "gene": symbols, "gene_key": [0, 1, 2], "in_panel": True})
    found = program_genes(given, panel).filter("in_panel")
    assert found["program"].to_list() == list(scored.names) == names[:-1]
    assert found["gene_key"].to_list() == scored.weights.argmax(axis=1).tolist()


def test_predicted_and_measured_stand_side_by_side(database: Path) -> None:
    query = "select count(*), count(*) filter (same_sign) from predicted_and_measured"
    assert ask(database, query) == [(2 * 2 * 6, 2 * 2 * 6)]


def test_manifest_names_the_inputs(database: Path) -> None:
    manifest = json.loads((database.parent / "screen.duckdb.manifest.json").read_text())
    assert manifest["stage"] == "build_db"
    assert len(manifest["inputs"]) == 3


def test_without_measured_tables_they_exist_and_are_empty(tmp_path: Path) -> None:
    path = built(make_tiny_run(tmp_path / "tiny", measured=False))
    assert ask(path, "select count(*) from measured_effects") == [(0,)]
    assert ask(path, "select count(*) from ceilings") == [(0,)]
    assert ask(path, "select count(*), count(n_cells) from program_scores") == [(36, 0)]


def test_two_builds_answer_alike_whatever_the_threads_and_memory(database: Path, run: Path) -> None:
    again = built(run, resources=Resources(memory="100MB", threads=1))
    for table in ("effects_by_target", "effects_by_gene", "rankings", "program_scores", "targets"):
        assert ask(again, f"from {table}") == ask(database, f"from {table}")


def test_progress_counts_up_to_the_end(run: Path) -> None:
    seen: list[tuple[int, int]] = []
    built(run, progress=lambda done, total, what: seen.append((done, total)))
    assert seen == [(step, 8) for step in range(9)]


def test_a_program_below_the_panel_is_listed_as_left_out(database: Path) -> None:
    query = "select program, n_genes, n_panel_genes, status from programs order by program"
    assert ask(database, query) == [
        ("House", 1, 0, "left_out"), ("Th17", 3, 2, "ranked"), ("Treg", 3, 3, "ranked"),
    ]  # fmt: skip


def test_a_measured_target_that_was_no_candidate_is_kept_with_its_status(run: Path) -> None:
    rewrite(
        run / "screen/candidates.parquet",
        lambda f: f.filter(~pl.col("target_gene").is_in(["IL2RA", "RORC"])),
    )
    keep = pl.col("target_gene_id") != IDS["RORC"]
    rewrite(run / "score/effects/0.parquet", lambda f: f.filter(keep))
    predicted = pl.col("evidence") != "measured"
    for name in ("rankings", "program_scores"):
        rewrite(run / f"rank/{name}.parquet", lambda f: f.filter(keep | ~predicted))
    query = "select target_gene, status, n_cells from targets where evidence is null order by 1"
    found = ask(built(run), query)
    assert ("IL2RA", "filtered", None) in found
    assert ("RORC", "not_a_candidate", 12) in found


BAD = {
    "a missing shard folder": (
        lambda run: [p.unlink() for p in (run / "score/effects").iterdir()],
        "no Parquet files; run knockscreen score",
    ),
    "a shard that is no Parquet file": (
        lambda run: (run / "score/effects/1.parquet").write_text("hello"),
        "1.parquet is not a Parquet file",
    ),
    "a shard without a column": (
        lambda run: rewrite(run / "score/effects/1.parquet", lambda f: f.drop("delta_se")),
        "no column 'delta_se'",
    ),
    "a shard with an unknown gene": (
        lambda run: rewrite(
            run / "score/effects/1.parquet",
            lambda f: f.with_columns(pl.col("gene_id").replace("ENSG03", "ENSG33")),
        ),
        "gene_id 'ENSG33'.*nearest: ENSG03",
    ),
    "a shard with an unknown target": (
        lambda run: rewrite(
            run / "score/effects/1.parquet",
            lambda f: f.with_columns(target_gene_id=pl.lit("ENSG55")),
        ),
        "target_gene_id 'ENSG55'",
    ),
    "a shard twice": (
        lambda run: (run / "score/effects/2.parquet").write_bytes(
            (run / "score/effects/0.parquet").read_bytes()
        ),
        "effects of FOXP3 in .* more than one file",
    ),
    "shards that disagree about control": (
        lambda run: rewrite(
            run / "score/effects/1.parquet",
            lambda f: f.with_columns(control_mean_count=pl.lit(3.0, pl.Float32)),
        ),
        "control_mean_count of IL2RA",
    ),
    "no rankings": (
        lambda run: (run / "rank/rankings.parquet").unlink(),
        "rankings.parquet does not exist",
    ),
    "rankings without a column": (
        lambda run: rewrite(run / "rank/rankings.parquet", lambda f: f.drop("rank_low")),
        "no column 'rank_low'",
    ),
    "a score of an unknown target": (
        lambda run: rewrite(
            run / "rank/program_scores.parquet",
            lambda f: f.with_columns(target_gene_id=pl.lit("ENSG99")),
        ),
        "belong to a target",
    ),
    "a gene twice": (
        lambda run: rewrite(run / "store/panel.parquet", lambda f: pl.concat([f, f.head(1)])),
        "'ENSG06' twice",
    ),
    "programs of another run": (
        lambda run: (run / "programs.tsv").write_text("program\tgene\nTreg\tIL2RA\n"),
        "program Th17 was ranked, but is not among the programs given",
    ),
    "no programs": (lambda run: (run / "programs.tsv").unlink(), "programs.tsv' does not exist"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_leaves_the_old_database(run: Path, case: str) -> None:
    old = run / "screen.duckdb"
    old.write_bytes(b"the old one")
    spoil, message = BAD[case]
    spoil(run)
    with pytest.raises(DataError, match=message):
        built(run)
    assert old.read_bytes() == b"the old one"
    assert not list(run.glob(".screen*"))


def test_settings_need_a_run_and_a_seed(run: Path) -> None:
    with pytest.raises(ConfigError, match="'seed' is missing"):
        build(run, run / "programs.tsv", run / "screen.duckdb", '{"run": "tiny"}')
    assert not (run / "screen.duckdb").exists()


def test_a_memory_limit_that_is_no_size_is_refused(run: Path) -> None:
    with pytest.raises(DataError, match="'much' is no size"):
        built(run, resources=Resources(memory="much"))


def test_a_full_disk_is_one_sentence_and_leaves_the_old_database(run: Path) -> None:
    old = run / "screen.duckdb"
    old.write_bytes(b"the old one")
    # A file size limit stands in for a full disk: writes beyond it fail in the same way.
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000));"
        "from knockscreen.cli import main; main()"
    )
    arguments = ["build-db", "--results-dir", str(run), "--programs", str(run / "programs.tsv"),
                 "--output", str(old), "--settings", SETTINGS]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2, done.stderr
    assert "the disk is full" in last
    assert "Traceback" not in done.stderr
    assert old.read_bytes() == b"the old one"
    assert not list(run.glob(".screen*"))
