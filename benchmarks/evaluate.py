"""Time and peak memory of ``knockscreen evaluate`` as the targets grow.

    python benchmarks/evaluate.py [--targets 250 500 1000] [--contexts 3] [--genes 4000]

Synthetic counts with planted effects, and predictions that are the planted effects with an error,
are written as a training store and as shards of a screen; a tenth of the targets is held out. The
verb runs in a process of its own, whose peak resident memory is read from the system. Prints a
Markdown table.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
from safetensors.numpy import save_file

from knockscreen.config import read_values
from knockscreen.names import NTC, SPLITS, Split

ROOT = Path(__file__).resolve().parents[1]
SHARDS = 8
FEATURES = 32
# A child of its own, so that RUSAGE_CHILDREN is the peak of one verb and not of all before it.
MEASURE = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
seconds = time.perf_counter() - start, usage.ru_utime + usage.ru_stime
print(json.dumps([code, *seconds, usage.ru_maxrss / 1024]))
"""


class World:
    """Planted effects of the targets, and cells that show them."""

    def __init__(self, targets: int, contexts: int, genes: int) -> None:
        rng = np.random.default_rng(0)
        self.genes = [f"ENSG{k:011d}" for k in range(genes)]
        self.targets = [NTC, *self.genes[:targets]]
        self.contexts = [f"time=T{c}" for c in range(contexts)]
        rates = np.exp(rng.normal(0, 1.5, genes))
        self.rates = rates / rates.sum()
        self.loadings = rng.normal(size=(FEATURES, genes)) * (rng.random((FEATURES, genes)) < 0.03)
        self.features = rng.normal(size=(genes, FEATURES)).astype(np.float32)

    def effect(self, codes: np.ndarray) -> np.ndarray:
        """Return log fold changes (n, G) of targets; control has none."""
        out = 0.3 * self.features[codes - 1] @ self.loadings
        out[np.arange(len(codes)), codes - 1] = -1.5
        out[codes == 0] = 0
        return out


def write_store(folder: Path, world: World, cells: int, held_out: int) -> None:
    """Write a store with ``cells`` per target and context, half of them test; controls 50 times."""
    rng = np.random.default_rng(1)
    t, c = len(world.targets), len(world.contexts)
    number = np.full((t, c), cells)
    number[0] *= 50
    code, context = (np.repeat(x.ravel(), number.ravel()) for x in np.indices((t, c)))
    split = np.arange(len(code)) % 2 * SPLITS.index(Split.TEST)
    split[code >= t - held_out] = SPLITS.index(Split.HELD_OUT_TARGET)
    indices, counts, lengths, library = [], [], [], []
    for start in range(0, len(code), 2000):
        mine = code[start : start + 2000]
        rates = world.rates * np.exp(world.effect(mine))
        drawn = rng.poisson(1500 * rates)
        row, column = np.nonzero(drawn)
        indices.append(column.astype(np.uint16))
        counts.append(drawn[row, column].astype(np.uint16))
        lengths.append(np.bincount(row, minlength=len(mine)))
        library.append(drawn.sum(axis=1) + 500)
    folder.mkdir(parents=True)
    arrays = {
        "indptr": np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64),
        "indices": np.concatenate(indices), "counts": np.concatenate(counts),
        "library_size": np.concatenate(library).astype(np.float32),
        "target": code.astype(np.int32), "contexts": context[:, None].astype(np.int16),
        "split": split.astype(np.int8),
    }  # fmt: skip
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", values)
    about = {
        "format": 1, "simulated": True, "n_cells": len(code),
        "genes": [{"gene_id": g, "gene": g} for g in world.genes],
        "targets": [{"target_gene_id": g, "target_gene": g} for g in world.targets],
        "factors": {"time": [name.removeprefix("time=") for name in world.contexts]},
        "library_size_log": {name: [7.6, 0.0] for name in world.contexts},
    }  # fmt: skip
    (folder / "store.json").write_text(json.dumps(about))
    guide = np.char.add(
        np.char.add("g", code.astype(str)), np.where(np.arange(len(code)) % 4 < 2, "a", "b")
    )
    table = {"guide_id": guide, "replicate": pl.Series([None] * len(code), dtype=pl.String)}
    pl.DataFrame(table).write_parquet(folder / "cells.parquet")


