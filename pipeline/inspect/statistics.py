"""Exact figures of a modality: tokens, spans, documents, lengths and code use.

Lengths are kept as a histogram, so memory follows the vocabularies and the number of different
lengths, never the stream. count.py counts.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass(kw_only=True)
class ModalityStatistics:
    """Counts of one tokenizer's tokens, which is one modality's in a stream."""

    vocab_size: int
    spans: int = 0
    documents: int = 0
    code_counts: np.ndarray = field(repr=False)
    """Int64 [vocab_size]: how often each local id occurs."""
    lengths: Counter[int] = field(default_factory=Counter, repr=False)
    """Spans by their length in tokens."""

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return int(self.code_counts.sum())

    @property
    def codes_used(self) -> int:
        """Number of different ids that occur."""
        return int((self.code_counts > 0).sum())

    @property
    def entropy_nats(self) -> float:
        """Unigram entropy: the loss of a model that knows only how often each id occurs."""
        used = self.code_counts[self.code_counts > 0]
        share = used / used.sum() if used.size else used
        return float(-(share * np.log(share)).sum()) + 0.0

    @property
    def perplexity(self) -> float:
        """The number of equally likely ids that has this entropy."""
        return float(np.exp(self.entropy_nats))

    def most_used(self, most: int = 10) -> list[tuple[int, int]]:
        """(id, times) of the ids that occur most, falling; equal ones by their id."""
        order = np.argsort(-self.code_counts, kind="stable")[: min(most, self.codes_used)]
        return list(zip(order.tolist(), self.code_counts[order].tolist(), strict=True))

    def least_used(self, most: int = 10) -> list[tuple[int, int]]:
        """(id, times) of the ids that occur least but do, rising; equal ones by their id."""
        used = np.flatnonzero(self.code_counts)
        order = used[np.argsort(self.code_counts[used], kind="stable")[:most]]
        return list(zip(order.tolist(), self.code_counts[order].tolist(), strict=True))

    def length(self, q: float) -> float:
        """The q-quantile of the lengths of spans, between neighbours as in `np.quantile`."""
        values, counts = self.length_histogram()
        if not values.size:
            return 0.0
        position = q * (self.spans - 1)
        last = np.cumsum(counts) - 1
        below, above = (values[np.searchsorted(last, f(position))] for f in (np.floor, np.ceil))
        return float(below + (above - below) * (position - np.floor(position)))

    def length_histogram(self) -> tuple[np.ndarray, np.ndarray]:
        """Different lengths, rising, and how many spans have each."""
        pairs = sorted(self.lengths.items())
        return np.array([v for v, _ in pairs], np.int64), np.array([c for _, c in pairs], np.int64)

    def use_curve(self, points: int = 200) -> tuple[np.ndarray, np.ndarray]:
        """Percent of the vocabulary, and how often the code there is used, the most used first."""
        counts = np.sort(self.code_counts)[::-1]
        at = np.unique(np.linspace(0, len(counts) - 1, points).astype(int))
        return 100 * (at + 1) / len(counts), counts[at]


def count_rejected(folder: Path, most: int = 20) -> dict[str, int]:
    """Rejected samples by reason, the most frequent first; rarer ones as `other reasons`.

    What stands behind a reason's colon is about the sample and is left out.
    """
    path = folder / "rejected.jsonl"
    reasons: Counter[str] = Counter()
    if path.is_file():
        with path.open(encoding="utf-8") as lines:
            reasons.update(
                str(json.loads(line)["reason"]).partition(":")[0] for line in lines if line.strip()
            )
    top = dict(reasons.most_common(most))
    rest = reasons.total() - sum(top.values())
    return {**top, "other reasons": rest} if rest else top
