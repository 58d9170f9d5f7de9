"""The anchored world: a real baseline and real knock-down effects in place of the network."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from knockscreen.config import SimulateConfig
from knockscreen.errors import ConfigError, DataError, suggest
from knockscreen.simulate.catalogue import Genes, annotated, catalogue

CONTROL = {"non-targeting", "ntc", "control", "ctrl", "nt"}
CONTROL_COLUMNS = ("target_gene", "perturbed_gene_name", "guide_target_ensembl")
SYMBOL_COLUMNS = ("gene_symbol", "gene_name", "feature_name", "gene")
ID_COLUMNS = ("ensembl_id", "gene_ids", "gene_id")
TIME_COLUMNS = ("time", "condition", "culture_condition")
SIZE = (0.1, 100.0)
"""Range to which estimated NB sizes are held."""
EFFECT_NAMES = (
    ("target", "gene", "log_fc", 1.0),
    ("target", "gene", "log2_fold_change", np.log(2.0)),
    ("perturbed_gene", "measured_gene", "log_fc", np.log(2.0)),
)
"""Accepted columns (target, gene, change) and the factor that makes the change natural: the names
of the genome-scale study come with its log2 fold changes."""


@dataclass(frozen=True)
class Anchor:
    """What replaces the network.

    Attributes
    ----------
    genes
        The columns of the count matrix.
    relative_expression, size
        (G,) mean relative expression and NB size of control cells.
    drivers
        (R,) gene indices of the targets with known effects, best described first.
    effect
        (C, R, G) ln change, 0 where the table says nothing.
    """

    genes: Genes
    relative_expression: NDArray[np.float64]
    size: NDArray[np.float64]
    drivers: NDArray[np.intp]
    effect: NDArray[np.float64]


def read_anchor(settings: SimulateConfig, *, times: list[str]) -> Anchor:
    """Return the real baseline and effects; ``times`` are the culture conditions, one per context.

    Raises
    ------
    ConfigError
        A path is not set.
    DataError
        A file is missing, lacks a column, or baseline and effects share no gene.
    """
    for key in ("baseline", "effects"):
        if getattr(settings, key) is None:
            msg = (
                f"simulate.mode is anchored but simulate.{key} is not set; give the path of a file."
            )
            raise ConfigError(msg)
    baseline = read_baseline(Path(str(settings.baseline)))
    effects = read_effects(Path(str(settings.effects)))
    known = {row[0]: row[1] for row in catalogue().select("gene", "gene_id").iter_rows()}
    known |= {s: i for i, s in baseline.select("gene_id", "gene").iter_rows() if s is not None}
    effects = effects.with_columns(pl.col("target", "gene").replace(known))
    present = baseline["gene_id"].implode()
    usable = effects.filter(pl.col("target").is_in(present) & pl.col("gene").is_in(present))
    if usable.is_empty():
        msg = (
            f"no target and gene of {settings.effects} are both in {settings.baseline}; "
            "expected the same symbols or Ensembl ids in both."
        )
        raise DataError(msg)
    genes, table = _choose_genes(baseline, usable, settings.genes)
    return _fill(genes, table, usable, times)


def read_baseline(path: Path) -> pl.DataFrame:
    """Return gene_id, gene (null if unknown), relative_expression (sums to 1) and size."""
    if not path.is_file():
        msg = f"baseline {path} does not exist; check simulate.baseline."
        raise DataError(msg)
    table = _baseline_of_cells(path) if path.suffix == ".h5ad" else _baseline_of_table(path)
    names = catalogue().select("gene_id", known="gene")
    return (
        table.filter(pl.col("relative_expression") > 0)
        .unique("gene_id", keep="first", maintain_order=True)
        .join(names, on="gene_id", how="left")
        .with_columns(
            pl.coalesce("gene", "known").alias("gene"),
            pl.col("relative_expression") / pl.col("relative_expression").sum(),
            pl.col("size").fill_nan(None).fill_null(10.0).clip(*SIZE),
        )
        .drop("known")
    )


def _baseline_of_table(path: Path) -> pl.DataFrame:
    table = pl.read_csv(path, infer_schema_length=None)
    columns = ("response_id", "relative_expression", "expression_size")
    _require(path, table.columns, columns)
    known = {row[0]: row[1] for row in catalogue().select("gene", "gene_id").iter_rows()}
    return table.select(
        gene_id=pl.col("response_id").cast(pl.String).replace(known),
        gene=pl.lit(None, dtype=pl.String),
        relative_expression=pl.col("relative_expression").cast(pl.Float64),
        size=pl.col("expression_size").cast(pl.Float64),
    )


def _baseline_of_cells(path: Path) -> pl.DataFrame:
    """Return the baseline of the control cells of an h5ad: pooled shares, size by moments."""
    import anndata

    try:
        cells = anndata.read_h5ad(path)
    except (OSError, KeyError) as error:
        msg = f"baseline {path} cannot be read as an h5ad file ({error}); expected raw counts in X."
        raise DataError(msg) from error
    if "is_control" in cells.obs:
        cells = cells[cells.obs["is_control"].astype(bool).to_numpy()]
    else:
        column = next((c for c in CONTROL_COLUMNS if c in cells.obs), None)
        if column is not None:
            cells = cells[cells.obs[column].astype(str).str.lower().isin(CONTROL).to_numpy()]
    if cells.n_obs < 2:
        msg = f"baseline {path} has {cells.n_obs} control cells; expected at least two."
        raise DataError(msg)
    counts = cells.X.tocsr() if hasattr(cells.X, "tocsr") else cells.X
    total = np.asarray(counts.sum(axis=1)).ravel().astype(np.float64)
    share = np.asarray(counts.sum(axis=0)).ravel().astype(np.float64) / total.sum()
    squares = counts.multiply(counts) if hasattr(counts, "multiply") else counts**2
    second = np.asarray(squares.sum(axis=0)).ravel() / cells.n_obs
    expected = share**2 * np.mean(total**2)
    excess = second - share * total.mean() - expected  # E[y^2] = m + m^2 (1 + 1/size)
    with np.errstate(divide="ignore", invalid="ignore"):
        size = np.where(excess > 0, expected / excess, SIZE[1])
    identifier = next((c for c in ID_COLUMNS if c in cells.var), None)
    symbol = next((c for c in SYMBOL_COLUMNS if c in cells.var), None)
    index = [str(name) for name in cells.var_names]
    return pl.DataFrame(
        {
            "gene_id": [str(v) for v in cells.var[identifier]] if identifier else index,
            "gene": [str(v) for v in cells.var[symbol]] if symbol else index,
            "relative_expression": share,
            "size": size,
        }
    )


def read_effects(path: Path) -> pl.DataFrame:
    """Return target, gene, time (null: every time) and change (natural log) of an effects table."""
    if not path.is_file():
        msg = f"effects {path} does not exist; check simulate.effects."
        raise DataError(msg)
    table = pl.read_csv(path, infer_schema_length=None)
    fitting = [n for n in EFFECT_NAMES if set(n[:3]) <= set(table.columns)]
    target, gene, change, factor = (fitting or EFFECT_NAMES)[0]
    _require(path, table.columns, (target, gene, change))
    time = next((c for c in TIME_COLUMNS if c in table.columns), None)
    return table.select(
        target=pl.col(target).cast(pl.String),
        gene=pl.col(gene).cast(pl.String),
        time=pl.col(time).cast(pl.String) if time else pl.lit(None, dtype=pl.String),
        change=pl.col(change).cast(pl.Float64) * factor,
    ).filter(pl.col("change").is_finite())


def _require(path: Path, columns: list[str], wanted: tuple[str, ...]) -> None:
    for name in wanted:
        if name not in columns:
            msg = f"{path} has no column '{name}'{suggest(name, columns)}."
            raise DataError(msg)


def _choose_genes(
    baseline: pl.DataFrame, effects: pl.DataFrame, n: int
) -> tuple[Genes, pl.DataFrame]:
    """Return n genes: targets, then known regulators and programs, then affected, then common."""
    affected = effects.group_by("gene").len("n_effects").rename({"gene": "gene_id"})
    first = catalogue().filter(pl.col("role").is_in(["regulator", "program", "mitochondrial"]))
    ordered = (
        baseline.join(affected, on="gene_id", how="left")
        .with_columns(
            is_target=pl.col("gene_id").is_in(effects["target"].implode()),
            is_known=pl.col("gene_id").is_in(first["gene_id"].implode()),
        )
        .sort(
            ["is_target", "is_known", pl.col("n_effects").fill_null(0), "relative_expression"],
            descending=True,
            maintain_order=True,
        )
    )
    if ordered.height < n:
        msg = (
            f"simulate.genes is {n}, but the baseline has only {ordered.height} expressed genes; "
            f"set it to at most {ordered.height}."
        )
        raise ConfigError(msg)
    table = ordered.head(n)
    genes = annotated(
        gene=table.select(pl.coalesce("gene", "gene_id")).to_series().to_list(),
        gene_id=table["gene_id"].to_list(),
        level=table["relative_expression"].log().to_numpy(),
    )
    return genes, table


def _fill(genes: Genes, table: pl.DataFrame, effects: pl.DataFrame, times: list[str]) -> Anchor:
    """Return the anchor with the effects laid out on the chosen genes."""
    column = {str(g): i for i, g in enumerate(genes.gene_id)}
    described = effects.filter(pl.col("gene").is_in(table["gene_id"].implode()))
    order = described.group_by("target").len().sort(["len", "target"], descending=[True, False])
    targets = [t for t in order["target"] if t in column]
    row = {t: i for i, t in enumerate(targets)}
    effect = np.zeros((len(times), len(targets), len(genes)))
    for target, gene, time, change in described.iter_rows():
        if target in row:
            for c, here in enumerate(times):
                if time is None or time == here:
                    effect[c, row[target], column[gene]] = change
    return Anchor(
        genes=genes,
        relative_expression=table["relative_expression"].to_numpy(),
        size=table["size"].to_numpy(),
        drivers=np.array([column[t] for t in targets], dtype=np.intp),
        effect=effect,
    )
