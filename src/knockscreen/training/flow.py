"""Training of the flow: latents under contexts and knock-downs."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from knockscreen import checkpoint
from knockscreen.data.cells import CellStore, Vocabulary
from knockscreen.flow import interpolate
from knockscreen.models.velocity import (
    UNSEEN,
    Condition,
    FlowSize,
    VelocityNet,
    VelocitySettings,
)
from knockscreen.names import Split
from knockscreen.training.effect import EffectModel, target_features
from knockscreen.training.loop import Data, Progress, Trainer, TrainingSettings
from knockscreen.training.transfer import Start
from knockscreen.training.vae import hash_inputs

Network = Callable[[Tensor, Tensor, Condition], Tensor]

COMPILE_FLOP = 1e14
"""Arithmetic of about a quarter of an hour on one CPU core, of which compiling takes a minute."""


@dataclass(frozen=True)
class FlowModel:
    """A trained flow with all that sampling needs beside the network."""

    net: VelocityNet
    vocabulary: Vocabulary
    latent_mean: Tensor
    """(L, D)"""
    latent_scale: Tensor
    """(L, D)"""
    library_size_log: dict[str, tuple[float, float]]
    simulated: bool


@dataclass(frozen=True)
class FlowTraining:
    """Settings of the training beside the optimiser's."""

    size: FlowSize
    condition_dropout: float
    target_dropout: float
    gaussian: bool = True
    """Whether the network learns what the velocity has beyond that of normal latents."""
    version: str = ""
    """Version of the training's code: a state of another one is not gone on from."""


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


def worth_compiling(net: VelocityNet, training: TrainingSettings) -> bool:
    """Tell whether a training is long enough to compile the network for it first, on a CPU.

    By its arithmetic, six operations per weight, token and row: a rule by seconds would depend on
    the machine. On a GPU nothing was measured, so that it is left to ``flow.compile``.
    """
    device = net.output.weight.device.type
    weights = sum(p.numel() for p in net.blocks.parameters())
    rows = training.steps * training.batch_size
    return device == "cpu" and 6 * weights * net.settings.latent_tokens * rows > COMPILE_FLOP


def compile_network(net: VelocityNet) -> Network:
    """Return the network compiled for the shapes it is given; weights are shared with ``net``."""
    compiled: Network = torch.compile(net, dynamic=False)
    return compiled


@dataclass(frozen=True)
class FlowLoss:
    """The flow-matching loss of a minibatch of rows, with independent condition dropout.

    N rows: the cells of the store, and after them those of the decoys.
    """

    latents: Tensor
    """(N, L, D), standardised."""
    contexts: Tensor
    """(N, K) level codes."""
    target: Tensor
    """(N,) codes."""
    features: Tensor | None
    """(T, F), zero where unknown."""
    settings: FlowTraining
    compiled: Network | None = None
    """The network compiled, for training alone: validation has other shapes."""

    def __call__(
        self, net: VelocityNet, rows: NDArray[np.int64], generator: torch.Generator
    ) -> Iterator[dict[str, Tensor]]:
        """Yield the mean squared error of the velocity, over tokens and dimensions."""
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
        code = torch.where(is_unseen, UNSEEN, target)
        code = torch.where(is_null, net.null_target(), code)
        x0 = torch.randn(x1.shape, generator=generator, device=device)
        t = torch.rand(n, generator=generator, device=device)
        xt, velocity = interpolate(x0, x1, t)
        network: Network = net
        if self.compiled is not None and torch.is_grad_enabled():
            network = self.compiled
        predicted = network(xt, t, Condition(contexts, code, features))
        yield {"loss": (predicted.float() - velocity).square().mean()}


def fit_flow(
    store: CellStore,
    latents: NDArray[np.floating],
    flow_training: FlowTraining,
    training: TrainingSettings,
    effects: EffectModel,
    *,
    seed: int,
    device: torch.device | None = None,
    resume_dir: Path | None = None,
    start: Start | None = None,
    compiling: str = "never",
) -> tuple[FlowModel, Progress]:
    """Train a flow on the latents (N, L, D) of the training split; stop by the validation split.

    The latents of the decoys' cells follow those of the store's; they train as those of a real
    target do, and neither scale the latents nor stop the training. ``compiling`` is ``never``,
    ``always``, or ``auto``: where :func:`worth_compiling` says so.
    """
    device = device or torch.device("cpu")
    vocabulary = store.vocabulary
    train = store.rows(Split.TRAIN)
    mean, scale = latent_scaling(latents, train)
    scaled = (np.asarray(latents, dtype=np.float32) - mean) / scale  # (N, L, D)
    settings = VelocitySettings(
        size=flow_training.size,
        latent_tokens=scaled.shape[1],
        latent_dim=scaled.shape[2],
        levels=tuple(len(level) for level in vocabulary.levels),
        targets=len(vocabulary.target_ids),
        features=0 if effects.features is None else effects.features.shape[1],
        gaussian=flow_training.gaussian,
    )
    torch.manual_seed(seed)
    net = VelocityNet(settings)
    if start is not None:
        start.apply(net)
    codes = np.asarray(store.contexts, dtype=np.int64)
    if net.gaussians is not None:
        net.gaussians.fit(torch.from_numpy(scaled[train]), torch.from_numpy(codes[train]))
    net.to(device)
    of_targets = None
    if effects.features is not None:
        known = target_features(effects)
        of_targets = torch.from_numpy(np.nan_to_num(known).astype(np.float32))
    use = compiling == "always" or (compiling == "auto" and worth_compiling(net, training))
    loss = FlowLoss(
        torch.from_numpy(scaled).to(device),
        torch.from_numpy(np.concatenate([codes, codes[store.decoy_rows]])).to(device),
        torch.from_numpy(np.concatenate([store.target, store.decoy_target]).astype(int)).to(device),
        None if of_targets is None else of_targets.to(device),
        flow_training,
        compile_network(net) if use else None,
    )
    identity = f"{flow_training} {hash_inputs(store, effects, start, latents)}"
    trainer = Trainer(net, loss, training, seed=seed, identity=identity)
    rows = np.concatenate([train, len(store) + np.arange(len(store.decoy_rows))])
    progress = trainer.fit(Data(rows, store.rows(Split.VALIDATION), 2048), resume_dir)
    model = FlowModel(
        net=net,
        vocabulary=vocabulary,
        latent_mean=torch.from_numpy(mean),
        latent_scale=torch.from_numpy(scale),
        library_size_log=store.library_size_log,
        simulated=store.simulated,
    )
    return model, progress


def save_flow(path: Path, model: FlowModel, notes: dict[str, object]) -> None:
    """Write the checkpoint with its vocabularies, latent scaling and library sizes."""
    tensors = {f"net.{name}": value for name, value in model.net.state_dict().items()}
    tensors["latent_mean"] = model.latent_mean
    tensors["latent_scale"] = model.latent_scale
    about = {
        "kind": "flow",
        "settings": asdict(model.net.settings),
        "vocabulary": checkpoint.describe_vocabulary(model.vocabulary),
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
    return FlowModel(
        net=net.to(device or torch.device("cpu")).eval(),
        vocabulary=checkpoint.read_vocabulary(about),
        latent_mean=tensors["latent_mean"],
        latent_scale=tensors["latent_scale"],
        library_size_log={k: (v[0], v[1]) for k, v in about["library_size_log"].items()},
        simulated=bool(about["simulated"]),
    )
