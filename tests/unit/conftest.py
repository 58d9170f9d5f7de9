"""Fixtures of the simulated screen, made once; everything heavy is imported when asked for."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from knockscreen.simulate.world import World


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a simulated screen of 300 cells and 150 genes. Read only."""
    from fixtures.simulated import settings
    from knockscreen.simulate import write_screen

    folder = tmp_path_factory.mktemp("screen")
    write_screen(settings(), folder)
    return folder


@pytest.fixture(scope="session")
def full() -> "World":
    """The simulated world of 800 genes and 60 targets that the demo has."""
    from fixtures.simulated import settings
    from knockscreen.simulate import world

    return world.build_world(settings(genes=800, targets=60))
