"""Writing the simulated screen: h5ad files block by block, the truth, the planted regulators."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd  # type: ignore[import-untyped]
from anndata.io import write_elem
from numpy.typing import NDArray

from knockscreen.artifacts import atomic, write_manifest
from knockscreen.config import SimulateConfig
from knockscreen.simulate.cells import LANES, Cells, blocks, cells_per_file
from knockscreen.simulate.truth import write_regulators, write_truth
from knockscreen.simulate.world import World, build_world

logger = logging.getLogger(__name__)

SUFFIX = ".assigned_guide.h5ad"
CHUNK = 1 << 16
FLUSH = 8
"""Blocks written at once; changes nothing but memory."""

Entries = tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.int64]]
"""Values, columns and row lengths of some rows of a CSR matrix."""


def write_screen(settings: SimulateConfig, output_dir: Path) -> list[Path]:
    """Write one h5ad per donor and culture condition, and the truth; return the h5ad paths.

    Beside them lie ``truth.npz`` (:func:`~knockscreen.simulate.truth.write_truth`),
    ``regulators.tsv`` and a manifest for each file. Memory does not grow with the number of cells
    but for their annotation.

    Raises
    ------
    ConfigError
        The settings contradict themselves.
    DataError
        An input of the anchored mode is not what it should be, or a file cannot be written.
    """
    world = build_world(settings)
    output_dir = Path(output_dir)
    inputs = [Path(p) for p in (settings.baseline, settings.effects) if p] * (
        settings.mode == "anchored"
    )
    sizes = cells_per_file(world, settings)
    offsets = np.cumsum([0, *sizes])
    paths = []
    for index, ((donor, time), n) in enumerate(zip(world.contexts, sizes, strict=True)):
        path = output_dir / f"{donor}_{time}{SUFFIX}"
        with atomic(path) as temporary:
            write_file(world, settings, index, n, temporary, first=int(offsets[index]))
        logger.info("simulated %s: %d cells x %d genes", path.name, n, len(world.genes))
        paths.append(path)
    write_truth(world, settings, output_dir / "truth.npz")
    write_regulators(world, output_dir / "regulators.tsv")
    for path in (*paths, output_dir / "truth.npz", output_dir / "regulators.tsv"):
        write_manifest(
            path,
            stage="simulate",
            inputs=inputs,
            settings=settings.model_dump(),
            seed=settings.seed,
            notes={"simulated": True},
        )
    return paths


def write_file(
    world: World,
    settings: SimulateConfig,
    index: int,
    n: int,
    path: Path,
    *,
    first: int = 0,
    flush: int = FLUSH,
) -> None:
    """Write the ``n`` cells of context ``index`` as an h5ad.

    Parameters
    ----------
    first
        Number of the first cell over all files; barcodes are unique over the screen.
    flush
        Blocks held before they are written; the file is the same for any value.
    """
    annotations: list[pd.DataFrame] = []
    with h5py.File(path, "w") as handle:
        handle.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        matrix = _Csr(handle, shape=(n, len(world.genes)))
        waiting: list[Entries] = []
        for cells in blocks(world, settings, index, n):
            waiting.append(_entries(cells.counts))
            annotations.append(_annotate(world, cells))
            if len(waiting) == flush:
                matrix.append(waiting)
                waiting = []
        matrix.append(waiting)
        write_elem(handle, "obs", _obs(world, annotations, index, first))
        write_elem(handle, "var", _var(world))
        write_elem(handle, "uns", _uns(settings))
        for group in ("layers", "obsm", "obsp", "varm", "varp"):
            write_elem(handle, group, {})


class _Csr:
    """A CSR matrix that grows on disk, in AnnData's encoding."""

    def __init__(self, handle: h5py.File, *, shape: tuple[int, int]) -> None:
        self.group = handle.create_group("X")
        self.group.attrs.update(
            {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": shape}
        )
        options: dict[str, Any] = {
            "shape": (0,),
            "maxshape": (None,),
            "chunks": (CHUNK,),
            "compression": "lzf",
            "shuffle": True,
        }
        self.data = self.group.create_dataset("data", dtype=np.float32, **options)
        self.indices = self.group.create_dataset("indices", dtype=np.int32, **options)
        self.indptr = self.group.create_dataset("indptr", shape=(shape[0] + 1,), dtype=np.int64)
        self.rows = 0

    def append(self, blocks: list[Entries]) -> None:
        """Append the entries of some blocks of rows."""
        if not blocks:
            return
        values, columns, per_row = (np.concatenate(part) for part in zip(*blocks, strict=True))
        start = self.data.shape[0]
        for dataset, new in ((self.data, values), (self.indices, columns)):
            dataset.resize((start + len(new),))
            dataset[start:] = new
        self.indptr[self.rows + 1 : self.rows + 1 + len(per_row)] = start + np.cumsum(per_row)
        self.rows += len(per_row)


def _entries(counts: NDArray[np.int64]) -> Entries:
    """Return the non-zero values, their columns, and how many each row of (n, G) has."""
    present = counts != 0
    columns = np.nonzero(present)[1].astype(np.int32)
    return counts[present].astype(np.float32), columns, present.sum(axis=1)


def _annotate(world: World, cells: Cells) -> pd.DataFrame:
    """Return the study's numeric columns of a block, with the guide still as a code."""
    mitochondrial = world.genes.where("mitochondrial")
    total = cells.counts.sum(axis=1)
    share = cells.counts[:, mitochondrial].sum(axis=1) / np.maximum(total, 1)
    return pd.DataFrame(
        {
            "lane": cells.lane.astype(np.int8),
            "n_genes_by_counts": (cells.counts != 0).sum(axis=1).astype(np.int32),
            "total_counts": total.astype(np.float32),
            "pct_counts_mt": (100 * share).astype(np.float32),
            "top_guide_UMI_counts": cells.guide_umis.astype(np.float32),
            "guide": np.where(cells.second >= 0, -2, cells.guide).astype(np.int32),
            "PuroR": cells.puromycin.astype(np.float32),
            "low_quality": cells.low_quality,
        }
    )


def _obs(world: World, annotations: list[pd.DataFrame], index: int, first: int) -> pd.DataFrame:
    """Return obs with the study's columns; what is unknown of a cell's guide is missing."""
    donor, time = world.contexts[index]
    table = pd.concat(annotations, ignore_index=True) if annotations else None
    if table is None:
        table = pd.DataFrame({"lane": [], "guide": []}).astype(np.int32)
    guides = world.guides
    code = table["guide"].to_numpy()  # -1 no guide, -2 several
    target = np.where(code >= 0, guides.target[code], -2)
    is_control = (code >= 0) & (target < 0)
    labels = [*world.genes.gene, "NTC"]
    ids = [*world.genes.gene_id, "NTC"]
    gene_code = np.where(is_control, len(world.genes), np.where(target >= 0, target, -1))
    group = np.select([code == -1, code == -2, is_control], [3, 2, 1], 0)
    lanes = [f"{donor}_{time}_lane{k + 1}" for k in range(LANES)]
    obs = table.drop(columns=["lane", "guide"])
    obs.insert(0, "lane_id", pd.Categorical.from_codes(table["lane"].to_numpy(), lanes))
    guide_code = np.where(code == -2, len(guides.guide_id), code)
    obs["guide_id"] = _categorical(guide_code, [*guides.guide_id, "multi-guide"])
    obs["perturbed_gene_name"] = _categorical(gene_code, labels)
    obs["perturbed_gene_id"] = _categorical(gene_code, ids)
    obs["guide_type"] = _categorical(
        np.where(code < 0, -1, is_control), ["targeting", "non-targeting"]
    )
    obs["guide_group"] = _categorical(
        group, ["targeting single sgRNA", "NTC single sgRNA", "multi sgRNA", "no sgRNA"]
    )
    obs["donor_id"] = _categorical(np.zeros(len(obs), dtype=int), [donor])
    obs["culture_condition"] = _categorical(np.zeros(len(obs), dtype=int), [time])
    obs.index = pd.Index(_barcodes(first, len(obs)), name="barcode", dtype=object)
    return obs


def _categorical(codes: NDArray[np.integer[Any]], labels: Iterable[str]) -> pd.Categorical:
    """Return a categorical of the labels in use, sorted; code -1 is missing."""
    values = pd.Categorical.from_codes(codes, [str(label) for label in labels])
    used = values.remove_unused_categories()
    return used.reorder_categories(sorted(used.categories))


def _barcodes(first: int, n: int) -> list[str]:
    """Return 16-base barcodes that are unique over the screen (an odd multiplier permutes 4^16)."""
    numbers = (np.arange(first, first + n, dtype=np.uint64) * np.uint64(2_654_435_761)) % 4**16
    digits = (numbers[:, None] >> np.arange(0, 32, 2, dtype=np.uint64)) & np.uint64(3)
    text = np.frombuffer(b"ACGT", dtype=np.uint8)[digits]
    return [row.tobytes().decode() + "-1" for row in text]


def _var(world: World) -> pd.DataFrame:
    genes = world.genes
    return pd.DataFrame(
        {
            "gene_ids": genes.gene_id.astype(object),
            "feature_types": pd.Categorical(["Gene Expression"] * len(genes)),
            "genome": pd.Categorical(["simulated"] * len(genes)),
            "gene_name": genes.gene.astype(object),
            "mt": genes.role == "mitochondrial",
        },
        index=pd.Index(genes.gene_id.astype(object), name="gene_id"),
    )


def _uns(settings: SimulateConfig) -> dict[str, Any]:
    return {
        "simulated": True,
        "simulation": {
            "mode": settings.mode,
            "seed": settings.seed,
            "note": "simulated counts, not measured cells; layout of Zhu, Dann et al. 2025",
        },
    }
