"""Charts as inline SVG: drawn in CSS colours, so they follow the page's theme, and in words."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from plait.pipeline.inspect.markup import Markup, join, tag

COLOURS = {"text": "#0072B2", "image": "#E69F00", "speech": "#009E73", "bytes": "#CC79A7"}
"""Okabe and Ito's palette, which colour-blind readers can tell apart."""
MORE_COLOURS = ("#56B4E9", "#D55E00", "#999999")
CHARACTER = 6.5
"""Width of a digit, about."""
Place = Callable[[float], float]
DASHES = {"text": None, "image": "7 3", "speech": "2 3", "bytes": "9 3 2 3"}


def colour(modality: str) -> str:
    """The colour of a modality; those that plait does not know share the rest of the palette."""
    return COLOURS.get(modality, MORE_COLOURS[sum(modality.encode()) % len(MORE_COLOURS)])


def dark_words(modality: str, tint: int) -> bool:
    """Whether words on a modality's colour, its light tint 1 or its dark tint 2 should be dark."""
    return tint == 1 or _luminance(colour(modality)) * (0.5 if tint == 2 else 1) > 0.179


def _luminance(colour: str) -> float:
    """WCAG's relative luminance of `#rrggbb`; from 0.179 on, black stands out more than white."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@dataclass(frozen=True, kw_only=True, eq=False)
class Line:
    """One line of a chart."""

    name: str
    x: np.ndarray
    y: np.ndarray
    colour: str
    dash: str | None = None
    dots: bool = False


def histogram(values: np.ndarray, counts: np.ndarray, *, colour: str, unit: str) -> Markup:
    """Bars of how many things have each value; values are rising integers of 1 or more."""
    width, height, left, bottom = 250, 130, 4, 20
    edges, bars = bins(values, counts)
    step, top = (width - 2 * left) / len(bars), max(bars.max(), 1)
    drawn = []
    for i, n in enumerate(bars):
        tall = (height - bottom - 16) * n / top
        low, high = math.ceil(edges[i]), math.ceil(edges[i + 1]) - 1
        named = f"{low:,}" if high <= low else f"{low:,} to {high:,}"
        x, y = left + i * step, height - bottom - max(tall, 1.5 if n else 0.0)
        bar = tag("title", f"{named} {unit}: {int(n):,}")
        wide = min(max(step - 1.5, 1.0), 28.0)
        size = {"x": x + (step - wide) / 2, "y": y, "width": wide, "height": height - bottom - y}
        drawn.append(tag("rect", bar, fill=colour, **size))
    axis = tag("path", d=f"M{left} {height - bottom + 0.5}H{width - left}", class_="axis")
    ends = [(left, "start", f"{values[0]:,}"), (width - left, "end", f"{values[-1]:,} {unit}")]
    if values[0] == values[-1]:
        ends = [(width / 2, "middle", f"all {values[0]:,} {unit}")]
    words = [_text(x, height - 6, word, anchor) for x, anchor, word in ends]
    if len(set(np.diff(edges).round(6).tolist())) > 1:
        words.append(_text(width / 2, height - 6, "log scale", "middle"))
    words.append(_text(left, 11, f"most in a bar: {int(bars.max()):,}", "start"))
    label = f"Histogram from {values[0]:,} to {values[-1]:,} {unit}"
    return _svg(width, height, label, *drawn, axis, *words)


def line_chart(lines: Sequence[Line], *, x_label: str, y_label: str, log_y: bool = False) -> Markup:
    """Lines over one pair of axes, each named at its end; log_y leaves out what is not above 0."""
    width, height, right, top, bottom = 500, 250, 72, 22, 34
    kept = [_finite(line, log_y) for line in lines]
    kept = [line for line in kept if line.x.size]
    if not kept:
        return tag("p", "Nothing to draw yet.", class_="quiet")
    x_low, x_high = min(k.x.min() for k in kept), max(k.x.max() for k in kept)
    y_ticks = _ticks(min(k.y.min() for k in kept), max(k.y.max() for k in kept), log_y)
    y_low, y_high = _scaled(y_ticks[0], log_y), _scaled(y_ticks[-1], log_y)
    left = max(46, 12 + CHARACTER * max(len(_short(y)) for y in y_ticks))

    def place_x(x: float) -> float:
        return left + (width - left - right) * (x - x_low) / ((x_high - x_low) or 1)

    def place_y(y: float) -> float:
        share = (_scaled(y, log_y) - y_low) / ((y_high - y_low) or 1)
        return height - bottom - (height - bottom - top) * share

    drawn = []
    for y in y_ticks:
        drawn.append(tag("path", d=f"M{left} {place_y(y):.1f}H{width - right}", class_="grid"))
        drawn.append(_text(left - 6, place_y(y) + 4, _short(y), "end"))
    for x in _ticks(x_low, x_high, False):
        if x_low <= x <= x_high:
            drawn.append(_text(place_x(x), height - bottom + 16, _short(x), "middle"))
    drawn.append(_text((left + width - right) / 2, height - 3, x_label, "middle"))
    drawn.append(_text(4, 12, y_label, "start"))
    for line in kept:
        drawn.append(_draw(line, place_x, place_y))
    drawn += _end_words(kept, place_x, place_y, height - bottom)
    names = ", ".join(line.name for line in kept)
    return _svg(width, height, f"{y_label} over {x_label}: {names}", *drawn)


def stacked_bar(parts: Sequence[tuple[str, int]]) -> Markup:
    """One bar of the modalities' shares, with words below it."""
    total = sum(n for _, n in parts) or 1
    pieces, words = [], []
    for name, n in parts:
        share = n / total
        style = f"flex:{max(share, 0.004):.4f};--c:{colour(name)}"
        pieces.append(tag("span", class_="piece", style=style, title=f"{name}: {share:.1%}"))
        words.append(tag("li", swatch(name), f"{name} {share:.1%}"))
    bar = tag("div", *pieces, class_="stack", aria_hidden="true")
    return join(bar, tag("ul", *words, class_="legend"))


