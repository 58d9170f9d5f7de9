"""One knock-down, gene by gene: how large, how certain in simulation, and as measured."""

from collections.abc import Mapping

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from knockscreen.figures import style
from knockscreen.figures.statistics import pearson
from knockscreen.figures.style import Page

LABELS = 9
"""Genes named on each side."""


@style.house_style
def volcano(
    effects: pl.DataFrame,
    *,
    target_gene: str,
    program: Mapping[str, float] | None = None,
    program_name: str = "",
    simulated: bool = False,
) -> Figure:
    """Draw the predicted effect of one knock-down on every gene, beside the measured one if known.

    Generated cells are free, so a p-value over them would prove nothing: the vertical axis is the
    change in units of its Monte-Carlo standard error, and says so.

    Parameters
    ----------
    effects
        Rows of one target and context: gene, log2_fold_change, delta (log1p CP10k), delta_se,
        is_target, context, measured_delta and measured_cells (both nullable).
    target_gene
        Symbol of the knock-down.
    program
        Symbol -> signed weight of the genes to mark, and ``program_name`` for the legend.
    simulated
        Say in the corner that the screen is simulated.
    """
    known = effects.drop_nulls("measured_delta")
    context = style.context_text(effects["context"][0])
    page = Page(
        title=_finding(effects, target_gene),
        subtitle=f"{context}; predicted, {effects.height:,} genes. " + _measured_text(known),
        note="Signal to noise is the mean paired change over its Monte-Carlo standard error: how "
        "well the simulation is resolved, not a p-value."
        + (" The target's own gene is left out of the agreement." if known.height else ""),
        simulated=simulated,
    )
    both = known.height > 0
    figure = style.new_figure(9.6 if both else 6.8, 4.5, page)
    axes = figure.subplots(1, 2 if both else 1, squeeze=False)[0]
    marked = set(program or ())
    _volcano(axes[0], effects, marked=marked)
    if both:
        _agreement(axes[1], known, marked=marked)
    _legend(axes[0], effects, program_name if marked & set(effects["gene"]) else "")
    return figure


def _finding(effects: pl.DataFrame, target_gene: str) -> str:
    """Return the title: the genes that move most, without the target itself."""
    others = effects.filter(~pl.col("is_target")).sort("delta")
    down = ", ".join(others.filter(pl.col("delta") < 0)["gene"].head(3))
    up = ", ".join(others.filter(pl.col("delta") > 0)["gene"].reverse().head(3))
    return f"{target_gene} knock-down: up {up or 'no gene'}; down {down or 'no gene'}"


def _measured_text(known: pl.DataFrame) -> str:
    if known.is_empty():
        return "This knock-down was not measured in this context."
    cells = known["measured_cells"].drop_nulls()
    others = known.filter(~pl.col("is_target"))
    r = pearson(others["delta"].to_numpy(), others["measured_delta"].to_numpy())
    real = f"{cells[0]:,} real cells" if len(cells) else "real cells"
    return (
        f"Measured in {real}; Pearson r of change {style.number(r)} over {others.height:,} genes."
    )


def _colours(frame: pl.DataFrame, strong: np.ndarray) -> np.ndarray:
    """Return a colour per gene: up, down, or grey where the change is not among the strong ones."""
    up = frame["delta"].to_numpy() > 0
    return np.where(strong, np.where(up, style.TOWARD, style.AWAY), style.PALE)


def _strong(frame: pl.DataFrame, names: int) -> list[int]:
    """Return the rows to name: the largest changes up and down in turn, the target not counted."""
    delta = np.where(frame["is_target"].to_numpy(), 0.0, frame["delta"].fill_null(0.0).to_numpy())
    order = np.argsort(delta, kind="stable")
    down, up = (
        [i for i in order[:names] if delta[i] < 0],
        [i for i in order[::-1][:names] if delta[i] > 0],
    )
    pairs = [i for k in range(names) for side in (up, down) for i in side[k : k + 1]]
    return [int(i) for i in pairs]


