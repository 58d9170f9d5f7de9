"""Wall-clock time of the command line's help, and of every verb's.

    python benchmarks/startup.py [--rounds 11] [--record]

The bar is 0.3 s, of a process that starts anew each time; ``theirs`` is that bar.
"""

import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import typer
from rounds import Comparison, parser, report

from knockscreen.cli import app

BAR = 0.3


def verbs() -> list[str]:
    """Return the names of all verbs."""
    return list(typer.main.get_group(app).commands)


def seconds(*words: str) -> float:
    """Return how long one command takes, from its start to its end."""
    command = Path(sys.executable).with_name("knockscreen")
    start = time.perf_counter()
    subprocess.run([command, *words], check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    arguments = parser(__doc__)
    arguments.set_defaults(rounds=11)
    options = arguments.parse_args()

    def timed(*words: str) -> Comparison:
        seconds(*words)
        return Comparison([seconds(*words) for _ in range(options.rounds)], [BAR] * options.rounds)

    report(
        "help: `knockscreen --help`", "the bar", timed("--help"), unit="s", bar=1,
        record=options.record,
    )  # fmt: skip
    each = {verb: timed(verb, "--help") for verb in verbs()}
    slowest = max(each, key=lambda verb: median(each[verb].ours))
    report(
        f"help of a verb, the slowest of {len(each)}", "the bar", each[slowest], unit="s", bar=1,
        record=options.record,
    )  # fmt: skip
    for verb in sorted(each, key=lambda verb: -median(each[verb].ours)):
        print(f"{median(each[verb].ours):.3f} s  {verb}")


if __name__ == "__main__":
    main()
