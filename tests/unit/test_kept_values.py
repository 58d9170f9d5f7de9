"""Values read into a kept array are those that h5py reads into a fresh one."""

import h5py
import numpy as np
import pytest

from knockscreen.data.kept_values import KeptValues


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.int64])
@pytest.mark.parametrize(
    "how", [{}, {"chunks": (64,)}, {"chunks": (100,), "compression": "gzip", "shuffle": True}]
)
def test_runs_of_any_size_are_those_of_the_file(tmp_path, how, dtype):
    rng = np.random.default_rng()
    values = rng.integers(0, 1000, 1000).astype(dtype)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        node = file.create_dataset("data", data=values, **how)
        kept = KeptValues(node)
        for start, stop in np.sort(rng.integers(0, 1001, (50, 2)), axis=1):
            run = kept.read(start, stop)
            assert run.dtype == dtype
            assert run.tolist() == values[start:stop].tolist()


def test_a_shorter_run_takes_the_place_of_the_one_before(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        kept = KeptValues(file.create_dataset("data", data=np.arange(100)))
        before = kept.read(0, 50)
        assert np.shares_memory(kept.read(60, 90), before)
        assert before[:30].tolist() == list(range(60, 90))
