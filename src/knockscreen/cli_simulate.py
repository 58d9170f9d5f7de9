"""The verb ``simulate``: the embedded screen."""

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(simulate)


def simulate(
    output_dir: Annotated[Path, typer.Option(help="Folder for the h5ad files and the truth.")],
    settings: Annotated[str, typer.Option(help="JSON text, or the path of a complete YAML.")],
) -> None:
    """Simulate a CD4+ screen with a known truth, one h5ad per donor and culture condition."""
    from knockscreen.config import Section, SimulateConfig, read_stage
    from knockscreen.simulate import write_screen

    class Stage(Section):
        simulate: SimulateConfig

    stage = read_stage(Stage, settings)
    paths = write_screen(stage.simulate, output_dir)
    typer.echo(f"{len(paths)} files, truth.npz and regulators.tsv in {output_dir}", err=True)
