"""The sweep: errors of solvers against their cost, and guidance weights beside no guidance."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from knockscreen.figures import style
from knockscreen.figures.style import Page
from knockscreen.score.metrics import ALL

SOLVERS = ("euler", "midpoint", "heun", "rk4", "ab2")
STRATEGIES = ("nested", "joint", "additive")
ERRORS = {
    "effect_error": "Error of effects",
    "cell_error": "Error of cells",
}
UNITS = {
    "effect_error": "RMSE / standard error",
    "cell_error": "RMSE / s.d. between cells",
}
METRICS = (
    "pearson_delta", "centroid_accuracy", "mae_delta", "mean_r2", "variance_r2", "energy_distance",
)  # fmt: skip
WORDS = {"centroid_accuracy": "discrimination (centroid accuracy)"}


@style.house_style
def sweep(
    table: pl.DataFrame, chosen: Mapping[str, Any], *, tolerance: float, simulated: bool = False
) -> Figure:
    """Draw both parts of the sweep.

    Parameters
    ----------
    table
        Rows of ``sweep/sweep.parquet``.
    chosen
        ``sweep/chosen.json``: the settings under ``screen``, and what they were judged by.
    tolerance
        Largest error of a solver to accept.
    simulated
        Say in the corner that the screen is simulated.
    """
    screen, by = chosen["screen"], chosen["judged_by"]
    g = screen["guidance"]
    steps = f"{screen['steps']} step{'s' if screen['steps'] > 1 else ''}"
    page = Page(
        title="Solver, steps and guidance, chosen by validation cells",
        subtitle=f"Chosen: {screen['solver']} with {steps}; {_named(g)}. Judged by "
        f"{by['cells']:,} cells of {by['knockdowns']} knock-downs.",
        note="Above: distance from the exact solver with the same noise, of effects over the "
        "standard error of the screen's draws; the dashed line is the largest error to accept, the "
        "ring the choice. Below: the value without guidance (dotted "
        "line) and with it; bars are the interval of the difference over targets, as wide as the "
        "number of settings asks for, filled where it leaves out 0.",
        simulated=simulated,
    )
    figure = style.new_figure(9.6, 7.2, page)
    axes = figure.subplots(3, 3, gridspec_kw={"height_ratios": (1.15, 1, 1)})
    for ax, metric in zip(axes[0], ERRORS, strict=False):
        _errors(ax, table, metric, screen, tolerance)
    rows = table.filter(pl.col("part") == "guidance")
    for ax, metric in zip(axes[1:].ravel(), METRICS, strict=True):
        _weights(ax, rows.filter(pl.col("metric") == metric), metric)
    _legend(axes[0, 2], axes[0, 0].get_lines(), rows)
    return figure


def _named(guidance: Mapping[str, Any]) -> str:
    """Return guidance in words."""
    context, perturbation = guidance["context"], guidance["perturbation"]
    if guidance["strategy"] != "additive" and context == perturbation == 1:
        return "no guidance"
    return f"{guidance['strategy']} guidance, context {context:g} and knock-down {perturbation:g}"


def _errors(
    ax: Axes, table: pl.DataFrame, metric: str, screen: Mapping[str, Any], tolerance: float
) -> None:
    """Draw one error of every solver against its evaluations, both on a log scale."""
    wide = table.filter(
        pl.col("part") == "solver", pl.col("metric").is_in([metric, "evaluations"])
    ).pivot("metric", index=["solver", "steps"], values="value")
    ticks: set[float] = set()
    for solver, colour in zip(SOLVERS, style.CATEGORIES, strict=False):
        mine = wide.filter(
            pl.col("solver") == solver, pl.col(metric).is_not_null(), pl.col(metric) > 0
        ).sort("evaluations")
        if mine.is_empty():
            continue
        x, y = mine["evaluations"].to_numpy(), mine[metric].to_numpy()
        ticks |= set(x.tolist())
        ax.plot(x, y, color=colour, marker="o", markersize=3.5, label=solver)
        best = mine["steps"].to_numpy() == screen["steps"]
        if solver == screen["solver"] and best.any():
            ax.plot(x[best], y[best], marker="o", markersize=10, markerfacecolor="none",
                    markeredgecolor=style.INK, linestyle="")  # fmt: skip
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xticks(sorted(ticks), [f"{t:g}" for t in sorted(ticks)])
    ax.set_xticks([], minor=True)
    ax.axhline(tolerance, color=style.GREY, linewidth=0.9, linestyle=(0, (4, 2)), zorder=0)
    ax.grid(axis="y")
    ax.set_title(ERRORS[metric])
    ax.set_xlabel("network evaluations per cell")
    ax.set_ylabel(UNITS[metric])


def _weights(ax: Axes, rows: pl.DataFrame, metric: str) -> None:
    """Draw one metric against the knock-down's weight, a line per strategy and context weight."""
    arrow = "lower is better" if ALL[metric].best == 0 else "higher is better"
    name = WORDS.get(metric, metric.replace("_", " "))
    ax.set_title(f"{name}\n", fontsize=8.5)
    ax.text(0, 1.02, arrow, transform=ax.transAxes, fontsize=7.5, color=style.GREY)
    base = rows.filter(pl.col("difference").is_null())
    value = base["value"][0] if base.height else None
    if value is None:
        style.empty_panel(ax, "No value without guidance.")
        return
    ax.axhline(value, color=style.GREY, linewidth=0.9, linestyle=(0, (1, 2)), zorder=0)
    lines = _lines(rows)
    shift = 0.03 * (np.arange(len(lines)) - (len(lines) - 1) / 2)
    for (strategy, context), offset in zip(lines, shift, strict=True):
        mine = rows.filter(
            pl.col("strategy") == strategy, pl.col("value").is_not_null(),
            pl.col("difference").is_not_null(),
            *([] if context is None else [pl.col("context_weight") == context]),
        ).sort("perturbation_weight")  # fmt: skip
        x = mine["perturbation_weight"].to_numpy() + offset
        y = mine["value"].to_numpy()
        colour = style.CATEGORIES[STRATEGIES.index(strategy)]
        broken = (0, (3, 2)) if context not in (None, 1.0) else "-"
        ax.plot(x, y, color=colour, linewidth=0.9, linestyle=broken, alpha=0.6)
        for at, row in zip(x, mine.iter_rows(named=True), strict=True):
            clear = row["verdict"] in ("wins", "loses")
            if row["low"] is not None:
                ax.plot([at, at], [value + row["low"], value + row["high"]], color=colour,
                        linewidth=0.8)  # fmt: skip
            ax.plot([at], [row["value"]], marker="o", markersize=3.6, color=colour,
                    markerfacecolor=colour if clear else "white")  # fmt: skip
    ax.set_xlabel("weight of the knock-down")


