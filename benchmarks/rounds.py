"""Two ways of doing one thing, timed in turn (A B A B ...), and the table of what was measured.

Shared by the scripts that compare knockscreen with a peer. Ratios are of one run on one machine;
absolute times of different days or machines are not comparable. ``--record`` of a script adds its
row to ``docs/performance.tsv``, and ``python benchmarks/rounds.py`` writes the table of
``docs/performance.md`` anew from all rows, the latest of each stage and peer beside the one before.
"""

import argparse
import csv
import datetime as dt
import gc
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
HISTORY = ROOT / "docs" / "performance.tsv"
PAGE = ROOT / "docs" / "performance.md"
START, END = "<!-- table: start -->", "<!-- table: end -->"
FIELDS = (
    "date", "stage", "peer", "unit", "ours", "theirs", "ratio", "low", "high", "bar", "rounds",
    "machine", "command",
)  # fmt: skip
WORSE = 0.8
"""A ratio below this share of the one before is pointed out."""

Clock = Callable[[], float]


@dataclass(frozen=True)
class Comparison:
    """Seconds of each round; or any other cost, where less is better."""

    ours: list[float]
    theirs: list[float]

    @property
    def ratio(self) -> float:
        """How many times less ours costs: the median over rounds of theirs / ours."""
        return median(t / o for o, t in zip(self.ours, self.theirs, strict=True))

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the bootstrap interval of the ratio over rounds."""
        rng = np.random.default_rng(0)
        ratios = np.array(self.theirs) / np.array(self.ours)
        drawn = np.median(rng.choice(ratios, (2000, len(ratios))), axis=1)
        low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)


def compare(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    *,
    rounds: int = 5,
    clock: Clock = time.process_time,
    warm: bool = True,
) -> Comparison:
    """Time two calls in turn. The clock is CPU time of this process unless another is given.

    ``warm`` runs each once before, so that compiling and the page cache are nobody's advantage.
    """
    if warm:
        ours()
        theirs()
    mine: list[float] = []
    other: list[float] = []
    for _ in range(rounds):
        for call, into in ((ours, mine), (theirs, other)):
            gc.collect()
            start = clock()
            call()
            into.append(clock() - start)
    return Comparison(mine, other)


def machine() -> str:
    """Return what the numbers were taken on: processor, cores, memory."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = dict(
            (part.strip() for part in line.split(":", 1))
            for line in info.read_text().splitlines()
            if ":" in line
        )
        wide = "AVX-512" if "avx512f" in lines.get("flags", "") else "no AVX-512"
        model = f"{lines.get('model name', model)}, {wide}"
    cores = len(os.sched_getaffinity(0))
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return f"{model}, {cores} cores, {pages / 2**30:.0f} GiB"


def report(
    stage: str, peer: str, result: Comparison, *, unit: str = "CPU s", bar: float, record: bool
) -> None:
    """Print one row, and add it to the history where ``record`` is asked.

    Parameters
    ----------
    stage, peer
        What was timed and against what; together they name a row of the table.
    unit
        Of both medians.
    bar
        The least ratio that is aimed at.
    """
    low, high = result.interval()
    ours, theirs = median(result.ours), median(result.theirs)
    spread = max(result.ours) / min(result.ours), max(result.theirs) / min(result.theirs)
    print(
        f"{stage} | against {peer}: {ours:.4g} and {theirs:.4g} {unit}, ratio {result.ratio:.2f} "
        f"({low:.2f} to {high:.2f}), bar {bar:g}, {len(result.ours)} rounds, slowest / fastest "
        f"{spread[0]:.2f} and {spread[1]:.2f}"
    )
    if not record:
        return
    row = {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "stage": stage, "peer": peer, "unit": unit, "ours": f"{ours:.4g}",
        "theirs": f"{theirs:.4g}", "ratio": f"{result.ratio:.3g}", "low": f"{low:.3g}",
        "high": f"{high:.3g}", "bar": f"{bar:g}", "rounds": len(result.ours),
        "machine": machine(),
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
    }  # fmt: skip
    new = not HISTORY.exists()
    with HISTORY.open("a", newline="") as handle:
        writer = csv.DictWriter(handle, FIELDS, delimiter="\t", lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with what all comparisons share."""
    shared = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shared.add_argument("--rounds", type=int, default=5)
    shared.add_argument("--record", action="store_true", help="add the row to docs/performance.tsv")
    return shared


def table(rows: list[dict[str, str]]) -> str:
    """Return the Markdown table: the latest row of each stage and peer beside the one before."""
    latest: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in rows:
        latest.setdefault((row["stage"], row["peer"]), []).append(row)
    lines = [
        "| stage | against | ours | theirs | unit | ratio (95 %) | bar | before | date | command |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (stage, peer), history in latest.items():
        now = history[-1]
        before = "" if len(history) < 2 else history[-2]["ratio"]
        if before and float(now["ratio"]) < WORSE * float(before):
            before += " **worse**"
        met = "" if float(now["ratio"]) >= float(now["bar"]) else " **not met**"
        lines.append(
            f"| {stage} | {peer} | {now['ours']} | {now['theirs']} | {now['unit']} | "
            f"{now['ratio']} ({now['low']} to {now['high']}) | {now['bar']}{met} | {before} | "
            f"{now['date']} | `{now['command'].replace(' --record', '')}` |"
        )
    return "\n".join(lines)


def main() -> None:
    with HISTORY.open(newline="") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    page = PAGE.read_text()
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    machines = sorted({row["machine"] for row in rows})
    text = f"{table(rows)}\n\nMeasured on: {'; '.join(machines)}."
    PAGE.write_text(f"{before}{START}\n{text}\n{END}{after}")


if __name__ == "__main__":
    main()
