"""The verb ``sweep`` on a trained store, as a user types it."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fixtures.models import tiny_store
from knockscreen import cli
from knockscreen.names import SPLITS, Split

SETTINGS = {
    "seed": 3,
    "screen": {
        "candidates": "all", "contexts": "all", "draws": 6, "blocks": 3, "solver": "ab2",
        "steps": 3, "guidance": {"strategy": "joint", "context": 1.0, "perturbation": 3.0},
        "batch_size": 64, "shards": 1, "save_cells": False, "device": "cpu",
    },
    "evaluate": {
        "splits": "all", "min_cells": 2, "de_test": "welch", "neighbours": 2, "components": 3,
        "references": 300, "cells": 500, "resamples": 200,
    },
    "sweep": {
        "targets": 3, "cells": 20, "draws": 2, "solvers": ["euler", "ab2"], "evaluations": [2, 8],
        "tolerance": 0.1, "strategies": ["nested"], "context_weights": [1.0],
        "perturbation_weights": [1.0, 2.0], "resamples": 50,
    },
}  # fmt: skip


def sweep(models: Path, store: Path, output: Path, **changes) -> int:
    settings = {k: {**v, **changes.get(k, {})} if k != "seed" else v for k, v in SETTINGS.items()}
    files = [w for m in ("vae", "flow", "effect") for w in (f"--{m}", models / f"{m}.safetensors")]
    words = ["sweep", *files, "--store", store, "--output-dir", output]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sys, "argv", ["knockscreen", *map(str, words), "--settings", json.dumps(settings)]
        )
        with pytest.raises(SystemExit) as leaving:
            cli.main()
    return leaving.value.code or 0


def found(output: Path) -> tuple[pl.DataFrame, dict]:
    table = pl.read_parquet(output / "sweep.parquet")
    return (
        table.filter(pl.col("metric") != "seconds_per_cell"),
        json.loads((output / "chosen.json").read_text()),
    )


@pytest.fixture(scope="module")
def swept(trained, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("sweep")
    assert sweep(trained, trained / "store", output) == 0
    return output


def plant(trained: Path, folder: Path, splits: tuple[Split, ...]) -> Path:
    """Return a copy of the store with absurd counts in every cell of some splits."""
    shutil.copytree(trained / "store", folder)
    mine = np.isin(np.load(folder / "split.npy"), [SPLITS.index(s) for s in splits])
    assert mine.any()
    indptr, counts = np.load(folder / "indptr.npy"), np.load(folder / "counts.npy")
    for row in np.flatnonzero(mine):
        counts[indptr[row] : indptr[row + 1]] = 1 + np.arange(indptr[row + 1] - indptr[row]) * 500
    np.save(folder / "counts.npy", counts)
    return folder


@pytest.fixture(scope="module")
def held_out(trained, tmp_path_factory) -> Path:
    """The trained store with one target held out: its cells are of no other split."""
    folder = tmp_path_factory.mktemp("held") / "m"
    shutil.copytree(trained, folder)
    split, target = np.load(folder / "store/split.npy"), np.load(folder / "store/target.npy")
    split[target == 3] = SPLITS.index(Split.HELD_OUT_TARGET)
    np.save(folder / "store/split.npy", split)
    return folder


def test_choice_has_settings_of_the_screen_their_reason_and_what_judged(swept):
    table, chosen = found(swept)
    assert set(chosen["screen"]) == {"solver", "steps", "guidance"}
    assert chosen["screen"]["solver"] in {"euler", "ab2"}
    assert chosen["screen"]["guidance"] == {
        "strategy": "nested", "context": 1.0, "perturbation": 1.0,
    }  # fmt: skip
    assert "none of 1 other settings is clearly better" in chosen["reason"]["guidance"]
    assert chosen["judged_by"] == {"split": "validation", "knockdowns": 3, "cells": 17}
    assert table["value"].null_count() == 0
    assert set(table.filter(pl.col("part") == "guidance")["perturbation_weight"]) == {1.0, 2.0}
    for name in ("sweep.parquet", "chosen.json"):
        about = json.loads((swept / f"{name}.manifest.json").read_text())
        assert about["settings"]["sweep"] == SETTINGS["sweep"]


def test_garbage_in_test_cells_and_held_out_targets_changes_nothing(held_out, tmp_path):
    assert sweep(held_out, held_out / "store", tmp_path / "a") == 0
    unseen = (Split.TEST, Split.HELD_OUT_TARGET)
    poisoned = plant(held_out, tmp_path / "store", unseen)
    assert sweep(held_out, poisoned, tmp_path / "b") == 0
    (before, chosen), (after, still) = found(tmp_path / "a"), found(tmp_path / "b")
    assert after.equals(before)
    assert still == chosen


def test_garbage_in_validation_cells_is_seen(held_out, tmp_path):
    poisoned = plant(held_out, tmp_path / "store", (Split.VALIDATION,))
    assert sweep(held_out, held_out / "store", tmp_path / "a") == 0
    assert sweep(held_out, poisoned, tmp_path / "b") == 0
    before, after = found(tmp_path / "a")[0], found(tmp_path / "b")[0]
    solvers = pl.col("part") == "solver"
    assert after.filter(solvers).equals(before.filter(solvers))
    assert not after.filter(~solvers).equals(before.filter(~solvers))


def test_a_store_without_validation_cells_is_one_sentence(trained, tmp_path, capsys):
    store = tiny_store(tmp_path / "store")
    split = np.load(store / "split.npy")
    np.save(store / "split.npy", np.where(split == 1, 0, split))
    assert sweep(trained, store, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "has no knocked-down validation cells to choose by; raise splits.validation" in said
    assert sweep(trained, trained / "store", tmp_path / "out", evaluate={"min_cells": 99}) == 2
    assert "no knock-down in" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"solvers": ["rk5"]}, "key 'sweep.solvers.0' in the settings is 'rk5'"),
        ({"evaluations": [0]}, "key 'sweep.evaluations.0' in the settings is 0"),
        ({"perturbation_weights": [-1]}, "key 'sweep.perturbation_weights.0' in the settings is"),
        ({"draws": 1}, "key 'sweep.draws' in the settings is 1"),
    ],
)
def test_a_setting_out_of_range_is_one_sentence(trained, tmp_path, capsys, change, sentence):
    assert sweep(trained, trained / "store", tmp_path / "out", sweep=change) == 2
    assert sentence in capsys.readouterr().err
