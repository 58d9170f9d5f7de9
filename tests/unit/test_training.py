"""The training loop: the same run whether interrupted or not, and blind to the test cells."""

import dataclasses
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fixtures.models import FLOW, tiny_store, training
from knockscreen.data.cells import CellStore
from knockscreen.errors import ConfigError, DataError
from knockscreen.models.vae import VAE_SIZES, VaeSettings
from knockscreen.names import Split
from knockscreen.training import effect, flow, vae
from knockscreen.training.loop import (
    Data,
    Trainer,
    learning_rate_factor,
    minibatch_rows,
    pick_device,
    step_generator,
)

SETTINGS = training(steps=12, batch_size=4, validate_every=3)
DATA = Data(np.arange(20), np.arange(20, 30), validation_batch=4)
INPUT = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
OUTPUT = INPUT @ torch.tensor([[1.0], [-2.0], [0.5]])


def squares(model, rows, generator):
    x = INPUT[rows] + 0.1 * torch.randn(len(rows), 3, generator=generator)
    yield {"loss": (model(x) - OUTPUT[rows]).square().mean()}


def make(loss=squares, settings=SETTINGS, *, seed=1, identity="toy") -> Trainer[nn.Linear]:
    torch.manual_seed(0)
    return Trainer(nn.Linear(3, 1), loss, settings, seed=seed, identity=identity)


def weights(trainer) -> torch.Tensor:
    return trainer.model.weight.detach().clone()


def interrupted(step: int):
    """A loss that is interrupted in the training of some step."""
    calls = 0

    def loss(model, rows, generator):
        nonlocal calls
        calls += model.training
        if calls == step:
            raise KeyboardInterrupt
        return squares(model, rows, generator)

    return loss


@pytest.mark.parametrize("step", [4, 8, 11])
def test_resumed_training_is_the_one_that_was_never_interrupted(tmp_path, step):
    whole = make()
    whole.fit(DATA)
    first = make(interrupted(step))
    with pytest.raises(KeyboardInterrupt):
        first.fit(DATA, tmp_path)
    assert not torch.equal(weights(first), weights(whole))
    second = make()
    second.fit(DATA, tmp_path)
    assert torch.equal(weights(second), weights(whole))
    assert torch.equal(second.ema["weight"], whole.ema["weight"])
    assert second.progress.history == whole.progress.history
    assert (second.progress.best, second.progress.best_step) == (
        whole.progress.best,
        whole.progress.best_step,
    )
    for key, value in whole.optimizer.state[whole.model.weight].items():
        assert torch.equal(second.optimizer.state[second.model.weight][key], value)


def test_finished_training_is_not_trained_again(tmp_path):
    done = make()
    done.fit(DATA, tmp_path)
    again = make(interrupted(1))
    again.fit(DATA, tmp_path)
    assert torch.equal(weights(again), weights(done))


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 2},
        {"identity": "another"},
        {"settings": replace(SETTINGS, learning_rate=1e-3)},
    ],
)
def test_state_of_another_training_is_ignored(tmp_path, caplog, other):
    make(**other).fit(DATA, tmp_path)
    alone, after = make(), make()
    alone.fit(DATA)
    with caplog.at_level("INFO"):
        after.fit(DATA, tmp_path)
    assert "is of another training; starting afresh" in caplog.text
    assert torch.equal(weights(after), weights(alone))


def test_damaged_state_is_named(tmp_path):
    make().fit(DATA, tmp_path)
    path = tmp_path / "last.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match=r"last\.safetensors is damaged .* delete it to train"):
        make().fit(DATA, tmp_path)


def test_training_stops_when_validation_no_longer_improves():
    rising = iter(range(100))

    def loss(model, rows, generator):
        if model.training:
            return squares(model, rows, generator)
        yield {"loss": torch.tensor(float(next(rising)))}

    trainer = make(loss, replace(SETTINGS, patience=2))
    progress = trainer.fit(DATA)
    assert (progress.step, progress.best_step, progress.stale) == (9, 3, 2)
    assert torch.equal(weights(trainer), trainer.best["weight"])


def test_history_has_both_curves_at_every_validation():
    history = make().fit(DATA).history
    assert [(row["step"], row["split"]) for row in history] == [
        (step, split) for step in (3, 6, 9, 12) for split in ("train", "validation")
    ]
    assert history[-1]["loss"] < history[1]["loss"]


