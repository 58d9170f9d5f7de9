"""The training store: a memory-mapped CSR of panel counts with the codes of every cell.

Written by ``normalize``; numpy is enough, so that training runs where nothing else is installed.
"""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from knockscreen.data.gather import Tokens, dense_rows, token_rows
from knockscreen.errors import DataError, UnknownNameError, suggest
from knockscreen.names import SPLITS, Split, context_name, is_decoy, parse_context

FORMAT = 1


@dataclass(frozen=True)
class Vocabulary:
    """Genes, context factors and targets in the order of their codes."""

    gene_ids: tuple[str, ...]
    genes: tuple[str, ...]
    factors: tuple[str, ...]
    levels: tuple[tuple[str, ...], ...]
    target_ids: tuple[str, ...]
    """Control, the targets of the screen, and the decoys after them."""
    targets: tuple[str, ...]

    @property
    def n_real(self) -> int:
        """Number of targets that are no decoys, control included."""
        return sum(not is_decoy(t) for t in self.target_ids)

    @cached_property
    def contexts(self) -> tuple[str, ...]:
        """Names of all combinations of levels, first factor slowest; without factors ``all``."""
        return tuple(
            context_name(dict(zip(self.factors, named, strict=True)))
            for named in itertools.product(*self.levels)
        )

    @property
    def context_levels(self) -> NDArray[np.int64]:
        """Level codes (C, K) of ``contexts``, in their order."""
        codes = itertools.product(*(range(len(level)) for level in self.levels))
        return np.array(list(codes), dtype=np.int64)

    def context_codes(self, name: str) -> NDArray[np.int64]:
        """Return the level codes (K,) of a full context name.

        Raises
        ------
        UnknownNameError
            A factor or level is not there, or a factor is missing.
        """
        given = parse_context(name)
        codes = []
        for factor in given:
            if factor not in self.factors:
                msg = (
                    f"unknown context factor '{factor}' in '{name}'{suggest(factor, self.factors)}."
                )
                raise UnknownNameError(msg)
        for factor, levels in zip(self.factors, self.levels, strict=True):
            if factor not in given:
                msg = (
                    f"context '{name}' does not say which {factor}; available: {', '.join(levels)}."
                )
                raise UnknownNameError(msg)
            if given[factor] not in levels:
                near = suggest(given[factor], levels)
                msg = f"unknown {factor} '{given[factor]}' in context '{name}'{near}."
                raise UnknownNameError(msg)
            codes.append(levels.index(given[factor]))
        return np.array(codes, dtype=np.int64)

    def target_code(self, name: str) -> int:
        """Return the code of a target by symbol or id, or -1 where it was not in the screen."""
        for names in (self.target_ids, self.targets):
            if name in names:
                return names.index(name)
        return -1


@dataclass(frozen=True)
class CellStore:
    """Counts (N cells, G panel genes) and codes, mapped from disk."""

    path: Path
    vocabulary: Vocabulary
    library_size_log: dict[str, tuple[float, float]]
    simulated: bool
    indptr: NDArray[np.int64]
    indices: NDArray[np.unsignedinteger]
    counts: NDArray[np.unsignedinteger]
    library_size: NDArray[np.float32]
    target: NDArray[np.int32]
    contexts: NDArray[np.int16]
    split: NDArray[np.int8]
    decoy_rows: NDArray[np.int64]
    """(M,) rows of the control cells that decoys are made of, decoy by decoy."""
    decoy_target: NDArray[np.int64]
    """(M,) codes of those decoys; ``target`` itself holds none."""

    def __len__(self) -> int:
        """Return the number of cells."""
        return len(self.target)

    @classmethod
    def open(cls, path: Path | str) -> "CellStore":
        """Map the store in folder ``path``.

        Raises
        ------
        DataError
            The folder is not a store, or one of another format.
        """
        path = Path(path)
        header = path / "store.json"
        if not header.is_file():
            msg = (
                f"{path} is not a training store (no store.json in it); "
                "run 'knockscreen normalize' first."
            )
            raise DataError(msg)
        about = json.loads(header.read_text())
        if about.get("format") != FORMAT:
            msg = (
                f"{header} has format {about.get('format')}, this version reads {FORMAT}; "
                "run 'knockscreen normalize' again."
            )
            raise DataError(msg)
        vocabulary = Vocabulary(
            gene_ids=tuple(g["gene_id"] for g in about["genes"]),
            genes=tuple(g["gene"] for g in about["genes"]),
            factors=tuple(about["factors"]),
            levels=tuple(tuple(levels) for levels in about["factors"].values()),
            target_ids=(*(t["target_gene_id"] for t in about["targets"]), *about.get("decoys", [])),
            targets=(*(t["target_gene"] for t in about["targets"]), *about.get("decoys", [])),
        )
        arrays = {}
        for name in ("indptr", "indices", "counts", "library_size", "target", "contexts", "split"):
            arrays[name] = np.load(path / f"{name}.npy", mmap_mode="r")
        for name in ("decoy_rows", "decoy_target"):
            there = (path / f"{name}.npy").is_file()
            arrays[name] = np.load(path / f"{name}.npy") if there else np.zeros(0, dtype=np.int64)
        return cls(
            path=path,
            vocabulary=vocabulary,
            library_size_log={k: (v[0], v[1]) for k, v in about["library_size_log"].items()},
            simulated=bool(about.get("simulated", False)),
            **arrays,
        )

    @property
    def is_control(self) -> NDArray[np.bool_]:
        """Return which cells are controls (target code 0)."""
        return np.equal(self.target, 0)

    def rows(self, *splits: Split) -> NDArray[np.int64]:
        """Return the rows of some splits, in order."""
        codes = [SPLITS.index(split) for split in splits]
        return np.flatnonzero(np.isin(self.split, codes))

    def dense(self, rows: NDArray[np.integer]) -> NDArray[np.float32]:
        """Return the counts (len(rows), G) of some rows, in any order, float32."""
        stored = (self.counts, self.indices, self.indptr)
        return dense_rows(stored, rows, len(self.vocabulary.gene_ids))

    def tokens(self, rows: NDArray[np.integer]) -> Tokens:
        """Return the expressed genes of some rows, in any order, and their counts."""
        stored = (self.counts, self.indices, self.indptr)
        return token_rows(stored, rows, len(self.vocabulary.gene_ids))

    def chunks(
        self, rows: NDArray[np.integer], size: int = 4096
    ) -> Iterator[tuple[NDArray[np.integer], NDArray[np.float32]]]:
        """Yield (rows, counts) in pieces of at most ``size`` cells."""
        for start in range(0, len(rows), size):
            piece = rows[start : start + size]
            yield piece, self.dense(piece)

    def context_index(self) -> NDArray[np.int64]:
        """Return the index of every cell's context in ``vocabulary.contexts``."""
        index = np.zeros(len(self), dtype=np.int64)
        for k, levels in enumerate(self.vocabulary.levels):
            index = index * len(levels) + np.asarray(self.contexts[:, k])
        return index
