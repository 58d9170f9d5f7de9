"""What the real cells say: measured effects and program scores beside the predicted ones.

T targets, C separate contexts, X contexts to report (separate and pooled), G panel genes,
P programs, R split halves. Cells are read one target at a time.

- ``delta``: mean log1p CP10k of a target's cells minus that of the control cells of the same
  context; CP10k uses the library size over all genes.
- ``log2_fold_change``: of mean CP10k, with the pseudocount of :mod:`knockscreen.score.effects`.
- ``standard_error`` and ``p_value`` of delta: over pseudobulks of replicate units (guides, or
  wells or batches), see :mod:`knockscreen.score.replicates`; over pooled contexts the units of all
  of them. ``fdr``: Benjamini-Hochberg over the genes of a target and context, or, of program
  scores, over the targets of a program and context.
- Where a side has fewer than two units, cells of one culture are no replicates: ``p_value`` is
  NULL, and the standard error is Welch's with cells as units, ``sqrt(var_t / n_t + var_c / n_c)``
  (NULL with fewer than two cells on a side), a lower bound.
- A pooled context is the unweighted mean over the contexts in which the target was measured.
- Beside each score: ``own_error`` and ``control_error``, the parts of its error from the target's
  cells and from the control's; ``guide_concordance``, the share of the target's guides whose own
  score has its sign (NULL with fewer than two); what random programs and its magnitude say.
- Decoys (:mod:`knockscreen.score.measured_decoys`) are scored beside, for the rankings.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from knockscreen.artifacts import atomic
from knockscreen.config import MeasuredConfig, NonNegative, ProgramsConfig, RankConfig, Section
from knockscreen.score.cells import StoredCells, open_store
from knockscreen.score.contexts import pooled_contexts
from knockscreen.score.effects import log2_fold_change
from knockscreen.score.halves import ceiling_table
from knockscreen.score.measured_decoys import decoy_table, own_error
from knockscreen.score.moments import (
    SPLIT_HALVES,
    Controls,
    Moments,
    TargetScores,
    group_moments,
    measure_controls,
    pseudobulks,
    replicate_units,
    score_target,
)
from knockscreen.score.programs import ProgramMatrix
from knockscreen.score.random_programs import Beside, ProgramNull
from knockscreen.score.replicates import (
    ReplicateKind,
    Replicates,
    judge,
    moderate,
    overdispersion,
    pooled_variance,
)
from knockscreen.score.statistics import benjamini_hochberg

log = logging.getLogger(__name__)

ROWS_PER_WRITE = 500_000
WRITTEN = ("effects", "programs", "ceiling", "decoys")

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class MeasureStage(Section):
    """Sections of the configuration that measuring depends on."""

    seed: NonNegative
    programs: ProgramsConfig
    rank: RankConfig
    measured: MeasuredConfig


EFFECT_SCHEMA = pa.schema(
    [
        ("target_gene_id", pa.string()),
        ("context", pa.string()),
        ("gene_id", pa.string()),
        ("log2_fold_change", pa.float32()),
        ("delta", pa.float32()),
        ("standard_error", pa.float32()),
        ("n_cells", pa.int32()),
        ("n_control_cells", pa.int32()),
        ("n_replicates", pa.int32()),
        ("n_control_replicates", pa.int32()),
        ("is_target", pa.bool_()),
        ("p_value", pa.float64()),
        ("fdr", pa.float64()),
    ]
)


def target_effects(
    cells: StoredCells,
    chosen: Ints,
    controls: Controls,
    replicates: Replicates,
    *,
    groups: dict[str, list[int]],
    target_gene_id: str,
) -> pa.Table:
    """Return the long effects of one target in every context with cells of it, and pooled.

    ``replicates`` are the target's pseudobulks.
    """
    moments = group_moments(cells, cells.rows[chosen], cells.context[chosen], len(cells.contexts))
    control = controls.moments
    welch = moments.variance / moments.n[:, None] + _control_squared_error(control)
    delta = moments.mean - control.mean
    variance = pooled_variance(moments.variance, moments.n, control.variance, control.n)
    gene_ids = np.array(cells.gene_ids)
    order = np.argsort(gene_ids, kind="stable")
    tables = []
    for name, members in groups.items():
        there = [i for i in members if moments.n[i] > 0]
        if not there:
            continue
        mean = delta[there].mean(axis=0)
        phi = moderate(*overdispersion(replicates, controls.replicates, variance, there))
        error, p = judge(mean, phi, variance, (moments.n, control.n), there)
        cell_error = np.sqrt(welch[there].sum(axis=0)) / len(there)
        columns = [
            log2_fold_change(moments.cp10k[there].mean(axis=0), control.cp10k[there].mean(axis=0)),
            mean,
            np.where(np.isnan(error), cell_error, error),
            np.full(len(order), moments.n[there].sum()),
            np.full(len(order), control.n[there].sum()),
            np.full(len(order), replicates.units[there].sum()),
            np.full(len(order), controls.replicates.units[there].sum()),
            gene_ids == target_gene_id,
            p,
            benjamini_hochberg(p),
        ]
        keys = [[target_gene_id] * len(order), [name] * len(order), gene_ids[order].tolist()]
        arrays = [pa.array(key) for key in keys]
        for column, kind in zip(columns, EFFECT_SCHEMA.types[3:], strict=True):
            values = column[order].astype(kind.to_pandas_dtype())
            arrays.append(pa.array(values, kind, from_pandas=True))  # NaN becomes NULL
        tables.append(pa.Table.from_arrays(arrays, schema=EFFECT_SCHEMA))
    return pa.concat_tables(tables)


def _control_squared_error(moments: Moments) -> Floats:
    return np.asarray(moments.variance / moments.n[:, None])


@dataclass
class _Collected:
    """Program scores of all targets, filled in target by target; NaN where not measured."""

    score: Floats  # (T, X, P)
    error: Floats  # (T, X, P)
    p_value: Floats  # (T, X, P)
    units: NDArray[np.int64]  # (T, X) replicate units
    own_error: Floats  # (T, X, P) without that of the control
    control_error: Floats  # (T, X, P)
    guide_concordance: Floats  # (T, X, P)
    halves: NDArray[np.float32]  # (R, 2, T, X, P)
    n_genes: NDArray[np.int64]  # (T, P)
    n_cells: NDArray[np.int64]  # (T, X)
    beside: Beside

    @classmethod
    def empty(cls, t: int, x: int, p: int) -> "_Collected":
        numbers = ("score", "error", "p_value", "own_error", "control_error", "guide_concordance")
        return cls(
            **{name: np.full((t, x, p), np.nan) for name in numbers},
            units=np.zeros((t, x), dtype=np.int64),
            halves=np.full((SPLIT_HALVES, 2, t, x, p), np.nan, dtype=np.float32),
            n_genes=np.zeros((t, p), dtype=np.int64),
            n_cells=np.zeros((t, x), dtype=np.int64),
            beside=Beside.empty(p, x, t),
        )

    def add(
        self,
        i: int,
        found: TargetScores,
        counts: tuple[Floats, Floats],
        groups: dict[str, list[int]],
    ) -> None:
        """Add a target; ``counts`` are its cells and the control cells by context."""
        self.n_genes[i] = found.n_genes
        for x, members in enumerate(groups.values()):
            there = [c for c in members if counts[0][c] > 0]
            if there:
                self.n_cells[i, x] = counts[0][there].sum()
                self.units[i, x] = found.replicates[0].units[there].sum()
                score = self.score[i, x] = found.score[there].mean(axis=0)
                phi = overdispersion(*found.replicates, found.cell_variance, there)
                error, self.p_value[i, x] = judge(score, phi, found.cell_variance, counts, there)
                sides = found.replicates
                own = own_error(score, sides, found.cell_variance, counts[0], there)
                self.own_error[i, x] = own
                of_control = own_error(score, sides, found.cell_variance, counts[1], there)
                self.control_error[i, x] = of_control
                self.guide_concordance[i, x] = found.guides.concordance(score, there)
                cell_error = np.sqrt(found.variance[there].sum(axis=0)) / len(there)
                self.error[i, x] = np.where(np.isnan(error), cell_error, error)
                self.halves[:, :, i, x] = found.halves[:, :, there].mean(axis=2)

    def table(
        self, programs: ProgramMatrix, contexts: Sequence[str], targets: Sequence[str]
    ) -> pl.DataFrame:
        """Return the rows of what was measured, sorted by program, context and target."""
        # Of all targets of a context and program, T last.
        fdr = np.moveaxis(benjamini_hochberg(np.moveaxis(self.p_value, 0, -1)), -1, 0)
        i, x, p = np.nonzero(np.repeat(self.n_cells[:, :, None] > 0, len(programs.names), axis=2))
        frame = pl.DataFrame(
            {
                "program": np.array(programs.names)[p],
                "context": np.array(contexts)[x],
                "target_gene_id": np.array(targets)[i],
                "score": self.score[i, x, p],
                "standard_error": self.error[i, x, p],
                "n_genes": self.n_genes[i, p].astype(np.int32),
                "score_half_a": self.halves[0, 0, i, x, p].astype(np.float64),
                "score_half_b": self.halves[0, 1, i, x, p].astype(np.float64),
                "n_cells": self.n_cells[i, x].astype(np.int32),
                "n_replicates": self.units[i, x].astype(np.int32),
                "p_value": self.p_value[i, x, p],
                "fdr": fdr[i, x, p],
                "own_error": self.own_error[i, x, p],
                "control_error": self.control_error[i, x, p],
                "guide_concordance": self.guide_concordance[i, x, p],
                "magnitude": self.beside.magnitude[x, i],
                "specific_toward": self.beside.toward[p, x, i],
                "specific_away": self.beside.away[p, x, i],
                "random_z": self.beside.z[p, x, i],
            }
        )
        return frame.fill_nan(None).sort("program", "context", "target_gene_id")


def _deltas(
    effects: pa.Table, contexts: Sequence[str], gene_ids: Sequence[str], own: int
) -> Floats:
    """Return the deltas (X, G) of one target in panel order, 0 where it has none; its gene is 0."""
    found = np.zeros((len(contexts), len(gene_ids)))
    rows = effects["delta"].to_numpy().reshape(-1, len(gene_ids))
    names = effects["context"].to_pylist()[:: len(gene_ids)]
    place = np.array([list(contexts).index(name) for name in names], dtype=np.int64)
    found[place[:, None], np.argsort(np.array(gene_ids))] = np.nan_to_num(rows)
    if own >= 0:
        found[:, own] = 0.0
    return found


def _write_effects(path: Path, tables: Iterator[pa.Table]) -> None:
    waiting: list[pa.Table] = []
    with pq.ParquetWriter(path, EFFECT_SCHEMA, compression="zstd") as writer:
        for table in tables:
            waiting.append(table)
            if sum(t.num_rows for t in waiting) >= ROWS_PER_WRITE:
                writer.write_table(pa.concat_tables(waiting))
                waiting = []
        if waiting:
            writer.write_table(pa.concat_tables(waiting))


def write_measured(
    store: Path | str,
    output_dir: Path | str,
    programs: ProgramMatrix,
    pool_over: Sequence[str],
    *,
    seed: int,
    splits: Sequence[str] = (),
    replicates: ReplicateKind = "auto",
    null: ProgramNull | None = None,
) -> list[Path]:
    """Measure every target; write effects, programs, ceiling and decoys, each a Parquet file.

    ``replicates`` says what a replicate unit is (:func:`replicate_units`), ``null`` has the random
    programs that each score is compared with.

    Each target's halves come from its own random stream, (seed, code of the target), so that they
    do not depend on the other targets.
    """
    cells = open_store(store, splits)
    groups = pooled_contexts(cells.contexts, pool_over)
    unit = replicate_units(cells, replicates)
    controls = measure_controls(cells, programs, unit, np.random.default_rng([seed, 0]))
    by_target = np.argsort(cells.target, kind="stable")
    codes, starts = np.unique(cells.target[by_target], return_index=True)
    members = dict(zip(codes.tolist(), np.split(by_target, starts[1:]), strict=True))
    members.pop(0)
    columns = {gene_id: i for i, gene_id in enumerate(cells.gene_ids)}
    collected = _Collected.empty(len(members), len(groups), len(programs.names))

    def tables() -> Iterator[pa.Table]:
        for i, (code, chosen) in enumerate(members.items()):
            name = cells.target_gene_ids[code]
            n = np.bincount(cells.context[chosen], minlength=len(cells.contexts)).astype(float)
            own, bulks = pseudobulks(cells, chosen, unit, programs.columns)
            rng = np.random.default_rng([seed, code])
            found = score_target(
                cells, chosen, columns.get(name, -1),
                programs=programs, controls=controls, bulks=bulks, rng=rng,
            )  # fmt: skip
            collected.add(i, found, (n, controls.moments.n), groups)
            effects = target_effects(
                cells, chosen, controls, own, groups=groups, target_gene_id=name
            )
            deltas = _deltas(effects, list(groups), cells.gene_ids, columns.get(name, -1))
            collected.beside.add(i, deltas, collected.score[i].T, null)
            yield effects
            if (i + 1) % 100 == 0 or i + 1 == len(members):
                log.info("measured %d of %d knock-downs", i + 1, len(members))

    paths = [Path(output_dir) / f"{name}.parquet" for name in WRITTEN]
    with ExitStack() as stack:
        effects, scores, ceiling, decoys = (stack.enter_context(atomic(path)) for path in paths)
        _write_effects(effects, tables())
        names = [cells.target_gene_ids[code] for code in members]
        collected.table(programs, list(groups), names).write_parquet(scores)
        ceiling_table(collected.halves, programs.names, list(groups)).write_parquet(ceiling)
        table = decoy_table(cells, programs, unit, groups, seed=seed, null=null)
        table.write_parquet(decoys)
    return paths
