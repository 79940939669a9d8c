"""The index beside a shard: where each document's spans lie, from lengths alone.

A small tar of arrays (`.idx`), made while the shard is written and rebuildable from it. Lengths
are kept in the smallest integers that hold them; an array whose values are all the same is only
named with its value. So a span of text costs one or two bytes. Offsets are sums of lengths.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xxhash

from plait.pipeline.block import Block, decode_block, json_bytes
from plait.pipeline.spans import DOCUMENT, LENGTH, TOKENIZER, WIDTH
from plait.pipeline.tar import Member, npy_bytes, npy_parse, npy_view, pack, scan, smallest
from plait.tokenizers.errors import ShardError

FORMAT = 1
ARRAYS = ("counts", "lengths", "widths", "kinds")


@dataclass(frozen=True, kw_only=True)
class BlockInfo:
    """One block of a shard."""

    name: str
    documents: int
    spans: int
    tokens: int
    itemsize: int
    """Bytes of a token id: 2 or 4."""
    data: int
    """Byte of the shard at which the token ids begin."""
    members: dict[str, tuple[int, int, str]]
    """Offset, size and xxh3_64 (hex) of each member by suffix."""
    patched: tuple[str, ...] = ()
    """The tokenizers whose spans have their patch starts in `patches.npy`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardIndex:
    """All that planning and reading need to know of a shard."""

    shard: str
    tar_bytes: int
    tokenizers: tuple[str, ...]
    modalities: tuple[str, ...]
    blocks: tuple[BlockInfo, ...]
    counts: np.ndarray
    """Spans of each document [d]."""
    lengths: np.ndarray
    """Tokens of each span [s]."""
    widths: np.ndarray
    """Tokens in a grid row of each span [s]."""
    kinds: np.ndarray
    """Tokenizer of each span [s]."""

    @property
    def documents(self) -> int:
        """How many documents the shard holds."""
        return len(self.counts)

    @cached_property
    def span_starts(self) -> np.ndarray:
        """Int64 [d + 1]: the first span of each document."""
        return cumulative(self.counts)

    @cached_property
    def token_starts(self) -> np.ndarray:
        """Int64 [s + 1]: the first token of each span, counted over the shard."""
        return cumulative(self.lengths)

    @cached_property
    def block_documents(self) -> np.ndarray:
        """Int64 [b + 1]: the first document of each block."""
        return cumulative(np.array([b.documents for b in self.blocks]))

    @cached_property
    def span_blocks(self) -> np.ndarray:
        """Int32 [s]: the block of each span."""
        return np.repeat(
            np.arange(len(self.blocks), dtype=np.int32), [b.spans for b in self.blocks]
        )

    @cached_property
    def places(self) -> np.ndarray:
        """Int64 [s]: each span's first token, counted in the shard as one array of its itemsize."""
        block_starts = cumulative(np.array([b.tokens for b in self.blocks]))[:-1]
        data = np.array([b.data // b.itemsize for b in self.blocks], np.int64)
        return self.token_starts[:-1] + (data - block_starts)[self.span_blocks]


def cumulative(counts: np.ndarray | Sequence[int]) -> np.ndarray:
    """Int64 [n + 1]: 0 and the running sums."""
    sums = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=sums[1:])
    return sums


def block_info(
    name: str, block: Block, members: dict[str, bytes], offsets: dict[str, int]
) -> BlockInfo:
    """What the index keeps of a block that was just written."""
    tokens = members["tokens.npy"]
    return BlockInfo(
        name=name,
        documents=len(block.keys),
        spans=len(block.spans),
        tokens=len(block.ids),
        itemsize=block.ids.itemsize,
        data=offsets["tokens.npy"] + len(tokens) - block.ids.nbytes,
        members={k: (offsets[k], len(v), xxhash.xxh3_64_hexdigest(v)) for k, v in members.items()},
        patched=block.patched,
    )


def make_index(
    shard: str,
    tar_bytes: int,
    blocks: Sequence[BlockInfo],
    spans: Sequence[np.ndarray],
    head: Block,
) -> ShardIndex:
    """The index of a shard from its blocks' span tables."""
    table = np.concatenate(spans)
    counts = [
        np.bincount(s[:, DOCUMENT], minlength=b.documents)
        for s, b in zip(spans, blocks, strict=True)
    ]
    return ShardIndex(
        shard=shard,
        tar_bytes=tar_bytes,
        tokenizers=head.tokenizers,
        modalities=head.modalities,
        blocks=tuple(blocks),
        counts=smallest(np.concatenate(counts)),
        lengths=smallest(table[:, LENGTH]),
        widths=smallest(table[:, WIDTH]),
        kinds=smallest(table[:, TOKENIZER]),
    )


def encode_index(index: ShardIndex) -> bytes:
    """The bytes of the `.idx` file."""
    constants: dict[str, int] = {}
    head = {
        "format": FORMAT,
        "shard": index.shard,
        "tar_bytes": index.tar_bytes,
        "tokenizers": index.tokenizers,
        "modalities": index.modalities,
        "constants": constants,
        "blocks": [vars(b) for b in index.blocks],
    }
    members = {}
    for name in ARRAYS:
        array = getattr(index, name)
        if name == "lengths" or (array != array[0]).any():
            members[f"{name}.npy"] = npy_bytes(array)
        else:
            constants[name] = int(array[0])
    return pack({"index.json": json_bytes(head), **members})


def decode_index(data: bytes, where: str) -> ShardIndex:
    """An index from its file; ShardError if it is damaged or contradicts itself."""
    view = memoryview(data)
    members = {m.name: view[m.offset : m.offset + m.size] for m in scan(view, where)}
    try:
        head = json.loads(bytes(members["index.json"]))
        if head["format"] != FORMAT:
            raise ShardError(f"{where}: format {head['format']!r}; this plait reads {FORMAT}")
        arrays = {
            n: npy_view(members[f"{n}.npy"], f"{where}:{n}.npy")
            for n in ARRAYS
            if f"{n}.npy" in members
        }
        arrays |= _constant_arrays(head["constants"], len(arrays["lengths"]))
        index = ShardIndex(
            shard=str(head["shard"]),
            tar_bytes=int(head["tar_bytes"]),
            tokenizers=tuple(head["tokenizers"]),
            modalities=tuple(head["modalities"]),
            blocks=tuple(_block_info(b) for b in head["blocks"]),
            **arrays,
        )
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, ShardError):
            raise
        raise ShardError(f"{where}: damaged index: {type(error).__name__} {error}") from None
    _check(index, where)
    return index


