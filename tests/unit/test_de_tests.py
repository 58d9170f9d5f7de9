"""What calls really DE genes: Welch's t or rank sums, of held-out cells and of their halves."""

import numpy as np
import pytest
from scipy import stats

from fixtures.evaluated import G, write_evaluated
from knockscreen.config import EvaluateConfig
from knockscreen.names import SPLITS, Split
from knockscreen.score.cases import halves_case, make_case
from knockscreen.score.cells import open_store
from knockscreen.score.holdout import (
    HELD_OUT_TARGET,
    SCREENED,
    RankedControls,
    read_holdout,
    split_halves,
)

SETTINGS = EvaluateConfig(
    splits="all", min_cells=8, de_test="rank_sum", neighbours=2, components=2, references=50,
    cells=100, resamples=50,
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return write_evaluated(tmp_path_factory.mktemp("de") / "p") / "store"


@pytest.fixture(scope="module")
def held(place):
    return read_holdout(place, seed=1, ranks=True)


def by_scipy(store, target, split):
    """Return p-values of one context of the stored cells, the target's own gene left out."""
    cells = open_store(store)
    splits = np.load(store / "split.npy")
    logged = np.log1p(cells.cp10k(cells.rows).toarray())
    here = cells.context == 0
    mine = logged[here & (cells.target == target) & (splits == SPLITS.index(split))]
    control = logged[here & (cells.target == 0) & (splits == SPLITS.index(Split.TEST))]
    return stats.mannwhitneyu(mine, control, axis=0, method="asymptotic").pvalue


@pytest.mark.parametrize(
    ("name", "split"), [(SCREENED, Split.TEST), (HELD_OUT_TARGET, Split.HELD_OUT_TARGET)]
)
def test_de_genes_of_a_context_are_scipys(place, held, name, split):
    case = make_case(held, name, held.contexts[0], [0], settings=SETTINGS)
    assert len(case.targets)
    for i, target in enumerate(case.targets):
        p = by_scipy(place, target, split)
        z = held.held.z[target, 0]
        assert 2 * stats.norm.sf(np.abs(z)) == pytest.approx(p, rel=1e-4)  # kept in float32
        others = np.arange(G) != case.own[i]
        called = stats.false_discovery_control(p[others]) < 0.05
        assert case.is_de[i, others].tolist() == called.tolist()
        assert not case.is_de[i, case.own[i]]


def test_planted_genes_are_found_in_all_contexts_and_t_stays_welchs(place, held):
    pooled = make_case(held, HELD_OUT_TARGET, "all", [0, 1], settings=SETTINGS)
    welch = make_case(read_holdout(place, seed=1), HELD_OUT_TARGET, "all", [0, 1],
                      settings=SETTINGS)  # fmt: skip
    for i, target in enumerate(pooled.targets):
        assert pooled.is_de[i, (target + 2) % G]
    assert (np.nan_to_num(pooled.t) == np.nan_to_num(welch.t)).all()


def test_halves_that_judge_are_compared_with_the_control_of_their_half(place, held):
    cells, splits = open_store(place), np.load(place / "split.npy")
    logged = np.log1p(cells.cp10k(cells.rows).toarray())
    second = []
    for code in (0, 2):
        out = np.flatnonzero((cells.target == code) & (splits == SPLITS.index(Split.TEST)))
        half, _ = split_halves(cells, out, cells.guide, np.random.default_rng([1, code]))
        second.append(logged[out[(half == 1) & (cells.context[out] == 1)]])
    exact = stats.mannwhitneyu(second[1], second[0], axis=0, method="asymptotic").pvalue
    first, judging = held.halves[0]
    assert first.z is None  # it only predicts
    assert 2 * stats.norm.sf(np.abs(judging.z[2, 1])) == pytest.approx(exact, rel=1e-4)
    case = make_case(held, HELD_OUT_TARGET, "all", [0, 1], settings=SETTINGS)
    judged, _ = halves_case(held, case)
    for i, target in enumerate(judged.targets):
        assert judged.is_de[i, (target + 2) % G]


def test_cells_that_are_like_control_are_not_called(tmp_path):
    called = tests = 0
    for seed in range(8):
        store = write_evaluated(tmp_path / str(seed), seed=seed, size=0.0) / "store"
        null = read_holdout(store, seed=1, ranks=True)
        for split in (SCREENED, HELD_OUT_TARGET):
            case = make_case(null, split, "all", [0, 1], settings=SETTINGS)
            called, tests = called + case.is_de.any(axis=1).sum(), tests + len(case.targets)
    assert tests == 48
    assert called <= 7  # of 5 % of 48 on average


def test_a_context_without_control_cells_is_not_compared(place):
    cells = open_store(place)
    controls = np.flatnonzero((cells.target == 0) & (cells.context == 0))
    z = RankedControls(cells, controls).z(np.flatnonzero(cells.target == 1))
    assert np.isfinite(z[0]).all()
    assert np.isnan(z[1]).all()
