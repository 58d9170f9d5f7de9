"""Runs of a stored column of values, read into one array that is kept.

Asking the system for fresh memory for every run costs twice what reading an uncompressed one does.
"""

from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray


class KeptValues:
    """A one-dimensional dataset of V values, read run by run."""

    def __init__(self, node: h5py.Dataset) -> None:
        self._node = node
        self._kept: NDArray[Any] = np.empty(0, dtype=node.dtype)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return the values ``start`` to ``stop``, which hold until the next call."""
        size = stop - start
        if size > len(self._kept):
            self._kept = np.empty(size, dtype=self._node.dtype)
        run = self._kept[:size]
        if size:
            self._node.read_direct(run, np.s_[start:stop])
        return run
