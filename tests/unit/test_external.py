"""Measured tables from elsewhere: units, names, absent genes, scores by hand, and bad input."""

import anndata
import numpy as np
import pandas as pd
import polars as pl
import pytest

from knockscreen.config import ExternalConfig, RankConfig
from knockscreen.errors import DataError
from knockscreen.score.external import open_external
from knockscreen.score.external_scores import (
    own_genes,
    rank_external,
    rank_external_scores,
    write_external,
)
from knockscreen.score.programs import program_matrix
from knockscreen.score.validation import external_values

GENES = ["GATA3", "IL4", "IFNG", "TBX21"]
IDS = ["ENSG1", "ENSG2", "ENSG3", "ENSG4"]
PROGRAM = pl.DataFrame(
    {"program": ["Th2"] * 3, "gene": ["GATA3", "IL4", "IFNG"], "weight": [1.0, 1.0, -1.0]}
)
# Knock-down, condition, gene, log_fc, lfcSE: STAT6 misses IFNG, GATA3 has its own gene.
LONG = pl.DataFrame(
    [
        ("STAT6", "Rest", "GATA3", -1.0, 0.3, 0.01),
        ("STAT6", "Rest", "IL4", -2.0, 0.4, 0.02),
        ("GATA3", "Rest", "GATA3", -3.0, 0.1, 0.001),
        ("GATA3", "Rest", "IL4", -1.0, 0.3, 0.3),
        ("GATA3", "Rest", "IFNG", 0.5, 0.4, 0.4),
        ("STAT6", "Stim8hr", "IL4", -4.0, 0.4, 0.02),
    ],
    schema=[
        "target_contrast_gene_name",
        "culture_condition",
        "gene",
        "log_fc",
        "lfcSE",
        "adj_p_value",
    ],
    orient="row",
)


def settings(path, **changed):
    values = {
        "source": "other",
        "file": str(path),
        "unit": "log2",
        "absent": "missing",
        "contexts": {},
    }
    return ExternalConfig(**(values | changed))


def write(folder, table=LONG, name="effects.csv"):
    path = folder / name
    table.write_csv(path)
    return path


def programs(opened, table=PROGRAM):
    return program_matrix(table, opened.genes["gene_id"].to_list(), opened.genes["gene"].to_list())


def scores(opened, table=PROGRAM):
    found = rank_external_scores(opened, programs(opened, table))
    return {(r["target_gene"], r["context"]): r for r in found.iter_rows(named=True)}


def test_scores_are_weighted_means_of_the_listed_genes_without_the_target(tmp_path):
    found = scores(open_external(settings(write(tmp_path))))
    stat6 = found["STAT6", "Rest"]
    assert stat6["score"] == pytest.approx((-1 - 2) / 2)
    assert stat6["standard_error"] == pytest.approx(np.hypot(0.3, 0.4) / 2)
    assert (stat6["n_genes"], stat6["p_value"], stat6["source"]) == (2, None, "other")
    assert found["GATA3", "Rest"]["score"] == pytest.approx((-1 - 0.5) / 2)
    assert found["STAT6", "Stim8hr"]["score"] == pytest.approx(-4)


def test_absent_genes_count_as_unchanged_where_the_table_lists_changed_ones(tmp_path):
    found = scores(open_external(settings(write(tmp_path), absent="zero")))
    assert found["STAT6", "Rest"]["score"] == pytest.approx((-1 - 2) / 3)
    assert found["STAT6", "Rest"]["n_genes"] == 3
    assert found["STAT6", "Rest"]["standard_error"] is None  # of the absent gene it is not known


def test_a_knockdown_that_lists_no_program_gene_scores_zero_or_nothing(tmp_path):
    other = pl.DataFrame([("X", "Rest", "ACTB", 1.0, 0.1, 0.5)], schema=LONG.schema, orient="row")
    path = write(tmp_path, pl.concat([LONG, other]))
    assert scores(open_external(settings(path, absent="zero")))["X", "Rest"]["score"] == 0
    assert scores(open_external(settings(path)))["X", "Rest"]["score"] is None


def test_natural_logarithms_are_converted(tmp_path):
    table = LONG.with_columns(pl.col("log_fc", "lfcSE") * np.log(2))
    natural = scores(open_external(settings(write(tmp_path, table, "ln.csv"), unit="ln")))
    for key, row in scores(open_external(settings(write(tmp_path)))).items():
        for column in ("score", "standard_error"):
            assert natural[key][column] == pytest.approx(row[column])


