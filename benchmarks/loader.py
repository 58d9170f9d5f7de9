"""Random minibatches from a training store on disk, beside scDataset on an h5ad, or annbatch.

    python benchmarks/loader.py [--kind dense] [--cells 100000] [--rounds 5] [--record]
    python benchmarks/loader.py --peer annbatch [--kind dense] [--record]
    python benchmarks/loader.py --kind tokens --cells 50000 [--peer-gives dense] [--record]

``dense``: float32 tensors of 256 cells x 3,700 genes. ``tokens``: the expressed genes and their
counts of 256 cells, of 20,000 genes. Ours draws every cell at random (as training does, through
``CellStore``); scDataset draws blocks of 64 cells and shuffles 4,096 of them, which is less random
and faster for it, from anndata's sparse dataset on an uncompressed h5ad. Where tokens are asked
for, its sparse minibatches are turned into tokens by numpy, or given dense as it is used
(``--peer-gives dense``). CPU seconds per 1,000 cells on one thread, files in the page cache.

annbatch reads its own collection, shuffled when it is written (which is not timed), by its
defaults and the zarrs codecs: 32 chunks of 512 cells at a time, and minibatches are of those.
It needs Python 3.12: ``pip install 'annbatch[zarrs]' torch numba`` there, and ``PYTHONPATH=src``.
"""

import argparse
import json
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import rounds
import torch
from anndata import AnnData
from anndata.io import sparse_dataset, write_elem
from scipy import sparse
from synthetic import batches

from knockscreen.data.cells import CellStore
from knockscreen.data.gather import Tokens, tokens_in_numpy

BATCH, BLOCK, FETCH = 256, 64, 16
CHUNK, PRELOAD = 512, 32
"""annbatch's defaults: cells of a chunk, and chunks in memory."""
SIZES = {"dense": (3_700, 1_050.0, 1.6), "tokens": (20_000, 2_000.0, 2.2)}
"""Genes, molecules per cell and spread of expression."""


def write_both(folder: Path, cells: int, kind: str) -> tuple[Path, Path]:
    """Write a training store and an h5ad of the same counts."""
    genes, molecules, spread = SIZES[kind]
    parts = list(batches(cells, genes, molecules=molecules, spread=spread))
    counts = sparse.vstack(parts).tocsr()
    counts.indices, counts.indptr = counts.indices.astype(np.int32), counts.indptr.astype(np.int64)
    store = folder / "store"
    store.mkdir()
    np.save(store / "indptr.npy", counts.indptr)
    np.save(store / "indices.npy", counts.indices.astype(np.uint16))
    np.save(store / "counts.npy", counts.data.astype(np.uint16))
    np.save(store / "library_size.npy", np.full(cells, molecules, dtype=np.float32))
    np.save(store / "target.npy", np.zeros(cells, dtype=np.int32))
    np.save(store / "contexts.npy", np.zeros((cells, 1), dtype=np.int16))
    np.save(store / "split.npy", np.zeros(cells, dtype=np.int8))
    about = {
        "format": 1, "factors": {"donor": ["D1"]}, "library_size_log": {},
        "genes": [{"gene_id": f"G{k}", "gene": f"G{k}"} for k in range(genes)],
        "targets": [{"target_gene_id": "non-targeting", "target_gene": "non-targeting"}],
    }  # fmt: skip
    (store / "store.json").write_text(json.dumps(about))
    with h5py.File(folder / "counts.h5ad", "w") as file:
        write_elem(file, "/", AnnData(counts))
    print(f"{cells:,} cells, {genes:,} genes, {counts.nnz / cells:.0f} expressed per cell")
    return store, folder / "counts.h5ad"


def ours(store: CellStore, kind: str, n: int, rng: np.random.Generator) -> None:
    """Read ``n`` minibatches of random cells."""
    order = rng.permutation(len(store))
    for k in range(n):
        rows = order[np.arange(k * BATCH, (k + 1) * BATCH) % len(store)]
        if kind == "dense":
            torch.from_numpy(store.dense(rows))
        else:
            found = store.tokens(rows)
            torch.from_numpy(found.gene), torch.from_numpy(found.count)


