"""From raw counts to the training store, beside scanpy in memory.

    python benchmarks/qc.py [--cells 200000] [--genes 20000] [--keep FOLDER] [--record]
    python benchmarks/qc.py --memory 50000 600000 [--keep FOLDER] [--record]

Counts (about 1,150 genes per cell, 200 knock-downs with three guides each, two donors) are written
by chunks to an h5ad as anndata lays it out, without compression, or with ``--compression gzip``.
Ours: the commands ``knockscreen qc`` and ``normalize`` as they are, with the test of each guide's
knock-down and the splits. Theirs: read, filter_cells, normalize_total, log1p,
highly_variable_genes (flavour seurat, 3,700), subset, write. Every side runs in processes of its
own, whose CPU seconds (start and imports among them) and peak memory the system tells.

Also says how far both agree on the variable genes where they are asked the same: all cells that
scanpy keeps, one batch, no test of knock-downs, no gene left out by ``panel.min_cells``.
``--memory`` measures ours alone, at a smaller and a larger number of cells: bytes of peak memory
per cell between the two.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import h5py
import numpy as np
import pandas as pd
import rounds
from anndata.io import write_elem
from synthetic import batches

from knockscreen.config import read_values

PANEL, MIN_GENES, TARGETS, GUIDES, CONTROL_SHARE = 3_700, 200, 200, 3, 0.1
KEEPS = 0.25
"""Share of the target's molecules that a knock-down leaves."""


