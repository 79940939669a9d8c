"""How often each token id occurs, and a hash of each document, in one pass over a block.

Special here: ids of different tokenizers are counted in disjoint ranges of one table, and a hash is
XXH64 of a document's ids, seeded with XXH64 of its spans' (code, length), so equal hashes mean
equal documents. C without the interpreter's lock counts and hashes some 700 M ids a second and
thread; numpy, which is the definition, some 100 M.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property

import numpy as np
import xxhash

from plait.kernels.choose import choose
from plait.kernels.compile_c import library

LANES = 4
"""Tables that take turns, so that an id that repeats need not wait; as in count_tokens.c."""
CHUNK = 1 << 18
"""Tokens that numpy counts at once: few enough to stay in the processor's cache."""


@dataclass(frozen=True, eq=False)
class CodeCounts:
    """Counts of ids for tokenizers of these vocabulary sizes; at most 2^32 tokens together."""

    sizes: np.ndarray
    """Int64 [k]."""
    lanes: np.ndarray = field(init=False, repr=False)
    """Uint32 [LANES, all ids]."""

    def __post_init__(self) -> None:
        shape = LANES, int(self.sizes.sum())
        object.__setattr__(self, "lanes", np.zeros(shape, np.uint32))

    @cached_property
    def starts(self) -> np.ndarray:
        """Int64 [k]: where the ids of each tokenizer begin."""
        return np.cumsum(self.sizes) - self.sizes

    def total(self) -> np.ndarray:
        """Int64 [all ids]."""
        return self.lanes.sum(0, dtype=np.int64)


def count_tokens(
    ids: np.ndarray,
    kinds: np.ndarray,
    shapes: np.ndarray,
    documents: np.ndarray,
    counts: CodeCounts,
) -> np.ndarray:
    """Adds a block's ids to `counts`; returns the hash of each document, uint64 [d].

    `ids` are uint16 or uint32 [n]; `kinds`, int64 [s], the tokenizer of each span; `shapes`, uint64
    [s, 2], what stands for the tokenizer in a hash, and the span's length; `documents`, int64 [d],
    how many spans each has. IndexError if an id lies beyond its vocabulary.
    """
    assert ids.dtype in (np.uint16, np.uint32) and shapes.dtype == np.uint64
    assert int(documents.sum()) == len(kinds) == len(shapes) and int(shapes[:, 1].sum()) == len(ids)
    path = choose("count_tokens", "c" if library("count_tokens") is not None else "reference")
    function = reference if path == "reference" else _compiled
    return function(ids, kinds, shapes, documents, counts)


def reference(ids, kinds, shapes, documents, counts) -> np.ndarray:
    """The definition: one bincount, and one hash a document."""
    _count(ids, kinds, shapes[:, 1].astype(np.int64), counts)
    firsts = np.cumsum(documents) - documents
    ends = np.concatenate([[0], np.cumsum(shapes[:, 1].astype(np.int64))])
    found = np.empty(len(documents), np.uint64)
    for d, (first, spans) in enumerate(zip(firsts.tolist(), documents.tolist(), strict=True)):
        own = ids[ends[first] : ends[first + spans]]
        narrow = not len(own) or int(own.max()) < 1 << 16
        seed = xxhash.xxh64_intdigest(shapes[first : first + spans].tobytes())
        data = own.astype(np.uint16 if narrow else np.uint32).tobytes()
        found[d] = xxhash.xxh64_intdigest(data, seed)
    return found


def _count(ids: np.ndarray, kinds: np.ndarray, lengths: np.ndarray, counts: CodeCounts) -> None:
    ends = np.cumsum(lengths)
    for first in range(0, len(ids), CHUNK):
        part = ids[first : first + CHUNK]
        a, b = np.searchsorted(ends, [first, first + len(part) - 1], side="right")
        bounds = np.clip(np.concatenate([[first], ends[a : b + 1]]), first, first + len(part))
        owners, sizes = kinds[a : b + 1], np.diff(bounds)
        if (part >= np.repeat(counts.sizes[owners], sizes)).any():
            raise IndexError("an id lies beyond its tokenizer's vocabulary")
        shifted = part + np.repeat(counts.starts[owners], sizes)
        counts.lanes[0] += np.bincount(shifted, minlength=counts.lanes.shape[1]).astype(np.uint32)


def _compiled(ids, kinds, shapes, documents, counts) -> np.ndarray:
    hashes = np.empty(len(documents), np.uint64)
    arrays = (ids, kinds, shapes, documents, counts.sizes, counts.starts, counts.lanes, hashes)
    assert all(a.flags.c_contiguous for a in arrays)
    assert all(a.dtype == np.int64 for a in (kinds, documents, counts.sizes))
    at = [a.ctypes.data for a in arrays]
    wide, stride = int(ids.itemsize == 4), counts.lanes.shape[1]
    wrong = _function()(at[0], wide, *at[1:4], len(documents), *at[4:7], stride, at[7])
    if wrong >= 0:
        raise IndexError("an id lies beyond its tokenizer's vocabulary")
    return hashes


@cache
def _function() -> Callable[..., int]:
    compiled = library("count_tokens")
    assert compiled is not None
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    function = compiled.count_tokens
    function.restype = number
    function.argtypes = [
        *(pointer, number, pointer, pointer, pointer, number),
        *(pointer, pointer, pointer, number, pointer),
    ]
    return function
