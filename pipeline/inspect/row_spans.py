"""The pieces of a packed row: which tokens of which span of which document stand where.

A row alone says ids, documents and positions; from a document's spans follows the rest, exactly,
also where it was cut at a row's end and goes on in another row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from plait.pipeline.row import Row
from plait.pipeline.stream import Document
from plait.pipeline.vocabulary import TokenizerInfo, Vocabulary
from plait.tokenizers.base import Encoded


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Neighbouring tokens of one document and one tokenizer; markers and padding have none."""

    start: int
    stop: int
    document: int
    """Which of the row's documents; -1 for padding."""
    tokenizer: TokenizerInfo | None

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Within:
    """Where a piece lies in its document."""

    span: int
    """The span of its first token; it may go on in the next one, if both are of text."""
    offset: int
    """Tokens of that span that come before."""


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


class Places:
    """Where the pieces of one row lie in their documents."""

    def __init__(self, row: Row, vocabulary: Vocabulary, documents: Sequence[Document]) -> None:
        self._row = row
        self._bounds = [_bounds(document) for document in documents]
        self._shifts = [
            self._shift(number, vocabulary) if len(document.spans) else 0
            for number, document in enumerate(documents)
        ]

    def within(self, piece: Piece) -> Within:
        """Span and offset of a piece's first token."""
        begins, _ = self._bounds[piece.document]
        place = int(self._row.position[piece.start]) - self._shifts[piece.document]
        span = int(np.searchsorted(begins, place, "right")) - 1
        return Within(span, place - int(begins[span]))

    def _shift(self, number: int, vocabulary: Vocabulary) -> int:
        """1 where a cut span begins with its begin marker again, which takes a position."""
        begins, ends = self._bounds[number]
        first = int(np.argmax(self._row.document == number))
        place = int(self._row.position[first])
        span = int(np.searchsorted(begins, place, "right")) - 1
        marker = int(self._row.tokens[first]) < len(vocabulary.specials)
        return int(marker and span >= 0 and place < ends[span])


def targets(row: Row) -> np.ndarray:
    """Bool [T]: which tokens are a target, that is, which the position before is to foretell."""
    return np.concatenate([[False], row.loss_mask[:-1]])


def encoded_piece(document: Document, within: Within, local: np.ndarray) -> Encoded:
    """Local ids with all that belongs to them in their span."""
    whole = document.spans[within.span].encoded
    here = slice(within.offset, within.offset + len(local))

    def part(values: np.ndarray | None) -> np.ndarray | None:
        return None if values is None else values[here]

    return Encoded(
        ids=local,
        width=whole.width,
        patch_starts=part(whole.patch_starts),
        durations=part(whole.durations),
        latents=part(whole.latents),
    )


def _bounds(document: Document) -> tuple[np.ndarray, np.ndarray]:
    """Places [spans] in a document of the first token of each span, and past its last one."""
    marked = np.array([span.modality != "text" for span in document.spans], np.int64)
    lengths = np.array([len(span.ids) for span in document.spans], np.int64)
    ends = 1 + np.cumsum(lengths + 2 * marked) - marked
    return ends - lengths, ends
