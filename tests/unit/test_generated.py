"""Generated cells: each a function of seed, context, draw and target, and marked as generated."""

import anndata
import numpy as np
import pytest

from fixtures.models import CONTEXTS, load_sampler, tiny_store, train_models
from knockscreen.config import DataConfig
from knockscreen.data.cells import CellStore
from knockscreen.data.counts import Inputs
from knockscreen.errors import DataError, UnknownNameError
from knockscreen.generated import (
    generate_cells,
    resolve_contexts,
    resolve_target,
    resolve_targets,
    write_cells,
)
from knockscreen.names import NTC
from knockscreen.sampling import Sampler

PAIRS = [("ENSG00", CONTEXTS[0]), ("ENSG05", CONTEXTS[1]), (NTC, CONTEXTS[0])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generated")
    return train_models(CellStore.open(tiny_store(folder / "store")), folder)


@pytest.fixture(scope="module")
def sampler(folder) -> Sampler:
    return load_sampler(folder)


def counts(sampler, pairs, draws, **changes):
    """Counts of all cells in one array."""
    return np.concatenate([c.counts for c in generate_cells(sampler, pairs, draws, **changes)])


def test_a_cell_depends_on_no_other_cell_of_the_file(sampler):
    whole = counts(sampler, PAIRS, 9)
    assert np.array_equal(counts(sampler, PAIRS, 9, at_once=4), whole)
    assert np.array_equal(counts(sampler, PAIRS[1:2], 5), whole[9:14])


def test_another_seed_makes_other_cells(folder, sampler):
    other = load_sampler(folder, seed=6)
    assert (counts(other, PAIRS[:1], 9) != counts(sampler, PAIRS[:1], 9)).any()


def test_counts_scatter_around_the_decoded_means_as_the_nb_says(sampler):
    (cells,) = generate_cells(sampler, PAIRS[:1], 400)
    target = sampler.target("ENSG00")
    noise, library = sampler.noise(CONTEXTS[0], range(400))
    names = [CONTEXTS[0]] * 400
    mu, theta = sampler.decode(sampler.latents(target, names, noise), library, target, names)
    mu, theta = mu.numpy(), theta.numpy()
    z = (cells.counts - mu) / np.sqrt(mu + mu**2 / theta)
    assert abs(z.mean()) < 0.06  # 4,800 values of unit variance: five standard errors
    assert 0.85 < z.var() < 1.15


def test_the_file_says_what_each_cell_is(sampler, tmp_path):
    assert write_cells(tmp_path / "cells.h5ad", sampler, PAIRS, 3, {"run": "tiny"}) == 9
    cells = anndata.read_h5ad(tmp_path / "cells.h5ad")
    assert cells.obs["target_gene"].tolist() == ["G0"] * 3 + ["G5"] * 3 + [NTC] * 3
    seen, unseen = "predicted_seen", "predicted_unseen"
    assert cells.obs["evidence"].tolist() == [seen] * 3 + [unseen] * 3 + [seen] * 3
    assert cells.obs["is_control"].tolist() == [False] * 6 + [True] * 3
    assert cells.obs["donor"].tolist() == ["D1"] * 3 + ["D2"] * 3 + ["D1"] * 3
    assert cells.obs["draw"].tolist() == [0, 1, 2] * 3
    assert np.array_equal(cells.obs["library_size"][:3], cells.obs["library_size"][6:])
    assert np.array_equal(cells.X.toarray(), counts(sampler, PAIRS, 3))
    assert cells.obsm["z"].shape == (9, 64)
    about = cells.uns["knockscreen"]
    assert (about["generated"], about["seed"], about["run"]) == (True, 5, "tiny")


def test_a_file_of_no_cells_can_be_written_and_read(sampler, tmp_path):
    assert write_cells(tmp_path / "none.h5ad", sampler, [], 3) == 0
    assert anndata.read_h5ad(tmp_path / "none.h5ad").shape == (0, 12)


def test_generated_cells_are_no_input_of_a_screen(sampler, tmp_path):
    write_cells(tmp_path / "cells.h5ad", sampler, PAIRS, 2)
    cells = anndata.read_h5ad(tmp_path / "cells.h5ad")
    del cells.uns["knockscreen"]  # as after concatenation with real cells
    cells.write_h5ad(tmp_path / "mixed.h5ad")
    del cells.obs["evidence"]
    cells.write_h5ad(tmp_path / "unmarked.h5ad")
    data = DataConfig(
        files=[], preset="generic", layer=None, columns={}, contexts={"donor": "donor"},
        control_labels=[NTC], where={},
    )  # fmt: skip
    for name in ("cells", "mixed"):
        with pytest.raises(DataError, match="holds cells that 'knockscreen generate' made"):
            Inputs([tmp_path / f"{name}.h5ad"], data)
    with Inputs([tmp_path / "unmarked.h5ad"], data) as inputs:
        assert inputs.n_cells == 6


def test_targets_go_by_symbol_or_id_and_measured_means_those_trained(sampler):
    assert resolve_target(sampler, "g5") == resolve_target(sampler, "ensg05") == "ENSG05"
    names = ["G1", "measured", NTC]
    assert resolve_targets(sampler, names) == ["ENSG01", "ENSG00", "ENSG02", "ENSG99", NTC]
    with pytest.raises(UnknownNameError, match="unknown target 'G99'; nearest: G9"):
        resolve_targets(sampler, ["G99"])


def test_a_context_factor_left_out_means_each_of_its_levels(sampler):
    v = sampler.model.vocabulary
    assert resolve_contexts(v, CONTEXTS, "time=Rest") == CONTEXTS
    assert resolve_contexts(v, CONTEXTS, None) == CONTEXTS
    assert resolve_contexts(v, CONTEXTS, "time=Rest,donor=D2") == CONTEXTS[1:]


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        ("doner=D1", "unknown context factor 'doner' in 'doner=D1'; nearest: donor"),
        ("donor=D9", "unknown donor 'D9' in context 'donor=D9'; nearest: D2, D1"),
        ("donor=D2", "no training cells in context 'donor=D2'; nearest: donor=D1,time=Rest"),
    ],
)
def test_unknown_contexts_are_refused_by_name(sampler, wanted, sentence):
    with pytest.raises(UnknownNameError, match=sentence):
        resolve_contexts(sampler.model.vocabulary, CONTEXTS[:1], wanted)
