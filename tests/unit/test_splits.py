"""Splits are shares of every target and context, by lots that depend on nothing but the cell."""

import numpy as np
import polars as pl
import pytest
from scipy import stats

from knockscreen.config import SplitsConfig
from knockscreen.data.splits import assign_splits, held_out_targets, lots, split_table
from knockscreen.errors import ConfigError
from knockscreen.names import NTC, SPLITS

TARGETS = [(NTC, NTC), ("STAT1", "ENSG1"), ("JAK2", "ENSG2"), ("GATA3", "ENSG3")]
CONTEXTS = ["donor=D1,time=Rest", "donor=D2,time=Rest", "donor=D2,time=Stim"]


def screen(n: int = 20) -> pl.DataFrame:
    """n cells of each target in each context."""
    rows = [(t, i, c) for t, i in TARGETS for c in CONTEXTS for _ in range(n)]
    return pl.DataFrame(rows, schema=["target_gene", "target_gene_id", "context"], orient="row")


def split(cells: pl.DataFrame, lot=None, **changes) -> pl.Series:
    values = {
        "seed": 1,
        "validation": 0.0,
        "test": 0.0,
        "held_out_targets": [],
        "random_held_out_targets": 0,
        "held_out_contexts": [],
        "decoys": 0,
    }
    config = SplitsConfig.model_validate({**values, **changes})
    lot = lots(config.seed, "a.h5ad", np.arange(cells.height)) if lot is None else lot
    codes = assign_splits(cells, lot, config)
    return pl.Series("split", [str(SPLITS[c]) for c in codes])


def test_lots_are_uniform_and_a_function_of_seed_file_and_row():
    rows = np.arange(20_000)
    lot = lots(1, "a.h5ad", rows)
    assert stats.kstest(lot, "uniform").pvalue > 0.001
    assert (lots(1, "a.h5ad", rows[::-1])[::-1] == lot).all()
    assert (lots(1, "a.h5ad", rows[500:600]) == lot[500:600]).all()
    for other in (lots(2, "a.h5ad", rows), lots(1, "b.h5ad", rows)):
        assert abs(np.corrcoef(lot, other)[0, 1]) < 0.03
    assert abs(np.corrcoef(lot[1:], lot[:-1])[0, 1]) < 0.03


def test_lots_are_the_same_on_every_machine():
    assert lots(1, "a.h5ad", np.array([0, 1])).tolist() == LOTS


LOTS = [0.3882050023793242, 0.15033836420540736]


def test_every_target_and_context_has_its_share():
    cells = screen(20)
    cells = cells.with_columns(split(cells, validation=0.1, test=0.25))
    table = cells.group_by("target_gene", "context").agg(
        *((pl.col("split") == s).sum().alias(s) for s in ("train", "validation", "test"))
    )
    assert table["test"].to_list() == [5] * 12
    assert table["validation"].to_list() == [2] * 12
    assert table["train"].to_list() == [13] * 12


def test_shares_that_are_not_whole_hold_on_average_and_leave_one_to_train():
    cells = pl.DataFrame(
        {"target_gene_id": np.repeat([f"E{k}" for k in range(1000)], 3)}
    ).with_columns(target_gene="target_gene_id", context=pl.lit("all"))
    cells = cells.with_columns(split(cells, test=0.1))
    assert (cells["split"] == "test").mean() == pytest.approx(0.1, abs=0.02)
    one = screen(1)
    assert set(split(one, test=0.5, validation=0.4)) == {"train"}


def test_the_lowest_lots_of_a_target_and_context_test_and_the_next_validate():
    rng = np.random.default_rng()
    cells = screen(40)[np.sort(rng.choice(480, 300, replace=False))]
    lot = rng.integers(0, 50, 300) / 50  # some are equal
    found = split(cells, lot, test=0.23, validation=0.31).to_numpy()
    for target, context in cells.select("target_gene_id", "context").unique().iter_rows():
        mine = (cells["target_gene_id"] == target) & (cells["context"] == context)
        rows = np.flatnonzero(mine.to_numpy())
        names = found[rows[np.argsort(lot[rows], kind="stable")]].tolist()
        n, n_test, n_validation = len(rows), names.count("test"), names.count("validation")
        assert abs(n_test - 0.23 * n) < 1
        assert abs(n_test + n_validation - 0.54 * n) < 1
        expected = ["test"] * n_test + ["validation"] * n_validation
        assert names == expected + ["train"] * (n - len(expected))


