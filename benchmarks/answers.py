"""Put the answers of a run below the commands of docs/queries.md and docs/database.md.

The first lines of each answer, as they come out now::

    python benchmarks/answers.py demo
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
INDENT = "    "
LINES = 12
NOTES = (
    *("score:", "predicted_seen:", "delta:", "controls:", "fdr is", "exploratory in", "ranked"),
    *(
        "not_tested in",
        "score in",
        "positive controls in",
        "Genes off the panel",
        "The input cells",
    ),
    *("database:", "difference:"),
)
"""How lines begin that explain an answer and are not part of it."""


def answer(command: str) -> list[str]:
    """Return the lines that a command prints on its two outputs, without notes."""
    words = [sys.executable, "-c", "from knockscreen.cli import main; main()"]
    done = subprocess.run(
        [*words, *shlex.split(command)[1:]], capture_output=True, text=True, check=True, cwd=ROOT
    )
    lines = (done.stdout or done.stderr).splitlines()
    shown = [line.rstrip() for line in lines if not line.startswith(NOTES)][:LINES]
    while shown and not shown[-1]:
        shown.pop()
    return shown


def refreshed(page: str, run: str) -> str:
    """Return a page with an answer below each block of commands that ask ``run``."""
    out: list[str] = []
    lines = page.splitlines()
    position = 0
    while position < len(lines):
        line = lines[position]
        out.append(line)
        position += 1
        if not line.startswith(f"{INDENT}knockscreen "):
            continue
        # What is below the command and indented is its old answer, up to the next command or text.
        while position < len(lines) and (not lines[position] or lines[position].startswith(INDENT)):
            if lines[position].startswith(f"{INDENT}knockscreen "):
                break
            position += 1
        if f"results/{run}" in line or f"--run {run}" in line:
            out += ["", *[f"{INDENT}{shown}".rstrip() for shown in answer(line.strip())], ""]
    return "\n".join(out).rstrip("\n") + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="name of the run under results/")
    page = ROOT / "docs/queries.md"
    page.write_text(refreshed(page.read_text(), parser.parse_args().run))


if __name__ == "__main__":
    main()
