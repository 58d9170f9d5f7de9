"""Measured knock-downs of the genome-scale CD4+ screen against its authors' regulator coefficients.

python benchmarks/published.py ../shared/data/tables

Ranks the published robust edges (30 knock-downs) on Th2 against Th1 (Ota 2021) without any model
and compares the scores with the coefficients of the study's own regression of the same contrast.
An edge that is not listed counts as no change. The program has the N genes of largest |z| of each
sign among those with adjusted p < 0.1 and |log2 fold change| > 1, with weights +1 and -1.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
from scipy.stats import spearmanr

from knockscreen.config import ExternalConfig
from knockscreen.score.agreement import Predictor, agreement
from knockscreen.score.external import open_external
from knockscreen.score.external_scores import rank_external_scores
from knockscreen.score.program_files import read_programs
from knockscreen.score.programs import program_matrix

SIZES = (50, 100, 200, 1000)


def program(table: pl.DataFrame, n: int, folder: Path) -> Path:
    """Write the program of the n most changed genes of each sign."""
    changed = table.filter(pl.col("adj_p_value") < 0.1, pl.col("log_fc").abs() > 1)
    ordered = changed.sort("zscore")
    genes = pl.concat([ordered.head(n), ordered.tail(n)]).unique("variable", maintain_order=True)
    path = folder / f"ota{n}.tsv"
    genes.select(
        program=pl.lit("Th2_vs_Th1"), gene="variable", weight=pl.col("log_fc").sign(),
        source=pl.lit("Ota 2021"),
    ).write_csv(path, separator="\t")  # fmt: skip
    return path


def scores(tables: Path, programs: Path) -> pl.DataFrame:
    """Return the program scores of the published edges."""
    edges = open_external(
        ExternalConfig(
            source="edges",
            file=str(tables / "kd_robust_edges_logfc_17225.csv.gz"),
            unit="log2",
            absent="zero",
            contexts={},
        )
    )
    genes = edges.genes
    matrix = program_matrix(
        read_programs(programs), genes["gene_id"].to_list(), genes["gene"].to_list()
    )
    return rank_external_scores(edges, matrix)


def main(tables: Path) -> None:
    contrast = pl.read_csv(tables / "program_th2_vs_th1_ota2021.csv.gz", infer_schema_length=None)
    coefficients = pl.read_csv(
        tables / "kd_regulator_coefficients_pert2state.csv.gz", infer_schema_length=None
    ).filter(signature="ota")
    with tempfile.TemporaryDirectory() as folder:
        for n in SIZES:
            found = scores(tables, program(contrast, n, Path(folder))).join(
                coefficients, left_on=["target_gene", "context"], right_on=["regulator", "celltype"]
            )
            score, coefficient = found["score"].to_numpy(), found["coef_mean"].to_numpy()
            rho, p = spearmanr(score, coefficient)
            same = np.mean(np.sign(score) == np.sign(coefficient))
            known = found.drop_nulls("regulator_type")["target_gene"].to_list()
            print(
                f"{n:5d} genes a side, {found['n_genes'][0]} in the table: {len(found)} targets, "
                f"Spearman {rho:.2f} (p {p:.1e}), same sign {same:.2f}, known {known}"
            )
            if n == 200:
                best = found.sort("score", descending=True)
                print("  toward Th2:", ", ".join(best["target_gene"].head(6)))
                print("  away:", ", ".join(best["target_gene"].tail(6).reverse()))
    for part in coefficients.sort("celltype").partition_by("celltype", maintain_order=True):
        value = part["coef_mean"].to_numpy()
        # The knock-down of a Th1 regulator moves cells toward Th2 (positive) and vice versa.
        role = part["regulator_type"].fill_null("")
        sign = np.where(role == "Th1 regulator", 1.0, np.where(role == "Th2 regulator", -1.0, 0.0))
        rows = agreement(
            [Predictor("coefficient", value, signed=True, is_baseline=False)], sign, sign != 0,
            resamples=1000, seed=1,
        )  # fmt: skip
        for row in rows.filter(pl.col("metric").is_in(["auroc", "sign"])).iter_rows(named=True):
            print(
                f"{part['celltype'][0]:9s} authors' coefficients, {row['hits']:7s} "
                f"{row['metric']:6s} {row['value']:.2f} ({row['low']:.2f} to {row['high']:.2f}), "
                f"{row['n_hits']} known of {row['n']}"
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
