"""The bar of a packed row: buttons, markers, padding and hatching, as HTML."""

from typing import TYPE_CHECKING

import numpy as np

from plait.pipeline.inspect.charts import colour, dark_words, swatch
from plait.pipeline.inspect.markup import Markup, tag

if TYPE_CHECKING:
    from plait.pipeline.inspect.row_spans import Piece

WORDS_FROM = 0.07
"""Share of a row from which on a span has its modality written in it."""
MOST_HATCHED = 20
"""Hatched runs that are drawn in a span."""
TINTS = 3


def bar(number: int, drawn: list[Markup], left: int) -> Markup:
    """A row: its number and its pieces; `left` tokens at its end are not drawn."""
    if left:
        words = f"{left:,} more tokens, not drawn"
        drawn = [*drawn, tag("span", words, class_="rest", style=f"flex:{left}")]
    named = tag("span", str(number), class_="n")
    return tag("div", named, tag("div", *drawn, class_="bar"), class_="row")


def gap() -> Markup:
    """Between two documents."""
    return tag("span", class_="gap")


def plain(piece: "Piece", targets_n: np.ndarray) -> Markup:
    """Markers and padding, which cannot be chosen."""
    kind = "pad" if piece.document < 0 else "mark" if targets_n.any() else "mark masked"
    return tag("span", class_=kind, style=f"flex:{len(piece)}")


def button(piece: "Piece", row: int, seq_len: int, place: str, targets_n: np.ndarray) -> Markup:
    """A span that can be chosen; `place` is where the page's script finds what it holds."""
    assert piece.tokenizer is not None
    modality, n, tint = piece.tokenizer.modality, len(piece), piece.document % TINTS
    label = f"row {row}, document {piece.document + 1}, {modality}, {n} tokens "
    label += f"from position {piece.start}{'' if targets_n.any() else ', no target'}"
    inside = [tag("b", modality), tag("small", f"{n:,}")] if n >= WORDS_FROM * seq_len else []
    for a, b in runs(~targets_n)[:MOST_HATCHED]:
        style = f"left:{100 * a / n:.2f}%;width:{100 * (b - a) / n:.2f}%"
        inside.append(tag("i", class_="mask", style=style))
    return tag(
        "button",
        *inside,
        type="button",
        class_=f"span tint{tint}{' ink' if dark_words(modality, tint) else ''}",
        style=f"flex:{n};--c:{colour(modality)}",
        data_at=place,
        aria_label=label,
        aria_pressed="false",
        tabindex=-1,
    )


def legend(modalities: list[str]) -> Markup:
    """What colours, tints and hatching mean, in words."""
    tints = [tag("i", class_=f"swatch tint{i}", style="--c:#0072B2") for i in range(TINTS)]
    return tag(
        "ul",
        *(tag("li", swatch(name), name) for name in modalities),
        tag("li", tag("span", *tints, class_="tints"), "another document, another tint"),
        tag("li", tag("i", class_="swatch mark"), "marker: a span begins or ends"),
        tag("li", tag("i", class_="swatch masked"), "hatched: no target, or padding"),
        class_="legend key",
    )


def runs(mask_n: np.ndarray) -> list[tuple[int, int]]:
    """First and past-the-last of each run of True.

    >>> runs(np.array([True, False, True, True]))
    [(0, 1), (2, 4)]
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask_n, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
