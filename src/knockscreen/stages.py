"""What each stage of the workflow depends on: its sections of the configuration and its sources.

A stage reruns when, and only when, one of them changes (:func:`settings` and :func:`code_digest`
are rule parameters). Training stages use a version bumped by hand, so that rewritten code that
trains the same model never retrains it: bump it when a trained model would come out different.
"""

import ast
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parent

PLUMBING = ("artifacts", "config", "errors", "progress")
"""Modules that no digest covers: how a run is read, written and reported, not what it computes."""

OPTIMISATION = ("training/loop.py",)
"""Covered by the versions of the training stages, also where others import a helper from it."""


@dataclass(frozen=True)
class Stage:
    """One stage of the workflow.

    Parameters
    ----------
    entries
        Functions behind its verbs, ``cli_data.py::qc``. Their sources are those functions, what
        they use of the same file, and every module they import, in any depth.
    sections
        Sections of the configuration that the verbs read.
    files
        Globs of other files of the package that count: schemas, tables.
    version
        Of a training stage, in place of its sources.
    """

    entries: tuple[str, ...]
    sections: tuple[str, ...]
    files: tuple[str, ...] = ()
    version: int | None = None


STAGES: dict[str, Stage] = {
    "simulate": Stage(("cli_simulate.py::simulate",), ("simulate",), files=("simulate/*.tsv",)),
    "qc": Stage(("cli_data.py::qc",), ("data", "qc")),
    "normalize": Stage(("cli_data.py::normalize",), ("data", "panel", "splits", "programs")),
    "fit_effects": Stage(("cli_model.py::fit_effects",), ("effect",)),
    "train_vae": Stage(("cli_model.py::train_vae",), ("seed", "vae"), version=5),
    "encode": Stage(("cli_model.py::encode",), ("seed", "vae")),
    "train_flow": Stage(("cli_model.py::train_flow",), ("seed", "flow"), version=4),
    "plan": Stage(("cli_screen.py::plan",), ("seed", "screen")),
    "generate": Stage(
        ("cli_screen.py::generate_shard", "cli_screen.py::generate_control"), ("seed", "screen")
    ),
    "program_weights": Stage(("cli_screen.py::program_weights",), ("programs",)),
    "generate_matched": Stage(("cli_screen.py::generate_matched",), ("seed", "screen")),
    "score": Stage(("cli_score.py::score",), ("programs", "rank")),
    "measure": Stage(("cli_score.py::measure",), ("seed", "programs", "rank", "measured")),
    "external": Stage(
        ("cli_external.py::load_external",), ("seed", "programs", "rank", "external")
    ),
    "gate": Stage(("cli_score.py::gate",), ("programs", "gate")),
    "rank": Stage(("cli_score.py::rank",), ("seed", "rank")),
    "evaluate": Stage(("cli_evaluate.py::evaluate",), ("seed", "programs", "rank", "evaluate")),
    "sweep": Stage(("cli_sweep.py::sweep",), ("seed", "screen", "evaluate", "sweep")),
    "build_db": Stage(
        ("cli_store.py::build_db",),
        (
            *("run", "seed", "replicates", "data", "simulate", "qc", "panel", "splits", "programs"),
            *("effect", "vae", "flow", "screen", "measured", "external", "gate", "rank"),
            *("annotations", "evaluate", "sweep", "report"),
        ),
        files=("store/*.sql", "store/*.tsv"),
    ),
    "plot": Stage(("cli_plot.py::plot",), ("report", "programs", "rank")),
}


def settings(stage: str, config: dict[str, Any]) -> str:
    """Return the stage's sections of ``config`` as canonical JSON."""
    return json.dumps({key: config[key] for key in STAGES[stage].sections}, sort_keys=True)


