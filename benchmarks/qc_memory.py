"""Time and peak memory of ``knockscreen qc`` and ``normalize`` as the cells grow.

    python benchmarks/qc_memory.py [--cells 20000 100000 400000] [--genes 800] [--keep FOLDER]

Each screen is simulated into a folder (kept and reused with ``--keep``); each verb runs in a
process of its own, whose peak resident memory is read from the system. Prints a Markdown table.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from knockscreen.config import SimulateConfig, read_values

ROOT = Path(__file__).resolve().parents[1]
# A child of its own, so that RUSAGE_CHILDREN is the peak of one verb and not of all before it.
MEASURE = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([code, time.perf_counter() - start, usage.ru_maxrss / 1024]))
"""


def measure(*words: object) -> tuple[float, float]:
    """Return seconds and peak MB of one command."""
    verb = Path(sys.executable).with_name("knockscreen")
    command = [sys.executable, "-c", MEASURE, str(verb), *map(str, words)]
    done = subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "2"},
    )
    code, seconds, megabytes = json.loads(done.stdout)
    if code:
        sys.exit(done.stderr)
    return seconds, megabytes


def one_size(cells: int, genes: int, folder: Path) -> None:
    values = read_values(str(ROOT / "config" / "config.yaml"))
    values["simulate"].update(cells=cells, genes=genes)
    counts = folder / f"input_{cells}_{genes}"
    if not counts.is_dir():
        from knockscreen.simulate import write_screen

        write_screen(SimulateConfig.model_validate(values["simulate"]), counts)
    values["programs"]["file"] = str(ROOT / "config" / "programs.tsv")
    settings = folder / "settings.json"
    settings.write_text(json.dumps(values))
    qc, store = folder / f"qc_{cells}", folder / f"store_{cells}"
    on_disk = sum(p.stat().st_size for p in counts.glob("*.h5ad")) / 1e6
    given = ("--input", counts, "--settings", settings)
    first = measure("qc", *given, "--output-dir", qc)
    second = measure("normalize", *given, "--qc-dir", qc, "--output-dir", store)
    row = [f"{cells:,}", f"{on_disk:.0f}", *(f"{x:.1f} s | {m:.0f} MB" for x, m in (first, second))]
    print("| " + " | ".join(row) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, nargs="+", default=[20_000, 100_000, 400_000])
    parser.add_argument("--genes", type=int, default=800)
    parser.add_argument(
        "--keep", type=Path, help="folder for the screens, reused if they are there"
    )
    options = parser.parse_args()
    start = time.perf_counter()
    print("| cells | h5ad MB | qc | peak | normalize | peak |")
    print("|--:|--:|--:|--:|--:|--:|")
    keep = options.keep
    holder = contextlib.nullcontext(keep) if keep else tempfile.TemporaryDirectory()
    with holder as folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for cells in options.cells:
            one_size(cells, options.genes, Path(folder))
    print(
        f"\n{options.genes} genes; {time.perf_counter() - start:.0f} s in all, simulation included."
    )


if __name__ == "__main__":
    main()
