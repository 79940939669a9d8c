"""Where pieces of each size lie in the rows of a window: best fit, then cuts to fill what is open.

Sizes and forms alone decide it, so a window makes the same number of rows in every epoch; which
piece takes which slot of its size and form is drawn anew. Two pictures of 1,024 tokens do not fit
into a row of 2,048 with their markers, so packing whole documents pads mixed data whatever the
algorithm. What may be cut is therefore poured into the open rows: as few rows as it takes are
emptied, and rows that hold nothing but what may be cut are not filled, so pure text stays whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import groupby

import numpy as np

from plait.pipeline.order import grouped
from plait.pipeline.packing import best_fit


@dataclass(frozen=True)
class Form:
    """How a piece that lies in one span can be cut."""

    marked: bool = False
    """Whether markers stand around the span; if not, any place will do."""
    width: int = 1
    """Cuts are at multiples of it."""
    first: bool = True
    last: bool = True
    """Whether the piece begins and ends its document, markers included."""

    def cut(self, size: int, room: int, least: int) -> tuple[int, int, "Form"] | None:
        """Tokens of the part that fills `room`, size and form of the rest; None if it cannot be."""
        if not self.marked:
            taken = min(room, size - least)
            return (taken, size - taken, self) if taken >= least else None
        before, after = 1 + self.first, 2 * self.last
        inner = size - before - after
        taken = min(room - before, inner - 1) // self.width * self.width
        if taken <= 0:
            return None
        return before + taken, 1 + inner - taken + after, Form(True, self.width, False, self.last)


@dataclass(frozen=True, kw_only=True, eq=False)
class Slots:
    """Parts [p] of items, which are taken in the order of `groups`."""

    groups: np.ndarray
    """Rank of each item's size and form, largest first [n]."""
    items: np.ndarray
    """Which item, in that order [p]."""
    begins: np.ndarray
    """Places after the item's first one; 0 is the item's first part [p]."""
    again: np.ndarray
    """0 or 1: whether a later part repeats a begin marker [p]."""
    sizes: np.ndarray
    """Tokens of the part [p]."""
    rows: np.ndarray
    """Row of each part [p]."""
    fills: np.ndarray
    """Tokens in each row [r]."""


def make_slots(
    sizes: np.ndarray, again: np.ndarray, forms: np.ndarray, table: Sequence[Form], seq_len: int
) -> Slots:
    """Slots for items of these sizes; `forms` counts in the table, and is -1 for what stays whole.

    `again` is 1 for items that begin with a repeated marker, else 0; a form has one or the other.
    """
    keys = sizes * (len(table) + 1) - forms - 1
    _, groups = np.unique(-keys, return_inverse=True)
    order = grouped(groups)
    sizes, again, forms = sizes[order], again[order], forms[order]
    rows, fills = _pack(sizes, forms < 0, seq_len)
    loose = np.bincount(rows[forms < 0], minlength=len(fills)) == 0
    if not loose.any() or (seq_len - fills[~loose]).sum() < fills[loose].min():
        zeros = np.zeros(len(sizes), np.int64)
        return Slots(
            groups=groups,
            items=np.arange(len(sizes)),
            begins=zeros,
            again=zeros,
            sizes=sizes,
            rows=rows,
            fills=fills,
        )
    parts = _Parts(sizes.tolist(), rows.tolist(), fills.tolist(), seq_len)
    parts.pour([table[f] if f >= 0 else None for f in forms.tolist()], loose)
    used, rows = np.unique(parts.rows, return_inverse=True)
    items, begins = np.array(parts.items), np.array(parts.begins)
    return Slots(
        groups=groups,
        items=items,
        # A part's begin counts the tokens before it; a marker that the item repeats has no place.
        begins=begins - np.where(begins == 0, 0, again[items]),
        again=np.array(parts.again),
        sizes=np.array(parts.sizes),
        rows=rows,
        fills=np.array(parts.fills)[used],
    )


def _pack(sizes: np.ndarray, solid: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Row of each item and tokens in each row: first what stays whole, the rest into its room."""
    rows = np.empty(len(sizes), np.int64)
    rows[solid], n_rows = best_fit(sizes[solid], seq_len)
    room = seq_len - np.bincount(rows[solid], sizes[solid], n_rows).astype(np.int64)
    rows[~solid], n_rows = best_fit(sizes[~solid], seq_len, room)
    return rows, np.bincount(rows, sizes, n_rows).astype(np.int64)


class _Parts:
    """The parts of items while they are poured: at first each item is one part."""

    def __init__(self, sizes: list[int], rows: list[int], fills: list[int], seq_len: int) -> None:
        self.items = list(range(len(sizes)))
        self.sizes, self.rows, self.fills = sizes, rows, fills
        self.begins, self.again = [0] * len(sizes), [0] * len(sizes)
        self._least = max(2, seq_len // 64)
        self._seq_len = seq_len
        self._forms: list[Form | None] = []
        self._open: list[tuple[int, int]] = []
        self._space = 0

    def pour(self, forms: list[Form | None], loose: np.ndarray) -> None:
        """Empty the `loose` rows, of what may be cut, into the room of others, emptiest first."""
        self._forms = forms
        fills, rows = np.array(self.fills), np.array(self.rows)
        rooms = self._seq_len - fills
        taking = np.flatnonzero(~loose & (rooms >= self._least))
        self._open = list(zip((-rooms[taking]).tolist(), taking.tolist(), strict=True))
        heapify(self._open)
        self._space = int(rooms[taking].sum())
        parts = np.flatnonzero(loose[rows])
        parts = parts[np.lexsort((rows[parts], fills[rows[parts]]))].tolist()
        for row, group in groupby(parts, key=self.rows.__getitem__):
            if self._space < self.fills[row]:
                return
            if not all(self._pour_part(part, row) for part in list(group)):
                return

    def _reopen(self, row: int) -> None:
        room = self._seq_len - self.fills[row]
        if room >= self._least:
            heappush(self._open, (-room, row))
            self._space += room

    def _pour_part(self, part: int, source: int) -> bool:
        """Move a part to the rows with the most room; False if they did not suffice."""
        while self._open:
            room, row = heappop(self._open)
            room = -room
            self._space -= room
            size, form = self.sizes[part], self._forms[part]
            assert form is not None
            cut = None if size <= room else form.cut(size, room, self._least)
            if size > room and cut is None:
                continue
            taken = size if cut is None else cut[0]
            self.rows[part] = row
            self.sizes[part] = taken
            self.fills[source] -= taken
            self.fills[row] += taken
            if cut is None:
                self._reopen(row)
                return True
            part = self._rest(part, source, cut)
        return False

    def _rest(self, part: int, source: int, cut: tuple[int, int, Form]) -> int:
        """The rest of a part that was cut, as a new part of its old row."""
        taken, size, form = cut
        self.fills[source] += form.marked
        self.items.append(self.items[part])
        self.begins.append(self.begins[part] + taken - self.again[part])
        self.again.append(int(form.marked))
        self.sizes.append(size)
        self.rows.append(source)
        self._forms.append(form)
        return len(self.items) - 1
