"""Sections of the configuration up to the training store: counts, QC, panel, splits, programs."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, WithJsonSchema, field_validator

from knockscreen.config.base import Fraction, InputPath, NonNegative, Positive, Section


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
    decoys: NonNegative = Field(description="pseudo-targets of control cells, the null; 0: none")


class ProgramSource(Section):
    """One more file of programs: a table like ``programs.file``, a GMT file, or a table of DE."""

    file: InputPath = Field(description="TSV of programs, .gmt, or a table of DE (TSV, CSV, .gz)")
    contrast: str | None = Field(default=None, description="of a table of DE: which contrast")
    name: str | None = Field(default=None, description="of a table of DE: name of the program")
    top: Positive = Field(default=100, description="of a table of DE: genes per arm")
    arms: Literal["any", "both"] = Field(
        default="any", description="both: refuse a program whose genes all have one sign"
    )


class ProgramsConfig(Section):
    """Gene programs to rank toward."""

    file: InputPath = Field(description="TSV: program, gene, weight, source")
    extra: list[ProgramSource] = Field(default=[], description="more files of programs")
    names: list[str] = Field(description="programs to use; empty: all in the file")
    min_genes: Positive = Field(description="fewer on the panel: program left out")
