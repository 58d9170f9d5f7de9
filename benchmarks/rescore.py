"""Time and memory of ranking a genome-scale screen toward new programs from its stored effects.

Random effects of 12,000 targets x 12 contexts x 3,700 genes in 300 shard files are scored on 50 new
programs by the code behind ``knockscreen score-programs``, one shard at a time. ``--shards-run`` is
how many of the shards are written and scored; the time for all is in proportion (ranking them is
``benchmarks/rerank.py``)::

    python benchmarks/rescore.py --shards-run 30
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from knockscreen.score.effects import EFFECT_SCHEMA
from knockscreen.score.programs import program_matrix
from knockscreen.score.rescore import rescore


def write_shard(
    path: Path, targets: list[str], contexts: list[str], genes: list[str], rng: np.random.Generator
) -> None:
    """Write random effects in the layout of ``score``: one row group per context."""
    k, g = len(targets), len(genes)
    with pq.ParquetWriter(path, EFFECT_SCHEMA, compression="zstd", store_schema=False) as writer:
        for context in contexts:
            codes = [
                (np.repeat(np.arange(k, dtype=np.int32), g), targets),
                (np.zeros(k * g, dtype=np.int32), [context]),
                (np.tile(np.arange(g, dtype=np.int32), k), genes),
            ]
            arrays = [pa.DictionaryArray.from_arrays(c, pa.array(names)) for c, names in codes]
            arrays += [pa.array(rng.normal(0, 0.1, k * g).astype(np.float32)) for _ in range(5)]
            arrays.append(pa.array(np.zeros(k * g, dtype=bool)))
            writer.write_table(pa.Table.from_arrays(arrays, schema=EFFECT_SCHEMA))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (
        ("targets", 12_000), ("genes", 3_700), ("contexts", 12), ("programs", 50), ("shards", 300),
        ("shards-run", 30), ("program-genes", 60),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    genes = [f"ENSG{i:011d}" for i in range(args.genes)]
    contexts = [f"donor=D{c // 3},time=T{c % 3}" for c in range(args.contexts)]
    members = pl.DataFrame(
        [
            (f"program{p:02d}", genes[gene], float(rng.choice([-1, 1])))
            for p in range(args.programs)
            for gene in rng.choice(args.genes, args.program_genes, replace=False)
        ],
        schema=["program", "gene", "weight"],
        orient="row",
    )
    programs = program_matrix(members, genes, genes)
    per_shard = args.targets // args.shards
    with tempfile.TemporaryDirectory() as name:
        run = Path(name)
        (run / "score/effects").mkdir(parents=True)
        for shard in range(args.shards_run):
            own = genes[: args.genes] * (args.targets // args.genes + 1)
            targets = [f"{own[i]}.{i}" for i in range(shard * per_shard, (shard + 1) * per_shard)]
            write_shard(run / f"score/effects/{shard}.parquet", targets, contexts, genes, rng)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        started = time.perf_counter()
        rows = sum(n for _, n in rescore(run, programs, run / "out"))
        seconds = time.perf_counter() - started
        size = sum(path.stat().st_size for path in run.glob("score/effects/*.parquet"))
    result = {
        "effects": args.shards_run * per_shard * args.contexts * args.genes,
        "scores": rows,
        "seconds": round(seconds, 1),
        "seconds_all_shards": round(seconds * args.shards / args.shards_run, 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "peak_mb_before": round(before),
        "effects_mb": round(size / 1e6),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
