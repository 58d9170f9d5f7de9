"""The verb ``plot``: one figure of a run, from its tables to an SVG or PNG."""

import logging
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from matplotlib.figure import Figure

    from knockscreen.config import ProgramsConfig, RankConfig, ReportConfig
    from knockscreen.data.cells import CellStore
    from knockscreen.figures.cells import Map
    from knockscreen.run_tables import RunTables

log = logging.getLogger(__name__)

BIN = 0.05
"""Width of the histograms' bins, in log10."""
MOST_CELLS = 10_000
"""Pairs of cells behind the per-gene statistics at most."""
FITTED_CELLS = 4_000
"""Training cells that the map is fitted on at most."""
EVALUATED = ("split", "context", "target_gene", "method", "metric", "program", "value", "n")
SWEPT = (
    *("part", "solver", "steps", "strategy", "context_weight", "perturbation_weight"),
    *("metric", "value", "difference", "low", "high", "verdict"),
)


class Wish(NamedTuple):
    """What to show: the settings, and what the command line puts in their place."""

    report: "ReportConfig"
    programs: "ProgramsConfig"
    rank: "RankConfig"
    program: str
    context: str | None
    knockdown: str | None

    @property
    def interval_z(self) -> float:
        """Half-width of the rank section's interval, in standard deviations."""
        return NormalDist().inv_cdf(0.5 + self.rank.interval / 2)


def _qc(run: "RunTables", wish: Wish) -> "Figure":
    import polars as pl

    from knockscreen.figures.quality import qc

    summary = run.scan(
        "qc/summary.parquet", ("step", "filter", "setting", "cells_before", "cells_after")
    )
    guides = run.scan("qc/guides.parquet", ("log2_fold_change", "fdr", "status"))
    cells = run.scan("qc/cells.parquet", ("context", "library_size", "n_genes", "status"))
    kept = cells.filter(pl.col("status").cast(pl.String) == "kept").drop("status")
    long = kept.cast({"context": pl.String}).unpivot(index="context", variable_name="measure")
    place = (pl.col("value").cast(pl.Float64).log10() / BIN).floor()
    histograms = (
        long.filter(pl.col("value") > 0)
        .group_by("context", "measure", (place * BIN).alias("bin"))
        .agg(pl.len().alias("n"))
        .with_columns(pl.lit(BIN).alias("width"))
        .sort("context", "measure", "bin")
        .collect(engine="streaming")
    )
    return qc(summary.collect(), histograms, guides.collect(), simulated=run.simulated)


def _loss(run: "RunTables", wish: Wish) -> "Figure":
    import polars as pl

    from knockscreen.figures.training import loss

    curves = [
        run.scan(f"{model}/loss.parquet", ("step", "split", "loss"))
        .select(pl.lit(model).alias("model"), pl.col("step").cast(pl.Int64),
                pl.col("split").cast(pl.String), pl.col("loss").cast(pl.Float64))
        .collect()
        for model in ("vae", "flow")
    ]  # fmt: skip
    return loss(pl.concat(curves), simulated=run.simulated)


def _cells(run: "RunTables", wish: Wish) -> "Figure":
    import numpy as np

    from knockscreen.data.cells import CellStore
    from knockscreen.figures import cells as draw

    header = run.path("store/store.json")
    with np.load(run.path("screen/matched.npz")) as matched:
        counts, rows = matched["counts"], matched["rows"]
    store = CellStore.open(header.parent)
    rng = np.random.default_rng(0)
    keep = np.sort(rng.permutation(len(rows))[:MOST_CELLS])
    counts, rows = counts[keep], rows[keep]
    real = _log1p_cp10k(store.dense(rows), store.library_size[rows])
    made = _log1p_cp10k(counts, store.library_size[rows])
    shown = np.sort(rng.permutation(len(rows))[: wish.report.cells])
    placed = _map(store, real[shown], made[shown], wish=wish, rng=rng)
    factor, groups = _grouping(store, rows[shown], placed)
    return draw.cells(
        placed, groups, draw.profiles(real, made),
        factor=factor, n_cells=len(rows), simulated=run.simulated,
    )  # fmt: skip


