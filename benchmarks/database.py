"""Build time, size and query latency of the database on synthetic effects.

    python benchmarks/database.py [--targets 1200] [--genes 3700] [--contexts 3] [--programs 50]

The default is 13 million effects; ``--targets 12000`` is the full size, 133 million.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import polars as pl

from knockscreen.store.build import Resources, build
from knockscreen.store.screen import Screen

SHARD = 600


def make_run(folder: Path, targets: int, genes: int, contexts: int, programs: int) -> Path:
    """Write the files that build-db reads, filled with random effects."""
    for name in ("store", "screen", "score/effects", "rank"):
        (folder / name).mkdir(parents=True)
    gene = [{"gene_id": f"ENSG{i:011d}", "gene": f"GENE{i}"} for i in range(genes)]
    names = [f"time=T{c}" for c in range(contexts)]
    store = {"genes": gene, "factors": {"time": names}, "n_cells": 0, "simulated": True}
    (folder / "store/store.json").write_text(json.dumps(store))
    (folder / "screen/plan.json").write_text(json.dumps({"contexts": names, "draws": 100}))
    panel = pl.DataFrame(gene).with_columns(
        in_panel=True, is_hvg=True, is_program=False, is_target=True, n_cells=1, mean=1.0,
        dispersion=1.0,
    )  # fmt: skip
    panel.write_parquet(folder / "store/panel.parquet")
    target = pl.DataFrame(
        {
            "target_gene": [f"GENE{i}" for i in range(targets)],
            "target_gene_id": [f"ENSG{i:011d}" for i in range(targets)],
            "evidence": "predicted_seen",
        }
    )
    target.with_columns(status=pl.lit("screened")).write_parquet(
        folder / "screen/candidates.parquet"
    )
    write_effects(folder / "score/effects", targets, genes, contexts)
    write_ranks(folder / "rank", target, names, programs)
    rng = np.random.default_rng(1)
    lines = [
        f"P{p}\tGENE{g}\t1"
        for p in range(programs)
        for g in rng.choice(genes, min(60, genes), replace=False)
    ]
    (folder / "programs.tsv").write_text("program\tgene\tweight\n" + "\n".join(lines) + "\n")
    return folder


def write_effects(folder: Path, targets: int, genes: int, contexts: int) -> None:
    """Write random effects in shards, sorted by context, target and gene."""
    with duckdb.connect() as connection:
        connection.execute("set memory_limit = '2GB'; select setseed(0.5)")
        for shard, start in enumerate(range(0, targets, SHARD)):
            end = min(start + SHARD, targets)
            connection.execute(
                f"""
                copy (
                    select printf('ENSG%011d', t) as target_gene_id, 'time=T' || c as context,
                        printf('ENSG%011d', g) as gene_id,
                        (random() - 0.5)::float as log2_fold_change,
                        (random() - 0.5)::float as delta, random()::float as delta_se,
                        random()::float as mean_count,
                        ((g % 100) / 10)::float as control_mean_count, t = g as is_target
                    from range({contexts}) a(c), range({start}, {end}) b(t), range({genes}) d(g)
                    order by c, t, g
                ) to '{folder / f"{shard}.parquet"}' (compression zstd)
                """
            )


def write_ranks(folder: Path, target: pl.DataFrame, contexts: list[str], programs: int) -> None:
    """Write random scores and the rankings that follow from them."""
    rng = np.random.default_rng(0)
    keys = pl.DataFrame({"program": [f"P{p}" for p in range(programs)]}).join(
        pl.DataFrame({"context": contexts}), how="cross"
    )
    scores = keys.join(target, how="cross")
    scores = scores.with_columns(score=rng.normal(size=scores.height), score_sd=0.1, n_genes=60)
    scores.write_parquet(folder / "program_scores.parquet")
    blank = {"p_value": pl.lit(None, pl.Float64), "fdr": pl.lit(None, pl.Float64)}
    rank = pl.col("score").rank("ordinal", descending=True).over("program", "context")
    toward = scores.with_columns(rank=rank.cast(pl.Int32), direction=pl.lit("toward"))
    away = toward.with_columns(rank=target.height + 1 - pl.col("rank"), direction=pl.lit("away"))
    pl.concat([toward, away.cast(toward.schema)]).with_columns(
        rank_low="rank", rank_high="rank", control_status=pl.lit("not_tested"), **blank
    ).write_parquet(folder / "rankings.parquet")


def signature(genes: int, n: int) -> pl.DataFrame:
    """Return a random signature of n of the genes."""
    rng = np.random.default_rng(0)
    chosen = rng.choice(genes, min(n, genes), replace=False)
    return pl.DataFrame(
        {"gene": [f"GENE{i}" for i in chosen], "weight": rng.normal(size=len(chosen))}
    )


def command(words: list[str]) -> None:
    """Run the command line in a process of its own."""
    code = "from knockscreen.cli import main; main()"
    subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True)


def milliseconds(question: Callable[[], object], rounds: int) -> tuple[float, float, float]:
    """Return first and median latency of a question, and the median CPU time of its threads."""
    times, work = [], []
    for _ in range(rounds):
        start, cpu = time.perf_counter(), time.process_time()
        question()
        times.append(1e3 * (time.perf_counter() - start))
        work.append(1e3 * (time.process_time() - cpu))
    return times[0], statistics.median(times), statistics.median(work)


def build_database(run: Path, options: argparse.Namespace) -> None:
    """Build the database and print how long it took, and the peak memory."""
    rows = options.targets * options.genes * options.contexts
    start = time.perf_counter()
    settings = json.dumps({"run": "bench", "seed": 0})
    resources = Resources(memory=options.memory)
    build(run, run / "programs.tsv", run / "screen.duckdb", settings, resources=resources)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"effects            {rows:,}")
    print(f"build              {seconds:.1f} s ({rows / seconds / 1e6:.2f} M effects/s)")
    print(f"peak memory so far {peak:.2f} GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", type=int, default=1200)
    parser.add_argument("--genes", type=int, default=3700)
    parser.add_argument("--contexts", type=int, default=3)
    parser.add_argument("--programs", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", default="2GB")
    parser.add_argument("--folder", type=Path, help="where to work; else a temporary folder")
    parser.add_argument("--keep", type=Path, help="folder of a run to make, or to use again")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        run = options.keep or Path(folder) / "bench"
        if not (run / "programs.tsv").exists():
            size = (options.targets, options.genes, options.contexts, options.programs)
            make_run(run, *size)
        path = run / "screen.duckdb"
        if not path.exists():
            build_database(run, options)
        print(f"size               {path.stat().st_size / 1e9:.3f} GB", flush=True)
        with Screen(path) as screen:
            gene, context = f"GENE{min(options.targets, options.genes) // 2}", "time=T0"
            questions: dict[str, Callable[[], object]] = {
                "top": lambda: screen.top("P1", context),
                "show": lambda: screen.show(gene, context),
                "movers": lambda: screen.movers(gene, context),
                "compare": lambda: screen.compare("P1", "P2", context),
                "explain": lambda: screen.explain(gene, "P1", context),
                "reverse, 200 genes": lambda: screen.reverse(signature(options.genes, 200)),
                "reverse, panel": lambda: screen.reverse(signature(options.genes, options.genes)),
            }
            for name, question in questions.items():
                first, median, cpu = milliseconds(question, options.rounds)
                took = f"{median:.0f} ms (first {first:.0f} ms), CPU {cpu:.0f} ms"
                print(f"{name:<18} {took}", flush=True)
        words = ["top", "--program", "P1", "--context", context, "--db", str(path)]
        first, median, _ = milliseconds(lambda: command(words), options.rounds)
        print(f"{'command top':<18} {median:.0f} ms (first {first:.0f} ms), start included")


if __name__ == "__main__":
    main()
