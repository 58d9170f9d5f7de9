"""Generated cells: every candidate in every context, paired with control by common random numbers.

The noise and the library size of draw r in context c are functions of (run seed, context, draw)
alone, the same for every knock-down and for control, so that a pair differs by the knock-down and
by nothing else. Shards and their order cannot matter: no random number knows of them.
Shapes: R draws, C contexts, G genes, B blocks of draws; n of the R draws where a target may stop
early (:mod:`knockscreen.stopping`).
"""

import copy
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from knockscreen import flow
from knockscreen.errors import DataError, UnknownNameError, suggest
from knockscreen.models.vae import Decoded, TransformerVAE
from knockscreen.models.velocity import UNSEEN, Condition, join
from knockscreen.names import CP10K, NTC
from knockscreen.nn.likelihood import detection_rate, expected_log1p, nb_sample
from knockscreen.stopping import Until
from knockscreen.training.effect import EffectModel
from knockscreen.training.flow import FlowModel

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance weights; 1 is no guidance."""

    strategy: str = "nested"
    context: float = 1.0
    perturbation: float = 1.0


@dataclass(frozen=True)
class SamplerSettings:
    """How cells are generated."""

    seed: int
    draws: int
    blocks: int
    solver: str
    steps: int
    guidance: Guidance
    batch_size: int


@dataclass(frozen=True)
class Target:
    """A candidate as the model knows it: a learned code, or the features of an unseen gene."""

    code: int
    """Code of a trained target (0: control), or ``UNSEEN``."""
    features: Tensor | None
    """(F,)"""
    offsets: Tensor
    """(C, G) linear part of the knock-down, natural log of expression."""


def draw_generator(seed: int, context: str, draw: int) -> np.random.Generator:
    """Return the random stream of one draw, a function of (run seed, context, draw)."""
    name = int.from_bytes(hashlib.sha256(context.encode()).digest()[:8], "big")
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, name, draw])))


class Sampler:
    """Generates latents and NB parameters for a target in a context.

    Library sizes are over all genes everywhere. A VAE that counts them over the panel is given its
    share of them, by context (``panel_shares``), so that its counts mean what all others mean.
    """

    def __init__(
        self,
        vae: TransformerVAE,
        model: FlowModel,
        effects: EffectModel,
        settings: SamplerSettings,
        panel_shares: dict[str, float] | None = None,
    ) -> None:
        shares = panel_shares if vae.settings.library == "panel" and panel_shares else {}
        self.panel_share = [shares.get(name, 1.0) for name in model.vocabulary.contexts]
        self.vae = vae
        self.model = model
        self.effects = effects
        self.base = torch.from_numpy(effects.base()).to(next(vae.parameters()).device)
        self.settings = settings
        self.solve = flow.SOLVERS[settings.solver]
        self.device = next(vae.parameters()).device
        self.mean = model.latent_mean.to(self.device)
        self.scale = model.latent_scale.to(self.device)
        self.width = model.net.settings.features

    def changed(self, solve: flow.Solver | None = None, **settings: Any) -> "Sampler":
        """Return this sampler with other settings, or another solver; the networks are shared."""
        other = copy.copy(self)
        other.settings = replace(self.settings, **settings)
        other.solve = solve or flow.SOLVERS[other.settings.solver]
        return other

    def is_seen(self, gene_id: str) -> bool:
        """Return whether a target was knocked down in training cells (control included)."""
        code = self.model.vocabulary.target_code(gene_id)
        return code == 0 or (code > 0 and self.effects.trained[code])

    def target(self, gene_id: str) -> Target:
        """Return how the model knows a target, by Ensembl id (or the control label).

        Raises
        ------
        UnknownNameError
            The gene was not trained and has no features: it is not on the panel.
        """
        vocabulary = self.model.vocabulary
        code = vocabulary.target_code(gene_id)
        found = self.effects.features_of(gene_id) if code != 0 else None
        features = None
        if self.width:
            features = torch.zeros(self.width) if found is None else torch.from_numpy(found)
        offsets = torch.from_numpy(self.effects.offsets(gene_id)).to(self.device)
        if self.is_seen(gene_id):
            return Target(code, features, offsets)
        if found is None:
            msg = (
                f"'{gene_id}' was never knocked down in training and has no features on the panel, "
                f"so nothing can be predicted for it{suggest(gene_id, vocabulary.gene_ids)}."
            )
            raise UnknownNameError(msg)
        return Target(UNSEEN, features, offsets)

    def noise(self, context: str, draws: range) -> tuple[Tensor, Tensor]:
        """Return the noise (R, L, D) and the library sizes (R,) of some draws of a context."""
        if context not in self.model.library_size_log:
            known = self.model.library_size_log
            msg = f"no library sizes for context '{context}'{suggest(context, known)}."
            raise UnknownNameError(msg)
        mu, sd = self.model.library_size_log[context]
        shape = (self.model.net.settings.latent_tokens, self.model.net.settings.latent_dim)
        noise = np.empty((len(draws), *shape), dtype=np.float32)
        library = np.empty(len(draws), dtype=np.float32)
        for i, draw in enumerate(draws):
            rng = draw_generator(self.settings.seed, context, draw)
            library[i] = np.exp(mu + sd * rng.standard_normal())
            noise[i] = rng.standard_normal(shape, dtype=np.float32)
        return torch.from_numpy(noise).to(self.device), torch.from_numpy(library).to(self.device)

    def terms(self) -> flow.Terms:
        """Return the terms of the guided velocity: one, without guidance."""
        g = self.settings.guidance
        if g.strategy == "nested":
            return flow.guide_nested(context=g.context, perturbation=g.perturbation)
        if g.strategy == "joint":
            return flow.guide_joint(weight=g.perturbation)
        return flow.guide_additive(context=g.context, perturbation=g.perturbation)

    def velocity(self, condition: Condition) -> flow.Velocity:
        """Return the guided velocity of some rows; all its terms are one pass of the network."""
        net, terms = self.model.net, self.terms()
        levels = torch.tensor(net.settings.levels, device=self.device)
        no_context = levels.expand_as(condition.contexts)
        no_target = torch.full_like(condition.target, net.null_target())
        features = condition.features
        none = None if features is None else torch.zeros_like(features)
        known = {
            "null": Condition(no_context, no_target, none),
            "context": Condition(condition.contexts, no_target, none),
            "alone": Condition(no_context, condition.target, features),
            "full": condition,
        }
        given = join([known[name] for name in terms])
        return flow.guided(lambda x, t: net(x, t, given), list(terms.values()))

    @torch.no_grad()
    def latents(self, target: Target, contexts: list[str], noise: Tensor) -> Tensor:
        """Return latents (n, L, D) of one target, row i in ``contexts[i]`` from ``noise[i]``."""
        v = self.model.vocabulary
        codes = np.stack([v.context_codes(name) for name in contexts])
        n = len(contexts)
        features = None
        if target.features is not None:
            features = target.features.to(self.device).expand(n, -1)
        condition = Condition(
            torch.from_numpy(codes).to(self.device),
            torch.full((n,), target.code, device=self.device),
            features,
        )
        pieces = []
        batch = max(1, self.settings.batch_size // len(self.terms()))
        for start in range(0, n, batch):
            rows = slice(start, start + batch)
            velocity = self.velocity(condition.rows(rows))
            pieces.append(self.solve(velocity, noise[rows], self.settings.steps))
        x = torch.cat(pieces)
        return x * self.scale + self.mean

    @torch.no_grad()
    def decode(self, z: Tensor, library: Tensor, target: Target, contexts: list[str]) -> Decoded:
        """Return NB parameters (n, G) of one target's latents at library sizes (n,) over all genes.

        The linear part of the knock-down is multiplied by the perturbation's guidance weight.
        """
        known = self.model.vocabulary.contexts
        index = torch.tensor([known.index(name) for name in contexts], device=self.device)
        weight = self.settings.guidance.perturbation
        offset = self.base[index] + weight * target.offsets[index]  # (n, G)
        library = library * torch.tensor(self.panel_share, device=self.device)[index]
        batch = self.settings.batch_size
        parts = [
            self.vae.decode(z[i : i + batch], library[i : i + batch], offset[i : i + batch])
            for i in range(0, len(z), batch)
        ]
        mu = torch.cat([p.mu for p in parts])
        theta = parts[0].theta if parts[0].theta.dim() == 1 else torch.cat([p.theta for p in parts])
        return Decoded(mu, theta)


@dataclass(frozen=True)
class Draws:
    """The draws of one target in all contexts, as expectations over the counts of each cell."""

    log1p: Array
    """(C, n, G) expected log1p CP10k of each draw's cell."""
    mean_count: Array
    """(C, G)"""
    var_log1p: Array
    """(C, G) variance over cells of log1p CP10k of sampled counts."""
    detection: Array
    """(C, G)"""


