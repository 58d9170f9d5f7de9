"""New programs for a finished screen: scores from the stored effects, nothing generated again.

T targets of one file, X contexts, G panel genes, P programs. A file of effects is read one row
group at a time into one (X, T, G) array, so memory holds the deltas of one shard, whatever the
number of shards. The scores are those that ``score`` writes, from the same deltas.

``score_se`` is NULL and there are no draw blocks: the spread of a score over draws depends on how
genes vary together from draw to draw, and the stored effects keep each gene's spread alone. Decoys
are scored beside the candidates, so that new programs have p-values as the run's own do.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from knockscreen.artifacts import atomic, read_json
from knockscreen.config import GateConfig, NonNegative, ProgramsConfig, RankConfig, Section
from knockscreen.errors import DataError, some_of
from knockscreen.names import own_gene_id, parse_context
from knockscreen.score.gate import effects_of_controls, read_controls, write_gates
from knockscreen.score.programs import ProgramMatrix, program_matrix
from knockscreen.score.random_programs import Beside, ProgramNull, program_null
from knockscreen.score.rank import all_scores, write_rankings
from knockscreen.score.score_files import find_scores
from knockscreen.score.verdicts import overall

log = logging.getLogger(__name__)

KEYS = ("target_gene_id", "context", "gene_id")
Floats = NDArray[np.float64]


class RescoreStage(Section):
    """Sections of the configuration that ranking new programs depends on."""

    seed: NonNegative
    programs: ProgramsConfig
    gate: GateConfig
    rank: RankConfig


@dataclass(frozen=True)
class Deltas:
    """The effects in one file."""

    contexts: tuple[str, ...]  # X
    target_gene_ids: tuple[str, ...]  # T
    values: NDArray[np.float32]  # (X, T, G); NaN: no such row


def _codes(column: object, index: dict[str, int], path: Path, what: str) -> NDArray[np.int64]:
    """Return the positions of a dictionary column's values in ``index``."""
    chunk = column.combine_chunks()  # type: ignore[attr-defined]
    names = chunk.dictionary.to_pylist()
    unknown = [name for name in names if name not in index]
    if unknown:
        msg = f"{path} has {what} '{unknown[0]}', which the run does not have; score it again."
        raise DataError(msg)
    lookup = np.array([index[name] for name in names], dtype=np.int64)
    return np.asarray(lookup[chunk.indices.to_numpy(zero_copy_only=False)])


def _names(file: pq.ParquetFile, key: str) -> list[str]:
    """Return the values of a column, sorted: from its dictionaries, row group by row group."""
    found: set[str] = set()
    for group in range(file.num_row_groups):
        for chunk in file.read_row_group(group, columns=[key])[key].chunks:
            found |= set(chunk.dictionary.to_pylist())
    return sorted(found)


def read_deltas(path: Path, gene_ids: tuple[str, ...]) -> Deltas:
    """Return the deltas in one file of effects, predicted or measured.

    Raises
    ------
    DataError
        It is no file of effects, or names a gene that is not on the panel.
    """
    try:
        file = pq.ParquetFile(path, read_dictionary=list(KEYS))
        targets, contexts = (_names(file, key) for key in KEYS[:2])
    except (OSError, pa.ArrowException) as error:
        msg = f"{path} is not a whole file of effects ({str(error).splitlines()[0]}); score again."
        raise DataError(msg) from error
    index = [{name: i for i, name in enumerate(known)} for known in (targets, contexts, gene_ids)]
    values = np.full((len(contexts), len(targets), len(gene_ids)), np.nan, dtype=np.float32)
    for group in range(file.num_row_groups):
        rows = file.read_row_group(group, columns=[*KEYS, "delta"])
        target, context, gene = (
            _codes(rows[key], known, path, key) for key, known in zip(KEYS, index, strict=True)
        )
        values[context, target, gene] = rows["delta"].to_numpy()
    return Deltas(tuple(contexts), tuple(targets), values)


