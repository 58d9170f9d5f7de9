"""Files that are whole or absent, and that say where they came from.

Every output is written to a temporary name beside it and renamed; its manifest row
(``<output>.manifest.json``) names the inputs' digests, settings, seed and versions.
"""

import contextlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from knockscreen.errors import DataError

VERSIONS = ("knockscreen", "numpy", "torch", "anndata", "scanpy", "polars", "duckdb")


@contextlib.contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path; on success it replaces ``path``, on failure ``path`` is untouched.

    Works for files and for directories. A full disk or a missing folder is one sentence.

    Raises
    ------
    DataError
        The output could not be written; what was there before stays.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        msg = f"cannot write {path}: {error.strerror or error}."
        raise DataError(msg) from error
    try:
        temporary = folder / path.name
        yield temporary
        if path.is_dir() and not path.is_symlink():
            path.rename(folder / "replaced")
        temporary.replace(path)
    except OSError as error:
        msg = f"cannot write {path}: {error.strerror or error}; what was there before is unchanged."
        raise DataError(msg) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def require_file(path: Path, verb: str) -> Path:
    """Return ``path``, or say which verb writes it.

    Raises
    ------
    DataError
        The file is missing.
    """
    if not path.is_file():
        msg = f"{path} does not exist; run 'knockscreen {verb}' first."
        raise DataError(msg)
    return path


def digest(path: Path | str) -> str:
    """Return a checksum of a file, or of all files in a folder: ``xxh3:`` and 16 hex digits.

    It tells files apart, and is no proof against who wants to deceive. Bare digits in manifests of
    older versions are the first 16 of a SHA-256.
    """
    import xxhash  # here, so that reading a model does not need it

    path = Path(path)
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    total = xxhash.xxh3_64()
    block = memoryview(bytearray(1 << 20))
    for file in files:
        if path.is_dir():
            total.update(file.relative_to(path).as_posix().encode() + b"\0")
        with file.open("rb", buffering=0) as handle:
            while size := handle.readinto(block):
                total.update(block[:size])
    return f"xxh3:{total.hexdigest()}"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on, where installed."""
    found = {"python": platform.python_version()}
    for name in VERSIONS:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def write_manifest(
    output: Path | str,
    *,
    stage: str,
    inputs: Iterable[Path | str] = (),
    settings: dict[str, Any] | None = None,
    seed: int | None = None,
    notes: dict[str, Any] | None = None,
) -> Path:
    """Write ``<output>.manifest.json``: where an artefact came from. Returns its path."""
    output = Path(output)
    manifest = {
        "artifact": output.name,
        "stage": stage,
        "digest": digest(output),
        "inputs": {str(path): digest(path) for path in inputs},
        "settings": settings or {},
        "seed": seed,
        "versions": versions(),
        "notes": notes or {},
    }
    path = output.with_name(output.name + ".manifest.json")
    write_json(path, manifest)
    return path


def write_json(path: Path | str, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True, default=str) + "\n")


def read_json(path: Path | str) -> Any:
    """Return the JSON value in ``path``.

    Raises
    ------
    DataError
        The file is missing or is not JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        msg = f"{path} does not exist; run the stage that writes it first."
        raise DataError(msg) from None
    except json.JSONDecodeError as error:
        msg = (
            f"{path} is not JSON ({error.msg} at line {error.lineno});"
            " run the stage that writes it again."
        )
        raise DataError(msg) from None


def threads(requested: int = 0) -> int:
    """Return how many threads a job may use: ``requested``, or those given to it.

    Snakemake says how many in ``OMP_NUM_THREADS``; elsewhere it is the cores this process may use.
    """
    given = os.environ.get("OMP_NUM_THREADS", "")
    return requested or (int(given) if given.isdecimal() else 0) or len(os.sched_getaffinity(0))