def _volcano(ax: Axes, effects: pl.DataFrame, *, marked: set[str]) -> None:
    """Draw log2 fold change against signal to noise, on a square-root scale."""
    noise = pl.when(pl.col("delta_se") > 0).then(pl.col("delta_se"))
    frame = (
        effects.with_columns((pl.col("delta").abs() / noise).alias("signal"))
        .drop_nulls(["signal", "log2_fold_change"])
        .filter(pl.col("log2_fold_change").is_finite())
    )
    if frame.is_empty():
        style.empty_panel(ax, "No gene has a Monte-Carlo standard error.")
        return
    x, y = frame["log2_fold_change"].to_numpy(), frame["signal"].to_numpy()
    named = _strong(frame, LABELS)
    strong = np.zeros(frame.height, dtype=bool)
    strong[_strong(frame, max(LABELS, frame.height // 50))] = True
    ax.axvline(0, color=style.PALE, linewidth=0.8)
    _points(ax, frame, x, y, strong=strong, marked=marked)
    ax.set_yscale("function", functions=(lambda v: np.sqrt(np.clip(v, 0, None)), np.square))
    ax.set_ylim(0, float(y.max()) * 1.12 + 0.5)
    ax.margins(x=0.12)
    style.thousands(ax.yaxis)
    style.signed(ax.xaxis)
    ax.set_xlabel("predicted log2 fold change (mean counts)")
    ax.set_ylabel("simulation signal to noise, |delta| / SE (not a p-value)")
    ax.set_title("Predicted effect")
    _name(ax, frame, x, y, named)


def _agreement(ax: Axes, known: pl.DataFrame, *, marked: set[str]) -> None:
    """Draw predicted against measured change of each gene."""
    x, y = known["measured_delta"].to_numpy(), known["delta"].to_numpy()
    strong = np.zeros(known.height, dtype=bool)
    strong[_strong(known, max(LABELS, known.height // 50))] = True
    ax.axhline(0, color=style.FAINT, zorder=0)
    ax.axvline(0, color=style.FAINT, zorder=0)
    _points(ax, known, x, y, strong=strong, marked=marked)
    style.square(ax, np.concatenate([x, y]))
    style.signed(ax.xaxis)
    style.signed(ax.yaxis)
    ax.set_xlabel("measured mean log1p CP10k change")
    ax.set_ylabel("predicted mean log1p CP10k change")
    ax.set_title("Predicted and measured; line: equality")
    _name(ax, known, x, y, _strong(known, LABELS))


def _points(
    ax: Axes, frame: pl.DataFrame, *at: np.ndarray, strong: np.ndarray, marked: set[str]
) -> None:
    """Draw the genes: pale, strong, ringed where of the program; the target as a diamond."""
    x, y = at
    target = frame["is_target"].to_numpy()
    colours = _colours(frame, strong)
    for layer, size, order in ((~strong, 9, 2), (strong, 17, 3)):
        keep = layer & ~target
        dots = ax.scatter(x[keep], y[keep], s=size, c=colours[keep], linewidths=0, zorder=order)
        dots.set_rasterized(bool(keep.sum() > 3000))
    ring = np.array([gene in marked for gene in frame["gene"]], dtype=bool) & ~target
    ax.scatter(
        x[ring], y[ring], s=42, facecolors="none", edgecolors=style.INK, linewidths=0.8, zorder=4
    )
    if target.any():
        ax.scatter(x[target], y[target], marker="D", s=34, color=style.INK, zorder=5)


def _name(ax: Axes, frame: pl.DataFrame, x: np.ndarray, y: np.ndarray, named: list[int]) -> None:
    genes = frame["gene"].to_list()
    target = [int(i) for i in np.flatnonzero(frame["is_target"].to_numpy())]
    style.place_labels(ax, x, y, {i: genes[i] for i in [*target, *named]})


def _legend(ax: Axes, effects: pl.DataFrame, program_name: str) -> None:
    """Explain the markers that occur, below the title of the panel."""
    handles = [
        style.key("largest up", face=style.TOWARD, edge=style.TOWARD, size=4.5),
        style.key("largest down", face=style.AWAY, edge=style.AWAY, size=4.5),
    ]
    if effects["is_target"].any():
        handles.append(style.key("target", face=style.INK, marker="D", size=5))
    if program_name:
        handles.append(style.key(f"gene of {program_name}", face="none"))
    ax.legend(
        handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=4, columnspacing=1.1
    )
