"""What each stage costs as a screen grows: cells, genes, knock-downs, contexts at 1, 2, 4, 8 times.

    python benchmarks/growth.py [--times 1 2 4 8] [--record]

Simulated screens are taken through the verbs of the command line, each in a process of its own that
has its imports behind it: CPU seconds on one thread, and peak memory above that of the imports. One
axis grows at a time from 2,000 cells, 200 genes, 16 knock-downs and 2 contexts. Networks are tiny
and training is 10 steps: what a step, a cell or a row costs does not depend on how many there are.
``slope`` is the exponent of the cost, fitted to logarithms over the sizes: 0 does not grow, 1 grows
in proportion. ``--record`` writes ``docs/growth.tsv``, and from it ``docs/figures/growth.png`` and
the table of ``docs/performance.md``; ``--draw`` does the last two alone.
"""

import argparse
import csv
import datetime as dt
import gc
import importlib
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import yaml
from matplotlib.figure import Figure
from rounds import PAGE, ROOT, machine

from knockscreen.cli import app
from knockscreen.config import merge, read_values
from knockscreen.figures.style import CATEGORIES, GREY, Page, house_style, new_figure, render

RESULTS = ROOT / "docs" / "growth.tsv"
START, END = "<!-- growth: start -->", "<!-- growth: end -->"
BASE = {"cells": 2000, "genes": 200, "knock-downs": 16, "contexts": 2}
STAGES = ("qc", "normalize", "train-vae", "encode", "train-flow", "generate-shard", "score", "rank",
          "build-db")  # fmt: skip
LOADED = (
    "data.qc", "data.normalize", "training.vae", "training.flow", "screening", "score.effects",
    "score.rank", "store.build", "simulate", "plan",
)  # fmt: skip