def test_columns_of_other_names_are_mapped(tmp_path):
    renamed = LONG.rename({"log_fc": "effect", "gene": "readout"})
    path = write(tmp_path, renamed)
    with pytest.raises(DataError, match="no column for the measured gene: none of gene, gene_name"):
        open_external(settings(path))
    columns = {"log2_fold_change": "effect", "gene": "readout"}
    assert scores(open_external(settings(path, columns=columns)))["STAT6", "Rest"]["n_genes"] == 2
    with pytest.raises(DataError, match=r"has no column 'effct' .*nearest: effect"):
        open_external(settings(path, columns=columns | {"log2_fold_change": "effct"}))


def h5ad(folder, **layers):
    """The long table as the study's h5ad: rows are knock-downs, layers statistics."""
    profiles = LONG.select(LONG.columns[:2]).unique(maintain_order=True)
    shape = (len(profiles), len(GENES))
    values = {name: np.full(shape, np.nan) for name in ("log_fc", "lfcSE", "adj_p_value")}
    for row in LONG.iter_rows():
        at = profiles.rows().index(row[:2]), GENES.index(row[2])
        for name, value in zip(values, row[3:], strict=True):
            values[name][at] = value
    obs = pd.DataFrame(profiles.to_dict(as_series=False), index=["a", "b", "c"])
    var = pd.DataFrame({"gene_name": GENES}, index=IDS)
    data = anndata.AnnData(obs=obs, var=var, layers=values | layers)
    path = folder / "DE_stats.h5ad"
    data.write_h5ad(path)
    return path


def test_layers_of_an_h5ad_say_the_same_as_the_long_table(tmp_path, monkeypatch):
    monkeypatch.setattr("knockscreen.score.external.ROWS_AT_ONCE", 2)
    opened = open_external(settings(h5ad(tmp_path)))
    assert opened.genes.rows() == list(zip(GENES, IDS, strict=True))
    for key, row in scores(open_external(settings(write(tmp_path)))).items():
        assert scores(opened)[key] == pytest.approx(row, nan_ok=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"log_fc": float("inf")}, "column 'log_fc' of .* is infinite in row 1"),
        ({"gene": "2-Sep"}, "dates in place of genes"),
        ({"target_contrast_gene_name": "1-Mar"}, "dates in place of genes"),
        ({"log_fc": "high"}, "holds 'high', which is no number"),
    ],
)
def test_bad_values_are_one_sentence(tmp_path, change, message):
    ((column, value),) = change.items()
    first = pl.int_range(pl.len()) == 0
    kind = pl.lit(value)
    changed = pl.when(first).then(kind.cast(pl.String)).otherwise(pl.col(column).cast(pl.String))
    path = write(tmp_path, LONG.with_columns(changed.alias(column)))
    with pytest.raises(DataError, match=message):
        open_external(settings(path))


def test_two_contrasts_are_never_merged(tmp_path):
    path = write(tmp_path, pl.concat([LONG, LONG.head(1)]))
    with pytest.raises(DataError, match="has STAT6, Rest, GATA3 more than once"):
        open_external(settings(path))


def test_wrong_conditions_files_and_layers_are_named(tmp_path):
    path = write(tmp_path)
    with pytest.raises(DataError, match="no condition 'Stim'; it has Rest, Stim8hr"):
        open_external(settings(path, contexts={"Stim": "time=Stim8hr"}))
    both = {"Rest": "time=Rest", "Stim8hr": "time=Rest"}
    with pytest.raises(DataError, match="two conditions of external table 'other' map to one"):
        open_external(settings(path, contexts=both))
    with pytest.raises(DataError, match=r"external table '.*none.csv' \(other\) does not exist"):
        open_external(settings(tmp_path / "none.csv"))
    infinite = h5ad(tmp_path, log_fc=np.full((3, 4), np.inf))
    with pytest.raises(DataError, match="infinite value"):
        scores(open_external(settings(infinite)))


def test_rankings_of_a_table_alone_are_measured_and_carry_its_name(tmp_path):
    opened = open_external(settings(write(tmp_path)))
    ranking = RankConfig(pool_over=[], interval=0.9, resamples=50, random_programs=0)
    _, ranked = rank_external(rank_external_scores(opened, programs(opened)), ranking, 1)
    rest = ranked.filter(context="Rest", direction="toward")
    assert rest["target_gene"].to_list() == ["GATA3", "STAT6"]
    assert ranked["evidence"].unique().to_list() == ["measured"]
    assert ranked["source"].unique().to_list() == ["other"]
    assert ranked["p_value"].null_count() == len(ranked)


PANEL = pl.DataFrame({"gene_id": ["ENSG1", "ENSG2", "ENSG3"], "gene": ["GATA3", "IL4", "IFNG"]})


