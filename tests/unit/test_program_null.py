"""Random programs in place of the real one: a high AUROC is not enough for a program to pass."""

import numpy as np
import polars as pl
import pytest

from fixtures.shards import write_store
from knockscreen.config import GateConfig
from knockscreen.errors import DataError
from knockscreen.score import gate
from knockscreen.score.program_null import (
    ControlEffects,
    expression_bins,
    mean_signed_score,
    random_weights,
    read_control_effects,
)
from knockscreen.score.programs import ProgramMatrix, program_matrix

SETTINGS = GateConfig(controls="", min_controls=3, min_auroc=0.7, min_sign=0.6, max_p=0.05)
GENES = [f"E{i}" for i in range(100)]


def test_random_programs_keep_the_weights_within_each_bin_of_expression() -> None:
    bins = np.array([0, 0, 0, 1, 1, 1])
    weights = np.array([1.0, -1.0, 0.0, 2.0, 0.0, 0.0])
    drawn = random_weights(weights, bins, 200, np.random.default_rng(0))
    assert (np.sort(drawn[:, :3], axis=1) == [-1, 0, 1]).all()
    assert (np.sort(drawn[:, 3:], axis=1) == [0, 0, 2]).all()
    assert len(np.unique(drawn, axis=0)) == 6 * 3
    assert expression_bins(np.arange(20.0)).tolist() == [k // 2 for k in range(20)]


def test_mean_signed_score_by_hand_leaves_out_the_own_gene() -> None:
    deltas = np.array([[-5.0, -1.0, 0.5], [1.0, 2.0, -1.0]])
    found = mean_signed_score(
        deltas, np.array([0, -1]), np.array([-1.0, 1.0]), np.array([[1.0, 2.0, -1.0]])
    )
    first = -(2 * -1.0 - 0.5) / 3
    second = (1.0 + 2 * 2.0 + 1.0) / 4
    assert found.tolist() == pytest.approx([(first + second) / 2])


def effects(programs: dict[str, np.ndarray], deltas: np.ndarray) -> ControlEffects:
    matrix = ProgramMatrix(tuple(programs), np.stack(list(programs.values())), tuple(GENES))
    of = {("all", False, f"T{k:02d}"): row for k, row in enumerate(deltas)}
    return ControlEffects(matrix, np.zeros(len(GENES), dtype=np.int64), of)


def test_controls_of_one_pathway_pass_their_own_program_and_no_random_one() -> None:
    """Five controls move one module down; 40 other knock-downs do little."""
    rng = np.random.default_rng(3)
    module = np.where(np.arange(100) < 20, -1.0, rng.normal(0, 0.3, 100))
    deltas = np.vstack([module + rng.normal(0, 0.1, (5, 100)), rng.normal(0, 0.05, (40, 100))])
    programs = {"own": (np.arange(100) < 20).astype(float)}
    for k in range(40):
        programs[f"random{k}"] = rng.permutation(programs["own"])
    null = effects(programs, deltas)
    passed = {}
    for name, weights in programs.items():
        rows = pl.DataFrame(
            {"context": "all", "target_gene": [f"T{k:02d}" for k in range(45)],
             "target_gene_id": [f"T{k:02d}" for k in range(45)], "evidence": "predicted_seen",
             "score": deltas @ weights / weights.sum()}
        )  # fmt: skip
        controls = pl.DataFrame(
            {"program": name, "gene": [f"T{k:02d}" for k in range(5)], "direction": "away",
             "source": "planted"}
        )  # fmt: skip
        for how, given in (("with", null), ("without", None)):
            gates = gate.gate_program(name, rows, controls, SETTINGS, given)[1]
            passed[name, how] = set(gates["control_status"]) == {"passed"}
            if name == "own" and given:
                assert gates["program_p"].to_list() == [0.001, 0.001]
    assert passed["own", "with"]
    assert passed["own", "without"]
    by_luck = [sum(passed[f"random{k}", how] for k in range(40)) for how in ("with", "without")]
    assert by_luck[1] > 20, "the controls come out on one side of any program of this module"
    assert by_luck[0] <= 5


def test_effects_of_controls_are_read_by_name_or_id(tmp_path) -> None:
    write_store(tmp_path / "store")
    pl.DataFrame({"gene_id": ["ENSG1", "ENSG2"], "mean": [0.5, 2.0]}).write_parquet(
        tmp_path / "store/panel.parquet"
    )
    path = tmp_path / "0.parquet"
    pl.DataFrame(
        {"context": "all", "target_gene_id": ["ENSG1", "ENSG9", "ENSG4"],
         "gene_id": ["ENSG2", "ENSG3", "ENSG1"], "delta": [0.1, 0.2, 0.3]}
    ).write_parquet(path)  # fmt: skip
    table = pl.DataFrame({"program": ["A"], "gene": ["IL4"], "weight": [1.0]})
    programs = program_matrix(
        table, ["ENSG1", "ENSG2", "ENSG3", "ENSG4"], ["GATA3", "IL4", "X", "Y"]
    )
    controls = pl.DataFrame({"gene": ["GATA3", "ENSG9"]})
    found = gate.effects_of_controls(controls, programs, tmp_path / "store", [path], path)
    assert set(found.deltas) == {
        ("all", measured, target) for measured in (True, False) for target in ("ENSG1", "ENSG9")
    }
    assert found.deltas["all", False, "ENSG1"].tolist() == [0, 0.1, 0, 0]
    assert found.p_value("B", "all", "measured", ["ENSG1"], np.ones(1)) is None
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(DataError, match="is no file of effects"):
        read_control_effects([tmp_path / "bad.parquet"], None, ["ENSG1"], programs, np.zeros(4))
