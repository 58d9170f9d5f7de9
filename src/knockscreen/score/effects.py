"""Knock-down against control, gene by gene, from a shard's sufficient statistics.

K candidates, C separate contexts, X contexts to report (separate and pooled), G panel genes,
B draw blocks, P programs.

- ``delta``: mean over draws of the paired difference perturbed - control in log1p CP10k, the
  natural logarithm.
- ``delta_se``: its Monte-Carlo standard error, ``sqrt(delta_var / n_draws)``. Generated cells are
  free: it says how well the model's own answer is known, not whether the answer is right.
- ``log2_fold_change``: ``log2((a + c) / (b + c))`` of mean counts per 10,000, perturbed ``a`` over
  control ``b``, with pseudocount ``c`` = 0.1 counts per 10,000. Genes silent on both sides give 0.
- A pooled context is the unweighted mean over its levels; standard errors combine as independent.
"""

import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from knockscreen.artifacts import read_json
from knockscreen.config import ProgramsConfig, RankConfig, Section
from knockscreen.errors import DataError
from knockscreen.names import CP10K, is_decoy, own_gene_id
from knockscreen.score.contexts import pooled_contexts
from knockscreen.score.programs import ProgramMatrix
from knockscreen.score.random_programs import Beside, ProgramNull

PSEUDOCOUNT = 0.1
"""Counts per 10,000 added to both sides of a fold change."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class ScoreStage(Section):
    """Sections of the configuration that scoring depends on."""

    programs: ProgramsConfig
    rank: RankConfig


@dataclass(frozen=True)
class ShardMeta:
    """What a shard and its control must agree on."""

    contexts: tuple[str, ...]
    gene_ids: tuple[str, ...]
    draws: int
    blocks: int


@dataclass(frozen=True)
class Shard:
    """Sufficient statistics of K candidates and of control, as float32, with who they are."""

    meta: ShardMeta
    target_gene_ids: tuple[str, ...]  # (K,)
    mean_count: NDArray[np.float32]  # (K, C, G) counts per cell
    delta_mean: NDArray[np.float32]  # (K, C, G)
    delta_var: NDArray[np.float32]  # (K, C, G)
    block_delta: NDArray[np.float32]  # (B, K, C, G); NaN in blocks not drawn
    n_draws: NDArray[np.int32]  # (K,) draws made, at most ``meta.draws``
    control_mean_count: NDArray[np.float32]  # (C, G)
    library_size: Floats  # (C,) mean counts per cell over all genes


def log2_fold_change(perturbed: Any, control: Any) -> Any:
    """Return log2 fold change of mean counts per 10,000, with :data:`PSEUDOCOUNT` on both sides.

    >>> float(log2_fold_change(0.7, 0.1).round(6)), float(log2_fold_change(0.0, 0.0))
    (2.0, 0.0)
    """
    return np.log2((perturbed + PSEUDOCOUNT) / (control + PSEUDOCOUNT))


def _read_npz(path: Path, names: Sequence[str]) -> tuple[ShardMeta, dict[str, NDArray[Any]]]:
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            meta = json.loads(str(file["meta"][()]))
            arrays = {name: file[name] for name in names}
    except FileNotFoundError:
        msg = f"{path} does not exist; run generate first."
        raise DataError(msg) from None
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        msg = f"{path} is not a whole shard file ({error}); run generate again."
        raise DataError(msg) from error
    return ShardMeta(
        contexts=tuple(meta["contexts"]),
        gene_ids=tuple(meta["gene_ids"]),
        draws=int(meta["draws"]),
        blocks=int(meta["blocks"]),
    ), arrays


def _target_ids(candidate: Ints, candidates: pl.DataFrame, path: Path) -> tuple[str, ...]:
    known = dict(candidates.select("candidate", "target_gene_id").iter_rows())
    for index in candidate.tolist():
        if index not in known:
            msg = (
                f"{path} holds candidate {index}, which the candidate table lacks; run plan and "
                "generate again."
            )
            raise DataError(msg)
    return tuple(known[index] for index in candidate.tolist())


def _library_sizes(store: dict[str, Any], contexts: Sequence[str]) -> Floats:
    """Return mean library sizes of the draws: the log-normal mean of each context, shape (C,)."""
    sizes = store["library_size_log"]
    for name in contexts:
        if name not in sizes:
            msg = (
                f"the store has no library size for context '{name}'; run normalize and generate "
                "again."
            )
            raise DataError(msg)
    return np.array([np.exp(sizes[name][0] + sizes[name][1] ** 2 / 2) for name in contexts])


def read_shard(shard: Path, control: Path, candidates: pl.DataFrame, store: Path) -> Shard:
    """Read a shard with its control and check that they, and the store, are of one screen.

    Raises
    ------
    DataError
        A file is missing or broken, or the files do not belong together.
    """
    names = ("candidate", "mean_count", "delta_mean", "delta_var", "block_delta", "n_draws")
    meta, arrays = _read_npz(Path(shard), names)
    control_meta, control_arrays = _read_npz(Path(control), ("mean_count",))
    described = read_json(Path(store) / "store.json")
    panel = tuple(gene["gene_id"] for gene in described["genes"])
    if meta != control_meta or meta.gene_ids != panel:
        other = control if meta != control_meta else store
        msg = (
            f"{shard} and {other} are of different screens (contexts, genes, draws or blocks "
            "differ); run generate again."
        )
        raise DataError(msg)
    shape = (len(arrays["candidate"]), len(meta.contexts), len(panel))
    if arrays["delta_mean"].shape != shape or arrays["block_delta"].shape != (meta.blocks, *shape):
        found = arrays["delta_mean"].shape, arrays["block_delta"].shape
        msg = (
            f"{shard} has delta_mean and block_delta of shapes {found}, "
            f"expected {(shape, (meta.blocks, *shape))}; run generate again."
        )
        raise DataError(msg)
    return Shard(
        meta=meta,
        target_gene_ids=_target_ids(arrays["candidate"], candidates, Path(shard)),
        mean_count=arrays["mean_count"],
        delta_mean=arrays["delta_mean"],
        delta_var=arrays["delta_var"],
        block_delta=arrays["block_delta"],
        n_draws=arrays["n_draws"],
        control_mean_count=control_arrays["mean_count"],
        library_size=_library_sizes(described, meta.contexts),
    )


EFFECT_SCHEMA = pa.schema(
    [
        ("target_gene_id", pa.dictionary(pa.int32(), pa.string())),
        ("context", pa.dictionary(pa.int32(), pa.string())),
        ("gene_id", pa.dictionary(pa.int32(), pa.string())),
        ("log2_fold_change", pa.float32()),
        ("delta", pa.float32()),
        ("delta_se", pa.float32()),
        ("mean_count", pa.float32()),
        ("control_mean_count", pa.float32()),
        ("is_target", pa.bool_()),
    ]
)


def effect_tables(
    shard: Shard, pool_over: Sequence[str], *, decoys: bool = False
) -> Iterator[pa.Table]:
    """Yield the long effects of one context after another, sorted by context, target and gene.

    Either of the candidates or of the decoys, which are a null and nothing to be looked at.
    """
    targets, genes = np.array(shard.target_gene_ids), np.array(shard.meta.gene_ids)
    rows, columns = np.argsort(targets, kind="stable"), np.argsort(genes, kind="stable")
    rows = rows[[is_decoy(target) == decoys for target in targets[rows]]]
    k, g = len(rows), len(columns)
    groups = pooled_contexts(shard.meta.contexts, pool_over)
    names = pa.array(list(groups))
    for x, group in enumerate(groups.values()):
        members = np.array(group)
        block = np.ix_(rows, members, columns)
        mean_count = shard.mean_count[block].astype(np.float64)  # (K, L, G)
        control = shard.control_mean_count[np.ix_(members, columns)].astype(np.float64)  # (L, G)
        to_cp10k = (CP10K / shard.library_size[members])[:, None]
        fold = log2_fold_change(
            (mean_count * to_cp10k).mean(axis=1), (control * to_cp10k).mean(axis=0)
        )
        variance = shard.delta_var[block].astype(np.float64).sum(axis=1)  # (K, G)
        error = np.sqrt(variance / shard.n_draws[rows][:, None])
        values = [
            fold,
            shard.delta_mean[block].astype(np.float64).mean(axis=1),
            error / len(members),
            mean_count.mean(axis=1),
            np.broadcast_to(control.mean(axis=0), (k, g)),
        ]
        keys = [
            (np.repeat(np.arange(k, dtype=np.int32), g), pa.array(targets[rows].tolist())),
            (np.full(k * g, x, dtype=np.int32), names),
            (np.tile(np.arange(g, dtype=np.int32), k), pa.array(genes[columns].tolist())),
        ]
        arrays = [pa.DictionaryArray.from_arrays(code, text) for code, text in keys]
        arrays += [pa.array(v.astype(np.float32).ravel()) for v in values]
        arrays.append(pa.array((targets[rows][:, None] == genes[columns][None]).ravel()))
        yield pa.Table.from_arrays(arrays, schema=EFFECT_SCHEMA)


def write_effects(
    shard: Shard, path: Path, pool_over: Sequence[str], *, decoys: bool = False
) -> int:
    """Write the long effects of a shard to Parquet, one context at a time; return the rows.

    Decoys go to a file of their own: with them, new programs can be ranked as sure as these.
    """
    rows = 0
    with pq.ParquetWriter(path, EFFECT_SCHEMA, compression="zstd", store_schema=False) as writer:
        for table in effect_tables(shard, pool_over, decoys=decoys):
            writer.write_table(table)
            rows += table.num_rows
    return rows


def program_scores(
    shard: Shard,
    programs: ProgramMatrix,
    pool_over: Sequence[str],
    null: ProgramNull | None = None,
) -> pl.DataFrame:
    """Return the scores of a shard's candidates: program, context, target, score, error, blocks.

    The target's own gene is left out; a program of which no other gene is on the panel has score
    NULL. ``score`` is of the ``n_draws`` draws that a target has, ``blocks`` of each block of
    draws, NaN where not drawn; ``score_se`` is the sd / sqrt(B) of those drawn, NULL with one.
    ``magnitude`` is the norm of delta over the other genes; ``specific_toward`` and
    ``specific_away`` are (b + 1) / (N + 1) with b random programs moved as far in that direction,
    ``random_z`` is the score less their mean over their sd, ``control_error`` is the standard error
    of the mean score of the real control cells; NULL without a ``null``. One candidate is projected
    at a time, with shapes that do not depend on the shard, so that the numbers do not either.
    """
    groups = pooled_contexts(shard.meta.contexts, pool_over)
    average = np.zeros((len(groups), len(shard.meta.contexts)))  # (X, C)
    for x, members in enumerate(groups.values()):
        average[x, members] = 1 / len(members)
    used = programs.columns
    own = {gene_id: i for i, gene_id in enumerate(programs.gene_ids)}
    k, p, b = len(shard.target_gene_ids), len(programs.names), shard.meta.blocks
    order = np.argsort(np.array(shard.target_gene_ids), kind="stable")
    scores = np.empty((p, len(groups), k, 1 + b))
    n_genes = np.empty((p, k), dtype=np.int32)
    beside = Beside.empty(p, len(groups), k)
    for position, candidate in enumerate(order):
        own_gene = own.get(own_gene_id(shard.target_gene_ids[candidate]), -1)
        weights, n = programs.without(own_gene)
        stacked = np.concatenate(
            [
                shard.delta_mean[None, candidate][:, :, used],
                shard.block_delta[:, candidate][:, :, used],
            ]
        ).astype(np.float64)  # (1 + B, C, U)
        projected = stacked @ weights[:, used].T  # (1 + B, C, P)
        scores[:, :, position] = np.einsum("xc,bcp->pxb", average, projected)
        n_genes[:, position] = n
        delta = average @ shard.delta_mean[candidate].astype(np.float64)  # (X, G)
        if own_gene >= 0:
            delta[:, own_gene] = 0.0
        beside.add(position, delta, scores[:, :, position, 0], null)
    if null is not None:
        beside.error[:] = null.pooled_error(shard.meta.contexts, average)
    targets = [shard.target_gene_ids[i] for i in order]
    frame = _score_frame(scores, n_genes, beside, names=(programs.names, list(groups), targets))
    made = pl.DataFrame({"target_gene_id": targets, "n_draws": shard.n_draws[order]})
    return frame.join(made, on="target_gene_id", maintain_order="left")


def _score_frame(
    scores: Floats,
    n_genes: NDArray[np.int32],
    beside: Beside,
    *,
    names: tuple[Sequence[str], Sequence[str], Sequence[str]],
) -> pl.DataFrame:
    """Return the long table of scores (P, X, K, 1 + B); names of programs, contexts, targets."""
    programs, contexts, targets = names
    p, x, k, blocks = scores.shape
    by_block = scores[..., 1:].reshape(p * x * k, blocks - 1)
    drawn = blocks - 1 - np.isnan(by_block).sum(axis=1)  # the first of them
    error = np.full(p * x * k, np.nan)
    for n in np.unique(drawn[drawn > 1]):
        error[drawn == n] = by_block[drawn == n, :n].std(axis=1, ddof=1) / np.sqrt(n)
    frame = pl.DataFrame(
        {
            "program": np.repeat(np.array(programs), x * k),
            "context": np.tile(np.repeat(np.array(contexts), k), p),
            "target_gene_id": np.tile(np.array(targets), p * x),
            "score": scores[..., 0].ravel(),
            "score_se": error,
            "n_genes": np.repeat(n_genes[:, None, :], x, axis=1).ravel(),
            **beside.columns(),
            "blocks": pl.Series(by_block).cast(pl.List(pl.Float64)),
        }
    )
    return frame.with_columns(
        pl.col(pl.Float64).fill_nan(None),
        pl.when(pl.col("score").is_not_nan()).then("blocks").alias("blocks"),
    ).sort("program", "context", "target_gene_id")
