"""The positive-control gate: whether the ranking of a program is to be believed.

T targets, K controls. A positive control is a knock-down whose effect on a program is published:
``away`` where it removes a driver, ``toward`` where it removes an inhibitor. Its *percentile* is
the share of the other knock-downs that its score beats in that direction. Per program, context and
kind of evidence:

- ``auroc``: the mean percentile of the controls; with one direction it is the AUROC. Chance 0.5.
- ``auprc``: average precision, per direction against the other knock-downs, weighted by controls;
  ``auprc_chance`` is the share of controls, likewise.
- ``sign_share``: share of controls whose score has the published sign.
- ``permutation_p``: share of random sets of as many knock-downs, in the same directions, that reach
  the AUROC, ``(b + 1) / (n + 1)``. The units are knock-downs: generated cells are free.

- ``program_p``: share of random programs that the controls move as far in their directions
  (:mod:`knockscreen.score.control_effects`). Controls of one pathway move together, so that a
  random program may have a high AUROC as well; it does not have the size.

A program passes in a context if AUROC, sign and both p reach their settings, and stays
``exploratory`` everywhere if it fails in more than half of the contexts that are reported (the
pooled ones, if any is).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from knockscreen.artifacts import atomic, read_json
from knockscreen.config import GateConfig, ProgramsConfig, Section
from knockscreen.errors import DataError
from knockscreen.gene_names import GeneNames
from knockscreen.names import Direction, Evidence
from knockscreen.score.control_effects import ControlEffects, read_control_effects
from knockscreen.score.metrics import average_precision
from knockscreen.score.programs import ProgramMatrix
from knockscreen.score.random_programs import control_background
from knockscreen.score.text_tables import missing_column, read_text_table
from knockscreen.score.verdicts import (
    CONTROLS,
    EXPLORATORY,
    GATES,
    NOT_TESTED,
    PASSED,
    PREDICTED,
    over_contexts,
)

PERMUTATIONS = 999
COLUMNS = ("program", "gene", "direction", "source")
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
ProgramP = Callable[[Sequence[str], Floats], float | None]


class GateStage(Section):
    """Sections of the configuration that the gate depends on."""

    programs: ProgramsConfig
    gate: GateConfig


@dataclass(frozen=True)
class Outcome:
    """How the controls of one program did among the knock-downs of one context."""

    percentile: Floats  # (K,)
    n_others: int
    auroc: float
    auprc: float
    auprc_chance: float
    sign_share: float
    permutation_p: float


def read_controls(path: Path | str) -> pl.DataFrame:
    """Return the control table in ``path`` (TSV) as program, gene, direction, source.

    Raises
    ------
    DataError
        The file is missing or no table, lacks a column, names a control twice, or gives a direction
        that is neither toward nor away.
    """
    instead = f"set gate.controls to a TSV of {', '.join(COLUMNS)}"
    table = read_text_table(path, "control file", instead)
    for column in COLUMNS:
        if column not in table.columns:
            raise DataError(missing_column(f"control file '{path}'", [column], table.columns))
    table = table.select(pl.col(name).str.strip_chars() for name in COLUMNS)
    for program, gene, direction, _ in table.iter_rows():
        if direction not in set(Direction):
            msg = (
                f"direction '{direction}' of {gene} for {program} in '{path}' is neither toward nor"
                " away; say what the knock-down does to the program."
            )
            raise DataError(msg)
    twice = table.filter(pl.struct("program", "gene").is_duplicated())
    if not twice.is_empty():
        program, gene = twice.row(0)[:2]
        msg = f"control {gene} stands twice for {program} in '{path}'; keep one row."
        raise DataError(msg)
    return table


def percentiles(scores: Floats, controls: Ints, signs: Floats) -> Floats:
    """Return the share of other targets that each control beats in its direction, ties as half.

    Parameters
    ----------
    scores
        (T,) scores of all targets.
    controls
        (..., K) positions of the controls; the rest are the others.
    signs
        (K,) 1 for toward, -1 for away.

    Examples
    --------
    >>> scores = np.array([-2.0, -1.0, 0.0, 3.0])
    >>> percentiles(scores, np.array([0, 3]), np.array([-1.0, 1.0])).tolist()
    [1.0, 1.0]
    """
    ordered = np.sort(scores)
    own = scores[controls]  # (..., K)
    below = np.searchsorted(ordered, own, "left") + np.searchsorted(ordered, own, "right")
    pairs = np.sign(own[..., :, None] - own[..., None, :]) + 1  # (..., K, K) 2 won, 1 tied, 0 lost
    won = (below - pairs.sum(axis=-1)) / 2  # the controls themselves are taken out again
    share = won / (len(scores) - controls.shape[-1])
    return np.asarray(np.where(signs > 0, share, 1 - share))


@cache
def _random_sets(targets: int, controls: int) -> Ints:
    """Return :data:`PERMUTATIONS` sets of distinct targets, shape (R, K), always the same ones."""
    rng = np.random.default_rng([targets, controls])
    sets = [rng.choice(targets, controls, replace=False) for _ in range(PERMUTATIONS)]
    return np.stack(sets)


def judge(scores: Floats, controls: Ints, signs: Floats) -> Outcome:
    """Return how K controls do among T targets; at least one target must be no control."""
    percentile = percentiles(scores, controls, signs)
    auroc = float(percentile.mean())
    by_chance = percentiles(scores, _random_sets(len(scores), len(controls)), signs).mean(axis=-1)
    others = np.delete(scores, controls)
    precision, chance = 0.0, 0.0
    for sign in (-1.0, 1.0):
        arm = scores[controls[signs == sign]]
        if len(arm):
            of = np.repeat([True, False], [len(arm), len(others)])
            share = len(arm) / len(controls)
            precision += share * average_precision(sign * np.concatenate([arm, others]), of)
            chance += share * len(arm) / len(of)
    return Outcome(
        percentile=percentile,
        n_others=len(others),
        auroc=auroc,
        auprc=precision,
        auprc_chance=chance,
        sign_share=float(np.mean(np.sign(scores[controls]) == signs)),
        permutation_p=float((np.sum(by_chance >= auroc - 1e-12) + 1) / (len(by_chance) + 1)),
    )


def _verdict(
    outcome: Outcome, program_p: float | None, settings: GateConfig
) -> tuple[str, str | None]:
    """Return whether the controls of one context pass, and why not."""
    failures = []
    if outcome.auroc < settings.min_auroc:
        failures.append(f"AUROC {outcome.auroc:.2f} < {settings.min_auroc:g}")
    if outcome.sign_share < settings.min_sign:
        failures.append(f"published sign in {outcome.sign_share:.0%} < {settings.min_sign:.0%}")
    if outcome.permutation_p > settings.max_p:
        failures.append(f"permutation p {outcome.permutation_p:.2g} > {settings.max_p:g}")
    if program_p is not None and program_p > settings.max_p:
        failures.append(f"random programs move as far: p {program_p:.2g} > {settings.max_p:g}")
    return (EXPLORATORY, "; ".join(failures)) if failures else (PASSED, None)


def _among(controls: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """Return the controls that are among knock-downs with their rows there, each knock-down once.

    Raises
    ------
    DataError
        Two controls of opposite directions are one knock-down.
    """
    known = GeneNames(rows["target_gene_id"], rows["target_gene"])
    at = pl.Series([known.find(gene) for gene in controls["gene"]], dtype=pl.UInt32)
    found = controls.with_columns(position=at).join(
        rows, on="position", how="inner", maintain_order="left"
    )
    twice = found.filter(pl.col("direction").n_unique().over("position") > 1)
    if not twice.is_empty():
        one, other = twice.filter(pl.col("position") == twice["position"][0])["gene"].head(2)
        msg = f"controls {one} and {other} are one gene, in opposite directions; keep one row."
        raise DataError(msg)
    return found.unique("position", maintain_order=True)


def gate_context(
    rows: pl.DataFrame,
    controls: pl.DataFrame,
    settings: GateConfig,
    null: ProgramP | None = None,
) -> tuple[pl.DataFrame, dict[str, object]]:
    """Return the rows of the controls, and the gate, of one program, context and evidence.

    Parameters
    ----------
    rows
        target_gene, target_gene_id, score of every knock-down of that kind; no NULL scores.
    controls
        gene (symbol or Ensembl id), direction, source: all of that program.
    null
        Gives ``program_p`` of the controls found, from their ids and signs; None: it stays NULL.
    """
    rows = rows.sort("target_gene_id").with_row_index("position")
    found = _among(controls, rows)
    of = f"{found.height} of {controls.height} controls are among these knock-downs"
    blank = {"n_controls": found.height, "n_others": rows.height - found.height}
    if controls.is_empty():
        return found.head(0), blank | {
            "control_status": NOT_TESTED, "control_reason": "no controls for this program",
        }  # fmt: skip
    if found.height < settings.min_controls or found.height >= rows.height:
        few = f"{of}, {settings.min_controls} are needed, and others"
        return found, blank | {"control_status": NOT_TESTED, "control_reason": few}
    scores, position = rows["score"].to_numpy(), found["position"].to_numpy().astype(np.int64)
    signs = np.where(found["direction"].to_numpy() == Direction.TOWARD, 1.0, -1.0)
    outcome = judge(scores, position, signs)
    program_p = null(found["target_gene_id"].to_list(), signs) if null else None
    status, reason = _verdict(outcome, program_p, settings)
    found = found.with_columns(
        percentile=pl.Series(outcome.percentile), sign_right=np.sign(scores[position]) == signs
    )
    return found, blank | {
        "control_status": status, "control_reason": reason, "auroc": outcome.auroc,
        "auprc": outcome.auprc, "auprc_chance": outcome.auprc_chance,
        "sign_share": outcome.sign_share, "permutation_p": outcome.permutation_p,
        "program_p": program_p,
    }  # fmt: skip


def _kinds(rows: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Return the rows of each kind of evidence that is judged."""
    kinds = {str(name): part for (name,), part in rows.group_by("evidence", maintain_order=True)}
    predicted = rows.filter(pl.col("evidence") != Evidence.MEASURED)
    return dict(sorted(kinds.items())) | ({PREDICTED: predicted} if predicted.height else {})


