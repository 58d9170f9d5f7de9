"""What the user knows of genes: shown beside the knock-downs, and no row of it lost or invented."""

import json
from pathlib import Path

import pytest

from fixtures.tiny_run import SETTINGS, make_tiny_run
from knockscreen.errors import DataError
from knockscreen.store.annotations import read_annotations
from knockscreen.store.build import build
from knockscreen.store.screen import Screen


def test_annotations_stand_beside_their_targets_by_id_or_symbol(tmp_path: Path) -> None:
    run = make_tiny_run(tmp_path / "tiny")
    file = tmp_path / "genes.tsv"
    file.write_text("# mine\ngene\tessential\tdrug\nfoxp3\tno\t\nENSG03\tyes\tX-1\nNOSUCH\tno\t\n")
    settings = json.dumps(json.loads(SETTINGS) | {"annotations": {"file": str(file)}})
    path = build(run, run / "programs.tsv", run / "screen.duckdb", settings)
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
    ],
)
def test_a_broken_annotation_file_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "genes.tsv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_annotations(path)
    with pytest.raises(DataError, match=r"does not exist; set annotations\.file"):
        read_annotations(tmp_path / "none.tsv")
