"""What the planner says a screen will take, beside what its jobs then took.

    make screen && make screen CONFIG=config/scenarios/thp1.yaml
    python benchmarks/planner.py demo [--record]
    python benchmarks/planner.py thp1 [--record]

Runs everything after training anew, from ``knockscreen plan`` to the figures, in a copy of the
finished run, and compares ``seconds`` of ``plan.json`` with the CPU seconds of all jobs, Snakemake
included. ``ours`` is the factor by which the estimate is off, ``theirs`` the one that is allowed.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rounds import ROOT, Comparison, parser, report

BAR = 1.5
AFTER_TRAINING = ("plan", "generate_matched", "measure", "load_external", "plot_qc", "plot_loss")
"""Rules that do not follow from one another; all others after training follow from these."""


def snakemake(folder: Path, scenario: str, *words: str) -> float:
    """Run Snakemake in a folder. Returns the CPU seconds of all its processes."""
    command = [
        str(Path(sys.executable).with_name("snakemake")),
        *("--cores", "2", "--quiet", "all", "--rerun-triggers", "mtime"),
        *("--configfile", f"config/scenarios/{scenario}.yaml", *words),
    ]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    before = os.times()
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    after = os.times()
    return sum(after[2:4]) - sum(before[2:4])


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("run", help="a scenario that has been run: demo, thp1")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("Snakefile", "rules", "workflow", "config", "envs", "profiles"):
            (folder / part).symlink_to(ROOT / part)
        shutil.copytree(ROOT / "results" / options.run, folder / "results" / options.run)
        snakemake(folder, options.run, "--touch", "--forceall")
        took = snakemake(folder, options.run, "--forcerun", *AFTER_TRAINING)
        plan = json.loads((folder / f"results/{options.run}/screen/plan.json").read_text())
    print(f"planned {plan['seconds']:.0f} CPU s, took {took:.0f}: off by a factor of", end=" ")
    off = max(plan["seconds"] / took, took / plan["seconds"])
    print(f"{off:.2f}. Planned by stage: {plan['stages']}")
    report(f"estimate of the plan, {options.run}", "a factor of 1.5", Comparison([off], [BAR]),
           unit="factor", bar=1, record=options.record)  # fmt: skip


if __name__ == "__main__":
    main()
