"""Loops over numbers, compiled by numba where it is installed.

A loop is written as a plain function of arrays in the module that needs it, so that it can be read,
tested and run as Python. Compiled code is kept on disk: a process compiles what none did before.
"""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

Loop = Callable[..., Any]


@cache
def available() -> bool:
    """Return whether loops can be compiled: numba is not on a bare GPU image."""
    return find_spec("numba") is not None


@cache
def compiled(loop: Loop) -> Loop:
    """Return ``loop`` compiled for the types that it is called with.

    Where nothing can be written beside the package nor in the home folder, it is compiled anew by
    each process (numba's NUMBA_CACHE_DIR names another folder).

    Raises
    ------
    ImportError
        numba is not installed (:func:`available`).
    """
    import numba

    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        fast: Loop = numba.njit(cache=True, **options)(loop)
    except RuntimeError:  # no folder to keep it in
        fast = numba.njit(**options)(loop)
    return fast
