"""The configuration: one frozen model per section, every key required to be known.

``config/config.yaml`` holds every key with a comment, scenarios are partial overlays, and
``workflow/schemas/config.schema.json`` is generated from these models (a test keeps them in step).
"""

import json
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)

from knockscreen.errors import ConfigError, suggest

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]

DATA_FOLDER = "../shared/data"
"""What ``${KNOCKSCREEN_DATA}`` stands for where the environment does not say."""


def expand_path(path: str) -> str:
    """Return ``path`` with ``${NAME}`` replaced by that environment variable, where it is set."""
    values = {"KNOCKSCREEN_DATA": DATA_FOLDER, **os.environ}
    return re.sub(r"\$\{(\w+)\}", lambda found: values.get(found[1], found[0]), path)


InputPath = Annotated[str, AfterValidator(expand_path)]
"""A path such as ``${KNOCKSCREEN_DATA}/counts/x.h5ad``, filled in when it is read."""


class Section(BaseModel):
    """A closed, frozen section of the configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Columns(Section):
    """Where the file keeps what we need. ``null`` means "as the preset says"."""

    target_gene: str | None = Field(None, description="obs: symbol of the targeted gene")
    target_gene_id: str | None = Field(None, description="obs: Ensembl id of the targeted gene")
    guide_id: str | None = Field(None, description="obs: the guide, or 'multi-guide'")
    guide_umis: str | None = Field(None, description="obs: UMIs of the top guide")
    replicate: str | None = Field(None, description="obs: replicate (donor, well, batch)")
    low_quality: str | None = Field(None, description="obs: boolean flag of low-quality cells")
    pct_mt: str | None = Field(None, description="obs: mitochondrial percent; else from MT- genes")
    library_size: str | None = Field(None, description="obs: counts over all genes; else row sum")
    gene_symbol: str | None = Field(None, description="var: gene symbol; else the var index")
    gene_id: str | None = Field(None, description="var: Ensembl id; else the var index")


TIME_OF_SCLDM = "experimental_perturbation_time_point"
PRESET_CONTEXTS = {
    "zhu2025": {"donor": "donor_id", "time": "culture_condition"},
    "scldm_cd4": {"donor": "donor_id", "time": TIME_OF_SCLDM},
}
_COLUMN_BY_FACTOR = {"type": "object", "additionalProperties": {"type": "string"}}
Contexts = Annotated[
    dict[str, str], WithJsonSchema({"anyOf": [_COLUMN_BY_FACTOR, {"type": "null"}]})
]


class DataConfig(Section):
    """The counts to read."""

    files: list[InputPath] = Field(description="h5ad files with raw counts; empty: simulated")
    preset: Literal["zhu2025", "scldm_cd4", "generic"] = Field(description="column names to expect")
    layer: str | None = Field(description="layer with raw counts; null: X")
    columns: Columns = Field(description="overrides of the preset's columns")
    contexts: Contexts = Field(description="context factor -> obs column; null: the preset's")
    control_labels: list[str] = Field(description="labels of control cells in the target column")
    where: dict[str, list[str]] = Field(description="obs column -> values to keep")

    @field_validator("contexts", mode="before")
    @classmethod
    def _of_the_preset(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None and info.data.get("preset") not in PRESET_CONTEXTS:
            msg = "this preset has none of its own; give some, such as {donor: donor_id}"
            raise ValueError(msg)
        return PRESET_CONTEXTS[info.data["preset"]] if value is None else value


class SimulateConfig(Section):
    """The embedded simulated CD4+ screen."""

    enabled: bool = Field(description="simulate the input instead of reading data.files")
    mode: Literal["network", "anchored", "null"] = Field(description="where effects come from")
    seed: NonNegative = Field(description="seed of the simulated world and its cells")
    cells: Positive = Field(description="cells before QC")
    genes: Positive = Field(description="genes in the count matrix")
    targets: Positive = Field(description="knocked-down genes in the screen")
    guides_per_target: Positive = Field(description="guides per knocked-down gene")
    inactive_guides: Fraction = Field(description="share of guides without effect")
    control_cells: Fraction = Field(description="share of cells with a non-targeting guide")
    donors: list[str] = Field(description="donor names")
    times: list[str] = Field(description="culture conditions")
    library_size: Positive = Field(description="median counts per cell")
    baseline: InputPath | None = Field(description="anchored: h5ad, or CSV of NB parameters")
    effects: InputPath | None = Field(description="anchored: CSV (target, gene, log_fc)")


class QcConfig(Section):
    """Which cells, guides and targets enter the screen."""

    min_counts: NonNegative = Field(description="least counts per cell over all genes")
    min_genes: NonNegative = Field(description="least detected genes per cell")
    max_pct_mt: float = Field(ge=0, le=100, description="most mitochondrial counts, percent")
    drop_low_quality: bool = Field(description="drop cells flagged low_quality in the input")
    min_guide_umis: NonNegative = Field(description="least UMIs of the top guide, where known")
    knockdown_test: bool = Field(description="drop guides without a knock-down")
    knockdown_fdr: Fraction = Field(description="FDR of Welch's t-test against controls")
    knockdown_min_cells: Positive = Field(description="fewer cells: kept, not judged")
    knockdown_min_expression: float = Field(ge=0, description="lower mean: kept, not judged")
    min_cells: Positive = Field(description="least cells per target and context")
    min_control_cells: Positive = Field(description="least control cells per context")


class PanelConfig(Section):
    """The genes the model sees."""

    genes: NonNegative = Field(description="highly variable genes; 0: every gene of the input")
    batch: list[str] = Field(description="context factors within which variability is judged")
    programs: bool = Field(description="add the genes of the programs")
    targets: bool = Field(description="add the targeted genes")
    min_cells: NonNegative = Field(description="cells in which a variable gene is detected")


class HeldOutContext(Section):
    """One context without some (or all) of its knock-downs; its control cells stay in training."""

    context: str = Field(description="factor=level[,factor=level]")
    targets: list[str] = Field(description="symbols or ids; empty: every target")


class SplitsConfig(Section):
    """Which cells train, stop, and test. Controls are only split by cell."""

    seed: NonNegative = Field(description="seed of the random splits")
    validation: Fraction = Field(description="share of cells for early stopping")
    test: Fraction = Field(description="share of cells for evaluation")
    held_out_targets: list[str] = Field(description="targets kept out of training")
    random_held_out_targets: NonNegative = Field(description="further such targets, by seed")
    held_out_contexts: list[HeldOutContext] = Field(description="target x context pairs never seen")


class ProgramsConfig(Section):
    """Gene programs to rank toward."""

    file: InputPath = Field(description="TSV: program, gene, weight, source")
    names: list[str] = Field(description="programs to use; empty: all in the file")
    min_genes: Positive = Field(description="fewer on the panel: program left out")


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
    init_from: InputPath | None = Field(description="checkpoint (.safetensors) to start from")
    training: TrainingConfig


class FlowConfig(Section):
    """Diffusion Transformer trained by flow matching."""

    size: Literal["tiny", "small", "base", "cd4"] = Field(description="named size")
    condition_dropout: Fraction = Field(description="rows without a condition, drawn for each")
    target_dropout: Fraction = Field(description="rows without target embedding")
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
    solver: Literal["euler", "midpoint", "heun", "ab2", "dopri5"] = Field(description="ODE solver")
    steps: Positive = Field(description="solver steps")
    guidance: GuidanceConfig
    batch_size: Positive = Field(description="cells per forward pass; changes speed only")
    shards: Positive = Field(description="jobs the candidates are divided into; changes speed only")
    save_cells: bool = Field(description="also write the generated cells as h5ad")
    device: Literal["auto", "cpu", "cuda"] = Field(description="auto: a GPU where there is one")


class RankConfig(Section):
    """How scores become rankings."""

    pool_over: list[str] = Field(description="factors with a pooled row too")
    interval: Fraction = Field(description="coverage of the rank interval")
    resamples: Positive = Field(description="bootstrap resamples of the interval")


class EvaluateConfig(Section):
    """How predictions are judged by held-out cells."""

    splits: Literal["all"] | list[str] = Field(description="held-out cells; all: what there is")
    min_cells: Positive = Field(description="least held-out cells per target and context")
    neighbours: Positive = Field(description="genes of the k-nearest baseline")
    components: Positive = Field(description="components of the low-rank baseline")
    references: Positive = Field(description="targets that each is told apart from at most")
    cells: Positive = Field(description="cells compared per context at most")
    resamples: Positive = Field(description="bootstrap resamples over targets")


class ReportConfig(Section):
    """Figures and report."""

    program: str = Field(description="program shown first")
    knockdown: str | None = Field(description="knock-down of the volcano figure; null: the top one")
    embedding: Literal["pca", "umap"] = Field(description="map of real and generated cells")
    top: Positive = Field(description="knock-downs shown in rankings and heatmaps")
    cells: Positive = Field(description="cells shown per group in the map")


class Config(Section):
    """The whole configuration."""

    run: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="name of the run; results/<run>/"
    )
    seed: NonNegative = Field(description="seed of training and sampling")
    data: DataConfig
    simulate: SimulateConfig
    qc: QcConfig
    panel: PanelConfig
    splits: SplitsConfig
    programs: ProgramsConfig
    effect: EffectConfig
    vae: VaeConfig
    flow: FlowConfig
    screen: ScreenConfig
    rank: RankConfig
    evaluate: EvaluateConfig
    report: ReportConfig


S = TypeVar("S", bound=BaseModel)


def _known_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Return the keys that the section at ``location`` (without the offending key) has."""
    for part in location:
        field = model.model_fields.get(str(part))
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)


