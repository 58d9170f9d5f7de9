"""The model modules on an image with torch, numpy and safetensors, and nothing else."""

import subprocess
import sys

BLOCKED = (
    "polars",
    "duckdb",
    "scanpy",
    "snakemake",
    "pydantic",
    "anndata",
    "pandas",
    "typer",
    "numba",
)
SCRIPT = """
import importlib, pkgutil, sys
for name in {blocked}:
    sys.modules[name] = None  # importing it raises ImportError
import knockscreen.nn, knockscreen.models, knockscreen.training
for package in (knockscreen.nn, knockscreen.models, knockscreen.training):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
for name in (
    "flow", "checkpoint", "stopping", "sampling", "screening", "data.cells", "data.features"
):
    importlib.import_module("knockscreen." + name)
print(len([name for name in sys.modules if name.startswith("knockscreen.")]))
try:
    import knockscreen.plan
except ImportError as error:
    print(error.name)
"""


def test_model_modules_import_without_tables_workflow_or_settings():
    script = SCRIPT.format(blocked=BLOCKED)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    modules, refused = done.stdout.split()
    assert int(modules) > 20
    assert refused == "polars"  # the block works