def _log1p_cp10k(counts: "np.ndarray", library_size: "np.ndarray") -> "np.ndarray":
    import numpy as np

    from knockscreen.names import CP10K

    scaled = counts * (CP10K / np.maximum(library_size, 1.0))[:, None]
    return np.asarray(np.log1p(scaled), dtype=np.float32)


def _map(
    store: "CellStore",
    real: "np.ndarray",
    made: "np.ndarray",
    *,
    wish: Wish,
    rng: "np.random.Generator",
) -> "Map":
    """Place held-out and generated cells in a map of training cells, which neither has shaped."""
    import numpy as np

    from knockscreen.figures import cells as draw
    from knockscreen.names import Split

    rows = np.sort(rng.permutation(store.rows(Split.TRAIN))[:FITTED_CELLS])
    fitted = _log1p_cp10k(store.dense(rows), store.library_size[rows]) if len(rows) > 2 else real
    if wish.report.embedding == "umap":
        return draw.umap_map(fitted, real, made, seed=0)
    return draw.principal_map(fitted, real, made)


def _grouping(store: "CellStore", rows: "np.ndarray", placed: "Map") -> tuple[str, list[str]]:
    """Return the context factor that separates the real cells most on the map, and its levels."""
    import numpy as np

    from knockscreen.figures.statistics import variance_between

    vocabulary = store.vocabulary
    codes = np.asarray(store.contexts[rows])
    shares = [variance_between(placed.real, codes[:, k]) for k in range(len(vocabulary.factors))]
    if not shares or max(shares) <= 0:
        control = np.asarray(store.target[rows]) == 0
        return "cells", ["control" if c else "knock-down" for c in control]
    best = int(np.argmax(shares))
    return vocabulary.factors[best], [vocabulary.levels[best][code] for code in codes[:, best]]


def _volcano(run: "RunTables", wish: Wish) -> "Figure":
    import polars as pl

    from knockscreen.artifacts import read_json
    from knockscreen.figures.effects import volcano
    from knockscreen.score.program_files import all_programs

    context = run.choose_context(wish.program, wish.context)
    target_id, target = _knockdown(run, wish, context)
    one = (pl.col("target_gene_id") == target_id) & (pl.col("context") == context)
    key = ("target_gene_id", "context", "gene_id")
    effects = run.scan(
        "score/effects", (*key, "log2_fold_change", "delta", "delta_se", "is_target")
    )
    found = effects.filter(one).collect()
    genes = pl.DataFrame(read_json(run.path("store/store.json"))["genes"])
    table = found.join(genes, on="gene_id", how="left").with_columns(
        pl.coalesce("gene", "gene_id").alias("gene")
    )
    table = table.join(_measured_effects(run, one), on="gene_id", how="left").sort("gene_id")
    programs = all_programs(wish.programs)
    weights = programs.filter(pl.col("program") == wish.program).select("gene", "weight")
    return volcano(
        table, target_gene=target, program=dict(weights.iter_rows()), program_name=wish.program,
        simulated=run.simulated,
    )  # fmt: skip


def _measured_effects(run: "RunTables", one: "pl.Expr") -> "pl.DataFrame":
    """Return measured change and cells per gene of a target and context; no rows if unmeasured."""
    import polars as pl

    schema = {"gene_id": pl.String, "measured_delta": pl.Float64, "measured_cells": pl.Int64}
    if not run.has("measured/effects.parquet"):
        return pl.DataFrame(schema=schema)
    columns = ("target_gene_id", "context", "gene_id", "delta", "n_cells")
    rows = run.scan("measured/effects.parquet", columns).filter(one).collect()
    named = rows.rename({"delta": "measured_delta", "n_cells": "measured_cells"})
    return named.select(pl.col(name).cast(kind) for name, kind in schema.items())