def validate(model: type[S], values: dict[str, Any], *, where: str) -> S:
    """Return ``values`` as ``model``, or raise one sentence for the first thing wrong.

    Raises
    ------
    ConfigError
        An unknown key (with the nearest known ones), a missing key, or a value out of range.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        errors = error.errors()
        first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
        location = first["loc"]
        dotted = ".".join(str(part) for part in location)
        more = f" ({len(errors) - 1} more)" if len(errors) > 1 else ""
        if first["type"] == "extra_forbidden":
            known = _known_keys(model, location[:-1])
            msg = f"unknown key '{dotted}' in {where}{suggest(str(location[-1]), known)}{more}."
        elif first["type"] == "missing":
            msg = f"key '{dotted}' is missing in {where}; config/config.yaml shows every key{more}."
        else:
            msg = f"key '{dotted}' in {where} is {first['input']!r}: {first['msg']}{more}."
        raise ConfigError(msg) from None


def merge(base: dict[str, Any], overlay: dict[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``overlay`` laid over it, section by section (lists are replaced)."""
    merged = dict(base)
    for key, value in overlay.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def read_values(source: str) -> dict[str, Any]:
    """Return the mapping in ``source``: JSON text, or the path of a YAML or JSON file."""
    if source.lstrip().startswith("{"):
        return dict(json.loads(source))
    path = Path(source)
    if not path.is_file():
        msg = f"settings file '{source}' does not exist; give a YAML file, or JSON text."
        raise ConfigError(msg)
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        msg = f"settings file '{source}' is not YAML: {str(error).splitlines()[0]}."
        raise ConfigError(msg) from None
    if not isinstance(values, dict):
        msg = f"settings file '{source}' holds no mapping; config/config.yaml shows every key."
        raise ConfigError(msg)
    return values


