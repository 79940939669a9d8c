"""The threshold that gives a wanted mean patch: searched on bytes that the model has not learned.

A model is surer of what it has seen, so a threshold found there gives too many patches elsewhere.
The more bytes, the nearer; a corpus unlike it needs a search of its own (`plait fit`).
"""

import heapq
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Protocol

import numpy as np

from plait.kernels.mark_patches import State, mark_entropy
from plait.tokenizers.base import Progress
from plait.tokenizers.byte_entropy import UNIT
from plait.tokenizers.byte_options import FitOptions

PIECE = 1 << 14
"""Bytes that are counted, or kept for the threshold, together."""
EVERY = 10
"""Which piece is kept, up to a bound."""
TOLERANCE = 0.05
"""A mean patch that misses the wanted one by a greater share is told."""


class EntropyStream(Protocol):
    """Entropies of documents that come in pieces."""

    def push(self, data: np.ndarray, firsts: np.ndarray) -> np.ndarray:
        """Float32 [n], in bits and multiples of UNIT, of bytes uint8 [n] from those before them."""
        ...


class EntropySource(Protocol):
    """What foretells the next byte; the same entropies however a text is cut."""

    def stream(self) -> EntropyStream:
        """A stream that stands before a document."""
        ...

    def bits(self, data: np.ndarray, firsts: np.ndarray) -> np.ndarray | None:
        """-log2 of the probability of each byte; None where only entropies are known."""
        ...

    def files(self) -> dict[str, bytes]:
        """The model's files by name."""
        ...


def part_for_threshold(
    samples: Iterable[bytes], kept: list[bytes], most_bytes: int
) -> Iterator[bytes]:
    """The samples in pieces, but for every tenth, which goes to `kept`; a random choice of these
    where they are more than `most_bytes`.

    Where there is no tenth piece, the last one is both learned and kept.
    """
    rng, waiting = random.Random(0), []
    size = number = 0
    piece = b""
    for sample in samples:
        for a in range(0, len(sample), PIECE):
            piece, number = sample[a : a + PIECE], number + 1
            if number % EVERY:
                yield piece
                continue
            heapq.heappush(waiting, (rng.random(), number, piece))
            size += len(piece)
            while size > most_bytes and len(waiting) > 1:
                *_, let_go = heapq.heappop(waiting)
                size -= len(let_go)
                yield let_go
    kept += [x for _, _, x in sorted(waiting, key=lambda entry: entry[1])]
    if not kept:
        kept.append(piece)


def with_limit(
    options: FitOptions, source: EntropySource, kept: list[bytes], progress: Progress
) -> FitOptions:
    """The options with the threshold, or for rule `monotonic` the rise, that is not given."""
    if not options.must_search:
        return options
    data = np.frombuffer(b"".join(kept), np.uint8)
    firsts = np.cumsum([0, *map(len, kept[:-1])], dtype=np.int64)
    entropies = source.stream().push(data, firsts)

    def mean_patch(limit: int) -> float:
        at = replace(options, **{options.searched: limit * UNIT})
        starts = mark_entropy(entropies, firsts, *at.limits, options.max_patch, State())
        return len(data) / max(int(starts.sum()), 1)

    limit = _nearest(mean_patch, options.mean_patch, -round(8 / UNIT), round(8 / UNIT))
    found = mean_patch(limit)
    if abs(found - options.mean_patch) > TOLERANCE * options.mean_patch:
        text = f"note: no {options.searched} gives patches of {options.mean_patch:g} bytes"
        progress(f"{text}: the nearest gives {found:.2f} on {len(data):,} bytes", 1.0)
    return replace(options, **{options.searched: limit * UNIT})


def _nearest(rising: Callable[[int], float], wanted: float, low: int, high: int) -> int:
    """The whole number whose value is nearest to the wanted one."""
    first, last = low, high
    while low < high:
        middle = (low + high) // 2
        if rising(middle) < wanted:
            low = middle + 1
        else:
            high = middle
    around = range(max(low - 1, first), min(low, last) + 1)
    return min(around, key=lambda limit: abs(rising(limit) - wanted))
