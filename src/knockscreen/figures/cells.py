"""Real held-out cells beside generated ones: a shared map, and per-gene agreement.

N cells, G genes. All expression is log1p of counts per ten thousand.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from knockscreen.figures import style
from knockscreen.figures.statistics import r_squared
from knockscreen.figures.style import Page

R2 = "R\N{SUPERSCRIPT TWO}"


@dataclass(frozen=True)
class Profiles:
    """Per-gene statistics of the same number of real and generated cells, each ``(G,)``."""

    mean: tuple[np.ndarray, np.ndarray]
    variance: tuple[np.ndarray, np.ndarray]
    detection: tuple[np.ndarray, np.ndarray]


def profiles(real: np.ndarray, generated: np.ndarray) -> Profiles:
    """Return per-gene mean, variance and share of cells with a count, real first; inputs (N, G)."""

    def detected(values: np.ndarray) -> np.ndarray:
        return np.asarray((values > 0).mean(axis=0, dtype=np.float64))

    means = tuple(values.mean(axis=0, dtype=np.float64) for values in (real, generated))
    spread = tuple(values.var(axis=0, dtype=np.float64) for values in (real, generated))
    return Profiles(
        (means[0], means[1]), (spread[0], spread[1]), (detected(real), detected(generated))
    )


@dataclass(frozen=True)
class Map:
    """Two coordinates for real and generated cells, ``(N, 2)`` each, and the names of the axes."""

    real: np.ndarray
    generated: np.ndarray
    axes: tuple[str, str]


def principal_axes(fitted: np.ndarray, components: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first principal axes (G, components) of cells (N, G), and their variance shares.

    The sign of an axis is fixed so that its largest loading is positive.
    """
    values, vectors = np.linalg.eigh(np.cov(fitted, rowvar=False, dtype=np.float64))
    order = np.argsort(values)[::-1][:components]
    axes = vectors[:, order]
    largest = np.abs(axes).argmax(axis=0)
    axes = axes * np.where(axes[largest, np.arange(axes.shape[1])] < 0, -1.0, 1.0)
    return axes, values[order] / max(float(values.sum()), 1e-12)


def principal_map(fitted: np.ndarray, real: np.ndarray, generated: np.ndarray) -> Map:
    """Place real and generated cells on the first two principal components of ``fitted``.

    ``fitted`` are real cells that are neither of the two, so that the axes favour none of them.
    """
    axes, share = principal_axes(fitted, 2)
    centre = fitted.mean(axis=0)
    labels = (f"PC 1 ({share[0]:.0%} of variance)", f"PC 2 ({share[1]:.0%} of variance)")
    return Map((real - centre) @ axes, (generated - centre) @ axes, labels)


def umap_map(fitted: np.ndarray, real: np.ndarray, generated: np.ndarray, *, seed: int) -> Map:
    """Place real and generated cells in a UMAP of 20 principal components of ``fitted``."""
    with warnings.catch_warnings():  # umap's optional network backend is not needed
        warnings.simplefilter("ignore", ImportWarning)
        from umap import UMAP

    axes, _ = principal_axes(fitted, min(20, *fitted.shape))
    centre = fitted.mean(axis=0)
    model = UMAP(n_neighbors=min(15, len(fitted) - 1), random_state=seed, n_jobs=1)
    model.fit((fitted - centre) @ axes)
    placed = [model.transform((cells - centre) @ axes) for cells in (real, generated)]
    return Map(placed[0], placed[1], ("UMAP 1", "UMAP 2"))


