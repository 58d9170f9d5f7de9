"""What the workflow knows about its stages, held against the verbs themselves."""

import ast
import importlib
import json
from pathlib import Path

import pytest
import typer
import yaml

from knockscreen import stages
from knockscreen.cli import app
from knockscreen.config import Config
from knockscreen.stages import PLUMBING, SOURCE, STAGES, Stage, code_digest, meaning, settings

ROOT = Path(__file__).parents[2]
CONFIG = yaml.safe_load((ROOT / "config/config.yaml").read_text())
VERBS = [(stage, verb) for stage, entry in STAGES.items() for verb in entry.verbs]
CODED = [(stage, verb) for stage, verb in VERBS if STAGES[stage].version is None]


def callback(verb: str) -> tuple[Path, str]:
    """File and name of the function behind a verb."""
    for command in app.registered_commands:
        function = command.callback
        assert function is not None
        if (command.name or function.__name__.replace("_", "-")) == verb:
            module = importlib.import_module(function.__module__)
            return Path(str(module.__file__)), function.__name__
    pytest.fail(f"the workflow calls 'knockscreen {verb}', which does not exist")


def imported(nodes: list[ast.stmt]) -> set[str]:
    """Modules of the package that these statements import, as paths below the package."""
    names = set()
    for node in (inner for outer in nodes for inner in ast.walk(outer)):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    files = set()
    for name in names:
        below = SOURCE.joinpath(*name.split(".")[1:])
        if name.split(".")[0] == "knockscreen" and name != "knockscreen":
            files |= {p for p in (below.with_suffix(".py"), below / "__init__.py") if p.is_file()}
    return {p.relative_to(SOURCE).as_posix() for p in files}


def used(verb: str) -> set[str]:
    """Every source of the package that a verb uses, in any depth."""
    path, function = callback(verb)
    queue = imported(stages.reachable(ast.parse(path.read_text()), function))
    found: set[str] = set()
    while queue:
        file = queue.pop()
        if file not in found and Path(file).stem not in PLUMBING:
            found.add(file)
            queue |= imported(ast.parse((SOURCE / file).read_text()).body)
    return found


def declared(stage: str) -> set[str]:
    return {
        path.relative_to(SOURCE).as_posix()
        for pattern in STAGES[stage].sources
        for path in SOURCE.glob(pattern.partition("::")[0])
    }


@pytest.mark.parametrize(("stage", "verb"), CODED)
def test_stage_declares_every_source_its_verb_uses(stage: str, verb: str) -> None:
    missing = used(verb) - declared(stage)
    assert missing == set(), f"add them to the sources of '{stage}' in stages.py"


@pytest.mark.parametrize(("stage", "verb"), CODED)
def test_stage_declares_the_verb_itself(stage: str, verb: str) -> None:
    path, function = callback(verb)
    assert f"{path.name}::{function}" in STAGES[stage].sources


@pytest.mark.parametrize("stage", [name for name, entry in STAGES.items() if entry.sources])
def test_every_declared_source_exists(stage: str) -> None:
    for pattern in STAGES[stage].sources:
        assert list(SOURCE.glob(pattern.partition("::")[0])), pattern


@pytest.mark.parametrize(("stage", "verb"), VERBS)
def test_verb_reads_no_section_that_its_stage_does_not_pass(stage: str, verb: str) -> None:
    path, function = callback(verb)
    module = importlib.import_module(f"knockscreen.{path.stem}")
    tree = ast.parse(path.read_text())
    scope = dict(vars(module))
    nodes = stages.reachable(tree, function)
    for node in (inner for outer in nodes for inner in ast.walk(outer)):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("knockscreen"):
            exec(ast.unparse(node), scope)
    models = [
        eval(ast.unparse(call.args[0]), scope)
        for outer in nodes
        for call in ast.walk(outer)
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("read_stage")
    ]
    read = {name for model in models for name in model.model_fields}
    assert read <= set(STAGES[stage].sections)
    if models and stage != "build_db":
        assert read == set(STAGES[stage].sections), "a section that is not read reruns for nothing"


def test_settings_hold_the_stage_sections_and_nothing_else() -> None:
    assert json.loads(settings("rank", CONFIG)).keys() == {"seed", "rank", "programs"}


def test_settings_do_not_depend_on_the_order_of_keys() -> None:
    backwards = json.loads(json.dumps(CONFIG), object_pairs_hook=lambda p: dict(reversed(p)))
    assert settings("train_vae", backwards) == settings("train_vae", CONFIG)


def test_every_section_of_the_configuration_reaches_a_stage() -> None:
    passed = {section for entry in STAGES.values() for section in entry.sections}
    assert passed == set(Config.model_fields)
    others = [entry.sections for name, entry in STAGES.items() if name != "build_db"]
    assert {s for sections in others for s in sections} >= passed - {"run"}


def test_database_records_the_whole_configuration() -> None:
    assert set(STAGES["build_db"].sections) == set(Config.model_fields)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stage ``s`` of one package file and one verb, in a package of its own."""
    (tmp_path / "core.py").write_text('"""Core."""\n\nLIMIT = 3\n')
    (tmp_path / "cli_x.py").write_text(
        "WIDTH = 2\n\ndef helper():\n    return WIDTH\n\n"
        "def verb():\n    return helper()\n\ndef other():\n    return 7\n"
    )
    (tmp_path / "table.tsv").write_text("a\tb\n")
    monkeypatch.setattr(stages, "SOURCE", tmp_path)
    entry = Stage(("verb",), (), ("core.py", "table.tsv", "cli_x.py::verb"))
    monkeypatch.setitem(STAGES, "s", entry)
    monkeypatch.setitem(STAGES, "trained", Stage(("train",), (), version=4))
    return tmp_path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("core.py", "3", "4"),
        ("cli_x.py", "return helper()", "return helper() + 1"),
        ("cli_x.py", "return WIDTH", "return WIDTH + 1"),
        ("cli_x.py", "WIDTH = 2", "WIDTH = 5"),
        ("table.tsv", "b", "c"),
    ],
)
def test_digest_changes_with_what_the_stage_computes(
    stage: Path, file: str, old: str, new: str
) -> None:
    before = code_digest("s")
    edit(stage / file, old, new)
    assert code_digest("s") != before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("core.py", "LIMIT = 3", "LIMIT = 3  # cells"),
        ("core.py", "Core.", "The core."),
        ("core.py", "LIMIT = 3", 'LIMIT = 3\n"""Cells at most."""'),
        ("cli_x.py", "def verb():\n", 'def verb():\n    """Do it."""\n'),
        ("cli_x.py", "return 7", "return 8"),
    ],
)
def test_digest_ignores_comments_docstrings_and_other_verbs(
    stage: Path, file: str, old: str, new: str
) -> None:
    before = code_digest("s")
    edit(stage / file, old, new)
    assert code_digest("s") == before


def test_digest_of_a_training_stage_is_its_version(stage: Path) -> None:
    edit(stage / "core.py", "3", "4")
    assert code_digest("trained") == "v4"


def test_meaning_of_a_function_without_docstring_is_that_with_it() -> None:
    bare = "def f(x):\n    return x\n"
    assert meaning(bare) == meaning('def f(x):\n    """Return x."""\n    return (x)  # itself\n')
    assert meaning(bare) != meaning("def f(x):\n    return x + 1\n")


def test_workflow_calls_every_verb_of_the_stages() -> None:
    rules = "\n".join(path.read_text() for path in (ROOT / "rules").glob("*.smk"))
    for _, verb in VERBS:
        assert f'"knockscreen {verb} ' in rules
    assert typer.main.get_command(app) is not None