def test_validation_weighs_rows_alike_and_repeats_itself():
    trainer = make(lambda model, rows, generator: iter([{"loss": torch.tensor(rows.mean())}]))
    assert trainer.validate(DATA)["loss"] == pytest.approx(24.5)  # batches of 4, 4 and 2
    noisy = make()
    first = noisy.validate(DATA)
    noisy.progress.step += 1
    assert noisy.validate(DATA) == first  # the noise of validation is the same at every step


def test_loss_that_is_not_finite_is_one_sentence():
    trainer = make(lambda model, rows, generator: iter([{"loss": model.weight.sum() * math.nan}]))
    with pytest.raises(ConfigError, match=r"loss is nan at step 3; lower training\.learning_rate"):
        trainer.fit(DATA)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (Data(np.arange(0), np.arange(3)), "no cells to train on"),
        (Data(np.arange(3), np.arange(0)), r"stop the training by; change splits\.validation"),
    ],
)
def test_missing_cells_are_named(data, sentence):
    with pytest.raises(DataError, match=sentence):
        make().fit(data)


@pytest.mark.parametrize(("rows", "batch"), [(10, 3), (10, 10), (4, 9)])
def test_every_row_comes_once_per_epoch(rows, batch):
    ids = np.arange(100, 100 + rows)
    drawn = np.concatenate([minibatch_rows(ids, step, batch, 7) for step in range(rows)])
    epochs = drawn.reshape(batch, rows)  # rows steps of batch rows are batch epochs
    assert (np.sort(epochs, axis=1) == ids).all()
    assert batch == 1 or not (epochs[0] == epochs[1]).all()


