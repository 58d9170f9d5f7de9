"""The simulated network: how regulation travels, and that known regulators move their programs."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from knockscreen.simulate import catalogue, network, world
from knockscreen.simulate.truth import program_effects

ROOT = Path(__file__).parents[2]


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
