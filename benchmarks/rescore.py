"""CPU time of ranking a genome-scale screen toward new programs from its stored effects.

    python benchmarks/rescore.py [--shards-run 10] [--record]

Random effects of 12,000 targets x 12 contexts x 3,700 genes in 300 shard files are scored on 50 new
programs, each beside 200 random ones, by the code behind ``knockscreen score-programs``, one shard
at a time. ``--shards-run`` is how many of the shards are written and scored; the time for all is in
proportion (ranking them is ``benchmarks/rerank.py``). The random programs are also compared with a
dense product of the same weights.
"""

import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from rounds import Comparison, compare, parser, report

from knockscreen.score.effects import EFFECT_SCHEMA
from knockscreen.score.programs import program_matrix
from knockscreen.score.random_programs import Beside, ProgramNull
from knockscreen.score.rescore import rescore

BAR = 60.0
"""Seconds of CPU for all shards that are aimed at."""


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


def random_null(programs: int, n: int, genes: int, size: int) -> ProgramNull:
    """Return random programs of random genes; how they are chosen costs little."""
    rng = np.random.default_rng(2)
    weights = np.zeros((programs, n, genes), dtype=np.float32)
    for row in weights.reshape(-1, genes):
        row[rng.choice(genes, size, replace=False)] = 1 / size
    return ProgramNull(weights, {})


def dense(null: ProgramNull, delta: np.ndarray, scores: np.ndarray) -> list[np.ndarray]:
    """Count as ``Beside.add`` does, by a product with all genes."""
    p, n, g = null.weights.shape
    moved = (null.weights.reshape(p * n, g) @ delta.T.astype(np.float32)).reshape(p, n, -1)
    return [(sign * moved >= sign * scores[:, None]).sum(axis=1) for sign in (1, -1)]


def main() -> None:
    arguments = parser(__doc__)
    for name, value in (
        ("targets", 12_000), ("genes", 3_700), ("contexts", 12), ("programs", 50), ("shards", 300),
        ("shards-run", 10), ("program-genes", 60), ("random", 200),
    ):  # fmt: skip
        arguments.add_argument(f"--{name}", type=int, default=value)
    args = arguments.parse_args()
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
    null = random_null(args.programs, args.random, args.genes, args.program_genes)
    per_shard = args.targets // args.shards
    with tempfile.TemporaryDirectory() as name:
        run = Path(name)
        (run / "score/effects").mkdir(parents=True)
        for shard in range(args.shards_run):
            targets = [
                f"{genes[i % args.genes]}.{i}"
                for i in range(shard * per_shard, (shard + 1) * per_shard)
            ]
            write_shard(run / f"score/effects/{shard}.parquet", targets, contexts, genes, rng)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        seconds = []
        for _ in range(args.rounds):
            started = time.process_time()
            rows = sum(n for _, n in rescore(run, programs, run / "out", null))
            seconds.append((time.process_time() - started) * args.shards / args.shards_run)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    about = {"scores": rows, "peak_mb": round(peak), "peak_mb_before": round(before)}
    print(json.dumps(about))
    stage = f"score-programs, {args.targets:,} targets x {args.contexts}, {args.programs} programs"
    report(stage, "the bar of a minute", Comparison(seconds, [BAR] * len(seconds)), bar=1,
           record=args.record)  # fmt: skip
    delta = rng.normal(0, 0.1, (args.contexts, args.genes))
    scores = rng.normal(0, 0.1, (args.programs, args.contexts))
    beside = Beside.empty(args.programs, args.contexts, 1)
    result = compare(
        lambda: beside.add(0, delta, scores, null), lambda: dense(null, delta, scores),
        rounds=args.rounds,
    )  # fmt: skip
    report(f"random programs of one knock-down, {args.programs} x {args.random}", "dense product",
           result, bar=5, record=args.record)  # fmt: skip


if __name__ == "__main__":
    main()
