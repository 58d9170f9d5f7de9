"""The Diffusion Transformer: velocity of a latent under a context and a knock-down.

DiT (Peebles & Xie 2023) over latent tokens with adaLN-Zero. The condition is the sum of the time
embedding, one learned vector per context factor, and one per target; a gene never knocked down in
training enters through a projection of its features instead of a learned vector. By default the
network learns what the velocity has beyond that of normal latents with the mean and variance of
their context, which is known (:class:`ContextGaussians`).
Shapes: B cells, L latent tokens, D latent width, W model width, K context factors, F features.
"""

import itertools
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from knockscreen.nn.blocks import AdaLNBlock, layer_norm, modulate, position_table, time_features
from knockscreen.nn.linear import Linear

TIME_FEATURES = 256
UNSEEN = -1
"""Target code of a gene without a learned vector: only its features speak."""


@dataclass(frozen=True)
class FlowSize:
    """The numbers that make a named size."""

    width: int
    layers: int
    heads: int


FLOW_SIZES = {
    "tiny": FlowSize(32, 2, 2),
    "small": FlowSize(128, 4, 4),
    "base": FlowSize(256, 6, 8),
    "cd4": FlowSize(512, 8, 8),
}


@dataclass(frozen=True)
class VelocitySettings:
    """What the network is; enough to rebuild it."""

    size: FlowSize
    latent_tokens: int
    latent_dim: int
    levels: tuple[int, ...]
    """Levels of each context factor."""
    targets: int
    """Learned targets, control included."""
    features: int = 0
    gaussian: bool = False
    """Whether the velocity starts from that of normal latents."""


@dataclass(frozen=True)
class Condition:
    """What each row is conditioned on. A code equal to the number of levels is the null."""

    contexts: Tensor
    """(B, K) codes of the context levels."""
    target: Tensor
    """(B,) code of the target, or ``UNSEEN``."""
    features: Tensor | None = field(default=None)
    """(B, F) features of the target gene (zero for control and for null)."""

    def rows(self, index: Tensor | slice) -> "Condition":
        """Return the condition of some rows."""
        features = None if self.features is None else self.features[index]
        return Condition(self.contexts[index], self.target[index], features)


def join(conditions: list[Condition]) -> Condition:
    """Return the rows of several conditions, one after the other."""
    features = [c.features for c in conditions if c.features is not None]
    return Condition(
        torch.cat([c.contexts for c in conditions]),
        torch.cat([c.target for c in conditions]),
        torch.cat(features) if features else None,
    )