def scores(deltas: Deltas, programs: ProgramMatrix) -> tuple[Floats, NDArray[np.int32]]:
    """Return program scores (P, X, T), the target's own gene left out, and their genes (P, T).

    A score is NaN where a gene of the program has no delta, or no gene is left.
    """
    used = programs.columns
    weights = programs.weights[:, used]  # (P, U)
    position = {programs.gene_ids[column]: i for i, column in enumerate(used)}
    own = np.array([position.get(own_gene_id(target), -1) for target in deltas.target_gene_ids])
    inside = np.flatnonzero(own >= 0)
    values = deltas.values[:, :, used].astype(np.float64)  # (X, T, U)
    values[:, inside, own[inside]] = 0.0
    total = np.repeat(np.abs(weights).sum(axis=1)[:, None], len(own), axis=1)  # (P, T)
    total[:, inside] -= np.abs(weights[:, own[inside]])
    count = np.repeat(np.count_nonzero(weights, axis=1)[:, None], len(own), axis=1)
    count[:, inside] -= weights[:, own[inside]] != 0
    total = np.where(count > 0, total, np.nan)
    missing = np.isnan(values).any(axis=2)  # (X, T)
    if missing.any():
        values = _hide(values)
    found = np.einsum("xtu,pu->pxt", values, weights, optimize=True) / total[:, None, :]
    return found, count.astype(np.int32)


def _hide(values: Floats) -> Floats:
    """Return deltas with every row that lacks one as NaN, which its scores then are."""
    values[np.isnan(values).any(axis=2)] = np.nan
    return values


def beside_scores(
    deltas: Deltas, programs: ProgramMatrix, found: Floats, null: ProgramNull | None
) -> Beside:
    """Return what ``score`` says beside the scores (P, X, T): magnitudes and random programs."""
    own = {gene_id: i for i, gene_id in enumerate(programs.gene_ids)}
    beside = Beside.empty(*found.shape)
    for t, target in enumerate(deltas.target_gene_ids):
        delta = np.nan_to_num(deltas.values[:, t].astype(np.float64))
        if own_gene_id(target) in own:
            delta[:, own[own_gene_id(target)]] = 0.0
        beside.add(t, delta, found[:, :, t], null)
    levels = {name: parse_context(name) for name in deltas.contexts}
    factors = max((len(known) for known in levels.values()), default=0)
    separate = [name for name, known in levels.items() if len(known) == factors]
    average = np.zeros((len(levels), len(separate)))
    for x, known in enumerate(levels.values()):
        inside = [known.items() <= levels[name].items() for name in separate]
        average[x, inside] = 1 / max(sum(inside), 1)
    if separate and null is not None:
        beside.error[:] = null.pooled_error(separate, average)
    return beside


def score_frame(
    deltas: Deltas, programs: ProgramMatrix, found: Floats, n_genes: NDArray[np.int32]
) -> pl.DataFrame:
    """Return scores in the columns of ``score``, without errors and blocks."""
    p, x, t = found.shape
    return pl.DataFrame(
        {
            "program": np.repeat(np.array(programs.names), x * t),
            "context": np.tile(np.repeat(np.array(deltas.contexts), t), p),
            "target_gene_id": np.tile(np.array(deltas.target_gene_ids), p * x),
            "score": found.ravel(),
            "score_se": pl.Series([None], dtype=pl.Float64).new_from_index(0, p * x * t),
            "n_genes": np.repeat(n_genes[:, None, :], x, axis=1).ravel(),
        }
    ).with_columns(pl.col("score").fill_nan(None), pl.lit([], pl.List(pl.Float64)).alias("blocks"))


