"""The ``knockscreen`` command: one verb per stage and per question to the database."""

import importlib
import importlib.util
import logging
import sys
from typing import Annotated

import typer

from knockscreen import __version__
from knockscreen.errors import ScreenError

MODULES = (
    "cli_simulate",
    "cli_data",
    "cli_model",
    "cli_screen",
    "cli_embed",
    "cli_score",
    "cli_external",
    "cli_validate",
    "cli_evaluate",
    "cli_sweep",
    "cli_store",
    "cli_query",
    "cli_signature",
    "cli_plot",
)

app = typer.Typer(
    name="knockscreen",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="An in-silico perturbation screen: Perturb-seq counts in, ranked knock-downs out.",
)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"knockscreen {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and errors.")] = False,
) -> None:
    """Set up what every verb shares."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING if quiet else logging.INFO, format="%(message)s"
    )
    for name in ("matplotlib", "fontTools", "h5py", "numba"):
        logging.getLogger(name).setLevel(logging.WARNING)


for _name in MODULES:
    if importlib.util.find_spec(f"knockscreen.{_name}"):
        importlib.import_module(f"knockscreen.{_name}").register(app)


def main() -> None:
    """Run the command line: bad input is one line and exit code 2."""
    try:
        app()
    except ScreenError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        _fail("interrupted; run the same command again to go on.", 130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)


def _fail(message: str, code: int) -> None:
    sys.stderr.write(f"knockscreen: {' '.join(message.split())}\n")
    sys.exit(code)
