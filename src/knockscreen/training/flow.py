"""Training of the flow: latents under contexts and knock-downs."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from knockscreen import checkpoint
from knockscreen.data.cells import CellStore, Vocabulary
from knockscreen.flow import interpolate
from knockscreen.models import effect as latent_effect
from knockscreen.models.effect import LatentEffect
from knockscreen.models.velocity import (
    UNSEEN,
    Condition,
    FlowSize,
    VelocityNet,
    VelocitySettings,
)
from knockscreen.names import Split
from knockscreen.training.loop import Data, Progress, Trainer, TrainingSettings
from knockscreen.training.vae import hash_vocabulary


@dataclass(frozen=True)
class FlowModel:
    """A trained flow with all that sampling needs beside the network."""

    net: VelocityNet
    vocabulary: Vocabulary
    latent_mean: Tensor
    """(L, D)"""
    latent_scale: Tensor
    """(L, D)"""
    features: Tensor | None
    """(G, F) features of the panel genes, NaN where unknown; None: no unseen targets."""
    effect: LatentEffect | None
    trained: tuple[bool, ...]
    """Which targets (by code) the network saw in training."""
    library_size_log: dict[str, tuple[float, float]]
    simulated: bool


@dataclass(frozen=True)
class FlowTraining:
    """Settings of the training beside the optimiser's."""

    condition_dropout: float
    target_dropout: float
    effect_shift: bool
    effect_rank: int