def swatch(modality: str) -> Markup:
    """A small square in the modality's colour; the word stands beside it."""
    return tag("i", class_="swatch", style=f"--c:{colour(modality)}", aria_hidden="true")


def _draw(line: Line, place_x: Place, place_y: Place) -> Markup:
    points = [(place_x(x), place_y(y)) for x, y in zip(line.x, line.y, strict=True)]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    style = f"--c:{line.colour}"
    drawn = tag("path", d=path, class_="line", style=style, stroke_dasharray=line.dash)
    if not line.dots and len(points) > 1:
        return drawn
    dots = [tag("circle", cx=x, cy=y, r=3, class_="dot", style=style) for x, y in points]
    return join(drawn, *dots)


def _end_words(
    lines: Sequence[Line], place_x: Place, place_y: Place, bottom: float, gap: float = 13.0
) -> list[Markup]:
    """The lines' names at the right, moved up where they would overlap or leave the chart."""
    x = max(place_x(line.x[-1]) for line in lines) + 6
    words, highest = [], bottom + gap - 4
    for line in sorted(lines, key=lambda line: -place_y(line.y[-1])):
        highest = min(place_y(line.y[-1]), highest - gap)
        words.append(_text(x, highest + 4, line.name, "start", colour=line.colour))
    return words


def _finite(line: Line, log_y: bool) -> Line:
    keep = np.isfinite(line.y) & ((line.y > 0) if log_y else True)
    return Line(
        name=line.name,
        x=line.x[keep],
        y=line.y[keep],
        colour=line.colour,
        dash=line.dash,
        dots=line.dots,
    )


def bins(values: np.ndarray, counts: np.ndarray, most: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Edges of at most `most` bins of rising integers from 1 on, and how many are in each."""
    if not len(values):
        return np.zeros(0), np.zeros(0, np.int64)
    edges = _edges(int(values[0]), int(values[-1]), most)
    bars, _ = np.histogram(values, bins=edges, weights=counts)
    return edges, bars.astype(np.int64)


def _edges(low: int, high: int, most: int = 24) -> np.ndarray:
    """Edges of at most `most` bins over integers low .. high; logarithmic if they spread far."""
    if high - low < most:
        return np.arange(low, high + 2, dtype=float)
    if high / low < 16:
        return np.linspace(low, high + 1, most + 1)
    return np.unique(np.round(np.geomspace(low, high + 1, most + 1)))


def _ticks(low: float, high: float, log: bool) -> list[float]:
    if log:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        step = max(1, math.ceil((last - first) / 6))
        return [10.0**e for e in range(first, max(last, first + 1) + step, step)]
    spread = (high - low) or abs(high) or 1.0
    raw = spread / 5
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= raw)
    first = math.floor(low / step)
    return [i * step for i in range(first, math.ceil(high / step) + 1 + (high == low))]


def _scaled(y: float, log: bool) -> float:
    return math.log10(y) if log else y


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):g}{letter}"
    return f"{value:g}"


def _text(x: float, y: float, words: str, anchor: str, colour: str | None = None) -> Markup:
    style = None if colour is None else f"--c:{colour}"
    class_ = None if colour is None else "name"
    return tag("text", words, x=x, y=y, text_anchor=anchor, style=style, class_=class_)


def _svg(width: int, height: int, label: str, *children: str) -> Markup:
    return tag("svg", *children, viewBox=f"0 0 {width} {height}", role="img", aria_label=label)
