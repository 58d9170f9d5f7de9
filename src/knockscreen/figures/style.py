"""The one house style: colours, sizes, page furniture, label placement and rendering.

Colours are those of Okabe and Ito, which readers with any common colour blindness tell apart.
"""

import functools
import io
import math
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter
from matplotlib.transforms import Bbox

INK = "#22262b"
GREY = "#6c757d"
PALE = "#c9ced4"
FAINT = "#eceef1"
BLUE = "#0072b2"
SKY = "#56b4e9"
GREEN = "#009e73"
ORANGE = "#e69f00"
VERMILION = "#d55e00"
PURPLE = "#cc79a7"
YELLOW = "#f0e442"
CATEGORIES = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION, YELLOW, GREY)
"""Colours of unordered groups, in order of use."""
TOWARD, AWAY = VERMILION, BLUE
"""Up or toward a program, and down or away from it, in every figure."""
DIVERGING = "RdBu_r"

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 7.0,
    "axes.labelsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "legend.handletextpad": 0.4,
    "legend.borderaxespad": 0.2,
    "lines.linewidth": 1.4,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "path",
    "svg.hashsalt": "knockscreen",
}

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Page:
    """What surrounds the panels: title, subtitle, footnote, and whether the data are simulated."""

    title: str
    subtitle: str = ""
    note: str = ""
    simulated: bool = False


def house_style(function: Callable[P, R]) -> Callable[P, R]:
    """Run ``function`` in the house style, whatever the caller's matplotlib settings are."""

    @functools.wraps(function)
    def styled(*args: P.args, **kwargs: P.kwargs) -> R:
        with mpl.rc_context():
            mpl.rcdefaults()
            parameters: Any = mpl.rcParams
            parameters.update(STYLE)
            return function(*args, **kwargs)

    return styled


def new_figure(width: float, height: float, page: Page) -> Figure:
    """Return an empty figure with its title, subtitle and note; sizes in inches, panels apart.

    ``height`` is that of the panels: the title and the note are added to it.
    """
    subtitle = _wrap(page.subtitle, width, 8.5)
    note = _wrap(page.note, width, 7.5)
    title = _wrap(page.title, width - (1.4 if page.simulated else 0.0), 13.0)
    top = 0.18 + 0.21 * (title.count("\n") + 1) + _lines(subtitle) * 0.155 + 0.08
    bottom = 0.06 + _lines(note) * 0.14 + (0.16 if note else 0.0)
    total = height + top + bottom
    figure = Figure(figsize=(width, total))
    FigureCanvasAgg(figure)
    left = 0.12 / width
    rect = (0.06 / width, bottom / total, 1 - 0.12 / width, height / total)
    figure.set_layout_engine(ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06, rect=rect))
    line = 1 - 0.12 / total
    figure.text(left, line, title, fontsize=12, fontweight="bold", va="top")
    below = line - (0.21 * (title.count("\n") + 1) + 0.03) / total
    figure.text(left, below, subtitle, color=GREY, va="top")
    figure.text(left, 0.08 / total, note, fontsize=7.5, color=GREY, va="bottom")
    if page.simulated:
        box = {"boxstyle": "round,pad=0.35", "facecolor": FAINT, "edgecolor": "none"}
        figure.text(
            1 - 0.16 / width, line - 0.03 / total, "simulated screen", fontsize=7.5, color=GREY,
            va="top", ha="right", bbox=box,
        )  # fmt: skip
    return figure


def _wrap(text: str, width: float, size: float) -> str:
    """Break ``text`` into lines that fit ``width`` inches at ``size`` points."""
    columns = max(20, int(width * 72 / (size * 0.56)))
    return "\n".join("\n".join(textwrap.wrap(line, columns)) for line in text.split("\n"))


def _lines(text: str) -> int:
    return text.count("\n") + 1 if text else 0


