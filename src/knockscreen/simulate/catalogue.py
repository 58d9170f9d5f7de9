"""The genes of the simulated screen and the regulation that is planted among them.

``genes.tsv`` and ``edges.tsv`` lie beside this module. Symbols and Ensembl identifiers are public
GENCODE v41 identifiers; levels and strengths are ours, directions are textbook.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from knockscreen.errors import ConfigError

HERE = Path(__file__).parent
SYNTHETIC_LEVEL = (-2.5, 1.0)
"""Mean and standard deviation of ln relative expression of genes beyond the catalogue."""


@dataclass(frozen=True)
class Genes:
    """The genes of one count matrix, in column order.

    Attributes
    ----------
    gene, gene_id, role, module
        (G,) symbol, Ensembl id, role (regulator, program, housekeeping, mitochondrial,
        background) and pathway.
    level
        (G,) ln of relative baseline expression, up to a constant.
    programs
        Names of the programs, P of them.
    weights
        (P, G) signed program membership, -1, 0 or 1.
    """

    gene: NDArray[np.str_]
    gene_id: NDArray[np.str_]
    role: NDArray[np.str_]
    module: NDArray[np.str_]
    level: NDArray[np.float64]
    programs: tuple[str, ...]
    weights: NDArray[np.float64]

    def __len__(self) -> int:
        """Return the number of genes."""
        return len(self.gene)

    def where(self, *roles: str) -> NDArray[np.intp]:
        """Return the indices of the genes that have one of ``roles``."""
        return np.flatnonzero(np.isin(self.role, roles))


@cache
def catalogue() -> pl.DataFrame:
    """Return ``genes.tsv``, most important gene first."""
    return pl.read_csv(
        HERE / "genes.tsv",
        separator="\t",
        comment_prefix="#",
        schema_overrides={"level": pl.Float64},
    ).with_columns(pl.col("programs").fill_null(""))


@cache
def edges() -> pl.DataFrame:
    """Return ``edges.tsv``: regulator, acts_on, kind (program or gene), weight."""
    return pl.read_csv(
        HERE / "edges.tsv",
        separator="\t",
        comment_prefix="#",
        schema_overrides={"weight": pl.Float64},
    )


def memberships(programs: str) -> dict[str, int]:
    """Return the signed memberships in a cell of the ``programs`` column.

    >>> memberships("Th1+;Treg-")
    {'Th1': 1, 'Treg': -1}
    """
    return {part[:-1]: 1 if part[-1] == "+" else -1 for part in programs.split(";") if part}


def program_names() -> tuple[str, ...]:
    """Return the programs of the catalogue, sorted."""
    return tuple(sorted({name for cell in catalogue()["programs"] for name in memberships(cell)}))


def first_genes(n: int, rng: np.random.Generator) -> Genes:
    """Return the ``n`` most important genes; beyond the catalogue, synthetic ones (SIM00001, ...).

    Raises
    ------
    ConfigError
        Fewer genes than the smallest sensible screen.
    """
    if n < 60:
        msg = f"simulate.genes is {n}; the simulated screen needs at least 60 genes."
        raise ConfigError(msg)
    table = catalogue().head(n)
    extra = n - table.height
    numbers = range(1, extra + 1)
    return annotated(
        gene=[*table["gene"], *(f"SIM{i:05d}" for i in numbers)],
        gene_id=[*table["gene_id"], *(f"ENSGSIM{i:08d}" for i in numbers)],
        level=np.concatenate([table["level"].to_numpy(), rng.normal(*SYNTHETIC_LEVEL, extra)]),
    )


def annotated(*, gene: list[str], gene_id: list[str], level: NDArray[np.float64]) -> Genes:
    """Return any genes with what the catalogue knows about them (by Ensembl id)."""
    known = {row["gene_id"]: row for row in catalogue().iter_rows(named=True)}
    rows = [known.get(i, {}) for i in gene_id]
    names = program_names()
    weights = np.zeros((len(names), len(gene)))
    for column, row in enumerate(rows):
        for program, sign in memberships(row.get("programs", "")).items():
            weights[names.index(program), column] = sign
    role = [
        row.get("role", "mitochondrial" if symbol.startswith("MT-") else "background")
        for row, symbol in zip(rows, gene, strict=True)
    ]
    return Genes(
        gene=np.array(gene, dtype=np.str_),
        gene_id=np.array(gene_id, dtype=np.str_),
        role=np.array(role, dtype=np.str_),
        module=np.array([row.get("module", "background") for row in rows], dtype=np.str_),
        level=np.asarray(level, dtype=np.float64),
        programs=names,
        weights=weights,
    )
