"""Files of programs: GMT pairs, DE tables by contrast, and one sentence for what is not right."""

import gzip
import os
from pathlib import Path

import polars as pl
import pytest

from knockscreen.config import DATA_FOLDER, ProgramsConfig, ProgramSource
from knockscreen.errors import DataError
from knockscreen.score.program_files import all_programs, read_gmt, read_source

DE = "variable,log_fc,lfcSE,stat,contrast\n"
ROWS = (
    "IFNG,-2,1,-2,Th2\nIL4,3,0.5,6,Th2\nIL5,3,1,3,Th2\nTBX21,-4,1,-4,Th2\nACTB,0,1,0,Th2\n"
    "IFNG,5,1,5,Th1\nIL4,-3,1,-3,Th1\n"
)
TABLES = Path(os.environ.get("KNOCKSCREEN_DATA", DATA_FOLDER)) / "tables"


def source(folder, text, file="de.csv", **options):
    path = folder / file
    if file.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return ProgramSource(file=str(path), **options)


def weights(table):
    return dict(table.select("gene", "weight").iter_rows())


def test_a_de_table_gives_the_top_of_both_arms_of_one_contrast(tmp_path):
    table = read_source(source(tmp_path, DE + ROWS, contrast="Th2", name="Th2_vs_Th0", top=1))
    assert weights(table) == {"IL4": 1.0, "TBX21": -1.0}
    assert table["program"].unique().to_list() == ["Th2_vs_Th0"]
    assert table["source"][0] == "de.csv"


def test_gzip_and_tabs_are_read_and_a_statistic_is_made_from_effect_and_error(tmp_path):
    text = "gene\tlog_fc\tlfcSE\nA\t4\t4\nB\t2\t0.5\nC\t-1\t0.1\n"
    table = read_source(source(tmp_path, text, "x.tsv.gz", top=1))
    assert weights(table) == {"B": 1.0, "C": -1.0}
    assert table["program"][0] == "x"


def test_an_up_and_down_pair_of_gene_sets_is_one_signed_program(tmp_path):
    path = tmp_path / "sets.gmt"
    path.write_text("T_DN\tx\tA\tB\nT_UP\thttp\tC\nALONE_UP\t\tA\nPLAIN\t\tA\tD\n")
    table = read_gmt(path)
    assert table["program"].unique(maintain_order=True).to_list() == ["T", "ALONE_UP", "PLAIN"]
    assert weights(table.filter(pl.col("program") == "T")) == {"A": -1.0, "B": -1.0, "C": 1.0}
    assert (table.filter(pl.col("program") != "T")["weight"] == 1).all()


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (DE + ROWS, {}, r"has 2 contrasts \(Th1, Th2\); choose one by its exact name"),
        (DE + ROWS, {"contrast": "Th"}, r"has no contrast 'Th'; nearest: Th2, Th1"),
        (DE + ROWS + "IL4,1,1,1,Th2\n", {"contrast": "Th2"}, "IL4 stands twice in contrast 'Th2'"),
        ("variable,log_fc\nA,1\n", {}, "has no test statistic"),
        ("x,stat\nA,1\n", {}, "has neither program nor gene columns"),
        ("gene,stat\nA,1\nB,2\n", {"arms": "both"}, r"de has one arm only|program de .* one arm"),
        ("gene,stat\n1-Mar,1\nB,-2\n", {}, "gene '1-Mar' .* is a date"),
        ("gene,stat\n2024-03-01,1\nB,-2\n", {}, "gene '2024-03-01' .* is a date"),
        ("gene,stat\nA,1\n", {"contrast": "x"}, "has no column 'contrast'"),
        ("gene,stat\nA,inf\nB,-2\n", {}, "column 'stat' of .* is infinite in row 1"),
        ("gene,stat\nA,high\nB,-2\n", {}, "'stat' of .* holds 'high', which is no number"),
        ("gene,log_fc,lfcSE\nA,1,0\nB,-2,1\n", {}, "'lfcSE' of .* is 0 beside a change"),
        ("gene,log_fc,lfcSE\nA,1,-1\nB,-2,1\n", {}, "'lfcSE' of .* has values below 0"),
        ("program,gene\nP,A\n", {"name": "x"}, "names its programs itself"),
    ],
)
def test_a_broken_de_table_is_one_sentence(tmp_path, text, options, message):
    with pytest.raises(DataError, match=message):
        read_source(source(tmp_path, text, **options))


def test_a_missing_file_of_a_verb_is_not_laid_to_the_configuration(tmp_path):
    missing = ProgramSource(file=str(tmp_path / "no.tsv"))
    with pytest.raises(DataError, match=r"no\.tsv' does not exist; correct its path\.$"):
        read_source(missing)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A\tx\tG1\nA\tx\tG2\n", "gene set A stands twice"),
        ("A\tx\n", "line 1 of .* is no gene set"),
        ("A\tx\tG1\tG1\n", "gene G1 stands twice in program A"),
        ("A_UP\tx\tG1\nA_DN\tx\tG1\n", "gene G1 stands twice in program A"),
        ("", "has no gene sets"),
        ("X_UP\tx\tA\nX_DN\tx\tB\nX\tx\tC\n", "X_UP and X of .* would be one arm of program X"),
        ("X_UP\tx\tA\nX_DN\tx\tB\nX_DOWN\tx\tC\n", "X_DN and X_DOWN of .* would be one arm"),
    ],
)
def test_a_broken_gmt_is_one_sentence(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_source(source(tmp_path, text, "sets.gmt"))


def test_a_gmt_that_is_no_text_is_one_sentence(tmp_path):
    path = tmp_path / "sets.gmt"
    path.write_bytes(b"\xff\xfeA\tx\tG1\n")
    with pytest.raises(DataError, match="is not a text file"):
        read_gmt(path)


def test_a_statistic_that_is_missing_leaves_its_gene_out(tmp_path):
    table = read_source(source(tmp_path, "gene,log_fc,lfcSE\nA,2,1\nB,NA,NA\nC,0,0\nD,-1,1\n"))
    assert weights(table) == {"A": 1.0, "D": -1.0}


def test_files_are_put_together_and_a_name_given_twice_is_refused(tmp_path):
    first = source(tmp_path, "program\tgene\nTreg\tFOXP3\n", "a.tsv")
    second = source(tmp_path, "S\tx\tA\tB\n", "b.gmt")
    settings = ProgramsConfig(file=first.file, extra=[second], names=[], min_genes=1)
    assert all_programs(settings)["program"].to_list() == ["Treg", "S", "S"]
    clash = source(tmp_path, "Treg\tx\tA\n", "c.gmt")
    with pytest.raises(DataError, match=r"program Treg is in '.*a.tsv' and in '.*c.gmt'; .* never"):
        all_programs(settings.model_copy(update={"extra": [clash]}))


def test_the_two_published_th2_contrasts_stay_two_programs(tmp_path):
    found = {}
    for study in ("ota2021", "hollbacher"):
        file = TABLES / f"program_th2_vs_th1_{study}.csv.gz"
        if not file.is_file():
            pytest.skip(f"needs {file.name} of the shared data")
        found[study] = read_source(
            ProgramSource(file=str(file), contrast="Th2_vs_Th1", name=study, top=50, arms="both")
        )
        signs = weights(found[study])
        assert sorted(found[study]["weight"].value_counts().rows()) == [(-1.0, 50), (1.0, 50)]
        assert {"GATA3", "IL4", "TBX21", "IFNG"} & set(signs) or study == "hollbacher"
    shared = set(weights(found["ota2021"])) & set(weights(found["hollbacher"]))
    assert 0 < len(shared) < 100