def to_tensors(batch: sparse.csr_matrix, gives: str) -> None:
    if gives == "dense":
        torch.from_numpy(batch.toarray())
        return
    batch.sort_indices()
    length = np.diff(batch.indptr)
    shape = (len(length), int(length.max()))
    out = Tokens(np.empty(shape, np.int32), np.empty(shape, np.float32), length)
    tokens_in_numpy((batch.data, batch.indices, batch.indptr), np.arange(len(length)), out)
    torch.from_numpy(out.gene), torch.from_numpy(out.count)


class Collection:
    """anndata's sparse rows on disk, with the length that scDataset asks for."""

    def __init__(self, group: h5py.Group) -> None:
        self._rows = sparse_dataset(group)

    def __len__(self) -> int:
        return self._rows.shape[0]

    def __getitem__(self, rows: np.ndarray) -> sparse.csr_matrix:
        return self._rows[rows]


def scdataset(counts: object, gives: str, n: int) -> None:
    """Read ``n`` minibatches as scDataset draws them."""
    from scdataset import BlockShuffling, scDataset

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        drawn: Iterator = iter(
            scDataset(counts, BlockShuffling(block_size=BLOCK), BATCH, fetch_factor=FETCH, seed=0)
        )
        for _ in range(n):
            to_tensors(next(drawn), gives)


def collection_of(h5ad: Path, folder: Path) -> Any:
    """Write annbatch's shuffled collection of an h5ad."""
    import zarr
    from annbatch import DatasetCollection

    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    return DatasetCollection(folder / "collection.zarr").add_adatas([h5ad])


def annbatch(collection: Any, gives: str, n: int) -> None:
    """Read ``n`` minibatches as annbatch draws them."""
    from annbatch import Loader

    loader = Loader(batch_size=BATCH, chunk_size=CHUNK, preload_nchunks=PRELOAD, shuffle=True)
    drawn = iter(loader.use_collection(collection))
    for _ in range(n):
        to_tensors(sparse.csr_matrix(next(drawn)["X"]), gives)


def main() -> None:
    parser = rounds.parser(__doc__)
    parser.add_argument("--kind", choices=tuple(SIZES), default="dense")
    parser.add_argument("--peer-gives", choices=("dense", "tokens"), default=None)
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--peer", choices=("scDataset", "annbatch"), default="scDataset")
    parser.add_argument("--batches", type=int, default=128, help="minibatches in a round")
    options: argparse.Namespace = parser.parse_args()
    n = options.batches
    if n * BATCH > options.cells:
        parser.error(f"{n} minibatches take {n * BATCH} cells")
    torch.set_num_threads(1)
    gives = options.peer_gives or options.kind
    with tempfile.TemporaryDirectory() as folder:
        where, h5ad = write_both(Path(folder), options.cells, options.kind)
        store, rng = CellStore.open(where), np.random.default_rng(0)
        with h5py.File(h5ad) as file:
            if options.peer == "annbatch":
                read, source = annbatch, collection_of(h5ad, Path(folder))
            else:
                read, source = scdataset, Collection(file["X"])
            result = rounds.compare(
                lambda: ours(store, options.kind, n, rng),
                lambda: read(source, gives, n),
                rounds=options.rounds,
            )
    per = n * BATCH / 1_000
    result = rounds.Comparison([t / per for t in result.ours], [t / per for t in result.theirs])
    genes = SIZES[options.kind][0]
    stage = f"loader, {options.kind} minibatches of {BATCH} x {genes:,} genes"
    name = options.peer if gives == options.kind else f"{options.peer}, {gives}"
    rounds.report(stage, name, result, unit="CPU s per 1,000 cells", bar=8, record=options.record)


if __name__ == "__main__":
    main()
