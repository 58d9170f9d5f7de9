"""Sections of the configuration of the model and the screen it generates."""

from typing import Literal

from pydantic import Field, FiniteFloat, field_validator
from pydantic_core.core_schema import ValidationInfo

from knockscreen.config.base import Fraction, InputPath, NonNegative, Positive, Section


class TrainingConfig(Section):
    """One optimisation."""

    steps: Positive = Field(description="optimiser steps at most")
    batch_size: Positive = Field(description="cells per step")
    learning_rate: float = Field(gt=0, description="peak, whatever the number of devices")
    warmup: Fraction = Field(description="share of steps with rising rate")
    weight_decay: float = Field(ge=0, description="AdamW weight decay")
    betas: tuple[float, float] = Field(description="AdamW betas")
    clip: float = Field(gt=0, description="largest gradient norm")
    ema_decay: float = Field(ge=0, lt=1, description="decay of the averaged weights, those used")
    validate_every: Positive = Field(description="steps between validations (and resume points)")
    patience: Positive = Field(description="validations without improvement before stopping")
    precision: Literal["auto", "float32", "bfloat16"] = Field(description="auto: bfloat16 on a GPU")
    workers: NonNegative = Field(description="torch threads; 0: as many as the job has")


class EffectConfig(Section):
    """What is fitted before the networks: gene features and the linear part of the knock-downs."""

    model: Literal["none", "low_rank"] = Field(
        description="low_rank: an offset of the logits, the flow learns the rest; none"
    )
    rank: Positive = Field(description="components of the low-rank effect")
    keep_cells: float = Field(gt=0, description="cells at which half of the rest is kept")
    features: Literal["none", "coexpression"] | InputPath = Field(
        description="or a table of gene, v1, v2, ..."
    )
    feature_dims: Positive = Field(description="components kept of co-expression features")


class VaeConfig(Section):
    """Transformer VAE: counts to latent tokens to NB counts."""

    size: Literal["tiny", "small", "base", "cd4"] = Field(description="named size")
    input: Literal["softbin", "log1p"] = Field(description="how a count enters its token")
    dispersion: Literal["shared", "cell"] = Field(description="NB: per gene, or per gene and cell")
    library: Literal["all", "panel"] = Field(description="sum of all genes, or the panel")
    kl_weight: float = Field(ge=0, description="beta of the beta-VAE; 0: deterministic autoencoder")
    thinning: Fraction = Field(description="share of counts hidden from the encoder")
    linear: NonNegative = Field(description="components of the linear part of the cells")
    init_from: InputPath | None = Field(description="checkpoint (.safetensors) to start from")
    training: TrainingConfig


class FlowConfig(Section):
    """Diffusion Transformer trained by flow matching."""

    size: Literal["tiny", "small", "base", "cd4"] = Field(description="named size")
    condition_dropout: Fraction = Field(description="rows without a condition, drawn for each")
    target_dropout: Fraction = Field(description="rows without target embedding")
    compile: Literal["auto", "never", "always"] = Field(
        description="compile the network first; auto: on a CPU, for long trainings"
    )
    gaussian: bool = Field(description="learn what is beyond the velocity of normal latents")
    init_from: InputPath | None = Field(description="checkpoint (.safetensors) to start from")
    training: TrainingConfig


class GuidanceConfig(Section):
    """Classifier-free guidance; weight 1 is none."""

    strategy: Literal["nested", "joint", "additive"] = Field(description="how they combine")
    context: float = Field(ge=0, description="weight of the context")
    perturbation: float = Field(ge=0, description="weight of the knock-down")


class ScreenConfig(Section):
    """Which knock-downs to generate, where, and how."""

    candidates: InputPath = Field(description="all, measured, or a file of genes")
    contexts: list[str] | Literal["all"] = Field(description="all, or factor=level[,factor=level]")
    draws: Positive = Field(description="generated cells per knock-down and context")
    blocks: Positive = Field(description="groups of draws kept apart for intervals")
    tolerance: FiniteFloat | None = Field(
        None, gt=0, description="simulation error of program scores at which draws stop; null: all"
    )
    solver: Literal["euler", "midpoint", "heun", "rk4", "ab2", "dopri5"] = Field(
        description="ODE solver"
    )
    steps: Positive = Field(description="solver steps")
    guidance: GuidanceConfig
    batch_size: Positive = Field(description="cells per forward pass; changes speed only")
    shards: Positive = Field(description="jobs the candidates are divided into; changes speed only")
    save_cells: bool = Field(description="also write the generated cells as h5ad")
    device: Literal["auto", "cpu", "cuda"] = Field(description="auto: a GPU where there is one")

    @field_validator("tolerance")
    @classmethod
    def _blocks_enough(cls, tolerance: float | None, info: ValidationInfo) -> float | None:
        """Refuse a tolerance where no block can be left out: two are always drawn."""
        blocks = min(info.data.get("blocks", 3), info.data.get("draws", 3))
        if tolerance is not None and blocks < 3:
            msg = f"draws can stop early only with 3 blocks or more, and there are {blocks}"
            raise ValueError(msg)
        return tolerance
