"""The plan of one stream: which pieces of which documents make up row i of an epoch.

Lengths alone decide it. A stream falls into windows of shards; a window's plan is made when its
first row is asked for. In `concat` a window's documents follow each other and are cut at row ends,
and only its last row is padded. In `best_fit` see packing.py and slots.py.
"""

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Collection
from typing import Literal

import numpy as np

from plait.kernels.fill_rows import Pieces
from plait.pipeline.index import cumulative
from plait.pipeline.items import Items, cut_items
from plait.pipeline.order import grouped, hashes, order_of, permutation, windows
from plait.pipeline.slots import Slots, make_slots
from plait.pipeline.split import Split, Splitter
from plait.pipeline.stream import Stream
from plait.pipeline.window import Window
from plait.tokenizers.errors import ConfigError

Packing = Literal["best_fit", "concat"]
KEPT_WINDOWS = 3


class StreamPlan:
    """Rows of one stream, epoch after epoch.

    `number` is the stream's place in a mixture: the same stream twice comes in two orders, but
    with one split. `cut` names the modalities that `best_fit` may cut to fill a row.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        seq_len: int,
        packing: Packing,
        cut: Collection[str],
        seed: int,
        number: int,
        split: Split,
        validation: float,
    ) -> None:
        self.stream = stream
        self.seq_len = seq_len
        self.packing: Packing = packing
        self._cut = frozenset(cut)
        self._salt = (seed, number)
        self._splitter = Splitter(stream, seed=seed, split=split, validation=validation)
        self._lock = threading.RLock()
        shard_documents = np.array([s.documents for s in stream.shards], np.int64)
        self._groups = windows(shard_documents, *self._salt)
        self._windows: OrderedDict[int, Window] = OrderedDict()
        self._slots: OrderedDict[int, tuple[Items, Slots]] = OrderedDict()
        self._plans: OrderedDict[tuple[int, int], tuple[Window, Pieces]] = OrderedDict()
        self.patched = False
        """Whether any document has patch starts."""
        stream.prefetch_indexes()
        self.tokens = 0
        """Tokens of an epoch, markers among them."""
        self.window_rows = [self._count_rows(w) for w in range(len(self._groups))]
        self.rows = sum(self.window_rows)
        self._epoch: tuple[int, list[int], list[int]] = (-1, [], [])

    def locate(self, row: int) -> tuple[int, int, int]:
        """Epoch, window, and row in the window, of row number `row` from 0 on for ever."""
        epoch, row = divmod(row, self.rows)
        order, starts = self._order(epoch)
        at = bisect_right(starts, row) - 1
        return epoch, order[at], row - starts[at]

    def rows_of(self, document: int, epoch: int) -> list[int]:
        """The rows of an epoch that hold a part of a document, counted as `locate` does."""
        shard = int(np.searchsorted(self.stream.starts, document, "right")) - 1
        number = next(n for n, group in enumerate(self._groups) if shard in group)
        window, pieces = self.plan(number, epoch)
        local = int(np.flatnonzero(window.documents == document)[0])
        parts = np.flatnonzero((pieces.documents == local) & (pieces.stops > pieces.starts))
        found = np.unique(np.searchsorted(pieces.rows, parts, "right") - 1)
        order, starts = self._order(epoch)
        return (epoch * self.rows + starts[order.index(number)] + found).tolist()

    def plan(self, number: int, epoch: int) -> tuple[Window, Pieces]:
        """A window and its rows in an epoch; the last few are kept."""
        key = number, epoch
        with self._lock:
            if key not in self._plans:
                self.stream.prefetch(self._groups[number].tolist(), self._next(number, epoch))
                self._plans[key] = self._make(number, epoch)
                if len(self._plans) > KEPT_WINDOWS:
                    self._plans.popitem(last=False)
            self._plans.move_to_end(key)
            return self._plans[key]

    def _next(self, number: int, epoch: int) -> list[int]:
        """Shards of the window that follows this one."""
        order = self._order(epoch)[0]
        at = order.index(number) + 1
        if at == len(order):
            order, at = permutation(len(order), *self._salt, 3, epoch + 1).tolist(), 0
        return self._groups[order[at]].tolist()

    def _order(self, epoch: int) -> tuple[list[int], list[int]]:
        """The windows of an epoch in their order, and the row at which each begins."""
        kept = self._epoch
        if kept[0] != epoch:
            order = permutation(len(self._groups), *self._salt, 3, epoch)
            starts = cumulative([self.window_rows[w] for w in order])[:-1]
            kept = self._epoch = (epoch, order.tolist(), starts.tolist())
        return kept[1:]

    def _window(self, number: int) -> Window:
        """A window; the last few are kept."""
        if number not in self._windows:
            group = self._groups[number].tolist()
            self._windows[number] = Window.of(self.stream, number, group)
            if len(self._windows) > KEPT_WINDOWS:
                oldest, _ = self._windows.popitem(last=False)
                self._slots.pop(oldest, None)
        self._windows.move_to_end(number)
        return self._windows[number]

    def _chosen(self, window: Window) -> np.ndarray:
        """The window's documents that belong to the split."""
        return np.flatnonzero(self._splitter.chosen(window.documents))

    def _count_rows(self, number: int) -> int:
        window = self._window(number)
        self.patched |= window.patched
        if self.packing == "concat":
            tokens = int(window.sizes[self._chosen(window)].sum())
            self.tokens += tokens
            return -(-tokens // self.seq_len)
        fills = self._slots_of(window)[1].fills
        self.tokens += int(fills.sum())
        return len(fills)

    def _make(self, number: int, epoch: int) -> tuple[Window, Pieces]:
        window = self._window(number)
        salt = (*self._salt, 4, epoch, number)
        made = self._concat(window, salt) if self.packing == "concat" else self._best(window, salt)
        return window, made

    def _concat(self, window: Window, salt: tuple[int, ...]) -> Pieces:
        chosen = self._chosen(window)
        order = chosen[order_of(hashes(window.documents[chosen], *salt))]
        ends = cumulative(window.sizes[order])
        total = -(-int(ends[-1]) // self.seq_len) * self.seq_len
        cuts = np.unique(np.concatenate([ends, np.arange(0, total + 1, self.seq_len)]))
        begins = cuts[:-1]
        which = np.searchsorted(ends, begins, "right") - 1
        padding = which == len(order)
        first = np.where(padding, begins, ends[np.minimum(which, len(order))])
        return Pieces(
            documents=np.where(padding, -1, np.append(order, -1)[which]),
            starts=begins - first,
            stops=cuts[1:] - first,
            again=np.zeros(len(begins), np.int64),
            rows=np.searchsorted(cuts, np.arange(0, total + 1, self.seq_len)),
        )

    def _best(self, window: Window, salt: tuple[int, ...]) -> Pieces:
        items, slots = self._slots_of(window)
        by_hash = order_of(hashes(window.documents[items.documents] * 131 + items.starts, *salt))
        item = by_hash[grouped(slots.groups[by_hash])][slots.items]
        documents, starts = items.documents[item], items.starts[item] + slots.begins
        n_rows = len(slots.fills)
        rows = permutation(n_rows, *salt, 5)[slots.rows]
        order = order_of(hashes(window.documents[documents] * 131 + starts, *salt))
        fills = np.empty(n_rows, np.int64)
        fills[rows] = slots.fills[slots.rows]
        zeros = np.zeros(n_rows, np.int64)
        in_order = grouped(np.concatenate([rows[order], np.arange(n_rows)]))
        again = np.where(slots.begins == 0, items.again[item], slots.again)

        def column(values: np.ndarray, padding: np.ndarray) -> np.ndarray:
            return np.concatenate([values[order], padding])[in_order]

        return Pieces(
            documents=column(documents, zeros - 1),
            starts=column(starts, zeros),
            stops=column(starts + slots.sizes - again, self.seq_len - fills),
            again=column(again, zeros),
            rows=cumulative(np.bincount(rows, minlength=n_rows) + 1),
        )

    def _slots_of(self, window: Window) -> tuple[Items, Slots]:
        if window.number not in self._slots:
            try:
                items = cut_items(window, self._chosen(window), self.seq_len, self._cut)
            except ConfigError as error:
                raise ConfigError(f"{self.stream.path}: {error}") from None
            slots = make_slots(items.sizes, items.again, items.forms, items.table, self.seq_len)
            self._slots[window.number] = items, slots
        return self._slots[window.number]
