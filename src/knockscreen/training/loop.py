"""One training loop for both models: step, average, validate, stop, resume.

Every random number of a step is a function of (seed, step), so a run that is interrupted and
resumed is the run that was not. Weights used and saved are the exponential moving average (EMA).
"""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from knockscreen.artifacts import atomic
from knockscreen.errors import ConfigError, DataError
from knockscreen.progress import bar

log = logging.getLogger(__name__)

M = TypeVar("M", bound=nn.Module)
LossFunction = Callable[[M, NDArray[np.int64], torch.Generator], Iterator[dict[str, Tensor]]]
"""(model, rows, generator) -> losses of a minibatch, the one to minimise under ``loss``.

They may come in parts that add up to the minibatch's mean: one part's tensors are in memory at a
time, and are small enough for the cache.
"""


@dataclass(frozen=True)
class TrainingSettings:
    """One optimisation; see the configuration's ``training`` sections for the meaning of each."""

    steps: int
    batch_size: int
    learning_rate: float
    warmup: float
    weight_decay: float
    betas: tuple[float, float]
    clip: float
    ema_decay: float
    validate_every: int
    patience: int
    precision: str = "auto"
    final_learning_rate: float = 0.1


@dataclass
class Progress:
    """Where a training is: enough, with the tensors, to go on exactly."""

    step: int = 0
    best: float = math.inf
    best_step: int = 0
    stale: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Data:
    """Rows to train on and rows to stop by (never the test rows)."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    validation_batch: int = 512


def learning_rate_factor(step: int, settings: TrainingSettings) -> float:
    """Return the share of the peak rate at ``step``: linear warm-up, then cosine to one tenth."""
    warmup = max(1, round(settings.warmup * settings.steps))
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, settings.steps - warmup)
    low = settings.final_learning_rate
    return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def step_generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    """Return the generator of one step, a function of (seed, step) alone."""
    mixed = np.random.SeedSequence([seed, step]).generate_state(2, np.uint32)
    generator = torch.Generator(device=device)
    generator.manual_seed(int(mixed[0]) << 31 | int(mixed[1]) >> 1)
    return generator


def minibatch_rows(rows: NDArray[np.int64], step: int, batch: int, seed: int) -> NDArray[np.int64]:
    """Return the rows of a step: every row once per epoch, in an order drawn from (seed, epoch)."""
    start = step * batch
    picked: list[NDArray[np.int64]] = []
    need = batch
    while need:
        epoch, offset = divmod(start, len(rows))
        order = np.random.default_rng([seed, epoch]).permutation(len(rows))
        part = rows[order[offset : offset + need]]
        picked.append(part)
        need -= len(part)
        start += len(part)
    return np.concatenate(picked)


def pick_device(name: str = "auto") -> torch.device:
    """Return the device: for ``auto`` a GPU where there is one.

    Raises
    ------
    ConfigError
        A GPU is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        msg = "device is 'cuda' and torch finds no GPU here; set it to auto or cpu."
        raise ConfigError(msg)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


