"""The errors a user can cause. Each is one sentence: what was found, where, what to do."""

import difflib
from collections.abc import Iterable, Sequence


class ScreenError(Exception):
    """Bad input. The command line prints it as one line and exits with code 2."""


class ConfigError(ScreenError, ValueError):
    """A setting is unknown, missing or out of range."""


class DataError(ScreenError, ValueError):
    """An input file is not what it should be."""


class CheckpointError(ScreenError, ValueError):
    """A checkpoint does not fit the data it is used with."""


class DatabaseError(ScreenError, ValueError):
    """A database is missing, of another version, busy, or asked for what it does not hold."""


class UnknownNameError(ScreenError, KeyError):
    """A gene, program, context or column that is not there; the message names the nearest."""

    def __str__(self) -> str:
        """Return the sentence itself (a KeyError would show it quoted)."""
        return str(self.args[0]) if self.args else ""


def nearest(name: str, known: Iterable[str], n: int = 5) -> list[str]:
    """Return up to ``n`` known names that look like ``name``, best first, case ignored."""
    by_lower = {str(k).lower(): str(k) for k in known}
    hits = difflib.get_close_matches(name.lower(), by_lower, n=n, cutoff=0.5)
    return [by_lower[h] for h in hits]


def some_of(names: Sequence[str], most: int = 5) -> str:
    """Return the first names, and how many more there are.

    >>> some_of(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def suggest(name: str, known: Iterable[str]) -> str:
    """Return ``"; nearest: a, b"`` for an unknown name, or what is available if nothing is near."""
    known = [str(k) for k in known]
    hits = nearest(name, known)
    if hits:
        return f"; nearest: {', '.join(hits)}"
    if not known:
        return "; there are none"
    return f"; available: {some_of(known)}"