def thousands(axis: Any) -> None:
    """Write the ticks of ``axis`` as 1,000 rather than 1000."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def signed(axis: Any) -> None:
    """Write the ticks of ``axis`` with a sign, ``+0.2``, and zero without one."""
    axis.set_major_formatter(FuncFormatter(_signed_tick))


def _signed_tick(value: float, _: int) -> str:
    return "0" if abs(value) < 1e-12 else f"{value:+.4g}".replace("-", "\N{MINUS SIGN}")


def number(value: float, digits: int = 2) -> str:
    """Return ``value`` as text with a real minus sign, or "not defined" for NaN."""
    return (
        "not defined" if math.isnan(value) else f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")
    )


def key(label: str, *, face: str, edge: str = INK, marker: str = "o", size: float = 6) -> Line2D:
    """Return the legend entry of one kind of marker."""
    return Line2D(
        [], [], linestyle="", marker=marker, markerfacecolor=face, markeredgecolor=edge,
        markersize=size, label=label,
    )  # fmt: skip


def context_text(context: str) -> str:
    """Return a context's name as a reader wants it: ``all`` says what is pooled."""
    return "all contexts pooled" if context == "all" else context


def empty_panel(ax: Axes, message: str) -> None:
    """Say in the panel why there is nothing to show, instead of an empty pair of axes."""
    ax.set_axis_off()
    text = "\n".join(textwrap.wrap(message, 34))
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color=GREY)


def square(ax: Axes, values: np.ndarray) -> None:
    """Give both axes the same limits around ``values`` and draw the line of equality."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    pad = 0.06 * (high - low) or 0.5
    ax.set_xlim(low - pad, high + pad)
    ax.set_ylim(low - pad, high + pad)
    ax.axline((0, 0), slope=1, color=PALE, linewidth=0.9, zorder=0)
    ax.set_aspect("equal", adjustable="box", anchor="N")


def place_labels(ax: Axes, x: np.ndarray, y: np.ndarray, labels: Mapping[int, str]) -> None:
    """Write ``labels[i]`` beside point ``(x[i], y[i])``, covering no other label or point.

    Positions are tried outward from each point, in a fixed order, and a thin leader is drawn to a
    label that had to move; a label with no free place is left out. Call it when the axes' limits
    are final.
    """
    figure = ax.get_figure(root=True)
    if not labels or figure is None:
        return
    figure.draw_without_rendering()
    scale = figure.dpi / 72
    points = ax.transData.transform(np.column_stack([x, y]))  # (points, 2) in pixels
    points = points[np.isfinite(points).all(axis=1)] if len(points) else points
    taken = [Bbox.from_bounds(px - 2.5, py - 2.5, 5, 5) for px, py in points]
    frame = ax.get_window_extent()
    for index, label in labels.items():
        at = (float(x[index]), float(y[index]))
        size = ((0.62 * len(label) * 7.5 + 2) * scale, 9.5 * scale)
        spot = _free_spot(ax.transData.transform(at), size, taken, frame, scale)
        if spot is None:
            continue
        offset, box = spot
        taken.append(box)
        distance = max(abs(offset[0]) - size[0] / 2, abs(offset[1]) - size[1] / 2)
        leader = {"arrowstyle": "-", "color": GREY, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2}
        ax.annotate(
            label, at, xytext=tuple(np.round(offset / scale, 2)), textcoords="offset points",
            fontsize=7.5, ha="center", va="center", zorder=6,
            arrowprops=leader if distance > 8 * scale else None,
        ).set_in_layout(False)  # fmt: skip


def _free_spot(
    point: np.ndarray, size: tuple[float, float], taken: list[Bbox], frame: Bbox, scale: float
) -> tuple[np.ndarray, Bbox] | None:
    """Return the first free centre (as pixel offset from ``point``) for a box of ``size``."""
    width, height = size
    for radius in (5.5, 10, 16, 26, 38, 52, 68):
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)):
            offset = np.array(
                [dx * (radius * scale + width / 2), dy * (radius * scale + height / 2)]
            )
            low = point + offset - (width / 2, height / 2)
            box = Bbox.from_bounds(low[0], low[1], width, height)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0
            if inside and box.y1 <= frame.y1 and not box.count_overlaps(taken):
                return offset, box
    return None


def _settle(figure: Figure) -> None:
    """Lay the panels out once and round their places.

    The solver's last digits vary from run to run, and ids in an SVG are made from all digits.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for ax in figure.axes:
        ax.set_position(Bbox(np.round(ax.get_position(original=True).get_points(), 6)))


@house_style
def render(figure: Figure, kind: str) -> bytes:
    """Return ``figure`` as the bytes of an ``svg`` or ``png`` file, the same for equal input."""
    _settle(figure)
    buffer = io.BytesIO()
    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    figure.savefig(buffer, format=kind, dpi=160, metadata=metadata)
    return buffer.getvalue()
