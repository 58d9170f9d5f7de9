"""Every command of docs/queries.md, run on the hand-made run; ten answers that are known there."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from fixtures.tiny_run import make_tiny_run
from knockscreen.cli import app
from knockscreen.config import merge
from knockscreen.store.build import build

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/queries.md").read_text()
SECTIONS = dict(re.findall(r"^## (\d+)\. .*?\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
COMMANDS = {
    number: re.findall(r"^    (knockscreen .*)$", text, re.MULTILINE)
    for number, text in SECTIONS.items()
}
KNOWN = {
    "1": "RORC",  # the first toward Treg
    "2": "AUROC 0.50 < 0.7",  # why Treg is exploratory
    "3": "FOXP3: genes moved most",
    "4": "FOXP3",  # lowers IL2RA most
    "5": "Treg against Th17",
    "6": "score in time=Stim8hr: -0.525 predicted",  # STAT3: (-0.3 - 0.4) / 2 * 1.5
    "7": "knock-downs that undo signature.csv",
    "8": "Th17_not_Treg, toward",
    "9": "predicted",
    "10": "not_expressed",
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with the run ``tiny`` and what the commands name."""
    folder = tmp_path_factory.mktemp("work")
    run = make_tiny_run(folder / "results/tiny")
    shutil.copytree(ROOT / "docs/examples", folder / "docs/examples")
    shutil.copytree(ROOT / "config", folder / "config")
    settings = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    settings = merge(settings, {"run": "tiny", "programs": {"min_genes": 1}})
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    build(run, run / "programs.tsv", run / "screen.duckdb", str(folder / "settings.yaml"))
    return folder


def test_there_are_ten_questions_each_with_its_command() -> None:
    assert list(COMMANDS) == [str(n) for n in range(1, 11)]
    assert all(COMMANDS.values())


@pytest.mark.parametrize("number", COMMANDS)
def test_the_worked_question_is_answered(
    number: str, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(work)
    printed = ""
    for command in COMMANDS[number]:
        words = shlex.split(command.replace("demo", "tiny"))[1:]
        done = CliRunner().invoke(app, words, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        printed += done.output
    assert KNOWN[number] in printed
