"""Genes and targets: symbols, identifiers, and the way from one to the other."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import h5py
import numpy as np
import polars as pl
from numpy.typing import NDArray

from knockscreen.config import Columns
from knockscreen.data.h5ad import column_names, read_column
from knockscreen.data.presets import GENE_ID, GENE_SYMBOL, INDEX, require
from knockscreen.errors import DataError
from knockscreen.names import NTC

MITOCHONDRIAL = "MT-"
"""Prefix of the symbols of mitochondrially encoded genes (case ignored)."""


@dataclass(frozen=True)
class Genes:
    """The genes of a count matrix in order; both names are unique."""

    gene_ids: tuple[str, ...]
    genes: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of genes."""
        return len(self.gene_ids)

    @cached_property
    def by_id(self) -> dict[str, int]:
        """Position of each gene id."""
        return {name: k for k, name in enumerate(self.gene_ids)}

    @cached_property
    def by_symbol(self) -> dict[str, int]:
        """Position of each symbol."""
        return {name: k for k, name in enumerate(self.genes)}

    @cached_property
    def is_mitochondrial(self) -> NDArray[np.bool_]:
        """Which genes are mitochondrially encoded, shape (G,)."""
        return np.array([g.upper().startswith(MITOCHONDRIAL) for g in self.genes], dtype=bool)

    def find(self, name: str) -> int:
        """Return the position of a gene by id or symbol, or -1."""
        return self.by_id.get(name, self.by_symbol.get(name, -1))

    def resolve(self, symbol: str | None, gene_id: str | None) -> tuple[str, str]:
        """Return (symbol, id) of a target given either or both.

        What is missing is looked up among the genes; a target that is not measured keeps the one
        name it has for both. An id in the place of a symbol is recognised.

        >>> Genes(("ENSG1",), ("STAT1",)).resolve("STAT1", None)
        ('STAT1', 'ENSG1')
        >>> Genes(("ENSG1",), ("STAT1",)).resolve("JAK2", None)
        ('JAK2', 'JAK2')
        """
        if symbol and gene_id and symbol != gene_id:
            return symbol, gene_id
        name = gene_id or symbol or ""
        k = self.find(name)
        return (self.genes[k], self.gene_ids[k]) if k >= 0 else (name, name)


def read_genes(frame: h5py.Group, columns: Columns, *, file: Path) -> Genes:
    """Return the genes of ``var``.

    A gene without an identifier goes by its symbol, so files without Ensembl ids are fine.

    Raises
    ------
    DataError
        A configured column is missing, or a symbol or an identifier stands twice.
    """
    available = column_names(frame)
    symbol = _pick(columns.gene_symbol, GENE_SYMBOL, available, file, "gene_symbol")
    gene_id = _pick(columns.gene_id, GENE_ID, available, file, "gene_id")
    index = _text(read_column(frame, INDEX))
    index_is_id = bool(index) and sum(name.startswith("ENSG") for name in index) > len(index) / 2
    ids = _text(read_column(frame, gene_id)) if gene_id else (index if index_is_id else [])
    symbols = _text(read_column(frame, symbol)) if symbol else ([] if index_is_id else index)
    symbols = [a or b for a, b in zip(symbols, index, strict=True)] if symbols else list(ids)
    ids = [a or b for a, b in zip(ids, symbols, strict=True)] if ids else symbols
    for names, what in ((symbols, "symbol"), (ids, "id")):
        _refuse_duplicates(names, what, file)
    return Genes(tuple(ids), tuple(symbols))


def _pick(
    explicit: str | None, candidates: Sequence[str], available: list[str], file: Path, role: str
) -> str | None:
    if explicit is not None:
        return require(explicit, available, file=file, setting=f"data.columns.{role}", axis="var")
    return next((name for name in candidates if name in available), None)


def _text(column: pl.Series) -> list[str]:
    text = column.cast(pl.String).fill_null("").str.strip_chars().to_list()
    return ["" if name.lower() in {"nan", "none", "na"} else name for name in text]


def _refuse_duplicates(names: Sequence[str], what: str, file: Path) -> None:
    twice = sorted(name for name, n in Counter(names).items() if n > 1)
    if twice:
        msg = (
            f"{len(twice)} gene {what}s stand more than once in var of {file}, e.g. "
            f"{', '.join(twice[:3])}; make them unique, or name another column in "
            f"data.columns.gene_{what}."
        )
        raise DataError(msg)


def column_order(reference: Genes, genes: Genes, *, file: Path, first: Path) -> NDArray[np.int64]:
    """Return the position in ``reference`` of each gene of another file, shape (G,).

    Raises
    ------
    DataError
        The files do not have the same genes.
    """
    only_here = [g for g in genes.gene_ids if g not in reference.by_id]
    only_there = [g for g in reference.gene_ids if g not in genes.by_id]
    if only_here or only_there:
        examples = ", ".join((only_here or only_there)[:3])
        msg = (
            f"{file} does not have the genes of {first}: {len(only_here)} are only in the former "
            "and "
            f"{len(only_there)} only in the latter, e.g. {examples}; give files with one gene list."
        )
        raise DataError(msg)
    return np.array([reference.by_id[g] for g in genes.gene_ids], dtype=np.int64)


def target_table(pairs: Iterable[tuple[str, str]]) -> pl.DataFrame:
    """Return the target vocabulary: control first, then the targets by id, each once.

    Parameters
    ----------
    pairs
        (symbol, id) of targets; controls among them are passed over.
    """
    by_id: dict[str, str] = {}
    for symbol, gene_id in sorted(pairs):
        if gene_id != NTC:
            by_id.setdefault(gene_id, symbol)
    ids = [NTC, *sorted(by_id)]
    return pl.DataFrame({"target_gene_id": ids, "target_gene": [NTC, *(by_id[i] for i in ids[1:])]})
