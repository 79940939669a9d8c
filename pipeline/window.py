"""A window: the documents of a few shards, as planning and reading need them.

The lengths of the spans are enough to plan; the table of spans is made when a first row is read,
and a block's ids are mapped and checked when a first row needs it.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from plait.kernels.fill_rows import Documents
from plait.pipeline.index import cumulative
from plait.pipeline.shard_reader import ShardReader
from plait.pipeline.stream import Stream
from plait.pipeline.vocabulary import TokenizerInfo
from plait.tokenizers.errors import ShardError


@dataclass(frozen=True, kw_only=True, eq=False)
class Window:
    """Arrays over spans [s] or documents [d] in their order in the window's shards.

    A place in a document counts its tokens with markers: <bos> is 0, the first token after it 1.
    """

    number: int
    tokenizers: tuple[TokenizerInfo, ...]
    readers: tuple[ShardReader, ...]
    starts: tuple[int, ...]
    """Number in the stream of each shard's first document."""
    sizes: np.ndarray
    """Tokens with markers, <bos> and <eos> of each document [d]."""
    span_starts: np.ndarray
    """First span of each document [d + 1]."""
    lengths: np.ndarray
    widths: np.ndarray
    kinds: np.ndarray
    """Tokens, grid width and tokenizer of each span [s]."""

    @classmethod
    def of(cls, stream: Stream, number: int, shards: list[int]) -> "Window":
        """Reads the indexes of these shards."""
        readers = tuple(stream.reader(shard) for shard in shards)
        indexes = [reader.index for reader in readers]
        lengths = np.concatenate([i.lengths for i in indexes]).astype(np.int32)
        kinds = np.concatenate([i.kinds for i in indexes])
        span_starts = cumulative(np.concatenate([i.counts for i in indexes]))
        marks = np.array([2 * (t.modality != "text") for t in stream.tokenizers], np.int64)
        span_ends = cumulative(lengths + marks[kinds])
        return cls(
            number=number,
            tokenizers=stream.tokenizers,
            readers=readers,
            starts=tuple(int(stream.starts[s]) for s in shards),
            sizes=np.diff(span_ends[span_starts]) + 2,
            span_starts=span_starts,
            lengths=lengths,
            widths=np.concatenate([i.widths for i in indexes]),
            kinds=kinds,
        )

    @cached_property
    def documents(self) -> np.ndarray:
        """Numbers of the documents in the stream [d]."""
        counts = [reader.index.documents for reader in self.readers]
        ranges = zip(self.starts, counts, strict=True)
        return np.concatenate([np.arange(start, start + n) for start, n in ranges])

    @cached_property
    def first_blocks(self) -> np.ndarray:
        """Number of each shard's first block among the window's blocks [shards + 1]."""
        return cumulative(np.array([len(reader.index.blocks) for reader in self.readers]))

    @cached_property
    def table(self) -> Documents:
        """The spans as `fill_rows` takes them; no block is open yet."""
        parts = zip(self.readers, self.first_blocks.tolist(), strict=False)
        blocks = [b for reader in self.readers for b in reader.index.blocks]
        return Documents(
            span_starts=self.span_starts,
            spans=np.concatenate([_spans(reader, first) for reader, first in parts]),
            wide=np.array([b.itemsize == 4 for b in blocks], np.uint8),
        )

    @cached_property
    def patched(self) -> bool:
        """Whether some block has patch starts."""
        return any(b.patched for reader in self.readers for b in reader.index.blocks)

    def open(self, block: int) -> None:
        """Map a block of the window and check it; ShardError if it is damaged."""
        shard = int(np.searchsorted(self.first_blocks, block, "right")) - 1
        number = block - int(self.first_blocks[shard])
        reader = self.readers[shard]
        reader.verify_blocks(np.array([number]))
        info = reader.index.blocks[number]
        dtype = np.uint16 if info.itemsize == 2 else np.uint32
        ids = np.frombuffer(reader.buffer, dtype, info.tokens, info.data)
        bits = None
        if info.patched:
            bits = reader.patches(number)
            needed = int(_patch_bits(reader)[reader.index.span_blocks == number].sum())
            if bits.dtype != np.uint8 or bits.ndim != 1 or 8 * bits.size < needed:
                raise ShardError(f"{reader.path}: block {info.name}: patches.npy is too short")
        self.table.open(block, ids, bits)


def _spans(reader: ShardReader, first_block: int) -> np.ndarray:
    """The spans of a shard, int32 [s, 5]; ShardError if one does not lie in its block."""
    index = reader.index
    blocks = index.span_blocks
    ends = cumulative([b.tokens for b in index.blocks])
    places = index.token_starts[:-1] - ends[blocks]
    tokens = np.array([b.tokens for b in index.blocks], np.int64)
    if ((places < 0) | (places + index.lengths > tokens[blocks])).any():
        raise ShardError(f"{reader.path}: damaged index: a span lies outside its block")
    bits = cumulative(_patch_bits(reader))
    firsts = cumulative([b.spans for b in index.blocks])
    spans = np.empty((len(blocks), 5), np.int32)
    spans[:, 0] = places
    spans[:, 1] = index.lengths
    spans[:, 2] = first_block + blocks
    spans[:, 3] = index.kinds
    spans[:, 4] = np.where(_in_patches(reader), bits[:-1] - bits[firsts[blocks]], -1)
    return spans


def _in_patches(reader: ShardReader) -> np.ndarray:
    """Whether a span's block holds its patch starts [s]."""
    index = reader.index
    table = np.array([[n in b.patched for n in index.tokenizers] for b in index.blocks])
    return table.reshape(-1, len(index.tokenizers))[index.span_blocks, index.kinds]


def _patch_bits(reader: ShardReader) -> np.ndarray:
    return np.where(_in_patches(reader), reader.index.lengths, 0)
