"""Reading the parts of an h5ad file with h5py: columns whole, everything else by the caller.

Categorical, string and plain columns are read directly; rarer encodings (nullable arrays and the
like) go through anndata's element reader, which is only imported then.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl

from knockscreen.data.presets import INDEX
from knockscreen.errors import DataError

STRINGS_AT_ONCE = 50_000


@contextmanager
def open_h5ad(path: Path) -> Iterator[h5py.File]:
    """Yield the open file, read-only.

    Raises
    ------
    DataError
        The file is missing, is not an h5ad, or is truncated.
    """
    if not path.is_file():
        msg = f"counts file {path} does not exist; check the path (data.files, for a screen)."
        raise DataError(msg)
    try:
        handle = h5py.File(path, "r")
    except OSError as error:
        if "truncated" in str(error):
            msg = f"{path} is truncated (the file ends before its data does); copy it again."
        elif _starts_as_hdf5(path):
            msg = f"{path} cannot be read as HDF5, it is truncated or damaged; copy it again."
        else:
            msg = f"{path} is not an h5ad file (not HDF5); expected AnnData .h5ad with raw counts."
        raise DataError(msg) from error
    with handle:
        for part in ("obs", "var"):
            if part not in handle:
                msg = f"{path} is not an h5ad file: it has no '{part}'; expected AnnData .h5ad."
                raise DataError(msg)
            if not isinstance(handle[part], h5py.Group):
                msg = (
                    f"{path} has '{part}' in a format older than anndata 0.7; read and write it "
                    "again with anndata."
                )
                raise DataError(msg)
        yield handle


def _starts_as_hdf5(path: Path) -> bool:
    with path.open("rb") as handle:
        return handle.read(4) == b"\x89HDF"


@contextmanager
def damaged(path: Path) -> Iterator[None]:
    """Turn a failed read of the file's blocks into one sentence."""
    try:
        yield
    except (OSError, KeyError, RuntimeError) as error:
        msg = f"{path} is truncated or damaged ({' '.join(str(error).split())}); copy it again."
        raise DataError(msg) from error


def column_names(frame: h5py.Group) -> list[str]:
    """Return the names of the columns of ``obs`` or ``var``, the index left out."""
    order = frame.attrs.get("column-order")
    if order is not None:
        return [str(name) for name in order]
    return [name for name in frame if name != index_name(frame)]


def index_name(frame: h5py.Group) -> str:
    """Return the name under which ``obs`` or ``var`` keeps its index."""
    return str(frame.attrs.get("_index", "_index"))


def n_rows(frame: h5py.Group) -> int:
    """Return how many cells or genes ``obs`` or ``var`` names."""
    index = frame[index_name(frame)]
    return len(read_column(frame, INDEX) if isinstance(index, h5py.Group) else index)


def read_column(frame: h5py.Group, name: str) -> pl.Series:
    """Return one column of ``obs`` or ``var``; missing values are null.

    Parameters
    ----------
    frame
        The ``obs`` or ``var`` group.
    name
        A column, or ``index``.
    """
    column = index_name(frame) if name == INDEX and name not in frame else name
    node = frame[column]
    if isinstance(node, h5py.Dataset):
        return _plain(node).alias(name)
    if node.attrs.get("encoding-type") == "categorical":
        categories = node["categories"]
        if isinstance(categories, h5py.Dataset):
            codes = pl.Series(node["codes"][:].astype(np.int64))
            return _plain(categories).gather(codes.replace(-1, None)).alias(name)
    return _by_anndata(node).alias(name)


def _plain(node: h5py.Dataset) -> pl.Series:
    if h5py.check_string_dtype(node.dtype) is None and node.dtype.kind != "S":
        series = pl.Series(node[:])
        return series.fill_nan(None) if series.dtype.is_float() else series
    text = node.asstr() if node.dtype.kind == "O" else node.astype("U")
    parts = [
        pl.Series(text[start : start + STRINGS_AT_ONCE], dtype=pl.String)
        for start in range(0, node.shape[0], STRINGS_AT_ONCE)
    ]
    return pl.concat(parts) if parts else pl.Series([], dtype=pl.String)


def _by_anndata(node: Any) -> pl.Series:
    import pandas as pd  # type: ignore[import-untyped]
    from anndata.io import read_elem

    values = pd.Series(read_elem(node))
    return pl.Series([None if pd.isna(value) else value for value in values.astype(object)])


def says_simulated(handle: h5py.File) -> bool:
    """Return whether ``uns`` declares the file simulated (``uns["simulated"]`` is true)."""
    node = handle.get("uns/simulated")
    if node is None:
        return False
    return bool(node[()]) if isinstance(node, h5py.Dataset) else True


def says_generated(handle: h5py.File) -> bool:
    """Return whether ``uns`` declares the cells generated by a model of ours."""
    node = handle.get("uns/knockscreen/generated")
    return isinstance(node, h5py.Dataset) and bool(node[()])


def says_log1p(handle: h5py.File) -> bool:
    """Return whether ``uns`` says that X went through a log1p (scanpy leaves ``uns["log1p"]``)."""
    return "uns/log1p" in handle
