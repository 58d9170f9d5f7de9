"""Folders to run the workflow in: fresh, taken for finished, and really finished."""

from collections.abc import Iterator

import pytest

from fixtures.forked import ForkedSnakemake
from fixtures.workplace import TINY, Workplace, make_workplace


@pytest.fixture(scope="session")
def snakemake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkedSnakemake]:
    """Snakemake, imported once for all dry runs."""
    forked = ForkedSnakemake(tmp_path_factory.mktemp("cache"))
    yield forked
    forked.close()


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory, snakemake: ForkedSnakemake) -> Workplace:
    """A fresh folder in which nothing has run: for dry runs."""
    return make_workplace(tmp_path_factory.mktemp("workflow"), snakemake)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, snakemake: ForkedSnakemake) -> Workplace:
    """A folder in which Snakemake takes the tiny scenario for finished; its files are empty."""
    place = make_workplace(tmp_path_factory.mktemp("finished"), snakemake)
    listed = place.look("--configfile", TINY, "--summary").stdout.splitlines()[1:]
    for line in listed:
        path = place.folder / line.split("\t")[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    touched = place.look("--configfile", TINY, "--touch", "--forceall")
    assert touched.returncode == 0, touched.stderr
    return place


@pytest.fixture(scope="session")
def ran(tmp_path_factory: pytest.TempPathFactory, snakemake: ForkedSnakemake) -> Workplace:
    """A folder in which the tiny scenario has really run, from simulated counts to figures."""
    place = make_workplace(tmp_path_factory.mktemp("ran"), snakemake)
    done = place.run("--configfile", TINY, "--show-failed-logs")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return place