def _knockdown(run: "RunTables", wish: Wish, context: str) -> tuple[str, str]:
    """Return id and symbol of the knock-down to show: the one asked for, or the first toward."""
    import polars as pl

    from knockscreen.errors import UnknownNameError, suggest

    rows = run.scores().filter((pl.col("program") == wish.program) & (pl.col("context") == context))
    table = rows.sort(["score", "target_gene_id"], descending=[True, False]).collect()
    if wish.knockdown is not None:
        named = (pl.col("target_gene") == wish.knockdown) | (
            pl.col("target_gene_id") == wish.knockdown
        )
        known = table["target_gene"].to_list()
        table = table.filter(named)
        if table.is_empty():
            near = suggest(wish.knockdown, known)
            msg = f"knock-down '{wish.knockdown}' was not screened in {run.folder}{near}."
            raise UnknownNameError(msg)
    first = table.drop_nulls("score").head(1) if wish.knockdown is None else table.head(1)
    row = first.row(0, named=True)
    return str(row["target_gene_id"]), str(row["target_gene"])


def _ranking(run: "RunTables", wish: Wish) -> "Figure":
    import polars as pl

    from knockscreen.figures.ranking import ranking
    from knockscreen.names import Evidence

    context = run.choose_context(wish.program, wish.context)
    columns = (
        "program", "context", "target_gene", "target_gene_id", "direction", "rank", "rank_low",
        "rank_high", "score", "score_sd", "evidence", "control_status",
    )  # fmt: skip
    rows = run.scan("rank/rankings.parquet", columns).filter(
        pl.col("program") == wish.program,
        pl.col("context") == context,
        pl.col("evidence") != Evidence.MEASURED,
    )
    planted = run.planted
    return ranking(
        rows.collect(),
        top=wish.report.top,
        interval=wish.rank.interval,
        planted=None if planted is None else planted.get(wish.program, {}),
        simulated=run.simulated,
    )


def _heatmap(run: "RunTables", wish: Wish) -> "Figure":
    import polars as pl

    from knockscreen.figures.programs import heatmap

    context = run.choose_context(wish.program, wish.context)
    rows = run.scores().filter(pl.col("context") == context).collect()
    return heatmap(
        rows, top=wish.report.top, interval_z=wish.interval_z, planted=run.planted,
        simulated=run.simulated,
    )  # fmt: skip


def _measured(run: "RunTables", wish: Wish) -> "Figure":
    import polars as pl

    from knockscreen.figures.programs import measured

    columns = ("program", "context", "target_gene_id", "score", "standard_error", "n_cells")
    real = run.scan("measured/programs.parquet", columns).filter(pl.col("program") == wish.program)
    rows = real.drop_nulls("score").collect()
    context = run.choose_context(wish.program, wish.context, rows["context"].unique().to_list())
    made = run.scores().filter((pl.col("program") == wish.program) & (pl.col("context") == context))
    pairs = (
        made.drop_nulls("score")
        .collect()
        .drop("score_sd")
        .rename({"score": "predicted"})
        .join(rows.rename({"score": "measured", "standard_error": "measured_error"}),
              on=["program", "context", "target_gene_id"])
        .sort("target_gene_id")
    )  # fmt: skip
    ceiling = None
    if run.has("measured/ceiling.parquet"):
        halves = ("program", "context", "spearman_half", "ceiling", "splits")
        of_this = (pl.col("program") == wish.program) & (pl.col("context") == context)
        found = run.scan("measured/ceiling.parquet", halves).filter(of_this).collect()
        ceiling = found.row(0, named=True) if found.height else None
    return measured(pairs, ceiling=ceiling, top=2 * wish.report.top, simulated=run.simulated)


def _calibration(run: "RunTables", wish: Wish) -> "Figure":
    from knockscreen.figures.calibration import calibration

    context = run.choose_context(wish.program, wish.context)
    return calibration(*run.calibration(wish.program, context), simulated=run.simulated)


