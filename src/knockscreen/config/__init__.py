"""The configuration: one frozen model per section, every key required to be known.

``config/config.yaml`` holds every key with a comment, scenarios are partial overlays, and
``workflow/schemas/config.schema.json`` is generated from these models (a test keeps them in step).
"""

from knockscreen.config.base import (
    DATA_FOLDER,
    Fraction,
    InputPath,
    NonNegative,
    Positive,
    Section,
    expand_path,
)
from knockscreen.config.data import (
    PRESET_CONTEXTS,
    TIME_OF_SCLDM,
    Columns,
    Contexts,
    DataConfig,
    HeldOutContext,
    PanelConfig,
    ProgramsConfig,
    ProgramSource,
    QcConfig,
    SimulateConfig,
    SplitsConfig,
)
from knockscreen.config.model import (
    EffectConfig,
    FlowConfig,
    GuidanceConfig,
    ScreenConfig,
    TrainingConfig,
    VaeConfig,
)
from knockscreen.config.reading import (
    Config,
    json_schema,
    merge,
    read_config,
    read_stage,
    read_values,
    validate,
)
from knockscreen.config.results import (
    EvaluateConfig,
    ExternalColumns,
    ExternalConfig,
    GateConfig,
    MeasuredConfig,
    RankConfig,
    ReportConfig,
    SweepConfig,
)

__all__ = [
    "DATA_FOLDER",
    "PRESET_CONTEXTS",
    "TIME_OF_SCLDM",
    "Columns",
    "Config",
    "Contexts",
    "DataConfig",
    "EffectConfig",
    "EvaluateConfig",
    "ExternalColumns",
    "ExternalConfig",
    "FlowConfig",
    "Fraction",
    "GateConfig",
    "GuidanceConfig",
    "HeldOutContext",
    "InputPath",
    "MeasuredConfig",
    "NonNegative",
    "PanelConfig",
    "Positive",
    "ProgramSource",
    "ProgramsConfig",
    "QcConfig",
    "RankConfig",
    "ReportConfig",
    "ScreenConfig",
    "Section",
    "SimulateConfig",
    "SplitsConfig",
    "SweepConfig",
    "TrainingConfig",
    "VaeConfig",
    "expand_path",
    "json_schema",
    "merge",
    "read_config",
    "read_stage",
    "read_values",
    "validate",
]
