"""What a linear part of the cells is worth before any network is trained (docs/adr/0008).

    python benchmarks/linear_cells.py results/demo 0 16 32

The store and the effects of a run; for each number of components an untrained VAE is prepared as
``train-vae`` does it (without components, its mean counts are also matched to those of the cells:
what training does first). Printed: its negative log-likelihood of validation cells; and cells
decoded from the latents of training cells, one of the same context for each test cell, with the
test cell's knock-down and library size, against the test cells, in log1p CP10k. The flow has to
make such latents itself: this is the best that it can do.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch

from knockscreen.data.cells import CellStore
from knockscreen.models.vae import VAE_SIZES, Batch, TransformerVAE, VaeSettings, remove_offset
from knockscreen.names import CP10K, Split
from knockscreen.nn.likelihood import nb_sample
from knockscreen.score.populations import Space, compare_cells
from knockscreen.training import vae
from knockscreen.training.effect import load_effects

CELLS = 1500
CPU = torch.device("cpu")


def main() -> None:
    folder = Path(sys.argv[1])
    store = CellStore.open(folder / "store")
    offsets = vae.Offsets(store, load_effects(folder / "effect/effect.safetensors"), CPU)
    train, test = store.rows(Split.TRAIN), store.rows(Split.TEST)
    test = test[np.linspace(0, len(test) - 1, min(CELLS, len(test))).astype(int)]
    context = store.context_index()
    rng = np.random.default_rng(0)
    donors = np.array([rng.choice(train[context[train] == context[row]]) for row in test])
    fitted = train[:: max(1, len(train) // 4000)]
    space = Space.fit(log1p(store.dense(fitted), store.library_size[fitted]))
    real = log1p(store.dense(test), store.library_size[test])
    for linear in map(int, sys.argv[2:]):
        torch.manual_seed(0)
        settings = VaeSettings(VAE_SIZES["small"], linear=linear)
        model = TransformerVAE(len(store.vocabulary.gene_ids), settings).eval()
        started = time.monotonic()
        vae.prepare(model, store, train, offsets, seed=0)
        if not linear:
            vae.match_means(model, as_batch(store, offsets, train[:512]))
        seconds = time.monotonic() - started
        with torch.no_grad():
            nll = likelihood(model, store, offsets)
            z, _ = model.encode(remove_offset(*read(store, offsets, donors)[::2]))
            made = model.decode(z, *read(store, offsets, test)[1:])
            cells = nb_sample(*made, torch.Generator().manual_seed(0)).numpy()
        found = compare_cells(log1p(cells, store.library_size[test]), real, space)
        shown = "  ".join(f"{name} {value:.3f}" for name, value in found.items())
        print(f"linear {linear}: validation NLL {nll:.2f}  {shown}  ({seconds:.0f} s)", flush=True)


def read(store, offsets, rows):
    """Counts (n, G), library sizes (n,) and offsets (n, G) of some rows."""
    counts = torch.from_numpy(store.dense(rows))
    return counts, torch.from_numpy(np.asarray(store.library_size[rows])), offsets.rows(rows)


def as_batch(store, offsets, rows) -> Batch:
    counts, library, offset = read(store, offsets, rows)
    return Batch(counts, counts, library, offset)


def likelihood(model, store, offsets) -> float:
    """Mean negative log-likelihood of the validation cells, each decoded from itself."""
    rows = store.rows(Split.VALIDATION)
    total = 0.0
    for i in range(0, len(rows), 512):
        batch = as_batch(store, offsets, rows[i : i + 512])
        total += float(model.loss(batch)["nll"]) * len(batch.counts)
    return total / len(rows)


def log1p(counts, library):
    scaled = np.asarray(counts) * (CP10K / np.asarray(library)[:, None])
    return np.log1p(scaled).astype(np.float32)


if __name__ == "__main__":
    main()
