"""`knockscreen plot`: the run's tables in, one file out; what is missing is named."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fixtures.tiny_run import make_tiny_run
from knockscreen.cli_plot import FIGURES, plot
from knockscreen.errors import ConfigError, DataError, UnknownNameError
from knockscreen.run_tables import RunTables

SVG = b"<?xml"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = make_tiny_run(tmp_path / "tiny")
    _write_qc(folder / "qc")
    for model in ("vae", "flow"):
        (folder / model).mkdir()
        table = {"step": [1, 2, 2], "split": ["train", "train", "validation"], "loss": [3.0, 2, 2]}
        pl.DataFrame(table, strict=False).write_parquet(folder / model / "loss.parquet")
    _write_cells(folder)
    return folder


def _write_qc(folder: Path) -> None:
    filters = ["multi_guide", "few_genes"]
    summary = {"step": [0, 1], "filter": filters, "setting": ["one guide", ">= 200 genes"],
               "cells_before": [9, 8], "cells_after": [8, 6]}  # fmt: skip
    pl.DataFrame(summary).write_parquet(folder / "summary.parquet")
    guides = {"log2_fold_change": [-1.0, None], "fdr": [0.001, None], "status": ["kept"] * 2}
    pl.DataFrame(guides).write_parquet(folder / "guides.parquet")
    cells = {"context": ["donor=D1,time=Rest"] * 9, "library_size": [900.0] * 9,
             "n_genes": [300] * 9, "status": ["kept"] * 6 + ["few_genes"] * 3}  # fmt: skip
    pl.DataFrame(cells, schema_overrides={"status": pl.Categorical}).write_parquet(
        folder / "cells.parquet"
    )


def _write_cells(folder: Path) -> None:
    """Forty cells of five genes, the last twenty held out, and twenty generated like them."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(3.0, size=(40, 5)) + 1
    arrays = {
        "indptr": np.arange(0, 201, 5), "indices": np.tile(np.arange(5, dtype=np.uint16), 40),
        "counts": counts.ravel().astype(np.uint16), "target": np.zeros(40, dtype=np.int32),
        "library_size": counts.sum(axis=1).astype(np.float32),
        "contexts": np.indices((2, 2)).reshape(2, 4).T.repeat(10, axis=0).astype(np.int16),
        "split": np.repeat([0, 2], 20).astype(np.int8),
    }  # fmt: skip
    for name, values in arrays.items():
        np.save(folder / "store" / f"{name}.npy", values)
    rows = np.arange(20, 40)
    np.savez(folder / "screen/matched.npz", counts=counts[rows].astype(np.int32), rows=rows)


def settings(run: Path, **report: object) -> str:
    shown = {"program": "Treg", "knockdown": None, "embedding": "pca", "top": 3, "cells": 10}
    programs = {"file": str(run / "programs.tsv"), "names": [], "min_genes": 1}
    rank = {"pool_over": ["donor"], "interval": 0.9, "resamples": 10, "random_programs": 20}
    return json.dumps({"report": shown | report, "programs": programs, "rank": rank})


def draw(run: Path, figure: str, name: str = "", **options: str | None) -> Path:
    output = run / "figures" / (name or f"{figure}.svg")
    plot(figure, run, output, settings(run), **options)
    return output


def add_regulators(run: Path) -> None:
    (run / "input").mkdir()
    (run / "input/regulators.tsv").write_text(
        "program\ttime\ttarget_gene\ttarget_gene_id\tsign\teffect\tplanted\tscreened\n"
        "Treg\tRest\tFOXP3\tENSG02\t-1\t-0.8\ttrue\ttrue\n"
        "Treg\tRest\tSTAT3\tENSG05\t1\t0.2\tfalse\ttrue\n"
    )


@pytest.mark.parametrize("figure", sorted(set(FIGURES) - {"sweep"}))  # not part of a run
def test_every_figure_is_drawn_from_a_run_with_its_manifest(run: Path, figure: str) -> None:
    output = draw(run, figure)
    assert output.read_bytes().startswith(SVG)
    manifest = json.loads(output.with_name(f"{figure}.svg.manifest.json").read_text())
    assert manifest["stage"] == "plot"
    assert manifest["inputs"]
    assert draw(run, figure, "again.svg").read_bytes() == output.read_bytes()


def test_output_ending_in_png_is_a_png(run: Path) -> None:
    assert draw(run, "ranking", "ranking.png").read_bytes().startswith(b"\x89PNG")


def test_another_ending_is_refused_before_anything_is_drawn(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"written as \.svg or \.png"):
        draw(run, "ranking", "ranking.pdf")
    assert not (run / "figures").exists()


