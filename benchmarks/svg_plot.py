"""A scatter plot with a logarithmic y axis as SVG text: axes with ticks, a grid, a legend, names beside points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from math import ceil, floor, log10
from typing import TypeAlias

# Left, top, right, bottom.
Box: TypeAlias = tuple[float, float, float, float]

WIDTH, HEIGHT = 900, 560
LEFT, RIGHT, TOP, BOTTOM = 78, 24, 52, 64
FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', Helvetica, Arial, sans-serif"
INK, GRID = "#1f2430", "#e3e6eb"
# Width of a character in units of the font's size, roughly.
_CHARACTER = 0.62
_NAME_SIZE, _TEXT_SIZE = 11, 13


@dataclass(frozen=True)
class Point:
    """Where it lies, in the axes' units, and its name beside it ('' for none)."""

    x: float
    y: float
    name: str = ""


@dataclass(frozen=True)
class Series:
    """Points of one kind.

    Attributes:
        name: in the legend.
        points: in the order that a line joins them.
        color: of markers, line, and names.
        marker: circle, square, diamond, or none.
        line: none, straight, or steps (from each point to the right, then to the next: what a size allows).
    """

    name: str
    points: Sequence[Point]
    color: str
    marker: str = "circle"
    line: str = "none"


@dataclass(frozen=True)
class _Scale:
    """From the axes' units to the picture's."""

    x0: float
    x1: float
    y0: float
    y1: float

    def x(self, value: float) -> float:
        return LEFT + (value - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        share = (log10(value) - log10(self.y0)) / (log10(self.y1) - log10(self.y0))
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def log_plot(title: str, x_label: str, y_label: str, series: Sequence[Series]) -> str:
    """The plot; every y is positive."""
    points = [point for one in series for point in one.points]
    scale = _Scale(*_linear_range([p.x for p in points]), *_log_range([p.y for p in points]))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" font-family="{FONT}" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(LEFT, 30, title, 16, INK, weight="600"),
        *_axes(scale, x_label, y_label),
        *(part for one in series for part in _line(scale, one)),
        *(part for one in series for part in _markers(scale, one)),
        *_names(scale, series),
        *_legend(series),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _linear_range(values: Sequence[float]) -> tuple[float, float]:
    room = 0.04 * (max(values) - min(values)) or 1.0
    return min(values) - room, max(values) + room


def _log_range(values: Sequence[float]) -> tuple[float, float]:
    room = (max(values) / min(values)) ** 0.05
    return min(values) / max(room, 1.05), max(values) * max(room, 1.05)


def linear_ticks(low: float, high: float, about: int = 8) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten between two numbers."""
    rough = (high - low) / about
    power = 10.0 ** floor(log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [step * i for i in range(ceil(low / step), floor(high / step) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between two positive numbers."""
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    return [v for p in powers for f in (1, 2, 5) if low <= (v := f * 10.0**p) <= high]


def _axes(scale: _Scale, x_label: str, y_label: str) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for value in linear_ticks(scale.x0, scale.x1):
        x = scale.x(value)
        parts.append(_rule(x, TOP, x, bottom, GRID))
        parts.append(_rule(x, bottom, x, bottom + 5, INK))
        parts.append(_text(x, bottom + 21, f"{value:g}", _TEXT_SIZE, INK, "middle"))
    for value in log_ticks(scale.y0, scale.y1):
        y = scale.y(value)
        parts.append(_rule(LEFT, y, right, y, GRID))
        parts.append(_rule(LEFT - 5, y, LEFT, y, INK))
        parts.append(_text(LEFT - 10, y + 4.5, f"{value:g}", _TEXT_SIZE, INK, "end"))
    parts += [_rule(LEFT, TOP, LEFT, bottom, INK), _rule(LEFT, bottom, right, bottom, INK)]
    parts.append(_text((LEFT + right) / 2, HEIGHT - 16, x_label, _TEXT_SIZE, INK, "middle"))
    middle = (TOP + bottom) / 2
    parts.append(
        f'<text transform="translate(20 {middle:.0f}) rotate(-90)" font-size="{_TEXT_SIZE}" fill="{INK}" '
        f'text-anchor="middle">{escape(y_label)}</text>'
    )
    return parts


def _corners(scale: _Scale, series: Series) -> list[tuple[float, float]]:
    """Where the series' line turns."""
    places = [(scale.x(p.x), scale.y(p.y)) for p in series.points]
    if series.line == "none" or not places:
        return []
    if series.line == "straight":
        return places
    corners = places[:1]
    for x, y in places[1:]:
        corners += [(x, corners[-1][1]), (x, y)]
    return [*corners, (WIDTH - RIGHT, corners[-1][1])]


def _line(scale: _Scale, series: Series) -> list[str]:
    corners = _corners(scale, series)
    if not corners:
        return []
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in corners)
    dashes = ' stroke-dasharray="5 4"' if series.line == "steps" else ""
    return [f'<path d="{path}" fill="none" stroke="{series.color}" stroke-width="1.6"{dashes}/>']


