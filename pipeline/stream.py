"""A stream: a folder or URL of shards with `stream.json`, read through memory maps.

Nothing of the tokens is held in memory, and only the indexes of the shards in use; a document is
found by its number in constant time. The files are not trusted: sizes are checked before mapping,
and each block's checksums when it is first used.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from plait.pipeline.block import Block, BlockMeta
from plait.pipeline.index import FORMAT, cumulative
from plait.pipeline.remote import Retry, is_url
from plait.pipeline.shard_reader import ShardReader
from plait.pipeline.shard_writer import ShardInfo
from plait.pipeline.source import Json
from plait.pipeline.vocabulary import TokenizerInfo
from plait.tokenizers.base import Encoded, Tokenizer, load_tokenizer
from plait.tokenizers.errors import ConfigError, ShardError

if TYPE_CHECKING:
    from plait.pipeline.remote_folder import RemoteFolder

OPEN_SHARDS = 128
MOST_IDS = 1 << 32
"""Of a tokenizer: ids have at most 32 bits."""
MOST_LETTERS = 256
"""Of a tokenizer's name, modality and fingerprint, which reports repeat."""


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
    latents: np.ndarray | None = None
    """Float16 [n, D]; a view of the shard."""

    @property
    def encoded(self) -> Encoded:
        """What the tokenizer's `decode` takes."""
        return Encoded(
            ids=self.ids.astype(np.int64),
            width=self.width,
            patch_starts=self.patch_starts,
            durations=self.durations,
            latents=self.latents,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Document:
    """An ordered list of spans."""

    key: str
    spans: tuple[Span, ...]
    metadata: Mapping[str, Json]
    source: str


class Stream:
    """A folder that `plait shard` made, or a copy of it at a URL of fsspec's.

    Of a URL, whole shards are fetched when they are first used or ahead of it, into the folder
    `cache` (`PLAIT_CACHE`, else the user's cache) of at most `cache_bytes` (`PLAIT_CACHE_BYTES`,
    else 32 GiB), which processes share. `storage_options` go to fsspec. `url` is what was named,
    `path` the folder, or the cache's for this stream.

    Raises ShardError if there is no stream, or one of another format.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        cache: str | Path | None = None,
        cache_bytes: int | None = None,
        storage_options: Mapping[str, object] | None = None,
        retry: Retry | None = None,
    ) -> None:
        self.url = str(path)
        self._options = {
            "cache": cache,
            "cache_bytes": cache_bytes,
            "storage_options": storage_options,
            "retry": retry,
        }
        self._remote = _open_remote(self.url, **self._options) if is_url(path) else None
        self.path = self._remote.path if self._remote else Path(self.url.removeprefix("file://"))
        self.manifest = _read_manifest(self.path / "stream.json", self.url)
        try:
            self.tokenizers = tuple(map(tokenizer_info, self.manifest["tokenizers"]))
            self.shards = tuple(shard_info(s) for s in self.manifest["shards"])
            self.rejected = int(self.manifest["rejected"])
        except (KeyError, TypeError, ValueError) as error:
            raise ShardError(f"{self.url}/stream.json: damaged: {error!r}") from None
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

    def __reduce__(self):
        return _reopen, (self.url, self._options, [shard.name for shard in self.shards])

    def of_shards(self, numbers: Sequence[int]) -> "Stream":
        """These shards alone, as a stream; `manifest` and `rejected` stay those of the whole."""
        part = Stream(self.url, **self._options)
        part.shards = tuple(self.shards[number] for number in numbers)
        part.starts = cumulative(np.array([s.documents for s in part.shards], np.int64))
        return part

    def document(self, i: int) -> Document:
        """Document number i."""
        if not 0 <= i < self.documents:
            raise IndexError(f"document {i} of {self.documents} in {self.url}")
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
            self.prefetch_in_order(shard)
            reader = self.reader(shard)
            yield from (reader.block(b) for b in range(len(reader.index.blocks)))

    def tokenizer(self, name: str) -> Tokenizer:
        """One of the stream's tokenizers, loaded from its copy in the stream."""
        if name not in self._loaded:
            info = self._info(name)
            tokenizer = load_tokenizer(self.tokenizer_folder(name))
            if tokenizer.fingerprint != info.fingerprint:
                raise ShardError(
                    f"{self.url}/tokenizers/{name}: another tokenizer than the one that made the "
                    f"stream (fingerprint {tokenizer.fingerprint}, should be {info.fingerprint})"
                )
            self._loaded[name] = tokenizer
        return self._loaded[name]

    def tokenizer_folder(self, name: str) -> Path:
        """The local folder of one of the stream's tokenizers."""
        info = self._info(name)
        if self._remote is not None:
            return self._remote.tokenizer(name, info.fingerprint)
        return self.path / "tokenizers" / name

    def rejected_file(self) -> Path:
        """The local `rejected.jsonl`; nothing is there if the stream has none."""
        name = "rejected.jsonl"
        return self._remote.file(name) if self._remote is not None else self.path / name

    def prefetch(self, shards: Iterable[int], then: Iterable[int] = ()) -> None:
        """Begin to fetch shards that are needed now, and those needed next, if they lie at a URL.

        ConfigError if the cache has no room for those of now.
        """
        if self._remote is not None:
            self._remote.prefetch([self.shards[s] for s in shards], [self.shards[s] for s in then])

    def prefetch_in_order(self, shard: int) -> None:
        """`prefetch` for who reads this shard now and then those after it."""
        self.prefetch([shard], range(shard + 1, min(shard + 4, len(self.shards))))

    def prefetch_indexes(self) -> None:
        """Begin to fetch all indexes, if they lie at a URL."""
        if self._remote is not None:
            self._remote.prefetch_indexes(self.shards)

    def reader(self, shard: int) -> ShardReader:
        """A shard by number; the ones used last stay open."""
        with self._lock:
            reader = self._readers.get(shard)
            if reader is None:
                reader = ShardReader(self.path, self.shards[shard], self._remote)
                _check_names(reader, self.tokenizers)
                self._readers[shard] = reader
                if len(self._readers) > OPEN_SHARDS:
                    self._readers.popitem(last=False)
            self._readers.move_to_end(shard)
        return reader

    def _repr_html_(self) -> str:
        """What a notebook shows: counts, and the spans of the first documents."""
        from plait.pipeline.inspect.notebook import stream_html

        return stream_html(self)  # pyright: ignore[reportArgumentType]

    def _info(self, name: str) -> TokenizerInfo:
        for info in self.tokenizers:
            if info.name == name:
                return info
        names = [t.name for t in self.tokenizers]
        raise ConfigError(f"{self.url}: no tokenizer {name!r}; there is {names}")

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
        patch_starts = durations = latents = None
        if info.name in meta.patched:
            start, bits = reader.optional_place(number, span, meta.patched, "patches.npy")
            packed = bits[start // 8 : (start + length + 7) // 8]
            patch_starts = np.unpackbits(packed)[start % 8 :][:length].astype(bool)
        if info.name in meta.timed:
            start, values = reader.optional_place(number, span, meta.timed, "durations.npy")
            durations = values[start : start + length]
        if info.name in meta.continuous:
            start, rows = reader.optional_place(number, span, meta.continuous, "latents.npy")
            latents = rows[start : start + length]
        return Span(
            name=info.name,
            modality=info.modality,
            ids=ids[place : place + length],
            width=int(index.widths[span]),
            patch_starts=patch_starts,
            durations=durations,
            latents=latents,
        )


def _open_remote(
    url: str,
    *,
    cache: str | Path | None,
    cache_bytes: int | None,
    storage_options: Mapping[str, object] | None,
    retry: Retry | None,
) -> "RemoteFolder":
    from plait.pipeline.remote_folder import RemoteFolder

    return RemoteFolder(url, cache, cache_bytes, storage_options or {}, retry or Retry())


def _reopen(url: str, options: dict, names: list[str]) -> Stream:
    stream = Stream(url, **options)
    numbers = {shard.name: number for number, shard in enumerate(stream.shards)}
    if list(numbers) == names:
        return stream
    return stream.of_shards([numbers[name] for name in names])


def _read_manifest(path: Path, where: str) -> dict:
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        if (path.parent / "job").is_dir():
            raise ShardError(f"{where}: not finished; repeat its `plait shard` command") from None
        raise ShardError(f"{where}: no stream here (stream.json is missing)") from None
    except ValueError as error:
        raise ShardError(f"{where}/stream.json: damaged: {error}") from None
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise ShardError(f"{where}/stream.json: format {found!r}; this plait reads format {FORMAT}")
    return manifest


def tokenizer_info(entry: dict) -> TokenizerInfo:
    """A tokenizer's entry of `stream.json`; raises TypeError or ValueError."""
    info = TokenizerInfo(**entry)
    for field in ("name", "modality", "fingerprint"):
        word = getattr(info, field)
        if not isinstance(word, str) or not 1 <= len(word) <= MOST_LETTERS:
            raise ValueError(f"a tokenizer's {field} is a word of 1 to {MOST_LETTERS} characters")
    if "/" in info.name or info.name.startswith("."):
        raise ValueError(f"impossible name of a tokenizer {info.name!r}")
    if type(info.vocab_size) is not int or not 1 <= info.vocab_size <= MOST_IDS:
        raise ValueError(f"impossible vocabulary of tokenizer {info.name!r}: {info.vocab_size!r}")
    return info


def shard_info(entry: dict) -> ShardInfo:
    """A shard's entry of `stream.json`; raises KeyError, TypeError or ValueError."""
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
