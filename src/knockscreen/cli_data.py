"""Verbs from raw counts to the training store: ``qc`` and ``normalize`` (and ``simulate``)."""

import importlib
import importlib.util
from pathlib import Path
from typing import Annotated

import typer

Settings = Annotated[
    str,
    typer.Option("--settings", "-s", help="Complete config file (YAML), or its sections as JSON."),
]
InputFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--input",
        "-i",
        help="Counts (.h5ad) or a folder of them; repeatable. [data.files]",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    if importlib.util.find_spec("knockscreen.cli_simulate"):
        importlib.import_module("knockscreen.cli_simulate").register(app)
    app.command("qc")(qc)
    app.command("normalize")(normalize)


def qc(
    settings: Settings,
    output_dir: Annotated[
        Path, typer.Option("--output-dir", "-o", help="Folder for the QC tables.")
    ],
    input: InputFiles = None,
) -> None:
    """Filter cells, guides and targets; write what was kept and why.

    Counts are read in chunks and checked: whole numbers, or one sentence that says what they are.
    """
    from knockscreen.config import read_stage
    from knockscreen.data.counts import find_inputs
    from knockscreen.data.qc import QcStage, run_qc

    stage = read_stage(QcStage, settings)
    run_qc(find_inputs(input or [Path(f) for f in stage.data.files]), stage, output_dir)
    typer.echo(f"QC tables: {output_dir}", err=True)


def normalize(
    settings: Settings,
    qc_dir: Annotated[Path, typer.Option("--qc-dir", help="Folder that 'knockscreen qc' wrote.")],
    output_dir: Annotated[
        Path, typer.Option("--output-dir", "-o", help="Folder for the training store.")
    ],
    input: InputFiles = None,
) -> None:
    """Choose the gene panel, split the cells, and write the training store."""
    from knockscreen.config import read_stage
    from knockscreen.data.counts import find_inputs
    from knockscreen.data.normalize import NormalizeStage, run_normalize
    from knockscreen.score.program_files import all_programs

    stage = read_stage(NormalizeStage, settings)
    paths = find_inputs(input or [Path(f) for f in stage.data.files])
    run_normalize(paths, qc_dir, stage, output_dir, programs=all_programs(stage.programs))
    typer.echo(f"training store: {output_dir}", err=True)