def _covered_by_line(scale: _Scale, series: Series) -> list[Box]:
    """Small boxes along the series' line."""
    boxes = []
    for (x1, y1), (x2, y2) in pairwise(_corners(scale, series)):
        steps = ceil(max(abs(x2 - x1), abs(y2 - y1)) / 4) or 1
        for i in range(steps + 1):
            x, y = x1 + (x2 - x1) * i / steps, y1 + (y2 - y1) * i / steps
            boxes.append((x - 1.5, y - 1.5, x + 1.5, y + 1.5))
    return boxes


def _markers(scale: _Scale, series: Series) -> list[str]:
    return [_marker(series.marker, scale.x(p.x), scale.y(p.y), series.color) for p in series.points]


def _marker(kind: str, x: float, y: float, color: str) -> str:
    style = f'fill="{color}" stroke="#ffffff" stroke-width="1"'
    if kind == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" {style}/>'
    if kind == "square":
        return f'<rect x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9" {style}/>'
    if kind == "diamond":
        return f'<path d="M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z" {style}/>'
    return ""


def _names(scale: _Scale, series: Sequence[Series]) -> list[str]:
    """Each point's name at the place about it where it covers least; none where it would cover a point."""
    marks = [(scale.x(p.x), scale.y(p.y)) for one in series if one.marker != "none" for p in one.points]
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in marks]
    lines = [box for one in series for box in _covered_by_line(scale, one)]
    parts = []
    for one in series:
        for point in one.points:
            if not point.name:
                continue
            x, y = scale.x(point.x), scale.y(point.y)
            width = len(point.name) * _NAME_SIZE * _CHARACTER
            boxes = [(left, base - _NAME_SIZE, left + width, base + 2) for left, base in _places(x, y, width)]
            free = [box for box in boxes if not (_outside(box) or _shared(box, taken))]
            if free:
                box = min(free, key=lambda b: _shared(b, lines))
                taken.append(box)
                parts.append(_text(box[0], box[3] - 2, point.name, _NAME_SIZE, one.color, halo=True))
    return parts


def _places(x: float, y: float, width: float) -> list[tuple[float, float]]:
    """Left ends and baselines of a name beside (x, y), the nicest first."""
    right = [(x + dx, y + dy) for dx, dy in ((9, 4), (9, -7), (9, 15), (6, -17), (6, 26))]
    left = [(x - dx - width, y + dy) for dx, dy in ((9, 4), (9, -7), (9, 15), (6, -17), (6, 26))]
    return [*right, *left, (x - width / 2, y - 10), (x - width / 2, y + 20)]


def _outside(box: Box) -> bool:
    left, top, right, bottom = box
    return left < LEFT + 2 or right > WIDTH - RIGHT or top < TOP or bottom > HEIGHT - BOTTOM


def _shared(box: Box, others: Sequence[Box]) -> float:
    """Area that a box shares with others."""
    left, top, right, bottom = box
    return sum(
        max(0.0, min(right, r) - max(left, x)) * max(0.0, min(bottom, b) - max(top, y))
        for x, y, r, b in others
    )


def _legend(series: Sequence[Series]) -> list[str]:
    """In the upper right corner, where a curve that falls leaves room."""
    shown = [one for one in series if one.points]
    width = 46 + max(len(one.name) for one in shown) * _TEXT_SIZE * _CHARACTER
    left, top = WIDTH - RIGHT - width - 8, TOP + 8
    parts = [
        f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="{len(shown) * 22 + 12}" rx="4" '
        f'fill="#ffffff" stroke="{GRID}"/>'
    ]
    for i, one in enumerate(shown):
        y = top + 17 + 22 * i
        if one.line != "none":
            dashes = ' stroke-dasharray="5 4"' if one.line == "steps" else ""
            parts.append(
                f'<line x1="{left + 8:.1f}" y1="{y}" x2="{left + 34:.1f}" y2="{y}" stroke="{one.color}" '
                f'stroke-width="1.6"{dashes}/>'
            )
        parts.append(_marker(one.marker, left + 21, y, one.color))
        parts.append(_text(left + 42, y + 4.5, one.name, _TEXT_SIZE, INK))
    return [part for part in parts if part]


def _rule(x1: float, y1: float, x2: float, y2: float, color: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}"/>'


def _text(
    x: float,
    y: float,
    text: str,
    size: int,
    color: str,
    anchor: str = "start",
    weight: str = "400",
    halo: bool = False,
) -> str:
    around = ' paint-order="stroke" stroke="#ffffff" stroke-width="3"' if halo else ""
    bold = f' font-weight="{weight}"' if weight != "400" else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{color}" text-anchor="{anchor}"{bold}{around}>'
        f"{escape(text)}</text>"
    )
