"""Training of the VAE and encoding of every cell."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from knockscreen import checkpoint
from knockscreen.data.cells import CellStore
from knockscreen.models.vae import TransformerVAE, VaeSettings, VaeSize, remove_offset
from knockscreen.names import Split
from knockscreen.training.effect import EffectModel
from knockscreen.training.loop import Data, LossFunction, Progress, Trainer, TrainingSettings
from knockscreen.training.transfer import Start


def thin(counts: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Split counts at random into what stays and what is hidden, each molecule hidden with ``share``."""
    hidden = torch.binomial(counts, torch.full_like(counts, share), generator=generator)
    return counts - hidden, hidden


class Offsets:
    """The linear part of each cell's knock-down, as logit offsets."""

    def __init__(self, store: CellStore, effects: EffectModel | None, device: torch.device) -> None:
        self.table: Tensor | None = None
        if effects is not None and effects.linear is not None:
            self.table = torch.from_numpy(effects.table()).to(device)  # (T, C, G)
        self.target = np.asarray(store.target).astype(np.int64)
        self.context = store.context_index()

    def rows(self, rows: NDArray[np.integer]) -> Tensor | None:
        """Return offsets (B, G) of some rows, or None where there is no linear part."""
        if self.table is None:
            return None
        return self.table[torch.from_numpy(self.target[rows]), torch.from_numpy(self.context[rows])]


def make_loss(
    store: CellStore, offsets: Offsets, kl_weight: float, thinning: float, device: torch.device
) -> LossFunction:
    """Return the loss of a minibatch of rows."""

    def loss(
        model: nn.Module, rows: NDArray[np.int64], generator: torch.Generator
    ) -> dict[str, Tensor]:
        assert isinstance(model, TransformerVAE)
        counts = torch.from_numpy(store.dense(rows)).to(device)
        library = torch.from_numpy(np.asarray(store.library_size[rows])).to(device)
        shown, target = counts, counts
        if thinning:
            shown, target = thin(counts, thinning, generator)
            library = library * thinning
        size = model.settings.size
        noise = None
        if model.settings.variational:
            shape = (len(rows), size.latent_tokens, size.latent_dim)
            noise = torch.randn(shape, generator=generator, device=device)
        return model.loss(shown, target, library, kl_weight, noise, offsets.rows(rows))

    return loss


def library_sizes(store: CellStore, library: str) -> CellStore:
    """Return the store with library sizes as the model counts them (over all genes, or the panel)."""
    if library == "all":
        return store
    from dataclasses import replace

    sums = np.zeros(len(store), dtype=np.float32)
    for rows, counts in store.chunks(np.arange(len(store))):
        sums[rows] = counts.sum(1)
    return replace(store, library_size=np.maximum(sums, 1))


def mean_shares(store: CellStore, rows: NDArray[np.int64]) -> Tensor:
    """Return the share of counts (G + 1,) of the rest and of each panel gene over some rows."""
    total = np.zeros(len(store.vocabulary.gene_ids))
    library = 0.0
    for piece, counts in store.chunks(rows):
        total += counts.sum(0)
        library += float(store.library_size[piece].sum())
    rest = max(library - total.sum(), 1e-6 * library)
    return torch.from_numpy(np.concatenate([[rest], total]) / library).float()


def fit_vae(
    store: CellStore,
    settings: VaeSettings,
    training: TrainingSettings,
    *,
    seed: int,
    kl_weight: float = 0.0,
    thinning: float = 0.0,
    device: torch.device | None = None,
    resume_dir: Path | None = None,
    start: Start | None = None,
    effects: EffectModel | None = None,
) -> tuple[TransformerVAE, Progress]:
    """Train a VAE on the training split, stop by the validation split, return it averaged."""
    device = device or torch.device("cpu")
    torch.manual_seed(seed)
    model = TransformerVAE(len(store.vocabulary.gene_ids), settings)
    train = store.rows(Split.TRAIN)
    model.start_from_means(mean_shares(store, train))
    if start is not None:
        start.apply(model)
    model.to(device)
    trainer = Trainer(
        model,
        make_loss(store, Offsets(store, effects, device), kl_weight, thinning, device),
        training,
        seed=seed,
        identity=f"vae {len(store)} {kl_weight} {thinning} {hash_vocabulary(store)}",
    )
    data = Data(train, store.rows(Split.VALIDATION))
    return model, trainer.fit(data, resume_dir)


def hash_vocabulary(store: CellStore) -> str:
    """Return a digest of the store's vocabulary, to tell trainings apart."""
    import hashlib

    return hashlib.sha256(repr(store.vocabulary).encode()).hexdigest()[:12]


def save_vae(path: Path, model: TransformerVAE, store: CellStore, notes: dict[str, object]) -> None:
    """Write the checkpoint with its gene order and settings."""
    from dataclasses import asdict

    about = {
        "kind": "vae",
        "settings": asdict(model.settings),
        "vocabulary": checkpoint.describe_vocabulary(store.vocabulary),
        "simulated": store.simulated,
        "notes": notes,
    }
    checkpoint.save(path, dict(model.state_dict()), about)


def load_vae(
    path: Path | str, device: torch.device | None = None
) -> tuple[TransformerVAE, dict[str, object]]:
    """Return a trained VAE, in evaluation mode, and its description."""
    tensors, about = checkpoint.load(path, "vae")
    values = dict(about["settings"])
    settings = VaeSettings(**{**values, "size": VaeSize(**values["size"])})
    model = TransformerVAE(len(about["vocabulary"]["gene_ids"]), settings)
    model.load_state_dict(tensors)
    return model.to(device or torch.device("cpu")).eval(), about


@torch.no_grad()
def encode_store(
    model: TransformerVAE,
    store: CellStore,
    output: NDArray[np.floating],
    *,
    effects: EffectModel | None = None,
    batch: int = 512,
) -> None:
    """Write the latent mean of every cell into ``output`` (N, L, D)."""
    device = next(model.parameters()).device
    offsets = Offsets(store, effects, device)
    for rows, counts in store.chunks(np.arange(len(store)), batch):
        shown = remove_offset(torch.from_numpy(counts).to(device), offsets.rows(rows))
        mean, _ = model.encode(shown)
        output[rows] = mean.float().cpu().numpy()
