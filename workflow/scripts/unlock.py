"""Remove the lock that a killed snakemake left in this folder, unless its jobs still run.

Snakemake locks its working directory and takes the lock away when it ends, also after Ctrl-C; only
a kill or a power cut leaves it. ``make screen`` calls this first, so that it just goes on.
"""

import shutil
import sys
from pathlib import Path

import psutil

LOCKS = Path(".snakemake/locks")
COMMANDS = {"snakemake", "knockscreen"}


def running(folder: Path) -> list[int]:
    """Return the ids of the processes that run the workflow in ``folder``."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        words = {Path(word).name for word in (process.info["cmdline"] or [])[:3]}
        if words & COMMANDS and process.info["cwd"] == str(folder):
            found.append(process.pid)
    return found


def main() -> int:
    """Unlock, or say what is still running. Returns the exit code."""
    if not LOCKS.is_dir() or not any(LOCKS.iterdir()):
        return 0
    if found := running(Path.cwd().resolve()):
        sys.stderr.write(
            f"The workflow is still running in this folder (process {', '.join(map(str, found))});"
            " wait for it, or end it, and try again.\n"
        )
        return 2
    sys.stderr.write("An earlier run was interrupted; going on from what it finished.\n")
    shutil.rmtree(LOCKS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
