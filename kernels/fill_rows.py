"""Packed rows from pieces of documents: tokens lifted into the run's vocabulary, markers and masks.

Special here: a document is known by its spans' lengths and places alone, so every mask is written
from run lengths and no token is looked at.

A place in a document counts its tokens with markers: <bos> is 0, the first token after it 1.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING

import numpy as np

from plait.kernels.choose import choose
from plait.kernels.compile_c import library

if TYPE_CHECKING:
    from torch import Tensor

BOS, EOS = 1, 2
PLACE, LENGTH, BLOCK, KIND, BIT = range(5)
"""Columns of `Documents.spans`: first token in its block, tokens, block, tokenizer, and first bit
of the block's patch starts, -1 without."""


@dataclass(frozen=True, eq=False)
class Documents:
    """Documents as spans, and the blocks of token ids that were opened so far."""

    span_starts: np.ndarray
    """First span of each document [d + 1]."""
    spans: np.ndarray
    """Int32 [s, 5], see above."""
    wide: np.ndarray
    """Uint8 [b]: whether a block's ids have 4 bytes."""
    blocks: dict[int, tuple[np.ndarray, np.ndarray | None]] = field(default_factory=dict)
    """Token ids and packed patch starts of the open blocks."""

    def open(self, block: int, ids: np.ndarray, bits: np.ndarray | None) -> None:
        """Give a block, in which every span was found to lie."""
        self.blocks[block] = ids, bits
        if bits is not None:
            self.bit_addresses[block] = bits.ctypes.data
        self.addresses[block] = ids.ctypes.data

    @cached_property
    def addresses(self) -> np.ndarray:
        """Where the ids of each block lie; 0 while it is closed [b]."""
        return np.zeros(len(self.wide), np.uintp)

    @cached_property
    def bit_addresses(self) -> np.ndarray:
        """Where the patch starts of each block lie, or 0 [b]."""
        return np.zeros(len(self.wide), np.uintp)

    @cached_property
    def address(self) -> ctypes.Array:
        """The arrays as fill_rows.c takes them."""
        arrays = (self.span_starts, self.spans, self.addresses, self.bit_addresses, self.wide)
        return _pointers(*arrays)


@dataclass(frozen=True, kw_only=True, eq=False)
class Pieces:
    """Rows as pieces [p], all int64; padding is a piece of no document."""

    documents: np.ndarray
    """Which of the documents; -1 for padding."""
    starts: np.ndarray
    stops: np.ndarray
    """Places in the document; padding is 0 .. its length."""
    again: np.ndarray
    """0 or 1: whether a begin marker is repeated first."""
    rows: np.ndarray
    """First piece of each row [r + 1]."""

    @cached_property
    def address(self) -> ctypes.Array:
        """The arrays as fill_rows.c takes them."""
        return _pointers(self.documents, self.starts, self.stops, self.again, self.rows)


@dataclass(frozen=True, eq=False)
class Kinds:
    """For each tokenizer of the documents, its ids in the run's vocabulary; int64 but modality."""

    start: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    """Ids of the markers; -1 for text, which has none."""
    modality: np.ndarray
    """Uint8."""

    @cached_property
    def address(self) -> ctypes.Array:
        """The arrays as fill_rows.c takes them."""
        return _pointers(self.start, self.begin, self.end, self.modality)


@dataclass(kw_only=True, eq=False)
class Filled:
    """Rows [B, T], see pipeline's Batch; without the masks where only tokens are wanted."""

    tokens: "Tensor"
    modality: "Tensor | None" = None
    document: "Tensor | None" = None
    position: "Tensor | None" = None
    loss_mask: "Tensor | None" = None
    patch_starts: "Tensor | None" = None


def fill_rows(
    documents: Documents,
    pieces: Pieces,
    kinds: Kinds,
    out: Filled,
    rows: Sequence[int],
    to: Sequence[int],
) -> tuple[list[int], bool]:
    """Write rows `rows` of the pieces to rows `to` of `out`; every element of them is written.

    Returns blocks that must be opened before another call, and whether there were patch starts.
    """
    path = choose("fill_rows", "c" if library("fill_rows") is not None else "reference")
    return (reference if path == "reference" else _compiled)(
        documents, pieces, kinds, out, rows, to
    )


def _compiled(documents, pieces, kinds, out, rows, to) -> tuple[list[int], bool]:
    tensors = (out.tokens, out.modality, out.document, out.position, out.loss_mask)
    found = _function()(
        *(documents.address, pieces.address, kinds.address, out.tokens.shape[1], len(rows)),
        *(*_numbers(rows), *_numbers(to)),
        *[None if t is None else t.data_ptr() for t in (*tensors, out.patch_starts)],
    )
    assert found != -3, "the pieces of a row are longer than the row"
    return ([] if found < 0 else [found]), found == -2


