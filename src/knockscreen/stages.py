"""What each stage of the workflow depends on: its sections of the configuration and its sources.

A stage reruns when, and only when, one of them changes (:func:`settings` and :func:`code_digest`
are rule parameters). Training stages use a version bumped by hand, so that rewritten code that
trains the same model never retrains it: bump it when a trained model would come out different.
"""

import ast
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parent

PLUMBING = ("artifacts", "config", "errors", "progress")
"""Modules that no stage declares: how a run is read, written and reported, not what it computes."""


@dataclass(frozen=True)
class Stage:
    """One stage: the verbs it runs, the config sections it reads, its sources or its version.

    Sources are globs below the package. ``cli_data.py::qc`` stands for one function of a file
    and the functions of that file that it calls, so that the verbs of one file stay independent.
    """

    verbs: tuple[str, ...]
    sections: tuple[str, ...]
    sources: tuple[str, ...] = ()
    version: int | None = None


NAMES = ("names.py",)
DATA = ("data/*.py",)
MODEL = ("data/cells.py", "nn/*.py", "models/*.py", "checkpoint.py", "flow.py")

STAGES: dict[str, Stage] = {
    "simulate": Stage(
        ("simulate",),
        ("simulate",),
        (*NAMES, "simulate/*.py", "simulate/*.tsv", "cli_simulate.py::simulate"),
    ),
    "qc": Stage(
        ("qc",),
        ("data", "qc"),
        (*NAMES, *DATA, "cli_data.py::qc"),
    ),
    "normalize": Stage(
        ("normalize",),
        ("data", "qc", "panel", "splits", "programs"),
        (*NAMES, *DATA, "score/programs.py", "cli_data.py::normalize"),
    ),
    "train_vae": Stage(("train-vae",), ("seed", "vae"), version=1),
    "encode": Stage(
        ("encode",),
        ("seed", "vae"),
        (*NAMES, *MODEL, "cli_model.py::encode"),
    ),
    "train_flow": Stage(("train-flow",), ("seed", "flow"), version=1),
    "plan": Stage(
        ("plan",),
        ("seed", "screen"),
        (*NAMES, *MODEL, "cli_screen.py::plan"),
    ),
    "generate": Stage(
        ("generate-control", "generate"),
        ("seed", "screen"),
        (
            *NAMES,
            *MODEL,
            "sampling.py",
            "cli_screen.py::generate",
            "cli_screen.py::generate_control",
        ),
    ),
    "generate_matched": Stage(
        ("generate-matched",),
        ("seed", "screen"),
        (*NAMES, *MODEL, "sampling.py", "cli_screen.py::generate_matched"),
    ),
    "score": Stage(
        ("score",),
        ("programs", "rank"),
        (*NAMES, "score/*.py", "cli_score.py::score"),
    ),
    "measure": Stage(
        ("measure",),
        ("seed", "programs", "rank"),
        (*NAMES, *DATA, "score/*.py", "cli_score.py::measure"),
    ),
    "rank": Stage(
        ("rank",),
        ("seed", "rank"),
        (*NAMES, "score/*.py", "cli_score.py::rank"),
    ),
    "build_db": Stage(
        ("build-db",),
        (
            "run",
            "seed",
            "data",
            "simulate",
            "qc",
            "panel",
            "splits",
            "programs",
            "vae",
            "flow",
            "screen",
            "rank",
            "report",
        ),
        (*NAMES, "store/*.py", "store/*.sql", "score/programs.py", "cli_store.py::build_db"),
    ),
    "plot": Stage(
        ("plot",),
        ("report", "programs", "rank"),
        (*NAMES, "run_tables.py", "figures/*.py", "cli_plot.py::plot"),
    ),
}


def settings(stage: str, config: dict[str, Any]) -> str:
    """Return the stage's sections of ``config`` as canonical JSON."""
    return json.dumps({key: config[key] for key in STAGES[stage].sections}, sort_keys=True)


def code_digest(stage: str) -> str:
    """Return a digest of the stage's sources, or its hand-bumped version.

    Comments, docstrings and layout do not count; data files count byte by byte.
    """
    entry = STAGES[stage]
    if entry.version is not None:
        return f"v{entry.version}"
    digest = hashlib.sha256()
    for pattern in entry.sources:
        name, _, function = pattern.partition("::")
        for path in sorted(SOURCE.glob(name)):
            digest.update(path.relative_to(SOURCE).as_posix().encode() + b"\0")
            if path.suffix == ".py":
                digest.update(meaning(path.read_text(), function).encode())
            else:
                digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def meaning(source: str, function: str = "") -> str:
    """Return Python source without comments, docstrings and layout.

    With ``function``, only that function and what it uses of the same source, in any depth.
    """
    tree = ast.parse(source)
    kept = reachable(tree, function) if function else tree.body
    for node in (inner for statement in (tree, *kept) for inner in ast.walk(statement)):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [line for line in body if not _is_text(line)]  # type: ignore[attr-defined]
    return "\n".join(ast.dump(node) for node in kept if not _is_text(node))


def _is_text(node: ast.stmt) -> bool:
    """Tell whether a statement is a bare string: a docstring, or one below a constant."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def reachable(tree: ast.Module, function: str) -> list[ast.stmt]:
    """Return the top-level definition of ``function`` and those it uses, in order of the file."""
    defined: dict[str, ast.stmt] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            defined.update({t.id: node for t in targets if isinstance(t, ast.Name)})
    found: set[str] = set()
    queue = [function]
    while queue:
        name = queue.pop()
        if name in defined and name not in found:
            found.add(name)
            queue += [n.id for n in ast.walk(defined[name]) if isinstance(n, ast.Name)]
    wanted = {id(defined[name]) for name in found}
    return [node for node in tree.body if id(node) in wanted]