class ContextGaussians(nn.Module):
    """The exact velocity of normal latents whose mean and variance are those of their context.

    Buffers and no parameters: fitted before training, part of every checkpoint. A context is any
    combination of levels, nulls among them.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, levels: tuple[int, ...], tokens: int, dim: int) -> None:
        super().__init__()
        self.levels = levels
        contexts = math.prod(n + 1 for n in levels)
        self.register_buffer("mean", torch.zeros(contexts, tokens, dim))
        self.register_buffer("variance", torch.ones(contexts, tokens, dim))

    def index(self, codes: Tensor) -> Tensor:
        """Return the row (B,) of each combination of level codes (B, K)."""
        row = torch.zeros(len(codes), dtype=torch.long, device=codes.device)
        for k, n in enumerate(self.levels):
            row = row * (n + 1) + codes[:, k]
        return row

    @torch.no_grad()
    def fit(self, latents: Tensor, codes: Tensor, prior: float = 50.0) -> None:
        """Take mean and variance of each combination from standardised latents (N, L, D).

        Of cells with codes (N, K), ``prior`` standard normal ones taken to be among those of each
        combination. A null holds every level.
        """
        for combination in itertools.product(*(range(n + 1) for n in self.levels)):
            wanted = torch.tensor(combination)
            free = wanted == torch.tensor(self.levels)
            x = latents[((codes == wanted) | free).all(1)].double()
            total = len(x) + prior
            mean = x.sum(0) / total
            row = self.index(wanted[None])[0]
            self.mean[row] = mean
            self.variance[row] = (x.square().sum(0) + prior) / total - mean.square()

    def forward(self, x: Tensor, t: Tensor, codes: Tensor) -> Tensor:
        """Return E[x_1 - x_0 | x_t] (B, L, D) at x (B, L, D), flow time t (B, 1, 1)."""
        row = self.index(codes)
        mean, variance = self.mean[row], self.variance[row]
        slope = (t * variance - (1 - t)) / (t**2 * variance + (1 - t) ** 2)
        return mean + slope * (x - t * mean)


class VelocityNet(nn.Module):
    """v(x_t, t, condition): (B, L, D) -> (B, L, D)."""

    def __init__(self, settings: VelocitySettings) -> None:
        super().__init__()
        self.settings = settings
        width = settings.size.width
        self.factors = nn.ModuleList(nn.Embedding(n + 1, width) for n in settings.levels)
        self.target = nn.Embedding(settings.targets + 1, width)
        self.time = nn.Sequential(Linear(TIME_FEATURES, width), nn.SiLU(), Linear(width, width))
        self.input = Linear(settings.latent_dim, width, bias=False)
        self.position = nn.Parameter(
            position_table(settings.latent_tokens, width), requires_grad=False
        )
        self.blocks = nn.ModuleList(
            AdaLNBlock(width, settings.size.heads) for _ in range(settings.size.layers)
        )
        self.norm = layer_norm(width, affine=False)
        self.final_modulation = Linear(width, 2 * width, bias=False)
        self.output = Linear(width, settings.latent_dim, bias=False)
        if settings.features:
            self.project: nn.Linear | None = Linear(settings.features, width, bias=False)
            self.unseen: nn.Parameter | None = nn.Parameter(torch.zeros(width))
        else:
            self.project = self.unseen = None
        self.gaussians: ContextGaussians | None = None
        if settings.gaussian:
            self.gaussians = ContextGaussians(
                settings.levels, settings.latent_tokens, settings.latent_dim
            )
        self._init_weights()

    def _init_weights(self) -> None:
        for table in (*self.factors, self.target):
            nn.init.normal_(table.weight, std=0.02)
        for layer in self.time:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        nn.init.xavier_uniform_(self.input.weight)
        nn.init.zeros_(self.final_modulation.weight)
        nn.init.zeros_(self.output.weight)
        if self.project is not None:
            nn.init.normal_(self.project.weight, std=0.02)

    def null_target(self) -> int:
        """Return the target code that means "no target given"."""
        return self.settings.targets

    def embed(self, t: Tensor, condition: Condition) -> Tensor:
        """Return the condition vector (B, W) after its SiLU."""
        c: Tensor = self.time(time_features(t, TIME_FEATURES))
        for k, table in enumerate(self.factors):
            c = c + table(condition.contexts[:, k])
        learned = self.target(condition.target.clamp_min(0))  # (B, W)
        if self.project is not None and self.unseen is not None:
            is_unseen = (condition.target == UNSEEN)[:, None]
            learned = torch.where(is_unseen, self.unseen[None], learned)
            if condition.features is not None:
                learned = learned + self.project(condition.features)
        elif bool((condition.target == UNSEEN).any()):
            msg = (
                "this model was trained without gene features, so it cannot generate unseen targets"
            )
            raise ValueError(msg)
        return F.silu(c + learned)

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return the velocity (B, L, D) at x (B, L, D) and flow time t (B,).

        Standard normal latents have x_t of variance ``s2 = t^2 + (1 - t)^2``, and a velocity that
        x_t leaves uncertain with variance ``1 / s2``. Beside the Gaussians the network reads and
        writes in these units, as Karras et al. (2022, eq. 7) have it for diffusion.
        """
        if self.gaussians is None:
            return self.learned(x, t, condition)
        time = t.to(x.dtype).view(-1, 1, 1)
        scale = (time**2 + (1 - time) ** 2).rsqrt()
        known: Tensor = self.gaussians(x, time, condition.contexts)
        return known + scale * self.learned(scale * x, t, condition)

    def learned(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return what the network itself says, (B, L, D): zero before training."""
        c = self.embed(t, condition)  # (B, W)
        h = self.input(x) + self.position  # (B, L, W)
        for block in self.blocks:
            h = block(h, c)
        shift, scale = self.final_modulation(c).chunk(2, dim=-1)
        out: Tensor = self.output(modulate(self.norm(h), shift, scale))  # (B, L, D)
        return out