def code_digest(stage: str) -> str:
    """Return a digest of the stage's sources, or its hand-bumped version.

    Comments, docstrings and layout do not count; files that are not Python count byte by byte.
    """
    entry = STAGES[stage]
    if entry.version is not None:
        return f"v{entry.version}"
    digest = hashlib.sha256()
    for function in entry.entries:
        name, _, verb = function.partition("::")
        if (SOURCE / name).is_file():
            digest.update(meaning((SOURCE / name).read_text(), verb).encode() + b"\0")
    for path in modules(entry.entries):
        digest.update(path.relative_to(SOURCE).as_posix().encode() + b"\0")
        digest.update(meaning(path.read_text()).encode() + b"\0")
    for path in sorted(path for pattern in entry.files for path in SOURCE.glob(pattern)):
        digest.update(path.relative_to(SOURCE).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def modules(entries: Iterable[str]) -> list[Path]:
    """Return the modules of the package that the entries import, in any depth."""
    queue: set[Path] = set()
    for function in entries:
        name, _, verb = function.partition("::")
        if (SOURCE / name).is_file():
            queue |= files_of(imported((SOURCE / name).read_text(), verb))
    found: set[Path] = set()
    while queue:
        path = queue.pop()
        name = path.relative_to(SOURCE).as_posix()
        plumbing = name.removesuffix(".py").split("/")[0] in PLUMBING
        if path not in found and not plumbing and name not in OPTIMISATION:
            found.add(path)
            queue |= files_of(imported(path.read_text()))
    return sorted(found)


@cache
def imported(source: str, function: str = "") -> frozenset[str]:
    """Return the modules that Python source (or one function of it) imports, at any place."""
    tree = parse(source)
    names: set[str] = set()
    nodes = reachable(tree, function) if function else tree.body
    for node in statements(nodes):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return frozenset(names)


def files_of(names: Iterable[str]) -> set[Path]:
    """Return the files of the package behind imported names such as ``knockscreen.data.qc``."""
    files: set[Path] = set()
    for package, *parts in (name.split(".") for name in names):
        if package == "knockscreen" and parts:
            path = SOURCE.joinpath(*parts)
            files |= {path.with_suffix(".py"), path / "__init__.py", path.parent / "__init__.py"}
    return {path for path in files if path.is_file() and path != SOURCE / "__init__.py"}


@cache
def meaning(source: str, function: str = "") -> str:
    """Return Python source without comments, docstrings and layout.

    With ``function``, only that function and what it uses of the same source, in any depth.
    """
    tree = parse(source)
    kept = reachable(tree, function) if function else tree.body
    return "\n".join(described(node) for node in kept if not _is_text(node))


@cache
def parse(source: str) -> ast.Module:
    """Return the syntax tree of a source, parsed once: every stage asks for most of them."""
    return ast.parse(source)


def statements(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Yield statements and those inside them, but not their expressions, which are the most."""
    for node in nodes:
        yield node
        for name in ("body", "orelse", "finalbody", "handlers", "cases"):
            inside = getattr(node, name, None)
            if isinstance(inside, list):
                yield from statements(inside)


def described(node: object) -> str:
    """Return a syntax tree as text, without its bare strings and its places in the source."""
    if isinstance(node, list):
        return f"[{','.join([described(item) for item in node if not _is_text(item)])}]"
    if isinstance(node, ast.AST):
        fields = [described(getattr(node, name, None)) for name in node._fields]
        return f"{type(node).__name__}({','.join(fields)})"
    return repr(node)


def _is_text(node: object) -> bool:
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
        elif isinstance(node, ast.Import | ast.ImportFrom):
            bound = (alias.asname or alias.name.partition(".")[0] for alias in node.names)
            defined.update(dict.fromkeys(bound, node))
    found: set[str] = set()
    queue = [function]
    while queue:
        name = queue.pop()
        if name in defined and name not in found:
            found.add(name)
            queue += [n.id for n in ast.walk(defined[name]) if isinstance(n, ast.Name)]
    wanted = {id(defined[name]) for name in found}
    return [node for node in tree.body if id(node) in wanted]