def read_config(*sources: str) -> Config:
    """Return the configuration from one complete source and any overlays, later ones winning."""
    values: dict[str, Any] = {}
    for source in sources:
        values = merge(values, read_values(source))
    return validate(Config, values, where=sources[-1] if len(sources[-1]) < 200 else "the settings")


def read_stage(model: type[S], source: str) -> S:
    """Return the sections that a stage needs, from a complete config file or from JSON text.

    A complete configuration may be given: sections that the stage does not use are passed over,
    but keys that no section of the configuration has are still refused.
    """
    values = read_values(source)
    where = source if not source.lstrip().startswith("{") else "the settings"
    unknown = [key for key in values if key not in Config.model_fields]
    if unknown:
        msg = f"unknown key '{unknown[0]}' in {where}{suggest(unknown[0], Config.model_fields)}."
        raise ConfigError(msg)
    return validate(
        model, {k: v for k, v in values.items() if k in model.model_fields}, where=where
    )


def json_schema() -> str:
    """Return the JSON schema of the configuration, as kept in ``workflow/schemas``."""
    draft = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps({"$schema": draft, **Config.model_json_schema()}, indent=2) + "\n"


if __name__ == "__main__":  # python -m knockscreen.config > workflow/schemas/config.schema.json
    sys.stdout.write(json_schema())
