"""The verb ``simulate``: the embedded screen."""

from pathlib import Path
from typing import Annotated

import typer

from knockscreen.config import Section, SimulateConfig, read_stage


class SimulateStage(Section):
    """Settings of ``knockscreen simulate``."""

    simulate: SimulateConfig


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(simulate)


def simulate(
    output_dir: Annotated[Path, typer.Option(help="Folder for the h5ad files and the truth.")],
    settings: Annotated[str, typer.Option(help="JSON text, or the path of a complete YAML.")],
) -> None:
    """Simulate a CD4+ screen with a known truth, one h5ad per donor and culture condition."""
    stage = read_stage(SimulateStage, settings)
    from knockscreen.simulate import write_screen

    paths = write_screen(stage.simulate, output_dir)
    typer.echo(f"{len(paths)} files, truth.npz and regulators.tsv in {output_dir}", err=True)
