"""The plan of one stream: which pieces of which documents make up row i of an epoch.

Lengths alone decide it. A stream falls into windows of shards; a window's plan is made when its
first row is asked for. In `concat` a window's documents follow each other and are cut at row ends,
and only its last row is padded. In `best_fit` see packing.py.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from plait.pipeline.index import cumulative
from plait.pipeline.order import hashes, permutation, windows
from plait.pipeline.packing import SpanShape, best_fit, cut_document
from plait.pipeline.shard_reader import ShardReader
from plait.pipeline.split import Split, Splitter
from plait.pipeline.stream import Stream
from plait.tokenizers.errors import ConfigError

Packing = Literal["best_fit", "concat"]
KEPT_WINDOWS = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Window:
    """The documents of a few shards; arrays over spans [s] or documents [d] in their order there.

    A place in a document counts its tokens with markers: <bos> is 0, the first token after it 1.
    """

    number: int
    readers: tuple[ShardReader, ...]
    documents: np.ndarray
    """Numbers of the documents in the stream [d]."""
    chosen: np.ndarray
    """Those of the split, as positions in `documents`."""
    sizes: np.ndarray
    """Tokens with markers, <bos> and <eos> of each document [d]."""
    bases: np.ndarray
    """Running sum of the sizes [d + 1]."""
    span_starts: np.ndarray
    """First span of each document [d + 1]."""
    lengths: np.ndarray
    widths: np.ndarray
    kinds: np.ndarray
    """Tokens, grid width and tokenizer of each span [s]."""
    at: np.ndarray
    """Running place of each span's first token: base of its document + place in it [s]."""
    shards: np.ndarray
    """Position in `readers` [s]."""
    blocks: np.ndarray
    """Block in its shard [s]."""
    places: np.ndarray
    """First token in the shard as an array of ids [s]."""
    wide: np.ndarray
    """Whether the ids have 4 bytes [s]."""

    @cached_property
    def ends(self) -> np.ndarray:
        """Running place after each span's last token [s]."""
        return self.at + self.lengths

    @cached_property
    def patch_places(self) -> np.ndarray:
        """First bit of each span in its block's `patches.npy`; -1 without [s]."""
        places = [_patch_places(reader) for reader in self.readers]
        return np.concatenate(places)


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """The rows of a window in one epoch, as pieces [p]; padding is a piece of no document."""

    documents: np.ndarray
    """Position in the window's documents; -1 for padding."""
    starts: np.ndarray
    stops: np.ndarray
    """Places in the document; padding is 0 .. its length."""
    again: np.ndarray
    """Int64 0 or 1: whether a begin marker is repeated first."""
    rows: np.ndarray
    """First piece of each row [r + 1]."""


