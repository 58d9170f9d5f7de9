"""From a store of 200 cells to rankings, as a user types it: train, plan, generate."""

import json
import sys

import anndata
import numpy as np
import polars as pl
import pytest
import torch

from fixtures.models import CONTEXTS, GENE_IDS, tiny_store
from knockscreen import cli

TRAINING = {
    "steps": 6, "batch_size": 32, "learning_rate": 0.01, "warmup": 0.1, "weight_decay": 0.01,
    "betas": [0.9, 0.99], "clip": 1.0, "ema_decay": 0.5, "validate_every": 3, "patience": 5,
    "precision": "float32", "workers": 1,
}  # fmt: skip
SETTINGS = {
    "seed": 3,
    "programs": {"file": "programs.tsv", "names": [], "min_genes": 1},
    "effect": {
        "model": "low_rank", "rank": 2, "keep_cells": 300, "features": "coexpression",
        "feature_dims": 4,
    },
    "vae": {
        "size": "tiny", "input": "softbin", "dispersion": "shared", "library": "all",
        "kl_weight": 0.0, "thinning": 0.0, "linear": 8, "init_from": None, "training": TRAINING,
    },
    "flow": {
        "size": "tiny", "condition_dropout": 0.1, "target_dropout": 0.1, "gaussian": True,
        "compile": "auto", "init_from": None,
        "training": TRAINING,
    },
    "screen": {
        "candidates": "all", "contexts": "all", "draws": 6, "blocks": 3, "solver": "ab2",
        "steps": 3, "guidance": {"strategy": "nested", "context": 1.0, "perturbation": 1.0},
        "batch_size": 64, "shards": 1, "save_cells": False, "device": "cpu",
    },
    "rank": {"pool_over": ["donor"], "interval": 0.9, "resamples": 20, "random_programs": 20},
}  # fmt: skip
MODELS = ["--effect", "m/effect.safetensors", "--vae", "m/vae.safetensors"]
MODELS += ["--flow", "m/flow.safetensors"]


def settings(**changes) -> str:
    """The settings with some keys of some sections changed."""
    merged = {
        key: {**value, **changes.get(key, {})} if isinstance(value, dict) else value
        for key, value in SETTINGS.items()
    }
    return json.dumps(merged)


def command(*words, **changes) -> int:
    """Run a verb in this process; return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sys, "argv", ["knockscreen", *map(str, words), "--settings", settings(**changes)]
        )
        with pytest.raises(SystemExit) as leaving:
            cli.main()
    return leaving.value.code or 0


def train(folder="m", **changes) -> list[int]:
    """Run the four training verbs into a folder; return their exit codes."""
    given = ["--store", "store", "--effect", f"{folder}/effect.safetensors", "-o", folder]
    resume = ["--resume-dir", f"{folder}/resume"]
    return [
        command("fit-effects", "--store", "store", "-o", folder, **changes),
        command("train-vae", *given, *resume, **changes),
        command("encode", *given, "--vae", f"{folder}/vae.safetensors", **changes),
        command("train-flow", *given, "--latents", folder, **changes),
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with a store, programs, and models trained by the verbs. Write to new names only."""
    folder = tmp_path_factory.mktemp("verbs")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("OMP_NUM_THREADS", "1")
        tiny_store(folder / "store")
        (folder / "programs.tsv").write_text(
            "program\tgene\tweight\nA\tG5\t1\nA\tG6\t-1\nB\tG0\t1\nB\tG7\t1\n"
        )
        assert train() == [0, 0, 0, 0]
        yield folder
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _inside(run, monkeypatch):
    monkeypatch.chdir(run)


def read_arrays(path: str) -> dict[str, np.ndarray]:
    """Return the arrays of a shard, its file closed: left open, it would warn in a later test."""
    with np.load(path) as file:
        return dict(file)


def screen(folder: str, **changes) -> pl.DataFrame:
    """Plan, generate every shard, score and rank; return the rankings."""
    files = ["--plan", f"{folder}/plan.json"]
    assert command("plan", "--store", "store", *MODELS, "-o", folder, screen=changes) == 0
    control = f"{folder}/control.npz"
    verb = ["generate-control", "--store", "store", *MODELS, *files]
    assert command(*verb, "--output", control, screen=changes) == 0
    files += ["--candidates", f"{folder}/candidates.parquet", "--control", control]
    for shard in range(changes.get("shards", 1)):
        output = f"{folder}/shards/{shard}.npz"
        verb = ["generate-shard", *SCREEN, *files, "--shard", shard, "--output", output]
        assert command(*verb, screen=changes) == 0
        verb = ["score", "--shard", output, "--store", "store", *files[2:]]
        verb += ["--effects", f"{folder}/effects/{shard}.parquet"]
        assert command(*verb, "--programs-out", f"{folder}/programs/{shard}.parquet") == 0
    verb = ["rank", "--programs-dir", f"{folder}/programs", "--store", "store", *files[2:4]]
    assert command(*verb, "--output-dir", f"{folder}/rank") == 0
    return pl.read_parquet(f"{folder}/rank/rankings.parquet")


