"""Checks one shard against its index and `stream.json`, to the last byte, and names the block.

Every byte is covered: members by their checksums, headers and padding by writing them again, the
index by making it again from the blocks, and all of it by the checksums in `stream.json`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import xxhash

from plait.pipeline.block import LENGTH, TOKENIZER, Block
from plait.pipeline.index import ShardIndex, encode_index, make_index
from plait.pipeline.shard_reader import ShardReader
from plait.pipeline.stream import Stream
from plait.pipeline.tar import END, header, padding
from plait.tokenizers.errors import ShardError


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something wrong in a stream."""

    shard: str | None
    block: str | None
    problem: str


def check_shard(stream: Stream, number: int) -> tuple[list[Problem], np.ndarray]:
    """What is wrong with a shard, and a hash of source and key of each document that was read."""
    name = stream.shards[number].name
    keys: list[int] = []
    problems: list[Problem] = []
    try:
        found = _check(stream, stream.reader(number), keys)
        problems += [Problem(shard=name, block=block, problem=text) for block, text in found]
    except ShardError as error:
        problems.append(Problem(shard=name, block=None, problem=str(error)))
    return problems, np.array(keys, np.uint64)


def frame(index: ShardIndex) -> Iterator[tuple[int, bytes, str]]:
    """What a tar has between its members' data: (byte, the bytes, name of the block they are of).

    It follows from the index alone.
    """
    members = [
        (offset, size, f"{block.name}.{suffix}", block.name)
        for block in index.blocks
        for suffix, (offset, size, _) in block.members.items()
    ]
    start, before = 0, b""
    for _, size, name, block in sorted(members):
        between = before + header(name, size)
        yield start, between, block
        start, before = start + len(between) + size, padding(size)
    yield start, before + END, index.blocks[-1].name if index.blocks else ""


def _check(
    stream: Stream, reader: ShardReader, keys: list[int]
) -> Iterator[tuple[str | None, str]]:
    """(Block or none, problem); what is said of a block makes saying it of the whole needless."""
    index, tar = reader.index, reader.buffer
    blocks: list[Block] = []
    damaged = False
    for at, info in enumerate(index.blocks):
        try:
            block = reader.block(at)
        except ShardError as error:
            damaged = True
            yield info.name, str(error)
            continue
        blocks.append(block)
        source = xxhash.xxh3_64_intdigest(block.source.encode(errors="replace"))
        keys += [
            xxhash.xxh3_64_intdigest(key.encode(errors="replace"), source) for key in block.keys
        ]
        if wrong := _wrong_ids(block, stream):
            damaged = True
            yield info.name, wrong
    for start, expected, name in frame(index):
        if tar[start : start + len(expected)] != expected:
            damaged = True
            yield name, f"a tar header or padding near byte {start} is damaged"
    if damaged:
        return
    if xxhash.xxh3_128_hexdigest(tar) != reader.info.checksum:
        yield None, "another shard than the one in stream.json (checksum of the tar differs)"
    if xxhash.xxh3_128_hexdigest(_index_of(reader, blocks)) != reader.info.index_checksum:
        yield None, "its index is not the one that its tar gives"
    yield from _wrong_counts(stream, reader, blocks)


def _index_of(reader: ShardReader, blocks: list[Block]) -> bytes:
    """The index that these blocks give; where their members lie was seen in `_check`."""
    infos = [
        replace(
            info,
            documents=len(block.keys),
            spans=len(block.spans),
            tokens=len(block.ids),
            itemsize=block.ids.itemsize,
            patched=block.patched,
        )
        for info, block in zip(reader.index.blocks, blocks, strict=True)
    ]
    spans = [block.spans for block in blocks]
    index = make_index(reader.info.name, len(reader.buffer), infos, spans, blocks[0])
    return encode_index(index)


def _wrong_counts(
    stream: Stream, reader: ShardReader, blocks: list[Block]
) -> Iterator[tuple[None, str]]:
    kinds = np.concatenate([block.spans[:, TOKENIZER] for block in blocks])
    lengths = np.concatenate([block.spans[:, LENGTH] for block in blocks])
    names = [info.modality for info in stream.tokenizers]
    for what, weights in (("tokens", lengths), ("spans", np.ones(len(lengths)))):
        counts = np.bincount(kinds, weights, len(names)).astype(np.int64)
        found = {name: int(n) for name, n in zip(names, counts, strict=True) if n}
        if found != (listed := getattr(reader.info, what)):
            yield None, f"holds {found} {what}, stream.json says {listed}"


def _wrong_ids(block: Block, stream: Stream) -> str | None:
    """What is wrong if a span has an id outside its tokenizer."""
    starts = np.concatenate([[0], np.cumsum(block.spans[:-1, LENGTH])])
    top = np.maximum.reduceat(block.ids, starts)
    sizes = np.array([t.vocab_size for t in stream.tokenizers])[block.spans[:, TOKENIZER]]
    for span in np.flatnonzero(top >= sizes)[:1].tolist():
        key = block.keys[block.spans[span, 0]]
        name = stream.tokenizers[block.spans[span, TOKENIZER]].name
        return (
            f"id {top[span]} of document {key!r}: tokenizer {name} has ids up to {sizes[span] - 1}"
        )
    return None