def _numbers(numbers: Sequence[int]) -> tuple[int, ctypes.Array | None]:
    """Numbers as fill_rows.c takes them: the first of a run, or a list."""
    if isinstance(numbers, range) and numbers.step == 1:
        return numbers.start, None
    return 0, (ctypes.c_int64 * len(numbers))(*numbers)


@cache
def _function():
    compiled = library("fill_rows")
    assert compiled is not None
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    function = compiled.fill_rows
    function.restype = number
    function.argtypes = [*[pointer] * 3, *[number] * 3, pointer, number, *[pointer] * 7]
    return function


def _pointers(*arrays: np.ndarray) -> ctypes.Array:
    assert all(a.flags.c_contiguous for a in arrays)
    return (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))


def reference(documents, pieces, kinds, out, rows, to) -> tuple[list[int], bool]:
    """The definition: a piece, a span at a time."""
    chosen = np.concatenate([np.arange(*pieces.rows[r : r + 2]) for r in rows])
    used = pieces.documents[chosen]
    spans = [slice(*documents.span_starts[d : d + 2]) for d in used[used >= 0].tolist()]
    needed = {b for s in spans for b in documents.spans[s, BLOCK].tolist()}
    closed = sorted(needed - documents.blocks.keys())
    if closed:
        return closed, False
    patched = False
    for r, b in zip(rows, to, strict=True):
        first, last = pieces.rows[r : r + 2].tolist()
        at = 0
        for number, q in enumerate(range(first, last)):
            start, stop = int(pieces.starts[q]), int(pieces.stops[q])
            document, again = int(pieces.documents[q]), int(pieces.again[q])
            row = _Piece(out, b, at, stop - start + again)
            row.fill(number if document >= 0 else -1, start)
            if document >= 0:
                patched |= _fill_piece(documents, kinds, row, document, start, stop, again)
            at += row.size
    return [], patched


class _Piece:
    """The part of a row that belongs to one piece, as arrays [size]."""

    def __init__(self, out: Filled, row: int, at: int, size: int) -> None:
        def part(tensor: "Tensor | None") -> np.ndarray:
            return _NOTHING if tensor is None else tensor.numpy()[row, at : at + size]

        self.size = size
        self.tokens, self.modality = part(out.tokens), part(out.modality)
        self.document, self.position = part(out.document), part(out.position)
        self.loss_mask, self.patch_starts = part(out.loss_mask), part(out.patch_starts)

    def fill(self, number: int, start: int) -> None:
        """All but tokens; modality and patch starts as if there were only markers."""
        self.tokens[:] = self.modality[:] = self.patch_starts[:] = 0
        self.document[:] = number
        self.loss_mask[:] = number >= 0
        self.loss_mask[-1:] = False
        self.position[:] = 0 if number < 0 else np.arange(start, start + len(self.position))


_NOTHING = np.zeros(0, np.int64)


def _fill_piece(
    documents: Documents,
    kinds: Kinds,
    row: _Piece,
    document: int,
    start: int,
    stop: int,
    again: int,
) -> bool:
    place, shift, patched = 1, again - start, False

    def marker(at: int, value: int) -> None:
        if start <= at < stop:
            row.tokens[at + shift] = value

    marker(0, BOS)
    for span in documents.spans[slice(*documents.span_starts[document : document + 2])].tolist():
        kind, marked = span[KIND], int(kinds.begin[span[KIND]] >= 0)
        begin = place + marked
        end = begin + span[LENGTH]
        if again and begin <= start < end:
            row.tokens[0] = kinds.begin[kind]
        if marked:
            marker(place, int(kinds.begin[kind]))
            marker(end, int(kinds.end[kind]))
        a, b = max(begin, start), min(end, stop)
        if b > a:
            here, skip, count = slice(a + shift, b + shift), a - begin, b - a
            ids, bits = documents.blocks[span[BLOCK]]
            row.tokens[here] = ids[span[PLACE] + skip :][:count]
            row.tokens[here] += kinds.start[kind]
            row.modality[here] = kinds.modality[kind]
            if len(row.patch_starts) and span[BIT] >= 0 and bits is not None:
                first = span[BIT] + skip
                packed = bits[first // 8 : (first + count + 7) // 8]
                row.patch_starts[here] = np.unpackbits(packed)[first % 8 :][:count]
                patched = True
        place = end + marked
    marker(place, EOS)
    return patched
