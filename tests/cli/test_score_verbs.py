"""score, measure and rank as a user types them, on the hand-made screen."""

import json
import sys

import numpy as np
import polars as pl
import pytest

from fixtures.shards import candidates, write_control, write_shard, write_store
from knockscreen import cli


@pytest.fixture
def screen(tmp_path, monkeypatch):
    """A screen of three targets: shard, control, candidates, store with 120 cells, programs."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    write_shard(tmp_path / "screen" / "0.npz", [0, 1, 2], rng.normal(size=(2, 3, 2, 4)))
    write_control(tmp_path / "screen" / "control.npz")
    candidates().write_parquet("screen/candidates.parquet")
    target = np.tile([0, 1, 2, 3], 30)
    contexts = np.stack([np.repeat([0, 1], 60), np.zeros(120)], axis=1)
    write_store(tmp_path / "store", rng.poisson(3, size=(120, 4)), target, contexts)
    (tmp_path / "programs.tsv").write_text(
        "program\tgene\tweight\nTh2\tGATA3\t1\nTh2\tIL4\t1\nTh1\tIFNG\t1\nTh1\tTBX21\t1\nX\tNO\t1\n"
    )
    return tmp_path


def settings(*, names=(), **rank):
    return json.dumps(
        {
            "seed": 1,
            "programs": {"file": "programs.tsv", "names": list(names), "min_genes": 1},
            "measured": {"replicates": "auto"},
            "rank": {
                "pool_over": ["donor"], "interval": 0.9, "resamples": 50, "random_programs": 19,
                **rank,
            },
        }
    )  # fmt: skip


def knockscreen(monkeypatch, *arguments):
    """Run the command line; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["knockscreen", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code


def score(monkeypatch, **options):
    return knockscreen(
        monkeypatch, "score", "--shard", "screen/0.npz", "--control", "screen/control.npz",
        "--candidates", "screen/candidates.parquet", "--store", "store",
        "--effects", "score/effects/0.parquet", "--programs-out", "score/programs/0.parquet",
        "--settings", settings(**options),
    )  # fmt: skip


def measure(monkeypatch, *more, **options):
    return knockscreen(
        monkeypatch, "measure", "--store", "store", "--output-dir", "measured",
        "--settings", settings(**options), *more,
    )  # fmt: skip


def rank(monkeypatch, *more):
    return knockscreen(
        monkeypatch, "rank", "--programs-dir", "score/programs",
        "--candidates", "screen/candidates.parquet", "--store", "store", "--output-dir", "rank",
        "--settings", settings(), *more,
    )  # fmt: skip


def test_shards_and_cells_become_rankings(screen, monkeypatch):
    assert score(monkeypatch) == 0
    assert measure(monkeypatch) == 0
    assert rank(monkeypatch, "--measured", "measured/programs.parquet") == 0
    rankings = pl.read_parquet("rank/rankings.parquet")
    groups = rankings.group_by("program", "context", "direction", "evidence").len()
    assert rankings["program"].unique().sort().to_list() == ["Th1", "Th2"]
    assert len(rankings) == 2 * 3 * 2 * (3 + 3)  # programs, contexts, directions, both evidences
    assert groups.filter(evidence="measured")["len"].to_list() == [3] * 12
    effects = pl.read_parquet("score/effects/0.parquet")
    measured = pl.read_parquet("measured/effects.parquet")
    assert effects["context"].n_unique() == measured["context"].n_unique() == 3
    for output in ("rank/rankings", "score/effects/0", "measured/ceiling"):
        manifest = json.loads((screen / f"{output}.parquet.manifest.json").read_text())
        assert manifest["settings"]["rank"]["pool_over"] == ["donor"]


def test_programs_left_out_are_listed(screen, monkeypatch, caplog):
    assert score(monkeypatch) == 0
    assert "program X is left out: 0 of its 1 genes are on the panel" in caplog.text


def test_predicted_alone_can_be_ranked(screen, monkeypatch):
    assert score(monkeypatch) == 0
    assert rank(monkeypatch) == 0
    assert "measured" not in pl.read_parquet("rank/rankings.parquet")["evidence"]


def refused(capsys, sentence):
    text = capsys.readouterr().err
    assert sentence in text
    assert text.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"names": ["Th3"]}, "unknown program 'Th3' in programs.names; nearest: Th2"),
        ({"names": ["X"]}, "program X has no gene on the panel (0 of 1 matched)"),
        ({"pool_over": ["doner"]}, "rank.pool_over names factor 'doner'"),
        ({"resample": 3}, "unknown key 'rank.resample' in the settings; nearest: resamples"),
    ],
)
def test_bad_settings_are_one_line_and_exit_code_2(screen, monkeypatch, capsys, options, sentence):
    for verb in (score, measure):
        assert verb(monkeypatch, **options) == 2
        refused(capsys, sentence)
    assert not list(screen.glob("score/*/*")) + list(screen.glob("measured/*"))


def test_missing_inputs_are_one_line_and_exit_code_2(screen, monkeypatch, capsys):
    assert rank(monkeypatch) == 2
    refused(capsys, "lacks the scores of shard 0 (1 of 1 missing); run score for them.")
    assert measure(monkeypatch, "--splits", "trian") == 2
    refused(capsys, "unknown split 'trian'; nearest: train")
    (screen / "screen" / "candidates.parquet").unlink()
    assert score(monkeypatch) == 2
    refused(capsys, "candidates.parquet does not exist; run plan first.")
    (screen / "store" / "store.json").unlink()
    assert measure(monkeypatch) == 2
    refused(capsys, "store.json does not exist; run the stage that writes it first.")
