"""HTML and SVG from Python: plain strings are escaped, so hostile content stays text."""

import html
import json


class Markup(str):
    """Text that is HTML already."""


def tag(name: str, *children: str, **attributes: str | int | float | bool | None) -> Markup:
    """An element; `class_` and `aria_label` become `class` and `aria-label`.

    >>> tag("p", "1 < 2", tag("b", "yes"), class_="note", hidden=True, id=None)
    '<p class="note" hidden>1 &lt; 2<b>yes</b></p>'
    """
    given = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    words = [
        f" {key}" if value is True else f' {key}="{html.escape(_number(value))}"'
        for key, value in given
        if value is not None and value is not False
    ]
    start = f"<{name}{''.join(words)}>"
    if name in _VOID:
        return Markup(start)
    return Markup(f"{start}{join(*children)}</{name}>")


_VOID = {"br", "col", "hr", "img", "meta"}


def join(*children: str) -> Markup:
    """Children one after another, escaped where they are plain strings."""
    return Markup("".join(c if isinstance(c, Markup) else html.escape(c) for c in children))


def script_json(value: object) -> Markup:
    """JSON that can stand in a script element: no `<`, `>` or `&`, no line separators."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _number(value: str | int | float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