def target_features(vocabulary: Vocabulary, features: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return features (T, F) of the targets from those of the panel genes; NaN where unknown."""
    row = {gene_id: i for i, gene_id in enumerate(vocabulary.gene_ids)}
    out = np.full((len(vocabulary.target_ids), features.shape[1]), np.nan)
    for code, target_id in enumerate(vocabulary.target_ids):
        if target_id in row:
            out[code] = features[row[target_id]]
    return out


def latent_scaling(
    latents: NDArray[np.floating], rows: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return mean and standard deviation (L, D) over some rows."""
    total = np.zeros(latents.shape[1:])
    squares = np.zeros(latents.shape[1:])
    for start in range(0, len(rows), 8192):
        z = np.asarray(latents[rows[start : start + 8192]], dtype=float)
        total += z.sum(0)
        squares += (z**2).sum(0)
    mean = total / len(rows)
    sd = np.sqrt(np.maximum(squares / len(rows) - mean**2, 1e-6))
    return mean.astype(np.float32), sd.astype(np.float32)


class FlowLoss:
    """The flow-matching loss of a minibatch of rows, with independent condition dropout."""

    def __init__(
        self,
        latents: Tensor,
        contexts: Tensor,
        context_index: Tensor,
        target: Tensor,
        features: Tensor | None,
        shifts: tuple[Tensor, Tensor, Tensor] | None,
        settings: FlowTraining,
    ) -> None:
        self.latents = latents  # (N, L, D), standardised
        self.contexts = contexts  # (N, K)
        self.context_index = context_index  # (N,)
        self.target = target  # (N,)
        self.features = features  # (T, F), zero where unknown
        self.shifts = shifts  # basis (K, P), seen (T, C, K), left out (T, C, K)
        self.settings = settings

    def __call__(
        self, net: nn.Module, rows: NDArray[np.int64], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the mean squared error of the velocity, over tokens and dimensions."""
        assert isinstance(net, VelocityNet)
        device = self.latents.device
        index = torch.from_numpy(rows).to(device)
        n = len(rows)

        def dropped(share: float) -> Tensor:
            return torch.rand(n, generator=generator, device=device) < share

        x1 = self.latents[index]
        contexts = self.contexts[index].clone()
        target = self.target[index]
        is_null = dropped(self.settings.condition_dropout)
        is_control = target == 0
        is_unseen = dropped(self.settings.target_dropout) & ~is_control & ~is_null
        for k, levels in enumerate(net.settings.levels):
            contexts[dropped(self.settings.condition_dropout), k] = levels
        features = None
        if self.features is not None:
            features = torch.where(is_null[:, None], 0.0, self.features[target])
        else:
            is_unseen = torch.zeros_like(is_unseen)
        if self.shifts is not None:
            basis, seen, left_out = self.shifts
            c = self.context_index[index]
            coordinates = torch.where(is_unseen[:, None], left_out[target, c], seen[target, c])
            coordinates = coordinates * (~is_null)[:, None]
            x1 = x1 - (coordinates @ basis).view_as(x1)
        code = torch.where(is_unseen, UNSEEN, target)
        code = torch.where(is_null, net.null_target(), code)
        x0 = torch.randn(x1.shape, generator=generator, device=device)
        t = torch.rand(n, generator=generator, device=device)
        xt, velocity = interpolate(x0, x1, t)
        predicted = net(xt, t, Condition(contexts, code, features))
        return {"loss": (predicted.float() - velocity).square().mean()}


def fit_shift(
    latents: NDArray[np.float32],
    store: CellStore,
    features: NDArray[np.floating] | None,
    rank: int,
) -> tuple[LatentEffect, NDArray[np.float64]]:
    """Return the low-rank latent effect from training cells (N, P), and its left-out coordinates."""
    rows = store.rows(Split.TRAIN)
    vocabulary = store.vocabulary
    context = store.context_index()[rows]
    means, counts, covariance = latent_effect.latent_moments(
        latents[rows],
        np.asarray(store.target)[rows],
        context,
        len(vocabulary.target_ids),
        len(vocabulary.contexts),
    )
    of_targets = None if features is None else target_features(vocabulary, features)
    levels = latent_effect.all_levels(vocabulary.levels)
    return latent_effect.fit_effect(means, counts, covariance, levels, of_targets, rank)


def fit_flow(
    store: CellStore,
    latents: NDArray[np.floating],
    size: FlowSize,
    flow_training: FlowTraining,
    training: TrainingSettings,
    features: NDArray[np.floating] | None,
    *,
    seed: int,
    device: torch.device | None = None,
    resume_dir: Path | None = None,
) -> tuple[FlowModel, Progress]:
    """Train a flow on the latents (N, L, D) of the training split; stop by the validation split."""
    device = device or torch.device("cpu")
    vocabulary = store.vocabulary
    train = store.rows(Split.TRAIN)
    mean, scale = latent_scaling(latents, train)
    scaled = (np.asarray(latents, dtype=np.float32) - mean) / scale  # (N, L, D)
    effect = shifts = None
    if flow_training.effect_shift:
        flat = scaled.reshape(len(scaled), -1)
        effect, left_out = fit_shift(flat, store, features, flow_training.effect_rank)
        shifts = (_tensor(effect.basis), _tensor(effect.coordinates), _tensor(left_out))
    settings = VelocitySettings(
        size=size,
        latent_tokens=scaled.shape[1],
        latent_dim=scaled.shape[2],
        levels=tuple(len(level) for level in vocabulary.levels),
        targets=len(vocabulary.target_ids),
        features=0 if features is None else features.shape[1],
    )
    torch.manual_seed(seed)
    net = VelocityNet(settings).to(device)
    of_targets = None
    if features is not None:
        of_targets = _tensor(np.nan_to_num(target_features(vocabulary, features)))
    loss = FlowLoss(
        torch.from_numpy(scaled).to(device),
        torch.from_numpy(np.asarray(store.contexts, dtype=np.int64)).to(device),
        torch.from_numpy(store.context_index()).to(device),
        torch.from_numpy(np.asarray(store.target, dtype=np.int64)).to(device),
        None if of_targets is None else of_targets.to(device),
        None if shifts is None else (shifts[0].to(device), shifts[1].to(device), shifts[2].to(device)),
        flow_training,
    )
    identity = f"flow {len(store)} {flow_training} {hash_vocabulary(store)} {float(scaled[:8].sum()):.6g}"
    trainer = Trainer(net, loss, training, seed=seed, identity=identity)
    progress = trainer.fit(Data(train, store.rows(Split.VALIDATION), 2048), resume_dir)
    present = np.bincount(np.asarray(store.target)[train], minlength=len(vocabulary.target_ids)) > 0
    model = FlowModel(
        net=net,
        vocabulary=vocabulary,
        latent_mean=torch.from_numpy(mean),
        latent_scale=torch.from_numpy(scale),
        features=None if features is None else _tensor(features),
        effect=effect,
        trained=tuple(bool(p) for p in present),
        library_size_log=store.library_size_log,
        simulated=store.simulated,
    )
    return model, progress


def _tensor(values: NDArray[np.floating]) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def save_flow(path: Path, model: FlowModel, notes: dict[str, object]) -> None:
    """Write the checkpoint with vocabularies, scaling, features and the latent effect."""
    tensors = {f"net.{name}": value for name, value in model.net.state_dict().items()}
    tensors["latent_mean"] = model.latent_mean
    tensors["latent_scale"] = model.latent_scale
    if model.features is not None:
        tensors["features"] = model.features
    if model.effect is not None:
        tensors["effect.basis"] = _tensor(model.effect.basis)
        tensors["effect.coordinates"] = _tensor(model.effect.coordinates)
        tensors["effect.ridge"] = _tensor(model.effect.ridge)
    about = {
        "kind": "flow",
        "settings": asdict(model.net.settings),
        "vocabulary": checkpoint.describe_vocabulary(model.vocabulary),
        "trained": list(model.trained),
        "library_size_log": model.library_size_log,
        "simulated": model.simulated,
        "notes": notes,
    }
    checkpoint.save(path, tensors, about)


def load_flow(path: Path | str, device: torch.device | None = None) -> FlowModel:
    """Return a trained flow, in evaluation mode."""
    tensors, about = checkpoint.load(path, "flow")
    values = dict(about["settings"])
    settings = VelocitySettings(
        **{**values, "size": FlowSize(**values["size"]), "levels": tuple(values["levels"])}
    )
    net = VelocityNet(settings)
    net.load_state_dict({n[4:]: v for n, v in tensors.items() if n.startswith("net.")})
    effect = None
    if "effect.basis" in tensors:
        effect = LatentEffect(
            *(
                tensors[f"effect.{name}"].double().numpy()
                for name in ("basis", "coordinates", "ridge")
            )
        )
    return FlowModel(
        net=net.to(device or torch.device("cpu")).eval(),
        vocabulary=checkpoint.read_vocabulary(about),
        latent_mean=tensors["latent_mean"],
        latent_scale=tensors["latent_scale"],
        features=tensors.get("features"),
        effect=effect,
        trained=tuple(about["trained"]),
        library_size_log={k: (v[0], v[1]) for k, v in about["library_size_log"].items()},
        simulated=bool(about["simulated"]),
    )
