"""A stream: a folder of shards with `stream.json`, read through memory maps.

Nothing of the tokens is held in memory, and only the indexes of the shards in use; a document is
found by its number in constant time. The files are not trusted: sizes are checked before mapping,
and each block's checksums when it is first used.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
import xxhash

from plait.pipeline.block import Block, BlockMeta
from plait.pipeline.index import FORMAT, cumulative
from plait.pipeline.shard_reader import ShardReader
from plait.pipeline.shard_writer import ShardInfo
from plait.pipeline.source import Json
from plait.pipeline.vocabulary import TokenizerInfo
from plait.tokenizers.base import Encoded, Tokenizer, load_tokenizer
from plait.tokenizers.errors import ConfigError, ShardError

OPEN_SHARDS = 128


@dataclass(frozen=True, kw_only=True, eq=False)
class Span:
    """A run of tokens of one tokenizer in a document."""

    name: str
    """The tokenizer's name in its stream."""
    modality: str
    ids: np.ndarray
    """Ids local to the tokenizer; a view of the shard."""
    width: int
    patch_starts: np.ndarray | None = None
    durations: np.ndarray | None = None

    @property
    def encoded(self) -> Encoded:
        """What the tokenizer's `decode` takes."""
        return Encoded(
            ids=self.ids.astype(np.int64),
            width=self.width,
            patch_starts=self.patch_starts,
            durations=self.durations,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Document:
    """An ordered list of spans."""

    key: str
    spans: tuple[Span, ...]
    metadata: Mapping[str, Json]
    source: str


class Stream:
    """A folder that `plait shard` made.

    Raises ShardError if the folder holds no stream, or one of another format.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest = _read_manifest(self.path / "stream.json")
        try:
            self.tokenizers = tuple(TokenizerInfo(**t) for t in self.manifest["tokenizers"])
            self.shards = tuple(_shard_info(s) for s in self.manifest["shards"])
            self.rejected = int(self.manifest["rejected"])
        except (KeyError, TypeError, ValueError) as error:
            raise ShardError(f"{self.path}/stream.json: damaged: {error!r}") from None
        self.starts = cumulative(np.array([s.documents for s in self.shards], np.int64))
        self._readers: OrderedDict[int, ShardReader] = OrderedDict()
        self._metas: OrderedDict[tuple[int, int], BlockMeta] = OrderedDict()
        self._loaded: dict[str, Tokenizer] = {}
        self._lock = threading.RLock()

    @property
    def documents(self) -> int:
        """How many documents there are."""
        return int(self.starts[-1])

    @cached_property
    def tokens(self) -> int:
        """How many tokens there are, of all modalities, without markers."""
        return sum(sum(s.tokens.values()) for s in self.shards)

    @cached_property
    def bytes(self) -> int:
        """Size of shards and indexes on the disk."""
        return sum(s.bytes + s.index_bytes for s in self.shards)

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits over the shards' checksums and the tokenizers' fingerprints."""
        parts = [t.fingerprint for t in self.tokenizers] + [s.checksum for s in self.shards]
        return xxhash.xxh3_128_hexdigest("\n".join(parts).encode())

    def __len__(self) -> int:
        return self.documents

    def __reduce__(self) -> tuple:
        return type(self), (self.path,)

    def document(self, i: int) -> Document:
        """Document number i."""
        if not 0 <= i < self.documents:
            raise IndexError(f"document {i} of {self.documents} in {self.path}")
        shard = int(np.searchsorted(self.starts, i, "right")) - 1
        reader, local = self.reader(shard), i - int(self.starts[shard])
        index = reader.index
        number = int(np.searchsorted(index.block_documents, local, "right")) - 1
        meta = self._meta(shard, number)
        within = local - int(index.block_documents[number])
        first, last = index.span_starts[local : local + 2].tolist()
        spans = tuple(self._span(reader, number, s, meta) for s in range(first, last))
        return Document(
            key=meta.keys[within],
            spans=spans,
            metadata=meta.metadata[within],
            source=meta.source,
        )

    def blocks(self) -> Iterator[Block]:
        """Whole blocks, in order."""
        for shard in range(len(self.shards)):
            reader = self.reader(shard)
            yield from (reader.block(b) for b in range(len(reader.index.blocks)))

    def tokenizer(self, name: str) -> Tokenizer:
        """One of the stream's tokenizers, loaded from its copy in the stream."""
        if name not in self._loaded:
            info = next((t for t in self.tokenizers if t.name == name), None)
            if info is None:
                names = [t.name for t in self.tokenizers]
                raise ConfigError(f"{self.path}: no tokenizer {name!r}; there is {names}")
            tokenizer = load_tokenizer(self.path / "tokenizers" / name)
            if tokenizer.fingerprint != info.fingerprint:
                raise ShardError(
                    f"{self.path}/tokenizers/{name}: another tokenizer than the one that made the "
                    f"stream (fingerprint {tokenizer.fingerprint}, should be {info.fingerprint})"
                )
            self._loaded[name] = tokenizer
        return self._loaded[name]

    def reader(self, shard: int) -> ShardReader:
        """A shard by number; the ones used last stay open."""
        with self._lock:
            reader = self._readers.get(shard)
            if reader is None:
                reader = ShardReader(self.path, self.shards[shard])
                _check_names(reader, self.tokenizers)
                self._readers[shard] = reader
                if len(self._readers) > OPEN_SHARDS:
                    self._readers.popitem(last=False)
            self._readers.move_to_end(shard)
        return reader

    def _meta(self, shard: int, number: int) -> BlockMeta:
        with self._lock:
            if (shard, number) not in self._metas:
                self._metas[shard, number] = self.reader(shard).meta(number)
                if len(self._metas) > OPEN_SHARDS:
                    self._metas.popitem(last=False)
            self._metas.move_to_end((shard, number))
            return self._metas[shard, number]

    def _span(self, reader: ShardReader, number: int, span: int, meta: BlockMeta) -> Span:
        index = reader.index
        reader.verify_blocks(np.array([number]))
        place, length = int(index.places[span]), int(index.lengths[span])
        ids = reader.ids16 if index.blocks[number].itemsize == 2 else reader.ids32
        info = self.tokenizers[int(index.kinds[span])]
        patch_starts = durations = None
        if info.name in meta.patched:
            start, bits = reader.optional_place(number, span, meta.patched, "patches.npy")
            packed = bits[start // 8 : (start + length + 7) // 8]
            patch_starts = np.unpackbits(packed)[start % 8 :][:length].astype(bool)
        if info.name in meta.timed:
            start, values = reader.optional_place(number, span, meta.timed, "durations.npy")
            durations = values[start : start + length]
        return Span(
            name=info.name,
            modality=info.modality,
            ids=ids[place : place + length],
            width=int(index.widths[span]),
            patch_starts=patch_starts,
            durations=durations,
        )


def _read_manifest(path: Path) -> dict:
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        if (path.parent / "job").is_dir():
            raise ShardError(
                f"{path.parent}: not finished; repeat its `plait shard` command"
            ) from None
        raise ShardError(f"{path.parent}: no stream here (stream.json is missing)") from None
    except ValueError as error:
        raise ShardError(f"{path}: damaged: {error}") from None
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise ShardError(f"{path}: format {found!r}; this plait reads format {FORMAT}")
    return manifest


def _shard_info(entry: dict) -> ShardInfo:
    info = ShardInfo(**{f.name: entry[f.name] for f in fields(ShardInfo)})
    if "/" in info.name or info.name.startswith(".") or min(info.documents, info.bytes) < 1:
        raise ValueError(f"impossible entry of shard {info.name!r}")
    return info


def _check_names(reader: ShardReader, tokenizers: tuple[TokenizerInfo, ...]) -> None:
    if reader.index.tokenizers != tuple(t.name for t in tokenizers):
        raise ShardError(
            f"{reader.path}: made by tokenizers {reader.index.tokenizers}, but stream.json has "
            f"{tuple(t.name for t in tokenizers)}"
        )
