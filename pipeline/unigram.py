"""How often each id of a run's vocabulary comes in its streams: what a model may know at birth."""

from collections.abc import Iterator, Sequence

import numpy as np

from plait.pipeline.block import Block
from plait.pipeline.inspect.statistics import count_blocks
from plait.pipeline.stream import Stream
from plait.pipeline.vocabulary import BOS, EOS, Vocabulary

MOST_TOKENS = 50_000_000
"""A larger stream is counted by evenly spaced blocks."""


def unigram_counts(
    streams: Sequence[Stream], vocabulary: Vocabulary, weights: Sequence[float] = ()
) -> np.ndarray:
    """Float64 [vocabulary.size], markers included; `weights` are the streams' shares of rows."""
    total = np.zeros(vocabulary.size)
    for number, stream in enumerate(streams):
        counts = _count(stream, vocabulary)
        total += counts * (weights[number] / counts.sum()) if weights else counts
    return total


def _count(stream: Stream, vocabulary: Vocabulary) -> np.ndarray:
    counts = np.zeros(vocabulary.size)
    found = count_blocks(_some_blocks(stream), stream.tokenizers)
    counted = sum(statistics.tokens for statistics in found.values())
    counts[[BOS, EOS]] = stream.documents * counted / max(1, stream.tokens)
    for info in stream.tokenizers:
        name, statistics = vocabulary.name_of(info.fingerprint), found[info.modality]
        start = vocabulary.start(name)
        counts[start : start + info.vocab_size] += statistics.code_counts
        for marker in (vocabulary.begin(name), vocabulary.end(name)):
            if marker is not None:
                counts[marker] += statistics.spans
    return counts


def _some_blocks(stream: Stream) -> Iterator[Block]:
    step, number = -(-stream.tokens // MOST_TOKENS), 0
    for shard in range(len(stream.shards)):
        reader = stream.reader(shard)
        for block in range(len(reader.index.blocks)):
            if number % max(1, step) == 0:
                yield reader.block(block)
            number += 1
