"""Which cells train, stop the training, and test: as codes per cell and as a table.

The lot of a cell is a hash of (seed, file name, row), that of a target one of (seed, target id):
the split does not depend on the order of files, on chunks, or on which other targets there are.
"""

import hashlib

import numpy as np
import polars as pl
from numpy.typing import NDArray

from knockscreen.config import SplitsConfig
from knockscreen.errors import ConfigError, suggest
from knockscreen.names import NTC, SPLITS, Split, parse_context


def lots(seed: int, name: str, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return a uniform number in [0, 1) for each cell, a function of seed, file name and row alone.

    Parameters
    ----------
    seed
        Seed of the splits.
    name
        Name of the file (without folders) that the cells are in.
    rows
        Row of each cell in that file, shape (N,).
    """
    key = np.full(len(rows), _hash(seed, "cell", name), dtype=np.uint64)
    with np.errstate(over="ignore"):
        x = key + rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    lot: NDArray[np.float64] = (x >> np.uint64(11)) / float(1 << 53)
    return lot


def _hash(seed: int, *words: str) -> int:
    text = "\0".join([str(seed), *words]).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def assign_splits(
    cells: pl.DataFrame,
    lot: NDArray[np.float64],
    settings: SplitsConfig,
) -> NDArray[np.int8]:
    """Return the split of each cell as its position in ``names.SPLITS``, shape (N,).

    Held-out targets go first, then held-out contexts; the cells that are left are drawn into
    validation and test within each target and context, so that every one keeps its share (and at
    least one training cell). Control cells are only split by cell.

    Parameters
    ----------
    cells
        target_gene, target_gene_id, context of each kept cell.
    lot
        A uniform number per cell, see :func:`lots`.
    settings
        The ``splits`` section.

    Raises
    ------
    ConfigError
        A held-out target or context is not among the cells, or no target is left to train on.
    """
    if settings.validation + settings.test >= 1:
        msg = (
            f"splits.validation + splits.test is {settings.validation + settings.test:g}; "
            "leave cells for training (less than 1)."
        )
        raise ConfigError(msg)
    codes = _by_cell(cells, lot, settings)
    target = cells["target_gene_id"].cast(pl.String)
    control = (target == NTC).to_numpy()
    for rule in settings.held_out_contexts:
        inside = _in_context(cells, rule.context)
        if rule.targets:
            wanted = [
                _find_target(cells, name, "splits.held_out_contexts") for name in rule.targets
            ]
            inside &= target.is_in(wanted).to_numpy()
        codes[inside & ~control] = SPLITS.index(Split.HELD_OUT_CONTEXT)
    held = held_out_targets(cells, settings)
    codes[target.is_in(held).to_numpy()] = SPLITS.index(Split.HELD_OUT_TARGET)
    return codes


def held_out_targets(cells: pl.DataFrame, settings: SplitsConfig) -> list[str]:
    """Return the ids of the held-out targets: those named, then those drawn by seed."""
    named = [
        _find_target(cells, name, "splits.held_out_targets") for name in settings.held_out_targets
    ]
    known = _target_ids(cells)
    rest = sorted(
        (t for t in known if t not in named), key=lambda t: _hash(settings.seed, "target", t)
    )
    n = settings.random_held_out_targets
    if (named or n) and n >= len(rest):
        msg = (
            f"splits holds out {len(named)} named and {n} random targets, but only {len(known)} "
            "pass QC; "
            "leave at least one to train on."
        )
        raise ConfigError(msg)
    return sorted({*named, *rest[:n]})


def _target_ids(cells: pl.DataFrame) -> list[str]:
    ids = cells["target_gene_id"].cast(pl.String).unique().to_list()
    return [i for i in ids if i != NTC]


def _find_target(cells: pl.DataFrame, name: str, setting: str) -> str:
    """Return the id of a target given by symbol or id."""
    pairs = cells.select(pl.col("target_gene", "target_gene_id").cast(pl.String)).unique()
    pairs = pairs.filter(pl.col("target_gene_id") != NTC)
    hit = pairs.filter((pl.col("target_gene") == name) | (pl.col("target_gene_id") == name))
    if hit.is_empty():
        known = sorted({*pairs["target_gene"], *pairs["target_gene_id"]})
        msg = (
            f"{setting} names '{name}', which is not a target that passes QC{suggest(name, known)}."
        )
        raise ConfigError(msg)
    return str(hit["target_gene_id"].sort()[0])


def _in_context(cells: pl.DataFrame, name: str) -> NDArray[np.bool_]:
    """Return which cells lie in a context that may name only some of the factors."""
    wanted = parse_context(name)
    known = sorted(cells["context"].cast(pl.String).unique().to_list())
    inside = [c for c in known if wanted.items() <= parse_context(c).items()]
    if not inside:
        msg = f"splits.held_out_contexts names '{name}', which no cell is in{suggest(name, known)}."
        raise ConfigError(msg)
    return cells["context"].cast(pl.String).is_in(inside).to_numpy().copy()


def _by_cell(
    cells: pl.DataFrame, lot: NDArray[np.float64], settings: SplitsConfig
) -> NDArray[np.int8]:
    """Split every target x context by lot: the lowest test, the next validate, the others train.

    A share of n cells that is not whole is rounded up or down by a lot of the target x context, so
    that the shares hold over all of them.
    """
    key = ["target_gene_id", "context"]
    groups = cells.select(key).unique()
    luck = np.array(
        [
            _hash(settings.seed, "rounding", target, context) / float(1 << 64)
            for target, context in groups.select(pl.col(key).cast(pl.String)).iter_rows()
        ]
    )
    coded = groups.with_columns(pl.int_range(pl.len(), dtype=pl.Int32).alias("group"))
    joined = cells.select(key).join(coded, on=key, how="left", maintain_order="left")
    group = joined["group"].to_numpy()
    n = np.bincount(group)
    n_test = np.minimum(np.floor(n * settings.test + luck), n - 1)
    n_both = np.minimum(np.floor(n * (settings.test + settings.validation) + luck), n - 1)
    order = np.lexsort((lot, group))
    sorted_group = group[order]
    rank = np.arange(len(order)) - (np.cumsum(n) - n)[sorted_group]
    codes = np.empty(len(order), dtype=np.int8)
    codes[order] = np.select(
        [rank < n_test[sorted_group], rank < n_both[sorted_group]],
        [SPLITS.index(Split.TEST), SPLITS.index(Split.VALIDATION)],
        SPLITS.index(Split.TRAIN),
    )
    return codes


def split_table(cells: pl.DataFrame) -> pl.DataFrame:
    """Return target_gene_id, target_gene, context, split and n_cells, sorted; controls included."""
    order = pl.col("split").replace_strict(
        {s: k for k, s in enumerate(SPLITS)}, return_dtype=pl.Int32
    )
    return (
        cells.lazy()
        .group_by("target_gene_id", "target_gene", "context", "split")
        .agg(pl.len().alias("n_cells"))
        .collect(engine="streaming")
        .with_columns(pl.col("target_gene_id", "target_gene", "context", "split").cast(pl.String))
        .sort("target_gene_id", "context", order)
    )
