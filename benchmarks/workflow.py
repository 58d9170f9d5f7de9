"""The workflow of a genome-scale screen: its jobs, its dry run, its rerun, its overhead.

    python benchmarks/workflow.py [--targets 12000] [--scenario cd4] [--record]

A list of 12,000 candidates and the ``cd4`` scenario in a temporary folder, whose results are made
empty for the rerun with nothing to do. Its jobs then run with a ``knockscreen`` that only creates
the files of the run: what Snakemake itself costs. To that come the starts of the jobs, taken from
``--run`` (a finished run, ``make screen``: ``knockscreen plan`` says what a start takes there).

Overhead is compared with the work of the screen, 12 contexts and the scenario's draws:
with the networks of ``--run`` on this processor, as its plan has them, and, as arithmetic, with the
scenario's networks at ``--tflops`` on a GPU. CPU seconds: on an idle machine the clock on the wall
shows about as much, since Snakemake runs on one thread.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from rounds import ROOT, Comparison, parser, report

from knockscreen.config import Config, read_config
from knockscreen.models.vae import VAE_SIZES, VaeSettings
from knockscreen.models.velocity import FLOW_SIZES, VelocitySettings
from knockscreen.plan import EVALUATIONS, TABLE_JOBS, flops_per_cell

SECONDS, JOBS, SHARE = 3.0, 500, 0.02
CONTEXTS = 12
GPU_START = 15.0
"""Assumed: seconds that a job on a GPU takes to start; not measured."""
NOTHING = """#!/bin/sh
xargs touch < outputs.txt
"""


def make_folder(folder: Path, targets: int) -> Path:
    """Write a project with a list of candidates. Returns the overlay that names it."""
    for part in ("Snakefile", "rules", "workflow", "config", "envs", "profiles"):
        (folder / part).symlink_to(ROOT / part)
    (folder / "candidates.txt").write_text("\n".join(f"GENE{i}" for i in range(targets)) + "\n")
    (folder / "cells.h5ad").touch()
    overlay = folder / "overlay.yaml"
    values = {
        "run": "genome",
        "data": {"files": ["cells.h5ad"]},
        "screen": {"candidates": "candidates.txt"},
    }
    overlay.write_text(yaml.safe_dump(values))
    return overlay


def snakemake(folder: Path, scenario: str, *words: str) -> tuple[float, str]:
    """Run Snakemake. Returns the CPU seconds of all its processes and what it printed."""
    paths = f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = [str(Path(sys.executable).with_name("snakemake")), *words]
    command += ["--configfile", f"config/scenarios/{scenario}.yaml", "overlay.yaml"]
    before = os.times()
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"PATH": paths}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    after = os.times()
    seconds = sum(after[2:4]) - sum(before[2:4])
    if done.returncode:
        sys.exit(done.stdout[-2000:] + done.stderr[-2000:])
    return seconds, done.stdout


def finish(folder: Path, scenario: str) -> int:
    """Make all outputs, empty. Returns the number of jobs, the target ``all`` among them."""
    listed = snakemake(folder, scenario, "--summary")[1].splitlines()[1:]
    paths = [line.split("\t")[0] for line in listed]
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
    (folder / "outputs.txt").write_text("\n".join(paths) + "\n")
    snakemake(folder, scenario, "--touch", "--forceall", "--quiet", "all")
    dry = snakemake(folder, scenario, "--dry-run", "--forceall", "--quiet", "rules")[1]
    return int(next(line.split()[1] for line in dry.splitlines() if line.startswith("total")))


def gpu_seconds(config: Config, cells: int, tflops: float) -> float:
    """Return the seconds of a screen on a GPU by arithmetic: operations over an assumed rate."""
    vae = VaeSettings(VAE_SIZES[config.vae.size])
    size = vae.size
    net = VelocitySettings(FLOW_SIZES[config.flow.size], size.latent_tokens, size.latent_dim, (), 1)
    genes = config.panel.genes + 200  # and those of the programs
    evaluations = config.screen.steps * EVALUATIONS[config.screen.solver]
    return cells * flops_per_cell(vae, net, genes, evaluations) / (tflops * 1e12)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--targets", type=int, default=12_000)
    arguments.add_argument("--scenario", default="cd4")
    arguments.add_argument("--run", default="demo", help="a finished run under results/")
    arguments.add_argument("--tflops", type=float, default=350, help="assumed rate of the GPU")
    options = arguments.parse_args()
    config = read_config(
        str(ROOT / "config/config.yaml"), str(ROOT / f"config/scenarios/{options.scenario}.yaml")
    )
    named = f"{options.targets:,} knock-downs, {options.scenario}"

    def row(stage: str, peer: str, costs: list[float], bar: float, unit: str) -> None:
        report(f"{stage}, {named}", peer, Comparison(costs, [bar] * len(costs)), unit=unit, bar=1,
               record=options.record)  # fmt: skip

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_folder(folder, options.targets)
        snakemake(folder, options.scenario, "--dry-run", "--quiet", "all")
        dry = [snakemake(folder, options.scenario, "--dry-run", "--quiet", "all")[0]
               for _ in range(options.rounds)]  # fmt: skip
        jobs = finish(folder, options.scenario)
        again = [snakemake(folder, options.scenario)[0] for _ in range(options.rounds)]
        verb = folder / "knockscreen"
        verb.write_text(NOTHING)
        verb.chmod(0o755)
        words = ("--forceall", "--quiet", "all", "--cores", "1")
        nothing = snakemake(folder, options.scenario, *words)[0]
    row("workflow: jobs", "the bar of 500", [jobs], JOBS, "jobs")
    row("workflow: dry run", "the bar of 3 s", dry, SECONDS, "CPU s")
    row("workflow: rerun with nothing to do", "the bar of 3 s", again, SECONDS, "CPU s")
    print(f"{jobs} jobs that do nothing: {nothing:.1f} s, {1e3 * nothing / jobs:.0f} ms each")
    plan = json.loads((ROOT / "results" / options.run / "screen/plan.json").read_text())
    start = plan["overhead"] * plan["seconds"] / plan["jobs"]
    shards, few = config.screen.shards, 2 + TABLE_JOBS
    cells = options.targets * CONTEXTS * config.screen.draws
    work = cells * plan["seconds_per_cell"]
    cost = nothing + (2 * shards + few) * start
    print(f"{cells:,} cells on one core: {work:,.0f} s of work, {cost:.0f} s to start jobs")
    row(f"workflow: overhead with the networks of {options.run}, one core", "2 % of the work",
        [cost], SHARE * work, "CPU s")  # fmt: skip
    work = gpu_seconds(config, cells, options.tflops)
    cost = nothing + shards * (GPU_START + start) + few * start
    print(
        f"on a GPU, arithmetic: {work:,.0f} s of work at {options.tflops:g} TFLOP/s; with"
        f" {GPU_START:g} s to start each of {shards} shards, {cost:.0f} s = {cost / work:.1%}"
    )


if __name__ == "__main__":
    main()
