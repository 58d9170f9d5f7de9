"""Reverse: a planted signature is undone by its own knock-down, and no arm carries a rank alone."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from fixtures.tiny_run import DELTA, FACTORS, GENES, SETTINGS, make_tiny_run
from knockscreen.errors import ConfigError, DataError, UnknownNameError
from knockscreen.store.build import build
from knockscreen.store.frames import REVERSE
from knockscreen.store.reverse import project, read_signature
from knockscreen.store.screen import Screen

REST = "time=Rest"
SIGNATURE = {"IL2RA": 2.0, "FOXP3": 1.0, "IL17A": -1.0, "RORC": -0.5}


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Screen]:
    folder = make_tiny_run(tmp_path_factory.mktemp("tiny"))
    path = build(folder, folder / "programs.tsv", folder / "screen.duckdb", SETTINGS)
    with Screen(path) as opened:
        yield opened


def frame(weights: dict[str, float], column: str = "weight") -> pl.DataFrame:
    return pl.DataFrame({"gene": list(weights), column: list(weights.values())})


def by_hand(target: str, factor: float) -> dict[str, float]:
    genes = [gene for gene in SIGNATURE if gene != target]
    w = np.array([SIGNATURE[gene] for gene in genes])
    delta = np.array([DELTA[target][gene] for gene in genes]) * factor
    return {
        "score": -w @ delta / np.sqrt((w @ w) * (delta @ delta)),
        "projection": -w @ delta / np.abs(w).sum(),
        "up_score": -(w * delta)[w > 0].sum() / w[w > 0].sum(),
        "down_score": -(w * delta)[w < 0].sum() / -w[w < 0].sum(),
    }


def test_scores_are_those_worked_out_by_hand_without_the_target_itself(screen: Screen) -> None:
    for context, factor in FACTORS.items():
        for row in screen.reverse(frame(SIGNATURE), context).iter_rows(named=True):
            expected = by_hand(row["target_gene"], factor)
            assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-5)
            assert row["n_genes"] == 4 - (row["target_gene"] in SIGNATURE)


def test_measured_scores_stand_beside_with_the_same_formula(screen: Screen) -> None:
    rows = screen.reverse(frame(SIGNATURE), REST).rows_by_key("target_gene", named=True)
    for target in ("FOXP3", "RORC"):
        (row,) = rows[target]
        assert row["measured_score"] == pytest.approx(by_hand(target, 1)["score"], rel=1e-5)
        expected = 0.9 * by_hand(target, FACTORS[REST])["projection"]
        assert row["measured_projection"] == pytest.approx(expected, rel=1e-5)
    assert rows["STAT3"][0]["measured_score"] is None


def test_a_knockdown_makes_its_own_effects_and_undoes_their_opposite(screen: Screen) -> None:
    effects = {gene: value for gene, value in DELTA["RORC"].items() if value}
    best = screen.reverse(frame(effects), REST, mimic=True, n=1).row(0, named=True)
    assert (best["target_gene"], best["score"]) == ("RORC", pytest.approx(1.0))
    opposite = {gene: -value for gene, value in effects.items()}
    best = screen.reverse(frame(opposite), REST, n=1).row(0, named=True)
    assert (best["target_gene"], best["score"]) == ("RORC", pytest.approx(1.0))


def test_one_arm_cannot_carry_a_rank() -> None:
    """G up genes and one down gene: the first knock-down undoes the up arm alone, and hugely."""
    deltas = np.array([[-9.0, -1.0], [-9.0, -1.0], [-1.0, 0.1]], dtype=np.float32)
    found = project(deltas, np.array([1.0, 1.0, -1.0]), np.array([-1, -1]))
    assert found["projection"][0] > found["projection"][1]
    assert (found["up_score"] > 0).all()
    assert (found["down_score"] > 0).tolist() == [False, True]


def test_knockdowns_that_undo_both_arms_come_first(screen: Screen) -> None:
    rows = screen.reverse(frame({"IL2RA": 1.0, "IL17A": -5.0, "RORC": -5.0}), REST)
    by_rank = rows.sort("rank")["both_arms"].to_list()
    assert by_rank == sorted(by_rank, reverse=True)
    one_arm = screen.reverse(frame({"IL2RA": 1.0, "IL17A": 5.0}), REST)
    assert one_arm["both_arms"].null_count() == one_arm.height
    assert one_arm.sort("rank")["score"].is_sorted(descending=True)
    assert one_arm["evidence"].to_list() == ["predicted_seen"] * 2 + ["predicted_unseen"]
    assert one_arm["rank"].to_list()[:2] == sorted(one_arm["rank"].to_list()[:2])


def test_size_of_the_weights_does_not_matter_and_order_of_genes_neither(screen: Screen) -> None:
    first = screen.reverse(frame(SIGNATURE), REST)
    turned = frame({gene: 7 * SIGNATURE[gene] for gene in reversed(SIGNATURE)}, "log2_fold_change")
    assert_frame_equal(first, screen.reverse(turned, REST), rel_tol=1e-5)
    assert dict(first.schema) == REVERSE


def test_symbols_in_any_case_and_ids_with_a_version_are_the_same_gene(screen: Screen) -> None:
    other = {f"{GENES['IL2RA']}.3": 2.0, "foxp3": 1.0, "IL17A": -1.0, "RORC": -0.5}
    assert screen.reverse(frame(other), REST).equals(screen.reverse(frame(SIGNATURE), REST))


def test_n_is_per_context_and_ranks_are_among_all(screen: Screen) -> None:
    rows = screen.reverse(frame(SIGNATURE), n=2)
    assert rows["context"].unique(maintain_order=True).to_list() == ["time=Rest", "time=Stim8hr"]
    assert rows["rank"].to_list() == [1, 3, 1, 3]  # the second was never knocked down: it is last
    assert rows["n_ranked"].unique().to_list() == [3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gene,p\nA,1\n", r"has no column for the weight: .*; it has gene, p"),
        ("x,weight\nA,1\n", "has no column for the gene"),
        (" \nA\n", "its first line names no columns"),
        ("gene,weight\nA,1\nA,2\n", "gene A stands twice in .* of one contrast"),
        ("gene,logFC\nA,inf\n", "logFC 'inf' of gene A in .* is not a finite number"),
        ("gene,logFC\nA,up\n", "logFC 'up' of gene A"),
        ("gene,logFC\nA,\n", "logFC 'None' of gene A"),
        ("gene,logFC\nA,1\n,2\n", "has a row without a gene"),
        ("gene,logFC\nA,1\n2-Sep,2\n", "has the date '2-Sep' in place of a gene"),
    ],
)
def test_a_broken_signature_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "signature.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_signature(path)


def test_what_is_not_there_is_one_sentence(screen: Screen, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of the 1 genes .* \(such as 'IL2R'; nearest: IL2RA"):
        screen.reverse(frame({"IL2R": 1.0}))
    with pytest.raises(DataError, match="IL2RA and ENSG01 of the signature are one gene"):
        screen.reverse(frame({"IL2RA": 1.0, "ENSG01": 1.0}))
    with pytest.raises(DataError, match=r"only IL2RA is on the panel, .*; ask movers"):
        screen.reverse(frame({"IL2RA": 1.0, "NOPE": 1.0}))
    with pytest.raises(DataError, match="no gene with a weight other than 0"):
        screen.reverse(frame({"IL2RA": 0.0, "FOXP3": 0.0}))
    with pytest.raises(DataError, match="does not exist"):
        screen.reverse(tmp_path / "none.csv")
    with pytest.raises(UnknownNameError, match="unknown context"):
        screen.reverse(frame(SIGNATURE), "time=Never")
    with pytest.raises(ConfigError, match="n is -1"):
        screen.reverse(frame(SIGNATURE), n=-1)
    with pytest.raises(ConfigError, match="by 'size' is none of score, projection"):
        screen.reverse(frame(SIGNATURE), by="size")  # type: ignore[arg-type]
