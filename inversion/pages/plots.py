"""Plots as SVG inside a page. Equal values give equal bytes.

matplotlib is imported where something is drawn: most commands draw nothing.
"""

from __future__ import annotations

import io
import logging
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING, Literal

from markupsafe import Markup, escape

from distill.names import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

COLOURS = (
    "#2563eb",
    "#dc2626",
    "#059669",
    "#9333ea",
    "#d97706",
    "#0891b2",
    "#be185d",
    "#65a30d",
    "#4b5563",
    "#111827",
)
DASHES = ("-", "--", ":")
"""Lines of one colour differ in these."""
GREY = COLOURS[8]
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "echoset",
    "text.parse_math": False,
    "text.color": "#1f2937",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8,
    "axes.axisbelow": True,
    "axes.edgecolor": "#9ca3af",
    "axes.formatter.useoffset": False,
    "axes.grid": True,
    "axes.labelcolor": "#374151",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "grid.color": "#e5e7eb",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "xtick.color": "#9ca3af",
    "xtick.labelcolor": "#374151",
    "ytick.color": "#9ca3af",
    "ytick.labelcolor": "#374151",
}
WIDTH = 4.5
"""Inches: two plots stand abreast on a page."""
HEIGHT = 2.4
ROW = 0.17
"""Inches of a line of text."""
LONGEST = 32
"""Characters of a name; of a longer one the beginning is shown."""
FEW = 20
"""So many values are marked one by one."""


@dataclass(frozen=True)
class Plot:
    """A picture and what it shows."""

    title: str
    svg: Markup


@dataclass(frozen=True)
class Section:
    """A heading of a page and the plots below it."""

    title: str
    plots: list[Plot]


def lines(
    title: str,
    x: Sequence[float] | Sequence[str],
    series: Mapping[str, Sequence[float]],
    x_label: str,
    y_label: str,
    share: bool = False,
    limits: tuple[float, float] | None = None,
) -> Plot:
    """One line a series, over numbers or over words at equal distances.

    Values that are no finite numbers are left out. A `share` is shown in per cent. `limits` are
    those of the y axis; without them it takes in zero.
    """
    words = [word for word in x if isinstance(word, str)]
    numbers = [float(value) for value in x if not isinstance(value, str)]
    columns = _legend_columns(series)
    with _figure(HEIGHT + ROW * math.ceil(len(series) / columns)) as figure:
        axes = figure.add_subplot()
        drawn = []
        for index, values in enumerate(series.values()):
            drawn.append(_line(axes, index, numbers or range(len(words)), values))
        low, high = limits or axes.get_ylim()
        if limits is None:
            low = min(low, 0)
        axes.set_ylim(low, high)
        if share:
            _show_per_cent(axes.yaxis)
        if words:
            _name_ticks(axes, words)
        else:
            _count_in_whole_numbers(axes.xaxis)
        if len(series) > 1:
            names = [_shown(name) for name in series]
            figure.legend(drawn, names, loc="outside lower center", ncols=columns)
        axes.set(xlabel=x_label, ylabel=y_label)
        return _plot(title, figure)


def bars(title: str, counts: Sequence[float], x_label: str, y_label: str) -> Plot:
    """One bar a class, named by its number."""
    with _figure() as figure:
        axes = figure.add_subplot()
        if len(counts) <= FEW:
            shown = axes.bar(range(len(counts)), counts, color=COLOURS[0])
            axes.bar_label(shown, fontsize="small")
            axes.set_xticks(range(len(counts)))
        else:
            edges = [place - 0.5 for place in range(len(counts) + 1)]
            axes.stairs(counts, edges, fill=True, color=COLOURS[0])
            _count_in_whole_numbers(axes.xaxis)
        axes.grid(visible=False, axis="x")
        _count_in_whole_numbers(axes.yaxis)
        axes.set(xlabel=x_label, ylabel=y_label)
        return _plot(title, figure)


def histogram(title: str, counts: Sequence[int], x_label: str, y_label: str) -> Plot:
    """Counts of values from 0 to 1 in bins of equal width."""
    edges = [index / len(counts) for index in range(len(counts) + 1)]
    with _figure() as figure:
        axes = figure.add_subplot()
        axes.stairs(counts, edges, fill=True, color=COLOURS[0])
        _count_in_whole_numbers(axes.yaxis)
        axes.set(xlim=(0, 1), xlabel=x_label, ylabel=y_label)
        return _plot(title, figure)


