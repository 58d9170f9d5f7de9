"""Metrics that carry cell-eval's names give cell-eval's numbers."""

import numpy as np
import pytest
from scipy import sparse

from knockscreen.score.metrics import (
    FDR,
    Rivals,
    direction_match,
    discrimination_score,
    farther,
    mae,
    pearson,
)
from knockscreen.score.rank_sums import rank_sum_test, sort_controls
from knockscreen.score.statistics import benjamini_hochberg

pytestmark = pytest.mark.filterwarnings("ignore")

TARGETS = ["g0", "g1", "g2", "g3", "off"]
GENES = [f"g{k}" for k in range(12)]


def profiles(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return log1p cells (6, 5, G) of control and the targets, and their deltas (5, G)."""
    rng = np.random.default_rng(seed)
    cells = rng.gamma(2.0, 0.5, (6, 5, len(GENES)))
    cells[1:] += rng.normal(0, 0.3, (5, 1, len(GENES)))
    means = cells.mean(axis=1)
    return cells, means[1:] - means[0]


@pytest.fixture(scope="module")
def theirs() -> dict[str, dict[str, float]]:
    import anndata
    import pandas as pd
    from cell_eval._types import PerturbationAnndataPair
    from cell_eval.metrics import _anndata as cell_eval

    sides = []
    for seed in (0, 1):
        cells, _ = profiles(seed)
        obs = pd.DataFrame({"target_gene": np.repeat(["non-targeting", *TARGETS], 5)})
        obs.index = obs.index.astype(str)
        x = cells.reshape(-1, len(GENES))
        sides.append(anndata.AnnData(x, obs, pd.DataFrame(index=GENES)))
    pair = PerturbationAnndataPair(
        real=sides[0], pred=sides[1], pert_col="target_gene", control_pert="non-targeting"
    )
    return {
        "pearson_delta": cell_eval.pearson_delta(pair),
        "mae_delta": cell_eval.mae_delta(pair),
        "discrimination_score_l1": cell_eval.discrimination_score(pair, metric="l1"),
    }


def test_pearson_and_mae_of_delta_are_those_of_cell_eval(
    theirs: dict[str, dict[str, float]],
) -> None:
    (_, real), (_, made) = profiles(0), profiles(1)
    for i, target in enumerate(TARGETS):
        assert pearson(made[i], real[i]) == pytest.approx(theirs["pearson_delta"][target])
        assert mae(made[i], real[i]) == pytest.approx(theirs["mae_delta"][target])


def test_discrimination_score_is_that_of_cell_eval(theirs: dict[str, dict[str, float]]) -> None:
    (_, real), (_, made) = profiles(0), profiles(1)
    own = np.array([0, 1, 2, 3, -1])
    others = Rivals(real, np.eye(5, dtype=bool), np.full(5, -1), 5)
    ours = discrimination_score(*farther(made, real, own, others, squared=False), 5)
    assert ours == pytest.approx([theirs["discrimination_score_l1"][t] for t in TARGETS])
    assert len(set(ours)) > 1


def test_really_de_genes_by_rank_sums_and_their_directions_are_those_of_cell_eval(tmp_path) -> None:
    import anndata
    import pandas as pd
    from cell_eval import MetricsEvaluator
    from cell_eval.metrics._de import DEDirectionMatch

    group = np.repeat(np.arange(6), 30)
    sides, deltas = [], []
    for seed in (3, 4):
        rng = np.random.default_rng(seed)
        shift = rng.normal(0, 1.2, (6, len(GENES))) * (np.arange(6) > 0)[:, None]
        cells = np.log1p(rng.poisson(np.exp(1 + shift[group])))
        obs = pd.DataFrame({"target_gene": np.array(["non-targeting", *TARGETS])[group]})
        obs.index = obs.index.astype(str)
        sides.append(anndata.AnnData(cells, obs, pd.DataFrame(index=GENES)))
        means = np.stack([cells[group == k].mean(axis=0) for k in range(6)])
        deltas.append(means[1:] - means[0])
    theirs = MetricsEvaluator(
        sides[1], sides[0], pert_col="target_gene", control_pert="non-targeting", num_threads=1,
        outdir=str(tmp_path / "out"), allow_discrete=True,
    ).de_comparison  # fmt: skip
    real = sparse.csr_matrix(sides[0].X)
    found = rank_sum_test(real[group > 0], group[group > 0] - 1, 5, sort_controls(real[group == 0]))
    is_de = benjamini_hochberg(found.p_value) < FDR
    match = DEDirectionMatch()(theirs)
    assert 0 < is_de.sum() < is_de.size
    for i, target in enumerate(TARGETS):
        named = set(theirs.real.get_significant_genes(target).ravel().tolist())
        assert {GENES[g] for g in np.flatnonzero(is_de[i])} == named
        assert direction_match(deltas[1][i], deltas[0][i], is_de[i]) == pytest.approx(match[target])