def test_genes_that_a_feature_table_lacks_are_counted_and_named(run, caplog):
    (run / "some.tsv").write_text(
        "gene\tx\ty\n" + "".join(f"G{k}\t{k}\t{k % 3}\n" for k in range(9))
    )
    given = {"effect": {"features": "some.tsv"}}
    with caplog.at_level("INFO"):
        assert command("fit-effects", "--store", "store", "-o", "some", **given) == 0
    assert "3 of 12 panel genes have no features" in caplog.text
    assert "trained: G9, G10, G11" in caplog.text
    notes = json.loads((run / "some/effect.safetensors.manifest.json").read_text())["notes"]
    assert notes["genes_without_features"] == 3


def test_a_wrong_feature_table_is_one_line_and_writes_nothing(run, capsys):
    (run / "wrong.tsv").write_text("gene\tx\nENSG01.2\t1\n")
    given = {"effect": {"features": "wrong.tsv"}}
    assert command("fit-effects", "--store", "store", "-o", "wrong", **given) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "take the version off the ids" in said
    assert not (run / "wrong").exists()


def test_models_are_written_with_their_cards_losses_and_manifests(run):
    for name in ("effect", "vae", "flow"):
        manifest = json.loads((run / f"m/{name}.safetensors.manifest.json").read_text())
        assert (run / f"m/{name}.json").is_file()
        assert manifest["inputs"].keys() >= {"store/store.json"}
        assert manifest["stage"] == ("fit_effects" if name == "effect" else f"train_{name}")
    losses = pl.read_parquet("m/loss.parquet")
    assert losses["step"].to_list() == [3, 3, 6, 6]
    assert set(losses["split"]) == {"train", "validation"}
    latents = np.load("m/latents.npy")
    assert latents.shape == (200, 9, 8)
    assert latents.dtype == np.float32


def test_training_again_gives_the_same_files(run):
    assert train("again") == [0, 0, 0, 0]
    for name in ("vae.safetensors", "latents.npy", "flow.safetensors"):
        assert (run / "again" / name).read_bytes() == (run / "m" / name).read_bytes(), name


def test_training_that_was_finished_is_taken_up_not_repeated(run, caplog):
    store = ["--store", "store", "--effect", "m/effect.safetensors"]
    with caplog.at_level("INFO"):
        verb = ["train-vae", *store, "-o", "taken", "--resume-dir", "m/resume"]
        assert command(*verb) == 0
    assert "resumed at step 6" in caplog.text
    assert (run / "taken/vae.safetensors").read_bytes() == (run / "m/vae.safetensors").read_bytes()


def test_training_can_start_from_another_checkpoint(run, caplog):
    store = ["--store", "store", "--effect", "m/effect.safetensors"]
    with caplog.at_level("INFO"):
        vae = {"init_from": str(run / "m/vae.safetensors")}
        assert command("train-vae", *store, "-o", "warm", vae=vae) == 0
        flow = {"init_from": str(run / "m/flow.safetensors")}
        verb = ["train-flow", *store, "--latents", "m", "-o", "warm"]
        assert command(*verb, flow=flow) == 0
    assert "12 of 12 genes found in" in caplog.text
    assert "5 of 5 targets and 3 context levels found in" in caplog.text


@pytest.fixture(scope="module")
def rankings(run) -> pl.DataFrame:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(run)
        return screen("one")


def test_every_candidate_is_ranked_in_every_context(run, rankings):
    candidates = pl.read_parquet("one/candidates.parquet")
    screened = candidates.filter(status="screened")
    assert screened["target_gene"].to_list() == [*[f"G{k}" for k in range(12)], "OFF"]
    assert candidates.filter(pl.col("status") != "screened")["status"].to_list() == [
        "not_expressed",
        "filtered",
    ]
    plan = json.loads((run / "one/plan.json").read_text())
    assert plan["contexts"] == CONTEXTS
    assert plan["cells"] == 14 * 2 * 6
    groups = rankings.group_by("program", "context", "direction").len()
    assert len(groups) == 2 * 3 * 2
    assert set(groups["len"]) == {13}