@style.house_style
def cells(
    placed: Map,
    groups: list[str],
    agreement: Profiles,
    *,
    factor: str,
    n_cells: int,
    simulated: bool = False,
) -> Figure:
    """Draw real cells beside generated ones on one map, and gene by gene.

    Parameters
    ----------
    placed
        The map; row i of both parts is the same condition and library size.
    groups
        Level of ``factor`` of each cell of the map, the colour.
    agreement
        Per-gene statistics over ``n_cells`` real and as many generated cells.
    factor
        Name of what the colour shows.
    n_cells
        Cells behind ``agreement``; the map may show fewer.
    simulated
        Say in the corner that the screen is simulated.
    """
    scores = {
        name: r_squared(generated, real)
        for name, (real, generated) in (("mean", agreement.mean), ("variance", agreement.variance))
    }
    fitted = "UMAP" if placed.axes[0].startswith("UMAP") else "PCA"
    page = Page(
        title="Generated beside real held-out cells: "
        f"per-gene mean {R2} {style.number(scores['mean'], 3)}, "
        f"variance {R2} {style.number(scores['variance'], 3)}",
        subtitle=f"{n_cells:,} real cells never trained on, and one generated cell for each, of "
        f"the same condition and library size; {len(groups):,} of each on the map, "
        f"{len(agreement.mean[0]):,} genes.",
        note=f"{fitted} of log1p CP10k fitted on real training cells alone; held-out and generated "
        f"cells are placed in it. {R2}: 1 - residual / total sum of squares about the line of "
        "equality, no line refitted.",
        simulated=simulated,
    )
    figure = style.new_figure(9.8, 6.6, page)
    axes = figure.subplots(2, 3)
    _maps(axes[0], placed, groups, factor)
    panels = (
        ("Mean of log1p CP10k", agreement.mean),
        ("Variance of log1p CP10k", agreement.variance),
        ("Share of cells with a count", agreement.detection),
    )
    for ax, (name, (real, generated)) in zip(axes[1], panels, strict=True):
        _genes(ax, name, real, generated)
    return figure


def _maps(axes: np.ndarray, placed: Map, groups: list[str], factor: str) -> None:
    """Draw real, generated, and both, on the same axes."""
    both = np.concatenate([placed.real, placed.generated])
    low, high = np.quantile(both, 0.001, axis=0), np.quantile(both, 0.999, axis=0)
    pad = 0.06 * (high - low) + 1e-9
    levels = sorted(set(groups))
    colours = dict(zip(levels, style.CATEGORIES * (1 + len(levels) // 8), strict=False))
    colour = np.array([colours[group] for group in groups])
    size = float(np.clip(4000 / max(len(groups), 1), 3, 16))
    dots = {"s": size, "linewidths": 0, "alpha": 0.7, "rasterized": len(groups) > 1500}
    axes[0].scatter(*placed.real.T, c=colour, **dots)
    axes[1].scatter(*placed.generated.T, c=colour, **dots)
    axes[2].scatter(*placed.real.T, color=style.GREY, **dots)
    axes[2].scatter(*placed.generated.T, color=style.ORANGE, **dots)
    for ax, title in zip(axes, ("Real", "Generated", "Both"), strict=True):
        ax.set_xlim(low[0] - pad[0], high[0] + pad[0])
        ax.set_ylim(low[1] - pad[1], high[1] + pad[1])
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_xlabel(placed.axes[0])
        ax.set_title(title, pad=20)
    axes[0].set_ylabel(placed.axes[1])
    _key(axes[0], [(level, colours[level]) for level in levels[:8]] if factor else [], factor)
    _key(axes[2], [("real", style.GREY), ("generated", style.ORANGE)], "")


def _key(ax: Axes, entries: list[tuple[str, str]], title: str) -> None:
    """Write a colour key in one line above the panel."""
    x = 0.0
    texts = [(f"{title}:", style.GREY)] if title and entries else []
    for text, colour in [*texts, *entries]:
        weight = "bold" if (text, colour) in entries else "normal"
        ax.annotate(
            text, (0, 1), xycoords="axes fraction", xytext=(x, 6), textcoords="offset points",
            color=colour, fontsize=8, fontweight=weight,
        )  # fmt: skip
        x += 5.6 * len(text) + 8


def _genes(ax: Axes, name: str, real: np.ndarray, generated: np.ndarray) -> None:
    """Draw one statistic per gene, generated against real, with its R2."""
    ax.scatter(
        real,
        generated,
        s=8,
        color=style.BLUE,
        alpha=0.45,
        linewidths=0,
        rasterized=len(real) > 3000,
    )
    style.square(ax, np.concatenate([real, generated]))
    text = f"{R2} = {style.number(r_squared(generated, real), 3)}"
    ax.text(0.05, 0.95, text, transform=ax.transAxes, va="top", fontweight="bold")
    ax.set_title(name)
    ax.set_xlabel("real, per gene")
    ax.set_ylabel("generated, per gene")