class StreamPlan:
    """Rows of one stream, epoch after epoch.

    `number` is the stream's place in a mixture: the same stream twice comes in two orders, but
    with one split.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        seq_len: int,
        packing: Packing,
        seed: int,
        number: int,
        split: Split,
        validation: float,
    ) -> None:
        self.stream = stream
        self.seq_len = seq_len
        self.packing: Packing = packing
        self._salt = (seed, number)
        self._splitter = Splitter(stream, seed=seed, split=split, validation=validation)
        self._lock = threading.RLock()
        self._marked = np.array([t.modality != "text" for t in stream.tokenizers])
        self._splittable = np.array([t.splittable for t in stream.tokenizers])
        shard_documents = np.array([s.documents for s in stream.shards], np.int64)
        self._groups = windows(shard_documents, *self._salt)
        self._windows: OrderedDict[int, Window] = OrderedDict()
        self._cuts: dict[int, tuple[tuple[np.ndarray, ...], np.ndarray]] = {}
        self._plans: OrderedDict[tuple[int, int], Plan] = OrderedDict()
        stream.prefetch_indexes()
        self.window_rows = np.array(
            [self._count_rows(w) for w in range(len(self._groups))], np.int64
        )
        self.rows = int(self.window_rows.sum())
        self._epoch: tuple[int, np.ndarray, np.ndarray] | None = None

    def locate(self, row: int) -> tuple[int, int, int]:
        """Epoch, window, and row in the window, of row number `row` from 0 on for ever."""
        epoch, row = divmod(row, self.rows)
        kept = self._epoch
        if kept is None or kept[0] != epoch:
            order = permutation(len(self._groups), *self._salt, 3, epoch)
            kept = self._epoch = (epoch, order, cumulative(self.window_rows[order]))
        _, order, starts = kept
        at = int(np.searchsorted(starts, row, "right")) - 1
        return epoch, int(order[at]), row - int(starts[at])

    def window(self, number: int) -> Window:
        """A window; the last few are kept."""
        with self._lock:
            if number not in self._windows:
                self._windows[number] = self._load(number)
                if len(self._windows) > KEPT_WINDOWS:
                    oldest, _ = self._windows.popitem(last=False)
                    self._cuts.pop(oldest, None)
            self._windows.move_to_end(number)
            return self._windows[number]

    def plan(self, number: int, epoch: int) -> Plan:
        """The plan of a window in an epoch; the last few are kept."""
        with self._lock:
            if (number, epoch) not in self._plans:
                self.stream.prefetch(self._groups[number].tolist(), self._next(number, epoch))
                self._plans[number, epoch] = self._make(self.window(number), epoch)
                if len(self._plans) > KEPT_WINDOWS:
                    self._plans.popitem(last=False)
            self._plans.move_to_end((number, epoch))
            return self._plans[number, epoch]

    def _next(self, number: int, epoch: int) -> list[int]:
        """Shards of the window that follows this one."""
        order = np.concatenate(
            [permutation(len(self._groups), *self._salt, 3, e) for e in (epoch, epoch + 1)]
        )
        return self._groups[order[int(np.argmax(order == number)) + 1]].tolist()

    def _load(self, number: int) -> Window:
        group = self._groups[number].tolist()
        readers = tuple(self.stream.reader(shard) for shard in group)
        indexes = [reader.index for reader in readers]
        counts = np.concatenate([i.counts for i in indexes]).astype(np.int64)
        lengths = np.concatenate([i.lengths for i in indexes]).astype(np.int64)
        kinds = np.concatenate([i.kinds for i in indexes])
        marks = self._marked[kinds].astype(np.int64)
        span_starts = cumulative(counts)
        span_ends = cumulative(lengths + 2 * marks)
        sizes = span_ends[span_starts[1:]] - span_ends[span_starts[:-1]] + 2
        owner = np.repeat(np.arange(len(counts)), counts)
        documents = np.concatenate(
            [
                self.stream.starts[s] + np.arange(i.documents)
                for s, i in zip(group, indexes, strict=True)
            ]
        )
        blocks = np.concatenate([i.span_blocks for i in indexes])
        itemsize = [np.array([b.itemsize for b in i.blocks])[i.span_blocks] for i in indexes]
        return Window(
            number=number,
            readers=readers,
            documents=documents,
            chosen=np.flatnonzero(self._splitter.chosen(documents)),
            sizes=sizes,
            bases=cumulative(sizes),
            span_starts=span_starts,
            lengths=lengths,
            widths=np.concatenate([i.widths for i in indexes]),
            kinds=kinds,
            at=span_ends[:-1] + 2 * owner + 1 + marks,
            shards=np.repeat(np.arange(len(indexes)), [len(i.lengths) for i in indexes]),
            blocks=blocks,
            places=np.concatenate([i.places for i in indexes]),
            wide=np.concatenate(itemsize) == 4,
        )

    def _count_rows(self, number: int) -> int:
        window = self.window(number)
        if self.packing == "concat":
            return -(-int(window.sizes[window.chosen].sum()) // self.seq_len)
        _, sizes = self._pieces(window)
        return best_fit(-np.sort(-sizes), self.seq_len)[1]

    def _make(self, window: Window, epoch: int) -> Plan:
        salt = (*self._salt, 4, epoch, window.number)
        return self._concat(window, salt) if self.packing == "concat" else self._best(window, salt)

    def _concat(self, window: Window, salt: tuple[int, ...]) -> Plan:
        order = window.chosen[
            np.argsort(hashes(window.documents[window.chosen], *salt), kind="stable")
        ]
        ends = cumulative(window.sizes[order])
        total = -(-int(ends[-1]) // self.seq_len) * self.seq_len
        cuts = np.union1d(ends, np.arange(0, total + 1, self.seq_len))
        begins = cuts[:-1]
        which = np.searchsorted(ends, begins, "right") - 1
        padding = which == len(order)
        first = np.where(padding, begins, ends[np.minimum(which, len(order))])
        return Plan(
            documents=np.where(padding, -1, np.append(order, -1)[which]),
            starts=begins - first,
            stops=cuts[1:] - first,
            again=np.zeros(len(begins), np.int64),
            rows=np.searchsorted(cuts, np.arange(0, total + 1, self.seq_len)),
        )

    def _best(self, window: Window, salt: tuple[int, ...]) -> Plan:
        (documents, starts, stops, again), sizes = self._pieces(window)
        shuffled = hashes(window.documents[documents] * 131 + starts, *salt)
        order = np.lexsort((shuffled, -sizes))
        packed, n_rows = best_fit(sizes[order], self.seq_len)
        row_of = np.empty(len(order), np.int64)
        row_of[order] = permutation(n_rows, *salt, 5)[packed]
        fill = np.bincount(row_of, sizes, n_rows).astype(np.int64)
        pad = np.arange(n_rows)
        row_of = np.concatenate([row_of, pad])
        in_order = np.lexsort(
            (np.concatenate([shuffled, np.full(n_rows, -1).astype(np.uint64)]), row_of)
        )
        zeros = np.zeros(n_rows, np.int64)
        return Plan(
            documents=np.concatenate([documents, zeros - 1])[in_order],
            starts=np.concatenate([starts, zeros])[in_order],
            stops=np.concatenate([stops, self.seq_len - fill])[in_order],
            again=np.concatenate([again, zeros])[in_order],
            rows=np.searchsorted(row_of[in_order], np.arange(n_rows + 1)),
        )

    def _pieces(self, window: Window) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
        """(document, start, stop, again) of each piece, and its size, which is at most seq_len."""
        if window.number not in self._cuts:
            self._cuts[window.number] = self._cut_window(window)
        return self._cuts[window.number]

    def _cut_window(self, window: Window) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
        sizes = window.sizes[window.chosen]
        whole = window.chosen[sizes <= self.seq_len]
        cut = [self._cut(window, d) for d in window.chosen[sizes > self.seq_len].tolist()]
        columns = np.concatenate([np.zeros((0, 4), np.int64), *cut])
        none = np.zeros(len(whole), np.int64)
        documents = np.concatenate([whole, columns[:, 0]])
        starts = np.concatenate([none, columns[:, 1]])
        stops = np.concatenate([window.sizes[whole], columns[:, 2]])
        again = np.concatenate([none, columns[:, 3]])
        return (documents, starts, stops, again), stops - starts + again

    def _cut(self, window: Window, document: int) -> np.ndarray:
        a, b = window.span_starts[document : document + 2].tolist()
        kinds = window.kinds[a:b]
        columns = (
            window.lengths[a:b],
            window.widths[a:b],
            self._marked[kinds],
            self._splittable[kinds],
        )
        shapes = [SpanShape(*row) for row in zip(*(c.tolist() for c in columns), strict=True)]
        try:
            cuts = cut_document(shapes, self.seq_len)
        except ConfigError as error:
            number = int(window.documents[document])
            raise ConfigError(f"{self.stream.path}: document {number}: {error}") from None
        return np.array([(document, c.start, c.stop, c.again) for c in cuts], np.int64)


def _patch_places(reader: ShardReader) -> np.ndarray:
    index = reader.index
    names = index.tokenizers
    table = np.array([[name in b.patched for name in names] for b in index.blocks])
    chosen = table.reshape(-1, len(names))[index.span_blocks, index.kinds]
    ends = cumulative(np.where(chosen, index.lengths, 0))
    firsts = cumulative(np.array([b.spans for b in index.blocks]))[:-1]
    return np.where(chosen, ends[:-1] - ends[firsts][index.span_blocks], -1)