class Screen:
    """The draws of every target in fixed contexts; noise is made once and shared by all targets.

    ``by_block`` makes the draws of each block in a pass of their own, those of the control too, as
    targets may stop after any: rounding depends on what a pass holds, and cancels in pairs.
    """

    def __init__(self, sampler: Sampler, contexts: list[str], *, by_block: bool = False) -> None:
        self.sampler = sampler
        self.by_block = by_block
        self.contexts = contexts
        self.draws = sampler.settings.draws
        parts = [sampler.noise(name, range(self.draws)) for name in contexts]
        self.noise = torch.cat([p[0] for p in parts])  # (C R, L, D)
        self.library = torch.cat([p[1] for p in parts])  # (C R,)
        self.rows = [name for name in contexts for _ in range(self.draws)]

    @torch.no_grad()
    def generate(self, gene_id: str, enough: Callable[[Array], bool] | None = None) -> Draws:
        """Return the draws of one target (or of the control) in every context.

        ``enough`` is given the log1p (C, n, G) of the draws so far after every block from the
        second on, and true is the last.
        """
        target = self.sampler.target(gene_id)
        ends = np.cumsum(np.bincount(self.blocks())).tolist() if self.by_block else [self.draws]
        made: list[tuple[Decoded, Tensor]] = []
        log1p: list[Array] = []
        for first, last in zip([0, *ends], ends, strict=False):
            decoded, mean = self._decoded(target, slice(first, last))
            made.append((decoded, mean))
            log1p.append(_array(mean))
            if enough is not None and 1 < len(made) < len(ends) and enough(np.hstack(log1p)):
                break
        mu = torch.cat([decoded.mu for decoded, _ in made], 1)
        theta = made[0][0].theta
        if theta.dim() > 1:
            theta = torch.cat([decoded.theta for decoded, _ in made], 1)
        return self._summed_up(Decoded(mu, theta), np.hstack(log1p))

    def _decoded(self, target: Target, draws: slice) -> tuple[Decoded, Tensor]:
        """Return NB parameters and expected log1p CP10k, (C, n, G) each, of some draws."""
        noise = self._rows(self.noise, draws)
        library = self._rows(self.library, draws)
        rows = np.reshape(self.rows, (len(self.contexts), self.draws))[:, draws].ravel().tolist()
        z = self.sampler.latents(target, rows, noise)
        mu, theta = self.sampler.decode(z, library, target, rows)
        mean = expected_log1p(mu, theta, CP10K / library[:, None])
        shape = (len(self.contexts), -1, mu.shape[1])
        theta = theta if theta.dim() == 1 else theta.view(shape)
        return Decoded(mu.view(shape), theta), mean.view(shape)

    def _rows(self, values: Tensor, draws: slice) -> Tensor:
        """Return values (C R, ...) of some draws of every context."""
        return values.view(len(self.contexts), self.draws, *values.shape[1:])[:, draws].flatten(
            0, 1
        )

    def _summed_up(self, decoded: Decoded, log1p: Array) -> Draws:
        """Return the statistics of the first n draws, the same however they were divided."""
        mu, theta = decoded
        shape, n = mu.shape, mu.shape[1]
        scale = CP10K / self._rows(self.library, slice(n))[:, None]
        flat = mu.flatten(0, 1)
        theta = theta if theta.dim() == 1 else theta.flatten(0, 1)
        generator = torch.Generator(device=mu.device).manual_seed(self.sampler.settings.seed)
        between = torch.log1p(nb_sample(flat, theta, generator) * scale).view(shape)
        return Draws(
            log1p=log1p,
            mean_count=_array(mu.mean(1)),
            var_log1p=_array(between.var(1, unbiased=True) if n > 1 else between[:, 0] * 0),
            detection=_array(detection_rate(flat, theta).view(shape).mean(1)),
        )

    def blocks(self) -> NDArray[np.int64]:
        """Return the block (R,) of each draw."""
        return np.arange(self.draws) * self.sampler.settings.blocks // self.draws


