"""Knock-downs by programs: the heatmap, and predicted beside measured scores."""

from collections.abc import Collection, Mapping

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from knockscreen.figures import style
from knockscreen.figures.statistics import spearman
from knockscreen.figures.style import Page
from knockscreen.names import Evidence


def strongest(scores: pl.DataFrame, top: int) -> list[str]:
    """Return ``top`` target ids: each program's strongest knock-down, then each one's second, ...

    So every program is represented, whatever the scale of its scores.
    """
    ordered = (
        scores.drop_nulls("score")
        .with_columns(pl.col("score").abs().alias("size"))
        .sort(["size", "target_gene_id"], descending=[True, False])
        .with_columns(pl.int_range(pl.len()).over("program").alias("place"))
        .sort(["place", "program"])
    )
    return ordered["target_gene_id"].unique(maintain_order=True).head(top).to_list()


def cluster_order(matrix: np.ndarray) -> list[int]:
    """Return the order of rows that puts similar ones side by side (average linkage)."""
    from scipy.cluster.hierarchy import leaves_list, linkage

    if len(matrix) < 3:
        return list(range(len(matrix)))
    tree = linkage(matrix, method="average", metric="euclidean", optimal_ordering=True)
    return [int(leaf) for leaf in leaves_list(tree)]


@style.house_style
def heatmap(
    scores: pl.DataFrame,
    *,
    top: int,
    interval_z: float,
    planted: Mapping[str, Collection[str]] | None = None,
    simulated: bool = False,
) -> Figure:
    """Draw the strongest knock-downs against every program, both ordered by similarity.

    Parameters
    ----------
    scores
        Rows of one context: program, target_gene_id, target_gene, evidence, score, score_sd,
        context.
    top
        Knock-downs shown.
    interval_z
        Half-width of the interval in units of ``score_sd``; scores whose interval spans 0 are
        marked with a dot.
    planted
        Program -> symbols of its planted regulators; None where they are not known.
    simulated
        Say in the corner that the screen is simulated.
    """
    kept = strongest(scores, top)
    shown = scores.filter(pl.col("target_gene_id").is_in(kept))
    wide, names, programs, spans = _matrix(shown, interval_z)
    rows, columns = cluster_order(np.nan_to_num(wide)), cluster_order(np.nan_to_num(wide.T))
    wide, spans = wide[np.ix_(rows, columns)], spans[np.ix_(rows, columns)]
    names, programs = [names[i] for i in rows], [programs[j] for j in columns]
    page = Page(
        title=f"The {len(names)} strongest knock-downs across {len(programs)} programs",
        subtitle=f"{style.context_text(scores['context'][0])}; score: mean log1p CP10k change over "
        "a program's genes, red toward it, blue away from it; blank: not scored.",
        note="Knock-downs are each program's strongest in turn, out of "
        f"{scores['target_gene_id'].n_unique():,}; rows and columns by average linkage. "
        f"Dot: the score is within {interval_z:.2f} sd of 0."
        + (" Outlined: planted regulator of the program." if planted else "")
        + " Italic: knock-down not seen in training.",
        simulated=simulated,
    )
    width = max(6.4, 2.6 + 0.52 * len(programs))
    figure = style.new_figure(width, 0.205 * len(names) + 1.3, page)
    ax = figure.add_subplot()
    _tiles(figure, ax, wide)
    ax.set_xticks(range(len(programs)), programs, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(names)), names)
    unseen = set(scores.filter(pl.col("evidence") == Evidence.PREDICTED_UNSEEN)["target_gene"])
    for label in ax.get_yticklabels():
        label.set_fontstyle("italic" if label.get_text() in unseen else "normal")
    y, x = np.nonzero(spans)
    ax.scatter(x, y, s=5, color=style.GREY, linewidths=0)
    for i, name in enumerate(names):
        for j, program in enumerate(programs):
            if name in (planted or {}).get(program, ()):
                corner = (j - 0.44, i - 0.44)
                ax.add_patch(
                    Rectangle(corner, 0.88, 0.88, fill=False, linewidth=1.4, color=style.INK)
                )
    return figure


def _matrix(
    shown: pl.DataFrame, interval_z: float
) -> tuple[np.ndarray, list[str], list[str], np.ndarray]:
    """Return scores (knock-downs, programs), both names, and whether each interval spans 0."""
    programs = sorted(shown["program"].unique())
    table = shown.select("target_gene_id", "target_gene").unique().sort("target_gene_id")
    row = {target: i for i, target in enumerate(table["target_gene_id"])}
    column = {program: j for j, program in enumerate(programs)}
    wide = np.full((len(row), len(column)), np.nan)
    spans = np.zeros(wide.shape, dtype=bool)
    cells = shown.select("target_gene_id", "program", "score", "score_sd")
    for target, program, score, sd in cells.iter_rows():
        at = row[target], column[program]
        wide[at] = np.nan if score is None else score
        spans[at] = score is not None and sd is not None and abs(score) < interval_z * sd
    return wide, table["target_gene"].to_list(), programs, spans


