"""Random programs in place of the real one: a high AUROC is not enough for a program to pass."""

import numpy as np
import polars as pl
import pytest

from fixtures.shards import write_store
from knockscreen.config import GateConfig
from knockscreen.errors import DataError
from knockscreen.score import gate
from knockscreen.score.control_effects import (
    ControlEffects,
    mean_signed_score,
    read_control_effects,
)
from knockscreen.score.programs import ProgramMatrix, program_matrix
from knockscreen.score.random_programs import Background, coherence

SETTINGS = GateConfig(controls="", min_controls=3, min_auroc=0.7, min_sign=0.6, max_p=0.05)
N = 300
GENES = [f"E{i}" for i in range(N)]
EXPRESSION = np.random.default_rng(8).permutation(np.arange(float(N)))


def test_mean_signed_score_by_hand_leaves_out_the_own_gene() -> None:
    deltas = np.array([[-5.0, -1.0, 0.5], [1.0, 2.0, -1.0]])
    found = mean_signed_score(
        deltas, np.array([0, -1]), np.array([-1.0, 1.0]), np.array([[1.0, 2.0, -1.0]])
    )
    first = -(2 * -1.0 - 0.5) / 3 * 4  # on the scale of the whole program
    second = 1.0 + 2 * 2.0 + 1.0
    assert found.tolist() == pytest.approx([(first + second) / 2])


def effects(programs: dict[str, np.ndarray], deltas: np.ndarray) -> ControlEffects:
    matrix = ProgramMatrix(tuple(programs), np.stack(list(programs.values())), tuple(GENES))
    of = {("all", False, f"T{k:02d}"): row for k, row in enumerate(deltas)}
    return ControlEffects(matrix, Background(EXPRESSION, np.eye(N), {}), of)


def test_controls_of_one_pathway_pass_their_own_program_and_no_random_one() -> None:
    """Five controls move one module down; 40 other knock-downs do little."""
    rng = np.random.default_rng(3)
    module = np.where(np.arange(N) < 20, -1.0, rng.normal(0, 0.3, N))
    deltas = np.vstack([module + rng.normal(0, 0.1, (5, N)), rng.normal(0, 0.05, (40, N))])
    programs = {"own": (np.arange(N) < 20).astype(float)}
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
    counts = np.random.default_rng(0).poisson(3, size=(20, 4))
    write_store(tmp_path / "store", counts)
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
    assert found.background.expression == pytest.approx(
        np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4).mean(axis=0)
    )
    assert found.p_values("B")("all", "measured", ["ENSG1"], np.ones(1)) is None
    assert found.p_values("A")("all", "measured", ["ENSG3"], np.ones(1)) is None
    assert 0 < found.p_values("A")("all", "measured", ["ENSG1"], np.ones(1)) <= 1
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(DataError, match="is no file of effects"):
        read_control_effects(
            [tmp_path / "bad.parquet"], None, ["ENSG1"], programs, found.background
        )


def test_coherence_is_the_same_however_many_programs_are_looked_up_at_a_time(monkeypatch) -> None:
    rng = np.random.default_rng(1)
    genes = np.stack([rng.choice(50, 8, replace=False) for _ in range(30)])
    weights = rng.normal(size=genes.shape)
    values = rng.normal(size=(50, 200))
    correlation = np.corrcoef(values)
    whole = coherence(genes, weights, correlation)
    monkeypatch.setattr("knockscreen.score.random_programs.AT_ONCE", 64 * 7)
    np.testing.assert_allclose(coherence(genes, weights, correlation), whole, rtol=1e-12)
    one = weights[3] @ correlation[np.ix_(genes[3], genes[3])] @ weights[3]
    assert whole[3] == pytest.approx(one / (weights[3] ** 2).sum())
