"""Loss curves of the two trained models."""

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from knockscreen.figures import style
from knockscreen.figures.style import Page
from knockscreen.names import Split

POINTS = 1500
"""Points drawn per raw curve; more would not be seen."""


@style.house_style
def loss(curves: pl.DataFrame, *, simulated: bool = False) -> Figure:
    """Draw training and validation loss of the VAE and of the flow, the best step marked.

    Parameters
    ----------
    curves
        model ("vae", "flow"), step, split ("train", "validation"), loss; each model's own unit.
    simulated
        Say in the corner that the screen is simulated.
    """
    models = [m for m in ("vae", "flow") if m in set(curves["model"])]
    best = {m: best_step(curves.filter(pl.col("model") == m)) for m in models}
    named = {"vae": "VAE", "flow": "flow"}
    text = "; ".join(
        f"{named[m]} {style.number(b[1], 4)} at step {b[0]:,}"
        for m, b in best.items()
        if b is not None
    )
    page = Page(
        title="Training: loss of the VAE and of the flow",
        subtitle=f"Best validation loss: {text or 'never validated'}.",
        note="Thin line: each logged step; thick line: running median; dots: validation on cells "
        "that are never trained on. The weights of the best validation step are the ones used. The "
        "first steps may lie above the axes.",
        simulated=simulated,
    )
    figure = style.new_figure(9.2, 3.4, page)
    labels = {
        "vae": ("VAE: negative log-likelihood of counts", "loss (nats)"),
        "flow": ("Flow: squared error of the velocity", "loss (mean square)"),
    }
    axes = figure.subplots(1, len(models), squeeze=False)[0]
    for ax, model in zip(axes, models, strict=True):
        _curve(ax, curves.filter(pl.col("model") == model), best[model])
        ax.set_title(labels[model][0])
        ax.set_ylabel(labels[model][1])
    axes[-1].legend(loc="upper right")
    return figure


def best_step(curve: pl.DataFrame) -> tuple[int, float] | None:
    """Return step and loss of the lowest validation loss (the earliest of equals), or None."""
    rows = curve.filter((pl.col("split") == Split.VALIDATION) & pl.col("loss").is_finite())
    if rows.is_empty():
        return None
    row = rows.sort(["loss", "step"]).row(0, named=True)
    return int(row["step"]), float(row["loss"])


def _curve(ax: Axes, curve: pl.DataFrame, best: tuple[int, float] | None) -> None:
    """Draw one model's curves, the axis fitted to where the loss settles."""
    finite = curve.filter(pl.col("loss").is_finite()).sort("step")
    train = finite.filter(pl.col("split") == Split.TRAIN)
    validation = finite.filter(pl.col("split") == Split.VALIDATION)
    window = max(1, train.height // 40)
    train = train.with_columns(
        pl.col("loss").rolling_median(window, min_samples=1, center=True).alias("smooth")
    ).gather_every(max(1, train.height // POINTS))
    ax.plot(train["step"], train["loss"], color=style.SKY, linewidth=0.6, alpha=0.7)
    ax.plot(train["step"], train["smooth"], color=style.BLUE, label="training")
    ax.plot(
        validation["step"], validation["loss"], color=style.VERMILION, marker="o", markersize=3.2,
        linewidth=1.1, label="validation",
    )  # fmt: skip
    if best is not None:
        ax.axvline(best[0], color=style.GREY, linewidth=0.8, linestyle=(0, (3, 3)), zorder=1)
        ax.plot(*best, marker="o", markersize=9, markerfacecolor="none", markeredgecolor=style.INK,
                linestyle="", label="best step")  # fmt: skip
    _fit(ax, np.concatenate([train["loss"].to_numpy(), validation["loss"].to_numpy()]))
    ax.grid(axis="y")
    style.thousands(ax.xaxis)
    ax.set_xlabel("optimiser step")


def _fit(ax: Axes, values: np.ndarray) -> None:
    """Leave the steep first steps above the axis when they would flatten all that follows."""
    if values.size == 0:
        return
    low, high = float(values.min()), float(values.max())
    settled = float(np.quantile(values, 0.95))
    top = min(high, settled + 0.6 * (settled - low))
    pad = 0.06 * (top - low) or 0.05 * abs(low) or 0.5
    ax.set_ylim(low - pad, top + pad)
