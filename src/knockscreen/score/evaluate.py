"""Metrics of every method, target by target and over all of them.

P targets of a case, G panel genes, K programs. A method is the model, a baseline or the ceiling;
all go through the same code. What is undefined is NULL with its reason.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from knockscreen.score import metrics
from knockscreen.score.cases import Case, halves_case
from knockscreen.score.holdout import Holdout
from knockscreen.score.metrics import ALL, METRICS
from knockscreen.score.programs import ProgramMatrix
from knockscreen.score.statistics import perfect_predictor_correlation, spearman

Array = NDArray[np.floating]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MODEL, SPLIT_HALF, CEILING, EVERY = "model", "split_half", "ceiling", "all"
SCHEMA = {
    "split": pl.String,
    "context": pl.String,
    "target_gene_id": pl.String,
    "target_gene": pl.String,
    "method": pl.String,
    "metric": pl.String,
    "program": pl.String,
    "value": pl.Float64,
    "best": pl.Float64,
    "n": pl.Int64,
    "reason": pl.String,
}
"""Columns of ``metrics.parquet``; ``target_gene`` is "all" for the mean over targets."""

FEW_TARGETS = "fewer than 2 targets to tell apart"
NO_DE = "no gene is differentially expressed in the real cells"
NO_CALL = "no gene is called"
CONSTANT = "one side is constant"
NO_REFERENCE = "fewer than 2 screened targets to take the mean of"
NO_HALF = "no cells in one of the halves"
DISAGREE = "the halves are not correlated"
FEW_SCORES = "fewer than 3 targets with different scores"
WHY_UNDEFINED = {
    "pearson_delta": CONSTANT,
    "pearson_delta_top50": CONSTANT,
    "pearson_delta_perturbed_mean": CONSTANT,
    "discrimination_score_l1": FEW_TARGETS,
    "centroid_accuracy": FEW_TARGETS,
    "weighted_r2_de": NO_DE,
    "direction_match": NO_DE,
    "de_overlap_at_n": NO_DE,
    "de_precision": NO_CALL,
    "de_recall": NO_DE,
    "de_auprc": NO_DE,
}


@dataclass(frozen=True)
class Answer:
    """One method's values in one case."""

    method: str
    case: Case
    values: dict[str, Floats]  # metric -> (P,)
    scores: Floats  # (P, K) program scores of the prediction
    real_scores: Floats  # (P, K) those of the cells that judge
    missing: str  # why there is no prediction where there is none
    has: NDArray[np.bool_]  # (P,) whether there is a prediction
    repeats: tuple["Answer", ...] = ()  # of the ceiling: one for each halving of the same targets


def judge(
    case: Case,
    method: str,
    predicted: Floats,
    programs: ProgramMatrix,
    *,
    simulation: Floats | float = 0.0,
    missing: str = "",
) -> Answer:
    """Return every metric of a predicted delta (P, G).

    Parameters
    ----------
    simulation
        (P, G) squared Monte-Carlo error of the prediction, which its calls take into account.
    missing
        Reason for rows that are NaN.
    """
    has: NDArray[np.bool_] = np.asarray(np.isfinite(predicted).all(axis=1))
    made, real = case.masked(predicted), case.masked(case.real)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(case.expected > 0, made / np.sqrt(case.expected + simulation), np.nan)
    called = metrics.expected_calls(t)
    values = {name: np.full(len(case.targets), np.nan) for name in METRICS}
    for i in np.flatnonzero(has):
        one = _of_target(made[i], real[i], case, (t[i], called[i]), int(i))
        for name, value in one.items():
            values[name][i] = value
    values |= told_apart(case, predicted)
    scores = program_scores(predicted, case.own, programs)
    real_scores = program_scores(case.real, case.own, programs)
    return Answer(method, case, values, scores, real_scores, missing, has)


