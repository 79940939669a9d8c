"""Reads one shard: maps the tar, and checks each block's checksums when it is first used."""

import mmap
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import xxhash

from plait.pipeline.block import Block, BlockMeta, decode_block, read_meta
from plait.pipeline.index import ShardIndex, decode_index
from plait.pipeline.shard_writer import ShardInfo
from plait.pipeline.tar import npy_view
from plait.tokenizers.errors import ShardError

if TYPE_CHECKING:
    from plait.pipeline.remote_folder import RemoteFolder


class ShardReader:
    """A mapped shard and its index."""

    def __init__(self, folder: Path, info: ShardInfo, remote: "RemoteFolder | None" = None) -> None:
        self.info = info
        self._remote = remote
        self.path = folder / f"{info.name}.tar"
        self._verified = np.zeros(len(self.index.blocks), bool)

    @cached_property
    def index(self) -> ShardIndex:
        """The index, checked against `stream.json`."""
        path = self.path.with_suffix(".idx")
        data = self.index_data()
        if xxhash.xxh3_128_hexdigest(data) != self.info.index_checksum:
            raise ShardError(f"{path}: damaged (checksum differs from stream.json)")
        index = decode_index(data, str(path))
        if (index.documents, index.tar_bytes) != (self.info.documents, self.info.bytes):
            raise ShardError(f"{path}: does not belong to this stream (its counts differ)")
        return index

    @cached_property
    def buffer(self) -> memoryview:
        """The whole shard, mapped; the map has the file's lock, if it has one, as a duplicate."""
        with self._open(".tar") as file:
            buffer = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        if self._remote is not None:
            self._remote.mapped(self.info, self.release)
        return buffer

    @cached_property
    def ids16(self) -> np.ndarray:
        """The shard as one uint16 array; `index.places` counts in it where ids have 2 bytes."""
        return np.frombuffer(self.buffer, np.uint16)

    @cached_property
    def ids32(self) -> np.ndarray:
        """The shard as one uint32 array; `index.places` counts in it where ids have 4 bytes."""
        return np.frombuffer(self.buffer, np.uint32)

    def index_data(self) -> bytes:
        """The bytes of the index, unchecked."""
        with self._open(".idx") as file:
            return file.read()

    def release(self) -> None:
        """Give up the map; it is made again when needed. Views of it stay good."""
        for name in ("buffer", "ids16", "ids32"):
            self.__dict__.pop(name, None)

    def verify_blocks(self, blocks: np.ndarray) -> None:
        """Check the token ids of these blocks once; ShardError names a damaged block."""
        if self._verified[blocks].all():
            return
        for number in np.unique(blocks[~self._verified[blocks]]).tolist():
            for suffix in self.index.blocks[number].members:
                if suffix != "meta.json":
                    self.member(number, suffix)
            self._verified[number] = True

    def member(self, number: int, suffix: str) -> memoryview:
        """A member of a block, after its checksum was compared."""
        info = self.index.blocks[number]
        offset, size, checksum = info.members[suffix]
        data = self.buffer[offset : offset + size]
        if xxhash.xxh3_64_hexdigest(data) != checksum:
            todo = "fetch the shard again, or delete it with its .idx and repeat `plait shard`"
            if self._remote is not None:
                self._remote.discard(self.info)
                todo = "it arrived whole, so it was removed from the cache: try again"
            place = f"{self.path}: block {info.name}: {suffix}"
            raise ShardError(f"{place} is damaged (its checksum differs); {todo}")
        return data

    def patches(self, number: int) -> np.ndarray:
        """The packed patch starts of a block."""
        name = self.index.blocks[number].name
        offset, size, _ = self.index.blocks[number].members["patches.npy"]
        return npy_view(self.buffer[offset : offset + size], f"{self.path}: {name}.patches.npy")

    def optional_place(
        self, number: int, span: int, names: tuple[str, ...], suffix: str
    ) -> tuple[int, np.ndarray]:
        """Where a span's values begin in an array that holds spans of some tokenizers only."""
        index = self.index
        first = int(np.searchsorted(index.span_blocks, number))
        chosen = np.array([name in names for name in index.tokenizers])[index.kinds[first:span]]
        start = int(index.lengths[first:span][chosen].sum(dtype=np.int64))
        return start, npy_view(self.member(number, suffix), f"{self.path}: {suffix}")

    def block(self, number: int) -> Block:
        """A whole block."""
        info = self.index.blocks[number]
        members = {suffix: self.member(number, suffix) for suffix in info.members}
        block = decode_block(members, f"{self.path}: {info.name}")
        if (len(block.keys), len(block.spans), len(block.ids)) != (
            *(info.documents, info.spans, info.tokens),
        ):
            raise ShardError(
                f"{self.path}: block {info.name} is not the one that its index describes"
            )
        return block

    def meta(self, number: int) -> BlockMeta:
        """Keys and metadata of a block."""
        info = self.index.blocks[number]
        where = f"{self.path}: {info.name}"
        return read_meta(self.member(number, "meta.json"), where, info.documents)

    def _open(self, suffix: str) -> BinaryIO:
        if self._remote is not None:
            return self._remote.open(self.info, suffix)
        size = self.info.bytes if suffix == ".tar" else self.info.index_bytes
        return _open(self.path.with_suffix(suffix), size)


def _open(path: Path, size: int) -> BinaryIO:
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        raise ShardError(f"{path}: missing; `stream.json` lists it: copy it here again") from None
    if found != size:
        kind = "truncated" if found < size else "too long"
        raise ShardError(
            f"{path}: {kind}: {found} bytes, should be {size}; copy it again, or delete the stream "
            "and repeat `plait shard`"
        )
    return path.open("rb")
