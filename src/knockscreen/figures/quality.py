"""What quality control did: cells after each filter, their sizes, knock-down of the targets."""

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from knockscreen.figures import style
from knockscreen.figures.style import Page

CONTEXTS = 16
"""Contexts drawn at most; the largest are kept."""
STATUS = {"kept": (style.BLUE, "kept"), "inactive": (style.VERMILION, "dropped"),
          "not_judged": (style.GREY, "not judged")}  # fmt: skip
FILTERS = {"low_guide_umis": "low guide UMIs", "high_mt": "high mitochondrial share"}


@style.house_style
def qc(
    summary: pl.DataFrame,
    histograms: pl.DataFrame,
    guides: pl.DataFrame,
    *,
    simulated: bool = False,
) -> Figure:
    """Draw cells before and after each filter, library sizes and genes by context, and guides.

    Parameters
    ----------
    summary
        step, filter, setting, cells_before, cells_after, in the order of the filters.
    histograms
        Kept cells: context, measure ("library_size", "n_genes"), bin (log10 of its lower edge),
        width (log10), n.
    guides
        log2_fold_change of the target's mean against control cells, fdr, status (kept,
        inactive, not_judged).
    simulated
        Say in the corner that the screen is simulated.
    """
    summary = summary.sort("step")
    before, after = int(summary["cells_before"][0]), int(summary["cells_after"][-1])
    judged = guides.filter(pl.col("status") != "not_judged").height
    inactive = guides.filter(pl.col("status") == "inactive").height
    page = Page(
        title=f"Quality control keeps {after:,} of {before:,} cells ({after / before:.0%})",
        subtitle=f"{guides.height:,} guides: {judged:,} judged by the expression of their target, "
        f"{inactive:,} dropped for want of a knock-down.",
        note="Filters apply from top to bottom, each to the cells that the one above left. "
        "Histograms: cells kept, height scaled within each context; line: median, rounded at the "
        "right.",
        simulated=simulated,
    )
    contexts = _contexts(histograms)
    lower = max(1.9, 0.34 * len(contexts) + 0.9)
    upper = max(2.6, 0.27 * (summary.height + 1) + 0.7)
    figure = style.new_figure(9.6, upper + lower, page)
    grid = figure.add_gridspec(2, 2, height_ratios=[upper, lower], width_ratios=[1.15, 1])
    _waterfall(figure.add_subplot(grid[0, 0]), summary)
    _guides(figure.add_subplot(grid[0, 1]), guides)
    left = figure.add_subplot(grid[1, 0])
    right = figure.add_subplot(grid[1, 1])
    _ridges(left, histograms.filter(pl.col("measure") == "library_size"), contexts)
    _ridges(right, histograms.filter(pl.col("measure") == "n_genes"), contexts)
    left.set_title("Library size by context")
    left.set_xlabel("counts per cell over all genes")
    right.set_title("Genes by context")
    right.set_xlabel("detected genes per cell")
    right.set_yticklabels([])
    return figure


def _contexts(histograms: pl.DataFrame) -> list[str]:
    """Return the contexts to draw by name: all, or those with the most cells."""
    sizes = (
        histograms.group_by("context")
        .agg(pl.col("n").sum())
        .sort(["n", "context"], descending=[True, False])
    )
    return sorted(sizes["context"].head(CONTEXTS))


def _waterfall(ax: Axes, summary: pl.DataFrame) -> None:
    """Draw the cells left by each filter, and in a second colour those that it dropped."""
    total = int(summary["cells_before"][0])
    left = np.concatenate([[total], summary["cells_after"].to_numpy()])
    dropped = np.concatenate([[0], (summary["cells_before"] - summary["cells_after"]).to_numpy()])
    place = np.arange(len(left))
    ax.barh(place, left, height=0.72, color=style.BLUE)
    ax.barh(place, dropped, left=left, height=0.72, color=style.ORANGE)
    names = [
        "input",
        *(_filter_name(*row) for row in summary.select("filter", "setting").iter_rows()),
    ]
    ax.set_yticks(place, names)
    for at, kept, lost in zip(place, left, dropped, strict=True):
        text = f"{kept:,}" + (f"  \N{MINUS SIGN}{lost:,}" if lost else "")
        ax.annotate(
            text,
            (kept + lost, at),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
        )
    ax.set_xlim(0, total * 1.34 or 1)
    ax.set_xticks([])
    ax.invert_yaxis()
    ax.tick_params(axis="y", length=0)
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.set_title("Cells left (blue) and dropped (orange)", pad=20)


