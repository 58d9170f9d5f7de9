"""The configuration, its schema and its comments say the same, and mistakes are one sentence."""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from pydantic import BaseModel

from knockscreen.config import (
    Config,
    DataConfig,
    RankConfig,
    Section,
    expand_path,
    json_schema,
    merge,
    read_config,
    read_stage,
    read_values,
    validate,
)
from knockscreen.errors import ConfigError

ROOT = Path(__file__).parents[2]
MAIN = ROOT / "config/config.yaml"
SCENARIOS = sorted((ROOT / "config/scenarios").glob("*.yaml"))
SCHEMA = ROOT / "workflow/schemas/config.schema.json"


class RankStage(Section):
    """What a stage may read."""

    seed: int
    rank: RankConfig


def main_values() -> dict[str, Any]:
    return dict(yaml.safe_load(MAIN.read_text()))


def keys(model: type[BaseModel], prefix: str = "") -> set[str]:
    """Dotted names of all keys of a model and the sections in it."""
    found = set()
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found |= keys(kind, f"{prefix}{name}.")
        else:
            found.add(prefix + name)
    return found


def written(values: dict[str, Any], prefix: str = "") -> set[str]:
    free = {"data.contexts", "data.where"}
    found = set()
    for name, value in values.items():
        dotted = prefix + name
        inner = isinstance(value, dict) and dotted not in free
        found |= written(value, f"{dotted}.") if inner else {dotted}
    return found


def test_config_yaml_holds_every_key() -> None:
    assert written(main_values()) == keys(Config)


def test_every_key_of_config_yaml_is_commented() -> None:
    lines = MAIN.read_text().splitlines()
    section = re.compile(r"^( *)(columns|contexts|guidance|training):$|^\w+:$")
    bare = []
    inside_list = False
    for before, line in pairwise(lines):
        key = re.match(r"^ *(\w+):", line)
        if not key or section.match(line):
            inside_list = bool(section.match(line)) and "training" in line
            continue
        commented = "#" in line or before.lstrip().startswith("#")
        shares = re.match(r"^ *\w+:", before) is not None  # keys explained together
        if not (commented or shares or inside_list):
            bare.append(line)
    assert bare == []


def test_schema_is_in_step_with_the_models() -> None:
    assert SCHEMA.read_text() == json_schema(), "run 'make schema'"


def test_schema_is_closed_at_every_level() -> None:
    schema = json.loads(SCHEMA.read_text())
    for part in (schema, *schema["$defs"].values()):
        assert part["additionalProperties"] is False
    Draft202012Validator.check_schema(schema)


def test_schema_accepts_the_configuration_and_refuses_a_misspelt_key() -> None:
    validator = Draft202012Validator(json.loads(SCHEMA.read_text()))
    values = main_values()
    assert list(validator.iter_errors(values)) == []
    values["flow"]["stepss"] = 3
    assert len(list(validator.iter_errors(values))) == 1


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda path: path.stem)
def test_scenario_is_valid_and_named_after_its_file(scenario: Path) -> None:
    assert read_config(str(MAIN), str(scenario)).run == scenario.stem
    values = merge(main_values(), read_values(str(scenario)))
    validator = Draft202012Validator(json.loads(SCHEMA.read_text()))
    assert [error.message for error in validator.iter_errors(values)] == []


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda path: path.stem)
def test_scenario_shows_a_program_that_is_ranked(scenario: Path) -> None:
    config = read_config(str(MAIN), str(scenario))
    table = (ROOT / config.programs.file).read_text().splitlines()[1:]
    known = {line.split("\t", maxsplit=1)[0] for line in table}
    assert config.report.program in (config.programs.names or known)
    assert set(config.programs.names) <= known


def test_demo_is_the_configuration_itself() -> None:
    assert read_config(str(MAIN), str(ROOT / "config/scenarios/demo.yaml")) == read_config(
        str(MAIN)
    )


@pytest.mark.parametrize(
    ("overlay", "sentence"),
    [
        ({"simulat": {}}, r"unknown key 'simulat' in x; nearest: simulate\."),
        ({"qc": {"min_count": 5}}, r"unknown key 'qc.min_count' in x; nearest: min_counts"),
        ({"vae": {"training": {"step": 5}}}, r"unknown key 'vae.training.step' in x; nearest: st"),
        ({"rank": {"interval": 1.5}}, r"key 'rank.interval' in x is 1.5: .* less than or equal"),
        ({"screen": {"tolerance": 0}}, r"key 'screen.tolerance' in x is 0: .* greater than 0"),
        (
            {"screen": {"tolerance": 0.01, "blocks": 2}},
            r"key 'screen.tolerance' in x is 0.01: .*with 3 blocks or more, and there are 2\.",
        ),
        (
            {"screen": {"tolerance": 0.01, "draws": 2}},
            r"key 'screen.tolerance' in x is 0.01: .*with 3 blocks or more, and there are 2\.",
        ),
        ({"run": "../up"}, r"key 'run' in x is '../up'"),
        ({"data": {"preset": "generic"}}, r"'data.contexts' in x is None: .* has none of its own"),
    ],
)
def test_mistake_is_one_sentence(overlay: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        validate(Config, merge(main_values(), overlay), where="x")
    assert "\n" not in str(caught.value)


def test_missing_key_is_named() -> None:
    values = main_values()
    del values["flow"]["training"]["clip"]
    with pytest.raises(ConfigError, match=r"key 'flow.training.clip' is missing in x"):
        validate(Config, values, where="x")


def test_overlay_replaces_lists_and_merges_sections() -> None:
    base = {"a": {"x": 1, "y": [1, 2]}, "b": 3}
    assert merge(base, {"a": {"y": [9]}}) == {"a": {"x": 1, "y": [9]}, "b": 3}
    assert base["a"] == {"x": 1, "y": [1, 2]}


def test_contexts_of_an_overlay_replace_those_of_the_preset() -> None:
    values = main_values()["data"]
    preset = validate(DataConfig, values, where="x").contexts
    assert preset == {"donor": "donor_id", "time": "culture_condition"}
    own = validate(DataConfig, merge(values, {"contexts": {"well": "well"}}), where="x").contexts
    assert own == {"well": "well"}


def test_stage_reads_its_sections_of_a_complete_configuration() -> None:
    whole = read_stage(RankStage, str(MAIN))
    part = read_stage(RankStage, json.dumps({k: main_values()[k] for k in ("seed", "rank")}))
    assert whole == part


def test_stage_refuses_a_key_that_no_section_has() -> None:
    with pytest.raises(ConfigError, match="unknown key 'ranks' in the settings; nearest: rank"):
        read_stage(RankStage, '{"seed": 1, "ranks": {}}')


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("a: [", "is not YAML"), ("- a\n- b\n", "holds no mapping")],
)
def test_broken_settings_file_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        read_values(str(path))
    with pytest.raises(ConfigError, match="does not exist; give a YAML file"):
        read_values(str(tmp_path / "none.yaml"))


def test_paths_name_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KNOCKSCREEN_DATA", raising=False)
    assert expand_path("${KNOCKSCREEN_DATA}/a.h5ad") == "../shared/data/a.h5ad"
    monkeypatch.setenv("KNOCKSCREEN_DATA", "/d")
    values = main_values()["data"] | {"files": ["${KNOCKSCREEN_DATA}/a.h5ad", "${NO_SUCH_X}/b"]}
    assert validate(DataConfig, values, where="x").files == ["/d/a.h5ad", "${NO_SUCH_X}/b"]
