"""Gene programs as signed weights over the panel.

P programs, G panel genes. A program says which genes go up (weight > 0) and down (weight < 0) in a
cell state. The score of an effect is its weighted mean over the program's genes,
``sum_g w_g delta_g / sum_g |w_g|``, so it has the unit of the effect (log1p CP10k) whatever the
number of genes, and is positive when cells move toward the program.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from knockscreen.artifacts import read_json
from knockscreen.config import ProgramsConfig
from knockscreen.errors import DataError, UnknownNameError, suggest
from knockscreen.gene_names import GeneNames
from knockscreen.score.program_files import all_programs
from knockscreen.stopping import scoring_weights

log = logging.getLogger(__name__)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ProgramMatrix:
    """Signed weights of P programs over G panel genes.

    ``n_genes`` counts the genes with a weight on the panel; ``dropped`` maps every program that was
    left out to ``(genes on the panel, genes in the file)``.
    """

    names: tuple[str, ...]
    weights: Floats  # (P, G)
    gene_ids: tuple[str, ...]
    dropped: dict[str, tuple[int, int]] = field(default_factory=dict)
    missing: dict[str, list[str]] = field(default_factory=dict)
    """Genes of each program, kept or dropped, that are not on the panel."""

    @property
    def n_genes(self) -> NDArray[np.int64]:
        """Genes per program, shape (P,)."""
        return np.asarray(np.count_nonzero(self.weights, axis=1))

    @property
    def columns(self) -> NDArray[np.int64]:
        """Panel columns that any program uses, shape (U,)."""
        return np.flatnonzero(np.any(self.weights != 0, axis=0))

    def without(self, own: int) -> tuple[Floats, NDArray[np.int64]]:
        """Return scoring weights with gene ``own`` left out, and how many genes each keeps.

        Parameters
        ----------
        own
            Panel column of the knocked-down gene; -1 if it is not on the panel.

        Returns
        -------
        tuple
            Weights divided by their absolute sum, shape (P, G), so that ``delta @ weights.T`` are
            scores; rows of programs that have no gene left are NaN. Counts, shape (P,).
        """
        scaled = scoring_weights(self.weights, own)
        n_genes = np.count_nonzero(self.weights, axis=1)
        if own >= 0:
            n_genes -= self.weights[:, own] != 0
        return scaled, n_genes


def _select(table: pl.DataFrame, names: Sequence[str]) -> list[str]:
    """Return the programs to use, in the order of the file."""
    known = table["program"].unique(maintain_order=True).to_list()
    for name in names:
        if name not in known:
            msg = f"unknown program '{name}' in programs.names{suggest(name, known)}."
            raise UnknownNameError(msg)
    return [name for name in known if not names or name in names]


def _match(rows: pl.DataFrame, index: GeneNames, n_genes: int) -> tuple[Floats, list[str]]:
    """Return the panel weights (G,) of one program, and its genes that are not on the panel."""
    missing = []
    weights = np.zeros(n_genes)
    matched: dict[int, str] = {}
    for program, gene, weight in rows.select("program", "gene", "weight").iter_rows():
        column = index.find(gene)
        if index.is_ambiguous(gene):
            msg = f"program gene {gene} names several genes of the panel; give its Ensembl id."
            raise DataError(msg)
        if column is None:
            missing.append(gene)
            continue
        if column in matched:
            msg = f"program {program} names one gene twice, as {matched[column]} and {gene}."
            raise DataError(msg)
        matched[column] = gene
        weights[column] = weight
    return weights, missing


def program_matrix(
    table: pl.DataFrame,
    gene_ids: Sequence[str],
    genes: Sequence[str],
    *,
    names: Sequence[str] = (),
    min_genes: int = 1,
) -> ProgramMatrix:
    """Match programs to the panel; ``names`` selects programs, none means all of the table.

    Programs with fewer than ``min_genes`` genes on the panel are dropped and listed.

    Raises
    ------
    UnknownNameError
        A name in ``names`` is not in the table.
    DataError
        A program asked for by name has no gene on the panel, no program is left, a symbol and an
        Ensembl id of one program are the same gene, or a symbol is not unique on the panel.

    Examples
    --------
    >>> table = pl.DataFrame({"program": "A", "gene": ["STAT1", "ENSG2"], "weight": [1.0, -1.0]})
    >>> program_matrix(table, ["ENSG1", "ENSG2"], ["STAT1", "IRF1"]).weights.tolist()
    [[1.0, -1.0]]
    """
    index = GeneNames(gene_ids, genes)
    kept: dict[str, Floats] = {}
    dropped: dict[str, tuple[int, int]] = {}
    missing: dict[str, list[str]] = {}
    for name in _select(table, names):
        rows = table.filter(pl.col("program") == name)
        weights, missing[name] = _match(rows, index, len(gene_ids))
        n_matched = int(np.count_nonzero(weights))
        if n_matched == 0 and name in names:
            msg = (
                f"program {name} has no gene on the panel (0 of {len(rows)} matched); "
                "choose another, or give symbols or Ensembl ids."
            )
            raise DataError(msg)
        if n_matched < max(min_genes, 1):
            dropped[name] = (n_matched, len(rows))
        else:
            kept[name] = weights
    if not kept:
        counts = ", ".join(
            f"{name} {n} of {total}" for name, (n, total) in list(dropped.items())[:5]
        )
        msg = (
            f"no program has {max(min_genes, 1)} genes on the panel (matched: {counts}); lower "
            "min_genes or use other programs."
        )
        raise DataError(msg)
    weights = np.stack(list(kept.values()))
    return ProgramMatrix(tuple(kept), weights, tuple(gene_ids), dropped, missing)


def load_programs(settings: ProgramsConfig, store: Path | str) -> ProgramMatrix:
    """Return the configured programs on the panel of a store, listing those left out."""
    panel = read_json(Path(store) / "store.json")["genes"]
    matrix = program_matrix(
        all_programs(settings),
        [gene["gene_id"] for gene in panel],
        [gene["gene"] for gene in panel],
        names=settings.names,
        min_genes=settings.min_genes,
    )
    for name, (n, total) in matrix.dropped.items():
        log.warning(
            "program %s is left out: %d of its %d genes are on the panel, programs.min_genes is %d",
            name, n, total, settings.min_genes,
        )  # fmt: skip
    return matrix
