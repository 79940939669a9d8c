"""The split of a stream into train and validation documents, by a hash of seed and number.

Of each modality at least one document is held out besides the share asked for, if the stream has
two or more: else a small stream's validation may say nothing about a rare modality.
"""

from typing import Literal

import numpy as np

from plait.pipeline.order import hashes
from plait.pipeline.stream import Stream
from plait.tokenizers.errors import ConfigError

Split = Literal["all", "train", "validation"]


class Splitter:
    """Chooses documents; `validation` is the share held out. Raises ConfigError."""

    def __init__(self, stream: Stream, *, seed: int, split: Split, validation: float) -> None:
        if split not in ("all", "train", "validation"):
            raise ConfigError(f"split {split!r}: should be all, train or validation")
        if not 0 <= validation < 1 or (split == "validation" and not validation):
            raise ConfigError(
                f"validation {validation}: the share held out, more than 0 and below 1"
            )
        self._seed = seed
        self._split = split
        self._limit = np.uint64(min(int(validation * 2**64), 2**64 - 1))
        apart = split != "all" and validation > 0
        self._always = _one_of_each(stream, seed) if apart else []

    def chosen(self, numbers: np.ndarray) -> np.ndarray:
        """Which of the stream's documents, given by number, belong to the split."""
        if self._split == "all":
            return np.ones(len(numbers), bool)
        held_out = hashes(numbers, self._seed, 2) < self._limit
        held_out |= np.isin(numbers, self._always)
        return held_out if self._split == "validation" else ~held_out


def _one_of_each(stream: Stream, seed: int) -> list[int]:
    """A document of each modality, out of a shard that has it; reads one index a modality.

    Choosing by the least hash, the same for all modalities, leaves the documents few, and never
    takes the last.
    """
    found = []
    for kind, tokenizer in enumerate(stream.tokenizers):
        having = [n for n, s in enumerate(stream.shards) if s.spans.get(tokenizer.modality)]
        if not having:
            continue
        shard = _first(np.array(having), seed, 6)
        index = stream.reader(shard).index
        owners = np.repeat(np.arange(index.documents), index.counts)
        documents = np.unique(owners[index.kinds == kind])
        if len(documents) > 1 or len(having) > len(documents) > 0:
            found.append(int(stream.starts[shard]) + _first(documents, seed, 7))
    return found


def _first(numbers: np.ndarray, *salt: int) -> int:
    return int(numbers[np.argmin(hashes(numbers, *salt))])
