"""The anchored simulation: a real baseline and real effects in the network's place."""

import json
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import polars as pl
import pytest

from fixtures.simulated import settings
from knockscreen.errors import ConfigError, DataError
from knockscreen.simulate import catalogue, world, write_screen
from knockscreen.simulate.truth import true_effects


@pytest.fixture
def anchor(tmp_path: Path) -> dict[str, str]:
    genes = catalogue.catalogue().head(120)
    pl.DataFrame(
        {
            "response_id": genes["gene_id"],
            "relative_expression": np.arange(1, 121) / 7260,
            "expression_size": np.full(120, 2.5),
        }
    ).write_csv(tmp_path / "baseline.csv")
    pl.DataFrame(
        {
            "target": ["FOXP3", "FOXP3", "GATA3", "GATA3", "NOT_A_GENE"],
            "gene": ["IL2RA", "FOXP3", "STAT6", "ALSO_NONE", "STAT6"],
            "log_fc": [-0.7, -1.2, 0.5, 1.0, 1.0],
        }
    ).write_csv(tmp_path / "effects.csv")
    return {"baseline": str(tmp_path / "baseline.csv"), "effects": str(tmp_path / "effects.csv")}


def anchored(anchor: dict[str, str], **changes: Any) -> world.World:
    return world.build_world(
        settings(mode="anchored", **{"genes": 100, "targets": 5, **anchor, **changes})
    )


def effect_of(here: world.World, target: str, gene: str) -> np.ndarray:
    index = {str(g): i for i, g in enumerate(here.genes.gene)}
    return true_effects(here, np.array([index[target]]))[:, 0, index[gene]] * np.log(2)


def test_anchored_effects_are_those_of_the_table_and_zero_elsewhere(anchor: dict[str, str]) -> None:
    here = anchored(anchor)
    np.testing.assert_allclose(effect_of(here, "FOXP3", "IL2RA"), -0.7, rtol=1e-6)
    np.testing.assert_allclose(effect_of(here, "FOXP3", "FOXP3"), -1.2, rtol=1e-6)
    np.testing.assert_allclose(effect_of(here, "GATA3", "STAT6"), 0.5, rtol=1e-6)
    assert np.count_nonzero(here.effect[0]) == 2
    assert {"FOXP3", "GATA3"} <= set(here.genes.gene[here.screened])
    assert len(here.screened) == 5
    np.testing.assert_allclose(here.size, 2.5)


def test_anchored_baseline_is_that_of_the_table_up_to_small_donor_differences(
    anchor: dict[str, str],
) -> None:
    here = anchored(anchor, genes=120)
    position = {i: k for k, i in enumerate(catalogue.catalogue().head(120)["gene_id"])}
    expected = np.array([position[i] + 1 for i in here.genes.gene_id]) / 7260
    ratio = here.baseline / expected
    assert np.abs(np.log(ratio)).max() < 0.5
    assert np.abs(np.log(ratio)).mean() == pytest.approx(0.1 * np.sqrt(2 / np.pi), rel=0.3)


def test_the_studys_table_is_read_by_condition_as_log2(
    anchor: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "edges.csv"
    pl.DataFrame(
        {
            "perturbed_gene": ["LCK", "LCK"],
            "condition": ["Stim8hr", "Stim48hr"],
            "measured_gene": ["IL2RA", "STAT1"],
            "log_fc": [-1.0, 2.0],
        }
    ).write_csv(path)
    here = anchored({**anchor, "effects": str(path)})
    change = effect_of(here, "LCK", "IL2RA") / np.log(2)
    np.testing.assert_allclose(change, [0, 0, -1, -1])  # D1, D2 at Rest, then at Stim8hr
    assert not effect_of(here, "LCK", "STAT1").any()


def test_a_baseline_can_be_control_cells(
    anchor: dict[str, str], tiny: Path, tmp_path: Path
) -> None:
    source = tiny / "D1_Rest.assigned_guide.h5ad"
    data = ad.read_h5ad(source)
    here = anchored({**anchor, "baseline": str(source)}, donors=["X"], genes=60)
    control = data[(data.obs["perturbed_gene_name"] == "NTC").to_numpy()].X.toarray().sum(axis=0)
    expected = dict(zip(data.var_names, control / control.sum(), strict=True))
    kept = np.array([expected[i] for i in here.genes.gene_id])
    ratio = here.baseline[0] / (kept / kept.sum())
    assert np.abs(np.log(ratio)).max() < 0.6


def test_an_anchored_screen_is_written_like_any_other(
    anchor: dict[str, str], tmp_path: Path
) -> None:
    chosen = settings(mode="anchored", genes=100, targets=5, **anchor)
    paths = write_screen(chosen, tmp_path / "out")
    assert sum(ad.read_h5ad(p).n_obs for p in paths) == 300
    assert ad.read_h5ad(paths[0]).uns["simulation"]["mode"] == "anchored"
    manifest = json.loads((tmp_path / "out/truth.npz.manifest.json").read_text())
    assert set(manifest["inputs"]) == set(anchor.values())


def test_bad_anchors_are_one_sentence(anchor: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"baseline .*none\.csv does not exist"):
        anchored({**anchor, "baseline": str(tmp_path / "none.csv")})
    table = pl.read_csv(anchor["effects"])
    misspelt = tmp_path / "misspelt.csv"
    table.rename({"log_fc": "logfc"}).write_csv(misspelt)
    with pytest.raises(DataError, match="no column 'log_fc'; nearest: logfc"):
        anchored({**anchor, "effects": str(misspelt)})
    foreign = tmp_path / "foreign.csv"
    table.with_columns(gene=pl.lit("Foxp3_mouse")).write_csv(foreign)
    with pytest.raises(DataError, match="are both in"):
        anchored({**anchor, "effects": str(foreign)})
    broken = tmp_path / "broken.h5ad"
    broken.write_bytes(b"not an h5ad")
    with pytest.raises(DataError, match="cannot be read as an h5ad"):
        anchored({**anchor, "baseline": str(broken)})
    with pytest.raises(ConfigError, match="only 120 expressed genes"):
        anchored(anchor, genes=121)
