"""Writes one shard: blocks into a tar, and the index beside it, under their names only when whole.

Each file is written under a name of this writer alone, flushed to the disk and renamed, so a
killed writer leaves nothing that looks like a shard.
"""

import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import xxhash

from plait.pipeline.block import (
    BLOCK_DOCUMENTS,
    BLOCK_TOKENS,
    Block,
    EncodedDocument,
    encode_block,
)
from plait.pipeline.index import BlockInfo, block_info, cumulative, encode_index, make_index
from plait.pipeline.make_block import Run, block_of_runs, make_block, narrow
from plait.pipeline.spans import TOKENIZER
from plait.pipeline.tar import END, header, padding
from plait.tokenizers.errors import ConfigError

TEMPORARY = ".tmp"


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One shard, as `stream.json` lists it."""

    name: str
    documents: int
    tokens: dict[str, int]
    """Tokens by modality."""
    spans: dict[str, int]
    """Spans by modality."""
    bytes: int
    checksum: str
    """xxh3_128 (hex) of the tar."""
    index_bytes: int
    index_checksum: str


class ShardWriter:
    """Takes documents, holds at most a block of them, and gives the shard's entry at the end."""

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        source: str,
        tokenizers: Sequence[str],
        modalities: Sequence[str],
    ) -> None:
        self._folder = folder
        self._name = name
        self._source = source
        self._tokenizers = tuple(tokenizers)
        self._modalities = tuple(modalities)
        self._pending: list[EncodedDocument] = []
        self._runs: list[Run] = []
        self._pending_documents = 0
        self._pending_tokens = 0
        self._blocks: list[BlockInfo] = []
        self._spans: list[np.ndarray] = []
        self._head: Block | None = None
        self._file: BinaryIO | None = None
        self._digest = xxhash.xxh3_128()
        self._offset = 0

    def add(self, document: EncodedDocument) -> None:
        """Take one document with at least one token."""
        tokens = 0
        for _, encoded in document.spans:
            tokens += len(encoded.ids)
        if self._pending_documents and (
            self._pending_tokens + tokens > BLOCK_TOKENS
            or self._pending_documents == BLOCK_DOCUMENTS
        ):
            self._write_block()
        if self._runs:
            self._pending = [d for run in self._runs for d in run.documents()]
            self._runs = []
        self._pending.append(document)
        self._pending_documents += 1
        self._pending_tokens += tokens

    def add_many(
        self,
        ids: np.ndarray,
        lengths: Sequence[int] | np.ndarray,
        keys: Sequence[str],
        *,
        tokenizer: int = 0,
    ) -> None:
        """Take documents of one span each that are tokenized already, as `add` would one by one.

        `ids` holds the local ids of all of them back to back; document i has `lengths[i]`, at
        least one, and the key `keys[i]`. Much faster than `add`, and the shard is the same.
        """
        lengths = np.asarray(lengths, np.int64)
        ids = _check_run(ids, lengths, keys, 0 <= tokenizer < len(self._tokenizers))
        ends = cumulative(lengths)
        first, count = 0, len(lengths)
        while first < count:
            room = ends[first] + BLOCK_TOKENS - self._pending_tokens
            last = min(
                int(np.searchsorted(ends, room, "right")) - 1,
                first + BLOCK_DOCUMENTS - self._pending_documents,
                count,
            )
            if last <= first and self._pending_documents:
                self._write_block()
                continue
            last = max(last, first + 1)
            a, b = ends[[first, last]].tolist()
            self._take(
                Run(
                    ids=ids[a:b].copy(),
                    lengths=lengths[first:last].copy(),
                    keys=tuple(keys[first:last]),
                    tokenizer=tokenizer,
                )
            )
            first = last

    def _take(self, run: Run) -> None:
        """Keep documents that fit into the block."""
        if self._pending:
            self._pending += run.documents()
        else:
            self._runs.append(run)
        self._pending_documents += len(run.lengths)
        self._pending_tokens += len(run.ids)

    def finish(self) -> ShardInfo | None:
        """Put the shard and its index in place; None, and no file, if there was no document."""
        self._write_block()
        if self._file is None or self._head is None:
            return None
        self._write(END)
        commit(self._file, self._folder / f"{self._name}.tar")
        index = make_index(self._name, self._offset, self._blocks, self._spans, self._head)
        index_data = encode_index(index)
        write_file(self._folder / f"{self._name}.idx", index_data)
        kinds = np.concatenate([s[:, TOKENIZER] for s in self._spans])
        tokens = np.bincount(kinds, index.lengths, len(self._tokenizers)).astype(np.int64)
        spans = np.bincount(kinds, minlength=len(self._tokenizers))
        names = self._modalities
        return ShardInfo(
            name=self._name,
            documents=index.documents,
            tokens={n: int(t) for n, t in zip(names, tokens, strict=True) if t},
            spans={n: int(s) for n, s in zip(names, spans, strict=True) if s},
            bytes=self._offset,
            checksum=self._digest.hexdigest(),
            index_bytes=len(index_data),
            index_checksum=xxhash.xxh3_128_hexdigest(index_data),
        )

    def abort(self) -> None:
        """Remove what was written."""
        if self._file is not None:
            discard(self._file)

    def _write_block(self) -> None:
        if not self._pending_documents:
            return
        self._file = self._file or open_temporary(self._folder / f"{self._name}.tar")
        block = self._make_block()
        name = f"{self._name.rpartition('-')[2]}-{len(self._blocks):04d}"
        members, offsets = encode_block(block), {}
        for suffix, data in members.items():
            self._write(header(f"{name}.{suffix}", len(data)))
            offsets[suffix] = self._offset
            self._write(data)
            self._write(padding(len(data)))
        self._blocks.append(block_info(name, block, members, offsets))
        self._spans.append(block.spans)
        self._head = self._head or block
        self._pending, self._runs = [], []
        self._pending_documents = self._pending_tokens = 0

    def _make_block(self) -> Block:
        names = {
            "source": self._source,
            "tokenizers": self._tokenizers,
            "modalities": self._modalities,
        }
        if self._runs:
            return block_of_runs(self._runs, **names)
        return make_block(self._pending, **names)

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        self._file.write(data)
        self._digest.update(data)
        self._offset += len(data)


