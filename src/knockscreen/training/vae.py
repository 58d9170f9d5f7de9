"""Training of the VAE and encoding of every cell."""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from knockscreen import checkpoint
from knockscreen.data.cells import CellStore
from knockscreen.models.vae import Batch, TransformerVAE, VaeSettings, VaeSize, remove_offset
from knockscreen.names import Split
from knockscreen.nn.blocks import swiglu_width
from knockscreen.nn.likelihood import thin
from knockscreen.training.effect import EffectModel
from knockscreen.training.linear_cells import Moments, fit_linear
from knockscreen.training.loop import Data, LossFunction, Progress, Trainer, TrainingSettings
from knockscreen.training.transfer import Start

CACHE = 16 * 2**20
"""Bytes of a tensor that stays in the cache of a CPU, and in the process's memory once freed."""


class Offsets:
    """The linear part of each cell's knock-down, as logit offsets."""

    def __init__(self, store: CellStore, effects: EffectModel | None, device: torch.device) -> None:
        self.device = device
        self.table: Tensor | None = None
        if effects is not None and effects.linear is not None:
            self.table = torch.from_numpy(effects.table()).to(device)  # (T, C, G)
        self.target = np.asarray(store.target).astype(np.int64)
        self.context = store.context_index()

    def rows(self, rows: NDArray[np.integer]) -> Tensor | None:
        """Return offsets (B, G) of some rows, or None where there is no linear part."""
        return self.of(rows, self.target[rows])

    def of(self, rows: NDArray[np.integer], target: NDArray[np.integer]) -> Tensor | None:
        """Return offsets (B, G) of some rows as if of other targets (B,)."""
        if self.table is None:
            return None
        codes = torch.from_numpy(target.astype(np.int64))
        return self.table[codes, torch.from_numpy(self.context[rows])]


@dataclass(frozen=True)
class VaeTraining:
    """Settings of the training beside the optimiser's."""

    kl_weight: float = 0.0
    thinning: float = 0.0
    """Share of the molecules hidden from the encoder, and predicted."""
    version: str = ""
    """Version of the training's code: a state of another one is not gone on from."""


def make_loss(
    store: CellStore, offsets: Offsets, vae_training: VaeTraining, device: torch.device
) -> LossFunction[TransformerVAE]:
    """Return the loss of a minibatch of rows, on a CPU in parts that fit its cache."""
    thinning = vae_training.thinning

    def loss(
        model: TransformerVAE, rows: NDArray[np.int64], generator: torch.Generator
    ) -> Iterator[dict[str, Tensor]]:
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
        batch = Batch(shown, target, library, offsets.rows(rows))
        for part in parts(len(rows), cells_in_cache(model)):
            some = None if noise is None else noise[part]
            losses = model.loss(batch.part(part), kl_weight=vae_training.kl_weight, noise=some)
            share = len(rows[part]) / len(rows)
            yield {name: share * value for name, value in losses.items()}

    return loss


