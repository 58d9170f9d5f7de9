"""The shape of the package, read from its imports: who may use whom, and which library where."""

import ast
import sys
from functools import lru_cache
from pathlib import Path

import pytest

import knockscreen

PACKAGE = Path(knockscreen.__file__).parent

# From the bottom up. A module imports only from lower rows, or from files of its own folder.
LAYERS = (
    ("errors", "compiled"),
    ("names", "gene_names"),
    ("config", "artifacts"),
    ("stages", "progress"),
    ("data", "simulate"),
    ("data.gather", "data.cells", "data.features", "nn", "flow", "stopping"),
    ("checkpoint",),
    ("models",),
    ("training",),
    ("sampling",),
    ("plan", "screening", "generated", "embedding"),
    ("score", "run_tables"),
    ("store", "figures", "sweep"),
    ("cli",),
)
MODEL = (
    "data.gather",
    "data.cells",
    "nn",
    "models",
    "checkpoint",
    "flow",
    "training",
    "stopping",
    "sampling",
    "screening",
)
"""What has to run on a bare GPU image: torch, numpy and safetensors are all there is."""


def modules() -> dict[str, Path]:
    """Module name without the package's, e.g. ``data.qc``, and its file."""
    files = sorted(PACKAGE.rglob("*.py"))
    names = {p: ".".join(p.relative_to(PACKAGE).with_suffix("").parts) for p in files}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


MODULES = modules()


@lru_cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def later(tree: ast.Module) -> set[int]:
    """Nodes that do not run at import time: function bodies, and what only type checkers see."""
    found = set()
    for node in ast.walk(tree):
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or typing_only:
            found |= {id(inner) for inner in ast.walk(node)}
    return found


@lru_cache
def imports(path: Path, *, lazy: bool = True) -> list[tuple[str, int]]:
    """Imported modules and their lines; with ``lazy=False`` only those at import time."""
    tree = parsed(path)
    skipped = set() if lazy else later(tree)
    found = []
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                known = full.removeprefix("knockscreen.") in MODULES
                found.append((full if known else node.module, node.lineno))
    return found


def layer(module: str) -> int:
    """Row of the module: the row with its longest matching name."""
    head = "cli" if module == "cli" or module.startswith("cli_") else module
    rows = [
        (len(name), row)
        for row, group in enumerate(LAYERS)
        for name in group
        if head == name or head.startswith(f"{name}.")
    ]
    assert rows, f"src/knockscreen/{module} is in no layer; add it to LAYERS"
    return max(rows)[1]


def upward(module: str, path: Path) -> list[str]:
    """Imports of ``module`` that do not point down."""
    found = []
    for name, line in imports(path):
        if not name.startswith("knockscreen."):
            continue
        other = name.removeprefix("knockscreen.")
        own_folder = other.split(".", 1)[0] == module.split(".", 1)[0]
        both_cli = module.startswith("cli") and other.startswith("cli")
        if layer(other) >= layer(module) and not (own_folder or both_cli):
            found.append(f"{path.name}:{line} imports {other}")
        if own_folder and layer(other) > layer(module):
            found.append(f"{path.name}:{line} imports {other}")
    return found


CHECKED = sorted(set(MODULES) - {"__init__"})


@pytest.mark.parametrize("module", CHECKED)
def test_module_imports_only_lower_layers(module: str) -> None:
    if not MODULES[module].read_text().strip():
        pytest.skip("an empty package file")
    assert upward(module, MODULES[module]) == []


def users(library: str, *, lazy: bool = True) -> set[str]:
    """Modules that import the library."""
    return {
        module
        for module, path in MODULES.items()
        if any(name.split(".")[0] == library for name, _ in imports(path, lazy=lazy))
    }


def outside(found: set[str], allowed: tuple[str, ...]) -> set[str]:
    return {m for m in found if not any(m == a or m.startswith(f"{a}.") for a in allowed)}


def test_nothing_in_the_package_knows_snakemake() -> None:
    assert users("snakemake") == set()


def test_torch_stays_in_the_model_modules() -> None:
    verbs = {m for m in MODULES if m.startswith("cli_")}  # they may, inside a verb
    allowed = (*MODEL, "data.features", "generated", "embedding", *verbs)
    assert outside(users("torch"), allowed) == set()
    assert users("torch") & set(MODULES) >= {"flow"}, "the check sees the model modules"


def test_matplotlib_stays_in_the_figures() -> None:
    verbs = {m for m in MODULES if m.startswith("cli_")}
    assert outside(users("matplotlib"), ("figures", *verbs)) == set()


HEAVY = (
    "torch",
    "scanpy",
    "anndata",
    "polars",
    "duckdb",
    "matplotlib",
    "scipy",
    "numpy",
    "pyarrow",
)


@pytest.mark.parametrize("library", HEAVY)
def test_command_line_starts_without(library: str) -> None:
    early = {m for m in users(library, lazy=False) if m == "cli" or m.startswith("cli_")}
    assert early == set(), f"import {library} inside the verb, so that help stays quick"


def closure(start: list[str]) -> set[str]:
    """Modules of the package that ``start`` imports when it is imported, in any depth."""
    found: set[str] = set()
    queue = list(start)
    while queue:
        module = queue.pop()
        if module in found or module not in MODULES:
            continue
        found.add(module)
        queue += [
            name.removeprefix("knockscreen.")
            for name, _ in imports(MODULES[module], lazy=False)
            if name.startswith("knockscreen.")
        ]
    return found


def test_model_modules_run_on_torch_numpy_and_safetensors_alone() -> None:
    start = [m for m in MODULES if any(m == a or m.startswith(f"{a}.") for a in MODEL)]
    needed = {
        f"{module}: {name}"
        for module in closure(start)
        for name, _ in imports(MODULES[module], lazy=False)
        if (top := name.split(".")[0]) not in {"torch", "numpy", "safetensors", "knockscreen"}
        and top not in sys.stdlib_module_names
    }
    assert needed == set()


def length(function: ast.FunctionDef) -> int:
    """Lines of a function without its docstring."""
    first = function.body[1 if ast.get_docstring(function) and len(function.body) > 1 else 0]
    return (function.end_lineno or 0) - first.lineno + 1


def test_files_and_functions_stay_short_enough_to_read() -> None:
    long = []
    for path in MODULES.values():
        lines = len(path.read_text().splitlines())
        long += [f"{path.name}: {lines} lines"] if lines > 400 else []
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef) and length(node) > 50:
                long.append(f"{path.name}:{node.lineno} {node.name}: {length(node)} lines")
    assert long == []


def test_an_upward_import_is_found(tmp_path: Path) -> None:
    bad = tmp_path / "qc.py"
    bad.write_text("from knockscreen.score import rank\nfrom knockscreen.errors import DataError\n")
    assert upward("data.qc", bad) == ["qc.py:1 imports score.rank"]
