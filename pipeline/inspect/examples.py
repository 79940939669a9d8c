"""Samples before and after a tokenizer, as HTML that reads without a script.

The page's script adds what is named under the pointer and the waveforms.
"""

from collections.abc import Iterator, Sequence
from typing import cast

from plait.pipeline.inspect.charts import colour
from plait.pipeline.inspect.content import Content, show
from plait.pipeline.inspect.markup import Markup, join, tag
from plait.pipeline.inspect.token_pieces import Pieces, pieces_of
from plait.tokenizers.base import Encoded, Raw, Tokenizer, Waveform

SOUND_S = 3.0
"""Seconds of a sound that can be heard."""
MOST_CHARACTERS = 1_100_000
"""Of pictures and sounds in the page."""
TOP_BITS = 4.0
"""Bits of the highest bar under a patch, unless one is higher."""


def examples(tokenizer: Tokenizer, pairs: Sequence[tuple[Raw, Encoded]]) -> Markup:
    """Pairs of a sample and its tokens, side by side."""
    return tag("div", *_figures(tokenizer, pairs), class_="pairs")


def _figures(tokenizer: Tokenizer, pairs: Sequence[tuple[Raw, Encoded]]) -> Iterator[Markup]:
    left = MOST_CHARACTERS
    for raw, encoded in pairs:
        if tokenizer.modality in ("text", "bytes"):
            parts = [drawn_pieces(pieces_of(tokenizer, encoded))]
        else:
            contents = [show(_short(raw))]
            if getattr(tokenizer, "decodes", True):
                contents += [show(_short(tokenizer.decode(encoded)))]
            left -= sum(len(str(content.get("src", ""))) for content in contents)
            names = ("before", "after") if len(contents) == 2 else ("",)
            parts = [_media(n, content) for n, content in zip(names, contents, strict=True)]
        if left < 0:
            return
        words = tag("figcaption", f"{len(encoded.ids):,} tokens", class_="quiet")
        style = f"--c:{colour(tokenizer.modality)}"
        yield tag("figure", tag("div", *parts, class_="parts"), words, style=style)


def drawn_pieces(pieces: Pieces) -> Markup:
    """Text or bytes with the borders of its tokens or patches."""
    drawn = []
    top = max(TOP_BITS, *pieces.bits) if pieces.bits else TOP_BITS
    for i, piece in enumerate(pieces.pieces):
        style = f"--e:{pieces.bits[i] / top:.3f}" if pieces.bits else None
        named = ""
        if pieces.ids:
            named = f"{'ids' if len(pieces.ids[i]) > 1 else 'id'} "
            named += ", ".join(map(str, pieces.ids[i]))
        elif pieces.bits:
            named = f"patch {i + 1}, its first byte {pieces.bits[i]} bits"
        drawn.append(tag("span", piece, style=style, title=named or None))
    box = tag("div", *drawn, class_="tokens bits" if pieces.bits else "tokens")
    bars = ""
    if pieces.bits:
        bars = f"Bars: how hard the first byte of a patch is to foretell, 0 to {top:.1f} bits. "
        bars += f"A patch begins above {pieces.limit} bits. " if pieces.limit else ""
    words = tag("p", f"{bars}{pieces.note}", class_="quiet") if bars or pieces.note else join()
    return tag("div", box, tag("p", class_="tip"), words, class_="part of-tokens")


def _media(name: str, content: Content) -> Markup:
    kind, src = content["kind"], str(content.get("src", ""))
    if kind == "image":
        what = tag("img", src=src, alt=f"{name}: a picture")
    elif kind == "audio":
        peaks = " ".join(map(str, cast(list[float], content["peaks"])))
        label = f"{name}: a sound"
        what = tag("audio", src=src, controls=True, aria_label=label, data_peaks=peaks)
    else:
        what = tag("p", str(content.get("text", "")))
    heading = tag("h3", name) if name else join()
    return tag("div", heading, what, class_=f"part of-{kind}")


def _short(raw: Raw) -> Raw:
    """The beginning of a sound; anything else as it is."""
    if not isinstance(raw, Waveform):
        return raw
    samples = raw.samples[: int(SOUND_S * raw.sample_rate_hz)]
    return Waveform(samples=samples, sample_rate_hz=raw.sample_rate_hz)
