"""The glossary in code: names of columns, files and labels, each written once."""

from enum import StrEnum

NTC = "non-targeting"
"""Label of control cells (non-targeting guides) in every table of ours."""

DECOY = "decoy_"
"""Start of the id of a decoy: a pseudo-target made of control cells, the null of "no effect"."""
UNSEEN_DECOY = "decoy_unseen_"
"""Start of the id of a decoy of genes never knocked down, ``decoy_unseen_0001:ENSG...``: the gene
after the colon, its features scrambled."""

TARGET_GENE = "target_gene"
TARGET_GENE_ID = "target_gene_id"
GENE = "gene"
GENE_ID = "gene_id"
GUIDE_ID = "guide_id"
IS_CONTROL = "is_control"
LIBRARY_SIZE = "library_size"
CONTEXT = "context"
SPLIT = "split"
CP10K = 1e4
"""Counts per ten thousand: the scale of ``log1p`` values everywhere."""


class Split(StrEnum):
    """What a cell is used for. Only ``train`` is ever fitted; ``validation`` stops the training."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"
    HELD_OUT_TARGET = "held_out_target"
    HELD_OUT_CONTEXT = "held_out_context"


SPLITS = tuple(Split)
"""Order of the integer codes in the training store."""


class Evidence(StrEnum):
    """Where an effect comes from; predicted and measured never mix."""

    MEASURED = "measured"
    PREDICTED_SEEN = "predicted_seen"
    PREDICTED_UNSEEN = "predicted_unseen"


class Direction(StrEnum):
    """Toward a program (its genes go up) or away from it."""

    TOWARD = "toward"
    AWAY = "away"


def is_decoy(target_id: str) -> bool:
    """Return whether an id names a decoy, of either kind."""
    return target_id.startswith(DECOY)


def own_gene_id(target_id: str) -> str:
    """Return the id of the gene whose transcript a knock-down lowers, also of an unseen decoy.

    >>> own_gene_id("ENSG1"), own_gene_id("decoy_unseen_0001:ENSG1")
    ('ENSG1', 'ENSG1')
    """
    return target_id.partition(":")[2] if target_id.startswith(UNSEEN_DECOY) else target_id


def context_name(levels: dict[str, str]) -> str:
    """Return the printed name of a context.

    ``{"donor": "D1", "time": "Rest"}`` is ``donor=D1,time=Rest``, no level at all is ``all``. A
    pooled context simply lacks the factor it is pooled over.
    """
    return ",".join(f"{factor}={level}" for factor, level in levels.items()) or "all"


def parse_context(name: str) -> dict[str, str]:
    """Return the levels that a printed context names, the inverse of :func:`context_name`.

    >>> parse_context("donor=D1,time=Rest")
    {'donor': 'D1', 'time': 'Rest'}
    """
    if name in {"", "all"}:
        return {}
    levels = {}
    for part in name.split(","):
        factor, sep, level = part.partition("=")
        if not sep or not factor.strip() or not level.strip():
            from knockscreen.errors import ConfigError

            msg = (
                f"context '{name}' is not of the form factor=level[,factor=level], "
                "e.g. donor=D1,time=Rest"
            )
            raise ConfigError(msg)
        levels[factor.strip()] = level.strip()
    return levels