def _tiles(figure: Figure, ax: Axes, wide: np.ndarray) -> None:
    """Draw the coloured tiles and their colour bar, centred at 0."""
    shrink = min(1.0, 12 / len(wide))
    finite = np.abs(wide[np.isfinite(wide)])
    reach = (float(np.quantile(finite, 0.98)) if finite.size else 0.0) or 1.0
    rows, columns = (np.arange(n + 1) - 0.5 for n in wide.shape)
    image = ax.pcolormesh(
        columns, rows, wide, cmap=style.DIVERGING, vmin=-reach, vmax=reach, edgecolors="white",
        linewidth=0.8,
    )  # fmt: skip
    ax.invert_yaxis()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    bar = figure.colorbar(
        image, ax=ax, shrink=shrink, aspect=36 * shrink, pad=0.02, extend="both", anchor=(0, 1)
    )
    bar.outline.set_visible(False)
    bar.set_label("score")
    style.signed(bar.ax.yaxis)


@style.house_style
def measured(
    pairs: pl.DataFrame,
    *,
    ceiling: Mapping[str, float | int | None] | None = None,
    top: int,
    simulated: bool = False,
) -> Figure:
    """Draw predicted beside measured scores of one program, target by target.

    Parameters
    ----------
    pairs
        Rows of one program and context: target_gene, evidence, predicted, measured, and
        measured_error (standard error, nullable), n_cells, program, context.
    ceiling
        Row of measured/ceiling.parquet: spearman_half, ceiling, splits. None where not estimated.
    top
        Targets in the left panel, those with the largest measured scores.
    simulated
        Say in the corner that the screen is simulated.
    """
    rho = spearman(pairs["predicted"].to_numpy(), pairs["measured"].to_numpy())
    program, context = pairs["program"][0], pairs["context"][0]
    cells = int(pairs["n_cells"].sum())
    page = Page(
        title=f"{program}: predicted and measured scores of {pairs.height} knock-downs, "
        f"Spearman {style.number(rho)}",
        subtitle=f"{style.context_text(context)}; {cells:,} perturbed cells measured. "
        + _ceiling_text(ceiling),
        note="Measured: mean over real cells minus control cells; whiskers: 1 standard error. "
        "Predicted: generated cells minus their control pairs. The target's own gene is left out "
        "of both.",
        simulated=simulated,
    )
    shown = pairs.sort(pl.col("measured").abs(), descending=True).head(top).sort("measured")
    figure = style.new_figure(9.2, max(3.7, 0.19 * shown.height + 0.8), page)
    grid = figure.add_gridspec(1, 2, width_ratios=[1.15, 1])
    _dumbbells(figure.add_subplot(grid[0, 0]), shown, total=pairs.height)
    _scatter(figure.add_subplot(grid[0, 1]), pairs)
    return figure


def _ceiling_text(ceiling: Mapping[str, float | int | None] | None) -> str:
    half = ceiling.get("spearman_half") if ceiling else None
    if ceiling is None or half is None:
        return "Split-half ceiling: not estimated."
    best = ceiling.get("ceiling")
    text = "not defined (halves disagree)" if best is None else style.number(best)
    return f"Split-half ceiling {text} (halves of the real cells agree at {style.number(half)})."


def _dumbbells(ax: Axes, shown: pl.DataFrame, *, total: int) -> None:
    """Draw measured and predicted scores of each target, joined by a line."""
    place = np.arange(shown.height)
    real, made = shown["measured"].to_numpy(), shown["predicted"].to_numpy()
    ax.axvline(0, color=style.GREY, linewidth=0.7)
    ax.hlines(place, real, made, color=style.PALE, linewidth=2.2)
    error = shown["measured_error"].fill_null(0.0).to_numpy()
    ax.hlines(place, real - error, real + error, color=style.INK, linewidth=0.9)
    ax.scatter(real, place, s=26, color=style.INK, zorder=3, label="measured")
    ax.scatter(made, place, s=26, color=style.ORANGE, zorder=4, label="predicted")
    ax.set_yticks(place, shown["target_gene"].to_list())
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_ylim(-0.7, shown.height - 0.3)
    ax.grid(axis="x")
    style.signed(ax.xaxis)
    ax.set_xlabel("score (mean log1p CP10k change)")
    few = f"The {shown.height} strongest of {total}" if shown.height < total else "Every target"
    ax.set_title(few, pad=20)
    ax.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, columnspacing=1.0)


def _scatter(ax: Axes, pairs: pl.DataFrame) -> None:
    """Draw predicted against measured scores, the largest labelled."""
    real, made = pairs["measured"].to_numpy(), pairs["predicted"].to_numpy()
    unseen = (pairs["evidence"] == Evidence.PREDICTED_UNSEEN).fill_null(value=False).to_numpy()
    face = np.where(unseen, "white", style.ORANGE)
    ax.axhline(0, color=style.FAINT, zorder=0)
    ax.axvline(0, color=style.FAINT, zorder=0)
    ax.scatter(real, made, s=24, c=face, edgecolors=style.ORANGE, linewidths=1.1)
    style.square(ax, np.concatenate([real, made]))
    style.signed(ax.xaxis)
    style.signed(ax.yaxis)
    ax.set_xlabel("measured score")
    ax.set_ylabel("predicted score")
    ax.set_title("Every target; line: equality", pad=20)
    if unseen.any():
        handles = [
            style.key("seen in training", face=style.ORANGE, edge=style.ORANGE),
            style.key("not seen", face="white", edge=style.ORANGE),
        ]
        ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2)
    large = np.abs(real) >= 0.15 * np.nanmax(np.abs(real))
    first = [i for i in np.argsort(-np.abs(real), kind="stable")[:10] if large[i]]
    names = pairs["target_gene"].to_list()
    style.place_labels(ax, real, made, {int(i): names[i] for i in first})
