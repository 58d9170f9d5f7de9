"""What a screen will do: which candidates, in which shards, and at what cost."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from knockscreen.data.cells import Vocabulary
from knockscreen.errors import ConfigError, DataError, UnknownNameError, suggest
from knockscreen.models.vae import VaeSettings
from knockscreen.models.velocity import VelocitySettings
from knockscreen.names import NTC, UNSEEN_DECOY, Evidence, is_decoy, parse_context
from knockscreen.nn.blocks import swiglu_width

EVALUATIONS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4, "ab2": 1, "dopri5": 12}
"""Evaluations of the velocity per solver step."""

CANDIDATES = {
    "candidate": pl.Int32,
    "target_gene": pl.String,
    "target_gene_id": pl.String,
    "evidence": pl.String,
    "status": pl.String,
    "shard": pl.Int32,
}


@dataclass(frozen=True)
class Known:
    """What is known of the genes: seen in training, with features, and every gene of the input."""

    vocabulary: Vocabulary
    seen: frozenset[str]
    featured: frozenset[str]
    panel: pl.DataFrame
    """Every input gene: gene_id, gene, in_panel, n_cells."""


def list_candidates(known: Known, which: str, shards: int) -> pl.DataFrame:
    """Return one row per candidate gene, those to be generated dealt out to shards in order.

    ``which`` is ``all`` (every gene of the input; those that cannot be generated say why),
    ``measured`` (every target of the store), or the path of a file of symbols or Ensembl ids.
    The decoys of every kind of evidence among them come last, with status ``decoy``.
    """
    v = known.vocabulary
    symbols = dict(zip(known.panel["gene_id"], known.panel["gene"], strict=True))
    symbols |= dict(zip(v.target_ids, v.targets, strict=True))
    targets = [t for t in v.target_ids if t != NTC and not is_decoy(t)]
    if which == "measured":
        wanted = targets
    elif which == "all":
        wanted = [*v.gene_ids, *known.panel["gene_id"], *targets]
    else:
        wanted = read_candidates(Path(which), symbols)
    cells = dict(zip(known.panel["gene_id"], known.panel["n_cells"], strict=True))
    rows = []
    for gene_id in sorted(set(wanted)):
        seen, featured = gene_id in known.seen, gene_id in known.featured
        evidence = Evidence.PREDICTED_SEEN if seen else Evidence.PREDICTED_UNSEEN
        if seen or featured:
            status = "screened"
        elif cells.get(gene_id, 0) == 0:
            status = "not_expressed"
        elif gene_id in v.gene_ids:
            status = "no_features"
        else:
            status = "filtered"
        rows.append((symbols.get(gene_id, gene_id), gene_id, str(evidence), status))
    screened = [i for i, row in enumerate(rows) if row[3] == "screened"]
    decoys = list_decoys(known, [rows[i][1] for i in screened])
    screened += range(len(rows), len(rows) + len(decoys))
    rows += decoys
    if len(screened) == len(decoys):
        msg = f"screen.candidates '{which}' leaves no gene that the model can generate."
        raise ConfigError(msg)
    order = {i: n for n, i in enumerate(screened)}
    shard = _deal(screened[: len(screened) - len(decoys)], shards)
    shard |= _deal(screened[len(screened) - len(decoys) :], shards)
    table = [
        (
            order.get(i, len(screened) + i),
            gene,
            gene_id,
            evidence if i in order else None,
            status,
            shard.get(i),
        )
        for i, (gene, gene_id, evidence, status) in enumerate(rows)
    ]
    frame = pl.DataFrame(table, schema=CANDIDATES, orient="row").sort("candidate")
    return frame.with_columns(pl.int_range(pl.len(), dtype=pl.Int32).alias("candidate"))


def _deal(rows: list[int], shards: int) -> dict[int, int]:
    """Deal rows out to shards in order, as evenly as can be."""
    return {row: n * shards // len(rows) for n, row in enumerate(rows)}


def list_decoys(known: Known, candidates: list[str]) -> list[tuple[str, str, str, str]]:
    """Return (symbol, id, evidence, status) of the decoys for the kinds of candidates there are.

    Those of trained targets are those the model was trained with; as many again are candidates that
    were never knocked down, evenly taken, whose features will be scrambled.
    """
    trained = [t for t in known.vocabulary.target_ids if is_decoy(t)]
    listed: list[tuple[str, Evidence]] = []
    if any(c in known.seen for c in candidates):
        listed += [(t, Evidence.PREDICTED_SEEN) for t in trained if t in known.seen]
    unseen = [c for c in candidates if c not in known.seen]
    if unseen:
        genes = [unseen[k * len(unseen) // len(trained)] for k in range(len(trained))]
        listed += [
            (f"{UNSEEN_DECOY}{k:04d}:{gene_id}", Evidence.PREDICTED_UNSEEN)
            for k, gene_id in enumerate(genes, start=1)
        ]
    return [(t, t, str(kind), "decoy") for t, kind in listed]


def read_candidates(path: Path, symbols: dict[str, str]) -> list[str]:
    """Return the Ensembl ids of the genes listed in a file, one symbol or id per line.

    Raises
    ------
    DataError, UnknownNameError
        The file is missing or empty, or a gene is not in the input (the nearest are named).
    """
    if not path.is_file():
        msg = (
            f"screen.candidates names '{path}', which does not exist; give all, measured or a file."
        )
        raise DataError(msg)
    by_symbol = {symbol: gene_id for gene_id, symbol in symbols.items()}
    ids = []
    for line, text in enumerate(path.read_text().splitlines(), start=1):
        name = text.split("#")[0].strip()
        if not name:
            continue
        gene_id = name if name in symbols else by_symbol.get(name)
        if gene_id is None:
            msg = (
                f"unknown candidate gene '{name}' in {path}, line {line}{suggest(name, by_symbol)}."
            )
            raise UnknownNameError(msg)
        ids.append(gene_id)
    if not ids:
        msg = f"{path} lists no candidate gene; expected one symbol or Ensembl id per line."
        raise DataError(msg)
    return ids


def list_contexts(vocabulary: Vocabulary, present: list[str], wanted: list[str] | str) -> list[str]:
    """Return the contexts to screen: those asked for, a factor left out meaning all of its levels.

    Raises
    ------
    UnknownNameError
        A context that no cell has.
    """
    if wanted == "all":
        return present
    chosen: set[str] = set()
    for name in wanted:
        levels = parse_context(name)
        for factor in levels:
            if factor not in vocabulary.factors:
                near = suggest(factor, vocabulary.factors)
                msg = f"screen.contexts: unknown factor '{factor}'{near}."
                raise UnknownNameError(msg)
        hits = [c for c in present if levels.items() <= parse_context(c).items()]
        if not hits:
            msg = f"screen.contexts: no cells in '{name}'{suggest(name, present)}."
            raise UnknownNameError(msg)
        chosen |= set(hits)
    return [c for c in present if c in chosen]


@dataclass(frozen=True)
class Work:
    """What is to be done after planning."""

    control: int
    """Control cells."""
    cells: int
    """Cells of knock-downs and decoys."""
    matched: int
    """Cells generated beside real ones."""
    effects: int
    """Rows of effects, those of decoys and pooled contexts included."""
    shards: int


TABLE_JOBS = 15
"""Jobs after the cells besides scoring: measured effects, evaluation, gate, ranks, figures, ..."""
TABLE_STARTS = 1.6
"""What such a job takes at least, in starts of a job that generates cells: most draw a figure."""
SCORE, TABLES = 1e-6, 5e-6
"""Seconds per row of effects: of scoring, and of all tables after it (benchmarks/planner.py)."""


def job_seconds(work: Work, *, start: float, cell: float) -> dict[str, float]:
    """Return the seconds of all jobs of each stage, one after another, from planning to figures.

    ``start`` is what a job takes before its work begins, ``cell`` what a cell takes.
    """
    return {
        "generate_control": start + work.control * cell,
        "generate": work.shards * start + work.cells * cell,
        "generate_matched": start + work.matched * cell,
        "score": work.shards * start + work.effects * SCORE,
        "tables": TABLE_JOBS * TABLE_STARTS * start + work.effects * TABLES,
    }


def flops_per_cell(vae: VaeSettings, net: VelocitySettings, genes: int, evaluations: int) -> float:
    """Return floating-point operations (two per multiply-add) of one cell, null passes apart."""
    tokens, width = net.latent_tokens, net.size.width
    per_token = width * (4 * width + 3 * swiglu_width(width)) + 2 * tokens * width
    one = net.size.layers * tokens * per_token + 2 * tokens * width * net.latent_dim
    e, m = vae.size.width, vae.size.latent_tokens
    block = e * (4 * e + 3 * swiglu_width(e)) + 2 * m * e
    gene = e * (e + 3 * swiglu_width(e)) + 2 * m * e
    decode = vae.size.layers * m * block + genes * (gene + vae.linear)
    return 2.0 * (evaluations * one + decode)
