"""The ceiling: what halves of the real cells say that a perfect prediction can reach."""

from dataclasses import replace

import numpy as np
import pytest

from fixtures.evaluated import write_evaluated
from knockscreen.score.cases import halves_case
from knockscreen.score.evaluate import aggregate, as_ceiling, ceiling
from knockscreen.score.holdout import REPEATS, read_holdout
from knockscreen.score.programs import ProgramMatrix


@pytest.fixture(scope="module")
def answer(tmp_path_factory):
    from knockscreen.config import EvaluateConfig
    from knockscreen.score.cases import make_case

    held = read_holdout(write_evaluated(tmp_path_factory.mktemp("c") / "p") / "store", seed=1)
    settings = EvaluateConfig(
        splits="all", min_cells=8, de_test="welch", neighbours=2, components=2, references=50,
        cells=100, resamples=50,
    )  # fmt: skip
    case = make_case(held, "screened", "all", [0, 1], settings=settings)
    programs = ProgramMatrix(("A",), np.eye(10)[[3]], held.gene_ids)
    return held, case, ceiling(held, case, programs)


def test_cells_are_halved_again_each_time(answer):
    held, case, found = answer
    assert held.repeats == len(found.repeats) == REPEATS
    first, second = (halves_case(held, case, repeat)[1] for repeat in (0, 1))
    assert np.abs(first - second).max() > 0.01
    values = np.stack([one.values["pearson_delta"] for one in found.repeats])
    np.testing.assert_allclose(found.values["pearson_delta"], values.mean(axis=0))
    assert np.ptp(values, axis=0).max() > 0


def test_strong_and_inert_targets_together_do_not_promise_the_impossible(answer):
    """A perfect prediction reaches 0.97 and 0, so 0.49; the corrected mean would say 0.79."""
    _, _, found = answer
    halves = replace(found, values={**found.values, "pearson_delta": np.array([0.9, 0.0, -0.1])})
    corrected = as_ceiling(halves).values["pearson_delta"]
    np.testing.assert_allclose(corrected, [np.sqrt(1.8 / 1.9), 0, 0])
    assert aggregate(corrected) == pytest.approx(np.sqrt(1.8 / 1.9) / 3)


def test_what_is_undefined_in_the_halves_stays_so(answer):
    _, _, found = answer
    halves = replace(found, values={**found.values, "pearson_delta": np.array([np.nan, 0.5])})
    assert np.isnan(as_ceiling(halves).values["pearson_delta"][0])


def test_halvings_are_kept_without_their_deltas(answer):
    """Five of them at a thousand targets and four thousand genes would be gigabytes."""
    _, case, found = answer
    for one in found.repeats:
        arrays = (one.case.real, one.case.t, one.case.expected, one.case.centroid)
        assert sum(a.size for a in (*arrays, one.case.rivals.real)) == 0
        assert one.case.is_de.shape == (len(found.case.targets), case.real.shape[1])