def rescore(
    results: Path, programs: ProgramMatrix, output: Path, null: ProgramNull | None
) -> Iterator[tuple[Path, int]]:
    """Write the program scores of every file of effects of a run; yield each file and its rows.

    Files are ``programs/<shard>.parquet`` and, where the run was measured, ``measured.parquet``.

    Raises
    ------
    DataError
        The run has no effects.
    """
    shards = sorted((results / "score/effects").glob("*.parquet"))
    if not shards:
        msg = f"{results / 'score/effects'} has no Parquet files; score the run first."
        raise DataError(msg)
    for shard in shards:
        decoys = results / "score/decoys" / shard.name
        paths = [shard, *([decoys] if decoys.is_file() else [])]
        frame = pl.concat(_scored(path, programs, null) for path in paths)
        yield _write(frame, programs, output / "programs" / shard.name)
    measured = results / "measured/effects.parquet"
    if measured.is_file():
        frame = _scored(measured, programs, null).drop("blocks", "control_error")
        frame = frame.rename({"score_se": "standard_error"}).drop_nulls("score")
        untested = [pl.lit(None, pl.Float64).alias(name) for name in ("p_value", "fdr")]
        frame = frame.with_columns(untested)  # replicates are not in the stored effects
        yield _write(frame, programs, output / "measured.parquet")


def _scored(path: Path, programs: ProgramMatrix, null: ProgramNull | None) -> pl.DataFrame:
    deltas = read_deltas(path, programs.gene_ids)
    found, n_genes = scores(deltas, programs)
    frame = score_frame(deltas, programs, found, n_genes)
    beside = beside_scores(deltas, programs, found, null).columns()
    return frame.with_columns(pl.Series(k, v).fill_nan(None) for k, v in beside.items())


def _write(frame: pl.DataFrame, programs: ProgramMatrix, output: Path) -> tuple[Path, int]:
    with atomic(output) as temporary:
        frame.write_parquet(temporary, row_group_size=max(frame.height // len(programs.names), 1))
    return output, frame.height


def rescore_run(
    results: Path, table: pl.DataFrame, config: RescoreStage, output: Path
) -> list[Path]:
    """Score a run toward the programs of ``table``; return the files written, the rows logged."""
    gene_ids, genes = panel_of(results / "store")
    programs = program_matrix(table, gene_ids, genes, min_genes=config.programs.min_genes)
    for name, n_genes in zip(programs.names, programs.n_genes, strict=True):
        total = table.filter(pl.col("program") == name).height
        lacks = some_of(programs.missing[name])
        log.info(
            "%s: %d of its %d genes are on the panel%s", name, n_genes, total,
            f", without {lacks}" if lacks else "",
        )  # fmt: skip
    for name, (n, total) in programs.dropped.items():
        log.warning("%s is left out: %d of its %d genes are on the panel", name, n, total)
    null = None
    if (results / "store/counts.npy").is_file():
        null = program_null(results / "store", programs, config.rank.random_programs)
    else:
        log.warning("%s holds no counts, so programs get no random ones", results / "store")
    return [path for path, _ in rescore(results, programs, output, null)]


def rank_new(
    results: Path, table: pl.DataFrame, config: RescoreStage, output: Path
) -> pl.DataFrame:
    """Gate and rank the scores that :func:`rescore_run` wrote; return what the controls say."""
    measured = output / "measured.parquet"
    found = find_scores(
        output / "programs",
        measured if measured.is_file() else None,
        results / "screen/candidates.parquet",
        results / "store",
    )
    paths = [output / f"gate/{name}.parquet" for name in ("controls", "gates")]
    controls = read_controls(config.gate.controls)
    programs = program_matrix(table, *panel_of(results / "store"))
    effects = results / "measured/effects.parquet"
    of_controls = None
    if (results / "store/counts.npy").is_file():
        of_controls = effects_of_controls(
            controls.filter(pl.col("program").is_in(programs.names)),
            programs,
            results / "store",
            sorted((results / "score/effects").glob("*.parquet")),
            effects if effects.is_file() else None,
        )
    gates = write_gates(all_scores(found), controls, config.gate, paths, of_controls)
    of_run = replace(found, shards=sorted((results / "score/programs").glob("*.parquet")))
    write_rankings(found, output / "rank", config.rank, config.seed, gates, beside=[of_run])
    return overall(gates)


def panel_of(store: Path) -> tuple[list[str], list[str]]:
    """Return the ids and symbols of a store's panel, in order."""
    genes = read_json(store / "store.json")["genes"]
    return [gene["gene_id"] for gene in genes], [gene["gene"] for gene in genes]