def told_apart(case: Case, predicted: Floats) -> dict[str, Floats]:
    """Return the discrimination score and the centroid accuracy (P,) of a predicted delta (P, G).

    Of a pooled held-out context: the mean over the contexts, weighted by the target's cells.
    """
    if case.parts:
        total: dict[str, Floats] = {}
        weight = np.zeros(len(case.targets))
        for part in case.parts:
            _, mine, theirs = np.intersect1d(case.targets, part.targets, return_indices=True)
            share = case.weights[mine, list(case.members).index(part.members[0])]
            weight[mine] += share
            for name, value in told_apart(part.take(theirs), predicted[mine]).items():
                total.setdefault(name, np.zeros(len(weight)))[mine] += share * value
        blank = np.where(weight > 0, weight, np.nan)
        return {name: value / blank for name, value in total.items()}
    rivals = case.rivals
    unmasked = replace(rivals, own=np.full(len(rivals.real), -1))
    counts = metrics.farther(predicted, case.centroid, case.own, unmasked, squared=False)
    found = {"discrimination_score_l1": metrics.discrimination_score(*counts, rivals.targets)}
    counts = metrics.farther(predicted, case.centroid, case.own, rivals, squared=True)
    return found | {"centroid_accuracy": metrics.centroid_accuracy(*counts)}


def _of_target(
    made: Floats, real: Floats, case: Case, calls: tuple[Floats, NDArray[np.bool_]], i: int
) -> dict[str, float]:
    """Return the metrics of one target, its own gene NaN in both deltas."""
    t, called = calls
    top, de = metrics.most_changed(real), case.is_de[i]
    precision, recall = metrics.precision_recall(called, de)
    found = {
        "pearson_delta": metrics.pearson(made, real),
        "pearson_delta_top50": metrics.pearson(made[top], real[top]),
        "mae_delta": metrics.mae(made, real),
        "weighted_r2_de": metrics.weighted_r2(made, real, np.where(de, np.abs(case.t[i]), 0.0)),
        "direction_match": metrics.direction_match(made, real, de),
        "de_overlap_at_n": metrics.overlap_at_n(made, called, real, de),
        "de_precision": precision,
        "de_recall": recall,
        "de_auprc": metrics.average_precision(np.abs(t), de),
    }
    if case.reference is not None:
        rest = made - case.reference, real - case.reference
        found["pearson_delta_perturbed_mean"] = metrics.pearson(*rest)
    return found


def program_scores(delta: Floats, own: Ints, programs: ProgramMatrix) -> Floats:
    """Return program scores (P, K) of deltas (P, G), each target's own gene left out."""
    out = np.full((len(delta), len(programs.names)), np.nan)
    whole, _ = programs.without(-1)
    for i, gene in enumerate(own):
        in_program = gene >= 0 and bool(np.any(programs.weights[:, gene] != 0))
        weights = programs.without(int(gene))[0] if in_program else whole
        out[i] = weights @ delta[i]
    return out


def ceiling(held: Holdout, case: Case, programs: ProgramMatrix) -> Answer:
    """Return how one half of the held-out cells predicts the other: a repeat of the experiment.

    The mean over all halvings, of the targets that have cells in both halves each time.
    """
    answers = []
    for repeat in range(held.repeats):
        judged, predicted = halves_case(held, case, repeat)
        answer = judge(judged, SPLIT_HALF, predicted, programs, missing=NO_HALF)
        answers.append(replace(answer, case=judged.outline()))
    common = functools.reduce(np.intersect1d, [a.case.targets for a in answers])
    answers = [_take(a, np.flatnonzero(np.isin(a.case.targets, common))) for a in answers]
    values = {name: _mean([a.values[name] for a in answers]) for name in METRICS}
    return replace(answers[0], values=values, repeats=tuple(answers))


def _take(answer: Answer, rows: Ints) -> Answer:
    values = {name: value[rows] for name, value in answer.values.items()}
    return replace(
        answer, case=answer.case.take(rows), values=values, scores=answer.scores[rows],
        real_scores=answer.real_scores[rows], has=answer.has[rows],
    )  # fmt: skip


def _mean(values: Sequence[Floats]) -> Floats:
    """Return the mean of arrays over those that are defined; NaN where none is."""
    stacked = np.stack(values)
    there = np.isfinite(stacked).sum(axis=0)
    return np.asarray(np.nansum(stacked, axis=0) / np.where(there > 0, there, np.nan))


def aggregate(values: Floats) -> float:
    """Return the mean over targets of the values that are defined."""
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def reason(metric: str, answer: Answer, value: float, i: int) -> str | None:
    """Return why a target's value is undefined, or None where it is defined."""
    if np.isfinite(value):
        return None
    if not answer.has[i]:
        return answer.missing
    if metric == "pearson_delta_perturbed_mean" and answer.case.reference is None:
        return NO_REFERENCE
    if metric == "de_auprc" and answer.case.is_de[i].any():
        return "every gene is differentially expressed in the real cells"
    return WHY_UNDEFINED.get(metric, CONSTANT)


