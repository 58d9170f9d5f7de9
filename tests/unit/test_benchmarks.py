"""Benchmarks run, at sizes that measure nothing: a number of the docs can be had again."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("command", "row"),
    [
        ("database.py --targets 600 --genes 40", "`movers`"),
        ("rescore.py --targets 40 --shards 2 --shards-run 1 --genes 100 --programs 3", "score-pr"),
        ("moments.py --targets 2", "moments and Welch t"),
        ("vae.py --genes 100", "VAE training step"),
        ("evaluate.py --targets 20 --contexts 1 --genes 250 --cells 10", "| 20 | 1 | 250 |"),
    ],
)
def test_a_benchmark_runs(command: str, row: str) -> None:
    script, *words = command.split()
    if script != "evaluate.py":
        words += ["--rounds", "1"]
    path = ROOT / "benchmarks" / script
    done = subprocess.run(
        [sys.executable, str(path), *words], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert row in done.stdout


def test_every_row_of_the_history_is_of_a_script_that_is_there() -> None:
    with (ROOT / "docs/performance.tsv").open() as handle:
        commands = {row["command"] for row in csv.DictReader(handle, delimiter="\t")}
    scripts = {word for command in commands for word in command.split() if word.endswith(".py")}
    assert len(scripts) > 5
    assert not [script for script in scripts if not (ROOT / script).is_file()]
