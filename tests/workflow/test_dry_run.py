"""Every scenario resolves to a complete set of jobs, and mistakes are one sentence."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fixtures.workplace import ROOT, TINY, Workplace

SCENARIOS = sorted(path.stem for path in (ROOT / "config/scenarios").glob("*.yaml"))
RULES = "\n".join(path.read_text() for path in sorted((ROOT / "rules").glob("*.smk")))
OPTIONAL = {"sweep", "plot_sweep", "program_weights"}
"""Rules that only run when their output, or a setting that needs it, is asked for."""
EVERY_RULE = set(re.findall(r"^(?:rule|use rule \w+ as) (\w+)", RULES, re.MULTILINE))


def overlay_of(scenario: str) -> dict[str, dict[str, object]]:
    return dict(yaml.safe_load((ROOT / f"config/scenarios/{scenario}.yaml").read_text()))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario_runs_every_stage(workplace: Workplace, scenario: str) -> None:
    overlay = overlay_of(scenario)
    for file in overlay.get("data", {}).get("files", []):  # type: ignore[attr-defined]
        path = Path(str(file).replace("${KNOCKSCREEN_DATA}", str(workplace.folder / "data")))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    jobs = workplace.jobs("--configfile", f"config/scenarios/{scenario}.yaml")
    simulated = overlay.get("simulate", {}).get("enabled", True)
    shards = overlay.get("screen", {}).get("shards", 4)
    assert set(jobs) == EVERY_RULE - OPTIONAL - (set() if simulated else {"simulate"}) | {"all"}
    assert {"qc", "train_vae", "generate", "rank", "build_db", "plot_ranking"} <= set(jobs)
    assert jobs["generate"] == jobs["score"] == shards


def test_a_base_model_stops_at_the_latents(workplace: Workplace) -> None:
    path = workplace.folder / "data/counts/pbmc_cd4_kang2018_ctrl_5donors.h5ad"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    jobs = workplace.jobs("base", "--configfile", "config/scenarios/pbmc.yaml")
    assert set(jobs) == {"qc", "normalize", "fit_effects", "train_vae", "encode", "base"}


def test_kept_cells_are_declared_outputs_of_their_shards(workplace: Workplace) -> None:
    overlay = workplace.overlay({"run": "kept", "screen": {"save_cells": True, "shards": 2}})
    shards = [f"results/kept/screen/shards/{shard}.h5ad" for shard in (0, 1)]
    assert workplace.jobs(*shards, "--configfile", overlay)["generate"] == 2


def test_a_fork_of_snakemake_says_what_the_command_says(workplace: Workplace) -> None:
    by_command = workplace.run("--dry-run", "--configfile", TINY)
    assert workplace.jobs("--configfile", TINY) == workplace.counted(by_command)
    broken = workplace.overlay({"flow": {"size": "huge"}})
    same = [call("--dry-run", "--configfile", broken) for call in (workplace.run, workplace.look)]
    assert same[0].returncode == same[1].returncode == 1
    said = [done.stdout + done.stderr for done in same]
    assert all("key 'flow.size' in the configuration is 'huge'" in text for text in said)


def test_both_entries_have_the_same_jobs(workplace: Workplace) -> None:
    root = workplace.jobs("--configfile", TINY)
    assert workplace.jobs("--configfile", TINY, entry="workflow/Snakefile") == root
    assert root["generate"] == 2


def test_replicates_train_and_screen_with_models_of_their_own(workplace: Workplace) -> None:
    one = workplace.jobs("--configfile", TINY)
    three = workplace.jobs("--configfile", TINY, workplace.overlay({"replicates": 3}))
    of_models = {"train_vae", "encode", "train_flow", "generate_control", "generate", "score"}
    assert three.keys() == one.keys()
    assert {rule for rule in one if three[rule] == 3 * one[rule]} == of_models
    assert all(three[rule] == one[rule] for rule in set(one) - of_models - {"total"})


def test_a_replicate_has_a_seed_and_a_folder_of_its_own(workplace: Workplace) -> None:
    values = workplace.overlay({"replicates": 2, "seed": 7})
    plain = workplace.run("--dry-run", "--printshellcmds", "--configfile", TINY, values).stdout
    flow = [line for line in plain.splitlines() if "knockscreen train-flow" in line]
    assert len(flow) == 2
    first, second = sorted(flow, key=lambda line: "replicates/2" in line)
    assert '"seed": 7' in first
    assert '"seed": 8' in second
    assert second.replace("replicates/2/", "").replace('"seed": 8', '"seed": 7') == first
    rank = next(line for line in plain.splitlines() if "knockscreen rank" in line)
    assert "--replicate-dir=results/tiny/replicates/2/score/programs" in rank


def test_workflow_is_lint_clean(workplace: Workplace) -> None:
    linted = workplace.look("--lint")
    assert "in a good condition" in linted.stdout + linted.stderr


def test_every_rule_has_log_and_environment() -> None:
    for path in (ROOT / "rules").glob("*.smk"):
        for part in path.read_text().split("\n\n\n"):
            if re.search(r"^(use )?rule \w+", part, re.MULTILINE):
                assert "    log:" in part, part
                assert "    conda:" in part or "use rule" in part, part


def test_slurm_profile_asks_for_a_gpu_where_a_model_runs() -> None:
    profile = yaml.safe_load((ROOT / "profiles/slurm/profile.yaml").read_text())
    asked = {rule for rule, wants in profile["set-resources"].items() if wants.get("gpu")}
    model = {"train_vae", "encode", "train_flow"}
    assert asked == model | {"generate_control", "generate", "generate_matched", "sweep"}
    for rule in profile["set-resources"] | profile["set-threads"]:
        assert rule in EVERY_RULE


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"simulat": {"cells": 3}},
            "unknown key 'simulat' in the configuration; nearest: simulate",
        ),
        ({"flow": {"size": "huge"}}, "key 'flow.size' in the configuration is 'huge'"),
        (
            {"simulate": {"enabled": False}, "data": {"files": ["${NOWHERE}/a.h5ad"]}},
            "data.files names '${NOWHERE}/a.h5ad', and ${NOWHERE}/a.h5ad does not exist",
        ),
        ({"simulate": {"enabled": False}}, "data.files is empty and simulate.enabled is false"),
        ({"effect": {"features": "esm.parquet"}}, "effect.features names 'esm.parquet'"),
    ],
)
def test_mistake_in_the_configuration_is_named(
    workplace: Workplace, values: dict[str, object], sentence: str
) -> None:
    done = workplace.look("--dry-run", "--configfile", workplace.overlay(values))
    assert done.returncode != 0
    assert sentence in done.stdout + done.stderr


def unlock(folder: Path) -> subprocess.CompletedProcess[str]:
    script = ROOT / "workflow/scripts/unlock.py"
    return subprocess.run(
        [sys.executable, str(script)], cwd=folder, capture_output=True, text=True, check=False
    )


def test_lock_of_a_killed_run_is_removed(tmp_path: Path) -> None:
    lock = tmp_path / ".snakemake/locks/0.input.lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    assert unlock(tmp_path).returncode == 0
    assert not lock.exists()


def test_lock_of_a_running_workflow_stays(tmp_path: Path) -> None:
    lock = tmp_path / ".snakemake/locks/0.input.lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    (tmp_path / "snakemake").write_text("import time; print('up', flush=True); time.sleep(60)")
    command = [sys.executable, str(tmp_path / "snakemake")]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        running.stdout.readline()
        refused = unlock(tmp_path)
        running.kill()
    assert refused.returncode == 2
    assert str(running.pid) in refused.stderr
    assert lock.exists()