def _lines(rows: pl.DataFrame) -> list[tuple[str, float | None]]:
    """Return (strategy, context weight) of each line; joint has one weight, so one line."""
    found: list[tuple[str, float | None]] = []
    for strategy in STRATEGIES:
        mine = rows.filter(pl.col("strategy") == strategy, pl.col("difference").is_not_null())
        if strategy == "joint":
            found += [(strategy, None)] if mine.height else []
        else:
            found += [(strategy, c) for c in mine["context_weight"].unique().sort()]
    return found


def _legend(ax: Axes, solvers: list[Line2D], rows: pl.DataFrame) -> None:
    """Name the solvers of the upper panels and the strategies of the lower ones."""
    ax.set_axis_off()
    named = [line for line in solvers if not str(line.get_label()).startswith("_")]
    above = ax.legend(handles=named, title="solver", alignment="left", ncols=3, loc="upper left")
    ax.add_artist(above)
    strategies = [
        Line2D(
            [], [], color=style.CATEGORIES[STRATEGIES.index(strategy)],
            linestyle=(0, (3, 2)) if context not in (None, 1.0) else "-",
            label=strategy if context is None else f"{strategy}, context {context:g}",
        )
        for strategy, context in _lines(rows)
    ]  # fmt: skip
    ax.legend(handles=strategies, title="guidance", alignment="left", loc="lower left")
