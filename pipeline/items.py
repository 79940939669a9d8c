"""What best fit packs: documents, and the pieces of those that are longer than a row."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from plait.pipeline.packing import SpanShape, cut_document
from plait.pipeline.slots import Form
from plait.pipeline.window import Window
from plait.tokenizers.errors import ConfigError


@dataclass(frozen=True, kw_only=True, eq=False)
class Items:
    """Arrays over items [n]; places as in Window."""

    documents: np.ndarray
    starts: np.ndarray
    stops: np.ndarray
    again: np.ndarray
    """0 or 1: whether a begin marker is repeated first."""
    forms: np.ndarray
    """How it may be cut, as a number in `table`; -1 for what stays whole."""
    table: Sequence[Form]

    @property
    def sizes(self) -> np.ndarray:
        """Tokens of each item, at most a row."""
        return self.stops - self.starts + self.again


def cut_items(window: Window, chosen: np.ndarray, seq_len: int, cut: Collection[str]) -> Items:
    """The chosen documents of a window; `cut` names the modalities that fill rows.

    A document fills rows if all of its spans are unmarked text, or it is one span; others stay
    whole. Raises ConfigError if something that must stay whole is longer than a row.
    """
    sizes = window.sizes[chosen]
    whole, long = chosen[sizes <= seq_len], chosen[sizes > seq_len]
    plain = _plain(window)
    texts = plain[long]
    pieces = [_cut_text(long[texts], window.sizes[long[texts]], seq_len)]
    pieces += [_cut(window, long[~texts].tolist(), seq_len)]
    columns = np.concatenate(pieces)
    none = np.zeros(len(whole), np.int64)
    documents = np.concatenate([whole, columns[:, 0]])
    starts = np.concatenate([none, columns[:, 1]])
    stops = np.concatenate([window.sizes[whole], columns[:, 2]])
    again = np.concatenate([none, columns[:, 3]])
    forms, table = _forms(window, plain, documents, starts, stops, cut)
    return Items(
        documents=documents, starts=starts, stops=stops, again=again, forms=forms, table=table
    )


def _plain(window: Window) -> np.ndarray:
    """Which documents hold nothing but unmarked tokens that may be cut anywhere [d]."""
    plain = [t.modality == "text" and t.splittable for t in window.tokenizers]
    marked = ~np.array(plain)[window.kinds] | (window.widths != 1)
    sums = np.concatenate([[0], np.cumsum(marked)])
    counts = np.diff(window.span_starts)
    return (np.diff(sums[window.span_starts]) == 0) & (counts == 1)


def _cut_text(documents: np.ndarray, sizes: np.ndarray, seq_len: int) -> np.ndarray:
    """`cut_document` for documents of one span of text, at once: [pieces, 4]."""
    counts = -(-sizes // seq_len)
    owner = np.repeat(np.arange(len(documents)), counts)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    size = sizes[owner]
    starts = number * seq_len
    stops = np.minimum(starts + seq_len, size)
    # <eos> is never alone: it takes the last token along.
    alone = size % seq_len == 1
    starts -= alone & (number > 0) & (number == counts[owner] - 1)
    stops -= alone & (number == counts[owner] - 2)
    return np.stack([documents[owner], starts, stops, np.zeros_like(starts)], axis=1)


def _cut(window: Window, documents: Sequence[int], seq_len: int) -> np.ndarray:
    """`cut_document` for documents of any spans: document, start, stop, again [pieces, 4]."""
    kinds = [(info.modality != "text", info.splittable) for info in window.tokenizers]
    found: list[int] = []
    for document, columns in zip(documents, _spans_of(window, documents), strict=True):
        shapes = [SpanShape(n, width, *kinds[kind]) for n, width, kind in columns]
        try:
            cuts = cut_document(shapes, seq_len)
        except ConfigError as error:
            raise ConfigError(f"document {int(window.documents[document])}: {error}") from None
        for cut in cuts:
            found += (document, *cut)
    return np.array(found, np.int64).reshape(-1, 4)


def _spans_of(window: Window, documents: Sequence[int]) -> Iterator[list[tuple[int, int, int]]]:
    """(length, width, kind) of each span of each document."""
    numbers = np.array(documents, np.int64)
    firsts, lasts = window.span_starts[numbers], window.span_starts[numbers + 1]
    counts = lasts - firsts
    spans = np.arange(counts.sum()) + np.repeat(lasts - np.cumsum(counts), counts)
    columns = [c[spans].tolist() for c in (window.lengths, window.widths, window.kinds)]
    rows = zip(*columns, strict=True)
    return (list(islice(rows, count)) for count in counts.tolist())


def _forms(
    window: Window,
    plain: np.ndarray,
    documents: np.ndarray,
    starts: np.ndarray,
    stops: np.ndarray,
    cut: Collection[str],
) -> tuple[np.ndarray, list[Form]]:
    """The form of each item, and the forms that there are; text's is 0."""
    forms = np.full(len(documents), -1, np.int64)
    if "text" in cut:
        forms[plain[documents]] = 0
    table = [Form()]
    allowed = np.array([t.modality in cut and t.modality != "text" for t in window.tokenizers])
    spans = window.span_starts[documents]
    single = window.span_starts[documents + 1] - spans == 1
    fitting = single & allowed[window.kinds[np.minimum(spans, len(window.kinds) - 1)]]
    some = np.flatnonzero(fitting)
    found = np.stack(
        [
            window.widths[spans[some]],
            starts[some] == 0,
            stops[some] == window.sizes[documents[some]],
        ],
        axis=1,
    ).astype(np.int64)
    kinds, which = np.unique(found, axis=0, return_inverse=True)
    forms[some] = 1 + which.reshape(-1)
    table += [Form(True, width, bool(first), bool(last)) for width, first, last in kinds.tolist()]
    return forms, table
