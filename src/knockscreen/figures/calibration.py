"""Are p-values what they say: scores of knock-downs beside their decoys, and p-values in order."""

import textwrap

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.stats import beta

from knockscreen.figures import style
from knockscreen.figures.style import Page
from knockscreen.names import Direction, Evidence

CALLED = 0.1
"""FDR at which a knock-down is named."""
COLOURS = {Direction.TOWARD: style.TOWARD, Direction.AWAY: style.AWAY}
UNITS = {
    Evidence.PREDICTED_SEEN: "score (mean log1p CP10k change)",
    Evidence.MEASURED: "score, in units of its own error",
}
HEADINGS = {Evidence.PREDICTED_SEEN: "Predicted", Evidence.MEASURED: "Measured"}
LABELS = {Direction.TOWARD: "toward the program", Direction.AWAY: "away from the program"}
SIZES = {Direction.TOWARD: 5.6, Direction.AWAY: 3.4}
NAMED = 10
"""Knock-downs named in each direction at most."""
LINE = 0.06
"""Height of a line of names, as a share of the panel's."""


@style.house_style
def calibration(rankings: pl.DataFrame, decoys: pl.DataFrame, *, simulated: bool = False) -> Figure:
    """Draw scores of knock-downs among those of decoys, and p-values against uniform ones.

    Parameters
    ----------
    rankings
        Rows of one program and context, both directions: target_gene, direction, evidence (trained
        or measured), value (what is counted against decoys), p_value, fdr, program, context.
    decoys
        evidence, value.
    simulated
        Say in the corner that the screen is simulated.
    """
    program, context = rankings["program"][0], rankings["context"][0]
    kinds = [kind for kind in UNITS if (rankings["evidence"] == kind).any()]
    called = {k: _called(rankings.filter(pl.col("evidence") == k)).height for k in kinds}
    counts = " and ".join(f"{n} {HEADINGS[k].lower()}" for k, n in called.items())
    page = Page(
        title=f"{program}: {counts} knock-downs stand out (FDR {CALLED:g})",
        subtitle=f"{style.context_text(context)}. Decoys: control cells grouped as the cells of "
        "a knock-down are, by control guide where guides are known.",
        note="Below: p-values in order, against what they would be if no knock-down did anything; "
        "grey: 95 % of such screens, point by point. p = (b + 1) / (n + 1), b of n decoys as "
        "extreme or more, in each direction apart.",
        simulated=simulated,
    )
    figure = style.new_figure(9.2, 5.4, page)
    grid = figure.add_gridspec(2, len(kinds), height_ratios=[1, 1.3])
    for column, kind in enumerate(kinds):
        rows = rankings.filter(pl.col("evidence") == kind)
        null = decoys.filter(pl.col("evidence") == kind)["value"].drop_nulls().to_numpy()
        _scores(figure.add_subplot(grid[0, column]), rows, null, kind)
        _p_values(figure.add_subplot(grid[1, column]), rows)
    return figure


def _called(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.filter(pl.col("fdr") <= CALLED)


def _scores(ax: Axes, rows: pl.DataFrame, null: np.ndarray, kind: Evidence) -> None:
    """Draw the distribution of decoys, and a tick for every knock-down."""
    one = rows.filter(pl.col("direction") == Direction.TOWARD).drop_nulls("value")
    value = one["value"].to_numpy()
    ax.set_title(f"{HEADINGS[kind]}: {one.height} knock-downs, {len(null)} decoys")
    if len(null):
        ax.hist(null, bins=20, color=style.PALE, label="decoys")
    top = ax.get_ylim()[1]
    named = {name: Direction(d) for name, d in _called(rows)[["target_gene", "direction"]].rows()}
    colours = [COLOURS[named[n]] if n in named else style.INK for n in one["target_gene"]]
    ax.vlines(value, -0.12 * top, -0.02 * top, colors=colours, linewidth=1.2)
    ax.set_ylim(-0.14 * top, 1.05 * top)
    ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.set_yticks([tick for tick in ax.get_yticks() if 0 <= tick <= top])
    style.signed(ax.xaxis)
    ax.set_xlabel(UNITS[kind])
    ax.set_ylabel("decoys")


def _p_values(ax: Axes, rows: pl.DataFrame) -> None:
    """Draw -log10 of the p-values in order against that of uniform ones, with its 95 % band."""
    tested = rows.drop_nulls("p_value")
    if tested.is_empty():
        style.empty_panel(ax, "too few decoys for a p-value")
        return
    largest = 0.0
    for direction, colour in COLOURS.items():
        part = tested.filter(pl.col("direction") == direction).sort("p_value", "target_gene")
        n = part.height
        place = np.arange(1, n + 1)
        expected = -np.log10((place - 0.5) / n)
        found = -np.log10(part["p_value"].to_numpy())
        if direction == Direction.TOWARD:
            low, high = (-np.log10(beta.ppf(q, place, n + 1 - place)) for q in (0.975, 0.025))
            ax.fill_between(expected, low, high, color=style.FAINT, linewidth=0)
        face = colour if direction == Direction.AWAY else "none"
        ax.plot(
            expected, found, "o", ms=SIZES[direction], mec=colour, mfc=face,
            label=LABELS[direction],
        )  # fmt: skip
        largest = max(largest, float(expected[0]), float(found.max()))
    ax.plot([0, largest], [0, largest], color=style.GREY, linewidth=0.8)
    lines = _name(ax, _called(tested))
    ax.set_xlim(0, 1.08 * largest)
    ax.set_ylim(0, 1.08 * largest / (1 - LINE * (lines + 1)))
    ax.set_xlabel("expected −log10 p")
    ax.set_ylabel("found −log10 p")
    ax.legend(loc="lower right")


def _name(ax: Axes, called: pl.DataFrame) -> int:
    """Name the knock-downs that stand out, the most extreme first; return the lines it took."""
    used = 0
    for direction in Direction:
        part = called.filter(pl.col("direction") == direction)
        names = part.sort(pl.col("value").abs(), descending=True)["target_gene"].to_list()
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        if names:
            lines = textwrap.wrap(", ".join(names[:NAMED]) + more, 60)
            ax.annotate(
                "\n".join(lines), (0.02, 0.99 - LINE * used), xycoords="axes fraction",
                va="top", fontsize=8, color=COLOURS[direction],
            )  # fmt: skip
            used += len(lines)
    return used
