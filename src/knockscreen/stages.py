"""What each stage of the workflow depends on: its sections of the configuration and its sources.

A stage reruns when, and only when, one of them changes (``settings`` and ``code`` below are rule
parameters). Training stages use a version bumped by hand, so that an edited comment never retrains.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parent


@dataclass(frozen=True)
class Stage:
    """One stage: config sections it reads, and sources (globs below the package) or a version."""

    sections: tuple[str, ...]
    sources: tuple[str, ...] = ()
    version: int | None = None


CORE = ("names.py", "errors.py", "config.py", "artifacts.py")
DATA = ("data/*.py",)
MODEL = ("nn/*.py", "models/*.py", "checkpoint.py", "flow.py")

STAGES: dict[str, Stage] = {}
"""Filled in by the workflow: see below."""


def settings(stage: str, config: dict[str, Any]) -> str:
    """Return the stage's sections of ``config`` as canonical JSON."""
    return json.dumps({key: config[key] for key in STAGES[stage].sections}, sort_keys=True)


def code_digest(stage: str) -> str:
    """Return a digest of the stage's sources, or its hand-bumped version."""
    entry = STAGES[stage]
    if entry.version is not None:
        return f"v{entry.version}"
    digest = hashlib.sha256()
    for pattern in entry.sources:
        for path in sorted(SOURCE.glob(pattern)):
            digest.update(path.relative_to(SOURCE).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]
