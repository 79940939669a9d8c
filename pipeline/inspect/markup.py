"""HTML and SVG from Python: plain strings are escaped, so hostile content stays text."""

import html
import json
import unicodedata

MOST_CHARACTERS = 4000
"""Of one text in a page; a longer one is cut and says so."""


class Markup(str):
    """Text that is HTML already."""


def tag(name: str, *children: str, **attributes: str | int | float | bool | None) -> Markup:
    """An element; `class_` and `aria_label` become `class` and `aria-label`.

    >>> tag("p", "1 < 2", tag("b", "yes"), class_="note", hidden=True, id=None)
    '<p class="note" hidden>1 &lt; 2<b>yes</b></p>'
    """
    given = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    words = [
        f" {key}" if value is True else f' {key}="{html.escape(_attribute(key, value))}"'
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
    escaped = (c if isinstance(c, Markup) else html.escape(readable(c)) for c in children)
    return Markup("".join(escaped))


def readable(text: str) -> str:
    """Text for eyes: characters that cannot be seen or turn its direction are named; not endless.

    >>> readable("a\\u202eb\\x00")
    'a\\\\u202eb\\\\u0000'
    """
    if len(text) > MOST_CHARACTERS:
        text = f"{text[:MOST_CHARACTERS]} ... ({len(text):,} characters)"
    if text.isprintable():
        return text
    return "".join(c if c in "\n\t" or _seen(c) else f"\\u{ord(c):04x}" for c in text)


def _seen(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs"


def script_json(value: object) -> Markup:
    """JSON that can stand in a script element: no `<`, `>` or `&`, no line separators."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _attribute(name: str, value: str | int | float) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return readable(str(value)) if name in _WORDS else str(value)


_WORDS = {"alt", "aria-label", "title"}
