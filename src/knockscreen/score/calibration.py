"""How sure a ranking is: p-values against decoys, matched knock-downs, and the noise they show.

T targets of one program, context and kind of evidence, J decoys of that kind.

- Decoys carry the noise that is a target's own, but not the error of the control's mean: that moves
  all targets of a context alike. What all targets share, as far as that error explains it, is
  taken out before they are compared with decoys (:func:`shared_shift`).
- ``p = (b + 1) / (J + 1)`` with b decoys as extreme or more, in each direction; fewer than
  :data:`FEWEST_DECOYS` give no p-value. Of genes never knocked down it says that their features
  single them out, which is not that the model is right about them: they get no FDR.
- Measured scores have decoys that are measured (:mod:`knockscreen.score.measured_decoys`), and are
  counted in units of their own error, as real cells are not denoised.
- Whether it is this program, or any genes like these, is asked by its score among those of random
  programs (:mod:`.random_programs`): their mean taken off, in units of their sd. Noise lies along
  few axes, of which a program has more or less, so that inert knock-downs stand out of random
  programs too often; hence decoys say how far is far, those of all programs together.
- :func:`direction_p_value` asks whether a knock-down moves the program more than others of its
  size do: is it this direction, or just a strong knock-down?
"""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from knockscreen.names import Direction, Evidence
from knockscreen.score.statistics import benjamini_hochberg

Floats = NDArray[np.float64]

FEWEST_DECOYS = 20
"""With fewer decoys the smallest p-value is 0.05 or more: none is given."""
SHARED = 2.0
"""Standard errors of the control's mean that a shift shared by all targets may have."""
MATCHED = 100
"""Knock-downs of like magnitude that a direction is judged by."""

SIGN = {Direction.TOWARD: 1.0, Direction.AWAY: -1.0}


def shared_shift(scores: Floats, decoys: Floats, control_error: float) -> float:
    """Return how far the targets lie from the decoys together, as far as control error explains.

    The difference of medians, cut at :data:`SHARED` standard errors of the control's score.

    >>> shared_shift(np.array([0.1, 0.2, 0.9]), np.array([-0.1, 0.0, 0.1]), 0.05)
    0.1
    """
    if not len(decoys):
        return 0.0
    limit = SHARED * control_error
    return float(np.clip(np.median(scores) - np.median(decoys), -limit, limit))


def empirical_p_value(scores: Floats, null: Floats) -> Floats:
    """Return ``(b + 1) / (n + 1)`` with b of n null values at least as large; NaN below 20.

    >>> empirical_p_value(np.array([19.5, 25.0]), np.arange(20.0) + 1).round(4).tolist()
    [0.0952, 0.0476]
    """
    if len(null) < FEWEST_DECOYS:
        return np.full(len(scores), np.nan)
    ordered = np.sort(null)
    at_least = len(null) - np.searchsorted(ordered, scores, side="left")
    return np.asarray((at_least + 1) / (len(null) + 1))


