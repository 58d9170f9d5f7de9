"""Starting from another checkpoint: rows are matched by name, the rest starts afresh."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fixtures.models import tiny_store, training
from knockscreen import checkpoint
from knockscreen.data.cells import CellStore, Vocabulary
from knockscreen.errors import CheckpointError, DataError
from knockscreen.models.vae import VAE_SIZES, Batch, TransformerVAE, VaeSettings
from knockscreen.models.velocity import FLOW_SIZES, VelocityNet, VelocitySettings
from knockscreen.score.baselines import read_features
from knockscreen.training.effect import load_effects
from knockscreen.training.transfer import FlowStart, read_vae, shared_rows
from knockscreen.training.vae import fit_vae, match_means, save_vae

OLD = Vocabulary(
    gene_ids=("ENSG1", "ENSG2", "ENSG3"),
    genes=("A", "B", "C"),
    factors=("donor", "time"),
    levels=(("D1", "D2"), ("Rest", "Stim8hr")),
    target_ids=("non-targeting", "ENSG1", "ENSG2"),
    targets=("non-targeting", "A", "B"),
)
NEW = replace(
    OLD,
    gene_ids=("ENSG9", "ENSG3", "ENSG1"),
    factors=("time", "donor"),
    levels=(("Stim8hr", "Stim48hr"), ("D2", "D7")),
    target_ids=("non-targeting", "ENSG2", "ENSG8"),
)
TINY = VaeSettings(VAE_SIZES["tiny"])


def save(path, kind, tensors):
    about = {"kind": kind, "vocabulary": checkpoint.describe_vocabulary(OLD), "settings": {}}
    checkpoint.save(path, tensors, about)
    return path


def net() -> VelocityNet:
    return VelocityNet(VelocitySettings(FLOW_SIZES["tiny"], 8, 4, (2, 2), 3))


@pytest.fixture
def old_vae(tmp_path):
    torch.manual_seed(1)
    model = TransformerVAE(3, TINY)
    return save(tmp_path / "vae.safetensors", "vae", dict(model.state_dict())), model


@pytest.fixture
def old_flow(tmp_path):
    torch.manual_seed(1)
    model = net()
    tensors = {f"net.{name}": value for name, value in model.state_dict().items()}
    return save(tmp_path / "flow.safetensors", "flow", tensors), model


def test_genes_are_matched_by_id(old_vae):
    path, old = old_vae
    torch.manual_seed(2)
    new = TransformerVAE(3, TINY)
    fresh = new.gene_table.weight.detach().clone()
    start = read_vae(path, NEW, TINY)
    start.apply(new)
    was, now = old.gene_table.weight, new.gene_table.weight
    assert torch.equal(now[0], was[0])  # all other genes
    assert torch.equal(now[1], fresh[1])  # ENSG9 is new
    assert torch.equal(now[2], was[3])  # ENSG3
    assert torch.equal(now[3], was[1])  # ENSG1
    assert torch.equal(new.pool.query.weight, old.pool.query.weight)
    assert start.report.startswith("2 of 3 genes found in ")
    tensors = len(new.state_dict())
    assert start.report.endswith(f"; {tensors - 2} of {tensors} tensors carried over whole")


def test_vae_without_a_gene_in_common_is_refused(old_vae):
    strangers = replace(OLD, gene_ids=("ENSG7", "ENSG8", "ENSG9"))
    sentence = (
        r"no gene in common with the panel: its first is 'ENSG1', .*'ENSG7'; set vae\.init_from"
    )
    with pytest.raises(CheckpointError, match=sentence):
        read_vae(old_vae[0], strangers, TINY)


def test_vae_of_another_size_is_refused(old_vae):
    with pytest.raises(CheckpointError, match=r"has width 32, this VAE 64; set vae\.size alike"):
        read_vae(old_vae[0], NEW, VaeSettings(VAE_SIZES["small"]))


def test_other_dispersion_starts_its_own_head(old_vae):
    path, old = old_vae
    new = TransformerVAE(3, replace(TINY, dispersion="cell"))
    read_vae(path, NEW, new.settings).apply(new)
    assert new.head.weight.shape != old.head.weight.shape
    assert torch.equal(new.pool.query.weight, old.pool.query.weight)


def test_targets_and_levels_are_matched_by_name_in_any_order_of_factors(old_flow):
    path, old = old_flow
    torch.manual_seed(2)
    new = net()
    fresh = {name: value.clone() for name, value in new.state_dict().items()}
    start = FlowStart(path, NEW, gaussian=False)
    start.apply(new)
    donor, time = old.factors[0].weight, old.factors[1].weight
    assert torch.equal(new.factors[0].weight[0], time[1])  # Stim8hr
    assert torch.equal(new.factors[0].weight[1], fresh["factors.0.weight"][1])  # Stim48hr
    assert torch.equal(new.factors[0].weight[2], time[2])  # the null
    assert torch.equal(new.factors[1].weight[0], donor[1])  # D2
    assert torch.equal(new.factors[1].weight[1], fresh["factors.1.weight"][1])  # D7
    assert torch.equal(new.target.weight[1], old.target.weight[2])  # ENSG2
    assert torch.equal(new.target.weight[2], fresh["target.weight"][2])  # ENSG8
    assert torch.equal(new.target.weight[3], old.target.weight[3])  # the null
    assert "2 of 3 targets and 2 context levels found in " in start.report


def test_factor_that_is_new_starts_afresh(old_flow):
    path, _ = old_flow
    new = net()
    fresh = new.factors[1].weight.detach().clone()
    other = replace(NEW, factors=("donor", "batch"), levels=(("D1", "D2"), ("1", "2")))
    FlowStart(path, other, gaussian=False).apply(new)
    assert torch.equal(new.factors[1].weight, fresh)


def test_flow_that_learned_another_part_of_the_velocity_is_refused(old_flow):
    sentence = r"flow\.safetensors was trained with flow.gaussian false, .*; set flow.gaussian to"
    with pytest.raises(CheckpointError, match=sentence):
        FlowStart(old_flow[0], NEW, gaussian=True)


def test_shared_rows_are_positions_in_both_lists():
    assert shared_rows(("b", "x", "a"), ("a", "b")) == ([0, 2], [1, 0])


def test_effects_of_an_earlier_version_are_one_sentence(trained, tmp_path):
    tensors, about = checkpoint.load(trained / "effect.safetensors", "effects")
    del about["feature_ids"]
    checkpoint.save(tmp_path / "effect.safetensors", tensors, about)
    sentence = (
        r"effect\.safetensors was fitted by an earlier version; run 'knockscreen fit-effects'"
    )
    with pytest.raises(CheckpointError, match=sentence):
        load_effects(tmp_path / "effect.safetensors")
    held = SimpleNamespace(gene_ids=tuple(about["vocabulary"]["gene_ids"]))
    with pytest.raises(DataError, match=sentence):
        read_features(tmp_path / "effect.safetensors", held)


def log_ratio(model: TransformerVAE, batch: Batch) -> torch.Tensor:
    """Log of decoded over observed mean counts of each gene."""
    with torch.no_grad():
        decoded = model.decode(model.encode(batch.counts)[0], batch.library_size, batch.offset)
    return (decoded.mu.sum(0) / batch.target.sum(0)).log()


@pytest.mark.parametrize("dispersion", ["shared", "cell"])
@pytest.mark.parametrize("library", ["all", "panel"])
def test_decoded_means_are_those_of_the_cells(library, dispersion):
    torch.manual_seed(1)
    model = TransformerVAE(6, replace(TINY, library=library, dispersion=dispersion))
    rates = torch.tensor([1.0, 3, 10, 30, 100, 300])
    counts = torch.poisson(rates.expand(200, 6))
    sizes = counts.sum(1) * (2 if library == "all" else 1)  # half of the counts are off the panel
    batch = Batch(counts, counts, sizes)
    assert log_ratio(model, batch).abs().max() > 1
    match_means(model, batch, rounds=3)
    assert log_ratio(model, batch).abs().max() < 0.02


def test_a_start_from_other_cells_begins_at_the_means_of_these(tmp_path):
    store = CellStore.open(tiny_store(tmp_path / "store"))
    torch.manual_seed(1)
    other = TransformerVAE(12, TINY)  # as if trained on cells of quite other means
    save_vae(tmp_path / "base.safetensors", other, store, {})
    start = read_vae(tmp_path / "base.safetensors", store.vocabulary, TINY)
    still = training(learning_rate=1e-12, steps=3)
    model, _ = fit_vae(store, TINY, still, seed=1, start=start)
    rows = store.rows("train")
    counts = torch.from_numpy(store.dense(rows))
    batch = Batch(counts, counts, torch.from_numpy(store.library_size[rows].copy()))
    assert log_ratio(other, batch).abs().max() > 0.5
    assert log_ratio(model, batch).abs().max() < 0.05
