"""From what a person types to what the database holds, or one sentence that names the nearest."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import duckdb

from knockscreen.errors import ConfigError, DatabaseError, UnknownNameError, nearest, suggest
from knockscreen.gene_names import without_version
from knockscreen.names import parse_context
from knockscreen.store.connection import rows

LISTS = {
    what: f'knockscreen sql "select {column} from {table}" lists what there is'
    for what, table, column in (("gene", "genes", "gene"), ("target", "targets", "target_gene"))
}
"""Where nothing is near a name: how to see all of them, as any five would say nothing."""
MANY = 2**31
PANEL = "select gene from genes where in_panel"


@dataclass(frozen=True)
class Gene:
    """A gene of the panel."""

    key: int
    gene: str
    gene_id: str


@dataclass(frozen=True)
class Target:
    """A knock-down of the database."""

    key: int
    target_gene: str
    target_gene_id: str
    evidence: str | None
    status: str
    reason: str | None
    objection: str | None


@dataclass(frozen=True)
class Context:
    """A context of the database."""

    key: int
    context: str
    is_pooled: bool


def choice(name: str, value: str | None, allowed: tuple[str | None, ...]) -> None:
    """Refuse a value that is none of those allowed.

    Raises
    ------
    ConfigError
        It is none of them.
    """
    if value not in allowed:
        msg = f"{name} '{value}' is none of {', '.join(str(a) for a in allowed if a)}."
        raise ConfigError(msg)


def limit(n: int | None) -> int:
    """Return a number of rows; 0 and None are all.

    Raises
    ------
    ConfigError
        It is negative.
    """
    if n is not None and n < 0:
        msg = f"n is {n}; give a number of rows, or 0 for all."
        raise ConfigError(msg)
    return n or MANY


def program(connection: duckdb.DuckDBPyConnection, name: str) -> str:
    """Return the program called ``name``, in any case if none is written just so.

    Raises
    ------
    UnknownNameError
        There is no such program.
    DatabaseError
        It was not ranked.
    """
    known = rows(
        connection,
        "select program, status, n_genes, n_panel_genes from programs order by program <> ?",
        name.strip(),
    )
    for found, status, n_genes, n_panel in known:
        if found.lower() == name.strip().lower():
            if status != "ranked":
                msg = (
                    f"program {found} was not ranked: {n_panel} of its {n_genes} genes are on the"
                    " panel (see programs.min_genes and programs.names in the configuration)."
                )
                raise DatabaseError(msg)
            return str(found)
    msg = f"unknown program '{name}'{suggest(name, (row[0] for row in known))}."
    raise UnknownNameError(msg)


def source(connection: duckdb.DuckDBPyConnection, name: str | None) -> str | None:
    """Return the measured table from elsewhere called ``name``; None stays None.

    Raises
    ------
    UnknownNameError
        There is no such table.
    """
    if name is None:
        return None
    known = [row[0] for row in rows(connection, "select distinct source from external_by_target")]
    if name not in known:
        msg = f"the database has no measured table '{name}' from elsewhere{suggest(name, known)}."
        raise UnknownNameError(msg)
    return name


def contexts(connection: duckdb.DuckDBPyConnection, name: str | None) -> list[Context]:
    """Return the context called ``name``; without a name the pooled ones, or all if none is pooled.

    Factors may be given in any order. ``time=Rest`` is the context pooled over everything else, if
    the database has it.

    Raises
    ------
    DatabaseError
        The database has contexts with these levels, but not the pooled one.
    UnknownNameError
        No context has these levels.
    """
    found = rows(
        connection, "select context_key, context, is_pooled from contexts order by context_key"
    )
    known = [Context(*row) for row in found]
    if name is None:
        return [context for context in known if context.is_pooled] or known
    try:
        wanted = _levels(name)
    except ConfigError:
        msg = f"unknown context '{name}'{suggest(name, (c.context for c in known))}."
        raise UnknownNameError(msg) from None
    exact = [context for context in known if _levels(context.context) == wanted]
    if exact:
        return exact
    inside = [c.context for c in known if wanted.items() <= _levels(c.context).items()]
    if inside:
        msg = (
            f"no context is pooled to '{name}' in this database; contexts that match:"
            f" {', '.join(inside)}."
        )
        raise DatabaseError(msg)
    msg = f"unknown context '{name}'{suggest(name, (c.context for c in known))}."
    raise UnknownNameError(msg)


def _levels(name: str) -> dict[str, str]:
    return parse_context(name.lower())


def gene(connection: duckdb.DuckDBPyConnection, name: str) -> Gene:
    """Return the panel gene called ``name``: a symbol in any case, or an Ensembl id.

    Raises
    ------
    UnknownNameError
        There is no such gene in the input.
    DatabaseError
        The gene is not on the panel, or the symbol stands for several.
    """
    found = rows(
        connection,
        f"select gene_key, gene, gene_id, in_panel from genes where {_called('gene')}"
        " order by gene_key",
        name.strip(),
        without_version(name.strip()),
    )
    if not found:
        msg = _unknown("gene", name, (row[0] for row in rows(connection, PANEL)))
        raise UnknownNameError(msg)
    panel = [row[:3] for row in found if row[3]]
    if not panel:
        msg = f"gene {found[0][1]} is not on the panel of this run, so no effect on it is known."
        raise DatabaseError(msg)
    if len(panel) > 1:
        msg = f"'{name}' names several genes: {', '.join(row[2] for row in panel)}; give an id."
        raise DatabaseError(msg)
    return Gene(*panel[0])


def target(connection: duckdb.DuckDBPyConnection, name: str) -> Target:
    """Return the knock-down of ``name``: a symbol in any case, or an Ensembl id.

    Raises
    ------
    UnknownNameError
        No gene is called so.
    DatabaseError
        The gene was not screened (the message says why), or the symbol stands for several.
    """
    found = rows(
        connection,
        "select target_key, target_gene, target_gene_id, evidence, status, status_reason,"
        f" objection from targets where {_called('target_gene')}",
        name.strip(),
        without_version(name.strip()),
    )
    if len(found) > 1:
        msg = f"'{name}' names several targets: {', '.join(row[2] for row in found)}; give an id."
        raise DatabaseError(msg)
    if not found:
        _no_target(connection, name)
    result = Target(*found[0])
    if result.status not in {"screened", "not_a_candidate"}:
        why = f"{result.status} ({result.reason})"
        lost = lost_contexts(connection, result.key)
        lost = f"; {lost}" if lost else ""
        msg = f"{result.target_gene} was not screened: {why}{lost}."
        raise DatabaseError(msg)
    return result


def _called(column: str) -> str:
    """Return the condition for genes called ?1, or with the Ensembl id ?2 in some version."""
    plain = f"regexp_replace(lower({column}_id), '^(ens\\w+)\\.\\d+$', '\\1')"
    return f"lower(?1) in (lower({column}), lower({column}_id)) or {plain} = lower(?2)"


def not_screened(target: Target) -> DatabaseError:
    """Return the error for a knock-down of which there are no rows."""
    why = f"{target.status} ({target.reason or 'no rows of it in this context'})"
    return DatabaseError(f"{target.target_gene} was not screened: {why}.")


def _no_target(connection: duckdb.DuckDBPyConnection, name: str) -> None:
    known = [row[0] for row in rows(connection, "select target_gene from targets")]
    genes = rows(
        connection,
        f"select gene from genes where {_called('gene')}",
        name.strip(),
        without_version(name.strip()),
    )
    if genes:
        near = nearest(name, known)
        hint = f"; nearest that was: {', '.join(near)}" if near else ""
        msg = (
            f"{genes[0][0]} was not screened: not_in_library (a gene of the input, but not knocked"
            f" down in it nor among screen.candidates){hint}."
        )
        raise DatabaseError(msg)
    msg = _unknown("target", name, known)
    raise UnknownNameError(msg)


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    known = set(known)
    called = [
        f"{gene} ({alias})" for alias, gene in _aliases().get(_bare(name), ()) if gene in known
    ]
    near = called or nearest(name, sorted(known))
    hint = f"nearest: {', '.join(near)}" if near else LISTS[what]
    return f"unknown {what} '{name}'; {hint}."


@cache
def _aliases() -> dict[str, list[tuple[str, str]]]:
    """Return ``aliases.tsv``: alias and gene, by the letters and digits of the alias."""
    text = (files("knockscreen.store") / "aliases.tsv").read_text()
    found: dict[str, list[tuple[str, str]]] = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            alias, gene = line.split("\t")
            found.setdefault(_bare(alias), []).append((alias, gene))
    return found


def _bare(name: str) -> str:
    return re.sub("[^A-Z0-9]", "", name.upper())


def lost_contexts(connection: duckdb.DuckDBPyConnection, key: int) -> str:
    """Return in how many contexts QC kept no cells of a target and why, or an empty text."""
    counted = rows(
        connection,
        "select status, count(*) from target_contexts where target_key = ? and status <> 'kept'"
        " group by status order by status",
        key,
    )
    return ", ".join(f"{status} in {n} context{'s' * (n > 1)}" for status, n in counted)
