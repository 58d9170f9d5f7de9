"""Sections of the configuration after the generated cells: rankings, evaluation, report."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from knockscreen.config.base import Fraction, InputPath, NonNegative, Positive, Section


class RankConfig(Section):
    """How scores become rankings."""

    pool_over: list[str] = Field(description="factors with a pooled row too")
    interval: Fraction = Field(description="coverage of the rank interval")
    resamples: Positive = Field(description="bootstrap resamples of the interval")
    random_programs: NonNegative = Field(description="random programs per program; 0: none")


class MeasuredConfig(Section):
    """How the real cells of a knock-down are compared with control cells."""

    replicates: Literal["auto", "guide", "replicate"] = Field(
        description="unit of replication: guides, the replicate column, or guides where known"
    )


class ExternalColumns(Section):
    """Where an external table keeps what we need. ``null``: under one of the usual names."""

    target_gene: str | None = Field(None, description="symbol of the knocked-down gene")
    target_gene_id: str | None = Field(None, description="its Ensembl id")
    condition: str | None = Field(None, description="what tells the contexts apart")
    gene: str | None = Field(None, description="symbol of the measured gene")
    gene_id: str | None = Field(None, description="its Ensembl id")
    log2_fold_change: str | None = Field(None, description="log fold change, see unit")
    standard_error: str | None = Field(None, description="its standard error")
    p_value: str | None = Field(None, description="p-value")
    fdr: str | None = Field(None, description="p-value adjusted for the number of genes")


class ExternalConfig(Section):
    """Measured effects from elsewhere, ranked beside the run's own."""

    source: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:-]*$", description="name shown as source"
    )
    file: InputPath = Field(description="long CSV, TSV or Parquet (.gz too), or h5ad with layers")
    unit: Literal["log2", "ln"] = Field(description="logarithm of the fold changes")
    absent: Literal["missing", "zero"] = Field(
        description="genes a profile does not list: not measured, or not changed"
    )
    columns: ExternalColumns = Field(
        default_factory=ExternalColumns, description="names of its columns or layers"
    )
    contexts: dict[str, str] = Field(description="condition of the table -> context of the run")


class GateConfig(Section):
    """What positive controls have to show before a program is believed."""

    controls: InputPath = Field(description="TSV: program, gene, direction, source")
    min_controls: Positive = Field(description="fewer among the knock-downs: not tested")
    min_auroc: Fraction = Field(description="least AUROC of the controls")
    min_sign: Fraction = Field(description="least share of controls with the published sign")
    max_p: Fraction = Field(description="largest permutation p")


class AnnotationsConfig(Section):
    """What the user knows of genes: shown beside each knock-down, and said against it."""

    file: InputPath | None = Field(description="TSV or CSV: gene, then any columns; null: none")
    against: list[str] = Field(
        description="columns of it that speak against a row where they say yes"
    )
    neighbours_within: NonNegative | None = Field(
        description="bases between starts within which genes are neighbours; null: none are named"
    )

    @model_validator(mode="after")
    def _a_table_for_columns(self) -> Self:
        if self.against and self.file is None:
            msg = f"against names {', '.join(self.against)} but there is no file; set file"
            raise ValueError(msg)
        return self


class EvaluateConfig(Section):
    """How predictions are judged by held-out cells."""

    splits: Literal["all"] | list[str] = Field(description="held-out cells; all: what there is")
    min_cells: Positive = Field(description="least held-out cells per target and context")
    de_test: Literal["welch", "rank_sum"] = Field(description="what calls really DE genes")
    neighbours: Positive = Field(description="genes of the k-nearest baseline")
    components: Positive = Field(description="components of the low-rank baseline")
    references: Positive = Field(description="targets that each is told apart from at most")
    cells: Positive = Field(description="cells compared per context at most")
    resamples: Positive = Field(description="bootstrap resamples over targets")


class SweepConfig(Section):
    """What the sweep of solvers and guidance weights tries, on validation cells."""

    targets: Positive = Field(description="trained knock-downs generated at most")
    cells: Positive = Field(description="validation cells matched at most")
    draws: Annotated[int, Field(ge=2)] = Field(description="draws per knock-down and context")
    solvers: list[Literal["euler", "midpoint", "heun", "rk4", "ab2"]] = Field(
        min_length=1, description="ODE solvers"
    )
    evaluations: list[Positive] = Field(min_length=1, description="network passes per cell")
    tolerance: float = Field(gt=0, description="largest error, in what it is small beside")
    strategies: list[Literal["nested", "joint", "additive"]] = Field(description="of guidance")
    context_weights: list[Annotated[float, Field(ge=0)]] = Field(description="of the context")
    perturbation_weights: list[Annotated[float, Field(ge=0)]] = Field(
        description="of the knock-down"
    )
    resamples: Positive = Field(description="bootstrap resamples over targets")


class ReportConfig(Section):
    """Figures and report."""

    program: str = Field(description="program shown first")
    knockdown: str | None = Field(description="knock-down of the volcano figure; null: the top one")
    embedding: Literal["pca", "umap"] = Field(description="map of real and generated cells")
    top: Positive = Field(description="knock-downs shown in rankings and heatmaps")
    cells: Positive = Field(description="cells shown per group in the map")
