"""Packed rows as a picture: a bar a row, coloured by modality, and what each span decodes to.

A span's content is decoded from its tokens alone, so the page shows what a model is given, not the
source: text and bytes as their tokens, a picture as a PNG, sound as a WAV at 16 kHz. Together they
are bounded, for the page is one file; what does not fit is named and left out.
"""

import base64
import io
import wave
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np
from PIL import Image

from plait.pipeline.charts import colour
from plait.pipeline.markup import Markup, tag
from plait.pipeline.rows import Row, Rows
from plait.pipeline.stream import Document
from plait.pipeline.vocabulary import TokenizerInfo, Vocabulary
from plait.tokenizers.base import Encoded, Tokenizer, Waveform
from plait.tokenizers.errors import PlaitError

MEDIA_BYTES = 1_200_000
"""Most characters of pictures and sounds in one page."""
MOST_ROWS = 256
"""Rows that are looked at for the fill, and to choose from."""
MOST_PIECES = 600
"""Most tokens of a span that are spelled out."""
SAMPLE_RATE_HZ = 16_000

Content = dict[str, str | list[str] | list[float]]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Neighbouring tokens of one document and one tokenizer; markers and padding have none."""

    start: int
    stop: int
    document: int
    tokenizer: TokenizerInfo | None


def pieces(row: Row, vocabulary: Vocabulary) -> Iterator[Piece]:
    """The pieces of a row, in order; they cover it."""
    starts = [vocabulary.start(info.name) for info in vocabulary.tokenizers]
    owner_T = np.searchsorted(np.array(starts), row.tokens, side="right") - 1
    change_T = (np.diff(owner_T) != 0) | (np.diff(row.document) != 0)
    bounds = [0, *(np.flatnonzero(change_T) + 1).tolist(), len(row.tokens)]
    for start, stop in pairwise(bounds):
        number = int(owner_T[start])
        info = vocabulary.tokenizers[number] if number >= 0 else None
        yield Piece(start=start, stop=stop, document=int(row.document[start]), tokenizer=info)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A document of a row, as the page's script takes it."""

    key: str
    parts: list[Content]


class BatchView:
    """Some rows of a packing, decoded; `markup` is the picture and `data` what spans hold."""

    def __init__(self, rows: Rows, load: Callable[[str], Tokenizer], count: int = 8) -> None:
        self._rows = rows
        self._load = load
        self._room = MEDIA_BYTES
        self.seq_len = rows.seq_len
        self.colours = {m: colour(m) for m in rows.vocabulary.modalities}
        first = rows.arrays(range(min(len(rows), MOST_ROWS)))
        self.looked_at = len(first.tokens)
        self.fill = float((first.document >= 0).mean())
        self.numbers = varied_rows(first.modality, first.document >= 0, count)
        self.data: list[list[dict[str, object]]] = []
        """For each row, its documents: key and parts."""
        bars = [self._bar(at, number) for at, number in enumerate(self.numbers)]
        self.markup = tag("div", *bars, class_="rows", role="group", aria_label="Packed rows")

    def _bar(self, at: int, number: int) -> Markup:
        row = self._rows[number]
        places = self._rows.documents_of(number)
        sources = [self._rows.streams[stream].document(i) for stream, i in places]
        documents = [Shown(key=source.key, parts=[]) for source in sources]
        drawn, before = [], 0
        for piece in pieces(row, self._rows.vocabulary):
            if piece.document != before and piece.document >= 0:
                drawn.append(tag("span", class_="gap", style="flex:0 0 2px"))
                before = piece.document
            if piece.tokenizer is None:
                kind = "pad" if piece.document < 0 else "mark"
                drawn.append(tag("span", class_=kind, style=f"flex:{piece.stop - piece.start}"))
                continue
            parts = documents[piece.document].parts
            parts.append(self._part(row, piece, piece.tokenizer, sources[piece.document]))
            place = f"{at} {piece.document} {len(parts) - 1}"
            drawn.append(_button(piece, piece.tokenizer.modality, number, place))
        self.data.append([asdict(document) for document in documents])
        bar = tag("div", *drawn, class_="bar")
        return tag("div", tag("span", str(number), class_="n"), bar, class_="row")

    def _part(self, row: Row, piece: Piece, info: TokenizerInfo, source: Document) -> Content:
        here = slice(piece.start, piece.stop)
        local = self._rows.vocabulary.to_local(info.name, row.tokens[here])
        starts = None if row.patch_starts is None else row.patch_starts[here]
        try:
            encoded = _whole_span(source, info.name, local, starts)
            content = self._fit(decode(self._load(info.name), encoded))
        except (PlaitError, ValueError) as error:
            content = note(f"cannot be decoded: {error}")
        last = piece.stop - 1
        title = f"{info.modality}, {len(local)} tokens, positions {piece.start} to {last}"
        return {"modality": info.modality, "title": title, **content}

    def _fit(self, content: Content) -> Content:
        size = len(content.get("src", ""))
        if size > self._room:
            return note("left out to keep this page small")
        self._room -= size
        return content


