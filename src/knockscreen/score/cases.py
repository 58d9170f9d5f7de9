"""One question put to every method: the targets of a split in a context, and what is true of them.

P targets of the case, M member contexts, G panel genes. A pooled context is the mean over its
members weighted by the target's held-out cells, the same weights for the real and every predicted
delta.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from knockscreen.config import EvaluateConfig
from knockscreen.score.contexts import pooled_contexts
from knockscreen.score.holdout import HELD_OUT_CONTEXT, SCREENED, Group, Holdout
from knockscreen.score.metrics import FDR, PRIOR_CELLS, Rivals, moderated_variance, t_test
from knockscreen.score.rank_sums import over_strata
from knockscreen.score.statistics import benjamini_hochberg

Array = NDArray[np.floating]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Case:
    """What the held-out cells say of P targets in one (separate or pooled) context."""

    split: str
    context: str
    targets: Ints  # (P,) codes
    members: Ints  # (M,) contexts
    weights: Floats  # (P, M), each row 1
    own: Ints  # (P,) panel column of the own gene, -1: none
    n: Ints  # (P,) held-out cells
    real: Floats  # (P, G) delta, own gene included
    t: Floats  # (P, G) Welch's, own gene NaN
    is_de: Bools  # (P, G) own gene False
    expected: Floats  # (P, G) squared standard error of an experiment of that many cells
    reference: Floats | None  # (G,) mean real delta of the screened targets
    centroid: Floats  # (P, G) the real delta that is told apart from those of rivals
    rivals: Rivals  # the other targets of a screened case; of any other, all with held-out cells
    rival_targets: Ints  # (R,) codes
    parts: tuple["Case", ...] = ()  # of a pooled held-out context: the separate contexts

    def outline(self) -> "Case":
        """Return the case without its deltas: what is kept beside an answer once it is judged."""
        none = self.real[:, :0]
        rivals = replace(self.rivals, real=self.rivals.real[:, :0])
        return replace(
            self, real=none, t=none, expected=none, centroid=none, rivals=rivals, parts=()
        )

    def take(self, rows: Ints) -> "Case":
        """Return the case of some of its targets."""
        rivals = replace(self.rivals, same=self.rivals.same[rows])
        return replace(
            self, targets=self.targets[rows], weights=self.weights[rows], own=self.own[rows],
            n=self.n[rows], real=self.real[rows], t=self.t[rows], is_de=self.is_de[rows],
            expected=self.expected[rows], centroid=self.centroid[rows], rivals=rivals,
        )  # fmt: skip

    def pool(self, predicted: Array) -> Floats:
        """Return a method's delta (T, C, G) in this case (P, G); NaN where a member has none."""
        chosen = predicted[self.targets[:, None], self.members]  # (P, M, G)
        used = self.weights[:, :, None] > 0
        return np.asarray(
            np.sum(np.where(used, chosen, 0) * self.weights[:, :, None], axis=1, dtype=np.float64)
        )

    def masked(self, values: Floats) -> Floats:
        """Return a copy of (P, G) values with every target's own gene NaN."""
        out = values.astype(np.float64, copy=True)
        rows = np.flatnonzero(self.own >= 0)
        out[rows, self.own[rows]] = np.nan
        return out


def contexts_of(held: Holdout, pool_over: Sequence[str]) -> dict[str, list[int]]:
    """Return the contexts to report: separate, pooled over ``pool_over``, and ``all`` of them."""
    groups = pooled_contexts(held.contexts, pool_over)
    everything = list(range(len(held.contexts)))
    if everything not in groups.values():
        groups["all"] = everything
    return groups


def make_case(
    held: Holdout,
    split: str,
    context: str,
    members: Sequence[int],
    *,
    settings: EvaluateConfig,
) -> Case:
    """Put the question of one split and context to the held-out cells.

    Targets with fewer held-out cells than ``settings.min_cells``, over all members, are left out.
    Screened targets are told apart from each other. Held-out ones may be few, or one: they are
    told apart from all targets, with centroids of as small a share of their cells as those have.
    Held-out contexts are others for each target, so a pooled one is told apart in each of them.
    """
    of_split = held.evaluated(split)[:, members]
    mine = np.where(of_split, held.held.n[:, members], 0)
    targets = np.flatnonzero(mine.sum(axis=1) >= settings.min_cells)
    case = _judge(held, (held.held, held.held.variance), targets, mine, members)
    case = replace(case, split=split, context=context, reference=screened_mean(held, members))
    others = of_split if split == SCREENED else held.split[:, members] >= 0
    others[0] = False
    cells = np.where(others, held.thin.n[:, members], 0)
    mine = np.where(of_split, cells, 0)
    enough = cells.sum(axis=1) >= settings.min_cells
    enough[targets] = True
    every = np.flatnonzero(enough & (cells.sum(axis=1) > 0))
    rng = np.random.default_rng([3, len(every)])
    chosen = np.sort(rng.permutation(every)[: settings.references])
    centroid = pooled(held.thin, targets, mine, members)
    case = replace(case, centroid=centroid)
    centroids = pooled(held.thin, chosen, cells, members)
    if split == HELD_OUT_CONTEXT and len(members) > 1:
        parts = [make_case(held, split, context, [m], settings=settings) for m in members]
        case = replace(case, parts=tuple(part for part in parts if len(part.targets)))
    return with_rivals(held, case, chosen, centroids, len(every))