def test_planted_effects_lead_their_programs(rankings):
    # G0 takes G5 down and G1 brings G6 up: the two farthest from program A, G5 minus G6.
    away = rankings.filter(program="A", direction="away", context="time=Rest").sort("rank")
    assert set(away["target_gene"][:3]) >= {"G0", "G1"}


def test_shards_and_batches_do_not_change_the_rankings(rankings):
    key = ["program", "context", "direction", "rank"]
    for other in (
        screen("seven", shards=7, batch_size=16),
        screen("sixteen", batch_size=16),
    ):
        ours, theirs = rankings.sort(key), other.sort(key)
        named = [*key, "target_gene_id", "evidence", "n_genes"]
        assert ours.select(named).equals(theirs.select(named))
        np.testing.assert_allclose(theirs["score"], ours["score"], atol=1e-5)


def test_draws_stop_at_a_tolerance_and_are_ranked(run, rankings, caplog, capsys):
    tolerance = {"tolerance": 1e6}
    files = [*PLANNED, "--control", "one/control.npz", "--shard", 0, "--output", "t/shards/0.npz"]
    verb = ["generate-shard", *SCREEN, *files]
    refused(capsys, verb, "so generate-shard needs the weights of the programs", screen=tolerance)
    weights = ["program-weights", "--store", "store", "--output", "t/weights.npz"]
    assert command(*weights) == 0
    assert command(*verb, "--weights", "t/weights.npz", screen=tolerance) == 0
    shard = read_arrays("t/shards/0.npz")
    assert set(shard["n_draws"].tolist()) == {4}
    assert np.isnan(shard["block_delta"][2]).all()
    verb = ["score", "--shard", "t/shards/0.npz", "--store", "store", *files[2:6]]
    verb += ["--effects", "t/effects/0.parquet", "--programs-out", "t/programs/0.parquet"]
    assert command(*verb) == 0
    assert set(pl.read_parquet("t/programs/0.parquet")["n_draws"]) == {4}
    verb = ["rank", "--programs-dir", "t/programs", "--store", "store", *files[2:4]]
    assert command(*verb, "--output-dir", "t/rank") == 0
    stopped = pl.read_parquet("t/rank/rankings.parquet")
    assert len(stopped) == len(rankings)
    with caplog.at_level("INFO"):
        assert command("plan", "--store", "store", *MODELS, "-o", "t", screen=tolerance) == 0
    assert "cells: at most" in caplog.text


def test_shards_of_seven_are_the_rows_of_one(run, rankings):
    screen("parts", shards=7)
    whole = read_arrays("one/shards/0.npz")
    parts = [read_arrays(f"parts/shards/{k}.npz") for k in range(7)]
    assert np.concatenate([p["candidate"] for p in parts]).tolist() == list(range(13))
    joined = np.concatenate([p["delta_mean"] for p in parts])
    assert np.array_equal(joined, whole["delta_mean"])


def test_one_knockdown_becomes_cells(run):
    verb = ["generate", *MODELS, "--perturbation", "g5", "--context", CONTEXTS[1]]
    assert command(*verb, "--draws", 7, "--out", "g5.h5ad") == 0
    cells = anndata.read_h5ad(run / "g5.h5ad")
    assert cells.shape == (7, 12)
    assert list(cells.var_names) == GENE_IDS
    assert set(cells.obs["evidence"]) == {"predicted_unseen"}
    assert set(cells.obs["donor"]) == {"D2"}
    assert cells.obsm["z"].shape == (7, 72)
    assert cells.uns["knockscreen"]["generated"]
    counts = cells.X.toarray()
    assert (counts == counts.round()).all()
    assert not cells.obs["is_control"].any()


def test_cells_of_a_shard_can_be_kept(run):
    changes = {"shards": 13, "save_cells": True}
    assert command("plan", "--store", "store", *MODELS, "-o", "kept", screen=changes) == 0
    files = ["--plan", "kept/plan.json", "--candidates", "kept/candidates.parquet"]
    verb = ["generate-shard", *SCREEN, *files, "--control", "one/control.npz", "--shard", 2]
    assert command(*verb, "--output", "kept/2.npz", screen=changes) == 0
    cells = anndata.read_h5ad(run / "kept/2.h5ad")
    assert cells.n_obs == 2 * 6
    assert set(cells.obs["target_gene"]) == {"G2"}


def test_matched_cells_are_generated_for_the_test_cells(run):
    verb = ["generate-matched", "--store", "store", *MODELS, "--output", "matched.npz"]
    assert command(*verb) == 0
    with np.load("matched.npz") as file:
        assert file["counts"].shape == (len(file["rows"]), 12)
        assert (np.load("store/split.npy")[file["rows"]] == 2).all()