def varied_rows(modality_NT: np.ndarray, kept_NT: np.ndarray, count: int) -> list[int]:
    """Numbers of rows, rising, that together show much of every modality, so the rare ones too."""
    tokens_NM = np.stack([((modality_NT == m) & kept_NT).sum(1) for m in range(256)], 1)
    tokens_NM = tokens_NM[:, tokens_NM.any(0)].astype(np.float64)
    chosen: list[int] = []
    so_far_M = np.zeros(tokens_NM.shape[1])
    while len(chosen) < min(count, len(tokens_NM)):
        gain_N = np.sqrt(so_far_M + tokens_NM).sum(1)
        gain_N[chosen] = -1
        chosen.append(int(gain_N.argmax()))
        so_far_M += tokens_NM[chosen[-1]]
    return sorted(chosen)


def _button(piece: Piece, modality: str, row: int, place: str) -> Markup:
    n = piece.stop - piece.start
    label = f"row {row}, document {piece.document}, {modality}, {n} tokens from {piece.start}"
    return tag(
        "button",
        type="button",
        class_=f"span tint{piece.document % 3}",
        style=f"flex:{n};--c:{colour(modality)}",
        data_at=place,
        aria_label=label,
        title=label,
        aria_pressed="false",
        tabindex=-1,
    )


def _whole_span(
    source: Document, name: str, local: np.ndarray, patch_starts: np.ndarray | None
) -> Encoded:
    """The stored span of these ids, with all that belongs to it; or the piece of one."""
    spans = [span for span in source.spans if span.name == name]
    whole = next((span for span in spans if np.array_equal(span.ids, local)), None)
    if whole is not None:
        return whole.encoded
    width = spans[0].width if spans else 1
    return Encoded(ids=local, width=width, patch_starts=patch_starts)


def decode(tokenizer: Tokenizer, encoded: Encoded) -> Content:
    """What the page shows for tokens, by what they decode to."""
    if tokenizer.modality == "text":
        return {"kind": "tokens", "pieces": text_pieces(tokenizer, encoded.ids)}
    if tokenizer.modality == "bytes":
        return {"kind": "tokens", "pieces": byte_pieces(tokenizer, encoded)}
    raw = tokenizer.decode(encoded)
    if isinstance(raw, Image.Image):
        return {"kind": "image", "src": _data_url("image/png", _png(raw))}
    if isinstance(raw, Waveform):
        samples = _at_16_khz(raw)
        peaks = [round(float(np.abs(part).max(initial=0)), 3) for part in _parts(samples, 200)]
        return {"kind": "audio", "src": _data_url("audio/wav", _wav(samples)), "peaks": peaks}
    return note(repr(raw)[:2000])


def note(words: str) -> Content:
    """Words in place of a content."""
    return {"kind": "note", "text": words}


def text_pieces(tokenizer: Tokenizer, ids: np.ndarray) -> list[str]:
    """Text by token; neighbours that only together are valid UTF-8 stand together."""
    found, waiting = [], []
    for local in ids[:MOST_PIECES].tolist():
        waiting.append(local)
        text = str(tokenizer.decode(Encoded(ids=np.array(waiting, np.int64))))
        if "\ufffd" not in text or len(waiting) == 4:
            found.append(_visible(text))
            waiting = []
    if waiting:
        found.append(_visible(str(tokenizer.decode(Encoded(ids=np.array(waiting, np.int64))))))
    return [*found, *_more(len(ids))]


def byte_pieces(tokenizer: Tokenizer, encoded: Encoded) -> list[str]:
    """Bytes by patch, as text where they are readable and as \\x00 where not."""
    starts = encoded.patch_starts
    cuts = [0] if starts is None else sorted({0, *np.flatnonzero(starts[:MOST_PIECES]).tolist()})
    end = min(len(encoded.ids), MOST_PIECES)
    found = []
    for a, b in zip(cuts, [*cuts[1:], end], strict=True):
        raw = tokenizer.decode(Encoded(ids=encoded.ids[a:b]))
        assert isinstance(raw, bytes)
        found.append(_visible(raw.decode("utf-8", errors="backslashreplace")))
    return [*found, *_more(len(encoded.ids))]


def _more(n: int) -> list[str]:
    return [f" ... {n - MOST_PIECES:,} more"] if n > MOST_PIECES else []


def _visible(text: str) -> str:
    """Control characters by name, a line's end as a sign and an end; direction cannot be turned."""
    text = text.replace("\n", "\u21b5\n").replace("\t", "\u2192\t")
    shown = (c if c in "\n\t" or c.isprintable() else f"\\u{ord(c):04x}" for c in text)
    return "".join(shown)


def _at_16_khz(sound: Waveform) -> np.ndarray:
    if sound.sample_rate_hz == SAMPLE_RATE_HZ:
        return sound.samples
    import torch
    import torchaudio.functional

    samples = torch.from_numpy(np.ascontiguousarray(sound.samples))
    return torchaudio.functional.resample(samples, sound.sample_rate_hz, SAMPLE_RATE_HZ).numpy()


def _parts(samples: np.ndarray, count: int) -> list[np.ndarray]:
    return np.array_split(samples, min(count, max(len(samples), 1)))


def _wav(samples: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE_HZ)
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def _png(image: Image.Image) -> bytes:
    image.thumbnail((256, 256))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
