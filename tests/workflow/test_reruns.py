"""A changed setting or source reruns its stage and what follows, and nothing else."""

import pytest

from fixtures.workplace import TINY, Workplace

FIGURES = {f"plot_{name}" for name in (
    "qc", "loss", "cells", "volcano", "ranking", "heatmap", "measured", "calibration",
    "evaluation", "targets",
)}  # fmt: skip
OF_SCORES = {
    "plot_volcano", "plot_ranking", "plot_heatmap", "plot_measured", "plot_calibration",
}  # fmt: skip
EVALUATED = {"evaluate", "plot_evaluation", "plot_targets"}
RANKED = {"gate", "rank", "build_db"} | OF_SCORES
SCREENED = EVALUATED | {
    "plan",
    "generate_control",
    "generate",
    "generate_matched",
    "score",
    "plot_cells",
}
FLOWED = {"train_flow", "plot_loss"} | SCREENED | RANKED
TRAINED = {"train_vae", "encode"} | FLOWED
FITTED = {"fit_effects"} | TRAINED
STORED = {"normalize", "measure", "load_external"} | FITTED | FIGURES
ALL = {"simulate", "qc"} | STORED


def rerun(place: Workplace, *arguments: str) -> set[str]:
    return set(place.jobs("--configfile", TINY, *arguments)) - {"all"}


def test_a_finished_run_has_nothing_to_do(finished: Workplace) -> None:
    assert rerun(finished) == set()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"report": {"top": 7}}, {"build_db"} | FIGURES),
        ({"rank": {"interval": 0.8}},
         {"score", "measure", "load_external", "evaluate"} | RANKED | FIGURES),
        ({"screen": {"draws": 6}}, SCREENED | RANKED),
        ({"evaluate": {"min_cells": 5}}, EVALUATED),
        ({"flow": {"target_dropout": 0.3}}, FLOWED),
        ({"vae": {"kl_weight": 0.1}}, TRAINED),
        ({"effect": {"rank": 3}}, FITTED),
        ({"splits": {"validation": 0.2}}, STORED),
        ({"qc": {"min_genes": 40}}, {"qc"} | STORED),
        ({"simulate": {"cells": 2600}}, ALL),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_changed_setting_reruns_its_stage_and_what_follows(
    finished: Workplace, values: dict[str, object], expected: set[str]
) -> None:
    assert rerun(finished, finished.overlay(values)) == expected | {"build_db"}


@pytest.mark.parametrize(
    ("path", "old", "new", "expected"),
    [
        ("src/knockscreen/score/rank.py", "\n\n\n", "\n\n\nNEW = 1\n\n\n",
         {"load_external"} | RANKED),
        ("src/knockscreen/figures/style.py", "\n\n\n", "\n\n\nNEW = 1\n\n\n", FIGURES),
        ("src/knockscreen/store/schema.sql", "\n", "\n-- a remark\n", {"build_db"}),
        ("src/knockscreen/sampling.py", "\n\n\n", "\n\n\nNEW = 1\n\n\n",
         SCREENED | RANKED),
        ("src/knockscreen/training/loop.py", "\n\n\n", "\n\n\nNEW = 1\n\n\n", set()),
        ("src/knockscreen/names.py", '"""', '"""New words: ', set()),
    ],
    ids=["rank", "figures", "schema", "sampling", "training", "docstring"],
)  # fmt: skip
def test_changed_source_reruns_its_stage_and_what_follows(
    finished: Workplace, path: str, old: str, new: str, expected: set[str]
) -> None:
    undo = finished.edit(path, old, new)
    try:
        assert rerun(finished) == expected
    finally:
        undo()


def test_bumped_training_version_retrains(finished: Workplace) -> None:
    train_flow = '("seed", "flow"), version='
    undo = finished.edit("src/knockscreen/stages.py", train_flow, f"{train_flow}100 + ")
    try:
        assert rerun(finished) == FLOWED
    finally:
        undo()


def test_shards_depend_on_the_programs_only_where_draws_stop_for_them(finished: Workplace) -> None:
    shards = ("--dry-run", "--printshellcmds", "--configfile", TINY)
    for screen, wanted in ({"blocks": 3}, False), ({"blocks": 3, "tolerance": 0.01}, True):
        done = finished.look(*shards, finished.overlay({"screen": screen}))
        assert finished.counted(done).get("program_weights", 0) == wanted
        text = done.stdout + done.stderr
        assert ("--weights=results/tiny/screen/weights.npz" in text) == wanted


def test_changed_program_table_reruns_what_reads_it(finished: Workplace) -> None:
    undo = finished.edit("config/programs.tsv", "\t1\t", "\t2\t")
    try:
        assert rerun(finished) == STORED
    finally:
        undo()