class Trainer(Generic[M]):
    """Optimises a model, keeps its average, and stops by validation.

    ``identity`` tells this training from others of the same shapes, settings and seed: a state
    kept by another is not gone on from.
    """

    def __init__(
        self,
        model: M,
        loss: LossFunction[M],
        settings: TrainingSettings,
        *,
        seed: int,
        identity: str = "",
    ) -> None:
        self.model = model
        self.loss = loss
        self.settings = settings
        self.seed = seed
        self.identity = identity
        self.device = next(model.parameters()).device
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.ema = {n: p.detach().clone() for n, p in self.parameters.items()}
        self.best = {n: p.clone() for n, p in self.ema.items()}
        on_gpu = self.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            foreach=not on_gpu,
            fused=on_gpu,
        )
        self.progress = Progress()
        wanted = settings.precision
        self.autocast = wanted == "bfloat16" or (wanted == "auto" and self.device.type == "cuda")

    def _losses(
        self, rows: NDArray[np.int64], generator: torch.Generator, *, learn: bool
    ) -> dict[str, float]:
        """Return the losses of some rows, part by part; ``learn`` adds up the gradient."""
        totals: dict[str, float] = {}
        parts = self.loss(self.model, rows, generator)
        while True:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                part = next(parts, None)
            if part is None:
                return totals
            if learn:
                torch.autograd.backward(part["loss"])
            for name, value in part.items():
                totals[name] = totals.get(name, 0.0) + float(value.detach())

    def step(self, rows: NDArray[np.int64]) -> dict[str, float]:
        """Take one optimiser step on all ``rows`` of a minibatch; returns its losses."""
        s, p = self.settings, self.progress
        factor = learning_rate_factor(p.step, s)
        for group in self.optimizer.param_groups:
            group["lr"] = s.learning_rate * factor
        self.optimizer.zero_grad(set_to_none=True)
        generator = step_generator(self.seed, p.step, self.device)
        losses = self._losses(rows, generator, learn=True)
        nn.utils.clip_grad_norm_(self.parameters.values(), s.clip)
        self.optimizer.step()
        p.step += 1
        decay = min(s.ema_decay, (1 + p.step) / (10 + p.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.values()), list(self.parameters.values()), 1 - decay)
        return losses

    @torch.no_grad()
    def validate(self, data: Data) -> dict[str, float]:
        """Return the mean losses of the averaged weights on validation rows, by the same noise."""
        with self.averaged():
            totals: dict[str, float] = {}
            for i, start in enumerate(range(0, len(data.validation), data.validation_batch)):
                rows = data.validation[start : start + data.validation_batch]
                generator = step_generator(self.seed + 1, i, self.device)
                for name, value in self._losses(rows, generator, learn=False).items():
                    totals[name] = totals.get(name, 0.0) + value * len(rows)
        return {name: total / len(data.validation) for name, total in totals.items()}

    def averaged(self) -> "_Averaged":
        """Return a context in which the model carries its averaged weights, in evaluation mode."""
        return _Averaged(self.model, self.parameters, self.ema)

    def fit(self, data: Data, resume_dir: Path | None = None) -> Progress:
        """Train until the steps are done or validation no longer improves.

        ``resume_dir`` keeps the state at every validation; a second call goes on from there.

        Raises
        ------
        DataError
            There are no rows to train on or to stop by, or the state kept is damaged.
        ConfigError
            The loss is no longer finite.
        """
        _check_rows(data)
        if resume_dir is not None:
            self.restore(resume_dir)
        s, p = self.settings, self.progress
        recent: list[dict[str, float]] = []
        started = time.monotonic() - p.seconds
        with bar("training", s.steps, p.step) as advance:
            while p.step < s.steps and p.stale < s.patience:
                rows = minibatch_rows(data.train, p.step, s.batch_size, self.seed)
                self.model.train()
                recent.append(self.step(rows))
                advance()
                if p.step % s.validate_every and p.step < s.steps:
                    continue
                self._judge(data, recent)
                recent = []
                p.seconds = time.monotonic() - started
                log.info(
                    "step %d/%d  validation %.5g (best %.5g at %d)  %.0f s",
                    p.step, s.steps, p.history[-1]["loss"], p.best, p.best_step, p.seconds,
                )  # fmt: skip
                if resume_dir is not None:
                    self.keep(resume_dir)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(self.best[name])
        self.model.eval()
        return p

    def _judge(self, data: Data, recent: list[dict[str, float]]) -> None:
        """Validate, record the losses, and keep the averaged weights if they are the best yet."""
        s, p = self.settings, self.progress
        self._record("train", {k: float(np.mean([r[k] for r in recent])) for k in recent[0]})
        validated = self.validate(data)
        self._record("validation", validated)
        if not math.isfinite(validated["loss"]):
            msg = (
                f"the validation loss is {validated['loss']} at step {p.step}; lower "
                f"training.learning_rate (now {s.learning_rate:g}) or lengthen training.warmup."
            )
            raise ConfigError(msg)
        if validated["loss"] < p.best:
            p.best, p.best_step, p.stale = validated["loss"], p.step, 0
            self.best = {n: v.clone() for n, v in self.ema.items()}
        else:
            p.stale += 1

    def _record(self, split: str, losses: dict[str, float]) -> None:
        self.progress.history.append({"step": self.progress.step, "split": split, **losses})

    def keep(self, folder: Path) -> None:
        """Write the whole state: weights, average, best, optimiser moments, progress."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            tensors[f"model.{name}"] = parameter.detach()
            tensors[f"ema.{name}"] = self.ema[name]
            tensors[f"best.{name}"] = self.best[name]
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"adam.{key}.{name}"] = torch.as_tensor(value)
        clean = {n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}
        about = {"progress": json.dumps(vars(self.progress)), "key": self._key()}
        with atomic(folder / "last.safetensors") as temporary:
            save_file(clean, temporary, metadata=about)

    def restore(self, folder: Path) -> bool:
        """Load the state that :meth:`keep` wrote, if it is of this very training; say whether."""
        path = folder / "last.safetensors"
        if not path.is_file():
            return False
        try:
            with safe_open(path, framework="pt", device=str(self.device)) as handle:
                about = handle.metadata() or {}
                if about.get("key") != self._key():
                    log.info("resume file %s is of another training; starting afresh", path)
                    return False
                tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
        except SafetensorError as error:
            msg = f"resume file {path} is damaged ({error}); delete it to train from the start."
            raise DataError(msg) from None
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[f"model.{name}"])
                self.ema[name] = tensors[f"ema.{name}"]
                self.best[name] = tensors[f"best.{name}"]
                self.optimizer.state[parameter] = {
                    key: tensors[f"adam.{key}.{name}"].cpu()
                    if key == "step"
                    else tensors[f"adam.{key}.{name}"]
                    for key in ("step", "exp_avg", "exp_avg_sq")
                }
        self.progress = Progress(**json.loads(about["progress"]))
        log.info("resumed at step %d", self.progress.step)
        return True

    def _key(self) -> str:
        shapes = {name: list(p.shape) for name, p in self.parameters.items()}
        return json.dumps([self.identity, self.seed, vars(self.settings), shapes], sort_keys=True)


def _check_rows(data: Data) -> None:
    for rows, what, key in (
        (data.train, "train on", "splits"),
        (data.validation, "stop the training by", "splits.validation"),
    ):
        if not len(rows):
            msg = f"the store has no cells to {what}; change {key} and run normalize again."
            raise DataError(msg)


class _Averaged:
    """Swaps the averaged weights in, and the trained ones back."""

    def __init__(
        self, model: nn.Module, parameters: dict[str, nn.Parameter], ema: dict[str, Tensor]
    ) -> None:
        self.model, self.parameters, self.ema = model, parameters, ema

    def __enter__(self) -> None:
        self.kept = {n: p.detach().clone() for n, p in self.parameters.items()}
        self.model.eval()
        self._copy(self.ema)

    def __exit__(self, *_: object) -> None:
        self._copy(self.kept)

    @torch.no_grad()
    def _copy(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])
