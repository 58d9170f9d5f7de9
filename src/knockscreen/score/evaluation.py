"""The evaluation of a run: what was held out, who answers, and the two tables that come of it."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from knockscreen.config import EvaluateConfig, NonNegative, ProgramsConfig, RankConfig, Section
from knockscreen.errors import ConfigError, DataError, suggest
from knockscreen.score import compare
from knockscreen.score.baselines import NO_ANSWER, Training, baselines, read_features
from knockscreen.score.candidates import read_candidates
from knockscreen.score.cases import Case, contexts_of, make_case
from knockscreen.score.evaluate import (
    EVERY,
    MODEL,
    SCHEMA,
    SPLIT_HALF,
    Answer,
    ceiling,
    judge,
    rows,
)
from knockscreen.score.holdout import SPLIT_OF, Holdout, read_holdout, symbols_of
from knockscreen.score.populations import measure_cells
from knockscreen.score.predicted import Predicted, read_predicted
from knockscreen.score.programs import ProgramMatrix, load_programs

log = logging.getLogger(__name__)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FEW_CELLS = "fewer than {} held-out cells"
ONLY_TRAINED = ("measured_training", "low_rank")
"""Baselines that have no answer for a knock-down that was not trained in the context."""


class EvaluateStage(Section):
    """Sections of the configuration that evaluation depends on."""

    seed: NonNegative
    programs: ProgramsConfig
    rank: RankConfig
    evaluate: EvaluateConfig


@dataclass(frozen=True)
class Sources:
    """Where a run keeps what is evaluated."""

    store: Path
    effect: Path
    candidates: Path
    shards: Path
    matched: Path | None


@dataclass(frozen=True)
class Question:
    """What stays the same over all cases."""

    held: Holdout
    predicted: Predicted
    programs: ProgramMatrix
    settings: EvaluateStage
    symbols: dict[str, str]


def evaluate(
    sources: Sources, settings: EvaluateStage
) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, object]]:
    """Return the metrics, their summary against every baseline, and notes on how they came about.

    Raises
    ------
    DataError
        A file is missing, or a split that was asked for holds nothing.
    """
    ranks = settings.evaluate.de_test == "rank_sum"
    held = read_holdout(sources.store, seed=settings.seed, ranks=ranks)
    splits = chosen_splits(held, settings.evaluate)
    evaluated = np.flatnonzero(np.any([held.evaluated(s).any(axis=1) for s in splits], axis=0))
    predicted = read_predicted(sources.shards, read_candidates(sources.candidates), held, evaluated)
    question = Question(
        held, predicted, load_programs(settings.programs, sources.store), settings,
        symbols_of(sources.store),
    )  # fmt: skip
    listed = list_cases(question, splits)
    cases = [case for case in listed if len(case.targets)]
    log.info("evaluating %d targets in %d cases", len(evaluated), len(cases))
    answers = _answers(question, cases, read_features(sources.effect, held))
    tables = [_left_out(question, case) for case in listed]
    summaries: list[pl.DataFrame] = []
    for i, of_case in enumerate(answers):
        tables.append(pl.concat([f for a in of_case.values() for f in _rows(question, a)]))
        rng = np.random.default_rng([settings.seed, 4, i])
        summaries.append(compare.compare(of_case, settings.evaluate.resamples, rng))
    if "screened" in splits and sources.matched is not None:
        rng = np.random.default_rng([settings.seed, 5])
        most = settings.evaluate.cells
        tables.append(measure_cells(sources.store, sources.matched, most=most, rng=rng))
        summaries.append(compare.of_cells(tables[-1]))
    notes: dict[str, object] = {"splits": splits, "halves": held.halved_by}
    order = ["split", "context", "metric", "program", "method", "target_gene_id"]
    metrics = pl.concat(tables).sort(order, nulls_last=False, maintain_order=True)
    summary = pl.concat(summaries).sort("split", "context", "metric", "baseline")
    return metrics, summary, notes


def chosen_splits(held: Holdout, settings: EvaluateConfig) -> list[str]:
    """Return the splits to evaluate: those asked for, or every one that holds cells.

    Raises
    ------
    ConfigError
        There is no split of that name.
    DataError
        A split that was asked for, or every split, holds nothing.
    """
    holding = [name for name in SPLIT_OF if held.evaluated(name).any()]
    if not holding:
        msg = (
            "no split holds out knocked-down cells, so there is nothing to evaluate; raise"
            " splits.test, or hold out targets or contexts, and run normalize again."
        )
        raise DataError(msg)
    if settings.splits == EVERY:
        return holding
    for name in settings.splits:
        if name not in SPLIT_OF:
            msg = f"evaluate.splits names '{name}'{suggest(name, SPLIT_OF)}."
            raise ConfigError(msg)
        if name not in holding:
            msg = (
                f"evaluate.splits asks for '{name}', which holds no cells in this store (these do:"
                f" {', '.join(holding)}); leave it out, or change the section splits."
            )
            raise DataError(msg)
    return list(settings.splits)


def list_cases(question: Question, splits: Sequence[str]) -> list[Case]:
    """Return a case for every split and context, also where no target has enough cells."""
    settings = question.settings
    contexts = contexts_of(question.held, settings.rank.pool_over)
    return [
        make_case(question.held, split, name, members, settings=settings.evaluate)
        for split in splits
        for name, members in contexts.items()
    ]


def _answers(
    question: Question, cases: Sequence[Case], features: Floats | None
) -> list[dict[str, Answer]]:
    """Return the answers of every method in every case, one method made at a time."""
    model = question.predicted
    found: list[dict[str, Answer]] = [{} for _ in cases]
    settings = question.settings.evaluate
    named = baselines(
        Training.of(question.held, features),
        neighbours=settings.neighbours, components=settings.components,
    )  # fmt: skip
    for method in (MODEL, *named):
        delta = model.delta if method == MODEL else named[method]()
        for of_case, case in zip(found, cases, strict=True):
            if method in ONLY_TRAINED and case.split != "screened":
                continue
            error = model.pooled_error(case) if method == MODEL else 0.0
            of_case[method] = judge(
                case, method, case.pool(delta), question.programs, simulation=error,
                missing=NO_ANSWER[method],
            )  # fmt: skip
        log.info("evaluated %s", method)
    for of_case, case in zip(found, cases, strict=True):
        of_case[SPLIT_HALF] = ceiling(question.held, case, question.programs)
    return found


def _rows(question: Question, answer: Answer) -> list[pl.DataFrame]:
    ids, names = question.held.target_gene_ids, question.programs.names
    return list(rows(answer, ids, question.symbols, names))


def _left_out(question: Question, case: Case) -> pl.DataFrame:
    """Return a row per target of the split that has too few held-out cells to be judged at all."""
    held, least = question.held, question.settings.evaluate.min_cells
    there = held.evaluated(case.split)[:, case.members]
    out = np.setdiff1d(np.flatnonzero(there.any(axis=1)), case.targets)
    cells = np.where(there, held.held.n[:, case.members], 0).sum(axis=1)
    names = [held.target_gene_ids[code] for code in out]
    return pl.DataFrame(
        [
            (case.split, case.context, name, question.symbols[name], EVERY, EVERY, None, None,
             None, int(cells[code]), FEW_CELLS.format(least))
            for code, name in zip(out, names, strict=True)
        ],
        schema=SCHEMA, orient="row",
    )  # fmt: skip


def count_undefined(metrics: pl.DataFrame) -> Mapping[str, int]:
    """Return how many values are NULL, by reason."""
    missing = metrics.filter(pl.col("reason").is_not_null() & (pl.col("target_gene") != EVERY))
    counted = missing.group_by("reason").len().sort("len", "reason", descending=[True, False])
    return dict(counted.iter_rows())
