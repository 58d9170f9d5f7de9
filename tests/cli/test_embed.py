"""``embed`` and ``generate`` as a user types them, on the models of a run of 200 cells."""

import json
import shutil
import sys

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from fixtures.models import CONTEXTS, GENE_IDS, GENES, tiny_store, train_models
from knockscreen import cli
from knockscreen.data.cells import CellStore

SCREEN = {
    "candidates": "all", "contexts": "all", "draws": 6, "blocks": 3, "solver": "ab2", "steps": 3,
    "guidance": {"strategy": "nested", "context": 1.0, "perturbation": 1.0}, "batch_size": 64,
    "shards": 1, "save_cells": False, "device": "cpu",
}  # fmt: skip
VAE = "results/tiny/vae/vae.safetensors"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with results/tiny/ as the workflow lays it out. Write to new names only."""
    folder = tmp_path_factory.mktemp("cells")
    threads = torch.get_num_threads()
    store = CellStore.open(tiny_store(folder / "store"))
    train_models(store, folder / "m")
    for name in ("vae", "flow", "effect"):
        (folder / "results/tiny" / name).mkdir(parents=True)
        for kind in ("safetensors", "json"):
            source = folder / f"m/{name}.{kind}"
            shutil.copy(source, folder / "results/tiny" / name / source.name)
    (folder / "results/tiny/screen").mkdir()
    planned = {"seed": 3, "settings": SCREEN}
    path = folder / "results/tiny/screen/plan.json.manifest.json"
    path.write_text(json.dumps(planned))
    var = pd.DataFrame({"gene_symbol": GENES, "ensembl_id": GENE_IDS}, index=GENES)
    counts = sparse.csr_matrix(store.dense(np.arange(200)))
    obs = pd.DataFrame(index=[f"c{i}" for i in range(200)])
    anndata.AnnData(counts, obs, var).write_h5ad(folder / "cells.h5ad")
    logged = counts.log1p()
    anndata.AnnData(logged, obs, var).write_h5ad(folder / "logged.h5ad")
    mouse = var.set_axis([f"m{g}" for g in GENES]).assign(gene_symbol="", ensembl_id="")
    anndata.AnnData(counts, obs, mouse).write_h5ad(folder / "mouse.h5ad")
    yield folder
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _inside(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def command(*words) -> int:
    """Run a verb in this process; return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["knockscreen", *map(str, words)])
        with pytest.raises(SystemExit) as leaving:
            cli.main()
    return leaving.value.code or 0


def test_embed_adds_latents_and_says_what_they_are(place, caplog):
    with caplog.at_level("INFO"):
        assert command("embed", "cells.h5ad", "--vae", VAE, "-o", "out/cells.h5ad") == 0
    assert "12 of the 12 genes" in caplog.text
    cells = anndata.read_h5ad(place / "out/cells.h5ad")
    assert cells.obsm["X_knockscreen"].shape == (200, 64)
    about = cells.uns["X_knockscreen"]
    assert (about["latent_tokens"], about["latent_dim"], about["genes_by_id"]) == (8, 8, 12)
    manifest = json.loads((place / "out/cells.h5ad.manifest.json").read_text())
    assert set(manifest["inputs"]) == {"cells.h5ad", VAE}


def test_generate_takes_models_and_settings_of_the_only_run(place):
    words = ["--perturbation", "g5", "--context", CONTEXTS[1], "--draws", 7, "--out", "g5.h5ad"]
    assert command("generate", *words) == 0
    cells = anndata.read_h5ad(place / "g5.h5ad")
    assert cells.shape == (7, 12)
    assert (cells.uns["knockscreen"]["seed"], cells.uns["knockscreen"]["steps"]) == (3, 3)
    manifest = json.loads((place / "g5.h5ad.manifest.json").read_text())
    assert manifest["settings"]["perturbation"] == ["g5"]
    assert set(manifest["inputs"]) == {
        f"results/tiny/{name}/{name}.safetensors" for name in ("vae", "flow", "effect")
    }


def test_several_knockdowns_in_every_context_are_one_file(place):
    words = ["-p", "measured", "-p", "non-targeting", "--draws", 3, "--seed", 8, "-o", "all.h5ad"]
    assert command("generate", *words) == 0
    cells = anndata.read_h5ad(place / "all.h5ad")
    table = cells.obs.groupby(["target_gene", "context"], observed=True).size()
    assert len(table) == 5 * 2
    assert set(table) == {3}
    assert cells.uns["knockscreen"]["seed"] == 8


def test_generated_cells_can_be_embedded(place):
    words = ["--perturbation", "G1", "--context", "donor=D1", "--draws", 4, "--out", "g1.h5ad"]
    assert command("generate", *words) == 0
    assert command("embed", "g1.h5ad", "--vae", VAE, "-o", "g1-embedded.h5ad") == 0
    assert anndata.read_h5ad(place / "g1-embedded.h5ad").obsm["X_knockscreen"].shape == (4, 64)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["embed", "none.h5ad", "--vae", VAE], "counts file none.h5ad does not exist"),
        (["embed", "cells.h5ad", "--vae", "no.safetensors"], "no.safetensors does not exist"),
        (["embed", "cells.h5ad", "--vae", VAE, "--layer", "raw"], "name the raw counts in --layer"),
        (
            ["embed", "cells.h5ad", "--vae", VAE, "--gene-id", "gene_idd"],
            "var column 'gene_idd' not found in cells.h5ad",
        ),
        (["embed", "logged.h5ad", "--vae", VAE], "has non-integer values, e.g. "),
        (["embed", "mouse.h5ad", "--vae", VAE], "mouse.h5ad has none of the 12 genes that"),
        (["generate", "-p", "G77"], "unknown target 'G77'; nearest: G"),
        (["generate", "-p", "G1", "--context", "donor=D7"], "unknown donor 'D7' in context"),
        (["generate", "-p", "G1", "--run", "tony"], "no run 'tony' under results/; nearest: tiny"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(place, capsys, words, sentence):
    assert command(*words, "-o", "bad/x.h5ad") == 2
    text = capsys.readouterr().err
    assert sentence in text
    assert text.count("\n") == 1
    assert not list(place.glob("bad/*"))


def test_embed_does_not_overwrite_its_input(capsys):
    assert command("embed", "cells.h5ad", "--vae", VAE, "-o", "cells.h5ad") == 2
    assert "--output cells.h5ad is the input itself" in capsys.readouterr().err


def test_generate_says_what_is_missing(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command("generate", "-p", "G1", "-o", "x.h5ad") == 2
    assert "no run under results/ has a trained flow" in capsys.readouterr().err
    for name in ("one", "two"):
        shutil.copytree(place / "results/tiny", f"results/{name}")
    assert command("generate", "-p", "G1", "-o", "x.h5ad") == 2
    assert "several runs under results/: one, two; choose" in capsys.readouterr().err
    (tmp_path / "results/one/screen/plan.json.manifest.json").unlink()
    assert command("generate", "-p", "G1", "-o", "x.h5ad", "--run", "one") == 2
    assert "so nothing says how to generate; run 'knockscreen plan'" in capsys.readouterr().err
