"""The model beside baselines and ceiling, metric by metric and target by target."""

import textwrap

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from knockscreen.figures import style
from knockscreen.figures.style import Page
from knockscreen.score.metrics import ALL

MODEL, CEILING, HALF, EVERY = "model", "ceiling", "split_half", "all"
COLOURS = {
    "screened": style.BLUE,
    "held_out_context": style.GREEN,
    "held_out_target": style.VERMILION,
}
METHODS = (
    MODEL, "low_rank", "measured_training", "additive", "other_context", "ridge", "k_nearest",
    "perturbation_mean", "no_change",
)  # fmt: skip
"""From top to bottom."""
SCATTERED = ("pearson_delta", "pearson_delta_perturbed_mean", "discrimination_score_l1")
COLUMNS = 4


def words(name: str) -> str:
    """Return a name of ours as words: ``mae_delta`` as "mae delta"."""
    return name.replace("_", " ")


def widest(metrics: pl.DataFrame) -> str:
    """Return the context to show: ``all`` of them where there are several, else the only one."""
    contexts = metrics["context"].unique().sort().to_list()
    return EVERY if EVERY in contexts else str(contexts[0])


@style.house_style
def evaluation(metrics: pl.DataFrame, summary: pl.DataFrame, *, simulated: bool = False) -> Figure:
    """Draw every metric as a panel: model and baselines as rows, the ceiling as a line.

    Parameters
    ----------
    metrics
        Rows of ``evaluate/metrics.parquet``: split, context, target_gene, method, metric, program,
        value, n.
    summary
        Rows of ``evaluate/summary.parquet``: split, context, metric, baseline, low, high.
    simulated
        Say in the corner that the screen is simulated.
    """
    context = widest(metrics)
    over = metrics.filter(
        pl.col("context") == context, pl.col("target_gene") == EVERY, pl.col("program").is_null(),
        pl.col("value").is_not_null(),
    )  # fmt: skip
    shown = [m for m in ALL if m in set(over["metric"])]
    methods = [m for m in METHODS if m in set(over["method"])]
    splits = [s for s in COLOURS if s in set(over["split"])]
    rows = len(shown) // COLUMNS + 1  # one place at least is left for the legend
    counted = over.filter(pl.col("method") == MODEL, pl.col("metric") == "pearson_delta")
    sizes = dict(counted.select("split", "n").iter_rows())
    page = Page(
        title="How good the generated knock-downs are, beside simple answers and the ceiling",
        subtitle=f"{style.context_text(context)}; "
        + "; ".join(f"{words(s)}: {sizes.get(s, 0)} targets" for s in splits)
        + ". Held-out cells judge; the target's own gene is left out.",
        note="Hollow: the 95 % bootstrap interval over targets of model minus baseline holds 0, or "
        "there is none. Dashed: ceiling, one half of the held-out cells predicting the other "
        "(correlations corrected to all cells); training cells outnumber half of the held-out "
        "ones, so it can be passed. Dotted: chance. Distances (MAE, energy, MMD): lower is better.",
        simulated=simulated,
    )
    figure = style.new_figure(10.4, max(1, rows) * (0.16 * len(methods) + 0.75), page)
    if not shown:
        style.empty_panel(figure.add_subplot(), "No metric has a value.")
        return figure
    axes = figure.subplots(rows, COLUMNS, squeeze=False, sharey=True)
    for ax in axes.ravel()[len(shown) :]:
        ax.set_axis_off()
    tied = _tied(summary.filter(pl.col("context") == context))
    for ax, metric in zip(axes.ravel(), shown, strict=False):
        _panel(ax, over.filter(pl.col("metric") == metric), metric, methods, tied)
    axes[0, 0].set_ylim(len(methods) - 0.4, -0.6)
    _legend(axes.ravel()[len(shown)], splits)
    return figure


def _tied(summary: pl.DataFrame) -> set[tuple[str, str, str]]:
    """Return (split, metric, baseline) of comparisons whose interval holds 0, or is missing."""
    unclear = summary.filter(
        pl.col("low").is_null() | ((pl.col("low") <= 0) & (pl.col("high") >= 0))
    )
    return set(unclear.select("split", "metric", "baseline").iter_rows())