def write_counts(path: Path, cells: int, genes: int, compression: str | None) -> None:
    """Write an h5ad; memory does not grow with the cells."""
    rng = np.random.default_rng(1)
    guide = rng.integers(TARGETS * GUIDES, size=cells)
    control = rng.random(cells) < CONTROL_SHARE
    gene = np.where(control, -1, (guide // GUIDES) * (genes // TARGETS))
    names = np.array([f"G{k:05d}" for k in range(genes)])
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        x = file.create_group("X")
        about = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0"}
        x.attrs.update({**about, "shape": np.array([cells, genes])})
        how = {"shape": (0,), "maxshape": (None,), "chunks": (65_536,), "compression": compression}
        data = x.create_dataset("data", dtype=np.float32, **how)
        indices = x.create_dataset("indices", dtype=np.int32, **how)
        indptr, done = [np.zeros(1, dtype=np.int64)], 0
        for counts in batches(cells, genes, molecules=2_000, spread=2.2):
            rows = slice(done, done + counts.shape[0])
            own = counts.indices == np.repeat(gene[rows], np.diff(counts.indptr))
            counts.data[own] = rng.binomial(counts.data[own].astype(int), KEEPS)
            counts.eliminate_zeros()
            size = int(indptr[-1][-1])
            for where, values in ((data, counts.data), (indices, counts.indices)):
                where.resize((size + counts.nnz,))
                where[size:] = values
            indptr.append(counts.indptr[1:].astype(np.int64) + size)
            done = rows.stop
        x.create_dataset("indptr", data=np.concatenate(indptr))
        target = np.where(control, "non-targeting", names[np.maximum(gene, 0)])
        label = np.where(control, "NT", target)
        labels = pd.Series(label).str.cat((guide % GUIDES).astype(str), sep="-g")
        donor = np.array(["D1", "D2"])[rng.integers(2, size=cells)]
        obs = {"target_gene": target, "guide_id": labels.to_numpy(), "donor": donor}
        index = pd.Index([f"cell{k}" for k in range(cells)], name="cell")
        write_elem(file, "obs", pd.DataFrame(obs, index=index).astype("category"))
        write_elem(file, "var", pd.DataFrame({"gene_symbol": names, "gene_id": names}, index=names))


def write_settings(path: Path, *, same: bool) -> Path:
    """Write the configuration; ``same`` asks for what scanpy is asked."""
    values = read_values(str(rounds.ROOT / "config" / "config.yaml"))
    values["simulate"]["enabled"] = False
    values["data"].update(preset="generic", contexts={"donor": "donor"})
    values["qc"].update(min_counts=0, min_genes=MIN_GENES, knockdown_test=not same)
    values["panel"].update(genes=PANEL, programs=not same, targets=not same)
    values["panel"].update(batch=[] if same else ["donor"])
    programs = path.with_suffix(".tsv")
    names = [f"P\tG{k:05d}\t1\tbenchmark" for k in range(10, 60)]
    programs.write_text("\n".join(["program\tgene\tweight\tsource", *names]) + "\n")
    values["programs"].update(file=str(programs), extra=[], names=[])
    if same:
        values["panel"]["min_cells"] = 1
        values["qc"].update(min_cells=1)
        values["splits"].update(validation=0, test=0, random_held_out_targets=0, decoys=0)
        values["splits"].update(held_out_targets=[], held_out_contexts=[])
    path.write_text(json.dumps(values))
    return path


def scanpy_in_memory(counts: str, out: str) -> None:
    """What the peer's process runs."""
    import scanpy as sc

    data = sc.read_h5ad(counts)
    sc.pp.filter_cells(data, min_genes=MIN_GENES)
    sc.pp.normalize_total(data, target_sum=1e4)
    sc.pp.log1p(data)
    sc.pp.highly_variable_genes(data, n_top_genes=PANEL)
    data[:, data.var["highly_variable"]].copy().write_h5ad(out)


def cost(*commands: list[str]) -> tuple[float, float]:
    """Run commands one after another; return their CPU seconds and the highest peak, in bytes."""
    seconds, peak = 0.0, 0.0
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
    for command in commands:
        child = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        assert child.stderr is not None
        said = child.stderr.read().decode()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if status:
            sys.exit(said)
        seconds += usage.ru_utime + usage.ru_stime
        peak = max(peak, usage.ru_maxrss * 1024.0)
    return seconds, peak


def ours(counts: Path, settings: Path, out: Path) -> list[list[str]]:
    """Return the commands from counts to the store."""
    verb = [sys.executable, "-c", "from knockscreen.cli import main; main()"]
    given = ["--input", str(counts), "--settings", str(settings)]
    qc, store = str(out / "qc"), str(out / "store")
    return [
        [*verb, "qc", *given, "--output-dir", qc],
        [*verb, "normalize", *given, "--qc-dir", qc, "--output-dir", store],
    ]


def overlap(counts: Path, folder: Path, theirs: Path) -> float:
    """Return the share of scanpy's variable genes that are on our panel, asked the same."""
    import polars as pl

    cost(*ours(counts, write_settings(folder / "same.json", same=True), folder / "same"))
    panel = pl.read_parquet(folder / "same" / "store" / "panel.parquet").filter("in_panel")
    with h5py.File(theirs) as file:
        chosen = set(file["var"]["gene_symbol"].asstr()[:])
    print(f"cells kept by both: {len(np.load(folder / 'same/store/target.npy'))}")
    return len(chosen & set(panel["gene"])) / len(chosen)


def compare(options: argparse.Namespace, folder: Path) -> None:
    counts = prepared(folder, options.cells, options)
    settings = write_settings(folder / "settings.json", same=False)
    theirs = folder / "scanpy.h5ad"
    call = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import qc; "
    call += f"qc.scanpy_in_memory({str(counts)!r}, {str(theirs)!r})"
    found: list[tuple[tuple[float, float], tuple[float, float]]] = []
    cost(*ours(counts, settings, folder / "ours"))  # the page cache, and compiled code
    for k in range(options.rounds):
        pair = cost(*ours(counts, settings, folder / "ours")), cost([sys.executable, "-c", call])
        print(f"round {k}: ours {pair[0][0]:.1f} CPU s, {pair[0][1] / 1e9:.2f} GB; "
              f"scanpy {pair[1][0]:.1f} CPU s, {pair[1][1] / 1e9:.2f} GB", flush=True)  # fmt: skip
        found.append(pair)
    compressed = f", {options.compression}" if options.compression else ""
    stage = f"QC to training store, {options.cells:,} cells x {options.genes:,} genes{compressed}"
    time = rounds.Comparison([a[0] for a, _ in found], [b[0] for _, b in found])
    memory = rounds.Comparison([a[1] / 1e9 for a, _ in found], [b[1] / 1e9 for _, b in found])
    peer = "scanpy in memory"
    rounds.report(stage, peer, time, bar=3, record=options.record)
    rounds.report(f"{stage}, memory", peer, memory, unit="GB peak", bar=1, record=options.record)
    print(f"panel overlap: {overlap(counts, folder, theirs):.2%} of scanpy's {PANEL} genes")


def slope(options: argparse.Namespace, folder: Path) -> None:
    settings = write_settings(folder / "settings.json", same=False)
    peaks: list[list[float]] = []
    for cells in options.memory:
        counts = prepared(folder, cells, options)
        runs = [cost(*ours(counts, settings, folder / "ours")) for _ in range(options.rounds)]
        peaks.append([peak for _, peak in runs])
        print(f"{cells:,} cells: {median(peaks[-1]) / 1e6:.0f} MB, "
              f"{median([s for s, _ in runs]):.1f} CPU s", flush=True)  # fmt: skip
    more = options.memory[1] - options.memory[0]
    per_cell = [(b - a) / more for a, b in zip(*peaks, strict=True)]
    stage = f"QC to training store, {options.memory[0]:,} to {options.memory[1]:,} cells"
    limit = rounds.Comparison(per_cell, [300.0] * len(per_cell))
    rounds.report(stage, "300 bytes per cell", limit, unit="B/cell", bar=1, record=options.record)


def prepared(folder: Path, cells: int, options: argparse.Namespace) -> Path:
    suffix = f"_{options.compression}" if options.compression else ""
    path = folder / f"counts_{cells}_{options.genes}{suffix}.h5ad"
    if not path.exists():
        unfinished = path.with_suffix(".part")
        write_counts(unfinished, cells, options.genes, options.compression)
        unfinished.rename(path)
    return path


@contextlib.contextmanager
def workplace(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def main() -> None:
    parser = rounds.parser(__doc__)
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--genes", type=int, default=20_000)
    parser.add_argument("--compression", choices=("gzip",), help="as some files are")
    parser.add_argument("--memory", type=int, nargs=2, metavar="CELLS", help="two numbers of cells")
    parser.add_argument("--keep", type=Path, help="folder for the files, reused if they are there")
    options = parser.parse_args()
    with workplace(options.keep) as folder:
        (slope if options.memory else compare)(options, folder)


if __name__ == "__main__":
    main()