def test_the_split_follows_the_cells_when_they_are_shuffled():
    cells = screen()
    lot = lots(1, "a.h5ad", np.arange(cells.height))
    order = np.random.default_rng(0).permutation(cells.height)
    straight = split(cells, lot, test=0.3, validation=0.2, random_held_out_targets=1)
    shuffled = split(cells[order], lot[order], test=0.3, validation=0.2, random_held_out_targets=1)
    assert shuffled.to_list() == straight[order].to_list()


def test_another_seed_gives_another_split():
    cells = screen()
    assert split(cells, test=0.5).to_list() != split(cells, test=0.5, seed=2).to_list()


@pytest.mark.parametrize("name", ["JAK2", "ENSG2"])
def test_a_target_is_held_out_everywhere_by_symbol_or_id(name):
    cells = screen()
    found = split(cells, held_out_targets=[name], test=0.2)
    held = found == "held_out_target"
    assert (held == (cells["target_gene"] == "JAK2")).all()


def test_random_targets_are_never_controls_and_stay_when_others_leave():
    cells = screen()
    config = SplitsConfig(
        seed=3,
        validation=0,
        test=0,
        held_out_targets=["JAK2"],
        random_held_out_targets=1,
        held_out_contexts=[],
        decoys=0,
    )
    held = held_out_targets(cells, config)
    assert len(held) == 2
    assert "ENSG2" in held
    assert NTC not in held
    left = ({"ENSG1", "ENSG3"} - set(held)).pop()
    config = config.model_copy(update={"held_out_targets": []})
    kept = cells.filter(pl.col("target_gene_id").is_in([NTC, "ENSG2", *held]))
    assert left not in held_out_targets(kept, config)


def test_a_context_without_all_factors_holds_out_in_each_that_fits_and_keeps_its_controls():
    cells = screen()
    found = split(cells, held_out_contexts=[{"context": "donor=D2", "targets": []}])
    expected = cells["context"].str.starts_with("donor=D2") & (cells["target_gene"] != NTC)
    assert ((found == "held_out_context") == expected).all()
    assert set(found.filter(~expected)) == {"train"}


def test_some_targets_of_a_context_are_held_out_and_held_out_targets_go_first():
    cells = screen()
    rule = {"context": "donor=D2,time=Stim", "targets": ["STAT1", "ENSG2"]}
    found = split(cells, held_out_contexts=[rule], held_out_targets=["JAK2"])
    cells = cells.with_columns(found)
    table = split_table(cells)
    assert table.filter(split="held_out_context").rows() == [
        ("ENSG1", "STAT1", "donor=D2,time=Stim", "held_out_context", 20)
    ]
    assert table.filter(split="held_out_target")["context"].to_list() == CONTEXTS


def test_the_table_counts_every_cell_once_in_a_total_order():
    cells = screen().with_columns(split(screen(), test=0.2, validation=0.2))
    table = split_table(cells)
    assert table.columns == ["target_gene_id", "target_gene", "context", "split", "n_cells"]
    assert table["n_cells"].sum() == cells.height
    assert split_table(cells.sample(fraction=1, shuffle=True, seed=1)).equals(table)


BAD = {
    "target": (
        {"held_out_targets": ["STAT2"]},
        r"held_out_targets names 'STAT2', .*; nearest: STAT1",
    ),
    "control": ({"held_out_targets": [NTC]}, r"names 'non-targeting', which is not a target"),
    "context": (
        {"held_out_contexts": [{"context": "time=Rested", "targets": []}]},
        r"'time=Rested', which no cell is in",
    ),
    "form": (
        {"held_out_contexts": [{"context": "Rest", "targets": []}]},
        "not of the form factor=level",
    ),
    "target in context": (
        {"held_out_contexts": [{"context": "time=Rest", "targets": ["GATA1"]}]},
        r"held_out_contexts names 'GATA1', .*nearest: GATA3",
    ),
    "too many": (
        {"held_out_targets": ["STAT1"], "random_held_out_targets": 2},
        "holds out 1 named and 2 random targets, but only 3 pass QC",
    ),
    "shares": ({"validation": 0.5, "test": 0.5}, r"validation \+ splits.test is 1; leave cells"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_split_that_cannot_be_made_is_refused_with_the_nearest_name(case):
    changes, message = BAD[case]
    with pytest.raises(ConfigError, match=message):
        split(screen(), **changes)