def _evaluation(run: "RunTables", wish: Wish) -> "Figure":
    from knockscreen.figures.evaluation import evaluation

    rows = run.scan("evaluate/metrics.parquet", EVALUATED).collect()
    beside = ("split", "context", "metric", "baseline", "low", "high")
    summary = run.scan("evaluate/summary.parquet", beside).collect()
    return evaluation(rows, summary, simulated=run.simulated)


def _targets(run: "RunTables", wish: Wish) -> "Figure":
    from knockscreen.figures.evaluation import targets

    rows = run.scan("evaluate/metrics.parquet", EVALUATED).collect()
    return targets(rows, simulated=run.simulated)


def _sweep(run: "RunTables", wish: Wish) -> "Figure":
    from knockscreen.artifacts import read_json
    from knockscreen.figures.sweep import sweep

    rows = run.scan("sweep/sweep.parquet", SWEPT).collect()
    chosen = read_json(run.path("sweep/chosen.json"))
    return sweep(rows, chosen, tolerance=chosen["tolerance"], simulated=run.simulated)


FIGURES: dict[str, Callable[["RunTables", Wish], "Figure"]] = {
    "qc": _qc,
    "loss": _loss,
    "cells": _cells,
    "volcano": _volcano,
    "ranking": _ranking,
    "heatmap": _heatmap,
    "measured": _measured,
    "calibration": _calibration,
    "evaluation": _evaluation,
    "targets": _targets,
    "sweep": _sweep,
}
OF_A_PROGRAM = ("volcano", "ranking", "heatmap", "measured", "calibration")


def plot(
    figure: Annotated[str, typer.Argument(help=f"One of {', '.join(FIGURES)}.")],
    results_dir: Annotated[Path, typer.Option(help="Folder of the run, results/<run>.")],
    output: Annotated[Path, typer.Option(help="Output: .svg or .png.")],
    settings: Annotated[
        str, typer.Option(help="JSON text, or the path of a complete configuration.")
    ],
    program: Annotated[str | None, typer.Option(help="Program; default: report.program.")] = None,
    context: Annotated[
        str | None,
        typer.Option(help="Context; default: the most pooled one with the widest scores."),
    ] = None,
    knockdown: Annotated[
        str | None, typer.Option(help="Knock-down of the volcano; default: report.knockdown.")
    ] = None,
) -> None:
    """Draw one figure of a run from its tables."""
    from knockscreen.artifacts import atomic, write_manifest
    from knockscreen.config import ProgramsConfig, RankConfig, ReportConfig, Section, read_stage
    from knockscreen.errors import ConfigError, UnknownNameError, suggest
    from knockscreen.run_tables import RunTables

    class Stage(Section):
        report: ReportConfig
        programs: ProgramsConfig
        rank: RankConfig

    if figure not in FIGURES:
        msg = f"there is no figure '{figure}'{suggest(figure, FIGURES)}."
        raise UnknownNameError(msg)
    kind = output.suffix.lower().removeprefix(".")
    if kind not in {"svg", "png"}:
        msg = f"--output {output} ends in '{output.suffix}'; figures are written as .svg or .png."
        raise ConfigError(msg)
    config = read_stage(Stage, settings)
    run = RunTables(results_dir)
    wish = Wish(
        config.report,
        config.programs,
        config.rank,
        program=program or config.report.program,
        context=context,
        knockdown=knockdown or config.report.knockdown,
    )
    if figure in OF_A_PROGRAM:
        run.check_program(wish.program)
    from knockscreen.figures.style import render

    image = render(FIGURES[figure](run, wish), kind)
    with atomic(output) as temporary:
        temporary.write_bytes(image)
    inputs = dict.fromkeys(run.used)
    write_manifest(output, stage="plot", inputs=inputs, settings=config.model_dump(mode="json"))
    log.info("drew %s: %s", figure, output)


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(plot)
