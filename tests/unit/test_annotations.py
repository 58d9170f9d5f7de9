"""What the user knows of genes: shown beside the knock-downs, and no row of it lost or invented."""

import json
from pathlib import Path

import pytest

from fixtures.tiny_run import SETTINGS, make_tiny_run
from knockscreen.errors import DataError
from knockscreen.store.annotations import read_annotations
from knockscreen.store.build import build
from knockscreen.store.screen import Screen


def annotated(file: Path, against: list[str] | None = None, within: int | None = None) -> str:
    section = {"file": str(file), "against": against or [], "neighbours_within": within}
    return json.dumps(json.loads(SETTINGS) | {"annotations": section})


def test_annotations_stand_beside_their_targets_by_id_or_symbol(tmp_path: Path) -> None:
    run = make_tiny_run(tmp_path / "tiny")
    file = tmp_path / "genes.tsv"
    file.write_text("# mine\ngene\tessential\tdrug\nfoxp3\tno\t\nENSG03\tyes\tX-1\nNOSUCH\tno\t\n")
    path = build(run, run / "programs.tsv", run / "screen.duckdb", annotated(file))
    with Screen(path) as screen:
        found = screen.sql(
            "select target_gene, annotations['essential'] as e, annotations['drug'] as d"
            " from targets where annotations is not null order by target_gene"
        )
        assert found.rows() == [("FOXP3", "no", None), ("RORC", "yes", "X-1")]
        top = screen.top("Treg")
        shown = dict(top.select("target_gene", "annotations").iter_rows())
        assert json.loads(shown["RORC"]) == {"drug": "X-1", "essential": "yes"}
        assert shown["STAT3"] is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name\tx\nA\t1\n", "has no column for genes: none of gene, .*; it has name, x"),
        ("gene\nA\n", "has genes and no other column"),
        ("gene\tx\nA\t1\na\t2\n", "gene A stands twice"),
        ("gene\ttss\nA\t1\nB\t1e3\n", "tss of B .* is '1e3', not a position in bases"),
    ],
)
def test_a_broken_annotation_file_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "genes.tsv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_annotations(path)
    with pytest.raises(DataError, match=r"does not exist; set annotations\.file"):
        read_annotations(tmp_path / "none.tsv")


def test_neighbours_and_named_columns_speak_against_a_knock_down(tmp_path: Path) -> None:
    run = make_tiny_run(tmp_path / "tiny")
    file = tmp_path / "genes.tsv"
    file.write_text(
        "gene\tchromosome\ttss\ttarget_gene\tdistal_offtarget\n"
        "FOXP3\tX\t5000\ta\tno\nIL2RA\tX\t5300\tb\t\nENSG04.12\tX\t4000\tc\tyes\n"  # IL17A
        "STAT3\t17\t5000\td\tTrue\nRORC\t1\t\te\t\n"
    )
    text = annotated(file, ["distal_offtarget"], 1000)
    path = build(run, run / "programs.tsv", run / "screen.duckdb", text)
    with Screen(path) as screen:
        query = "select target_gene, neighbours, objection from targets where status = 'screened'"
        found = {gene: rest for gene, *rest in screen.sql(query).iter_rows()}
        near = "IL2RA (300 bases), IL17A (1000 bases)"
        assert found["FOXP3"] == [near, f"may silence its neighbour {near} too"]
        assert found["STAT3"] == [None, "your table says distal_offtarget"]
        assert found["RORC"] == [None, None]
        assert screen.caveats("FOXP3") == [f"FOXP3: {found['FOXP3'][1]}."]
        caveats = dict(screen.top("Treg").select("target_gene", "caveat").iter_rows())
        assert found["FOXP3"][1] in caveats["FOXP3"]
        assert caveats["STAT3"].startswith("never knocked down in training")
        assert "your table says distal_offtarget" in caveats["STAT3"]
        cards = "select caveat from ranking_cards where target_gene = 'FOXP3'"
        assert all(found["FOXP3"][1] in caveat for (caveat,) in screen.sql(cards).iter_rows())
    nearer = build(run, run / "programs.tsv", run / "b.duckdb", annotated(file, within=999))
    with Screen(nearer) as screen:
        found = screen.sql("select neighbours from targets where target_gene = 'FOXP3'")
        assert found.rows() == [("IL2RA (300 bases)",)]
    none = build(run, run / "programs.tsv", run / "c.duckdb", annotated(file))
    with Screen(none) as screen:
        assert screen.sql("select count(neighbours), count(objection) from targets").rows() == [
            (0, 0)
        ]


def test_a_column_against_that_the_table_lacks_is_one_sentence(tmp_path: Path) -> None:
    run = make_tiny_run(tmp_path / "tiny")
    file = tmp_path / "genes.tsv"
    file.write_text("gene\tofftarget\nA\tyes\n")
    with pytest.raises(DataError, match=r"no column 'off_target', .*; nearest: offtarget"):
        build(run, run / "programs.tsv", run / "d.duckdb", annotated(file, ["off_target"]))
    assert not (run / "d.duckdb").exists()
