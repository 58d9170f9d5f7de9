"""The simulated screen's files: their layout, their determinism, and settings that contradict."""

import json
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
from typer.testing import CliRunner

from fixtures.simulated import settings
from knockscreen.errors import ConfigError
from knockscreen.simulate import catalogue, cells, screen, world, write_screen

STUDY_OBS = {
    *("lane_id", "n_genes_by_counts", "total_counts", "pct_counts_mt", "top_guide_UMI_counts"),
    *("guide_id", "perturbed_gene_name", "perturbed_gene_id", "guide_type", "PuroR"),
    *("guide_group", "low_quality"),
}


def matrix(path: Path) -> np.ndarray:
    return ad.read_h5ad(path).X.toarray()


def test_there_is_one_file_per_donor_and_culture_condition(tiny: Path) -> None:
    names = sorted(p.name for p in tiny.glob("*.h5ad"))
    assert names == [
        f"{d}_{t}.assigned_guide.h5ad" for d in ("D1", "D2") for t in ("Rest", "Stim8hr")
    ]
    assert sum(ad.read_h5ad(tiny / name).n_obs for name in names) == 300
    for name in [*names, "truth.npz", "regulators.tsv"]:
        assert json.loads((tiny / f"{name}.manifest.json").read_text())["seed"] == 3


def test_a_file_has_the_columns_of_the_study_and_says_that_it_is_simulated(tiny: Path) -> None:
    data = ad.read_h5ad(tiny / "D1_Stim8hr.assigned_guide.h5ad")
    assert set(data.obs) == STUDY_OBS | {"donor_id", "culture_condition"}
    assert set(data.var) == {"gene_ids", "feature_types", "genome", "gene_name", "mt"}
    assert list(data.var_names) == list(data.var["gene_ids"])
    assert data.var.loc["ENSG00000049768", "gene_name"] == "FOXP3"
    assert data.uns["simulated"]
    assert data.uns["simulation"]["mode"] == "network"
    assert set(data.obs["donor_id"]) == {"D1"}
    assert data.obs_names.is_unique


def test_x_is_raw_counts_that_agree_with_obs(tiny: Path) -> None:
    data = ad.read_h5ad(tiny / "D2_Rest.assigned_guide.h5ad")
    counts = data.X.toarray()
    assert (counts == np.round(counts)).all()
    assert (counts >= 0).all()
    assert data.X.has_canonical_format
    np.testing.assert_allclose(data.obs["total_counts"], counts.sum(axis=1))
    share = 100 * counts[:, data.var["mt"]].sum(axis=1) / np.maximum(counts.sum(axis=1), 1)
    np.testing.assert_allclose(data.obs["pct_counts_mt"], share, rtol=1e-5)


def test_guide_columns_agree_with_each_other(tiny: Path) -> None:
    obs = ad.concat([ad.read_h5ad(p) for p in sorted(tiny.glob("*.h5ad"))]).obs
    control = obs["guide_type"] == "non-targeting"
    assert (obs.loc[control, "perturbed_gene_name"] == "NTC").all()
    assert obs.loc[control, "guide_id"].str.startswith("NTC-").all()
    targeting = obs[obs["guide_type"] == "targeting"]
    assert (
        targeting["guide_id"].str.rsplit("-", n=1).str[0] == targeting["perturbed_gene_name"]
    ).all()
    several = obs["guide_group"] == "multi sgRNA"
    assert several.any()
    assert (obs.loc[several, "guide_id"] == "multi-guide").all()
    none = obs["guide_group"] == "no sgRNA"
    assert none.any()
    assert obs.loc[none, "guide_id"].isna().all()
    assert obs.loc[several | none, ["perturbed_gene_name", "guide_type"]].isna().all().all()
    assert (obs.loc[~none, "top_guide_UMI_counts"] >= 3).all()


def test_genes_beyond_the_catalogue_are_synthetic() -> None:
    known = catalogue.catalogue().height
    genes = catalogue.first_genes(known + 2, np.random.default_rng(0))
    assert list(genes.gene[-2:]) == ["SIM00001", "SIM00002"]
    assert len(set(genes.gene_id)) == known + 2


# -------------------------------------------------------------------------------------- determinism


def test_the_same_seed_gives_the_same_cells_and_another_seed_others(
    tiny: Path, tmp_path: Path
) -> None:
    name = "D1_Rest.assigned_guide.h5ad"
    write_screen(settings(), tmp_path / "again")
    write_screen(settings(seed=4), tmp_path / "other")
    again, before = ad.read_h5ad(tmp_path / "again" / name), ad.read_h5ad(tiny / name)
    np.testing.assert_array_equal(again.X.toarray(), before.X.toarray())
    assert again.obs.equals(before.obs)
    one, two = (dict(np.load(f / "truth.npz")) for f in (tiny, tmp_path / "again"))
    assert all(np.array_equal(one[k], two[k]) for k in one)
    other = matrix(tmp_path / "other" / name)
    assert other.shape != before.shape or (other != before.X.toarray()).any()


def test_cells_do_not_depend_on_how_much_is_written_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells, "BLOCK", 16)
    chosen = settings()
    here = world.build_world(chosen)
    screen.write_file(here, chosen, 0, 70, tmp_path / "one.h5ad", flush=1)
    screen.write_file(here, chosen, 0, 70, tmp_path / "many.h5ad", flush=3)
    one, many = ad.read_h5ad(tmp_path / "one.h5ad"), ad.read_h5ad(tmp_path / "many.h5ad")
    assert one.n_obs == 70
    assert (one.X != many.X).nnz == 0
    assert one.obs.equals(many.obs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": 500}, "targets is 500, but only"),
        ({"donors": ["D1", "D1"]}, "each once"),
        ({"times": []}, "at least one name"),
        ({"genes": 10}, "at least 60 genes"),
        ({"mode": "anchored"}, "simulate.baseline is not set"),
    ],
)
def test_contradictory_settings_are_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        world.build_world(settings(**changes))


def test_the_verb_reads_json_settings(tmp_path: Path) -> None:
    from knockscreen.cli import app

    text = json.dumps({"simulate": settings(cells=60, donors=["D1"]).model_dump()})
    result = CliRunner().invoke(
        app, ["simulate", "--output-dir", str(tmp_path), "--settings", text]
    )
    assert result.exit_code == 0, result.output
    assert len(list(tmp_path.glob("*.h5ad"))) == 2
