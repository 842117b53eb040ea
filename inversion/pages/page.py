"""Pieces of a self-contained HTML page: tables, pictures and charts, no script and nothing
fetched.
"""

from __future__ import annotations

import base64
import html
import io
import math
from typing import Any

import numpy as np
from einops import rearrange
from PIL import Image

COLUMNS = 16  # pictures of a class in a gallery
MOST_CLASSES = 20
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
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1f2937;background:#fff}
h1{font-size:1.6rem;margin-bottom:0}h2{font-size:1.15rem;margin:2rem 0 .5rem}p.note{color:#6b7280;margin:.2rem 0}
table{border-collapse:collapse}td,th{padding:.25rem .9rem .25rem 0;text-align:left;border-bottom:1px solid #e5e7eb}
.gallery td{padding:1px 8px 1px 0;border:0}.gallery img{image-rendering:pixelated;display:block}
.row{display:flex;flex-wrap:wrap;gap:1.5rem}code{background:#f3f4f6;padding:.1rem .3rem;border-radius:3px;word-break:break-all}
.wide{overflow-x:auto}.wide td,.wide th{white-space:nowrap}
svg{max-width:100%;height:auto}svg text{font:11px system-ui,sans-serif;fill:#374151}
"""


def whole(title: str, body: str) -> bytes:
    """A complete page."""
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style>"
    return f"{head}{body}</html>".encode(errors="replace")  # a path need not be UTF-8


def table(rows: list[tuple[str, ...]]) -> str:
    """A table whose first row is its head."""
    head, *body = [[html.escape(cell) for cell in row] for row in rows]
    lines = "".join(f"<tr><td>{'<td>'.join(row)}" for row in body)
    return f"<table><tr><th>{'<th>'.join(head)}{lines}</table>"


def picture(pixels: np.ndarray, zoom: int) -> str:  # (H, W, C) uint8
    """A picture inside the page, `zoom` times its size."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(
        buffer, "PNG", optimize=True
    )
    data = base64.b64encode(buffer.getvalue()).decode()
    height, width = pixels.shape[:2]
    return f'<img width={width * zoom} height={height * zoom} alt="" src="data:image/png;base64,{data}">'


def gallery(
    images: np.ndarray, labels: np.ndarray, classes: int
) -> str:  # (N, C, H, W) uint8, (N,)
    """A row of pictures for each class."""
    rows = []
    for label in range(min(classes, MOST_CLASSES)):
        mine = images[labels == label]
        if not len(mine):
            continue
        # Evenly spread over the stock, so that the gallery shows the class and not its best.
        chosen = np.linspace(0, len(mine) - 1, min(COLUMNS, len(mine))).astype(int)
        strip = rearrange(mine[chosen], "n c h w -> h (n w) c")
        rows.append(f"<tr><td>{label}<td>{picture(strip, 2 if strip.shape[0] < 48 else 1)}")
    more = (
        f"<p class=note>The first {MOST_CLASSES} of {classes} classes.</p>"
        if classes > MOST_CLASSES
        else ""
    )
    return f"<table class=gallery>{''.join(rows)}</table>{more}"


def _frame(
    body: str, title: str, low: float, high: float, ends: tuple[str, str], tall: int = 200
) -> str:
    """Axes of a 400×200 chart whose plotting area is x 40–390, y 25–170."""
    return (
        f'<svg width=400 height={tall} viewBox="0 0 400 {tall}" role=img aria-label="{html.escape(title)}">'
        f'<text x=40 y=15 style="font-weight:600">{html.escape(title)}</text>'
        f'<path d="M40 25V170H390" fill=none stroke="#9ca3af"/><text x=36 y=32 text-anchor=end>{_short(high, high - low)}</text>'
        f"<text x=36 y=170 text-anchor=end>{_short(low, high - low)}</text><text x=40 "
        f"y=185>{html.escape(ends[0])}</text>"
        f"<text x=390 y=185 text-anchor=end>{html.escape(ends[1])}</text>{body}</svg>"
    )


def lines(
    x: list[Any],
    series: dict[str, list[float]],
    title: str,
    limits: tuple[float, float] | None = None,
) -> str:
    """One line a series, over equally spaced places; x names the first and the last of them, or all
    if they are words.

    Values that are no finite numbers are left out.
    """
    values = [v for line in series.values() for v in line if math.isfinite(v)]
    low, high = limits or (min([0.0, *values]), max(values, default=0.0) or 1.0)
    places, body = [40 + 350 * i / max(len(x) - 1, 1) for i in range(len(x))], ""
    for index, (name, line) in enumerate(series.items()):
        colour = COLOURS[index % len(COLOURS)]
        points = " ".join(
            f"{place:.1f},{170 - 145 * (v - low) / (high - low or 1):.1f}"
            for place, v in zip(places, line, strict=True)
            if math.isfinite(v)
        )
        body += f'<polyline points="{points}" fill=none stroke="{colour}" stroke-width=1.8 />'
        row, column = divmod(index, 3 if len(series) < 4 else 5)
        left = 130 + 110 * column if len(series) < 4 else 40 + 72 * column
        body += (
            f'<text x={left} y={197 + 14 * row} style="fill:{colour}">{html.escape(name)}</text>'
        )
    ends = (str(x[0]), str(x[-1]))
    if isinstance(x[0], str):
        names = zip(places, x, strict=True)
        body += "".join(
            f"<text x={place:.0f} y=183 text-anchor=middle>{html.escape(name)}</text>"
            for place, name in names
        )
        ends = ("", "")
    return _frame(body, title, low, high, ends, 200 + 14 * ((len(series) - 1) // 5))


def scatter(points: dict[str, tuple[float, float]], title: str, ends: tuple[str, str]) -> str:
    """One named dot a point, on axes just wide enough; `ends` are written below the ends of the x
    axis.
    """
    (left, right), (low, high) = (
        (min(side), max(side)) for side in zip(*points.values(), strict=True)
    )
    body = ""
    for index, (name, (x, y)) in enumerate(points.items()):
        across, up = (
            50 + 330 * (x - left) / (right - left or 1),
            165 - 135 * (y - low) / (high - low or 1),
        )
        colour, side = COLOURS[index % len(COLOURS)], ("start", 6) if across < 215 else ("end", -6)
        body += f'<circle cx={across:.1f} cy={up:.1f} r=4 fill="{colour}"><title>{html.escape(name)}: {x:.4g}, {y:.4g}</title></circle>'
        body += f"<text x={across + side[1]:.1f} y={up + 4:.1f} text-anchor={side[0]}>{html.escape(name)}</text>"
    return _frame(body, title, low, high, ends)


def bars(values: list[int], names: list[str], title: str, every: int = 1) -> str:
    """One bar a value; few enough have every `every`-th name below."""
    high, width = max(values) or 1, 350 / len(values)
    body = "".join(
        f"<rect x={40 + width * i:.1f} y={170 - 145 * v / high:.1f} width={max(width - 2, 1):.1f} "
        f"height={145 * v / high:.1f} "
        f'fill="{COLOURS[0]}"><title>{html.escape(names[i])}: {v}</title></rect>'
        for i, v in enumerate(values)
    )
    if len(values) <= 20:
        body += "".join(
            f"<text x={40 + width * (i + 0.5):.1f} y=185 text-anchor=middle>{html.escape(n)}</text>"
            for i, n in enumerate(names)
            if i % every == 0
        )
        return _frame(body, title, 0, high, ("", ""))
    return _frame(body, title, 0, high, (names[0], names[-1]))


def dots(
    rows: list[tuple[str, float, float]], beside: list[tuple[str, float, float]], title: str
) -> str:
    """One dot and its deviation for each (name, mean, deviation), those `beside` in grey. The axis
    need not start at zero.
    """
    everyone = [*rows, *beside]
    low, high = (
        min(mean - spread for _, mean, spread in everyone),
        max(mean + spread for _, mean, spread in everyone),
    )
    places, floor, body = 210 / (high - low or 1), 35 + 18 * len(everyone), ""
    for index, (name, mean, spread) in enumerate(everyone):
        colour, y, x = (
            COLOURS[0] if index < len(rows) else COLOURS[8],
            40 + 18 * index,
            170 + places * (mean - low),
        )
        body += f"<g><title>{html.escape(name)}: {mean:.2f} ± {spread:.2f}</title>"
        body += f'<text x=155 y={y + 4} text-anchor=end style="fill:{colour}">{html.escape(name)}</text>'
        body += f'<path d="M{x - places * spread:.1f} {y}h{2 * places * spread:.1f}" stroke="{colour}" stroke-width=1.8 />'
        body += f'<circle cx={x:.1f} cy={y} r=4 fill="{colour}"/></g>'
    frame = f'<text x=40 y=15 style="font-weight:600">{html.escape(title)}</text>'
    frame += f'<path d="M160 25V{floor}H390" fill=none stroke="#9ca3af"/>'
    for x, value in ((170, low), (380, high)):
        frame += f"<text x={x} y={floor + 15} text-anchor=middle>{value:.2f}</text>"
    size = f'width=400 height={floor + 20} viewBox="0 0 400 {floor + 20}"'
    return f'<svg {size} role=img aria-label="{html.escape(title)}">{frame}{body}</svg>'


def _short(value: float, span: float) -> str:
    """Rounded as finely as matters on an axis `span` long."""
    places = max(2 - math.floor(math.log10(span or abs(value) or 1.0)), 0)
    return f"{round(value, places) or 0.0:,.15g}"
