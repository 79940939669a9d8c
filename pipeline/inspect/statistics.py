"""Exact counts of a stream: tokens, spans, documents, lengths and code use, by modality.

One pass over the blocks. Ids of different tokenizers are moved into disjoint ranges and counted
together by one bincount; lengths are kept as a histogram, so memory follows the vocabularies and
the number of different lengths, never the stream.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from plait.pipeline.block import Block
from plait.pipeline.spans import DOCUMENT, LENGTH, TOKENIZER
from plait.pipeline.vocabulary import TokenizerInfo
from plait.tokenizers.errors import ShardError

CHUNK = 1 << 18
"""Tokens counted at once: few enough to stay in the processor's cache."""


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


def count_blocks(
    blocks: Iterable[Block],
    infos: Sequence[TokenizerInfo],
    progress: Callable[[int], None] = lambda tokens: None,
) -> dict[str, ModalityStatistics]:
    """Statistics by modality; `progress` is told the tokens of each block."""
    starts = np.cumsum([0, *(info.vocab_size for info in infos)])
    counts = np.zeros(starts[-1], np.int64)
    found = [
        ModalityStatistics(vocab_size=i.vocab_size, code_counts=counts[s : s + i.vocab_size])
        for i, s in zip(infos, starts, strict=False)
    ]
    number = {info.name: i for i, info in enumerate(infos)}
    for block in blocks:
        owner = np.array([number[name] for name in block.tokenizers])[block.spans[:, TOKENIZER]]
        _count_ids(block, owner, infos, counts)
        _count_spans(block.spans, owner, found)
        progress(len(block.ids))
    return {info.modality: statistics for info, statistics in zip(infos, found, strict=True)}


def _count_ids(
    block: Block, owner: np.ndarray, infos: Sequence[TokenizerInfo], counts: np.ndarray
) -> None:
    """Add a block to `counts`; `owner` is the tokenizer of each span."""
    sizes = np.array([info.vocab_size for info in infos])
    starts = np.cumsum(sizes) - sizes
    ends = np.cumsum(block.spans[:, LENGTH], dtype=np.int64)
    for first in range(0, len(block.ids), CHUNK):
        ids = block.ids[first : first + CHUNK]
        a, b = np.searchsorted(ends, [first, first + len(ids) - 1], side="right")
        bounds = np.clip(np.concatenate([[first], ends[a : b + 1]]), first, first + len(ids))
        owners, lengths = owner[a : b + 1], np.diff(bounds)
        if (ids >= np.repeat(sizes[owners], lengths)).any():
            raise ShardError("a block holds ids beyond its tokenizer's vocabulary; `plait verify`")
        shifted = ids + np.repeat(starts[owners], lengths)
        counts += np.bincount(shifted, minlength=len(counts))


def _count_spans(spans: np.ndarray, owner: np.ndarray, found: list[ModalityStatistics]) -> None:
    for number, statistics in enumerate(found):
        mine = spans[owner == number]
        statistics.spans += len(mine)
        statistics.documents += len(np.unique(mine[:, DOCUMENT]))
        lengths, counts = np.unique(mine[:, LENGTH], return_counts=True)
        statistics.lengths.update(dict(zip(lengths.tolist(), counts.tolist(), strict=True)))


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