def gate_program(
    program: str,
    scores: pl.DataFrame,
    controls: pl.DataFrame,
    settings: GateConfig,
    effects: ControlEffects | None = None,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the control rows and the gates of one program, in every context and kind of evidence.

    Parameters
    ----------
    scores
        context, target_gene, target_gene_id, evidence, score of one program.
    controls
        All controls, as :func:`read_controls` returns them.
    effects
        Of the controls: they say whether random programs would do as well.
    """
    of_program = controls.filter(pl.col("program") == program).drop("program")
    control_rows, gates = [pl.DataFrame(schema=CONTROLS)], []
    scores = scores.drop_nulls("score").sort("context", "evidence", "target_gene_id")
    p_values = effects.p_values(program) if effects is not None and len(of_program) else None
    for (context,), part in scores.group_by("context", maintain_order=True):
        for evidence, rows in _kinds(part).items():
            null = None
            if p_values is not None:
                null = partial(p_values, str(context), evidence)
            found, gate = gate_context(rows, of_program, settings, null)
            key = {"program": program, "context": context, "evidence": evidence}
            if evidence != PREDICTED:
                labels = [pl.lit(value, pl.String).alias(name) for name, value in key.items()]
                missing = [
                    pl.lit(None).alias(n) for n in ("percentile", "sign_right") if n not in found
                ]
                found = found.with_columns(*labels, *missing).select(*CONTROLS)
                control_rows.append(found.cast(pl.Schema(CONTROLS)))
            gates.append(key | gate)
    return pl.concat(control_rows), over_contexts(pl.DataFrame(gates, schema=GATES))


def effects_of_controls(
    controls: pl.DataFrame,
    programs: ProgramMatrix,
    store: Path,
    predicted: Sequence[Path],
    measured: Path | None,
) -> ControlEffects:
    """Return the effects of every control of a run, and what control cells say of its panel."""
    described = {gene["gene_id"]: gene["gene"] for gene in read_json(store / "store.json")["genes"]}
    targets = {
        target["target_gene_id"]: target["target_gene"]
        for target in read_json(store / "store.json")["targets"]
    }
    named = set(controls["gene"])
    ids = [i for i, name in (described | targets).items() if i in named or name in named]
    background = control_background(store, programs)
    return read_control_effects(predicted, measured, ids, programs, background)


def write_gates(
    programs: Iterable[tuple[str, pl.DataFrame]],
    controls: pl.DataFrame,
    settings: GateConfig,
    paths: Sequence[Path],
    effects: ControlEffects | None = None,
) -> pl.DataFrame:
    """Write the control rows and the gates of all programs to two Parquet files; return the gates.

    ``programs`` gives the scores of one program after another, so that memory does not grow with
    their number.
    """
    parts = [gate_program(name, scores, controls, settings, effects) for name, scores in programs]
    rows = pl.concat([pl.DataFrame(schema=CONTROLS), *(part[0] for part in parts)])
    gates = pl.concat([pl.DataFrame(schema=GATES), *(part[1] for part in parts)])
    with atomic(paths[0]) as first, atomic(paths[1]) as second:
        rows.write_parquet(first)
        gates.write_parquet(second)
    return gates
