"""Random programs: as many genes, of like expression, as co-expressed, and never the program."""

import numpy as np
import polars as pl
import pytest

from fixtures.models import GENE_IDS, GENES, tiny_store
from knockscreen.score.programs import ProgramMatrix, program_matrix
from knockscreen.score.random_programs import (
    Background,
    Beside,
    ProgramNull,
    coherence,
    control_background,
    random_programs,
)

G = 400


def world(seed=0):
    """Genes of rising expression in modules of ten that are co-expressed (r = 0.5)."""
    rng = np.random.default_rng(seed)
    module = rng.permutation(np.arange(G) // 10)
    correlation = np.where(module[:, None] == module, 0.5, 0.0)
    np.fill_diagonal(correlation, 1.0)
    return module, Background(np.linspace(0, 4, G), correlation, {})


def programs(*rows):
    weights = np.zeros((len(rows), G))
    for k, (genes, values) in enumerate(rows):
        weights[k, genes] = values
    return ProgramMatrix(
        tuple(f"P{k}" for k in range(len(rows))), weights, tuple(map(str, range(G)))
    )


MODULE, BACKGROUND = world()
TIGHT = np.flatnonzero(MODULE == 7), 1.0
LOOSE = np.unique(MODULE, return_index=True)[1][:10], 1.0


def test_coherence_is_the_variance_of_a_sum_over_that_of_unrelated_genes():
    genes = np.array([TIGHT[0], LOOSE[0]])
    found = coherence(genes, np.ones((2, 10)), BACKGROUND.correlation)
    assert found.tolist() == [1 + 9 * 0.5, 1.0]


def test_random_programs_have_the_weights_and_none_of_the_genes():
    signed = (np.array([10, 90, 200, 310]), np.array([1.0, -2.0, 0.5, -0.5]))
    found = random_programs(programs(signed), BACKGROUND, 50)[0]
    assert ((found != 0).sum(axis=1) == 4).all()
    assert (found[:, signed[0]] == 0).all()
    relative = np.sort(found[np.nonzero(found)].reshape(50, 4) / np.abs(found).max(1)[:, None])
    np.testing.assert_allclose(relative, np.tile([-1.0, -0.25, 0.25, 0.5], (50, 1)), rtol=1e-5)


def test_replaced_genes_are_expressed_alike():
    low = (np.arange(0, 20), 1.0)
    found = random_programs(programs(low), BACKGROUND, 100)[0]
    mean = (found != 0) @ BACKGROUND.expression / 20
    assert mean.max() < 0.8 < BACKGROUND.expression.mean()


def test_a_coherent_program_is_compared_with_coherent_ones():
    tight, loose = random_programs(programs(TIGHT, LOOSE), BACKGROUND, 100)
    for found, least, most in ((tight, 1.5, 5.5), (loose, 1.0, 1.5)):
        genes = np.stack([np.flatnonzero(row) for row in found])
        values = coherence(genes, np.ones(genes.shape), BACKGROUND.correlation)
        assert least <= np.median(values) <= most


def test_random_programs_vary_in_control_cells_as_the_program_does():
    """Scores of cells with the correlation that was told: equal variance, whatever was drawn."""
    matrix = programs(TIGHT, LOOSE)
    weights, _ = matrix.without(-1)
    for program, found in zip(weights, random_programs(matrix, BACKGROUND, 40), strict=True):
        own = program @ BACKGROUND.correlation @ program
        others = np.einsum("ng,gh,nh->n", found, BACKGROUND.correlation, found)
        np.testing.assert_allclose(others, own, rtol=1e-4)


def test_the_same_program_draws_the_same_whatever_is_beside_it():
    alone = random_programs(programs(TIGHT), BACKGROUND, 20)[0]
    beside = random_programs(programs(TIGHT, LOOSE), BACKGROUND, 20)[0]
    assert (alone == beside).all()


def test_background_is_of_training_controls(tmp_path):
    folder = tiny_store(tmp_path)
    table = pl.DataFrame({"program": "P", "gene": GENES[3:6], "weight": [1.0, 1.0, -1.0]})
    found = control_background(folder, program_matrix(table, GENE_IDS, GENES))
    assert np.diag(found.correlation) == pytest.approx(np.ones(12))
    assert np.abs(found.correlation[~np.eye(12, dtype=bool)]).max() < 0.6
    assert set(found.error) == {"donor=D1,time=Rest", "donor=D2,time=Rest"}
    assert all(0 < error[0] < 0.2 for error in found.error.values())


def test_sparse_products_count_what_dense_ones_count():
    rng = np.random.default_rng()
    p, n, x, k = 3, 60, 4, 5
    weights = np.where(rng.uniform(size=(p, n, G)) < 0.1, rng.normal(size=(p, n, G)), 0)
    null = ProgramNull(weights.astype(np.float32), {})
    beside = Beside.empty(p, x, k)
    deltas, scores = rng.normal(size=(k, x, G)), rng.normal(size=(k, p, x))
    scores[0, 0] = np.nan
    for i in range(k):
        beside.add(i, deltas[i], scores[i], null)
        moved = np.einsum("png,xg->pnx", weights.astype(np.float32), deltas[i])
        clear = (np.abs(moved - scores[i][:, None]) > 1e-4).all(axis=1)
        for found, far in ((beside.toward, moved >= scores[i][:, None]),
                           (beside.away, moved <= scores[i][:, None])):  # fmt: skip
            share = (far.sum(axis=1) + 1) / (n + 1)
            share = np.where(np.isnan(scores[i]), np.nan, share)
            same = clear | np.isnan(scores[i])
            np.testing.assert_array_equal(found[:, :, i][same], share[same])
