"""Rank knock-downs against a signature of the user's own: which of them undo it.

G signature genes on the panel, T targets. With signed weights w and the effects delta of one
knock-down over the signature's genes, its own gene left out,

- ``score`` = -cosine(w, delta): 1 undoes the signature, -1 makes it. It has no size: a small effect
  in the right direction scores like a large one, so ``projection`` stands beside it.
- ``projection`` = -sum w delta / sum |w|, in log1p CP10k; ``up_score`` and ``down_score`` are the
  same over the genes with w > 0 and with w < 0. Each is positive if that arm is undone.

Knock-downs that undo both arms come first, so that one arm cannot carry a rank; then the score
decides. ``mimic`` turns every sign round.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import duckdb
import numpy as np
import polars as pl
from numpy.typing import NDArray

from knockscreen.errors import DatabaseError, DataError, suggest
from knockscreen.gene_names import GeneNames
from knockscreen.score.published import DATE
from knockscreen.score.text_tables import missing_column, read_text_table
from knockscreen.store import resolve
from knockscreen.store.connection import table
from knockscreen.store.frames import REVERSE

GENES = ("gene", "gene_id", "symbol", "gene_name", "variable", "names")
WEIGHTS = ("weight", "log2_fold_change", "log_fc", "log2FoldChange", "logFC", "score")

By = Literal["score", "projection"]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Signature:
    """A signature on the panel of a database."""

    keys: tuple[int, ...]  # gene keys, rising
    weights: Floats  # (G,)
    n_genes: int  # in the signature as given
    unknown: tuple[str, ...]  # genes that the panel lacks


def read_signature(path: Path | str) -> pl.DataFrame:
    """Return gene and weight of a signature: a CSV or TSV with a gene and a weight column.

    Raises
    ------
    DataError
        The file is missing or no table, or lacks a gene or a weight column.
    """
    frame = read_text_table(path, "signature", "give a CSV of gene and weight")
    return check_signature(frame, f"signature '{path}'")


def check_signature(frame: pl.DataFrame, name: str = "signature") -> pl.DataFrame:
    """Return gene and weight of a frame, checked.

    Raises
    ------
    DataError
        A column is missing, a gene is missing, a date or stands twice, a weight is not a finite
        number, or all are 0.
    """
    columns = []
    for what, allowed in (("gene", GENES), ("weight", WEIGHTS)):
        found = [column for column in allowed if column in frame.columns]
        if not found:
            raise DataError(missing_column(name, allowed, frame.columns, f"the {what}"))
        columns.append(found[0])
    gene, weight = columns
    checked = frame.select(
        pl.col(gene).cast(pl.String).str.strip_chars().alias("gene"),
        pl.col(weight).cast(pl.Float64, strict=False).alias("weight"),
    )
    bad = (~checked["weight"].is_finite()).fill_null(value=True).arg_true()
    if len(bad):
        row = int(bad[0])
        msg = (
            f"{weight} '{frame[weight][row]}' of gene {checked['gene'][row]} in {name} is not a"
            " finite number; leave out what was not measured."
        )
        raise DataError(msg)
    genes = checked["gene"].fill_null("")
    wrong = next((gene for gene in genes if not gene or DATE.fullmatch(gene)), None)
    if wrong is not None:
        what = f"the date '{wrong}' in place of a gene" if wrong else "a row without a gene"
        msg = f"{name} has {what}; give the symbol or the Ensembl id of each."
        raise DataError(msg)
    twice = checked.filter(pl.col("gene").is_duplicated())
    if not twice.is_empty():
        msg = f"gene {twice['gene'][0]} stands twice in {name}; keep one row, of one contrast."
        raise DataError(msg)
    signed = checked.filter(pl.col("weight") != 0)
    if signed.is_empty():
        msg = f"{name} has no gene with a weight other than 0; give what goes up and down."
        raise DataError(msg)
    return signed


def place(connection: duckdb.DuckDBPyConnection, signature: pl.DataFrame) -> Signature:
    """Return a checked signature on the panel of the database, matched by symbol or Ensembl id.

    Raises
    ------
    DataError
        None or one of its genes is on the panel, or two of its names are one gene.
    """
    panel = table(connection, "select gene_key, gene, gene_id from genes where in_panel")
    known = GeneNames(panel["gene_id"], panel["gene"])
    at = pl.Series([known.find(gene) for gene in signature["gene"]], dtype=pl.UInt32)
    found = signature.with_columns(panel["gene_key"].gather(at))
    matched = found.drop_nulls("gene_key").sort("gene_key")
    if matched.is_empty():
        first = signature["gene"][0]
        msg = (
            f"none of the {signature.height} genes of the signature is on the panel (such as"
            f" '{first}'{suggest(first, panel['gene'])}); give symbols or Ensembl ids."
        )
        raise DataError(msg)
    if len(matched) < 2:
        msg = (
            f"of the signature only {matched['gene'][0]} is on the panel, and every effect has a"
            " cosine of 1 or -1 with one gene; ask movers for it, or give more genes."
        )
        raise DataError(msg)
    if matched["gene_key"].is_duplicated().any():
        both = matched.filter(pl.col("gene_key").is_duplicated())["gene"]
        msg = f"{both[0]} and {both[1]} of the signature are one gene; keep one row."
        raise DataError(msg)
    return Signature(
        keys=tuple(matched["gene_key"]),
        weights=matched["weight"].to_numpy(),
        n_genes=signature.height,
        unknown=tuple(found.filter(pl.col("gene_key").is_null())["gene"]),
    )


def project(deltas: NDArray[np.float32], weights: Floats, own: NDArray[np.intp]) -> dict[str, Any]:
    """Return the scores of T knock-downs against a signature of G genes.

    Parameters
    ----------
    deltas
        (G, T) effects.
    weights
        (G,) signed weights, none of them 0.
    own
        (T,) row of the knock-down's own gene, which is left out; -1: not in the signature.

    Examples
    --------
    >>> found = project(np.array([[-1.0], [1.0]]), np.array([1.0, -1.0]), np.array([-1]))
    >>> {name: float(value[0].round(3)) for name, value in found.items()}
    {'score': 1.0, 'projection': 1.0, 'up_score': 1.0, 'down_score': 1.0, 'n_genes': 2.0}
    """
    arms = np.stack([weights * (weights > 0), weights * (weights < 0)])  # (2, G)
    sums = (arms.astype(np.float32) @ deltas).astype(np.float64)  # (2, T)
    squares = np.einsum("gt,gt->t", deltas, deltas).astype(np.float64)
    size = np.repeat(np.abs(arms).sum(axis=1)[:, None], deltas.shape[1], axis=1)  # (2, T)
    length = np.full(deltas.shape[1], float(weights @ weights))
    inside = np.flatnonzero(own >= 0)
    rows = own[inside]
    delta = deltas[rows, inside].astype(np.float64)
    sums[:, inside] -= arms[:, rows] * delta
    size[:, inside] -= np.abs(arms[:, rows])
    squares[inside] -= delta**2
    length[inside] -= weights[rows] ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = sums.sum(axis=0) / np.sqrt(np.clip(squares, 0, None) * length)
        return {
            "score": np.clip(-cosine, -1, 1),
            "projection": -sums.sum(axis=0) / size.sum(axis=0),
            "up_score": -sums[0] / size[0],
            "down_score": -sums[1] / size[1],
            "n_genes": len(weights) - (own >= 0).astype(np.int64),
        }


def reverse(
    connection: duckdb.DuckDBPyConnection,
    signature: pl.DataFrame,
    context: str | None = None,
    *,
    n: int | None = 20,
    mimic: bool = False,
    by: By = "score",
) -> pl.DataFrame:
    """Return the ``n`` knock-downs per context that undo a signature best (or make it, ``mimic``).

    Parameters
    ----------
    signature
        A frame with a gene column and a weight or log fold change column.
    by
        What orders knock-downs that undo both arms: ``score`` (the cosine: direction alone) or
        ``projection`` (direction and size).

    Raises
    ------
    DataError
        The signature is not right, or none of its genes is on the panel.
    """
    resolve.choice("by", by, ("score", "projection"))
    rows = resolve.limit(n)
    placed = place(connection, check_signature(signature))
    frames = []
    for where in resolve.contexts(connection, context):
        ranked = _rank(_predicted(connection, placed, where), by, mimic=mimic)
        shown = ranked.head(rows)
        measured = _measured(connection, placed, where, shown["target_key"].to_list(), mimic)
        frames.append(shown.join(measured, on="target_key", how="left", maintain_order="left"))
    return pl.concat(frames).with_columns(n_signature=pl.lit(placed.n_genes)).select(
        pl.col(name).cast(dtype) for name, dtype in REVERSE.items()
    )  # fmt: skip


def _predicted(
    connection: duckdb.DuckDBPyConnection, signature: Signature, where: resolve.Context
) -> pl.DataFrame:
    """Return the scores of every knock-down in one context.

    The effects of a gene are one contiguous read in the order of the targets, so the deltas alone
    are read, and the order says which is which.
    """
    targets = table(
        connection,
        "select t.target_key, t.target_gene, t.target_gene_id, t.evidence, t.gene_key,"
        " e.effect_size from effect_sizes e join targets t using (target_key)"
        f" where e.context_key = {where.key} and not e.is_measured order by t.target_key",
    )
    keys = ", ".join(map(str, signature.keys))
    column = connection.sql(
        f"select delta from effects_by_gene where context_key = {where.key}"
        f" and gene_key in ({keys})"
    ).to_arrow_table()["delta"]
    if len(column) != len(signature.keys) * targets.height or targets.is_empty():
        msg = f"the effects in {where.context} are not complete; build the database again."
        raise DatabaseError(msg)
    deltas = column.to_numpy().reshape(len(signature.keys), targets.height)  # (G, T)
    rows = {key: row for row, key in enumerate(signature.keys)}
    own = np.array([rows.get(key, -1) for key in targets["gene_key"]])
    found = project(deltas, signature.weights, own)
    return targets.with_columns(
        context=pl.lit(where.context), **{name: pl.Series(value) for name, value in found.items()}
    )


def _rank(frame: pl.DataFrame, by: By, *, mimic: bool) -> pl.DataFrame:
    scores = ("score", "projection", "up_score", "down_score")
    frame = frame.with_columns(
        (pl.col(name) * (-1 if mimic else 1)).fill_nan(None) for name in scores
    ).with_columns(
        both_arms=(pl.col("up_score") > 0) & (pl.col("down_score") > 0),
        direction=pl.lit("mimic" if mimic else "reverse"),
    )
    frame = frame.with_columns(
        both_arms=pl.when(pl.col("up_score").is_not_null() & pl.col("down_score").is_not_null())
        .then("both_arms")
    )  # fmt: skip
    order = ("both_arms", by, "target_gene_id")
    frame = frame.sort(*order, descending=[True, True, False], nulls_last=True)
    frame = frame.with_columns(rank=pl.int_range(1, pl.len() + 1), n_ranked=pl.len())
    return frame.sort(pl.col("evidence") == "predicted_unseen", "rank")


def _measured(
    connection: duckdb.DuckDBPyConnection,
    signature: Signature,
    where: resolve.Context,
    targets: list[int],
    mimic: bool,
) -> pl.DataFrame:
    """Return measured score and projection of some knock-downs, where they were measured."""
    weights: Mapping[str, Any] = {"keys": list(signature.keys), "weights": list(signature.weights)}
    keys = ", ".join(map(str, targets))
    sign = 1 if mimic else -1
    return table(
        connection,
        f"""
        with weights as (select unnest($keys) as gene_key, unnest($weights) as weight)
        select e.target_key, {sign} * sum(w.weight * e.delta)
                / nullif(sqrt(sum(e.delta::double * e.delta) * sum(w.weight * w.weight)), 0)
                as measured_score,
            {sign} * sum(w.weight * e.delta) / sum(abs(w.weight)) as measured_projection
        from measured_by_target e
        join targets t using (target_key)
        join weights w on w.gene_key = e.gene_key
        where e.context_key = {where.key} and e.target_key in ({keys})
            and e.delta is not null and e.gene_key is distinct from t.gene_key
        group by e.target_key
        """,
        weights,
    )
