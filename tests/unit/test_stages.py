"""What the workflow knows about its stages, held against the verbs themselves."""

import ast
import importlib
import json
from pathlib import Path

import pytest
import yaml

from knockscreen import stages
from knockscreen.cli import app
from knockscreen.config import Config
from knockscreen.stages import SOURCE, STAGES, Stage, code_digest, meaning, modules, settings

ROOT = Path(__file__).parents[2]
CONFIG = yaml.safe_load((ROOT / "config/config.yaml").read_text())
ENTRIES = [(stage, entry) for stage, listed in STAGES.items() for entry in listed.entries]


def below(paths: list[Path]) -> set[str]:
    return {path.relative_to(stages.SOURCE).as_posix() for path in paths}


@pytest.mark.parametrize(("stage", "entry"), ENTRIES)
def test_entry_is_the_function_of_a_verb_that_the_workflow_calls(stage: str, entry: str) -> None:
    file, _, function = entry.partition("::")
    verb = function.replace("_", "-")
    callbacks = {
        command.name or command.callback.__name__.replace("_", "-"): command.callback
        for command in app.registered_commands
        if command.callback
    }
    assert verb in callbacks
    assert callbacks[verb].__module__ == f"knockscreen.{Path(file).stem}"
    assert callbacks[verb].__name__ == function
    rules = "\n".join(path.read_text() for path in (ROOT / "rules").glob("*.smk"))
    assert f'"knockscreen {verb} ' in rules


@pytest.mark.parametrize(("stage", "entry"), ENTRIES)
def test_stage_passes_the_sections_that_its_verb_reads(stage: str, entry: str) -> None:
    file, _, function = entry.partition("::")
    module = importlib.import_module(f"knockscreen.{Path(file).stem}")
    nodes = stages.reachable(ast.parse((SOURCE / file).read_text()), function)
    scope = dict(vars(module))
    found = [node for outer in nodes for node in ast.walk(outer)]
    for node in found:  # verbs import, and may define the model of their sections, when they run
        ours = isinstance(node, ast.ImportFrom) and str(node.module).startswith("knockscreen")
        if ours or (isinstance(node, ast.ClassDef) and node.bases):
            exec(ast.unparse(node), scope)
    models = [
        eval(ast.unparse(node.args[0]), scope)
        for node in found
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("read_stage")
    ]
    read = {name for model in models for name in model.model_fields}
    assert read == set(STAGES[stage].sections) or (stage == "build_db" and not models)


def test_sources_are_those_that_a_verb_imports() -> None:
    ranked = below(modules(STAGES["rank"].entries))
    assert {"score/rank.py", "names.py"} <= ranked
    assert (
        not {"score/effects.py", "figures/ranking.py", "config/model.py", "artifacts.py"} & ranked
    )
    assert "data/qc.py" in below(modules(STAGES["qc"].entries))
    assert "simulate/screen.py" in below(modules(STAGES["simulate"].entries))


@pytest.mark.parametrize("stage", [name for name, entry in STAGES.items() if entry.files])
def test_every_declared_file_exists(stage: str) -> None:
    assert all(list(SOURCE.glob(pattern)) for pattern in STAGES[stage].files)


def test_every_file_that_is_not_python_is_declared_by_a_stage() -> None:
    declared = {p for entry in STAGES.values() for glob in entry.files for p in SOURCE.glob(glob)}
    found = (p for p in SOURCE.rglob("*.*") if p.parent.name != "__pycache__")
    others = {p for p in found if p.suffix not in {".py", ".typed"}}
    assert others == declared


def test_settings_hold_the_stage_sections_and_nothing_else() -> None:
    assert json.loads(settings("score", CONFIG)).keys() == {"rank", "programs"}


def test_settings_do_not_depend_on_the_order_of_keys() -> None:
    backwards = json.loads(json.dumps(CONFIG), object_pairs_hook=lambda p: dict(reversed(p)))
    assert settings("train_vae", backwards) == settings("train_vae", CONFIG)