def test_minibatches_and_noise_are_functions_of_seed_and_step():
    ids = np.arange(50)
    assert (minibatch_rows(ids, 3, 8, 1) == minibatch_rows(ids, 3, 8, 1)).all()
    assert not (minibatch_rows(ids, 3, 8, 1) == minibatch_rows(ids, 3, 8, 2)).all()
    cpu = torch.device("cpu")
    draws = [torch.rand(3, generator=step_generator(*key, cpu)) for key in ((1, 2), (1, 2), (2, 1))]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_learning_rate_rises_then_falls_to_a_tenth():
    settings = training(steps=100, warmup=0.1)
    factors = [learning_rate_factor(step, settings) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == 1
    assert factors[100] == pytest.approx(0.1)
    assert (np.diff(factors[10:]) < 0).all()


def test_gpu_that_is_not_there_is_named():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert pick_device("auto") == torch.device("cpu")
    with pytest.raises(ConfigError, match="device is 'cuda' and torch finds no GPU"):
        pick_device("cuda")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> CellStore:
    return CellStore.open(tiny_store(tmp_path_factory.mktemp("training") / "store", cells=120))


def poison(store: CellStore) -> CellStore:
    """Return the store with absurd counts in every test cell."""
    counts = np.array(store.counts)
    library = np.array(store.library_size)
    for row in store.rows(Split.TEST):
        counts[store.indptr[row] : store.indptr[row + 1]] = 60_000
        library[row] = 1e6
    return replace(store, counts=counts, library_size=library)


def fit_all(store: CellStore, latents: np.ndarray):
    effects = effect.fit_effects(
        store, features="coexpression", feature_dims=3, rank=2, keep_cells=300
    )
    model, first = vae.fit_vae(store, VaeSettings(VAE_SIZES["tiny"]), training(), effects, seed=1)
    net, second = flow.fit_flow(store, latents, FLOW, training(), effects, seed=1)
    return effects, {**model.state_dict(), **net.net.state_dict()}, first.history + second.history


def test_nothing_that_is_fitted_looks_at_test_cells(store):
    latents = np.random.default_rng(0).standard_normal((len(store), 8, 8)).astype(np.float32)
    poisoned = latents.copy()
    poisoned[store.rows(Split.TEST)] = 1e9
    effects, parameters, history = fit_all(store, latents)
    blind = fit_all(poison(store), poisoned)
    assert blind[0].fingerprint() == effects.fingerprint()
    assert all(torch.equal(blind[1][name], value) for name, value in parameters.items())
    assert blind[2] == history


def test_training_on_other_splits_does_not_go_on_from_the_old_state(store, tmp_path, caplog):
    settings = VaeSettings(VAE_SIZES["tiny"])
    vae.fit_vae(store, settings, training(), seed=1, resume_dir=tmp_path)
    moved = replace(store, split=np.roll(store.split, 1))
    with caplog.at_level("INFO"):
        vae.fit_vae(moved, settings, training(), seed=1, resume_dir=tmp_path)
    assert "starting afresh" in caplog.text


def test_inputs_of_a_training_are_told_apart(store):
    effects = effect.fit_effects(store, features="none", feature_dims=3, rank=2, keep_cells=300)
    latents = np.zeros((len(store), 8, 8), dtype=np.float32)
    known = {
        vae.hash_inputs(store, None, None),
        vae.hash_inputs(replace(store, target=np.roll(store.target, 1)), None, None),
        vae.hash_inputs(store, effects, None),
        vae.hash_inputs(store, effects, None, latents),
        vae.hash_inputs(store, effects, None, latents + 1),
    }
    assert len(known) == 5
    assert vae.hash_inputs(store, effects, None) in known


def test_thinning_splits_molecules_and_loses_none():
    counts = torch.full((200, 5), 40.0)
    shown, hidden = vae.thin(counts, 0.25, torch.Generator().manual_seed(0))
    assert torch.equal(shown + hidden, counts)
    assert hidden.mean().item() == pytest.approx(10, abs=0.4)


def test_library_over_the_panel_is_the_sum_of_its_counts(store):
    rows = np.arange(len(store))
    panel = vae.library_sizes(store, "panel")
    np.testing.assert_array_equal(panel.library_size, store.dense(rows).sum(1))
    assert vae.library_sizes(store, "all") is store


def test_shares_of_panel_and_rest_add_up(store):
    shares = vae.mean_shares(store, store.rows(Split.TRAIN))
    assert shares.sum().item() == pytest.approx(1, abs=1e-5)
    assert shares[0].item() == pytest.approx(0.5, abs=0.1)  # half of every cell is off the panel


def test_dispersion_by_moments_finds_the_one_of_simulated_counts(store):
    rng = np.random.default_rng(0)
    cells, truth = 20_000, np.array([0.3, 2.0, 8.0])
    library = rng.uniform(500, 2000, cells).astype(np.float32)
    context = np.arange(cells) % 2
    mean = library[:, None] * np.array([0.002, 0.01, 0.05]) * np.where(context, 3, 1)[:, None]
    counts = rng.poisson(mean * rng.gamma(truth, 1 / truth, (cells, 3)))

    class Cells:
        vocabulary = dataclasses.replace(store.vocabulary, gene_ids=("a", "b", "c"))
        library_size = library

        def context_index(self):
            return context

        def chunks(self, rows):
            yield rows, counts[rows].astype(np.float32)

    theta = vae.inverse_dispersions(Cells(), np.arange(cells)).numpy()
    np.testing.assert_allclose(theta, truth, rtol=0.15)


def test_flow_loss_is_the_mean_square_velocity_of_a_network_that_stands_still(store):
    latents = torch.randn(len(store), 8, 8, generator=torch.Generator().manual_seed(3))
    contexts = torch.from_numpy(np.array(store.contexts, dtype=np.int64))
    target = torch.from_numpy(np.array(store.target, dtype=np.int64))
    loss = flow.FlowLoss(latents, contexts, target, None, FLOW)
    net = flow.VelocityNet(flow.VelocitySettings(FLOW.size, 8, 8, (2, 1), 5))
    (part,) = loss(net, np.arange(len(store)), torch.Generator().manual_seed(0))
    value = part["loss"].item()
    assert value == pytest.approx(2, abs=0.15)  # x1 - x0 of two standard normals


def test_latents_are_scaled_by_training_cells():
    latents = np.random.default_rng(0).normal(3, 2, (500, 2, 2))
    mean, sd = flow.latent_scaling(latents, np.arange(100))
    np.testing.assert_allclose(mean, latents[:100].mean(0), rtol=1e-5)
    np.testing.assert_allclose(sd, latents[:100].std(0), rtol=1e-4)


def test_models_survive_the_disk(trained):
    about = json.loads((trained / "vae.json").read_text())
    model, _ = vae.load_vae(trained / "vae.safetensors")
    assert about["kind"] == "vae"
    assert not model.training
    assert flow.load_flow(trained / "flow.safetensors").library_size_log.keys() == {
        "donor=D1,time=Rest",
        "donor=D2,time=Rest",
    }
