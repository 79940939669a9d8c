"""Packed rows as a picture: a bar a row, coloured by modality, and what each span decodes to.

Contents are decoded from the tokens alone, so the page shows what a model is given; the originals
stand beside them where they are at hand (originals.py). All is bounded, for the page is one file:
each row has its share of the room, and what does not fit is named and left out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from plait.pipeline.inspect import row_bar
from plait.pipeline.inspect.atlas import Atlas
from plait.pipeline.inspect.charts import colour
from plait.pipeline.inspect.content import Content, decode, note
from plait.pipeline.inspect.markup import Markup, readable, script_json, tag
from plait.pipeline.inspect.originals import Originals
from plait.pipeline.inspect.packed_rows import varied
from plait.pipeline.inspect.row_spans import Piece, Places, encoded_piece, pieces, targets
from plait.pipeline.rows import Rows
from plait.pipeline.stream import Document
from plait.tokenizers.base import Tokenizer
from plait.tokenizers.errors import PlaitError

MEDIA_BYTES = 1_000_000
"""Most characters of texts, pictures and sounds in one page."""
MOST_ROWS = 256
"""Rows that are looked at for the fill, and to choose from."""
MOST_SPANS = 1000
"""Spans that are drawn, of all rows together."""
MOST_WORD = 200
"""Characters of a document's key."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A document of a row, as the page's script takes it."""

    key: str
    about: str
    """Where it stands in the batch and in the stream."""
    parts: list[Content] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Place:
    """A document of a row, and where it comes from."""

    stream: int
    number: int
    source: Document


class BatchView:
    """Some rows of a packing, decoded; `markup` is the picture and `data` what spans hold."""

    def __init__(
        self,
        rows: Rows,
        load: Callable[[str], Tokenizer],
        count: int = 8,
        *,
        originals: bool = False,
    ) -> None:
        """`load` gives a tokenizer by its name; with `originals` the sources are searched."""
        self._rows = rows
        self._load = load
        self._originals = [Originals(stream) for stream in rows.streams] if originals else []
        self._room = 0
        self.seq_len = rows.seq_len
        self.colours = {m: colour(m) for m in rows.vocabulary.modalities}
        first = rows.batch(range(min(len(rows), MOST_ROWS)))
        kept = ~first.padding_BT.numpy()
        self.looked_at = len(kept)
        self.fill = float(kept.mean())
        self.learned = float(first.loss_mask_BT.numpy().sum() / max(kept.sum(), 1))
        """Targets, as a share of the tokens."""
        self.numbers = varied_rows(first.modality_BT.numpy(), kept, count)
        self.atlases: Sequence[Atlas] = ()
        self.data: list[list[dict[str, object]]] = []
        """For each row, its documents: key and parts."""
        self.bars = [self._bar(at, number) for at, number in enumerate(self.numbers)]
        self.markup = tag("div", *self.bars, class_="rows", role="group", aria_label="Packed rows")

    @property
    def page_data(self) -> Mapping[str, object]:
        """What the page's script needs."""
        atlases = [atlas.data for atlas in self.atlases]
        return {"rows": self.data, "colours": self.colours, "atlases": atlases}

    @property
    def originals_words(self) -> str:
        """Whether originals were found, in a sentence."""
        return " ".join(dict.fromkeys(o.words for o in self._originals if o.words))

    def _bar(self, at: int, number: int) -> Markup:
        self._room += MEDIA_BYTES // len(self.numbers)
        row = self._rows[number]
        places = [
            Place(stream=stream, number=i, source=self._rows.streams[stream].document(i))
            for stream, i in self._rows.documents_of(number)
        ]
        within = Places(row, self._rows.vocabulary, [place.source for place in places])
        targets_T, drawn = targets(row), []
        shown: list[Shown] = []
        spans = end = 0
        for piece in pieces(row, self._rows.vocabulary):
            targets_n = targets_T[piece.start : piece.stop]
            if piece.document >= len(shown):
                drawn += [row_bar.gap()] if shown else []
                shown.append(self._shown(number, piece.document, places[piece.document]))
            if piece.tokenizer is None:
                drawn.append(row_bar.plain(piece, targets_n))
            elif spans < MOST_SPANS // len(self.numbers):
                parts = shown[piece.document].parts
                parts.append(self._part(piece, row.tokens, within, places[piece.document]))
                where = f"{at} {piece.document} {len(parts) - 1}"
                drawn.append(row_bar.button(piece, number, self.seq_len, where, targets_n))
                spans += 1
            else:
                break
            end = piece.stop
        self.data.append([asdict(document) for document in shown])
        return row_bar.bar(number, drawn, len(row.tokens) - end)

    def _shown(self, row: int, at: int, place: Place) -> Shown:
        many = len(self._rows.streams) > 1
        stream = f" of {shortened(self._rows.names[place.stream])}" if many else ""
        return Shown(
            key=shortened(place.source.key),
            about=f"Row {row:,}, document {at + 1:,} in it; number {place.number:,}{stream} in the "
            f"stream, from {shortened(place.source.source)}",
        )

    def _part(self, piece: Piece, tokens_T: np.ndarray, within: Places, place: Place) -> Content:
        """What a piece decodes to, and its original."""
        assert piece.tokenizer is not None
        name, where = piece.tokenizer.name, within.within(piece)
        local = self._rows.vocabulary.to_local(name, tokens_T[piece.start : piece.stop])
        span = place.source.spans[where.span]
        part: Content = {"modality": piece.tokenizer.modality}
        part["title"] = _title(piece, where.offset, len(span.ids))
        try:
            tokenizer = self._load(name)
            encoded = encoded_piece(place.source, where, local)
            content = self._fit(decode(tokenizer, encoded, span.ids[: where.offset]))
            if content["kind"] in ("image", "audio") and self._originals:
                search = self._originals[place.stream].content
                found = search(place.number, where, len(piece), tokenizer)
                original = self._fit(found) if found else note("")
                content |= {} if original["kind"] == "note" else {"original": original}
        except (PlaitError, ValueError, RuntimeError) as error:
            return part | note(shortened(f"cannot be decoded: {error}"))
        return part | content

    def _fit(self, content: Content) -> Content:
        size = len(script_json(content))
        if size > self._room:
            return note("left out to keep this page small")
        self._room -= size
        return content


def varied_rows(modality_NT: np.ndarray, kept_NT: np.ndarray, count: int) -> list[int]:
    """Numbers of rows, rising, that together show much of every modality, so the rare ones too."""
    tokens_NM = np.stack([((modality_NT == m) & kept_NT).sum(1) for m in range(256)], 1)
    tokens_NM = tokens_NM[:, tokens_NM.any(0)].astype(np.float64)
    return varied(tokens_NM, count)


def shortened(text: str) -> str:
    """A key or a path that a page has room for."""
    cut = f"{text[:MOST_WORD]} ... ({len(text):,} characters)"
    return readable(text if len(text) <= MOST_WORD else cut)


def _title(piece: Piece, first: int, whole: int) -> str:
    assert piece.tokenizer is not None
    n = len(piece)
    tokens = "1 token" if n == 1 else f"{n:,} tokens"
    cut = f" ({first:,} to {first + n - 1:,} of {whole:,})" if n < whole else ""
    places = f"{piece.start:,}" if n == 1 else f"{piece.start:,} to {piece.stop - 1:,}"
    return f"{shortened(piece.tokenizer.modality)}, {tokens}{cut}, positions {places}"
