"""The verb ``evaluate`` on a store whose effects are planted."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fixtures import evaluated
from fixtures.evaluated import GENE_IDS, effect, write_evaluated, write_predictions
from knockscreen.cli_evaluate import evaluate
from knockscreen.errors import ConfigError, DataError

SETTINGS = {
    "splits": "all", "min_cells": 8, "de_test": "welch", "neighbours": 2, "components": 3,
    "references": 300, "cells": 500, "resamples": 200,
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_evaluated(tmp_path_factory.mktemp("evaluated"))


@pytest.fixture(scope="module")
def found(place: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    return run(place, place / "out")


def settings(place: Path, **changes: object) -> str:
    programs = {"file": str(place / "programs.tsv"), "names": [], "min_genes": 1}
    rank = {"pool_over": [], "interval": 0.9, "resamples": 10, "random_programs": 20}
    return json.dumps(
        {"seed": 1, "programs": programs, "rank": rank, "evaluate": SETTINGS | changes}
    )


def run(place: Path, output: Path, **changes: object) -> tuple[pl.DataFrame, pl.DataFrame]:
    evaluate(
        place / "store", place / "effect/effect.safetensors", place / "screen/candidates.parquet",
        place / "screen/shards", output, settings(place, **changes),
    )  # fmt: skip
    return tuple(pl.read_parquet(output / f"{n}.parquet") for n in ("metrics", "summary"))  # type: ignore[return-value]


def value(metrics: pl.DataFrame, split: str, method: str, metric: str) -> float:
    over = metrics.filter(
        pl.col("split") == split, pl.col("method") == method, pl.col("metric") == metric,
        pl.col("target_gene") == "all", pl.col("context") == "all", pl.col("program").is_null(),
    )  # fmt: skip
    assert len(over) == 1
    return float(over["value"][0])


def test_the_measured_effect_beats_no_change_where_effects_are_planted(
    found: tuple[pl.DataFrame, pl.DataFrame],
) -> None:
    metrics, _ = found
    for metric in ("centroid_accuracy", "direction_match", "weighted_r2_de", "de_recall"):
        measured = value(metrics, "screened", "measured_training", metric)
        assert measured > value(metrics, "screened", "no_change", metric) + 0.2, metric
    assert value(metrics, "screened", "measured_training", "pearson_delta") > 0.9


def test_a_model_that_knows_the_truth_wins_and_one_that_knows_nothing_loses(
    found: tuple[pl.DataFrame, pl.DataFrame],
) -> None:
    _, summary = found
    rows = summary.filter(pl.col("context") == "all", pl.col("split") == "screened")
    verdicts = {(m, b): v for m, b, v in rows.select("metric", "baseline", "verdict").iter_rows()}
    assert verdicts["pearson_delta", "perturbation_mean"] == "wins"
    assert verdicts["mae_delta", "no_change"] == "wins"


def test_a_model_without_effect_equals_no_change(place: Path, tmp_path: Path) -> None:
    other = write_evaluated(tmp_path / "other")
    write_predictions(other, np.zeros((6, 2, len(GENE_IDS))))
    metrics, summary = run(other, tmp_path / "out")
    wide = metrics.filter(pl.col("method").is_in(["model", "no_change"])).pivot(
        "method", index=["split", "context", "target_gene", "metric", "program"], values="value"
    )
    assert wide["model"].equals(wide["no_change"].alias("model"))
    same = summary.filter(pl.col("baseline") == "no_change", pl.col("low").is_not_null())
    assert set(same["verdict"]) == {"ties"}
    assert same["difference"].to_list() == [0.0] * len(same)


def test_held_out_targets_have_no_measured_baseline_and_say_why_others_have_no_answer(
    found: tuple[pl.DataFrame, pl.DataFrame],
) -> None:
    rows = found[0].filter(pl.col("split") == "held_out_target", pl.col("target_gene") != "all")
    assert set(rows["target_gene_id"].unique()) == {"ENSG5", "ENSG6"}
    assert not {"measured_training", "low_rank"} & set(rows["method"])
    of = rows.filter(pl.col("method") == "other_context")
    assert of["value"].null_count() == len(of)
    assert set(of["reason"]) == {"not in another context of training"}


def test_every_missing_value_has_a_reason_and_no_other_has(
    found: tuple[pl.DataFrame, pl.DataFrame],
) -> None:
    of_targets = found[0].filter(pl.col("target_gene") != "all")
    assert of_targets["value"].is_nan().sum() == 0
    assert of_targets["value"].is_null().equals(of_targets["reason"].is_not_null())


def test_undefined_values_are_counted_by_reason_in_log_and_manifest(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        metrics, _ = run(place, tmp_path)
    of_targets = metrics.filter(pl.col("target_gene") != "all", pl.col("value").is_null())
    counted = dict(of_targets.group_by("reason").len().iter_rows())
    assert counted["not in another context of training"] > 0
    manifest = json.loads((tmp_path / "metrics.parquet.manifest.json").read_text())
    assert manifest["notes"]["undefined"] == counted
    for reason, number in counted.items():
        assert f"{number:,} values are undefined: {reason}" in caplog.text


def test_rank_sums_change_what_is_de_and_nothing_else(
    place: Path, found: tuple[pl.DataFrame, pl.DataFrame], tmp_path: Path
) -> None:
    by_ranks, _ = run(place, tmp_path, de_test="rank_sum")
    of_de = pl.col("metric").str.contains("^de_|^direction_match|^weighted_r2_de")
    assert by_ranks.filter(~of_de).equals(found[0].filter(~of_de))
    halves = pl.col("method") == "split_half"
    for part in (of_de & halves, of_de & ~halves):
        one, other = by_ranks.filter(part), found[0].filter(part)
        assert one.drop("value", "n", "reason").equals(other.drop("value", "n", "reason"))
        assert not one["value"].equals(other["value"])
    assert value(by_ranks, "screened", "measured_training", "de_recall") > 0.5


def test_the_row_over_targets_is_their_mean_and_counts_them(
    found: tuple[pl.DataFrame, pl.DataFrame],
) -> None:
    rows = found[0].filter(
        pl.col("metric") == "mae_delta", pl.col("context") == "all", pl.col("method") == "ridge"
    )
    for split in ("screened", "held_out_target"):
        part = rows.filter(pl.col("split") == split)
        single = part.filter(pl.col("target_gene") != "all")["value"]
        total = part.filter(pl.col("target_gene") == "all")
        assert total["value"][0] == pytest.approx(single.mean())
        assert total["n"][0] == len(single)


def test_evaluation_is_the_same_again_and_with_targets_in_shards_apart(
    place: Path, found: tuple[pl.DataFrame, pl.DataFrame], tmp_path: Path
) -> None:
    again = run(place, tmp_path)
    assert all(a.equals(b) for a, b in zip(again, found, strict=True))


def test_null_effects_leave_every_method_at_chance(tmp_path: Path) -> None:
    null = write_evaluated(tmp_path / "null", size=0.0, cells=90)
    metrics, _ = run(null, tmp_path / "out")
    truth = value(metrics, "screened", "measured_training", "pearson_delta")
    assert abs(truth) < 0.4
    assert abs(value(metrics, "screened", "measured_training", "centroid_accuracy") - 0.5) < 0.4


def test_a_split_that_holds_nothing_is_one_sentence(place: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'held_out_context', which holds no cells in this store"):
        run(place, tmp_path, splits=["held_out_context"])
    with pytest.raises(ConfigError, match="names 'heldout_target'; nearest: held_out_target"):
        run(place, tmp_path, splits=["heldout_target"])
    assert list(tmp_path.iterdir()) == []


def test_a_target_with_too_few_cells_is_listed_with_its_reason(place: Path, tmp_path: Path) -> None:
    metrics, _ = run(place, tmp_path, splits=["screened"], min_cells=30)
    few = metrics.filter(pl.col("reason") == "fewer than 30 held-out cells")
    assert set(few["context"]) == {"donor=D1", "donor=D2"}  # 20 test cells each, 40 pooled
    assert few["value"].null_count() == len(few) == 8
    assert set(few["n"]) == {20}


def test_a_screen_without_the_evaluated_targets_is_refused(place: Path, tmp_path: Path) -> None:
    other = write_evaluated(tmp_path / "other", cells=12)
    path = other / "screen/candidates.parquet"
    pl.read_parquet(path).with_columns(status=pl.lit("filtered")).write_parquet(path)
    with pytest.raises(DataError, match="no target with held-out cells was generated"):
        run(other, tmp_path / "out")


def test_planted_effects_are_those_of_the_fixture() -> None:
    assert effect(0).tolist() == [0.0] * evaluated.G
    assert effect(1)[1] == -1.5


def test_a_held_out_context_is_judged_beside_the_other_contexts_of_its_targets(
    tmp_path: Path,
) -> None:
    place = write_evaluated(tmp_path / "place")
    split = np.load(place / "store/split.npy")
    target, donor = (np.load(place / f"store/{n}.npy") for n in ("target", "contexts"))
    split[np.isin(target, [1, 2, 3]) & (donor[:, 0] == 1)] = 4
    np.save(place / "store/split.npy", split)
    metrics, _ = run(place, tmp_path / "out")
    rows = metrics.filter(pl.col("split") == "held_out_context", pl.col("context") == "donor=D2")
    assert set(rows["target_gene"]) == {"all", "ENSG1", "ENSG2", "ENSG3"}
    assert not {"measured_training", "low_rank"} & set(rows["method"])
    values = {m: value(metrics, "held_out_context", m, "pearson_delta")
              for m in ("other_context", "additive", "perturbation_mean")}  # fmt: skip
    assert min(values["other_context"], values["additive"]) > values["perturbation_mean"] + 0.2


def test_a_pooled_held_out_context_is_told_apart_in_each_of_its_contexts(tmp_path: Path) -> None:
    place = write_evaluated(tmp_path / "place")
    split = np.load(place / "store/split.npy")
    target, donor = (np.load(place / f"store/{n}.npy") for n in ("target", "contexts"))
    for code, held in ((1, 0), (2, 1), (3, 0), (4, 1)):  # another donor for each target
        split[(target == code) & (donor[:, 0] == held)] = 4
    np.save(place / "store/split.npy", split)
    metrics, _ = run(place, tmp_path / "out")
    rows = metrics.filter(
        pl.col("split") == "held_out_context",
        pl.col("metric") == "discrimination_score_l1",
        pl.col("method") == "other_context",
        pl.col("target_gene") != "all",
    )
    pooled = rows.filter(pl.col("context") == "all").sort("target_gene")
    separate = rows.filter(pl.col("context") != "all").sort("target_gene")
    assert pooled["target_gene"].to_list() == separate["target_gene"].to_list()
    assert pooled["value"].to_list() == pytest.approx(separate["value"].to_list())
    assert pooled["value"].min() > 0.5  # planted effects are the same in both donors


def test_the_ceiling_is_the_mean_over_halvings_and_corrected_target_by_target(
    found: tuple[pl.DataFrame, pl.DataFrame],
) -> None:
    rows = found[0].filter(
        pl.col("split") == "screened", pl.col("context") == "all",
        pl.col("metric") == "pearson_delta",
    )  # fmt: skip
    halves = rows.filter(method="split_half").sort("target_gene")
    ceilings = rows.filter(method="ceiling").sort("target_gene")
    of_target = pl.col("target_gene") != "all"
    r = halves.filter(of_target)["value"].to_numpy()
    expected = np.sqrt(2 * r / (1 + r))
    np.testing.assert_allclose(ceilings.filter(of_target)["value"].to_numpy(), expected)
    assert ceilings.filter(~of_target)["value"][0] == pytest.approx(expected.mean())