def test_onto_a_run_genes_get_its_ids_and_others_are_left_out(tmp_path):
    path = write(tmp_path, LONG.with_columns(pl.col("gene").replace("IFNG", "ACTB")))
    matrix = program_matrix(PROGRAM, PANEL["gene_id"].to_list(), PANEL["gene"].to_list())
    table = settings(path, contexts={"Rest": "time=Rest"})
    paths = write_external([table], tmp_path, matrix, PANEL, ["time=Rest"], min_genes=1)
    effects, scored = (pl.read_parquet(p) for p in paths)
    assert effects["gene_id"].unique().sort().to_list() == ["ENSG1", "ENSG2"]
    assert effects["context"].unique().to_list() == ["time=Rest"]
    assert effects["target_gene_id"].unique().sort().to_list() == ["ENSG1", "STAT6"]
    own = scored.filter(target_gene="GATA3").row(0, named=True)
    assert (own["score"], own["n_genes"]) == (-1.0, 1)  # its own gene out, IFNG not measured
    wrong = settings(path, contexts={"Rest": "time=Stim"})
    with pytest.raises(DataError, match="maps to context 'time=Stim', which the run has not"):
        write_external([wrong], tmp_path, matrix, PANEL, ["time=Rest"], min_genes=1)
    none = PANEL.with_columns(pl.lit("ENSG0").alias("gene_id"), pl.lit("Z").alias("gene"))
    with pytest.raises(DataError, match="has no gene of the run in a mapped condition"):
        write_external([table], tmp_path, matrix, none.head(1), ["time=Rest"], min_genes=1)


def test_names_of_another_case_or_version_are_those_of_the_run(tmp_path):
    other = LONG.with_columns(
        pl.col("target_contrast_gene_name", "gene").str.to_lowercase(),
        gene_id=pl.col("gene").replace_strict(GENES, IDS) + ".7",
    )
    matrix = program_matrix(PROGRAM, PANEL["gene_id"].to_list(), PANEL["gene"].to_list())
    written = []
    for table, name in ((LONG, "a.csv"), (other, "b.csv"), (other.drop("gene_id"), "c.csv")):
        given = settings(write(tmp_path, table, name), contexts={"Rest": "time=Rest"})
        paths = write_external([given], tmp_path, matrix, PANEL, ["time=Rest"], min_genes=1)
        columns = ("context", "log2_fold_change", "gene_id"), ("program", "score", "n_genes")
        frames = zip(paths, columns, strict=True)
        written.append([pl.read_parquet(p).select(c).rows() for p, c in frames])
    assert len(written[0][0]) == 5
    assert [sorted(rows) for rows in written[1]] == [sorted(rows) for rows in written[0]]
    assert written[2] == written[1]


def test_a_gene_is_its_own_in_any_case_or_version_unless_two_could_be_meant():
    genes = pl.DataFrame(
        {"gene": ["GATA3", "Il4", "IL4"], "gene_id": ["ENSG1.4", "ENSG2", "ENSG3"]}
    )
    names = ["gata3", "ENSG1", "ensg1.9", "IL4", "Il4", "il4", "X", None]
    profiles = pl.DataFrame({"target_gene": names, "target_gene_id": ["?"] * len(names)})
    own = ["ENSG1.4"] * 3 + ["ENSG3", "ENSG2", None, None, None]
    assert own_genes(profiles, genes).to_list() == own


def test_no_table_gives_empty_files_with_all_columns(tmp_path):
    matrix = program_matrix(PROGRAM, PANEL["gene_id"].to_list(), PANEL["gene"].to_list())
    paths = write_external([], tmp_path, matrix, PANEL, ["time=Rest"], min_genes=1)
    effects, scored = (pl.read_parquet(p) for p in paths)
    assert (effects.height, scored.height) == (0, 0)
    assert {"source", "log2_fold_change_se"} <= set(effects.columns)


def test_values_of_one_gene_leave_its_own_knockdown_out(tmp_path):
    opened = open_external(settings(write(tmp_path)))
    score, sizes = external_values(opened, "Rest", gene="GATA3", programs=None)
    assert score.select("target_gene", "value").rows() == [("STAT6", -1.0)]
    assert external_values(opened, "Rest", gene="gata3", programs=None)[0].equals(score)
    counts = dict(sizes["n_de_genes"].select("target_gene", "value").iter_rows())
    assert counts == {"STAT6": 2, "GATA3": 0}  # adj_p_value < 0.1, its own gene not counted
    sizes = dict(sizes["effect_magnitude"].select("target_gene", "value").iter_rows())
    assert sizes["GATA3"] == pytest.approx(np.hypot(1, 0.5))
    with pytest.raises(DataError, match="measures no gene 'FOXP3'"):
        external_values(opened, "Rest", gene="FOXP3", programs=None)
    with pytest.raises(DataError, match="has no condition 'Stim48hr'; it has Rest, Stim8hr"):
        external_values(opened, "Stim48hr", gene="IL4", programs=None)
