"""The tables that QC leaves: cells, guides, targets, and cells before and after each filter."""

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from knockscreen.data.knockdown import INACTIVE, GuideTest
from knockscreen.names import NTC

if TYPE_CHECKING:
    from knockscreen.data.counts import Inputs
    from knockscreen.data.qc import Measured, QcStage

STATUS = (
    "excluded",
    "no_guide",
    "multi_guide",
    "low_guide_umis",
    "low_counts",
    "few_genes",
    "high_mt",
    "low_quality",
    "inactive_guide",
    "inactive_target",
    "few_cells",
    "kept",
)
"""What becomes of a cell, in the order in which the filters act."""
KEPT = STATUS.index("kept")


def status_column(status: NDArray[np.int8]) -> pl.Series:
    """Return status codes (N,) as a Categorical column."""
    return pl.Series(STATUS, dtype=pl.Categorical).gather(status.astype(np.uint32)).alias("status")


def cells(annotation: pl.DataFrame, measured: "Measured", factors: list[str]) -> pl.DataFrame:
    """Return one row per input cell, in the order of the files."""
    return annotation.select(
        "file",
        "row",
        "barcode",
        "target_gene",
        "target_gene_id",
        "guide_id",
        "is_control",
        *factors,
        "context",
        "replicate",
        pl.Series("library_size", measured.library_size),
        pl.Series("n_genes", measured.n_genes),
        pl.Series("pct_mt", measured.pct_mt).fill_nan(None),
        status_column(measured.status),
    )


def guides(annotation: pl.DataFrame, test: GuideTest, verdict: NDArray[np.str_]) -> pl.DataFrame:
    """Return one row per guide; what could not be computed is null.

    ``control_mean`` and ``target_mean`` are mean CP10k of the target in control cells (of the
    guide's contexts) and in the guide's cells; ``statistic`` is Welch's t on log1p CP10k.
    """
    columns = {
        "control_mean": test.control_mean,
        "target_mean": test.target_mean,
        "control_mean_count": test.control_count,
        "log2_fold_change": test.log2_fold_change,
        "statistic": test.statistic,
        "p_value": test.p_value,
        "fdr": test.fdr,
    }
    values = [pl.Series(name, value).fill_nan(None) for name, value in columns.items()]
    n_cells = pl.Series("n_cells", test.n_cells)
    table = annotation.drop("gene").with_columns(n_cells, *values, pl.Series("status", verdict))
    return table.select(pl.all().exclude("control_mean_count"), "control_mean_count")


def targets(annotation: pl.DataFrame, status: NDArray[np.int8]) -> pl.DataFrame:
    """Return one row per target and context: its kept cells, or why it has none.

    ``n_cells`` counts the cells that pass the cell filters and whose guide is active; for a target
    that was dropped, those it was dropped with.
    """
    frame = annotation.select("target_gene", "target_gene_id", "context").with_columns(
        status_column(status)
    )
    dropped = pl.col("status").cast(pl.String).is_in(["few_cells", "inactive_target", "kept"])
    return (
        frame.lazy()
        .filter(dropped & (pl.col("target_gene_id") != NTC))
        .group_by("target_gene", "target_gene_id", "context", "status")
        .agg(pl.len().cast(pl.Int64).alias("n_cells"))
        .collect(engine="streaming")
        .with_columns(pl.col(pl.Categorical).cast(pl.String))
        .select("target_gene", "target_gene_id", "context", "n_cells", "status")
        .sort("target_gene_id", "context", "status")
    )


def summary(
    annotation: pl.DataFrame, measured: "Measured", settings: "QcStage", verdict: NDArray[np.str_]
) -> pl.DataFrame:
    """Return the cells before and after each filter, with the setting in words."""
    qc, data = settings.qc, settings.data
    where = "; ".join(f"{k} in {', '.join(v)}" for k, v in data.where.items()) or "no data.where"
    test = (
        f"Welch t, FDR < {qc.knockdown_fdr:g}, > {qc.knockdown_min_cells} cells, "
        f"control mean >= {qc.knockdown_min_expression:g}"
        if qc.knockdown_test
        else "off"
    )
    n = int((verdict == INACTIVE).sum())
    inactive = f" ({n} guides inactive)" if qc.knockdown_test else ""
    has_guides = annotation["guide_id"].null_count() < annotation.height
    has_umis = annotation["guide_umis"].null_count() < annotation.height
    has_flag = annotation["low_quality"].null_count() < annotation.height
    has_mt = bool(np.isfinite(measured.pct_mt).any())
    guide = "one guide per cell" if has_guides else "no guide column"
    flag = "low_quality flag" if qc.drop_low_quality else "off"
    words = {
        "excluded": where,
        "no_guide": guide,
        "multi_guide": guide,
        "low_guide_umis": f">= {qc.min_guide_umis} guide UMIs"
        if has_umis
        else "skipped: no column",
        "low_counts": f">= {max(qc.min_counts, 1)} counts",
        "few_genes": f">= {qc.min_genes} genes",
        "high_mt": (
            f"<= {qc.max_pct_mt:g} % mitochondrial"
            if has_mt
            else "skipped: no MT- genes and no column"
        ),
        "low_quality": flag if has_flag else "skipped: no column",
        "inactive_guide": f"{test}{inactive}",
        "inactive_target": test,
        "few_cells": f">= {qc.min_cells} cells per target and context",
    }
    lost = np.bincount(measured.status, minlength=len(STATUS))
    left = annotation.height - np.concatenate([[0], np.cumsum(lost[:-1])])
    return pl.DataFrame(
        {
            "step": np.arange(len(words), dtype=np.int32),
            "filter": list(words),
            "setting": list(words.values()),
            "cells_before": left[:-1].astype(np.int64),
            "cells_after": left[1:].astype(np.int64),
        }
    )


def inputs(files: "Inputs") -> pl.DataFrame:
    """Return the files that QC read, in the order that ``file`` in the cell table counts."""
    return pl.DataFrame(
        {
            "file": pl.Series(range(len(files.files)), dtype=pl.Int32),
            "name": [file.path.name for file in files.files],
            "path": [str(file.path) for file in files.files],
            "n_cells": [file.n_cells for file in files.files],
            "simulated": [file.simulated for file in files.files],
        }
    )
