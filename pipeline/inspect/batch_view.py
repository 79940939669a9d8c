"""Packed rows as a picture: a bar a row, coloured by modality, and what each span decodes to.

Contents are decoded from the tokens alone, so the page shows what a model is given, not the source.
Together they are bounded, for the page is one file; what does not fit is named and left out.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np

from plait.pipeline.inspect.charts import colour
from plait.pipeline.inspect.content import Content, decode, note
from plait.pipeline.inspect.markup import Markup, tag
from plait.pipeline.row import Row
from plait.pipeline.rows import Rows
from plait.pipeline.stream import Document
from plait.pipeline.vocabulary import TokenizerInfo, Vocabulary
from plait.tokenizers.base import Encoded, Tokenizer
from plait.tokenizers.errors import PlaitError

MEDIA_BYTES = 1_200_000
"""Most characters of pictures and sounds in one page."""
MOST_ROWS = 256
"""Rows that are looked at for the fill, and to choose from."""


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
        first = rows.batch(range(min(len(rows), MOST_ROWS)))
        kept = ~first.padding_BT.numpy()
        self.looked_at = len(kept)
        self.fill = float(kept.mean())
        self.numbers = varied_rows(first.modality_BT.numpy(), kept, count)
        self.data: list[list[dict[str, object]]] = []
        """For each row, its documents: key and parts."""
        self.bars = [self._bar(at, number) for at, number in enumerate(self.numbers)]
        self.markup = tag("div", *self.bars, class_="rows", role="group", aria_label="Packed rows")

    def _bar(self, at: int, number: int) -> Markup:
        row = self._rows[number]
        places = self._rows.documents_of(number)
        sources = [self._rows.streams[stream].document(i) for stream, i in places]
        documents = [Shown(key=source.key, parts=[]) for source in sources]
        shown: list[Counter[bytes]] = [Counter() for _ in places]
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
            source = sources[piece.document]
            parts.append(self._part(row, piece, piece.tokenizer, source, shown[piece.document]))
            place = f"{at} {piece.document} {len(parts) - 1}"
            drawn.append(_button(piece, piece.tokenizer.modality, number, place))
        self.data.append([asdict(document) for document in documents])
        bar = tag("div", *drawn, class_="bar")
        return tag("div", tag("span", str(number), class_="n"), bar, class_="row")

    def _part(
        self,
        row: Row,
        piece: Piece,
        info: TokenizerInfo,
        source: Document,
        shown: Counter[bytes],
    ) -> Content:
        here = slice(piece.start, piece.stop)
        local = self._rows.vocabulary.to_local(info.name, row.tokens[here])
        starts = None if row.patch_starts is None else row.patch_starts[here]
        try:
            encoded = _whole_span(source, info.name, local, starts, shown)
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
    source: Document,
    name: str,
    local: np.ndarray,
    patch_starts: np.ndarray | None,
    shown: Counter[bytes],
) -> Encoded:
    """The stored span of these ids, with all that belongs to it; or the piece of one.

    `shown` counts spans by their ids: all those of continuous latents have the same.
    """
    spans = [span for span in source.spans if span.name == name]
    same = [span for span in spans if np.array_equal(span.ids, local)]
    if same:
        ids = name.encode() + local.tobytes()
        shown[ids] += 1
        return same[(shown[ids] - 1) % len(same)].encoded
    width = spans[0].width if spans else 1
    return Encoded(ids=local, width=width, patch_starts=patch_starts)
