"""Pooled contexts: the mean over the levels of some factors, beside the separate contexts."""

from collections.abc import Sequence

from knockscreen.errors import ConfigError, suggest
from knockscreen.names import context_name, parse_context


def pooled_contexts(contexts: Sequence[str], pool_over: Sequence[str]) -> dict[str, list[int]]:
    """Return every context to report, by name and sorted, with the contexts it averages over.

    A separate context averages over itself alone. A pooled one lacks the factors of ``pool_over``.

    Parameters
    ----------
    contexts
        Separate contexts, in the order of the arrays that the returned positions index.
    pool_over
        Factors that get a pooled row; none: separate contexts only.

    Raises
    ------
    ConfigError
        A factor of ``pool_over`` is not one of the contexts' factors.

    Examples
    --------
    >>> pooled_contexts(["donor=D1,time=Rest", "donor=D2,time=Rest"], ["donor"])
    {'donor=D1,time=Rest': [0], 'donor=D2,time=Rest': [1], 'time=Rest': [0, 1]}
    """
    groups: dict[str, list[int]] = {name: [i] for i, name in enumerate(contexts)}
    if not pool_over:
        return dict(sorted(groups.items()))
    for i, name in enumerate(contexts):
        levels = parse_context(name)
        for factor in pool_over:
            if factor not in levels:
                msg = (
                    f"rank.pool_over names factor '{factor}', which no context "
                    f"has{suggest(factor, levels)}."
                )
                raise ConfigError(msg)
        pooled = context_name({f: level for f, level in levels.items() if f not in pool_over})
        groups.setdefault(pooled, []).append(i)
    return dict(sorted(groups.items()))
