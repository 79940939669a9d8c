"""A random choice of a stream of samples that fits in memory, the same for the same seed."""

import heapq
import random
from collections.abc import Callable, Iterable
from typing import TypeVar

from plait.tokenizers.base import Progress, ignore

T = TypeVar("T")


def choose(
    samples: Iterable[T],
    size: Callable[[T], int],
    limit: int,
    *,
    seed: int = 0,
    progress: Progress = ignore,
) -> list[T]:
    """Samples of a total size of at most `limit`, in their order: all, or a random choice.

    Each sample draws a number; those of the largest numbers are let go as soon as the limit is
    passed, so never more than the limit and one sample is held. At least one is kept.
    """
    rng = random.Random(seed)
    kept: list[tuple[float, int, T]] = []
    total = 0
    for number, sample in enumerate(samples):
        heapq.heappush(kept, (-rng.random(), number, sample))
        total += size(sample)
        while total > limit and len(kept) > 1:
            total -= size(heapq.heappop(kept)[2])
        if number % 100 == 0:
            progress(f"reading: {number + 1:,} samples", min(total / limit, 1.0))
    return [sample for _, _, sample in sorted(kept, key=lambda entry: entry[1])]