def test_every_section_of_the_configuration_reaches_a_stage() -> None:
    passed = {s for name, entry in STAGES.items() if name != "build_db" for s in entry.sections}
    elsewhere = {"run", "replicates", "annotations"}  # read by the workflow and by build_db
    assert passed == set(Config.model_fields) - elsewhere


def test_database_records_the_whole_configuration() -> None:
    assert set(STAGES["build_db"].sections) == set(Config.model_fields)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of its own: stage ``s`` with a verb that reaches ``core`` by a lazy import."""
    (tmp_path / "core.py").write_text(
        '"""Core."""\n\nfrom knockscreen.deep import below\n\nLIMIT = 3\n'
    )
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/__init__.py").write_text("START = 0\n")
    (tmp_path / "deep/below.py").write_text("DEPTH = 1\n")
    (tmp_path / "aside.py").write_text("ASIDE = 1\n")
    (tmp_path / "errors.py").write_text("TEXT = 1\n")
    (tmp_path / "cli_x.py").write_text(
        "from knockscreen.aside import ASIDE\n\nWIDTH = 2\n\n"
        "def helper():\n    from knockscreen import core, errors\n    return WIDTH + core.LIMIT\n\n"
        "def verb():\n    return helper()\n\ndef other():\n    return ASIDE + 7\n"
    )
    (tmp_path / "table.tsv").write_text("a\tb\n")
    monkeypatch.setattr(stages, "SOURCE", tmp_path)
    monkeypatch.setitem(STAGES, "s", Stage(("cli_x.py::verb",), (), files=("*.tsv",)))
    monkeypatch.setitem(STAGES, "other", Stage(("cli_x.py::other",), ()))
    monkeypatch.setitem(STAGES, "trained", Stage(("cli_x.py::verb",), (), version=4))
    return tmp_path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_imports_are_followed_in_any_depth_and_no_further(toy: Path) -> None:
    expected = {"core.py", "deep/__init__.py", "deep/below.py"}
    assert below(modules(STAGES["s"].entries)) == expected
    assert below(modules(STAGES["other"].entries)) == {"aside.py"}


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("core.py", "3", "4"),
        ("deep/below.py", "1", "2"),
        ("deep/__init__.py", "0", "1"),
        ("cli_x.py", "return helper()", "return helper() + 1"),
        ("cli_x.py", "WIDTH + core", "WIDTH - core"),
        ("cli_x.py", "WIDTH = 2", "WIDTH = 5"),
        ("table.tsv", "b", "c"),
    ],
)
def test_digest_changes_with_what_the_stage_computes(
    toy: Path, file: str, old: str, new: str
) -> None:
    before = code_digest("s")
    edit(toy / file, old, new)
    assert code_digest("s") != before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("core.py", "LIMIT = 3", "LIMIT = 3  # cells"),
        ("core.py", "Core.", "The core."),
        ("core.py", "LIMIT = 3", 'LIMIT = 3\n"""Cells at most."""'),
        ("cli_x.py", "def verb():\n", 'def verb():\n    """Do it."""\n'),
        ("cli_x.py", "ASIDE + 7", "ASIDE + 8"),
        ("aside.py", "1", "2"),
        ("errors.py", "1", "2"),
    ],
)
def test_digest_ignores_words_plumbing_and_other_verbs(
    toy: Path, file: str, old: str, new: str
) -> None:
    before = code_digest("s")
    edit(toy / file, old, new)
    assert code_digest("s") == before


def test_digest_of_a_training_stage_is_its_version(toy: Path) -> None:
    edit(toy / "core.py", "3", "4")
    assert code_digest("trained") == "v4"


def test_meaning_of_a_function_without_docstring_is_that_with_it() -> None:
    bare = "def f(x):\n    return x\n"
    assert meaning(bare) == meaning('def f(x):\n    """Return x."""\n    return (x)  # itself\n')
    assert meaning(bare) != meaning("def f(x):\n    return x + 1\n")
