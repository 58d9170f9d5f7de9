"""MAGeCK gene tables: one fdr, a stated sign, and what is wrong with such tables."""

import os
from pathlib import Path

import polars as pl
import pytest

from knockscreen.errors import DataError
from knockscreen.score.screens import read_screen

HEADER = "id,num,neg|score,neg|fdr,neg|lfc,pos|score,pos|fdr,pos|lfc"
ROWS = ["VAV1,12,0.1,0.001,-2.9,1,1,-2.9", "CBLB,12,1,0.9,1.5,0.1,0.02,1.5"]


def write(folder, *lines, name="screen.csv", header=HEADER):
    path = folder / name
    path.write_text("\n".join([header, *(lines or ROWS)]) + "\n")
    return path


def test_fdr_is_that_of_the_side_and_the_sign_is_as_stated(tmp_path):
    lower = read_screen(write(tmp_path), "lower")
    assert lower.rows() == [("VAV1", -2.9, 0.001), ("CBLB", 1.5, 0.02)]
    higher = read_screen(write(tmp_path), "higher")
    assert higher["effect"].to_list() == [2.9, -1.5]
    assert higher["fdr"].equals(lower["fdr"])


def test_screens_side_by_side_are_told_apart_by_suffix(tmp_path):
    names = [f"{c}.{s}" for s in ("Teff", "Treg") for c in HEADER.split(",")[1:]]
    line = "IL2RA," + ",".join(ROWS[0].split(",")[1:] + ROWS[1].split(",")[1:])
    path = write(tmp_path, line, header=",".join(["id", *names]))
    assert read_screen(path, "lower", suffix="Treg").row(0) == ("IL2RA", 1.5, 0.02)
    with pytest.raises(DataError, match="holds the screens Teff, Treg: choose one with --suffix"):
        read_screen(path, "lower")
    with pytest.raises(DataError, match=r"'Tref' is none of them; nearest: .*Teff"):
        read_screen(path, "lower", suffix="Tref")


def test_screens_one_below_the_other_are_told_apart_by_a_column(tmp_path):
    lines = [f"{row},{kind}" for kind in ("CD4+ IL2", "CD8+ IFNG") for row in ROWS]
    path = write(tmp_path, *lines, header=f"{HEADER},phenotype")
    one = read_screen(path, "lower", where={"phenotype": "CD4+ IL2"})
    assert one["gene"].to_list() == ["VAV1", "CBLB"]
    hint = r"gene VAV1 stands 2 times .*--where \(phenotype=CD4\+ IL2, phenotype=CD8\+ IFNG\)"
    with pytest.raises(DataError, match=hint):
        read_screen(path, "lower")
    with pytest.raises(DataError, match=r"has phenotype 'CD4 IL2'; nearest: CD4\+ IL2"):
        read_screen(path, "lower", where={"phenotype": "CD4 IL2"})


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["1-Mar,1,1,1,0.1,1,1,0.1"], r"dates in place of genes \(1-Mar; 1 in all\)"),
        (["Sep-02,1,1,1,0.1,1,1,0.1"], r"dates in place of genes \(Sep-02"),
        (["2024-03-01,1,1,1,0.1,1,1,0.1"], "dates in place of genes"),
        (["01-Mar-24,1,1,1,0.1,1,1,0.1"], "dates in place of genes"),
        (["A,1,1,1,inf,1,1,inf"], r"'neg\|lfc' of .* is infinite in row 1"),
        (["A,1,1,1,-inf,1,1,-inf"], "is infinite"),
        (["A,1,1,1,,1,1,"], r"'neg\|lfc' of .* has no value for A"),
        (["A,1,1,1,x,1,1,x"], "holds 'x', which is no number"),
        (["A,1,1,1,0.1,1,1,0.3"], "two different lfc for A"),
        ([ROWS[0], ROWS[0]], "gene VAV1 stands 2 times .*keep one row of each"),
        ([",1,1,1,0.1,1,1,0.1"], "has no gene in row 1"),
    ],
)
def test_bad_rows_are_one_sentence(tmp_path, lines, message):
    with pytest.raises(DataError, match=message) as caught:
        read_screen(write(tmp_path, *lines), "lower")
    assert "\n" not in str(caught.value)


def test_real_gene_names_are_no_dates(tmp_path):
    names = ["MARCHF1", "NKX6-1", "SEPTIN2", "DEC1", "MARCH1", "KRTAP10-12", "HLA-A", "H2-K1"]
    path = write(tmp_path, *(f"{name},1,1,1,0.1,1,1,0.1" for name in names))
    assert read_screen(path, "lower")["gene"].to_list() == names


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none.csv", None, "'.*none.csv' does not exist"),
        ("screen.xlsx", "x", "is not a .csv, .tsv, .txt or .parquet table"),
        ("screen.csv", "gene,log2FC\nA,1\n", r"no MAGeCK gene table: it has no column 'id'"),
        ("screen.csv", f"{HEADER}\n", "has no rows"),
        ("screen.parquet", "no parquet", "cannot be read as a parquet table"),
    ],
)
def test_other_files_are_one_sentence(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_screen(tmp_path / name, "lower")


def test_parquet_and_gzipped_tabs_read_alike(tmp_path):
    plain = read_screen(write(tmp_path), "lower")
    table = pl.read_csv(write(tmp_path))
    table.write_parquet(tmp_path / "screen.parquet")
    import gzip

    with gzip.open(tmp_path / "screen.tsv.gz", "wt") as handle:
        handle.write(table.write_csv(separator="\t"))
    for name in ("screen.parquet", "screen.tsv.gz"):
        assert read_screen(tmp_path / name, "lower").equals(plain)


DATA = Path(os.environ.get("KNOCKSCREEN_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.mark.data
@pytest.mark.skipif(not (DATA / "tables").is_dir(), reason="no tables: set KNOCKSCREEN_DATA")
def test_published_screens_have_their_known_regulators_on_the_stated_side():
    il2 = read_screen(
        DATA / "tables/screen_schmidt_steinhart2022_crispri_IL2_IFNG.csv.gz",
        "lower",
        where={"phenotype": "CD4+ IL2"},
    )
    effects = dict(il2.select("gene", "effect").iter_rows())
    assert effects["VAV1"] < 0 < effects["CBLB"]  # a driver and a brake of T-cell activation
    il2ra = read_screen(
        DATA / "tables/screen_arce2025_IL2RA.csv.gz", "higher", suffix="Stimulated_Teff"
    )
    assert dict(il2ra.select("gene", "effect").iter_rows())["IL2RA"] < -2