def cells_in_cache(model: TransformerVAE) -> int:
    """Return how many cells' widest layer, that of the decoder's genes, takes :data:`CACHE` bytes.

    Larger tensors are slow on a CPU: they leave the cache, and the system gives their memory anew
    each time. On a GPU a minibatch is not divided.
    """
    if model.head.weight.device.type != "cpu":
        return 2**31
    widest = (model.genes + 1) * swiglu_width(model.settings.size.width)
    return max(1, CACHE // (4 * widest))


def parts(cells: int, most: int) -> list[slice]:
    """Return slices of at most ``most`` cells, as even as can be."""
    n = -(-cells // most)
    ends = [cells * i // n for i in range(n + 1)]
    return [slice(a, b) for a, b in pairwise(ends)]


def library_sizes(store: CellStore, library: str) -> CellStore:
    """Return the store with library sizes as the model counts them: of all genes, or the panel."""
    if library == "all":
        return store
    sums = np.zeros(len(store), dtype=np.float32)
    for rows, counts in store.chunks(np.arange(len(store))):
        sums[rows] = counts.sum(1)
    return replace(store, library_size=np.maximum(sums, 1))


def panel_shares(store: CellStore) -> dict[str, float]:
    """Return the share of the library that lies on the panel, by context, over training cells.

    A context without training cells has the share over all of them.
    """
    rows = store.rows(Split.TRAIN)
    contexts = store.vocabulary.contexts
    context = store.context_index()
    sums = np.zeros((2, len(contexts)))
    for piece, counts in store.chunks(rows):
        np.add.at(sums[0], context[piece], counts.sum(1))
        np.add.at(sums[1], context[piece], store.library_size[piece])
    pooled = sums[0].sum() / sums[1].sum()
    shares = np.where(sums[1] > 0, sums[0] / np.maximum(sums[1], 1), pooled)
    return dict(zip(contexts, shares.tolist(), strict=True))


def mean_shares(store: CellStore, rows: NDArray[np.int64]) -> Tensor:
    """Return the share of counts (G + 1,) of the rest and of each panel gene over some rows."""
    total = np.zeros(len(store.vocabulary.gene_ids))
    library = 0.0
    for piece, counts in store.chunks(rows):
        total += counts.sum(0)
        library += float(store.library_size[piece].sum())
    rest = max(library - total.sum(), 1e-6 * library)
    return torch.from_numpy(np.concatenate([[rest], total]) / library).float()


def inverse_dispersions(store: CellStore, rows: NDArray[np.int64]) -> Tensor:
    """Return the NB inverse dispersion (G,) of each panel gene over some rows, by moments.

    With r a count over its library, ``Var r = E[r] E[1/library] + E[r]^2 / theta`` within a
    context; numerator and denominator are summed over contexts. Between 0.05 and 20, and 20 for a
    gene that varies no more than Poisson counts do.
    """
    context = store.context_index()
    contexts = len(store.vocabulary.contexts)
    cells = np.bincount(context[rows], minlength=contexts)[:, None]
    sums = np.zeros((2, contexts, len(store.vocabulary.gene_ids)))
    inverse = np.zeros((contexts, 1))
    for piece, counts in store.chunks(rows):
        library = np.asarray(store.library_size[piece], dtype=float)[:, None]
        rate = counts / library
        for c in np.unique(context[piece]):
            mine = context[piece] == c
            sums[0, c] += rate[mine].sum(0)
            sums[1, c] += (rate[mine] ** 2).sum(0)
            inverse[c] += (1 / library[mine]).sum()
    mean = sums[0] / np.maximum(cells, 1)
    variance = sums[1] / np.maximum(cells, 1) - mean**2
    extra = variance - mean * inverse / np.maximum(cells, 1)
    extra, square = (extra * cells).sum(0), (mean**2 * cells).sum(0)
    theta = np.where(extra > square / 20, square / np.maximum(extra, 1e-30), 20.0)
    return torch.from_numpy(np.clip(theta, 0.05, 20)).float()


@torch.no_grad()
def match_means(model: TransformerVAE, batch: Batch, rounds: int = 4) -> None:
    """Move the gene table so that the mean counts the model decodes are those of the cells.

    A model trained on other cells, or genes that are new to it, predict other means, and it would
    take a training to undo that. Each gene's row moves along the head, by the log ratio of the
    share of its counts to the decoded share; so does the row that stands for the rest.
    """
    total = batch.library_size.sum()
    direction = model.head.weight[0]
    first = 0 if model.settings.library == "all" else 1

    def with_rest(counts: Tensor) -> Tensor:
        share = counts.sum(0) / total
        rest = (1 - share.sum())[None]
        return (torch.cat([rest, share]) if first == 0 else share).clamp_min(1e-7).log()

    for _ in range(rounds):
        z, _ = model.encode(remove_offset(batch.counts, batch.offset))
        decoded = model.decode(z, batch.library_size, batch.offset)
        missing = with_rest(batch.target) - with_rest(decoded.mu)
        model.gene_table.weight[first:] += (
            torch.outer(missing, direction) / direction.square().sum()
        )


def fit_vae(
    store: CellStore,
    settings: VaeSettings,
    training: TrainingSettings,
    effects: EffectModel | None = None,
    *,
    seed: int,
    vae_training: VaeTraining | None = None,
    device: torch.device | None = None,
    resume_dir: Path | None = None,
    start: Start | None = None,
) -> tuple[TransformerVAE, Progress]:
    """Train a VAE on the training split, stop by the validation split, return it averaged.

    A linear part of the cells is fitted before, also where the training starts from a checkpoint.
    """
    device = device or torch.device("cpu")
    vae_training = vae_training or VaeTraining()
    torch.manual_seed(seed)
    model = TransformerVAE(len(store.vocabulary.gene_ids), settings)
    offsets = Offsets(store, effects, device)
    train = store.rows(Split.TRAIN)
    prepare(model.to(device), store, train, offsets, seed=seed, start=start)
    trainer = Trainer(
        model,
        make_loss(store, offsets, vae_training, device),
        training,
        seed=seed,
        identity=f"{settings} {vae_training} {hash_inputs(store, effects, start)}",
    )
    data = Data(train, store.rows(Split.VALIDATION))
    return model, trainer.fit(data, resume_dir)


def prepare(
    model: TransformerVAE,
    store: CellStore,
    rows: NDArray[np.int64],
    offsets: Offsets,
    *,
    seed: int,
    start: Start | None = None,
) -> None:
    """Give a new model what is known before it is trained: means, dispersions, linear part, start.

    With a linear part, a new model starts as that part alone, as it was fitted. The linear part
    and the dispersions that belong to it are always of these cells; what the network of other cells
    adds to the mean logits is taken out again.
    """

    def read(some: NDArray[np.int64]) -> Batch:
        counts = torch.from_numpy(store.dense(some)).to(offsets.device)
        library = torch.from_numpy(np.asarray(store.library_size[some])).to(offsets.device)
        return Batch(counts, counts, library, offsets.rows(some))

    moments = Moments(mean_shares(store, rows), inverse_dispersions(store, rows))
    if model.linear is not None:
        rest = model.settings.library == "all"
        generator = torch.Generator().manual_seed(seed)
        components = model.settings.linear
        part, moments = fit_linear(read, rows, moments, components, rest=rest, generator=generator)
        model.linear.take(part)
        model.start_silent()
    model.start_from_moments(moments.shares, moments.theta)
    if start is not None:
        start.apply(model)
        if model.linear is not None and model.log_theta is not None:
            with torch.no_grad():
                model.log_theta.weight[1:, 0] = torch.log(moments.theta)
        match_means(model, read(np.random.default_rng([seed, 31]).permutation(rows)[:512]))


def hash_inputs(
    store: CellStore,
    effects: EffectModel | None,
    start: Start | None,
    latents: NDArray[np.floating] | None = None,
) -> str:
    """Return a digest of what a training is of: the cells and their splits, the effects, the start.

    Of latents, up to a thousand cells count.
    """
    digest = hashlib.sha256(repr(store.vocabulary).encode())
    for column in (
        *("indptr", "library_size", "target", "contexts", "split"),
        *("decoy_rows", "decoy_target"),
    ):
        digest.update(getattr(store, column).tobytes())
    if effects is not None:
        digest.update(effects.fingerprint().encode())
    if latents is not None:
        digest.update(latents[:: max(1, len(latents) // 1000)].tobytes())
    for name, value in sorted(start.tensors.items()) if start is not None else ():
        digest.update(name.encode() + value.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def save_vae(path: Path, model: TransformerVAE, store: CellStore, notes: dict[str, object]) -> None:
    """Write the checkpoint with its gene order, settings and the panel's share of the library.

    ``store`` has library sizes over all genes, whatever the model was trained with.
    """
    about = {
        "kind": "vae",
        "settings": asdict(model.settings),
        "vocabulary": checkpoint.describe_vocabulary(store.vocabulary),
        "panel_shares": panel_shares(store),
        "simulated": store.simulated,
        "notes": notes,
    }
    checkpoint.save(path, dict(model.state_dict()), about)


def load_vae(
    path: Path | str, device: torch.device | None = None
) -> tuple[TransformerVAE, dict[str, Any]]:
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
    batch: int = 128,
) -> None:
    """Write the latent mean of every cell, then of every cell of a decoy, into ``output``.

    (N + M, L, D). As a cell of a decoy, a control cell is encoded without the decoy's effect.
    """
    device = next(model.parameters()).device
    offsets = Offsets(store, effects, device)
    cells = np.concatenate([np.arange(len(store)), store.decoy_rows])
    target = np.concatenate([store.target, store.decoy_target])
    done = 0
    for rows, counts in store.chunks(cells, batch):
        offset = offsets.of(rows, target[done : done + len(rows)])
        mean, _ = model.encode(remove_offset(torch.from_numpy(counts).to(device), offset))
        output[done : done + len(rows)] = mean.float().cpu().numpy()
        done += len(rows)