def refused(capsys, words, sentence, **changes):
    """A verb that fails with one sentence, exit code 2, and leaves nothing behind."""
    capsys.readouterr()
    assert command(*words, **changes) == 2
    text = capsys.readouterr().err
    assert sentence in text
    assert text.count("\n") == 1


TRAIN = ["--store", "store", "--effect", "m/effect.safetensors", "-o", "bad"]
SCREEN = ["--store", "store", *MODELS]
PLANNED = ["--plan", "one/plan.json", "--candidates", "one/candidates.parquet"]
SHARD = [*PLANNED, "--control", "one/control.npz", "--output", "bad/0.npz"]


@pytest.mark.usefixtures("rankings")
@pytest.mark.parametrize(
    ("words", "changes", "sentence"),
    [
        (["fit-effects", "--store", "none", "-o", "bad"], {}, "none is not a training store"),
        (
            ["fit-effects", "--store", "store", "-o", "bad"],
            {"effect": {"features": "none.tsv"}},
            "gene feature table none.tsv does not exist (effect.features)",
        ),
        (["train-vae", *TRAIN], {"vae": {"sise": "tiny"}}, "unknown key 'vae.sise'"),
        (
            ["train-vae", *TRAIN],
            {"vae": {"training": {**TRAINING, "learning_rate": 1e30, "clip": 1e30}}},
            "lower training.learning_rate (now 1e+30)",
        ),
        (
            ["train-vae", *TRAIN],
            {"vae": {"init_from": "none.safetensors"}},
            "checkpoint file none.safetensors does not exist; 'knockscreen train-vae' writes it",
        ),
        (
            ["train-vae", *TRAIN],
            {"vae": {"linear": 12}},
            "of the 8 dimensions that a latent token of vae.size 'tiny' has; set it to 8 or 16.",
        ),
        (["encode", *TRAIN, "--vae", "m/flow.safetensors"], {}, "is a 'flow' checkpoint"),
        (["train-flow", *TRAIN, "--latents", "none"], {}, "none/latents.npy does not exist; run"),
        (["plan", *SCREEN, "-o", "bad"], {"screen": {"candidates": "no.txt"}}, "'no.txt', which"),
        (
            ["plan", *SCREEN, "-o", "bad"],
            {"screen": {"contexts": ["time=Best"]}},
            "no cells in 'time=Best'",
        ),
        (
            ["generate-control", *SCREEN, "--plan", "none.json", "-o", "bad/c.npz"],
            {},
            "none.json does not exist",
        ),
        (
            ["generate", *MODELS, "--perturbation", "G77", "--context", CONTEXTS[0], "--out", "x"],
            {},
            "unknown target 'G77'; nearest: G",
        ),
        (
            ["generate", *MODELS, "--perturbation", "G1", "--context", "donor=D3", "--out", "x"],
            {},
            "unknown donor 'D3' in context 'donor=D3'; nearest: D2, D1",
        ),
        (
            ["generate-shard", *SCREEN, *SHARD, "--shard", 1],
            {},
            "--shard 1 is not in one/plan.json",
        ),
        (
            ["generate-shard", *SCREEN, *SHARD, "--shard", 0],
            {"screen": {"draws": 4}},
            "one/control.npz was generated for another plan",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run, capsys, words, changes, sentence):
    refused(capsys, words, sentence, **changes)
    assert not [p for p in run.glob("bad/*") if not p.name.startswith("resume")]
    assert not (run / "x").exists()


def test_checkpoint_of_another_panel_is_refused(run, tmp_path, capsys):
    store = tiny_store(tmp_path / "store")
    about = json.loads((store / "store.json").read_text())
    about["genes"][0], about["genes"][1] = about["genes"][1], about["genes"][0]
    (store / "store.json").write_text(json.dumps(about))
    words = ["encode", "--store", store, "--effect", "m/effect.safetensors", "-o", tmp_path]
    refused(
        capsys,
        [*words, "--vae", "m/vae.safetensors"],
        "trained on another gene list (12 entries, here 12): entry 1 is 'ENSG00' there",
    )
    words = ["train-vae", "--store", store, "--effect", "m/effect.safetensors", "-o", tmp_path]
    refused(capsys, words, "effect.safetensors was trained on another gene list")


def test_latents_of_another_store_are_refused(run, tmp_path, capsys):
    np.save(tmp_path / "latents.npy", np.zeros((7, 8, 8), dtype=np.float32))
    words = ["train-flow", *TRAIN, "--latents", tmp_path]
    refused(capsys, words, "latents.npy holds 7 cells, store 200; run encode again")
