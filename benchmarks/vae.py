"""The VAE against the same network written straight: a training step, and encoding.

    python benchmarks/vae.py [--rounds 5] [--genes 1500] [--record]

Simulated cells of 17 % density, the small size, minibatches of 64, one thread, CPU time. The
straight network (tests/fixtures/straight.py) has the same parameters: a token for every gene of
every cell, gene embeddings looked up per cell, softmax attention over a matrix of scores, three
lgammas everywhere; loss and latents are compared before anything is timed. Both train in the
package's loop, with its optimiser. Latents must agree within 1e-5.
"""

import copy
import sys
from pathlib import Path

import numpy as np
import torch
from rounds import compare, parser, report

from knockscreen.data.cells import CellStore, Vocabulary
from knockscreen.models.vae import VAE_SIZES, Batch, TransformerVAE, VaeSettings
from knockscreen.training import vae
from knockscreen.training.loop import Trainer, TrainingSettings

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from fixtures import straight

CELLS, BATCH, DENSITY = 512, 64, 0.17
CPU = torch.device("cpu")
SETTINGS = TrainingSettings(
    steps=1000, batch_size=BATCH, learning_rate=1e-4, warmup=0.05, weight_decay=0.01,
    betas=(0.9, 0.95), clip=1.0, ema_decay=0.99, validate_every=1000, patience=1,
)  # fmt: skip


def simulated(genes: int) -> CellStore:
    """Counts of log-normal genes and cells; depth is set so that a share of them is above zero."""
    rng = np.random.default_rng(0)
    rates = np.exp(1.6 * rng.standard_normal(genes) + 0.35 * rng.standard_normal((CELLS, 1)))
    rates *= rng.gamma(2.0, 0.5, rates.shape)
    low, high = 1e-4, 10.0
    for _ in range(40):
        middle = (low * high) ** 0.5
        low, high = (
            (middle, high) if (1 - np.exp(-middle * rates)).mean() < DENSITY else (low, middle)
        )
    counts = rng.poisson(middle * rates).astype(np.uint16)
    rows, columns = counts.nonzero()
    ids = tuple(f"G{k}" for k in range(genes))
    vocabulary = Vocabulary(ids, ids, ("time",), (("Rest",),), ("control",), ("control",))
    zeros = np.zeros(CELLS, dtype=np.int64)
    return CellStore(
        Path(), vocabulary, {}, True, np.concatenate([[0], np.bincount(rows).cumsum()]),
        columns.astype(np.uint16), counts[rows, columns], 1.5 * counts.sum(1, dtype=np.float32),
        zeros.astype(np.int32), zeros[:, None].astype(np.int16), zeros.astype(np.int8),
        zeros[:0], zeros[:0],
    )  # fmt: skip


def straight_loss(store: CellStore):
    def loss(model, rows, generator):
        counts = torch.from_numpy(store.dense(rows))
        library = torch.from_numpy(store.library_size[rows])
        yield {"loss": straight.vae_loss(model, Batch(counts, counts, library))}

    return loss


def trainers(store: CellStore, model: TransformerVAE) -> list[Trainer]:
    """Return ours and the straight one, each with a copy of the same weights."""
    ours = vae.make_loss(store, vae.Offsets(store, None, CPU), vae.VaeTraining(), CPU)
    losses = ours, straight_loss(store)
    return [Trainer(copy.deepcopy(model).train(), loss, SETTINGS, seed=0) for loss in losses]


@torch.no_grad()
def encode_straight(model: TransformerVAE, store: CellStore, out: np.ndarray) -> None:
    for rows, counts in store.chunks(np.arange(len(store)), BATCH):
        out[rows] = straight.encode(model, torch.from_numpy(counts))[0].numpy()


def main() -> None:
    shared = parser(__doc__)
    shared.add_argument("--genes", type=int, default=1500)
    given = shared.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    store = simulated(given.genes)
    model = TransformerVAE(given.genes, VaeSettings(VAE_SIZES["small"])).eval()
    size = f"small, {given.genes:,} genes, {len(store.counts) / CELLS / given.genes:.0%} expressed"
    rows = np.arange(BATCH)
    fast, plain = trainers(store, model)
    one, other = fast.step(rows)["loss"], plain.step(rows)["loss"]
    print(f"loss {one:.5f} and {other:.5f}")
    result = compare(lambda: fast.step(rows), lambda: plain.step(rows), rounds=given.rounds)
    kind = {"unit": f"CPU s per step of {BATCH}", "record": given.record}
    report(f"VAE training step ({size})", "the network written straight", result, bar=2, **kind)

    latents = np.zeros((2, CELLS, model.settings.tokens, VAE_SIZES["small"].latent_dim), np.float32)
    result = compare(
        lambda: vae.encode_store(model, store, latents[0]),
        lambda: encode_straight(model, store, latents[1]),
        rounds=given.rounds,
    )
    apart = float(np.abs(latents[0] - latents[1]).max())
    print(f"latents differ by {apart:.1e} at most")
    assert apart <= 1e-5
    kind = {"unit": f"CPU s for {CELLS} cells", "record": given.record}
    report(f"VAE encode ({size})", "the network written straight", result, bar=3, **kind)


if __name__ == "__main__":
    main()