def _panel(
    ax: Axes, rows: pl.DataFrame, metric: str, methods: list[str], tied: set[tuple[str, str, str]]
) -> None:
    """Draw one metric: a mark per method and split, the ceilings and the chance level as lines."""
    chance = ALL[metric].chance
    if chance is not None:
        ax.axvline(chance, color=style.GREY, linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)
    splits = [s for s in COLOURS if s in set(rows["split"])]
    step = 0.26 if len(splits) > 1 else 0.0
    for k, split in enumerate(splits):
        colour = COLOURS[split]
        values = dict(rows.filter(pl.col("split") == split).select("method", "value").iter_rows())
        if CEILING in values:
            ax.axvline(
                values[CEILING], color=colour, linewidth=1.0, linestyle=(0, (4, 2)), zorder=1
            )
        for i, method in enumerate(methods):
            if method not in values:
                continue
            hollow = method != MODEL and (split, metric, method) in tied
            ax.plot(
                values[method], i + step * (k - (len(splits) - 1) / 2), linestyle="",
                marker="D" if method == MODEL else "o", markersize=5.5 if method == MODEL else 4.2,
                markerfacecolor="white" if hollow else colour, markeredgecolor=colour,
            )  # fmt: skip
    ax.set_yticks(range(len(methods)), [words(m) for m in methods])
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y")
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.set_title("\n".join(textwrap.wrap(words(metric), 24)), fontsize=8.5)


def _legend(ax: Axes, splits: list[str]) -> None:
    handles = [
        Line2D([], [], linestyle="", marker="s", color=COLOURS[s], label=words(s)) for s in splits
    ]
    handles.append(Line2D([], [], color=style.GREY, linestyle=(0, (4, 2)), label="ceiling"))
    handles.append(Line2D([], [], color=style.GREY, linestyle=(0, (1, 2)), label="chance"))
    ax.legend(handles=handles, loc="upper left")


@style.house_style
def targets(metrics: pl.DataFrame, *, simulated: bool = False) -> Figure:
    """Draw every target: the model's value against that of the baseline that is hardest to beat.

    Parameters
    ----------
    metrics
        Rows of ``evaluate/metrics.parquet``: split, context, target_gene, method, metric, value.
    simulated
        Say in the corner that the screen is simulated.
    """
    context = widest(metrics)
    rows = metrics.filter(pl.col("context") == context, pl.col("metric").is_in(SCATTERED))
    splits = [s for s in COLOURS if s in set(rows["split"])]
    page = Page(
        title="Target by target: the model beside the baseline that is hardest to beat",
        subtitle=f"{style.context_text(context)}; each dot is a knock-down, above the line where "
        "the model is better.",
        note="Per split and metric the baseline with the best mean over targets. The target's own "
        "gene is left out. Targets for which a value is undefined are not shown.",
        simulated=simulated,
    )
    figure = style.new_figure(9.6, max(1, len(splits)) * 3.2, page)
    if not splits:
        style.empty_panel(figure.add_subplot(), "No target could be judged.")
        return figure
    axes = figure.subplots(len(splits), len(SCATTERED), squeeze=False)
    for i, split in enumerate(splits):
        for ax, metric in zip(axes[i], SCATTERED, strict=True):
            part = rows.filter(pl.col("split") == split, pl.col("metric") == metric)
            _scatter(ax, part, split, metric)
    return figure


def hardest(rows: pl.DataFrame, metric: str) -> str | None:
    """Return the baseline with the best value over targets; None without any."""
    over = rows.filter(
        pl.col("target_gene") == EVERY, pl.col("value").is_not_null(),
        ~pl.col("method").is_in([MODEL, CEILING, HALF]),
    )  # fmt: skip
    if over.is_empty():
        return None
    sign = 1 if ALL[metric].best > 0 else -1
    ordered = over.sort([pl.col("value") * sign, "method"], descending=[True, False])
    return str(ordered["method"][0])


def _scatter(ax: Axes, rows: pl.DataFrame, split: str, metric: str) -> None:
    baseline = hardest(rows, metric)
    named = rows.filter(pl.col("target_gene") != EVERY)
    wide = named.filter(pl.col("method").is_in([MODEL, baseline or ""])).pivot(
        "method", index="target_gene", values="value"
    )
    ax.set_title(f"{words(split)}\n{words(metric)}", fontsize=8.5)
    if baseline is None or not {MODEL, baseline} <= set(wide.columns):
        style.empty_panel(ax, "No baseline has a value.")
        return
    wide = wide.drop_nulls().sort("target_gene")
    if wide.is_empty():
        style.empty_panel(ax, "No target has both values.")
        return
    x, y = wide[baseline].to_numpy(), wide[MODEL].to_numpy()
    ax.scatter(x, y, s=22, color=COLOURS[split], alpha=0.8, linewidths=0)
    style.square(ax, np.concatenate([x, y]))
    better = int(np.sum((y > x) if ALL[metric].best > 0 else (y < x)))
    ax.set_xlabel(f"{words(baseline)} (model better: {better} of {len(x)})")
    ax.set_ylabel("model")
    names = wide["target_gene"].to_list()
    first = [i for i in np.argsort(-np.abs(y - x), kind="stable")[:5] if y[i] != x[i]]
    style.place_labels(ax, x, y, {int(i): names[i] for i in first})
