"""The mixture's weights over a run: constant, or stretch by stretch.

Each stretch begins its own sequence of streams, so shares are exact to one row at each of its
prefixes, and each stream goes on with the row that it had reached: nothing comes twice or never.
A resumed run may change what is still to come; the past is kept in the loader's state.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

from plait.pipeline.mixture import LONGEST_PERIOD, Mixture, shares
from plait.tokenizers.errors import ConfigError

Weights = Sequence[float] | None
"""Shares of rows, one a stream; None: each stream as often as it has rows."""
Stretches = Sequence[tuple[int, Weights]]
"""(first row, weights), the first at row 0, rising."""


class Schedule:
    """For row i: its stream, and which row of that stream it is. Raises ConfigError."""

    def __init__(self, stretches: Stretches, rows: Sequence[int]) -> None:
        self.stretches = [(row, None if w is None else list(w)) for row, w in stretches]
        self._rows = list(rows)
        check_stretches(self.stretches, len(rows))
        self._firsts = [row for row, _ in self.stretches]
        self._mixtures: list[Mixture] = []
        self._bases = [[0] * len(rows)]
        lengths = [b - a for a, b in pairwise(self._firsts)]
        for (_, weights), length in zip(self.stretches, [*lengths, None], strict=True):
            mixture = Mixture(self._counts(weights), length)
            self._mixtures.append(mixture)
            if length is not None:
                steps = zip(self._bases[-1], mixture.taken(length), strict=True)
                self._bases.append([base + taken for base, taken in steps])

    def locate(self, row: int) -> tuple[int, int]:
        """(stream, row of that stream)."""
        at = bisect_right(self._firsts, row) - 1
        stream, number = self._mixtures[at].locate(row - self._firsts[at])
        return stream, self._bases[at][stream] + number

    def taken(self, row: int) -> list[int]:
        """How many rows of each stream come before row `row`."""
        at = bisect_right(self._firsts, row) - 1
        taken = self._mixtures[at].taken(row - self._firsts[at])
        return [base + n for base, n in zip(self._bases[at], taken, strict=True)]

    def row_of(self, stream: int, number: int) -> int | None:
        """The row that is row `number` of a stream; None if that never comes."""
        at = bisect_right([base[stream] for base in self._bases], number) - 1
        mixture = self._mixtures[at]
        if not mixture.counts[stream]:
            return None
        return self._firsts[at] + mixture.row_of(stream, number - self._bases[at][stream])

    def weights_at(self, row: int) -> Weights:
        """The weights at a row."""
        return self.stretches[bisect_right(self._firsts, row) - 1][1]

    def after(self, past: Stretches, row: int) -> "Schedule":
        """This schedule from `row` on, and another one before it."""
        kept = [(first, w) for first, w in past if first < row]
        now = self.weights_at(row)
        same = bool(kept) and kept[-1][1] == now
        kept += [] if same else [(row, now)]
        kept += [(first, w) for first, w in self.stretches if first > row]
        return Schedule(kept, self._rows)

    def _counts(self, weights: Weights) -> list[int]:
        """Rows of each stream in a period."""
        if weights is None:
            few = sum(self._rows) <= 4 * LONGEST_PERIOD
            return self._rows if few else shares(self._rows)
        some = iter(shares([w for w in weights if w]))
        return [next(some) if w else 0 for w in weights]


def check_stretches(stretches: Stretches, streams: int) -> None:
    """Raises ConfigError if they are no schedule for so many streams."""
    firsts = [row for row, _ in stretches]
    if firsts[:1] != [0] or any(b <= a for a, b in pairwise(firsts)):
        raise ConfigError(
            f"weights begin at rows {firsts}: the first should be 0, and each after the last"
        )
    for _, weights in stretches:
        if weights is not None and len(weights) != streams:
            raise ConfigError(f"{len(weights)} weights for {streams} streams")
    known = [w for _, w in stretches if w is not None]
    unused = [s for s in range(streams) if not any(w[s] for w in known)]
    if len(known) == len(stretches) and unused:
        raise ConfigError(f"weights {known}: stream {unused[0]} has none anywhere; leave it out")