def direction_p_value(scores: Floats, magnitude: Floats, matched: int = MATCHED) -> Floats:
    """Return ``(b + 1) / (n + 1)``, b of n knock-downs of like magnitude with at least this score.

    Parameters
    ----------
    scores
        (T,) signed so that larger is better.
    magnitude
        (T,) norm of each knock-down's effect over all genes but its own. The others' scores are
        scaled to the magnitude of the one that is judged. NaN where it is 0.
    matched
        Neighbours in magnitude, on both sides; fewer than :data:`FEWEST_DECOYS` in all give NaN.
    """
    found = np.full(len(scores), np.nan)
    known = np.flatnonzero(magnitude > 0)
    n = min(matched, len(known) - 1)
    if n < FEWEST_DECOYS:
        return found
    order = known[np.argsort(magnitude[known], kind="stable")]
    relative = scores[order] / magnitude[order]
    position = np.arange(len(order))
    start = np.clip(position - n // 2, 0, len(order) - n - 1)
    windows = np.lib.stride_tricks.sliding_window_view(relative, n + 1)[start]  # (T, n + 1)
    at_least = (windows >= relative[:, None]).sum(axis=1) - 1  # not itself
    found[order] = (at_least + 1) / (n + 1)
    return found


def calibrated(
    rows: pl.DataFrame, decoys: pl.DataFrame, every: pl.DataFrame | None = None
) -> pl.DataFrame:
    """Return predicted scores of one program with what the nulls say of them.

    Added are ``p_value``, ``fdr``, ``program_specificity_p`` and ``direction_p``, each for both
    directions (``p_value_toward``, ...), ``n_decoys``, and ``noise_sd``: the error of a score that
    its few training cells leave, which ``score_sd`` then holds beside the spread over draws; and
    ``shared_sd``, an error that all scores of a kind have together.

    Parameters
    ----------
    rows, decoys
        context, target_gene_id, evidence, score, score_sd (over draws), magnitude,
        specific_toward, specific_away, random_z, control_error.
    every
        context, evidence and random_z of the decoys of all programs; None: those of ``decoys``.
    """
    every = decoys if every is None else every
    parts = []
    for (context, evidence), part in rows.group_by("context", "evidence", maintain_order=True):
        here = decoys.filter(pl.col("context") == context)
        null = here.filter(pl.col("evidence") == evidence).drop_nulls("score")
        beside = rows.filter(pl.col("context") == context)
        noise = _noise(part, beside, here, str(evidence))
        found = part.with_columns(
            pl.lit(noise, pl.Float64).alias("noise_sd"),
            pl.lit(_shared_error(part, here, str(evidence)), pl.Float64).alias("shared_sd"),
            *_against(part, null, every.filter(context=context, evidence=evidence)),
        )
        spread = (pl.col("score_sd").fill_null(0.0).pow(2) + noise**2).sqrt() if noise else None
        parts.append(found if spread is None else found.with_columns(score_sd=spread))
    return pl.concat(parts).sort("context", "target_gene_id") if parts else rows


def calibrated_measured(
    rows: pl.DataFrame, decoys: pl.DataFrame, every: pl.DataFrame | None = None
) -> pl.DataFrame:
    """Return the measured scores of one program and source with what the nulls say of them.

    The columns that :func:`calibrated` adds, but of the errors: measured scores have their own.
    Scores and decoys are counted in units of their ``own_error``, so that few cells are no find.

    Parameters
    ----------
    rows, decoys
        context, score, own_error, random_z; rows also control_error, magnitude, specific_toward,
        specific_away. A target or decoy without own_error is not counted.
    every
        context and random_z of the decoys of all programs; None: those of ``decoys``.
    """
    every = decoys if every is None else every
    parts = []
    for (context,), part in rows.group_by("context", maintain_order=True):
        null = decoys.filter(pl.col("context") == context).drop_nulls(["score", "own_error"])
        null = null.filter(pl.col("own_error") > 0)
        parts.append(part.with_columns(*_against(part, null, every.filter(context=context))))
    return pl.concat(parts) if parts else rows


def _against(
    part: pl.DataFrame, null: pl.DataFrame, every: pl.DataFrame
) -> list[pl.Expr | pl.Series]:
    """Return all that decoys, random programs and other knock-downs say of one family."""
    counted = pl.lit(len(null), pl.Int32).alias("n_decoys")
    return [counted, *_specificity(part, every), *_p_values(part, null)]


def _specificity(part: pl.DataFrame, every: pl.DataFrame) -> list[pl.Series]:
    """Return how far scores stand out of random programs, counted against decoys if there are."""
    null = _numbers(every, "random_z")
    null = null[np.isfinite(null)]
    out = []
    for direction, sign in SIGN.items():
        p = _numbers(part, f"specific_{direction.value}")
        if len(null) >= FEWEST_DECOYS:
            known = np.isfinite(p)
            p[known] = empirical_p_value(sign * _numbers(part, "random_z")[known], sign * null)
        out.append(pl.Series(f"program_specificity_p_{direction.value}", p).fill_nan(None))
    return out


def _p_values(part: pl.DataFrame, null: pl.DataFrame) -> list[pl.Series]:
    """Return p-values, FDR and direction p-values in both directions; NULL where there is none."""
    score, unit = _numbers(part, "score"), _numbers(part, "own_error", 1.0)
    magnitude, error = _numbers(part, "magnitude"), _numbers(part, "control_error")
    of_null, null_unit = _numbers(null, "score"), _numbers(null, "own_error", 1.0)
    known = np.isfinite(score)
    tested = known & (unit > 0)
    limit = float(np.median(error[np.isfinite(error)])) if np.isfinite(error).any() else 0.0
    shift = shared_shift(score[known], of_null, limit) if known.any() else 0.0
    out = []
    for direction, sign in SIGN.items():
        found = {name: np.full(len(score), np.nan) for name in ("p_value", "direction_p")}
        moved = sign * (score[tested] - shift) / unit[tested]
        found["p_value"][tested] = empirical_p_value(moved, sign * of_null / null_unit)
        found["direction_p"][known] = direction_p_value(sign * score[known], magnitude[known])
        unseen = (part["evidence"] == Evidence.PREDICTED_UNSEEN.value).to_numpy()
        found["fdr"] = benjamini_hochberg(np.where(unseen, np.nan, found["p_value"]))
        out += [
            pl.Series(f"{name}_{direction.value}", values).fill_nan(None)
            for name, values in found.items()
        ]
    return out


def _numbers(rows: pl.DataFrame, column: str, otherwise: float = float("nan")) -> Floats:
    """Return a column as numbers, NULL as NaN; ``otherwise`` everywhere if there is no such."""
    if column not in rows.columns:
        return np.full(len(rows), otherwise)
    return rows[column].cast(pl.Float64).fill_null(float("nan")).to_numpy().copy()


def _noise(
    part: pl.DataFrame, rows: pl.DataFrame, decoys: pl.DataFrame, evidence: str
) -> float | None:
    """Return the error of estimation of a score: sd; None where no decoys tell.

    Of trained targets it is the spread of their decoys, less what is Monte-Carlo. Of genes never
    knocked down it is what a prediction that is right on average leaves open: the variance of
    trained targets beyond their own error, less the variance of the predictions.
    """
    seen = decoys.filter(pl.col("evidence") == Evidence.PREDICTED_SEEN).drop_nulls("score")
    if len(seen) < FEWEST_DECOYS:
        return None
    own = _variance(seen)
    if evidence == Evidence.PREDICTED_SEEN:
        return float(np.sqrt(own))
    trained = rows.filter(pl.col("evidence") == Evidence.PREDICTED_SEEN).drop_nulls("score")
    if len(trained) < FEWEST_DECOYS:
        return None
    return float(np.sqrt(max(_variance(trained) - own - _variance(part.drop_nulls("score")), own)))


def _shared_error(part: pl.DataFrame, decoys: pl.DataFrame, evidence: str) -> float:
    """Return how far all predictions of genes never knocked down may be off together.

    Features that tell little give every such gene the average effect of the trained targets;
    whether genes that nobody chose to knock down do that, or nothing, is not known. 0 of trained
    targets.
    """
    zero = decoys.filter(pl.col("evidence") == Evidence.PREDICTED_SEEN).drop_nulls("score")
    here = part.drop_nulls("score")
    if evidence == Evidence.PREDICTED_SEEN or len(zero) < FEWEST_DECOYS or here.is_empty():
        return 0.0
    return float(abs(np.median(here["score"].to_numpy()) - np.median(zero["score"].to_numpy())))


def _variance(rows: pl.DataFrame) -> float:
    """Return the variance of scores over targets, less their mean Monte-Carlo variance."""
    if len(rows) < 2:
        return 0.0
    error = rows["score_sd"].fill_null(0.0).to_numpy()
    return max(float(rows["score"].to_numpy().var(ddof=1) - (error**2).mean()), 0.0)
