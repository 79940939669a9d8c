"""Text and bytes piece by piece, as a page or a terminal draws them: tokens, or patches of bytes.

Everything is bounded and readable: control characters and those that turn the direction of text
are named, a piece of very many characters is cut, and so is a span of very many pieces.
"""

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from plait.tokenizers.base import Encoded, Tokenizer

MOST_PIECES = 600
"""Most tokens, or bytes, of a span that are spelled out."""
MOST_CHARACTERS = 400
"""Of a piece: a token may be as long as its tokenizer likes."""
MOST_BEFORE = 4096
"""Bytes before a span that its entropies are computed from."""
MOST_TOGETHER = 4
"""Tokens that stand together where only together they are valid UTF-8."""


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """What is drawn of a span of text or bytes."""

    pieces: list[str]
    ids: list[list[int]] = field(default_factory=list)
    """Of text: the ids of each piece."""
    bits: list[float] = field(default_factory=list)
    """Of bytes with a model of entropies: how hard the first byte of each patch is to foretell."""
    limit: float | None = None
    """Bits above which a patch begins, where the tokenizer has such a limit."""
    note: str = ""
    """What is left out."""


NOTHING = np.zeros(0, np.uint8)


def pieces_of(tokenizer: Tokenizer, encoded: Encoded, before: np.ndarray = NOTHING) -> Pieces:
    """The pieces of a span of text or bytes; `before` are the ids before it in its document."""
    if tokenizer.modality == "text":
        return text_pieces(tokenizer, encoded)
    return byte_pieces(tokenizer, encoded, before)


def text_pieces(tokenizer: Tokenizer, encoded: Encoded) -> Pieces:
    """Text by token; neighbours that only together are valid UTF-8 stand together."""
    pieces: list[str] = []
    groups: list[list[int]] = []
    waiting: list[int] = []
    shown = encoded.ids[:MOST_PIECES].tolist()
    for place, local in enumerate(shown, 1):
        waiting.append(local)
        text = str(tokenizer.decode(Encoded(ids=np.array(waiting, np.int64))))
        if "\ufffd" not in text or len(waiting) == MOST_TOGETHER or place == len(shown):
            pieces.append(visible(text))
            groups.append(waiting)
            waiting = []
    return Pieces(pieces=pieces, ids=groups, note=_left_out(len(encoded.ids), "tokens"))


def byte_pieces(tokenizer: Tokenizer, encoded: Encoded, before: np.ndarray = NOTHING) -> Pieces:
    """Bytes by patch, as text where they are readable and as \\x00 where not."""
    cuts = _cuts(encoded)
    pieces = []
    for a, b in pairwise(cuts):
        raw = tokenizer.decode(Encoded(ids=encoded.ids[a:b]))
        assert isinstance(raw, bytes)
        pieces.append(visible(raw.decode("utf-8", errors="backslashreplace")))
    bits, limit = _entropies(tokenizer, encoded.ids[: cuts[-1]], cuts[:-1], before[-MOST_BEFORE:])
    note = _left_out(len(encoded.ids), "bytes")
    return Pieces(pieces=pieces, bits=bits, limit=limit, note=note)


def piece_sizes(tokenizer: Tokenizer, encoded: Encoded) -> list[int]:
    """How many tokens each piece of a text or of bytes holds."""
    if tokenizer.modality == "text":
        return [len(ids) for ids in text_pieces(tokenizer, encoded).ids]
    return [b - a for a, b in pairwise(_cuts(encoded))]


def visible(text: str) -> str:
    """Control characters by name, a line's end as a sign and an end; direction cannot be turned.

    >>> visible("a\\tb\\x00")
    'a→\\tb\\\\u0000'
    """
    left_out = len(text) - MOST_CHARACTERS
    text = text[:MOST_CHARACTERS].replace("\n", "\u21b5\n").replace("\t", "\u2192\t")
    shown = "".join(c if c in "\n\t" or c.isprintable() else f"\\u{ord(c):04x}" for c in text)
    return f"{shown} (... {left_out:,} more characters)" if left_out > 0 else shown


def _cuts(encoded: Encoded) -> list[int]:
    """Where patches begin, and the end."""
    starts, end = encoded.patch_starts, min(len(encoded.ids), MOST_PIECES)
    return [*sorted({0, *([] if starts is None else np.flatnonzero(starts[:end]).tolist())}), end]


def _entropies(
    tokenizer: Tokenizer, ids: np.ndarray, firsts: list[int], before: np.ndarray
) -> tuple[list[float], float | None]:
    """Bits of the byte that begins each patch, and the limit; nothing where there is no model."""
    from plait.tokenizers.byte_patch import BytePatch

    if not isinstance(tokenizer, BytePatch) or tokenizer.source is None or not len(ids):
        return [], None
    data = np.concatenate([before, ids]).astype(np.uint8)
    entropies = tokenizer.source.stream().push(data, np.zeros(1, np.int64))[len(before) :]
    limit = tokenizer.options.limits[0]
    bits = [round(float(entropies[first]), 2) for first in firsts]
    return bits, round(limit, 3) if np.isfinite(limit) else None


def _left_out(n: int, what: str) -> str:
    return f"{n - MOST_PIECES:,} more {what} are not shown" if n > MOST_PIECES else ""
