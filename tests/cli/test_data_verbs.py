"""``knockscreen qc`` and ``normalize``: bad input is one line and exit code 2."""

import json
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from fixtures.small_screen import settings, small_screen, write
from knockscreen.cli import app, main


def command(monkeypatch, *words):
    """Run the command in this process; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["knockscreen", *map(str, words)])
    with pytest.raises(SystemExit) as leaving:
        main()
    return leaving.value.code


@pytest.fixture
def programs(tmp_path):
    table = tmp_path / "programs.tsv"
    table.write_text("program\tgene\tweight\nP\tSTAT1\t1\n")
    return table


def test_both_verbs_go_from_counts_to_a_store(tmp_path, monkeypatch, programs):
    path = write(small_screen(), tmp_path / "a.h5ad")
    text = json.dumps(settings(programs={"file": str(programs)}))
    qc = ["qc", "--input", path, "--settings", text, "--output-dir", tmp_path / "qc"]
    assert command(monkeypatch, *qc) == 0
    store = ["normalize", "--input", path, "--settings", text, "--qc-dir", tmp_path / "qc"]
    assert command(monkeypatch, *store, "--output-dir", tmp_path / "store") == 0
    assert pl.read_parquet(tmp_path / "qc" / "summary.parquet")["cells_after"][-1] == 30
    assert len(np.load(tmp_path / "store" / "target.npy", mmap_mode="r")) == 30


def test_the_files_may_stand_in_the_settings_and_a_folder_for_its_files(tmp_path, monkeypatch):
    path = write(small_screen(), tmp_path / "a.h5ad")
    text = json.dumps(settings(data={"files": [str(path)]}))
    assert command(monkeypatch, "qc", "-s", text, "-o", tmp_path / "x") == 0
    assert (
        command(
            monkeypatch, "qc", "-s", json.dumps(settings()), "-i", tmp_path, "-o", tmp_path / "y"
        )
        == 0
    )
    assert pl.read_parquet(tmp_path / "x" / "cells.parquet").equals(
        pl.read_parquet(tmp_path / "y" / "cells.parquet")
    )


def logged(adata):
    adata.X = np.log1p(adata.X.toarray())
    return adata


BAD = {
    "log": (logged, {}, "looks log-transformed"),
    "duplicate": (lambda a: a[:, [0, 1, 2, 2]].copy(), {}, "gene symbols stand more than once"),
    "no target column": (
        lambda a: a,
        {"data": {"columns": {"target_gene": "targetgene"}}},
        "nearest: target_gene",
    ),
    "unknown key": (lambda a: a, {"qc": {"min_count": 3}}, "unknown key 'qc.min_count'"),
    "controls": (
        lambda a: a,
        {"data": {"control_labels": ["NTC"]}, "qc": {"min_control_cells": 99}},
        "99",
    ),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, case):
    change, changes, message = BAD[case]
    path = write(change(small_screen()), tmp_path / "a.h5ad")
    words = ["qc", "-i", path, "-s", json.dumps(settings(**changes)), "-o", tmp_path / "out" / "qc"]
    assert command(monkeypatch, *words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("knockscreen: ")
    assert message in lines[0]
    assert not list(tmp_path.glob("out/qc*"))
    assert not list(tmp_path.glob("out/.qc*"))


def test_a_program_file_that_is_missing_is_one_line(tmp_path, monkeypatch, capsys):
    path = write(small_screen(), tmp_path / "a.h5ad")
    text = json.dumps(settings(programs={"file": str(tmp_path / "none.tsv")}))
    assert command(monkeypatch, "qc", "-i", path, "-s", text, "-o", tmp_path / "qc") == 0
    words = [
        "normalize",
        "-i",
        path,
        "-s",
        text,
        "--qc-dir",
        tmp_path / "qc",
        "-o",
        tmp_path / "store",
    ]
    capsys.readouterr()
    assert command(monkeypatch, *words) == 2
    assert "none.tsv' does not exist" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_a_full_disk_leaves_the_earlier_tables(tmp_path, monkeypatch, capsys):
    path = write(small_screen(), tmp_path / "a.h5ad")
    words = ["qc", "-i", path, "-s", json.dumps(settings()), "-o", tmp_path / "qc"]
    assert command(monkeypatch, *words) == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "qc").iterdir()}

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pl.LazyFrame, "sink_parquet", full)
    capsys.readouterr()
    assert command(monkeypatch, *words) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in (tmp_path / "qc").iterdir()} == before


@pytest.mark.parametrize("verb", ["qc", "normalize"])
def test_help_names_the_options_without_heavy_imports(verb):
    code = (
        "import sys; from knockscreen.cli import app\n"
        f"try: app(['{verb}', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'anndata', 'scanpy', 'torch', 'polars', 'h5py', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--settings" in done.stdout
    assert "--output-dir" in done.stdout


def test_the_command_line_itself_needs_no_configuration_and_no_data():
    code = (
        "import sys, knockscreen.cli\n"
        "heavy = {'pydantic', 'yaml', 'numpy', 'polars', 'duckdb', 'torch'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_verbs_are_registered():
    assert {"qc", "normalize"} <= {command.name for command in app.registered_commands}