def _filter_name(name: str, setting: str | None) -> str:
    text = FILTERS.get(name, name.replace("_", " "))
    return f"{text} ({setting})" if setting and len(setting) + len(text) < 34 else text


def _guides(ax: Axes, guides: pl.DataFrame) -> None:
    """Draw each guide's effect on its own target, coloured by what became of the guide."""
    known = guides.drop_nulls(["log2_fold_change", "fdr"])
    known = known.filter(pl.col("log2_fold_change").is_finite())
    if known.is_empty():
        style.empty_panel(ax, "No guide was judged by the expression of its target.")
        return
    y = -np.log10(np.clip(known["fdr"].to_numpy(), 1e-300, 1.0))
    top = float(max(np.quantile(y, 0.97) * 1.25, 3.0))
    over = y > top
    status = known["status"].to_numpy()
    for key, (colour, label) in STATUS.items():
        keep = status == key
        name = f"{label} ({keep.sum():,})"
        if not keep.any():
            continue
        x = known["log2_fold_change"].to_numpy()
        ax.scatter(
            x[keep & ~over],
            y[keep & ~over],
            s=13,
            color=colour,
            alpha=0.75,
            linewidths=0,
            label=name,
        )
        ax.scatter(
            x[keep & over],
            np.full((keep & over).sum(), top),
            s=15,
            marker="^",
            color=colour,
            alpha=0.75,
            linewidths=0,
        )
    ax.axvline(0, color=style.PALE, linewidth=0.8, zorder=0)
    ax.set_ylim(-0.02 * top, top * 1.05)
    style.signed(ax.xaxis)
    ax.set_xlabel("log2 fold change of the target, guide against control")
    ax.set_ylabel("\N{MINUS SIGN}log10 FDR (Welch's t-test)")
    ax.set_title("Knock-down by each guide", pad=20)
    ax.legend(loc="lower left", bbox_to_anchor=(-0.03, 0.995), ncols=3, columnspacing=1.0)


def _ridges(ax: Axes, histogram: pl.DataFrame, contexts: list[str]) -> None:
    """Draw one histogram per context, in rows on one logarithmic axis, with the median marked."""
    for place, context in enumerate(contexts):
        rows = histogram.filter(pl.col("context") == context).sort("bin")
        if rows.is_empty():
            continue
        left, n = rows["bin"].to_numpy(), rows["n"].to_numpy()
        width = float(rows["width"][0])
        ax.bar(
            left,
            -0.82 * n / n.max(),
            width=width,
            bottom=place,
            align="edge",
            color=style.SKY,
            linewidth=0,
        )
        half = np.searchsorted(np.cumsum(n), n.sum() / 2)
        middle = left[half] + width / 2
        ax.plot([middle, middle], [place, place - 0.82], color=style.INK, linewidth=1.1)
        text = f"{_round(10**middle):,}"
        ax.annotate(
            text, (1, place - 0.3), xycoords=("axes fraction", "data"), xytext=(3, 0),
            textcoords="offset points", fontsize=7, color=style.GREY, va="center",
        )  # fmt: skip
    ax.set_ylim(max(len(contexts), 1) - 0.85, -1.0)
    ax.set_yticks(range(len(contexts)), contexts, va="bottom")
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    _log_ticks(ax)


def _round(value: float) -> int:
    """Return ``value`` to two significant digits: a histogram knows its median no better."""
    return int(float(f"{value:.2g}"))


def _log_ticks(ax: Axes) -> None:
    """Label an axis of log10 values with the values themselves, at 1, 2 and 5 times each power."""
    low, high = ax.get_xlim()
    powers = range(int(np.floor(low)), int(np.ceil(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        values = [
            m * 10**p
            for p in powers
            for m in steps
            if p >= 0 and low <= np.log10(m * 10**p) <= high
        ]
        if len(values) <= 7:
            break
    ax.set_xticks(np.log10(values), [f"{value:,}" for value in values])
    ax.set_xlim(low, high)
