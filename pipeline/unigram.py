"""How often each id of a run's vocabulary comes in its streams: what a model may know at birth."""

from collections.abc import Iterator, Sequence

import numpy as np

from plait.kernels.count_tokens import CodeCounts, count_tokens
from plait.pipeline.block import Block
from plait.pipeline.spans import DOCUMENT, LENGTH, TOKENIZER
from plait.pipeline.stream import Stream
from plait.pipeline.vocabulary import BOS, EOS, Vocabulary
from plait.tokenizers.errors import ShardError

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
    codes = CodeCounts(np.array([info.vocab_size for info in stream.tokenizers], np.int64))
    spans = np.zeros(len(stream.tokenizers), np.int64)
    for block in _some_blocks(stream):
        spans += _count_block(block, [info.name for info in stream.tokenizers], codes)
    total = codes.total()
    counts[[BOS, EOS]] = stream.documents * int(total.sum()) / max(1, stream.tokens)
    pieces = np.split(total, codes.starts[1:])
    for info, piece, number in zip(stream.tokenizers, pieces, spans, strict=True):
        name = vocabulary.name_of(info.fingerprint)
        start = vocabulary.start(name)
        counts[start : start + info.vocab_size] += piece
        for marker in (vocabulary.begin(name), vocabulary.end(name)):
            if marker is not None:
                counts[marker] += number
    return counts


def _count_block(block: Block, names: Sequence[str], codes: CodeCounts) -> np.ndarray:
    """Adds a block's ids to `codes`; returns how many spans each tokenizer has."""
    numbers = np.array([names.index(name) for name in block.tokenizers], np.int64)
    kinds = numbers[block.spans[:, TOKENIZER]]
    shapes = np.stack([kinds, block.spans[:, LENGTH]], 1).astype(np.uint64)
    try:
        count_tokens(block.ids, kinds, shapes, np.bincount(block.spans[:, DOCUMENT]), codes)
    except IndexError as error:
        raise ShardError(f"a block of {block.source}: {error}; `plait verify`") from None
    return np.bincount(kinds, minlength=len(names))


def _some_blocks(stream: Stream) -> Iterator[Block]:
    step, number = -(-stream.tokens // MOST_TOKENS), 0
    for shard in range(len(stream.shards)):
        reader = stream.reader(shard)
        for block in range(len(reader.index.blocks)):
            if number % max(1, step) == 0:
                yield reader.block(block)
            number += 1
