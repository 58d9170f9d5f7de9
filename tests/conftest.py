"""Fixtures that several files share; everything heavy is imported when it is asked for."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of 200 cells and the three checkpoints trained on it. Read only."""
    import torch

    from fixtures import models
    from knockscreen.data.cells import CellStore

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    models.train_models(CellStore.open(models.tiny_store(folder / "store")), folder)
    return folder