def configuration(size: dict[str, int], folder: Path) -> Path:
    """Write the complete configuration of one simulated screen."""
    files = [str(ROOT / "config" / name) for name in ("config.yaml", "scenarios/tiny.yaml")]
    values = merge(*map(read_values, files))
    values["simulate"].update(
        cells=size["cells"], genes=size["genes"], targets=size["knock-downs"],
        donors=[f"D{d}" for d in range(1, 1 + size["contexts"] // 2)], times=["Rest", "Stim8hr"],
    )  # fmt: skip
    values["qc"].update(min_control_cells=5, knockdown_test=False)
    values["panel"]["genes"] = 0
    values["splits"].update(decoys=0, random_held_out_targets=0)
    values["screen"].update(candidates="measured", shards=1)
    values["rank"]["random_programs"] = 0
    for model in ("vae", "flow"):
        values[model]["training"].update(steps=10, validate_every=1000, workers=1)
    values["programs"]["file"] = str(ROOT / "config/programs.tsv")
    values["gate"]["controls"] = str(ROOT / "config/controls.tsv")
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def commands(folder: Path, settings: Path) -> dict[str, list[str]]:
    """Return the command of each verb, in order."""
    at = {name: str(folder / name) for name in (
        "input", "qc", "store", "effect", "vae", "latents", "flow", "screen", "score", "rank"
    )}  # fmt: skip
    store, models = ["--store", at["store"]], {
        "effect": ["--effect", f"{at['effect']}/effect.safetensors"],
        "vae": ["--vae", f"{at['vae']}/vae.safetensors"],
        "flow": ["--flow", f"{at['flow']}/flow.safetensors"],
    }  # fmt: skip
    all_models = [word for words in models.values() for word in words]
    screen, shard = at["screen"], f"{at['screen']}/0.npz"
    planned = ["--plan", f"{screen}/plan.json"]
    listed = ["--candidates", f"{screen}/candidates.parquet"]
    control = ["--control", f"{screen}/control.npz"]
    scored = f"{at['score']}/programs"
    words = {
        "simulate": ["--output-dir", at["input"]],
        "qc": ["--input", at["input"], "--output-dir", at["qc"]],
        "normalize": ["--input", at["input"], "--qc-dir", at["qc"], "--output-dir", at["store"]],
        "fit-effects": [*store, "--output-dir", at["effect"]],
        "train-vae": [*store, *models["effect"], "--output-dir", at["vae"]],
        "encode": [*store, *models["effect"], *models["vae"], "--output-dir", at["latents"]],
        "train-flow": [*store, *models["effect"], "--latents", at["latents"],
                       "--output-dir", at["flow"]],
        "plan": [*store, *all_models, "--output-dir", screen],
        "generate-control": [*store, *all_models, *planned, "--output", f"{screen}/control.npz"],
        "generate-shard": [*store, *all_models, *planned, *listed, *control, "--shard", "0",
                           "--output", shard],
        "score": ["--shard", shard, *control, *listed, *store,
                  "--effects", f"{at['score']}/effects/0.parquet",
                  "--programs-out", f"{scored}/0.parquet"],
        "rank": ["--programs-dir", scored, *listed, *store, "--output-dir", at["rank"]],
        "build-db": ["--results-dir", str(folder), "--programs", str(ROOT / "config/programs.tsv"),
                     "--output", str(folder / "screen.duckdb")],
    }  # fmt: skip
    return {verb: [verb, *rest, "--settings", str(settings)] for verb, rest in words.items()}


def measure(words: list[str], log: Path) -> tuple[float, float]:
    """Run one verb in a fork. Returns its CPU seconds and the MB that it needed at most."""
    gc.collect()
    child = os.fork()
    if not child:
        code = 1
        try:
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            app(words, standalone_mode=False)
            code = 0
        finally:
            os._exit(code)
    before = int(Path(f"/proc/{child}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    _, status, usage = os.wait4(child, 0)
    if status:
        sys.exit(f"{' '.join(words)}\n{log.read_text()[-2000:]}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024 - before / 2**20


def grow(
    axes: Sequence[str], times: Sequence[int], keep: Callable[[list[dict[str, object]]], None]
) -> None:
    """Measure every stage at every size; ``keep`` the rows so far after each."""
    for name in LOADED:
        importlib.import_module(f"knockscreen.{name}")
    rows: list[dict[str, object]] = []
    base: list[dict[str, object]] = []
    for axis in axes:
        start = BASE[axis]
        for factor in times:
            if factor == 1 and base:
                rows += [row | {"axis": axis, "size": start} for row in base]
                keep(rows)
                continue
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                size = BASE | {axis: start * factor}
                settings = configuration(size, folder)
                mine = []
                for verb, words in commands(folder, settings).items():
                    seconds, megabytes = measure(words, folder / "log")
                    about = {"axis": axis, "factor": factor, "size": size[axis], "stage": verb}
                    mine.append(about | {"seconds": round(seconds, 3), "mb": round(megabytes)})
            base = base or mine
            rows += mine
            keep(rows)
            print(axis, factor, {row["stage"]: row["seconds"] for row in mine}, flush=True)


def measured(rows: list[dict[str, str]]) -> list[str]:
    """Return the axes along which there are at least two sizes, in order."""
    sizes = {axis: {row["size"] for row in rows if row["axis"] == axis} for axis in BASE}
    return [axis for axis, found in sizes.items() if len(found) > 1]


def slope(factors: Sequence[float], costs: Sequence[float]) -> float:
    """Return the exponent of a cost over factors, fitted to logarithms.

    >>> round(slope([1, 2, 4], [3.0, 6.0, 12.0]), 3)
    1.0
    """
    return float(np.polyfit(np.log(factors), np.log(np.maximum(costs, 1e-3)), 1)[0])


def series(rows: list[dict[str, str]], axis: str, stage: str, key: str) -> tuple[list, list]:
    """Return the factors and the costs of one stage along one axis; of an axis of BASE."""
    mine = [row for row in rows if row["axis"] == axis and row["stage"] == stage]
    return [float(row["factor"]) for row in mine], [float(row[key]) for row in mine]


@house_style
def draw(rows: list[dict[str, str]]) -> Figure:
    """Draw CPU seconds over size, one panel per axis, one line per stage."""
    page = Page(
        "What each stage costs as a screen grows",
        "CPU seconds on one thread, imports not counted; dashed: in proportion to the size",
        "python benchmarks/growth.py",
    )
    axes = measured(rows)
    figure = new_figure(7.2, 5.2, page)
    columns = min(2, len(axes))
    panels = figure.subplots(-(-len(axes) // 2), columns, sharey=True, squeeze=False)
    colours = dict(zip(STAGES, [*CATEGORIES, "#22262b"], strict=True))
    for ax, axis in zip(panels.ravel(), axes, strict=False):
        for stage in STAGES:
            factors, seconds = series(rows, axis, stage, "seconds")
            ax.plot([f * BASE[axis] for f in factors], seconds, marker="o", markersize=3,
                    color=colours[stage], label=stage)  # fmt: skip
        sizes = [f * BASE[axis] for f in factors]
        ax.plot(sizes, [0.05 * f for f in factors], color=GREY, linestyle="--", linewidth=0.9)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set_xticks(sizes, [f"{size:,.0f}" for size in sizes])
        ax.set_xlabel(axis)
    for ax in panels[:, 0]:
        ax.set_ylabel("CPU seconds")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    return figure


def table(rows: list[dict[str, str]]) -> str:
    """Return the Markdown table: seconds at the ends, the exponents of time and the peak memory."""
    axes = measured(rows)
    most = {axis: series(rows, axis, "qc", "factor")[0][-1] for axis in axes}
    grown, peaks = (
        " | ".join(f"{axis} {most[axis]:.0f}x{end}" for axis in axes) for end in (" (slope)", "")
    )
    lines = [
        f"| stage | CPU s at 1x | {grown} | MB at 1x | {peaks} |",
        f"|---|{'--:|' * (2 + 2 * len(axes))}",
    ]
    for stage in STAGES:
        cells, memory = [], []
        for axis in axes:
            factors, seconds = series(rows, axis, stage, "seconds")
            _, megabytes = series(rows, axis, stage, "mb")
            cells.append(f"{seconds[-1]:.2f} ({slope(factors, seconds):.2f})")
            memory.append(f"{megabytes[-1]:.0f}")
        first = f"{seconds[0]:.2f}"
        lines.append(
            f"| {stage} | {first} | {' | '.join(cells)} | {megabytes[0]:.0f} "
            f"| {' | '.join(memory)} |"
        )
    return "\n".join(lines)


def recorded() -> list[dict[str, str]]:
    """Return the rows of earlier runs."""
    if not RESULTS.exists():
        return []
    with RESULTS.open(newline="") as handle:
        return list(csv.DictReader(handle, delimiter="\t"))


def publish() -> None:
    """Draw the figure and write the table from what was recorded."""
    rows = recorded()
    (ROOT / "docs/figures/growth.png").write_bytes(render(draw(rows), "png"))
    before, _, rest = PAGE.read_text().partition(START)
    _, _, after = rest.partition(END)
    text = f"{table(rows)}\n\nMeasured on: {rows[0]['machine']}, {rows[0]['date']}."
    PAGE.write_text(f"{before}{START}\n{text}\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--axes", nargs="+", default=list(BASE), choices=list(BASE))
    parser.add_argument("--record", action="store_true", help="write table and figure of docs/")
    parser.add_argument("--draw", action="store_true", help="only draw what was recorded")
    options = parser.parse_args()
    where = {"machine": machine(), "date": dt.datetime.now(dt.UTC).date().isoformat()}

    def keep(rows: list[dict[str, object]]) -> None:
        if options.record:
            others = [row for row in recorded() if row["axis"] not in options.axes]
            with RESULTS.open("w", newline="") as handle:
                fields = [*rows[0], *where]
                writer = csv.DictWriter(handle, fields, delimiter="\t", lineterminator="\n")
                writer.writeheader()
                writer.writerows([*others, *(row | where for row in rows)])

    if not options.draw:
        grow(options.axes, options.times, keep)
    if options.draw or options.record:
        publish()


if __name__ == "__main__":
    main()
