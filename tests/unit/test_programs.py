"""Programs: signed weights on the panel, and one sentence for a file that is not right."""

import numpy as np
import polars as pl
import pytest

from fixtures.shards import GENE_IDS, GENES
from knockscreen.errors import DataError, UnknownNameError
from knockscreen.score.program_files import read_programs
from knockscreen.score.programs import program_matrix

HEADER = "program\tgene\tweight\tsource\tdescription\n"


def write(folder, text):
    path = folder / "programs.tsv"
    path.write_text(text)
    return path


def matrix(rows, **options):
    table = pl.DataFrame(rows, schema=["program", "gene", "weight"], orient="row")
    return program_matrix(table, GENE_IDS, GENES, **options)


def test_file_is_read_with_signed_weights_and_one_where_none_is_given(tmp_path):
    table = read_programs(write(tmp_path, HEADER + "Th2\tIL4\t\tx\ty\nTh2\tIFNG\t-1.5\t\t\n"))
    assert table["weight"].to_list() == [1.0, -1.5]
    assert table.columns == ["program", "gene", "weight", "source", "description"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("program\tgene\twieght\n", "unknown column 'wieght' .*; nearest: weight"),
        ("program\tweight\nTh2\t1\n", "has no column 'gene'"),
        (HEADER, "has no rows"),
        (HEADER + "Th2\tIL4\t1\t\t\nTh2\tIL4\t-1\t\t\n", "gene IL4 stands twice in program Th2"),
        (HEADER + "Th2\tIL4\tinf\t\t\n", "weight 'inf' of gene IL4 .* not a finite number"),
        (HEADER + "Th2\tIL4\tup\t\t\n", "weight 'up' of gene IL4 .* not a finite number"),
        (HEADER + "Th2\t\t1\t\t\n", "row 1 of program file .* has no gene"),
    ],
)
def test_a_broken_file_is_one_sentence(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_programs(write(tmp_path, text))


def test_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.tsv' does not exist"):
        read_programs(tmp_path / "none.tsv")


def test_symbols_and_ensembl_ids_with_or_without_version_match():
    found = matrix(
        [("A", "GATA3", 1.0), ("A", "ENSG2", -1.0), ("A", "ENSG4.7", 2.0), ("A", "NO", 1.0)]
    )
    assert found.weights.tolist() == [[1, -1, 0, 2]]
    assert found.n_genes.tolist() == [3]
    assert found.missing == {"A": ["NO"]}
    assert found.columns.tolist() == [0, 1, 3]


def test_case_and_version_do_not_matter_where_no_name_is_the_same():
    genes = (["ENSG1.4", "ENSG2.1", "ENSG3.2", "ENSG4.9"], ["GATA3", "C1orf1", "Il4", "IL4"])
    rows = [("A", "gata3", 1.0), ("A", "ENSG2", 1.0), ("A", "IL4", 1.0), ("A", "il4", 1.0)]
    table = pl.DataFrame(rows, schema=["program", "gene", "weight"], orient="row")
    found = program_matrix(table, *genes)
    assert found.weights.tolist() == [[1, 1, 0, 1]]  # il4 could be either of two
    upper = table.head(1).with_columns(gene=pl.lit("C1ORF1"))
    assert program_matrix(upper, *genes).weights.tolist() == [[0, 1, 0, 0]]
    x = table.head(1).with_columns(gene=pl.lit("x"))
    with pytest.raises(DataError, match=r"no program has 1 genes .*; lower min_genes or use"):
        program_matrix(x, ["ENSG1", "ENSG2"], ["X", "X"])


def test_one_gene_by_symbol_and_by_id_is_refused():
    with pytest.raises(DataError, match="names one gene twice, as IL4 and ENSG2"):
        matrix([("A", "IL4", 1.0), ("A", "ENSG2", 1.0)])


def test_a_symbol_of_two_panel_genes_is_refused_but_its_id_is_not():
    table = pl.DataFrame({"program": ["A"], "gene": ["X"], "weight": [1.0]})
    with pytest.raises(DataError, match="X names several genes of the panel; give its Ensembl id"):
        program_matrix(table, ["ENSG1", "ENSG2"], ["X", "X"])
    by_id = table.with_columns(gene=pl.lit("ENSG2"))
    assert program_matrix(by_id, ["ENSG1", "ENSG2"], ["X", "X"]).weights.tolist() == [[0, 1]]


def test_small_programs_are_dropped_and_listed():
    found = matrix(
        [("A", "IL4", 1.0), ("A", "IFNG", 1.0), ("B", "IL4", 1.0), ("B", "NO", 1.0)], min_genes=2
    )
    assert found.names == ("A",)
    assert found.dropped == {"B": (1, 2)}


def test_unknown_and_unmatched_programs_say_so():
    rows = [("Th17", "IL4", 1.0), ("Treg", "NO", 1.0), ("Treg", "NEITHER", 1.0)]
    with pytest.raises(
        UnknownNameError, match=r"unknown program 'Th71' in programs.names; nearest: Th17"
    ):
        matrix(rows, names=["Th71"])
    with pytest.raises(
        DataError, match=r"program Treg has no gene on the panel \(0 of 2 matched\)"
    ):
        matrix(rows, names=["Treg"])
    with pytest.raises(DataError, match=r"no program has 2 genes .* Th17 1 of 1, Treg 0 of 2"):
        matrix(rows, min_genes=2)
    assert matrix(rows).dropped == {"Treg": (0, 2)}


def test_weights_without_the_target_are_rescaled_and_nan_when_nothing_is_left():
    found = matrix([("A", "IL4", 1.0), ("A", "IFNG", -3.0), ("B", "IL4", 1.0)])
    weights, n = found.without(-1)
    np.testing.assert_array_equal(weights, [[0, 0.25, -0.75, 0], [0, 1, 0, 0]])
    weights, n = found.without(1)
    np.testing.assert_array_equal(weights, [[0, 0, -1, 0], [np.nan] * 4])
    assert n.tolist() == [1, 0]
