"""Latents of the cells of any file: its genes matched to a VAE's panel, its raw counts encoded.

A gene of the panel that the file lacks was not looked for, and is never taken for a zero: it is
filled in with the count that the VAE itself expects of the cell, given the genes that are there.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from knockscreen.artifacts import atomic
from knockscreen.data.cells import Vocabulary
from knockscreen.data.counts import Chunk, CountsFile
from knockscreen.data.vocab import Genes
from knockscreen.errors import DataError
from knockscreen.gene_names import without_version
from knockscreen.models.vae import TransformerVAE
from knockscreen.progress import track_chunks

FILLINGS = 3
"""Rounds of filling in; more change the embedding of half a panel little (docs/experiments.md)."""
KEY = "X_knockscreen"
"""Where the latents go in ``obsm``, and what they are in ``uns``."""


@dataclass(frozen=True)
class GeneMatch:
    """Which columns of a file are which genes of a panel; the pairs in the order of the panel."""

    columns: NDArray[np.int64]
    """(M,) positions among the genes of the file."""
    panel: NDArray[np.int64]
    """(M,) positions among the G genes of the panel."""
    by_id: int
    """How many of the M were matched by Ensembl id; the others were by symbol."""

    @property
    def by_symbol(self) -> int:
        """How many were matched by symbol."""
        return len(self.columns) - self.by_id


def match_genes(genes: Genes, vocabulary: Vocabulary, *, file: Path, vae: Path) -> GeneMatch:
    """Return which genes of the panel a file has: by Ensembl id, then by symbol.

    Versions of Ensembl ids (``ENSG00000115415.20``) do not count. A column of the file stands for
    one gene of the panel at most.

    Raises
    ------
    DataError
        None of the panel's genes is in the file.
    """
    ids = {without_version(name): k for k, name in reversed(list(enumerate(genes.gene_ids)))}
    wanted = list(enumerate(vocabulary.gene_ids))
    found = {g: ids[key] for g, name in wanted if (key := without_version(name)) in ids}
    by_id = len(found)
    taken = set(found.values())
    for g, symbol in enumerate(vocabulary.genes):
        column = genes.by_symbol.get(symbol, -1)
        if g not in found and column >= 0 and column not in taken:
            found[g] = column
            taken.add(column)
    if not found:
        msg = (
            f"{file} has none of the {len(vocabulary.genes)} genes that {vae} was trained on: its "
            f"first is '{genes.genes[0] if len(genes) else ''}', the panel's are like "
            f"'{vocabulary.genes[0]}' or '{vocabulary.gene_ids[0]}'; name the columns of var that "
            "hold symbols and Ensembl ids, or use a VAE of the same species."
        )
        raise DataError(msg)
    panel = np.array(sorted(found), dtype=np.int64)
    return GeneMatch(np.array([found[g] for g in panel], dtype=np.int64), panel, by_id)


@torch.no_grad()
def embed_counts(
    model: TransformerVAE, counts: NDArray[np.floating], panel: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the latent means (n, L D) of counts (n, M) of the panel genes ``panel`` (M,).

    The latents are those of the whole panel where all its genes are given, in any order. Others
    are encoded without the missing genes first, and then with the means that are decoded from that,
    brought to the cell's own sum over the genes given, in ``FILLINGS`` rounds.
    """
    device = next(model.parameters()).device
    index = torch.from_numpy(panel + 1).to(device)
    shown = torch.from_numpy(np.ascontiguousarray(counts, dtype=np.float32)).to(device)
    z, _ = model.encode(shown, gene_index=index)
    if len(panel) < model.genes:
        for _ in range(FILLINGS):
            expected = model.decode(z, shown.new_ones(len(shown))).mu  # (n, G)
            given = expected[:, index - 1].sum(1, keepdim=True)
            filled = expected * (shown.sum(1, keepdim=True) / given)
            filled[:, index - 1] = shown
            z, _ = model.encode(filled)
    return np.asarray(z.flatten(1).float().cpu().numpy())


def embed_chunks(
    model: TransformerVAE, file: CountsFile, match: GeneMatch, batch: int = 512
) -> Iterator[tuple[Chunk, NDArray[np.float32], int]]:
    """Yield each chunk of a file's cells, checked, with its latents (n, L D).

    The third value is how many of its cells have no count on any of the shared genes.
    """
    pairs = ((0, chunk) for chunk in file.chunks(batch))
    for _, chunk in track_chunks(pairs, file.n_cells, "embed"):
        mine = chunk.counts[:, match.columns].toarray()
        yield chunk, embed_counts(model, mine, match.panel), int((~mine.any(1)).sum())


def write_embedding(
    output: Path,
    model: TransformerVAE,
    file: CountsFile,
    match: GeneMatch,
    about: dict[str, Any],
) -> int:
    """Write a copy of the file with ``obsm["X_knockscreen"]``; return how many cells have no count.

    Cells are read and written in chunks. ``about`` goes to ``uns["X_knockscreen"]``. A cell
    without any count on the shared genes gets the latent of an empty cell.

    Raises
    ------
    DataError
        The counts are not raw, or the file is damaged; ``output`` is then as it was.
    """
    from anndata.io import write_elem

    shape = (file.n_cells, model.settings.tokens * model.settings.size.latent_dim)
    empty = 0
    with atomic(output) as temporary:
        shutil.copyfile(file.path, temporary)
        with h5py.File(temporary, "r+") as handle:
            if "obsm" not in handle:
                write_elem(handle, "obsm", {})
            if KEY in handle["obsm"]:
                del handle["obsm"][KEY]
            table = handle["obsm"].create_dataset(KEY, shape, dtype=np.float32)
            table.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
            for chunk, latents, silent in embed_chunks(model, file, match):
                table[chunk.start : chunk.stop] = latents
                empty += silent
            if "uns" not in handle:
                write_elem(handle, "uns", {})
            write_elem(handle["uns"], KEY, {**about, "cells_without_counts": empty})
    return empty
