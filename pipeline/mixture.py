"""Which stream each row comes from: shares that are never off by one row or more.

Tijdeman's rule for the chairman assignment problem (Discrete Mathematics 32, 1980): among streams
that are owed enough, take the one that would be overdue first. After every row, each of k streams
is within 1 - 1/(2k - 2) rows of its share. The sequence has a period, so it is made once.
"""

from collections.abc import Sequence
from fractions import Fraction
from math import lcm

import numpy as np

from plait.tokenizers.errors import ConfigError

LONGEST_PERIOD = 1 << 16


def shares(weights: Sequence[float]) -> list[int]:
    """Weights as whole numbers of rows in a period of at most 65,536 rows.

    >>> shares([0.7, 0.2, 0.1])
    [7, 2, 1]
    """
    if not weights or any(not np.isfinite(w) or w <= 0 for w in weights):
        raise ConfigError(f"weights {list(weights)}: each should be a number above 0")
    exact = [Fraction(w).limit_denominator(10**6) for w in weights]
    total = sum(exact)
    parts = [w / total for w in exact]
    period = lcm(*(p.denominator for p in parts))
    if period > LONGEST_PERIOD:
        parts = [Fraction(_rounded(parts)[i], LONGEST_PERIOD) for i in range(len(parts))]
        period = LONGEST_PERIOD
    counts = [int(p * period) for p in parts]
    if min(counts) == 0:
        raise ConfigError(f"weights {list(weights)}: one is less than 1/{LONGEST_PERIOD} of all")
    return counts


def sequence(counts: Sequence[int], limit: int | None = None) -> np.ndarray:
    """One period or its first `limit` rows, uint16: the stream of each row.

    Stream s comes `counts[s]` times in the period, which may be never.

    >>> sequence([2, 1]).tolist()
    [0, 1, 0]
    """
    period, k = sum(counts), len(counts)
    # All in units of 1 / (period * (2k - 2)), so that nothing is rounded.
    scale = max(1, 2 * k - 2)
    owed = [0] * k
    order = np.empty(period if limit is None else min(period, limit), np.uint16)
    for n in range(len(order)):
        best, slack, times = -1, 0, 1
        for s, count in enumerate(counts):
            owed[s] += scale * count
            if owed[s] < period:
                continue
            rest = (scale - 1) * period - owed[s]
            if best < 0 or rest * times < slack * count:
                best, slack, times = s, rest, count
        order[n] = best
        owed[best] -= scale * period
    return order


class Mixture:
    """For row i: its stream, and which row of that stream it is; `limit` rows may be asked for."""

    def __init__(self, counts: Sequence[int], limit: int | None = None) -> None:
        self.order = sequence(counts, limit)
        self.counts = np.bincount(self.order, minlength=len(counts)).tolist()
        self._places = [np.flatnonzero(self.order == s) for s in range(len(counts))]
        self._before = np.empty(len(self.order), np.int64)
        for places in self._places:
            self._before[places] = np.arange(len(places))

    def locate(self, row: int) -> tuple[int, int]:
        """(stream, row of that stream)."""
        period, at = divmod(row, len(self.order))
        stream = int(self.order[at])
        return stream, period * self.counts[stream] + int(self._before[at])

    def taken(self, rows: int) -> list[int]:
        """How many of the first `rows` rows are of each stream."""
        period, at = divmod(rows, len(self.order))
        return [
            period * count + int(np.searchsorted(places, at))
            for count, places in zip(self.counts, self._places, strict=True)
        ]

    def row_of(self, stream: int, row: int) -> int:
        """The row that is row `row` of a stream: what `locate` undoes."""
        period, at = divmod(row, self.counts[stream])
        return period * len(self.order) + int(self._places[stream][at])


def _rounded(parts: Sequence[Fraction]) -> list[int]:
    """Whole numbers near the parts of LONGEST_PERIOD, which add up to it (largest remainder)."""
    exact = [p * LONGEST_PERIOD for p in parts]
    counts = [int(x) for x in exact]
    by_rest = sorted(range(len(parts)), key=lambda i: counts[i] - exact[i])
    for i in by_rest[: LONGEST_PERIOD - sum(counts)]:
        counts[i] += 1
    return counts
