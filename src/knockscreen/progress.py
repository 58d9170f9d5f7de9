"""Progress of a long loop: a bar on a terminal, a few plain lines elsewhere."""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

log = logging.getLogger(__name__)

LINE_EVERY = 30.0
"""Seconds between plain lines."""


class _Sized(Protocol):
    @property
    def start(self) -> int:
        """First item of a chunk."""

    @property
    def stop(self) -> int:
        """Item after the last of a chunk."""


C = TypeVar("C", bound=_Sized)


def track_chunks(chunks: Iterable[tuple[int, C]], total: int, what: str) -> Iterator[tuple[int, C]]:
    """Yield ``chunks`` as they come, showing how many of ``total`` cells are done.

    Parameters
    ----------
    chunks
        Pairs of an offset and a chunk with ``start`` and ``stop``.
    total
        Cells in all chunks.
    what
        What is done to them, in a few words.
    """
    if sys.stderr.isatty():
        yield from _bar(chunks, total, what)
        return
    done, began, last = 0, time.monotonic(), time.monotonic()
    for offset, chunk in chunks:
        yield offset, chunk
        done += chunk.stop - chunk.start
        if time.monotonic() - last > LINE_EVERY:
            last = time.monotonic()
            log.info("%s: %d of %d cells, %.0f s", what, done, total, last - began)


def _bar(chunks: Iterable[tuple[int, C]], total: int, what: str) -> Iterator[tuple[int, C]]:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        for offset, chunk in chunks:
            yield offset, chunk
            progress.advance(task, chunk.stop - chunk.start)


@contextlib.contextmanager
def bar(what: str, total: int, done: int = 0) -> Iterator[Callable[[], None]]:
    """Yield a function to call after each of ``total`` steps, ``done`` of which are behind us.

    It draws a bar on a terminal and nothing elsewhere, where the loop says its own lines.
    """
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total, completed=done)
        yield lambda: progress.advance(task)
