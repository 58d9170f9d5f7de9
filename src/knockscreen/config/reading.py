"""The whole configuration, and how it is read, checked and described."""

import json
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError

from knockscreen.config.base import NonNegative, Positive, Section
from knockscreen.config.data import (
    DataConfig,
    PanelConfig,
    ProgramsConfig,
    QcConfig,
    SimulateConfig,
    SplitsConfig,
)
from knockscreen.config.model import EffectConfig, FlowConfig, ScreenConfig, VaeConfig
from knockscreen.config.results import (
    AnnotationsConfig,
    EvaluateConfig,
    ExternalConfig,
    GateConfig,
    MeasuredConfig,
    RankConfig,
    ReportConfig,
    SweepConfig,
)
from knockscreen.errors import ConfigError, suggest


class Config(Section):
    """The whole configuration."""

    run: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="name of the run; results/<run>/"
    )
    seed: NonNegative = Field(description="seed of training and sampling")
    replicates: Positive = Field(description="models trained, each with a seed of its own")
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
    measured: MeasuredConfig
    external: list[ExternalConfig] = Field(description="measured tables from elsewhere")
    gate: GateConfig
    rank: RankConfig
    annotations: AnnotationsConfig
    evaluate: EvaluateConfig
    sweep: SweepConfig
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