def rebuild_index(tar: memoryview, shard: str, where: str) -> ShardIndex:
    """The index of a shard from the tar alone."""
    groups: dict[str, dict[str, Member]] = {}
    for member in scan(tar, where):
        name, _, suffix = member.name.partition(".")
        groups.setdefault(name, {})[suffix] = member
    blocks, spans, first = [], [], None
    for name, found in groups.items():
        parts = {s: tar[m.offset : m.offset + m.size] for s, m in found.items()}
        block = decode_block(parts, f"{where}:{name}")
        start = npy_parse(parts["tokens.npy"], where)[1]
        blocks.append(
            BlockInfo(
                name=name,
                documents=len(block.keys),
                spans=len(block.spans),
                tokens=len(block.ids),
                itemsize=block.ids.itemsize,
                data=found["tokens.npy"].offset + start,
                members={
                    s: (m.offset, m.size, xxhash.xxh3_64_hexdigest(parts[s]))
                    for s, m in found.items()
                },
                patched=block.patched,
            )
        )
        spans.append(block.spans)
        first = first or block
    if first is None:
        raise ShardError(f"{where}: a shard without blocks; make it again with `plait shard`")
    return make_index(shard, len(tar), blocks, spans, first)


def _constant_arrays(constants: dict[str, int], spans: int) -> dict[str, np.ndarray]:
    """The arrays of an index whose values are all the same."""
    arrays = {}
    for name, value in constants.items():
        least = 0 if name == "kinds" else 1
        if name not in ARRAYS or type(value) is not int or not least <= value < 1 << 32:
            raise ValueError(f"a constant {name} of {value}")
        size = spans // value if name == "counts" else spans
        arrays[name] = smallest(np.full(size, value, np.uint32))
    return arrays


def _block_info(entry: dict) -> BlockInfo:
    numbers = {k: int(entry[k]) for k in ("documents", "spans", "tokens", "itemsize", "data")}
    members = {str(k): (int(o), int(s), str(x)) for k, (o, s, x) in entry["members"].items()}
    patched = tuple(str(name) for name in entry["patched"])
    return BlockInfo(name=str(entry["name"]), members=members, patched=patched, **numbers)


def _check(index: ShardIndex, where: str) -> None:
    """Every place that the index names lies inside the shard, and the counts agree."""
    arrays = (index.counts, index.lengths, index.widths, index.kinds)
    if any(a.ndim != 1 or a.dtype.kind != "u" for a in arrays):
        raise ShardError(f"{where}: damaged index: an array is not a list of counts")
    spans = len(index.lengths)
    same = len(index.widths) == len(index.kinds) == spans == int(index.counts.sum(dtype=np.int64))
    sums = [sum(getattr(b, n) for b in index.blocks) for n in ("documents", "spans", "tokens")]
    if not same or sums != [len(index.counts), spans, int(index.lengths.sum(dtype=np.int64))]:
        raise ShardError(f"{where}: damaged index: its counts contradict each other")
    if spans and (int(index.kinds.max()) >= len(index.tokenizers) or not index.widths.all()):
        raise ShardError(f"{where}: damaged index: a span of an unknown tokenizer or without width")
    for b in index.blocks:
        offset, size, _ = b.members.get("tokens.npy", (0, 0, ""))
        inside = offset <= b.data and b.data + b.tokens * b.itemsize == offset + size
        inside &= all(
            o >= 0 and s >= 0 and o + s <= index.tar_bytes for o, s, _ in b.members.values()
        )
        if (
            not inside
            or b.itemsize not in (2, 4)
            or b.data % b.itemsize
            or min(b.documents, b.spans) < 0
        ):
            raise ShardError(f"{where}: damaged index: block {b.name} does not lie in its shard")
