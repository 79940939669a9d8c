"""Packing from lengths alone: best-fit decreasing, and where long documents are cut.

Best fit works on counts, not on documents: all documents of one length go at once into all rows
with the same room left, so a window of 100,000 documents costs little more than one of 2,000.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from plait.tokenizers.errors import ConfigError


def best_fit(
    lengths: np.ndarray, seq_len: int, open_rows: np.ndarray | None = None
) -> tuple[np.ndarray, int]:
    """Best-fit decreasing: the row of each length, and how many rows there are.

    `open_rows` is the room left in rows that are there already, which are numbered first.

    `lengths` falls, and each is 1 .. seq_len. An item goes into the row with the least room that
    suffices, else into a new one; the result depends on the lengths alone.

    >>> rows, n = best_fit(np.array([6, 5, 4, 3, 2]), 10)
    >>> rows.tolist(), n
    ([0, 1, 0, 1, 1], 2)
    """
    sizes, counts = np.unique(-np.asarray(lengths, np.int64), return_counts=True)
    room = _rows_by_room(open_rows)
    open_rooms = sum(1 << left for left in room)
    rows: list[int] = []
    n_rows = 0 if open_rows is None else len(open_rows)
    for size, count in zip((-sizes).tolist(), counts.tolist(), strict=True):
        while count:
            fitting = open_rooms >> size
            if fitting:
                left = size + (fitting & -fitting).bit_length() - 1
                candidates = room[left]
            else:
                left = seq_len
                candidates = list(range(n_rows, n_rows + -(-count // (seq_len // size))))
                n_rows += len(candidates)
            each = left // size
            full = min(len(candidates), count // each)
            moved: list[tuple[list[int], int]] = [(candidates[:full], each)]
            if full < len(candidates) and count > full * each:
                moved.append((candidates[full : full + 1], count - full * each))
            for taken, times in moved:
                if not taken:
                    continue
                for row in taken:
                    rows += [row] * times
                count -= len(taken) * times
                rest = left - times * size
                if rest:
                    room.setdefault(rest, []).extend(taken)
                    open_rooms |= 1 << rest
            if fitting:
                del candidates[: sum(len(taken) for taken, _ in moved)]
                if not candidates:
                    open_rooms &= ~(1 << left)
    return np.array(rows, np.int64), n_rows


def _rows_by_room(room: np.ndarray | None) -> dict[int, list[int]]:
    if room is None or not len(room):
        return {}
    order = np.argsort(room, kind="stable")
    values, starts = np.unique(room[order], return_index=True)
    groups = np.split(order, starts[1:])
    return {v: g.tolist() for v, g in zip(values.tolist(), groups, strict=True) if v}


class Cut(NamedTuple):
    """A piece of a document: start .. stop of its tokens with markers, from 0 for <bos>."""

    start: int
    stop: int
    again: bool
    """Whether the piece begins inside a marked span, whose begin marker is repeated before it."""


class SpanShape(NamedTuple):
    """What cutting needs to know of a span."""

    length: int
    width: int
    marked: bool
    """Whether begin and end markers stand around it."""
    splittable: bool


def cut_document(spans: Sequence[SpanShape], seq_len: int) -> list[Cut]:
    """Pieces of at most `seq_len` tokens, cut at span ends or at multiples of a span's width.

    A span that is splittable but would fit whole into the next row is left whole if this row is
    already half full. Raises ConfigError if something that must stay whole does not fit.
    """
    cuts: list[Cut] = []
    start, again, used, at = 0, False, 1, 1

    def close(stop: int, again_after: bool) -> None:
        nonlocal start, again, used
        cuts.append(Cut(start, stop, again))
        start, again, used = stop, again_after, int(again_after)

    for i, span in enumerate(spans):
        left, mark = span.length, int(span.marked)
        tail = mark + (i == len(spans) - 1)
        begin = mark
        while used + begin + left + tail > seq_len:
            fits_alone = begin + left + tail <= seq_len
            if used > 1 and fits_alone and (not span.splittable or 2 * used >= seq_len):
                close(at, False)
                continue
            take = min(seq_len - used - begin, left - 1) // span.width * span.width
            if not span.splittable or take <= 0:
                if used > 1 and begin == mark and left == span.length:
                    close(at, False)
                    continue
                whole = span.width if span.splittable else span.length
                raise ConfigError(
                    f"seq_len {seq_len} is too short: {whole} tokens stay together in one row; it "
                    f"should be at least {whole + 2 * mark + 2}"
                )
            at += begin + take
            left, begin = left - take, 0
            close(at, bool(mark))
        used += begin + left + tail
        at += begin + left + tail
    cuts.append(Cut(start, at, again))
    return cuts