def _array(x: Tensor) -> Array:
    return np.asarray(x.float().cpu().numpy(), dtype=np.float32)


def block_means(values: Array, blocks: NDArray[np.int64]) -> Array:
    """Return means (B, C, G) of values (C, R, G) over the draws of each block."""
    return np.stack([values[:, blocks == b].mean(1) for b in range(int(blocks.max()) + 1)])


def control_statistics(screen: Screen) -> dict[str, Array]:
    """Return the control's statistics, named as in shard files, and its draws for pairing."""
    draws = screen.generate(NTC)
    return {
        "mean_count": draws.mean_count,
        "mean_log1p": draws.log1p.mean(1),
        "var_log1p": draws.var_log1p,
        "detection": draws.detection,
        "block_log1p": block_means(draws.log1p, screen.blocks()),
        "draw_log1p": draws.log1p,
    }


def shard_statistics(
    screen: Screen, gene_ids: list[str], control_draws: Array, until: Until | None = None
) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield the statistics of each target, (C, G) each and (B, C, G) for the blocks.

    ``delta`` is the paired difference, target minus control, of the same draw. With ``until`` a
    target has no more draws than it needs, the first ``n_draws``, and NaN in blocks not drawn: a
    function of the target, the seed and the settings, so that shards cannot matter.

    Raises
    ------
    DataError
        The control was generated with other contexts, draws or genes.
    ValueError
        ``until`` for a screen that is not made by block.
    """
    if until is not None and not screen.by_block:
        msg = "draws stop after blocks, and this screen is not made by block"
        raise ValueError(msg)
    genes = len(screen.sampler.model.vocabulary.gene_ids)
    expected = (len(screen.contexts), screen.draws, genes)
    if control_draws.shape != expected:
        msg = (
            f"the control holds (contexts, draws, genes) {control_draws.shape}, the screen wants "
            f"{expected}; generate the control again."
        )
        raise DataError(msg)
    blocks = screen.blocks()
    for gene_id in gene_ids:

        def enough(log1p: Array, gene_id: str = gene_id) -> bool:
            n = log1p.shape[1]
            made = block_means(log1p - control_draws[:, :n], blocks[:n])
            return until is None or until.reached(gene_id, made)

        draws = screen.generate(gene_id, enough if until else None)
        n = draws.log1p.shape[1]
        delta = draws.log1p - control_draws[:, :n]  # (C, n, G)
        ddof = 1 if n > 1 else 0
        by_block = np.full((blocks[-1] + 1, *draws.mean_count.shape), np.nan, dtype=np.float32)
        by_block[: blocks[n - 1] + 1] = block_means(delta, blocks[:n])
        yield {
            "n_draws": np.array(n, dtype=np.int32),
            "mean_count": draws.mean_count,
            "mean_log1p": draws.log1p.mean(1),
            "var_log1p": draws.var_log1p,
            "detection": draws.detection,
            "delta_mean": delta.mean(1),
            "delta_var": delta.var(1, ddof=ddof),
            "block_delta": by_block,
        }