def with_rivals(held: Holdout, case: Case, codes: Ints, real: Floats, targets: int) -> Case:
    """Return the case with the targets ``codes``, whose centroids are (R, G), as rivals."""
    same = case.targets[:, None] == codes
    return replace(case, rivals=Rivals(real, same, held.own[codes], targets), rival_targets=codes)


def pooled(group: Group, codes: Ints, cells: Ints, members: Sequence[int] | Ints) -> Floats:
    """Return the delta (R, G) of targets over member contexts, weighted by ``cells`` (T, M).

    NaN for a target without cells.
    """
    weights = cells[codes] / np.maximum(cells[codes].sum(axis=1, keepdims=True), 1)
    chosen = group.delta[codes[:, None], np.asarray(members)]
    used = np.where(weights[:, :, None] > 0, chosen, 0)
    out = np.asarray(np.sum(used * weights[:, :, None], axis=1, dtype=np.float64))
    out[weights.sum(axis=1) == 0] = np.nan
    return out


def halves_case(held: Holdout, case: Case, repeat: int = 0) -> tuple[Case, Floats]:
    """Return the case judged by one half of its cells, and the other half's delta as a prediction.

    ``repeat`` is which of the halvings. Only targets and contexts with cells in both halves take
    part. Centroids and rivals of a screened case are of the judging half too; those of the others
    are in it already.
    """
    a, b = held.halves[repeat]
    cells = np.minimum(a.n, b.n)[:, case.members]
    cells = np.where(np.minimum(a.n, b.n)[0, case.members] > 0, cells, 0)
    mine = np.where(held.evaluated(case.split)[:, case.members], cells, 0)
    targets = case.targets[mine[case.targets].sum(axis=1) > 0]
    judged = _judge(held, (b, held.held.variance), targets, mine, case.members)
    judged = replace(judged, split=case.split, context=case.context, reference=case.reference)
    if case.split == SCREENED:
        codes = case.rival_targets[mine[case.rival_targets].sum(axis=1) > 0]
        judged = replace(judged, centroid=judged.real)
        real = pooled(b, codes, mine, case.members)
    else:
        codes, real = case.rival_targets, case.rivals.real
        judged = replace(judged, centroid=case.centroid[np.isin(case.targets, targets)])
    return with_rivals(held, judged, codes, real, case.rivals.targets), judged.pool(a.delta)


def _judge(
    held: Holdout,
    by: tuple[Group, Array],
    targets: Ints,
    cells: Ints,
    members: Sequence[int] | Ints,
) -> Case:
    """Return the case of ``targets`` as one group of cells says, weighted by ``cells`` (T, M).

    A group that was compared by rank sums says by these what is DE, any other by Welch's t.
    """
    group, variance = by
    members = np.asarray(members)
    weights = cells[targets] / np.maximum(cells[targets].sum(axis=1, keepdims=True), 1)
    shape = (len(targets), len(held.gene_ids))
    blank, own = np.full(shape, np.nan), held.own[targets]
    case = Case(
        "", "", targets, members, weights, own, group.n[targets][:, members].sum(axis=1),
        blank, blank.copy(), np.zeros(shape, dtype=bool), blank.copy(), None, blank,
        Rivals(blank[:0], np.zeros((len(targets), 0), dtype=bool), own[:0], 0), targets[:0],
    )  # fmt: skip
    case = replace(case, real=case.pool(group.delta))
    usual = held.train.variance[0].astype(np.float64)  # (C, G)
    for i, target in enumerate(targets):
        used = weights[i] > 0
        inside, w = members[used], weights[i, used][:, None] ** 2
        n = group.n[target, inside][:, None].astype(np.float64)
        n_control = group.n[0, inside][:, None].astype(np.float64)
        of_control = np.nan_to_num(variance[0, inside].astype(np.float64))
        of_target = moderated_variance(variance[target, inside].astype(np.float64), n, of_control)
        parts = np.concatenate([w * of_target / n, w * of_control / n_control])
        freedom = np.concatenate([n - 1 + PRIOR_CELLS, np.maximum(n_control - 1, 1)])
        delta = case.real[i].copy()
        if own[i] >= 0:
            delta[own[i]] = np.nan
        case.t[i], fdr = t_test(delta, parts, freedom)
        if group.z is not None:
            z = np.where(np.isnan(delta), np.nan, group.z[target, inside])
            fdr = benjamini_hochberg(over_strata(z, n[:, 0], n_control[:, 0]))
        case.is_de[i] = np.nan_to_num(fdr, nan=1.0) < FDR
        case.expected[i] = (w * usual[inside] * (1 / n + 1 / n_control)).sum(axis=0)
    return case


def screened_mean(held: Holdout, members: Sequence[int] | Ints) -> Floats | None:
    """Return the mean real held-out delta (G,) of the screened targets over the member contexts.

    Each context's mean over its screened targets, averaged over contexts; None with fewer than two
    screened targets in one of them.
    """
    screened = held.evaluated("screened")
    means = []
    for c in members:
        of = screened[:, c] & (held.held.n[:, c] > 0)
        if of.sum() < 2:
            return None
        values = held.held.delta[of, c].astype(np.float64)
        means.append(np.average(values, axis=0, weights=held.held.n[of, c]))
    return np.asarray(np.mean(means, axis=0))
