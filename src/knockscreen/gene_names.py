"""Genes as people write them, and the genes of a run: one rule for all tables and questions."""

import re
from collections.abc import Iterable

_VERSIONED = re.compile(r"(ENS\w+)\.\d+", re.IGNORECASE)


def without_version(name: str) -> str:
    """Return an Ensembl id without its version, anything else as it is.

    >>> without_version("ENSG00000049768.16"), without_version("RP11-34P13.7")
    ('ENSG00000049768', 'RP11-34P13.7')
    """
    found = _VERSIONED.fullmatch(name)
    return found[1] if found else name


class GeneNames:
    """Finds genes by Ensembl id, else by symbol, else by either whatever its version or case.

    A name that could mean several genes means none.

    >>> genes = GeneNames(["ENSG1.4", "ENSG2"], ["GATA3", "IL4"])
    >>> [genes.find(name) for name in ("IL4", "gata3", "ENSG1", "ENSG2.7", "IL5")]
    [1, 0, 0, 1, None]
    """

    def __init__(self, gene_ids: Iterable[str | None], symbols: Iterable[str | None]) -> None:
        ids, others = list(enumerate(gene_ids)), list(enumerate(symbols))
        plain = [(k, _plain(name)) for k, name in ids + others if name]
        self._ways = [_only(ids), _only(others), _only(plain)]

    def find(self, *names: str | None) -> int | None:
        """Return the position of the gene that one of the names means, the first that means one."""
        for name in filter(None, names):
            keys = (name, name, _plain(name))
            found = next(
                (way[k] for way, k in zip(self._ways, keys, strict=True) if k in way), None
            )
            if found is not None:
                return found
        return None

    def is_ambiguous(self, name: str) -> bool:
        """Return whether several genes are called just so."""
        return self.find(name) is None and any(name in way for way in self._ways[:2])


def _plain(name: str) -> str:
    return without_version(name.strip()).upper()


def _only(named: Iterable[tuple[int, str | None]]) -> dict[str, int | None]:
    """Return the position of each name; None where it stands for several genes."""
    found: dict[str, int | None] = {}
    for position, name in named:
        if name:
            found[name] = position if found.get(name, position) == position else None
    return found