def spearman_over_targets(answer: Answer) -> Floats:
    """Return Spearman's correlation (K,) of predicted and real program scores over targets.

    Of the ceiling: the mean over its halvings.
    """
    if answer.repeats:
        return _mean([spearman_over_targets(one) for one in answer.repeats])
    pairs = zip(answer.scores.T, answer.real_scores.T, strict=True)
    return np.array([spearman(made, real) for made, real in pairs])


def as_ceiling(answer: Answer) -> Answer:
    """Return the split-half answer as ceiling: correlations corrected to the full measurement.

    Each target's by itself, before any mean over targets: the correction is concave, so that of a
    mean over strong and inert targets promises what no prediction can reach. A target whose halves
    do not agree has a ceiling of 0.
    """
    values = {
        name: np.where(np.isnan(value), np.nan, [_corrected(r) for r in value])
        if METRICS[name].is_correlation
        else value
        for name, value in answer.values.items()
    }
    return replace(answer, method=CEILING, values=values)


def _corrected(split_half: float) -> float:
    return perfect_predictor_correlation(split_half) if split_half > 0 else 0.0


def rows(
    answer: Answer, ids: Sequence[str], symbols: dict[str, str], programs: Sequence[str]
) -> Iterator[pl.DataFrame]:
    """Yield the rows of one answer: per target, over targets, and per program.

    For the ceiling give the answer of the halves; it yields both ``split_half`` and ``ceiling``.
    """
    methods = [answer, as_ceiling(answer)] if answer.method == SPLIT_HALF else [answer]
    named = [ids[code] for code in answer.case.targets]
    for one in methods:
        for name, values in one.values.items():
            why = [reason(name, one, v, i) for i, v in enumerate(values)]
            about = {"target_gene_id": named, "target_gene": [symbols[t] for t in named]}
            yield _frame(one, name, about | {"value": values, "n": one.case.n, "reason": why})
            yield _frame(one, name, _total(aggregate(values), why))
        yield _programs(one, programs)


def _total(value: float, why: Sequence[str | None]) -> dict[str, object]:
    """Return the row over targets: how many had a value, and why the others had none."""
    missing = [text for text in why if text is not None]
    counted = [f"{missing.count(text)} of {len(why)}: {text}" for text in dict.fromkeys(missing)]
    defined = len(why) - len(missing)
    return {
        "target_gene_id": [None], "target_gene": [EVERY], "value": [value], "n": [defined],
        "reason": ["; ".join(counted) or None],
    }  # fmt: skip


def _programs(one: Answer, programs: Sequence[str]) -> pl.DataFrame:
    """Return Spearman per program, and their mean with no program's name."""
    raw = spearman_over_targets(one)
    raw = np.append(raw, aggregate(raw))
    both = np.isfinite(one.scores) & np.isfinite(one.real_scores)
    n = [*both.sum(axis=0).tolist(), int(np.isfinite(raw[:-1]).sum())]
    is_ceiling = one.method == CEILING
    values = [perfect_predictor_correlation(r) if is_ceiling else r for r in raw.tolist()]
    blank = one.missing if not one.has.any() else FEW_SCORES
    why = [
        None if np.isfinite(v) else (DISAGREE if np.isfinite(r) else blank)
        for v, r in zip(values, raw, strict=True)
    ]
    size = len(values)
    about = {
        "target_gene_id": [None] * size, "target_gene": [EVERY] * size, "value": values, "n": n,
        "reason": why, "program": [*programs, None],
    }  # fmt: skip
    return _frame(one, "program_spearman", about)


def _frame(answer: Answer, metric: str, columns: dict[str, object]) -> pl.DataFrame:
    size = len(np.atleast_1d(np.asarray(columns["value"], dtype=object)))
    fixed = {
        "split": answer.case.split, "context": answer.case.context, "method": answer.method,
        "metric": metric, "best": ALL[metric].best,
    }  # fmt: skip
    full = {name: [value] * size for name, value in fixed.items()} | {"program": [None] * size}
    frame = pl.DataFrame(full | columns, schema={name: SCHEMA[name] for name in SCHEMA})
    return frame.with_columns(pl.col("value").fill_nan(None))
