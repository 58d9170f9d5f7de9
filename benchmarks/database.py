"""Build time, size and query latency of the database on synthetic effects, beside plainer stores.

    python benchmarks/database.py --targets 12000 [--keep FOLDER] [--record]

That is the full size, 133 million effects: minutes, and 9 GB of disk. The default of 1,200 targets
is a tenth of it. ``first`` is a new connection to a file that the system has dropped from its
cache. The peers answer the same two questions, the effects of one knock-down and the knock-downs
that move one gene, from one sort order of the database alone, and from the Parquet files of the
run through DuckDB. Verbs are timed as commands too, start included. CPU times are of all threads;
on an idle machine ``--clock`` times by the clock on the wall instead, in rows that say so.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
from rounds import Comparison, compare, parser, report

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
    n = scores.height
    scores = scores.with_columns(
        score=rng.normal(size=n), score_sd=rng.uniform(size=n), n_genes=60,
        magnitude=rng.uniform(size=n), source=pl.lit(None, pl.String),
    )  # fmt: skip
    scores.write_parquet(folder / "program_scores.parquet")
    counted = {
        name: pl.Series(rng.integers(1, 1002, n) / 1001)
        for name in ("p_value", "fdr", "program_specificity_p", "direction_p")
    }
    rank = pl.col("score").rank("ordinal", descending=True).over("program", "context")
    missing = pl.lit(None, pl.Float64)  # what measured rows alone have
    toward = scores.with_columns(
        rank=rank.cast(pl.Int32), direction=pl.lit("toward"), n_decoys=1000,
        donor_concordance=1.0, donor_sd=rng.uniform(size=n), tau=rng.uniform(size=n),
        guide_concordance=missing, replicate_p_value=missing, replicate_fdr=missing, **counted,
    )  # fmt: skip
    away = toward.with_columns(rank=target.height + 1 - pl.col("rank"), direction=pl.lit("away"))
    pl.concat([toward, away.cast(toward.schema)]).with_columns(
        rank_low="rank", rank_high="rank", control_status=pl.lit("not_tested")
    ).write_parquet(folder / "rankings.parquet")


def signature(genes: int, n: int) -> pl.DataFrame:
    """Return a random signature of n of the genes."""
    rng = np.random.default_rng(0)
    chosen = rng.choice(genes, min(n, genes), replace=False)
    return pl.DataFrame(
        {"gene": [f"GENE{i}" for i in chosen], "weight": rng.normal(size=len(chosen))}
    )


def command(words: list[str], *, clock: bool) -> float:
    """Run the command line in a process of its own. Returns seconds: CPU of all threads, or not."""
    code = "from knockscreen.cli import main; main()"
    before = os.times()
    subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True)
    after = os.times()
    return after[4] - before[4] if clock else sum(after[2:4]) - sum(before[2:4])


def milliseconds(question: Callable[[], object], rounds: int) -> tuple[float, float, float]:
    """Return first and median latency of a question, and the median CPU time of its threads."""
    times, work = [], []
    for _ in range(rounds):
        start, cpu = time.perf_counter(), time.process_time()
        question()
        times.append(1e3 * (time.perf_counter() - start))
        work.append(1e3 * (time.process_time() - cpu))
    return times[0], statistics.median(times), statistics.median(work)


def unit(options: argparse.Namespace, name: str) -> str:
    return name if options.clock else f"CPU {name}"


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


def drop_from_cache(path: Path) -> None:
    """Ask the system to forget what it keeps of a file in memory."""
    with path.open("rb") as handle:
        os.fsync(handle.fileno())
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def questions(screen: Screen, options: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """Return what is asked of the database, by verb."""
    gene, context = f"GENE{min(options.targets, options.genes) // 2}", "time=T0"
    return {
        "top": lambda: screen.top("P1", context),
        "show": lambda: screen.show(gene, context),
        "movers": lambda: screen.movers(gene, context),
        "compare": lambda: screen.compare("P1", "P2", context),
        "explain": lambda: screen.explain(gene, "P1", context),
        "reverse, 200 genes": lambda: screen.reverse(signature(options.genes, 200)),
        "reverse, panel": lambda: screen.reverse(signature(options.genes, options.genes)),
    }


VERBS = {
    "top": 100, "show": 100, "movers": 200, "reverse, 200 genes": 2000, "reverse, panel": 2000,
}  # fmt: skip
"""Bars of the verbs, in ms."""


def ask_verbs(path: Path, options: argparse.Namespace, effects: str) -> None:
    """Print what each question takes first and warm, and report those that have a bar."""
    with Screen(path) as screen:
        names = list(questions(screen, options))
    for name in names:
        first, warm, work = [], [], []
        for _ in range(3):
            drop_from_cache(path)
            with Screen(path) as screen:
                question = questions(screen, options)[name]
                first.append(milliseconds(question, 1)[1])
                _, middle, cpu = milliseconds(question, options.rounds)
            warm.append(middle)
            work.append(cpu)
        print(f"{name:<18} first {min(first):.0f} ms, warm {min(warm):.0f} ms", flush=True)
        if name in VERBS:
            times = first if options.clock else work
            stage = f"`{name}`, {effects} effects" + (
                ", first, by the clock" if options.clock else ""
            )
            report(stage, f"the bar of {VERBS[name]} ms",
                   Comparison(times, [VERBS[name]] * len(times)), unit=unit(options, "ms"), bar=1,
                   record=options.record)  # fmt: skip
    where = ["--context", "time=T0", "--db", str(path)]
    for words in (["top", "--program", "P1"], ["show", "GENE7"], ["movers", "GENE7"]):
        times = []
        for _ in range(options.rounds):
            drop_from_cache(path)
            times.append(command([*words, *where], clock=options.clock))
        stage = f"command `{words[0]}`, start included, {effects} effects"
        report(stage + (", by the clock" if options.clock else ""), "the bar of 1 s",
               Comparison(times, [1.0] * len(times)), unit=unit(options, "s"), bar=1,
               record=options.record)  # fmt: skip


def ask_lookups(path: Path, options: argparse.Namespace, effects: str) -> None:
    """Report the three plain lookups: warm, and of a new connection to a file out of the cache."""
    key = options.genes // 2
    lookups = {
        "ranking of a program": "select * from rankings where program = 'P1' and direction ="
        " 'toward' and context = 'time=T0' order by rank limit 50",
        "effects of a target": f"select * from effects_by_target where target_key = {key}"
        " and context_key = 0",
        "effects on a gene": f"select * from effects_by_gene where gene_key = {key}"
        " and context_key = 0",
    }
    for name, query in lookups.items():
        first, warm = [], []
        now = time.perf_counter if options.clock else time.process_time
        for _ in range(options.rounds):
            drop_from_cache(path)
            start = now()
            with duckdb.connect(path, read_only=True) as connection:
                connection.sql(query).to_arrow_table()
                first.append(1e3 * (now() - start))

                def ask(query: str = query, connection: Any = connection) -> None:
                    connection.sql(query).to_arrow_table()

                warm.append(milliseconds(ask, options.rounds)[1 if options.clock else 2])
        for kind, times, bar in (("first", first, 100), ("warm", warm, 30)):
            stage = f"lookup, {name}, {kind}, {effects} effects"
            report(stage + (", by the clock" if options.clock else ""), f"the bar of {bar} ms",
                   Comparison(times, [bar] * len(times)), unit=unit(options, "ms"), bar=1,
                   record=options.record)  # fmt: skip


def beside_peers(path: Path, run: Path, options: argparse.Namespace, effects: str) -> None:
    """Report the two lookups from both sort orders, from one, and from the Parquet files."""
    key = options.genes // 2
    chosen = "select log2_fold_change, delta, delta_se from"
    parquet = (
        f"{chosen} read_parquet('{run}/score/effects/*.parquet')"
        f" where context = 'time=T0' and {{}}_id = 'ENSG{key:011d}'"
    )
    with duckdb.connect(path, read_only=True) as connection:
        for column, own, other in (
            ("target", "effects_by_target", "effects_by_gene"),
            ("gene", "effects_by_gene", "effects_by_target"),
        ):
            identity = "target_gene" if column == "target" else "gene"
            keyed = f"{chosen} {{}} where context_key = 0 and {column}_key = {key}"
            peers = {"one sort order": keyed.format(other), "Parquet": parquet.format(identity)}

            def ask(query: str) -> None:
                connection.sql(query).to_arrow_table()

            for peer, query in peers.items():
                result = compare(
                    partial(ask, keyed.format(own)), partial(ask, query), rounds=options.rounds
                )
                report(f"effects of one {column}, {effects} effects", peer, result, bar=1,
                       record=options.record)  # fmt: skip


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--targets", type=int, default=1200)
    arguments.add_argument("--genes", type=int, default=3700)
    arguments.add_argument("--contexts", type=int, default=3)
    arguments.add_argument("--programs", type=int, default=50)
    arguments.add_argument("--memory", default="2GB")
    arguments.add_argument("--clock", action="store_true", help="time by the clock on the wall")
    arguments.add_argument("--folder", type=Path, help="where to work; else a temporary folder")
    arguments.add_argument("--keep", type=Path, help="folder of a run to make, or to use again")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        run = options.keep or Path(folder) / "bench"
        if not (run / "programs.tsv").exists():
            size = (options.targets, options.genes, options.contexts, options.programs)
            make_run(run, *size)
        path = run / "screen.duckdb"
        if not path.exists():
            build_database(run, options)
        rows = options.targets * options.genes * options.contexts
        effects = f"{rows / 1e6:.0f} M"
        size_gb = path.stat().st_size / 1e9
        report(f"size of the database, {effects} effects", "the bar, in proportion",
               Comparison([size_gb], [4 * rows / 133.2e6]), unit="GB", bar=1,
               record=options.record)  # fmt: skip
        ask_lookups(path, options, effects)
        ask_verbs(path, options, effects)
        beside_peers(path, run, options, effects)


if __name__ == "__main__":
    main()