def scatter(
    title: str, points: Mapping[str, tuple[float, float]], x_label: str, y_label: str
) -> Plot:
    """One named dot a point."""
    places = [x for x, _ in points.values()]
    middle = (min(places) + max(places)) / 2
    with _figure(max(HEIGHT, ROW * (len(points) + 5))) as figure:
        axes = figure.add_subplot()
        for index, (name, (x, y)) in enumerate(points.items()):
            axes.plot(x, y, "o", color=COLOURS[index % len(COLOURS)])
            _name_point(axes, name, (x, y), on_right=x <= middle)
        _count_in_whole_numbers(axes.xaxis)
        _count_in_whole_numbers(axes.yaxis)
        axes.margins(0.08)
        axes.set(xlabel=x_label, ylabel=y_label)
        return _plot(title, figure)


@dataclass(frozen=True)
class Dot:
    """A mean and its deviation."""

    name: str
    mean: float
    deviation: float


def dots(title: str, rows: Sequence[Dot], references: Sequence[Dot], x_label: str) -> Plot:
    """One row a dot, from the top, `references` last and in grey.

    The axis need not start at zero.
    """
    everyone = [*rows, *references]
    with _figure(0.7 + ROW * len(everyone)) as figure:
        axes = figure.add_subplot()
        for place, dot in enumerate(everyone):
            colour = COLOURS[0] if place < len(rows) else GREY
            axes.errorbar(dot.mean, place, xerr=dot.deviation, fmt="o", color=colour)
        axes.set_yticks(range(len(everyone)), [_shown(dot.name) for dot in everyone])
        axes.set(ylim=(len(everyone) - 0.5, -0.5), xlabel=x_label)
        return _plot(title, figure)


@contextmanager
def _figure(height: float = HEIGHT) -> Iterator[Figure]:
    """A new picture. Whatever style a user has set does not change it."""
    # It tells of a folder for its cache, which is of no use to whoever reads a page.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", STYLE]):
        yield Figure(figsize=(WIDTH, height))


def _plot(title: str, figure: Figure) -> Plot:
    """The finished picture."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with warnings.catch_warnings():
        # A browser has the glyphs that the font used for measuring lacks.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    _, tag, drawing = buffer.getvalue().partition("<svg ")
    # Nothing refers to groups, and their names would be there once a plot.
    drawing = re.sub(r'<g id="[^"]*">', "<g>", drawing)
    return Plot(title, Markup(f'{tag}role="img" aria-label="{escape(title)}" {drawing}'))


def _line(axes: Axes, index: int, places: Sequence[float], values: Sequence[float]) -> Line2D:
    """Draw a line through the points whose values are finite."""
    finite = [math.isfinite(value) for value in values]
    marker = "o" if sum(finite) <= FEW else ""
    (line,) = axes.plot(
        list(compress(places, finite)),
        list(compress(values, finite)),
        color=COLOURS[index % len(COLOURS)],
        linestyle=DASHES[index // len(COLOURS) % len(DASHES)],
        marker=marker,
        markersize=3,
        # A line along the edge is not cut in half.
        clip_on=False,
    )
    return line


def _name_point(axes: Axes, name: str, point: tuple[float, float], on_right: bool) -> None:
    """Write a name beside a dot: towards the middle, where there is room."""
    shift = -6
    alignment: Literal["left", "right"] = "right"
    if on_right:
        shift = 6
        alignment = "left"
    axes.annotate(
        _shown(name),
        point,
        xytext=(shift, 0),
        textcoords="offset points",
        horizontalalignment=alignment,
        verticalalignment="center",
    )


def _legend_columns(names: Mapping[str, object]) -> int:
    """How many names fit side by side."""
    width = 72 * WIDTH  # points
    longest = max(len(_shown(name)) for name in names)
    return max(1, min(len(names), int(width // (5 * longest + 36))))


def _show_per_cent(axis: Axis) -> None:
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(xmax=1, symbol=""))


def _name_ticks(axes: Axes, words: Sequence[str]) -> None:
    names = [_shown(word) for word in words]
    axes.set_xticks(range(len(names)), names)
    if sum(map(len, names)) > 50:
        axes.tick_params(axis="x", labelrotation=30)


def _count_in_whole_numbers(axis: Axis) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _shown(name: str) -> str:
    """A name as it fits into a picture."""
    words = printable(name)
    if len(words) > LONGEST:
        words = f"{words[: LONGEST - 1]}…"
    # matplotlib would leave a name that begins so out of a legend.
    return f" {words}" if words.startswith("_") else words
