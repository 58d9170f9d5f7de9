"""The simulated screen: its layout, its determinism, and that its truth is what its cells do."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from knockscreen.config import SimulateConfig
from knockscreen.errors import ConfigError, DataError
from knockscreen.simulate import catalogue, cells, network, screen, world, write_screen
from knockscreen.simulate.truth import program_effects, true_effects

ROOT = Path(__file__).parents[2]
STUDY_OBS = {
    *("lane_id", "n_genes_by_counts", "total_counts", "pct_counts_mt", "top_guide_UMI_counts"),
    *("guide_id", "perturbed_gene_name", "perturbed_gene_id", "guide_type", "PuroR"),
    *("guide_group", "low_quality"),
}


def settings(**changes: Any) -> SimulateConfig:
    values = {
        "enabled": True,
        "mode": "network",
        "seed": 3,
        "cells": 300,
        "genes": 150,
        "targets": 16,
        "guides_per_target": 2,
        "inactive_guides": 0.2,
        "control_cells": 0.3,
        "donors": ["D1", "D2"],
        "times": ["Rest", "Stim8hr"],
        "library_size": 800,
        "baseline": None,
        "effects": None,
    }
    return SimulateConfig(**{**values, **changes})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("screen")
    write_screen(settings(), folder)
    return folder


@pytest.fixture(scope="module")
def full() -> world.World:
    return world.build_world(settings(genes=800, targets=60))


def matrix(path: Path) -> np.ndarray:
    return ad.read_h5ad(path).X.toarray()


# ------------------------------------------------------------------------------------------- layout


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


# ------------------------------------------------------------------------------------------ network


def test_a_chain_of_regulators_multiplies_along_the_way() -> None:
    edges = np.zeros((2, 3))
    edges[0, 1], edges[1, 2] = 0.5, 0.4
    net = network.Network(drivers=np.array([0, 1]), edges=edges, spectral_radius=0.0)
    np.testing.assert_allclose(network.response(net, np.ones(2)), [[1, 0.5, 0.2], [0, 1, 0.4]])


def test_a_knock_down_is_held_against_feedback() -> None:
    edges = np.array([[0.0, 0.5], [-0.8, 0.0]])  # 0 raises 1, 1 lowers 0
    net = network.Network(drivers=np.array([0, 1]), edges=edges, spectral_radius=0.0)
    np.testing.assert_allclose(network.response(net, np.ones(2)), [[1, 0.5], [-0.8, 1]])


def test_the_response_is_the_limit_of_spreading_step_by_step() -> None:
    rng = np.random.default_rng(1)
    genes = catalogue.first_genes(150, rng)
    activity = network.activities(genes, [("D1", "Stim8hr")], rng)
    net = network.build(genes, activity, rng)
    edges = net.edges * activity[0][:, None]
    held = net.drivers[4]
    x = np.zeros(150)
    for _ in range(200):
        x = x[net.drivers] @ edges
        x[held] = 1.0
    np.testing.assert_allclose(network.response(net, activity[0])[4], x, atol=1e-8)


def test_regulation_among_regulators_dies_out() -> None:
    rng = np.random.default_rng(1)
    genes = catalogue.first_genes(800, rng)
    activity = network.activities(genes, [("D1", "Rest"), ("D1", "Stim8hr"), ("D1", "new")], rng)
    net = network.build(genes, activity, rng)
    radii = [network.spectral_radius(net.edges[:, net.drivers] * a[:, None]) for a in activity]
    assert max(radii) == pytest.approx(net.spectral_radius)
    assert 0 < max(radii) < 0.8


def test_programs_of_the_configuration_are_those_that_the_network_moves() -> None:
    table = pl.read_csv(ROOT / "config/programs.tsv", separator="\t")
    configured = {(p, g, w) for p, g, w in table.select("program", "gene", "weight").iter_rows()}
    simulated = {
        (program, gene, sign)
        for gene, cell in catalogue.catalogue().select("gene", "programs").iter_rows()
        for program, sign in catalogue.memberships(cell).items()
    }
    assert configured == simulated
    assert table["source"].null_count() == 0
    assert table.group_by("program").len()["len"].is_between(15, 40).all()


@pytest.mark.parametrize(
    ("target", "program", "sign"),
    [
        ("TBX21", "Th1", -1),
        ("GATA3", "Th2", -1),
        ("GATA3", "Th1", 1),
        ("RORC", "Th17", -1),
        ("FOXP3", "Treg", -1),
        ("STAT5B", "IL2_signalling", -1),
        ("ZAP70", "activation", -1),
        ("LAT", "TCR_signalling", -1),
        ("CBLB", "TCR_signalling", 1),
        ("BCL6", "Tfh", -1),
        ("STAT1", "IFN_gamma", -1),
        ("SOCS1", "IFN_gamma", 1),
        ("STAT2", "interferon", -1),
        ("CDKN1B", "proliferation", 1),
    ],
)
def test_known_regulators_move_their_program(
    full: world.World, target: str, program: str, sign: int
) -> None:
    row = program_effects(full).filter(
        pl.col("program") == program, pl.col("target_gene") == target, pl.col("time") == "Stim8hr"
    )
    assert row["sign"].item() == sign
    assert sign * row["effect"].item() > 0.15


def test_t_cell_receptor_signalling_does_little_at_rest(full: world.World) -> None:
    zap70 = program_effects(full).filter(
        pl.col("program") == "TCR_signalling", pl.col("target_gene") == "ZAP70"
    )
    rest, stimulated = (
        zap70.filter(pl.col("time") == t)["effect"].item() for t in ("Rest", "Stim8hr")
    )
    assert abs(rest) < 0.4 * abs(stimulated)


def test_master_regulators_are_screened_and_each_program_keeps_some_unscreened(
    full: world.World,
) -> None:
    screened = set(full.genes.gene[full.screened])
    assert set(world.ALWAYS) <= screened
    assert len(screened) == 60
    regulators = set(full.genes.gene[full.genes.where("regulator")])
    assert len(screened & regulators) == 45
    planted = catalogue.edges().filter(pl.col("kind") == "program")
    for (_,), rows in planted.group_by("acts_on"):
        assert set(rows["regulator"]) & screened
        assert set(rows["regulator"]) - screened


# --------------------------------------------------------------------------------------- the truth


def two_guide_world(target: str) -> tuple[world.World, SimulateConfig]:
    """A world with one average guide against ``target`` and one non-targeting guide."""
    chosen = settings(genes=200)
    here = world.build_world(chosen)
    index = int(np.flatnonzero(here.genes.gene == target)[0])
    guides = world.Guides(
        guide_id=np.array(["NTC-001", f"{target}-1"]),
        target=np.array([-1, index]),
        strength=np.array([0.0, world.MEAN_STRENGTH]),
        frequency=np.array([0.5, 0.5]),
    )
    return replace(here, guides=guides), chosen


def test_the_truth_is_what_happens_to_the_means() -> None:
    here, chosen = two_guide_world("ZAP70")
    context = cells.context_of(here, chosen, 2)  # D1, Stim8hr
    block = cells.sample_block(here, context, 8000, np.random.default_rng(0))
    alone = block.second < 0
    control, treated = (block.counts[alone & (block.guide == g)] for g in (0, 1))
    seen = control.mean(axis=0) > 0.05
    log_ratio = np.log(treated.mean(axis=0)[seen] / control.mean(axis=0)[seen])
    variance = sum(c.var(axis=0) / c.mean(axis=0) ** 2 / len(c) for c in (control, treated))[seen]

    def misfit(gene: str) -> float:
        index = np.flatnonzero(here.genes.gene == gene)
        truth = true_effects(here, index)[2, 0, seen] * np.log(2)
        return float(np.mean((log_ratio - truth) ** 2 / variance))

    assert misfit("ZAP70") < 1.5
    assert misfit("FOXP3") > 5


def test_control_cells_have_the_baseline_means() -> None:
    here, chosen = two_guide_world("ZAP70")
    context = cells.context_of(here, chosen, 0)
    block = cells.sample_block(here, context, 6000, np.random.default_rng(0))
    mean = block.counts[(block.guide <= 0) & (block.second < 0)].mean(axis=0)
    ordinary = here.genes.role != "mitochondrial"
    expected = here.baseline[0][ordinary] / here.baseline[0][ordinary].sum()
    assert np.abs(np.log(mean[ordinary] / mean[ordinary].sum() / expected)).max() < 0.25


def test_guide_strength_scales_the_effect_and_inactive_guides_do_nothing() -> None:
    here, chosen = two_guide_world("ZAP70")
    strength = np.array([0.0, 0.0])
    context = cells.context_of(here, chosen, 2)
    silent = replace(here, guides=replace(here.guides, strength=strength))
    assert not cells.knockdown(silent, context, np.array([0, 1, -1])).any()
    weak = replace(here, guides=replace(here.guides, strength=np.array([0.0, 0.5])))
    index = here.guides.target[1]
    change = cells.knockdown(weak, context, np.array([1]))[0]
    assert change[index] == pytest.approx(np.log(0.5))
    others = np.arange(len(here.genes)) != index
    row = np.flatnonzero(here.drivers == index)[0]
    expected = here.effect[2, row] * 0.5 / world.MEAN_STRENGTH
    np.testing.assert_allclose(change[others], expected[others], rtol=1e-5)


def test_in_control_cells_a_regulator_varies_with_what_it_regulates() -> None:
    here, chosen = two_guide_world("STAT1")
    context = cells.context_of(here, chosen, 2)
    block = cells.sample_block(here, context, 6000, np.random.default_rng(0))
    counts = block.counts[(block.guide == 0) & (block.second < 0)]
    logs = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
    regulator = int(here.guides.target[1])
    together = np.corrcoef(logs.T)[regulator]
    effect = true_effects(here, np.array([regulator]))[2, 0]
    moved = (np.abs(effect) > 0.3) & (np.arange(len(effect)) != regulator)
    assert moved.sum() >= 10
    aligned = together[moved] * -np.sign(effect[moved])
    chance = 1 / np.sqrt(len(counts) * moved.sum())  # standard error of the mean of no correlation
    assert aligned.mean() > 8 * chance


def test_the_truth_file_covers_every_gene_in_every_context(tiny: Path) -> None:
    truth = np.load(tiny / "truth.npz")
    assert truth["log2_fold_change"].shape == (4, 150, 150)
    assert truth["contexts"][0] == "donor=D1,time=Rest"
    assert truth["complete"]
    assert truth["screened"].sum() == 16
    np.testing.assert_allclose(truth["baseline"].sum(axis=1), 1, rtol=1e-5)
    own = truth["log2_fold_change"][:, np.arange(150), np.arange(150)]
    np.testing.assert_allclose(own, np.log2(1 - 0.825), rtol=1e-5)
    unscreened = ~truth["screened"] & (truth["role"] == "regulator")
    assert (np.abs(truth["log2_fold_change"][:, unscreened]) > 0.3).sum() > 1000


def test_in_null_mode_only_the_target_itself_goes_down() -> None:
    chosen = settings(mode="null")
    log2 = true_effects(world.build_world(chosen), np.arange(150))
    own = np.eye(150, dtype=bool)
    assert (log2[:, own] < -2).all()
    assert not log2[:, ~own].any()


def test_counts_look_like_cells(full: world.World) -> None:
    chosen = settings(genes=800, library_size=2500)
    context = cells.context_of(full, chosen, 1)
    block = cells.sample_block(full, context, 2000, np.random.default_rng(0))
    good = block.counts[~block.low_quality]
    assert 0.3 < (good == 0).mean() < 0.7
    assert np.median(good.sum(axis=1)) == pytest.approx(context.library, rel=0.15)
    mitochondrial = good[:, full.genes.where("mitochondrial")].sum(axis=1) / good.sum(axis=1)
    assert np.median(mitochondrial) == pytest.approx(world.MITOCHONDRIAL_SHARE, rel=0.2)
    assert 0.005 < (mitochondrial > 0.08).mean() < 0.05
    low = block.counts[block.low_quality].sum(axis=1)
    assert np.median(low) < 0.6 * context.library
    mean, variance = good.mean(axis=0), good.var(axis=0)
    assert (variance > mean)[mean > 0.5].mean() > 0.95


# ----------------------------------------------------------------------------------------- anchored


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


# ------------------------------------------------------------------------------------------- errors


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


def test_the_verb_reads_json_settings(tmp_path: Path) -> None:
    from knockscreen.cli import app

    text = json.dumps({"simulate": settings(cells=60, donors=["D1"]).model_dump()})
    result = CliRunner().invoke(
        app, ["simulate", "--output-dir", str(tmp_path), "--settings", text]
    )
    assert result.exit_code == 0, result.output
    assert len(list(tmp_path.glob("*.h5ad"))) == 2
