"""Time and memory of ranking a genome-scale screen from its stored program scores.

Synthetic scores of 12,000 targets (and 1,000 decoys) x 12 contexts (and 3 pooled) x 50 programs
with 10 draw blocks, in 300 shard files, are ranked by the code behind ``knockscreen rank``::

    python benchmarks/rerank.py --targets 12000 --programs 50
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from knockscreen.config import RankConfig
from knockscreen.score.rank import write_rankings
from knockscreen.score.score_files import find_scores


def write_screen(folder: Path, args: argparse.Namespace, rng: np.random.Generator) -> None:
    ids = np.array(
        [f"ENSG{i:011d}" for i in range(args.targets)]
        + [f"decoy_{i:04d}" for i in range(args.decoys)]
    )
    total = len(ids)
    contexts = [f"donor=D{d},time=T{t}" for d in range(4) for t in range(3)]
    contexts += [f"time=T{t}" for t in range(3)]
    shard = np.arange(total) % args.shards
    pl.DataFrame(
        {
            "candidate": np.arange(total, dtype=np.int32),
            "target_gene": ids,
            "target_gene_id": ids,
            "evidence": "predicted_seen",
            "status": ["screened"] * args.targets + ["decoy"] * args.decoys,
            "shard": shard.astype(np.int32),
        }
    ).write_parquet(folder / "candidates.parquet")
    (folder / "store").mkdir()
    (folder / "store" / "store.json").write_text(json.dumps({"targets": []}))
    (folder / "programs").mkdir()
    programs = [f"program{p:02d}" for p in range(args.programs)]
    for s in range(args.shards):
        own = ids[shard == s]
        n = len(programs) * len(contexts) * len(own)
        blocks = rng.normal(size=(n, args.blocks)) * 0.05 + rng.normal(size=(n, 1)) * 0.1
        pl.DataFrame(
            {
                "program": np.repeat(programs, len(contexts) * len(own)),
                "context": np.tile(np.repeat(contexts, len(own)), len(programs)),
                "target_gene_id": np.tile(own, len(programs) * len(contexts)),
                "score": blocks.mean(axis=1),
                "score_se": blocks.std(axis=1, ddof=1) / np.sqrt(args.blocks),
                "n_genes": np.full(n, 40, dtype=np.int32),
                "magnitude": rng.uniform(0.5, 2, n),
                "specific_toward": rng.uniform(size=n),
                "specific_away": rng.uniform(size=n),
                "control_error": 0.01,
                "blocks": pl.Series(blocks).cast(pl.List(pl.Float64)),
            }
        ).write_parquet(
            folder / "programs" / f"{s}.parquet", row_group_size=len(contexts) * len(own)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("targets", 12_000), ("programs", 50), ("shards", 300), ("blocks", 10)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--decoys", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=200)
    args = parser.parse_args()
    settings = RankConfig(
        pool_over=["donor"], interval=0.9, resamples=args.resamples, random_programs=0
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_screen(folder, args, np.random.default_rng(0))
        started, cpu = time.perf_counter(), time.process_time()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        scores = find_scores(
            folder / "programs", None, folder / "candidates.parquet", folder / "store"
        )
        paths = write_rankings(scores, folder / "rank", settings, seed=0)
        result = {
            "targets": args.targets,
            "programs": args.programs,
            "contexts": 15,
            "rows": pl.scan_parquet(paths[1]).select(pl.len()).collect().item(),
            "seconds": round(time.perf_counter() - started, 1),
            "cpu_seconds": round(time.process_time() - cpu, 1),
            "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            "peak_mb_before": round(before),
            "output_mb": round(sum(p.stat().st_size for p in paths) / 1e6),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
