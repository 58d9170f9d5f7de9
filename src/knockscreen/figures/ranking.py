"""The ranking of one program in one context, with intervals and what is known of each gene."""

from collections.abc import Mapping
from statistics import NormalDist

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from knockscreen.figures import style
from knockscreen.figures.style import Page
from knockscreen.names import Direction, Evidence

COLOURS = {Direction.TOWARD: style.TOWARD, Direction.AWAY: style.AWAY}
SIGNS = {Direction.TOWARD: 1, Direction.AWAY: -1}
HEADINGS = {Direction.TOWARD: "Toward the program", Direction.AWAY: "Away from the program"}

UNSUPPORTED = {
    "exploratory": "Exploratory: the positive controls of the program fail",
    "not_tested": "No positive controls tested",
}
"""What is said of a ranking that its controls do not support."""


@style.house_style
def ranking(
    rankings: pl.DataFrame,
    *,
    top: int,
    interval: float,
    planted: Mapping[str, int] | None = None,
    simulated: bool = False,
) -> Figure:
    """Draw the knock-downs that move cells most toward and most away from one program.

    Parameters
    ----------
    rankings
        Rows of one program and one context: target_gene, direction, rank, rank_low, rank_high,
        score and score_sd (mean log1p CP10k change over the program), evidence, control_status,
        program, context.
    top
        Rows shown in each direction, those in the training cells before those that were not.
    interval
        Coverage of the whiskers, a normal interval from ``score_sd``.
    planted
        Symbol -> sign (+1 toward, -1 away) of the true effect of the program's planted regulators;
        None where they are not known, as in real screens.
    simulated
        Say in the corner that the screen is simulated.
    """
    program, context = rankings["program"][0], rankings["context"][0]
    directions = {d: _first(rankings, d, top) for d in Direction}
    ranked = _ranked(rankings)
    page = Page(
        title=_finding(program, directions),
        subtitle=_controls(rankings)
        + f"{style.context_text(context)}; {ranked.height:,} knock-downs ranked, first "
        f"{top} each way. Whiskers: {interval:.0%} interval of the score; grey: of the rank.",
        note="Score: weighted mean over the program's genes of the predicted change of log1p "
        "CP10k, knock-down minus control; the target's own gene is left out. Not seen: the "
        "knock-down was never in the training data: a hypothesis, and listed last.",
        simulated=simulated,
    )
    rows = max(2, *(frame.height for frame in directions.values()))
    figure = style.new_figure(9.2, 0.205 * rows + 0.75 + 1.5, page)
    grid = figure.add_gridspec(2, 2, height_ratios=[0.205 * rows + 0.75, 1.5])
    z = NormalDist().inv_cdf(0.5 + interval / 2)
    for column, (direction, frame) in enumerate(directions.items()):
        ax = figure.add_subplot(grid[0, column])
        _list(ax, frame, direction, z=z, planted=planted or {})
    _same_scale(figure.axes[:2])
    curve = figure.add_subplot(grid[1, :])
    _curve(curve, ranked, planted=planted or {})
    if planted is not None:
        shown = {d: set(frame["target_gene"]) for d, frame in directions.items()}
        curve.set_title(_recovered(ranked, planted, shown))
    _legend(curve, ranked, planted or {})
    return figure


def _controls(rankings: pl.DataFrame) -> str:
    """Return what the positive controls hold against the ranking; empty where they pass."""
    said = []
    for status, words in UNSUPPORTED.items():
        kinds = rankings.filter(pl.col("control_status") == status)["evidence"].unique().sort()
        if len(kinds):
            seen = ["not seen" if k == Evidence.PREDICTED_UNSEEN else "seen" for k in kinds]
            said.append(f"{words} (knock-downs {' and '.join(seen)}). ")
    return "".join(said)


def _finding(program: str, directions: dict[Direction, pl.DataFrame]) -> str:
    """Return the title: the first three knock-downs each way."""
    first = {d: ", ".join(frame["target_gene"].head(3)) for d, frame in directions.items()}
    return (
        f"Toward {program}: knock-downs of {first[Direction.TOWARD] or 'none'}\n"
        f"Away from {program}: knock-downs of {first[Direction.AWAY] or 'none'}"
    )


def _first(rankings: pl.DataFrame, direction: Direction, top: int) -> pl.DataFrame:
    """Return the best rows of one direction, those only that do go that way; seen ones first."""
    score = pl.col("score") * SIGNS[direction]
    rows = rankings.filter((pl.col("direction") == direction) & (score > 0))
    return rows.sort(pl.col("evidence") == Evidence.PREDICTED_UNSEEN, "rank").head(top)


def _recovered(
    ranked: pl.DataFrame, planted: Mapping[str, int], shown: Mapping[Direction, set[str]]
) -> str:
    """Say how many of the planted regulators that were screened are listed on their true side."""
    screened = [gene for gene in ranked["target_gene"] if gene in planted]
    hits = [g for g in screened for d in Direction if SIGNS[d] == planted[g] and g in shown[d]]
    return (
        f"The whole screen: {len(hits)} of {len(screened)} planted regulators are listed above, "
        "on their true side"
    )


def _ranked(rankings: pl.DataFrame) -> pl.DataFrame:
    """Return one row per knock-down, from the most toward to the most away."""
    unique = rankings.unique("target_gene_id", keep="first", maintain_order=True)
    return unique.sort(["score", "target_gene_id"], descending=[True, False])