def write_screen(folder: Path, world: World) -> None:
    """Write candidates, shards whose deltas are the planted effects with an error, and features."""
    rng = np.random.default_rng(2)
    names = world.targets[1:]
    shard = np.arange(len(names)) * SHARDS // len(names)
    (folder / "screen/shards").mkdir(parents=True)
    pl.DataFrame(
        {
            "candidate": np.arange(len(names), dtype=np.int32),
            "target_gene": names,
            "target_gene_id": names,
            "evidence": "predicted_seen",
            "status": "screened",
            "shard": shard.astype(np.int32),
        }
    ).write_parquet(folder / "screen/candidates.parquet")
    about = {"contexts": world.contexts, "gene_ids": world.genes, "draws": 12, "blocks": 2}
    for s in range(SHARDS):
        mine = np.flatnonzero(shard == s)
        effect = world.effect(mine + 1)[:, None].repeat(len(world.contexts), 1)
        delta = 0.5 * effect + rng.normal(0, 0.03, effect.shape)
        np.savez(
            folder / f"screen/shards/{s}.npz",
            candidate=mine.astype(np.int32),
            delta_mean=delta.astype(np.float32),
            delta_var=np.full(delta.shape, 0.01, dtype=np.float32),
            n_draws=np.full(len(mine), about["draws"], dtype=np.int32),
            meta=np.array(json.dumps(about)),
        )
    (folder / "effect").mkdir()
    known = {"vocabulary": {"gene_ids": world.genes}, "feature_ids": world.genes}
    (folder / "effect/effect.json").write_text(json.dumps(known))
    save_file({"features": world.features}, folder / "effect/effect.safetensors")
    rows = [f"p{k}\t{world.genes[g]}\t1\n" for k in range(10) for g in range(20 * k, 20 * k + 20)]
    (folder / "programs.tsv").write_text("program\tgene\tweight\n" + "".join(rows))


def measure(folder: Path) -> list[float]:
    """Return seconds, CPU seconds and peak MB of the verb."""
    values = read_values(str(ROOT / "config/config.yaml"))
    values["programs"]["file"] = str(folder / "programs.tsv")
    values["rank"]["pool_over"] = []
    (folder / "settings.json").write_text(json.dumps(values))
    verb = [str(Path(sys.executable).with_name("knockscreen")), "evaluate"]
    options = {
        "store": "store", "effect": "effect/effect.safetensors", "shards-dir": "screen/shards",
        "candidates": "screen/candidates.parquet", "output-dir": "out", "settings": "settings.json",
    }  # fmt: skip
    words = [word for name, path in options.items() for word in (f"--{name}", str(folder / path))]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *verb, *words],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "2"},
    )
    code, *numbers = json.loads(done.stdout)
    if code:
        sys.exit(done.stderr)
    return [float(number) for number in numbers]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", type=int, nargs="+", default=[250, 500, 1000])
    parser.add_argument("--contexts", type=int, default=3)
    parser.add_argument("--genes", type=int, default=4000)
    parser.add_argument("--cells", type=int, default=24, help="per target and context")
    options = parser.parse_args()
    start = time.perf_counter()
    print("| targets | contexts | genes | cells | seconds | CPU seconds | peak MB |")
    print("|--:|--:|--:|--:|--:|--:|--:|", flush=True)
    for targets in options.targets:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            world = World(targets, options.contexts, options.genes)
            write_store(folder / "store", world, options.cells, targets // 10)
            write_screen(folder, world)
            numbers = [round(number) for number in measure(folder)]
        cells = (targets + 50) * options.contexts * options.cells
        row = (targets, options.contexts, options.genes, cells, *numbers)
        print("| " + " | ".join(f"{value:,}" for value in row) + " |", flush=True)
    print(f"\n{time.perf_counter() - start:.0f} s in all, writing the input included.")


if __name__ == "__main__":
    main()
