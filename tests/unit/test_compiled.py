"""Loops compile once, run alike, and do without a folder to keep compiled code in."""

import subprocess
import sys

import numpy as np

from knockscreen.compiled import compiled


def total(values):
    found = 0.0
    for value in values:
        found += value
    return found


def test_a_loop_is_compiled_once_and_gives_what_python_gives():
    values = np.random.default_rng(0).random(50)
    assert compiled(total)(values) == total(values)
    assert compiled(total) is compiled(total)


def test_a_loop_that_cannot_be_kept_on_disk_is_compiled_all_the_same():
    names = {}
    exec("def double(value):\n    return 2 * value", names)  # of no file
    assert compiled(names["double"])(21) == 42


def test_an_image_without_numba_is_known_before_a_loop_is_asked_for():
    script = (
        "import sys; sys.modules['numba'] = None; "
        "from knockscreen.compiled import available; print(available())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