def _list(
    ax: Axes, frame: pl.DataFrame, direction: Direction, *, z: float, planted: Mapping[str, int]
) -> None:
    """Draw one direction's knock-downs, best on top, as dots with whiskers."""
    colour = COLOURS[direction]
    if frame.is_empty():
        style.empty_panel(
            ax, f"No knock-down of the screen goes this way: {HEADINGS[direction].lower()}."
        )
        return
    places = np.arange(frame.height)
    score = frame["score"].to_numpy()
    half = z * frame["score_sd"].fill_null(0.0).to_numpy()
    seen = (frame["evidence"] != Evidence.PREDICTED_UNSEEN).fill_null(value=False).to_numpy()
    ax.axvline(0, color=style.GREY, linewidth=0.7)
    ax.hlines(places, score - half, score + half, color=colour, linewidth=1.6, alpha=0.45)
    face = np.where(seen, colour, "white")
    ax.scatter(score, places, c=face, edgecolors=colour, s=30, linewidths=1.3, zorder=3)
    known = np.array([gene in planted for gene in frame["target_gene"]], dtype=bool)
    names = [f"{gene}  {rank}" for gene, rank in frame.select("target_gene", "rank").iter_rows()]
    ax.set_yticks(places, names)
    for label, is_known in zip(ax.get_yticklabels(), known, strict=True):
        label.set_fontweight("bold" if is_known else "normal")
    for place, row in enumerate(frame.iter_rows(named=True)):
        low, high = row["rank_low"], row["rank_high"]
        if low is not None and high is not None:
            text = f"{low}" if low == high else f"{low}\N{EN DASH}{high}"
            ax.annotate(
                text, (1, place), xycoords=("axes fraction", "data"), xytext=(4, 0), va="center",
                textcoords="offset points", fontsize=7, color=style.GREY,
            )  # fmt: skip
    sides = [planted.get(gene) == SIGNS[direction] for gene in frame["target_gene"]]
    face = np.where(sides, style.INK, "white")[known]
    ax.scatter(
        np.full(known.sum(), 0.975), places[known], marker="D", s=22, c=face,
        edgecolors=style.INK, transform=ax.get_yaxis_transform(), zorder=4,
    )  # fmt: skip
    ax.set_ylim(max(frame.height, 2) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x")
    style.signed(ax.xaxis)
    ax.set_xlabel("score (mean log1p CP10k change)")
    ax.set_title(HEADINGS[direction], color=colour)


def _same_scale(axes: list[Axes]) -> None:
    """Give both directions the same length per unit of score."""
    forward = [
        (sign * ax.dataLim.intervalx[0], sign * ax.dataLim.intervalx[1])
        for ax, sign in zip(axes, (1, -1), strict=True)
        if np.isfinite(ax.dataLim.intervalx).all()
    ]
    reach = 1.14 * max((max(ends) for ends in forward), default=1.0)
    back = max(0.0, *(-min(ends) for ends in forward)) + 0.04 * reach if forward else 0.0
    axes[0].set_xlim(-back, reach)
    axes[1].set_xlim(back, -reach)


def _curve(ax: Axes, ranked: pl.DataFrame, *, planted: Mapping[str, int]) -> None:
    """Draw the scores of all knock-downs in order, with a tick for each planted regulator."""
    score = ranked["score"].to_numpy()
    place = np.arange(1, ranked.height + 1)
    edges = np.r_[0.5, np.repeat(place[:-1] + 0.5, 2), ranked.height + 0.5]
    steps = np.repeat(score, 2)
    for part, colour in ((steps > 0, style.TOWARD), (steps < 0, style.AWAY)):
        ax.fill_between(edges, 0, np.where(part, steps, 0), color=colour, alpha=0.35, linewidth=0)
    ax.axhline(0, color=style.GREY, linewidth=0.7)
    truth = np.array([planted.get(gene, 0) for gene in ranked["target_gene"]])
    known = np.array([gene in planted for gene in ranked["target_gene"]], dtype=bool)
    face = np.where(truth == np.sign(score), style.INK, "white")[known]
    ax.vlines(place[known], 0, score[known], color=style.INK, linewidth=1.0)
    ax.scatter(place[known], score[known], marker="D", s=20, c=face, edgecolors=style.INK, zorder=4)
    ax.set_xlim(0.3, ranked.height + 0.7)
    ax.margins(y=0.15)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    style.thousands(ax.xaxis)
    style.signed(ax.yaxis)
    ax.set_xlabel("all knock-downs, from most toward to most away")
    ax.set_ylabel("score")
    ax.set_title("The whole screen")


def _legend(ax: Axes, ranked: pl.DataFrame, planted: Mapping[str, int]) -> None:
    """Explain the markers that occur, and only those."""
    evidence = set(ranked["evidence"])
    handles = []
    if evidence != {Evidence.PREDICTED_UNSEEN}:
        handles.append(style.key("seen in training", face=style.INK))
    if Evidence.PREDICTED_UNSEEN in evidence:
        handles.append(style.key("not seen", face="white"))
    rows = ranked.filter(pl.col("target_gene").is_in(list(planted)))
    sides = [planted[g] == np.sign(s) for g, s in rows.select("target_gene", "score").iter_rows()]
    if any(sides):
        handles.append(style.key("planted regulator", face=style.INK, marker="D"))
    if not all(sides):
        handles.append(style.key("planted, truly the other way", face="white", marker="D"))
    ax.legend(handles=handles, loc="upper right", ncols=4, columnspacing=1.0)
