"""The gate: planted regulators pass it, random genes do not, and what is not screened is said."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.stats import mannwhitneyu

from knockscreen.config import GateConfig
from knockscreen.errors import DataError
from knockscreen.score import gate, verdicts

ROOT = Path(__file__).parents[2]
SETTINGS = GateConfig(controls="", min_controls=3, min_auroc=0.7, min_sign=0.6, max_p=0.05)
HEADER = "program\tgene\tdirection\tsource\n"


def controls(*rows):
    columns = ["program", "gene", "direction", "source"]
    return pl.DataFrame([(*row, "paper") for row in rows], schema=columns, orient="row")


def scores(values, context="all", evidence="predicted_seen", prefix="G"):
    """Scores of targets G0, G1, ... in one context."""
    n = len(values)
    return pl.DataFrame(
        {
            "context": [context] * n,
            "target_gene": [f"{prefix}{i}" for i in range(n)],
            "target_gene_id": [f"ENS{prefix}{i:03d}" for i in range(n)],
            "evidence": [evidence] * n,
            "score": np.asarray(values, dtype=float),
        }
    )


AWAY = controls(*(("A", f"G{i}", "away") for i in range(3)))


def test_one_direction_is_the_auroc_of_mann_whitney():
    rng = np.random.default_rng(0)
    values, chosen = rng.integers(0, 6, 40).astype(float), np.array([3, 8, 21, 30])
    for sign in (-1.0, 1.0):
        shares = gate.percentiles(values, chosen, np.full(4, sign))
        u = mannwhitneyu(sign * values[chosen], sign * np.delete(values, chosen)).statistic
        assert shares.mean() == pytest.approx(u / (4 * 36))


def test_a_control_does_not_compete_with_the_other_controls():
    values = np.array([-3.0, -2.0, 0.0, 0.0, 5.0])
    shares = gate.percentiles(values, np.array([0, 1, 4]), np.array([-1.0, -1.0, -1.0]))
    assert shares.tolist() == [1.0, 1.0, 0.0]


def test_both_directions_by_hand():
    outcome = gate.judge(
        np.array([-2.0, 0.5, 0.0, 1.0, 3.0]), np.array([0, 1, 4]), np.array([-1.0, -1.0, 1.0])
    )
    assert outcome.percentile.tolist() == [1.0, 0.5, 1.0]
    assert outcome.auroc == pytest.approx(2.5 / 3)
    assert outcome.sign_share == pytest.approx(2 / 3)
    # away: -2, 0, 0.5, 1 in order, hits at 1 and 3; toward: 3 first of three
    assert outcome.auprc == pytest.approx(2 / 3 * (1 / 2 + 2 / 3 / 2) + 1 / 3)
    assert outcome.auprc_chance == pytest.approx(2 / 3 * 2 / 4 + 1 / 3 * 1 / 3)


def test_permutation_p_of_three_best_of_many_is_the_smallest_possible():
    values = np.r_[-3.0, -2.0, -1.5, np.linspace(0, 1, 200)]
    outcome = gate.judge(values, np.arange(3), np.full(3, -1.0))
    assert outcome.permutation_p == pytest.approx(1 / (gate.PERMUTATIONS + 1))


def test_random_genes_in_place_of_controls_pass_no_more_often_than_chance():
    rng = np.random.default_rng(1)
    p = [
        gate.judge(rng.normal(size=60), np.arange(5), rng.choice([-1.0, 1.0], 5)).permutation_p
        for _ in range(300)
    ]
    assert np.mean(np.array(p) <= 0.05) < 0.08
    assert 0.42 < np.mean(p) < 0.58


def test_drivers_whose_knockdown_lowers_the_program_pass():
    values = np.r_[-0.9, -0.8, -0.7, np.linspace(-0.1, 0.1, 40)]
    rows, gates = gate.gate_program("A", scores(values), AWAY, SETTINGS)
    assert set(gates["control_status"]) == {"passed"}
    assert set(gates["evidence"]) == {"predicted", "predicted_seen"}
    assert rows["percentile"].to_list() == [1.0] * 3
    assert rows["sign_right"].all()


def test_the_opposite_sign_is_exploratory_with_the_reason():
    values = np.r_[0.9, 0.8, 0.7, np.linspace(-0.1, 0.1, 40)]
    gates = gate.gate_program("A", scores(values), AWAY, SETTINGS)[1]
    reason = gates["control_reason"][0]
    assert set(gates["control_status"]) == {"exploratory"}
    assert "AUROC 0.00 < 0.7" in reason
    assert "published sign in 0% < 60%" in reason


def test_too_few_or_no_controls_are_not_tested_and_say_so():
    gates = gate.gate_program("A", scores([-1.0, -0.5]), AWAY, SETTINGS)[1]
    assert gates["control_status"].unique().to_list() == ["not_tested"]
    assert gates["control_reason"][0].startswith("2 of 3 controls are among these knock-downs")
    assert gates["auroc"].null_count() == gates.height
    none = gate.gate_program("B", scores([-1.0, -0.5]), AWAY, SETTINGS)[1]
    assert none["control_reason"][0] == "no controls for this program"


def test_measured_and_predicted_are_judged_apart():
    good = np.r_[-0.9, -0.8, -0.7, np.linspace(-0.1, 0.1, 40)]
    both = pl.concat([scores(good), scores(-good, evidence="measured")])
    gates = gate.gate_program("A", both, AWAY, SETTINGS)[1]
    assert dict(gates.select("evidence", "control_status").iter_rows()) == {
        "measured": "exploratory", "predicted": "passed", "predicted_seen": "passed",
    }  # fmt: skip


def test_a_program_that_fails_in_most_pooled_contexts_is_exploratory_in_all():
    good = np.r_[-0.9, -0.8, -0.7, np.linspace(-0.1, 0.1, 40)]
    names = {"time=A": -good, "time=B": -good, "time=C": good, "donor=D1,time=C": good}
    rows = pl.concat(scores(values, context=name) for name, values in names.items())
    gates = gate.gate_program("A", rows, AWAY, SETTINGS)[1]
    assert gates["control_status"].unique().to_list() == ["exploratory"]
    lucky = gates.filter(pl.col("context") == "donor=D1,time=C")["control_reason"][0]
    assert lucky == "passes here, but fails in 2 of the 3 contexts reported"
    assert verdicts.overall(gates).row(0)[1] == "exploratory"


def test_knockdowns_without_controls_of_their_own_fail_where_all_together_fail():
    bad = np.r_[0.9, 0.8, np.linspace(-0.1, 0.1, 20), 0.7]
    rows = pl.concat([scores(bad[:-1]), scores(bad, evidence="predicted_unseen").tail(1)])
    some = controls(("A", "G0", "away"), ("A", "G1", "away"), ("A", "G22", "away"))
    for sign, expected in ((1, "exploratory"), (-1, "not_tested")):
        signed = rows.with_columns(score=sign * pl.col("score"))
        gates = gate.gate_program("A", signed, some, SETTINGS)[1]
        found = dict(gates.select("evidence", "control_status").iter_rows())
        assert found["predicted_unseen"] == found["predicted_seen"] == expected
        assert found["predicted"] == expected


@pytest.mark.parametrize("seen", ["passed", "exploratory", "not_tested", None])
def test_knockdowns_never_trained_on_pass_only_where_trained_ones_do(seen):
    rows = [("predicted_unseen", "passed"), ("predicted", "passed"), ("measured", "passed")]
    rows += [("predicted_seen", seen)] if seen else []
    gates = [
        {"program": "A", "context": "all", "evidence": evidence, "control_status": status,
         "control_reason": f"of {evidence}"}
        for evidence, status in rows
    ]  # fmt: skip
    judged = verdicts.over_contexts(pl.DataFrame(gates, schema=verdicts.GATES))
    found = dict(judged.select("evidence", "control_status").iter_rows())
    assert found["measured"] == "passed"
    assert found["predicted_unseen"] == found["predicted"] == (seen or "not_tested")
    reason = judged.filter(evidence="predicted_unseen")["control_reason"].item()
    assert ("trained on" in reason) == (seen != "passed")


def test_controls_are_found_by_the_rule_of_all_names_and_counted_once():
    rows = scores(np.linspace(-1, 1, 30)).with_columns(
        target_gene_id=pl.concat_str(pl.lit("ENSG"), pl.int_range(30).cast(pl.String)),
        target_gene=pl.when(pl.int_range(30) < 2).then(pl.lit("SHARED")).otherwise("target_gene"),
    )
    names = (("A", "SHARED", "away"), ("A", "g5", "away"), ("A", "ENSG6.3", "away"))
    found, counted = gate.gate_context(rows, controls(*names).drop("program"), SETTINGS)
    assert sorted(found["target_gene_id"]) == ["ENSG5", "ENSG6"]  # SHARED could be either of two
    assert (counted["n_controls"], counted["n_others"]) == (2, 28)
    same = controls(("A", "G5", "away"), ("A", "ENSG5", "away")).drop("program")
    assert gate.gate_context(rows, same, SETTINGS)[1]["n_controls"] == 1
    opposite = controls(("A", "G5", "away"), ("A", "ENSG5", "toward")).drop("program")
    with pytest.raises(DataError, match="controls G5 and ENSG5 are one gene, in opposite direct"):
        gate.gate_context(rows, opposite, SETTINGS)


def test_rows_take_the_status_of_their_own_evidence_and_context():
    gates = pl.DataFrame(
        [{"program": "A", "context": "all", "evidence": "measured", "control_status": "passed"}],
        schema=verdicts.GATES,
    )
    rankings = pl.DataFrame(
        {"program": ["A"] * 3, "context": ["all"] * 3,
         "evidence": ["measured", "predicted_seen", "measured"],
         "control_status": ["not_tested"] * 3, "rank": [1, 1, 1], "source": [None, None, "other"]}
    )  # fmt: skip
    found = verdicts.label(rankings, gates)
    assert found["control_status"].to_list() == ["passed", "not_tested", "not_tested"]
    assert found.columns == rankings.columns


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER + "Th1\tTBX21\tdown\tx\n", "direction 'down' of TBX21 for Th1 .* neither toward"),
        (HEADER + "Th1\tTBX21\taway\tx\n" * 2, "control TBX21 stands twice for Th1"),
        ("program\tgene\tsign\tsource\n", "has no column 'direction'; it has program"),
    ],
)
def test_a_broken_control_file_is_one_sentence(tmp_path, text, message):
    path = tmp_path / "controls.tsv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        gate.read_controls(path)
    with pytest.raises(DataError, match=r"'none\.tsv' does not exist"):
        gate.read_controls("none.tsv")


def test_every_shipped_program_has_controls_with_a_source():
    table = gate.read_controls(ROOT / "config/controls.tsv")
    programs = pl.read_csv(ROOT / "config/programs.tsv", separator="\t")["program"].unique()
    assert set(programs) <= set(table["program"])
    assert table["source"].null_count() == 0
    counts = table.group_by("program").len()
    assert counts["len"].min() >= 8


def test_the_shipped_directions_are_those_of_the_knock_down():
    table = gate.read_controls(ROOT / "config/controls.tsv")
    known = dict(zip(table.select("program", "gene").iter_rows(), table["direction"], strict=True))
    for program, driver in (
        ("Th1", "TBX21"), ("Th2", "GATA3"), ("Treg", "FOXP3"), ("Th17", "RORC"),
        ("activation", "ZAP70"), ("IFN_gamma", "IFNGR1"), ("interferon", "STAT2"),
    ):  # fmt: skip
        assert known[program, driver] == "away"
    for program, inhibitor in (("IFN_gamma", "SOCS1"), ("activation", "CBLB"), ("Th2", "TBX21")):
        assert known[program, inhibitor] == "toward"