def test_an_unknown_figure_names_the_nearest(run: Path) -> None:
    with pytest.raises(UnknownNameError, match="no figure 'rankings'; nearest: ranking"):
        draw(run, "rankings")


@pytest.mark.parametrize(
    ("figure", "table", "verb"),
    [
        ("qc", "qc/summary.parquet", "qc"),
        ("loss", "flow/loss.parquet", "train-flow"),
        ("cells", "screen/matched.npz", "generate-matched"),
        ("ranking", "rank/rankings.parquet", "rank"),
        ("heatmap", "rank/program_scores.parquet", "rank"),
        ("measured", "measured/programs.parquet", "measure"),
    ],
)
def test_a_missing_table_names_the_verb_that_writes_it(
    run: Path, figure: str, table: str, verb: str
) -> None:
    (run / table).unlink()
    with pytest.raises(DataError, match=f"{table} does not exist; 'knockscreen {verb}' writes it"):
        draw(run, figure)


def test_a_run_without_effect_shards_says_so(run: Path) -> None:
    for shard in (run / "score/effects").iterdir():
        shard.unlink()
    with pytest.raises(DataError, match="holds no Parquet shard; run 'knockscreen score' first"):
        draw(run, "volcano")


def test_a_missing_column_names_the_nearest(run: Path) -> None:
    path = run / "rank/rankings.parquet"
    pl.read_parquet(path).rename({"rank_low": "rank_lo"}).write_parquet(path)
    with pytest.raises(DataError, match=r"no column 'rank_low'; nearest: rank_lo\b"):
        draw(run, "ranking")


@pytest.mark.parametrize(
    ("figure", "options", "said"),
    [
        ("ranking", {"program": "Trag"}, "program 'Trag' has no scores .*; nearest: Treg"),
        ("ranking", {"context": "time=Stim"}, "context 'time=Stim' .*nearest: time=Stim8hr"),
        ("volcano", {"knockdown": "FOXP33"}, "'FOXP33' was not screened .*; nearest: FOXP3"),
    ],
)
def test_an_unknown_name_names_the_nearest(
    run: Path, figure: str, options: dict[str, str], said: str
) -> None:
    with pytest.raises(UnknownNameError, match=said):
        draw(run, figure, **options)


def test_the_context_shown_is_pooled_and_the_one_with_the_widest_scores(run: Path) -> None:
    assert RunTables(run).choose_context("Treg", None) == "time=Stim8hr"
    assert RunTables(run).choose_context("Treg", "time=Rest") == "time=Rest"


def test_program_context_and_knockdown_of_the_command_line_come_first(run: Path) -> None:
    default = draw(run, "volcano").read_bytes()
    assert draw(run, "volcano", "b.svg", knockdown="FOXP3").read_bytes() != default
    assert draw(run, "volcano", "c.svg", context="time=Rest").read_bytes() != default
    ranking = draw(run, "ranking").read_bytes()
    assert draw(run, "ranking", "d.svg", program="Th17").read_bytes() != ranking


def test_a_knockdown_is_found_by_symbol_and_by_id(run: Path) -> None:
    by_symbol = draw(run, "volcano", "a.svg", knockdown="RORC")
    by_id = draw(run, "volcano", "b.svg", knockdown="ENSG03")
    assert by_symbol.read_bytes() == by_id.read_bytes()


def test_measured_rows_do_not_enter_the_predicted_ranking(run: Path, tmp_path: Path) -> None:
    without = make_tiny_run(tmp_path / "unmeasured", measured=False)
    assert draw(run, "ranking").read_bytes() == draw(without, "ranking").read_bytes()
    assert draw(run, "heatmap").read_bytes() == draw(without, "heatmap").read_bytes()


def test_planted_regulators_are_those_the_simulator_planted_itself(run: Path) -> None:
    assert RunTables(run).planted is None
    add_regulators(run)
    assert RunTables(run).planted == {"Treg": {"FOXP3": -1}}


def test_a_real_run_has_no_planted_regulators(tmp_path: Path) -> None:
    real = make_tiny_run(tmp_path / "real", simulated=False)
    add_regulators(real)
    assert RunTables(real).planted is None


def test_a_failed_figure_leaves_the_old_file(run: Path) -> None:
    before = draw(run, "ranking").read_bytes()
    (run / "rank/rankings.parquet").unlink()
    with pytest.raises(DataError):
        draw(run, "ranking")
    assert (run / "figures/ranking.svg").read_bytes() == before


def test_an_unknown_setting_is_refused(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'report\.tops' .*nearest: top"):
        plot("ranking", run, run / "x.svg", settings(run, tops=3))