def _check_run(
    ids: np.ndarray, lengths: np.ndarray, keys: Sequence[str], known: bool
) -> np.ndarray:
    """Ids in two or four bytes; ConfigError if they are not what `add_many` takes."""
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or lengths.ndim != 1:
        raise ConfigError(f"add_many: ids are {ids.dtype} {ids.shape}, should be integers [n]")
    if len(lengths) != len(keys) or int(lengths.sum()) != len(ids):
        raise ConfigError(
            f"add_many: {len(keys)} keys, {len(lengths)} lengths of {int(lengths.sum())} tokens "
            f"together, {len(ids)} ids: these should agree"
        )
    if not known or (len(lengths) and int(lengths.min()) < 1):
        raise ConfigError("add_many: a document is empty, or its tokenizer is not of this shard")
    return narrow(ids)


def open_temporary(path: Path) -> BinaryIO:
    """A file of this writer alone beside `path`, for `commit`; machines may share the folder."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}{TEMPORARY}").open("xb")


def commit(file: BinaryIO, path: Path) -> None:
    """Flush to the disk, close, and rename to `path`."""
    file.flush()
    os.fsync(file.fileno())
    file.close()
    Path(file.name).replace(path)
    sync_folder(path.parent)


def discard(file: BinaryIO) -> None:
    """Close and remove a temporary file, also one that a full disk does not let be flushed."""
    with suppress(OSError):
        file.close()
    with suppress(OSError):
        Path(file.name).unlink(missing_ok=True)


def write_file(path: Path, data: bytes) -> None:
    """Write a whole file so that it appears under its name only when whole."""
    file = open_temporary(path)
    try:
        file.write(data)
        commit(file, path)
    except BaseException:
        discard(file)
        raise


def sync_folder(folder: Path) -> None:
    """Make a rename in this folder last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
