"""One pass over a stream that counts everything: ids, spans, transitions, documents' hashes.

Threads take runs of blocks; what they count are whole numbers, so any number of threads gives the
same. Lengths and transitions follow from the indexes, ids go through one C pass, and of each
document two hashes stay, 16 bytes. Two slow CPUs count some 400 M tokens of text a second.
"""

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import xxhash

from plait.kernels.count_tokens import CodeCounts, count_tokens
from plait.pipeline.index import ShardIndex, cumulative
from plait.pipeline.inspect.statistics import ModalityStatistics
from plait.pipeline.order import mix
from plait.pipeline.shard_reader import ShardReader
from plait.pipeline.stream import Stream
from plait.pipeline.tar import npy_view
from plait.pipeline.vocabulary import TokenizerInfo
from plait.tokenizers.errors import ShardError

TASK_TOKENS = 1 << 22
"""Tokens that a thread takes at once, about."""
FLUSH_TOKENS = 1 << 31
TOKENS, SPANS, DOCUMENTS = range(3)
"""Columns of `StreamCounts.by_shard`."""


@dataclass(kw_only=True, eq=False)
class StreamCounts:
    """What a stream holds. Tokenizers [k] are in the stream's order, shards [n] and documents too.

    Hashes of keys are good within this process alone.
    """

    modalities: dict[str, ModalityStatistics]
    by_shard: np.ndarray
    """Int64 [n, k, 3]: tokens, spans, documents."""
    transitions: np.ndarray
    """Int64 [k + 1, k + 1]: spans of tokenizer j after one of i; i = k is the start of a document,
    j = k its end."""
    sizes: Counter[int]
    """Documents by their tokens with markers, as in rows."""
    frames: np.ndarray
    """Int64 [k]: rows of the grid, as a speech codec's frames are."""
    patches: np.ndarray
    """Int64 [k]: patches of bytes that begin."""
    durations: np.ndarray
    """Int64 [k]: frames of de-duplicated units."""
    contents: np.ndarray = field(repr=False)
    """Uint64 [d]: a hash of tokenizers, lengths and ids."""
    keys: np.ndarray = field(repr=False)
    """Uint64 [d]: a hash of source and key."""


def count_stream(
    stream: Stream, progress: Callable[[int], None] = lambda tokens: None, workers: int = 0
) -> StreamCounts:
    """All counts of a stream; `progress` is told of tokens as they are counted.

    `workers` is the number of threads, 0 one for each CPU. ShardError if something is damaged.
    """
    workers = workers or len(os.sched_getaffinity(0))
    hashes = np.zeros((2, stream.documents), np.uint64)
    tasks = _Tasks(stream, progress)
    tallies = [_Tally(stream, hashes) for _ in range(workers)]
    with ThreadPoolExecutor(workers) as pool:
        try:
            for done in [pool.submit(tally.work, tasks) for tally in tallies]:
                done.result()
        finally:
            tasks.stopped = True
    first, *others = tallies
    for other in others:
        first.add(other)
    return first.counts()


@dataclass(frozen=True, kw_only=True)
class _Task:
    """Some blocks of a shard; with the first of them goes what the index alone says."""

    shard: int
    reader: ShardReader
    blocks: range


class _Tasks:
    """Hands out tasks to threads, and takes note of what is done."""

    def __init__(self, stream: Stream, progress: Callable[[int], None]) -> None:
        self.stopped = False
        self._left = _tasks(stream)
        self._lock = threading.Lock()
        self._progress = progress

    def take(self) -> _Task | None:
        """The next one; None if there is none, or something went wrong."""
        with self._lock:
            return None if self.stopped else next(self._left, None)

    def tell(self, tokens: int) -> None:
        """So many more are counted."""
        with self._lock:
            self._progress(tokens)


def _tasks(stream: Stream) -> Iterator[_Task]:
    for shard in range(len(stream.shards)):
        stream.prefetch_in_order(shard)
        reader = stream.reader(shard)
        ends = cumulative([b.tokens for b in reader.index.blocks])
        first, count = 0, len(reader.index.blocks)
        while first < count:
            last = int(np.searchsorted(ends, ends[first] + TASK_TOKENS, "right")) - 1
            last = max(last, first + 1)
            yield _Task(shard=shard, reader=reader, blocks=range(first, last))
            first = last


_SUMS = ("code_counts", "by_shard", "transitions", "frames", "patches", "durations")


class _Tally:
    """What one thread has counted."""

    def __init__(self, stream: Stream, hashes: np.ndarray) -> None:
        self._stream = stream
        self._infos = stream.tokenizers
        self._names = [info.name for info in self._infos]
        self._hashes = hashes
        k = len(self._infos)
        vocab_sizes = np.array([info.vocab_size for info in self._infos], np.int64)
        # What stands for a tokenizer in a hash, so that documents of two streams can be compared.
        texts = [f"{info.modality} {info.fingerprint}".encode() for info in self._infos]
        self._codes = np.array([xxhash.xxh64_intdigest(text) for text in texts], np.uint64)
        self._marks = np.array([2 * (info.modality != "text") for info in self._infos], np.int64)
        self._codes_used = CodeCounts(vocab_sizes)
        self._unflushed = 0
        self.code_counts = np.zeros(int(vocab_sizes.sum()), np.int64)
        self.by_shard = np.zeros((len(stream.shards), k, 3), np.int64)
        self.transitions = np.zeros((k + 1, k + 1), np.int64)
        self.frames, self.patches, self.durations = np.zeros((3, k), np.int64)
        self.sizes: Counter[int] = Counter()
        self.lengths: list[Counter[int]] = [Counter() for _ in range(k)]

    def work(self, tasks: _Tasks) -> None:
        """Count until nothing is left; an error stops the others too."""
        try:
            while task := tasks.take():
                if task.blocks.start == 0:
                    self._count_index(task.shard, task.reader.index)
                for number in task.blocks:
                    self._count_block(task.shard, task.reader, number)
                    tasks.tell(task.reader.index.blocks[number].tokens)
        except BaseException:
            tasks.stopped = True
            raise
        self._flush()

    def add(self, other: "_Tally") -> None:
        """What another thread has counted."""
        for name in _SUMS:
            getattr(self, name).__iadd__(getattr(other, name))
        self.sizes.update(other.sizes)
        for own, more in zip(self.lengths, other.lengths, strict=True):
            own.update(more)

    def counts(self) -> StreamCounts:
        """All of it."""
        pieces = np.split(self.code_counts, np.cumsum(self._codes_used.sizes)[:-1])
        totals = self.by_shard.sum(0)
        found = {
            info.modality: ModalityStatistics(
                vocab_size=info.vocab_size,
                spans=int(total[SPANS]),
                documents=int(total[DOCUMENTS]),
                code_counts=counts,
                lengths=lengths,
            )
            for info, total, counts, lengths in zip(
                self._infos, totals, pieces, self.lengths, strict=True
            )
        }
        return StreamCounts(
            modalities=found,
            by_shard=self.by_shard,
            transitions=self.transitions,
            sizes=self.sizes,
            frames=self.frames,
            patches=self.patches,
            durations=self.durations,
            contents=self._hashes[0],
            keys=self._hashes[1],
        )

    def _count_index(self, shard: int, index: ShardIndex) -> None:
        """Lengths, spans, documents and transitions of a shard."""
        k = len(self._infos)
        kinds, lengths = index.kinds.astype(np.int64), index.lengths.astype(np.int64)
        own = self.by_shard[shard]
        own[:, TOKENS] = np.bincount(kinds, lengths, k)
        own[:, SPANS] = np.bincount(kinds, minlength=k)
        self.frames += np.bincount(kinds, lengths // index.widths, k).astype(np.int64)
        owners = np.repeat(np.arange(index.documents), index.counts)
        for kind in range(k):
            mine = kinds == kind
            own[kind, DOCUMENTS] = np.count_nonzero(np.diff(owners[mine], prepend=-1))
            _add_values(self.lengths[kind], lengths[mine])
        firsts, ends = index.span_starts[:-1], index.span_starts[1:]
        before = np.roll(kinds, 1)
        before[firsts] = k
        pairs = np.concatenate([before * (k + 1) + kinds, kinds[ends - 1] * (k + 1) + k])
        self.transitions += np.bincount(pairs, minlength=(k + 1) ** 2).reshape(k + 1, k + 1)
        starts = cumulative(lengths + self._marks[kinds])
        _add_values(self.sizes, np.diff(starts[index.span_starts]) + 2)

    def _count_block(self, shard: int, reader: ShardReader, number: int) -> None:
        """Ids, and what stands beside them; the hashes of the block's documents."""
        index, info = reader.index, reader.index.blocks[number]
        reader.verify_blocks(np.array([number]))
        ids = np.frombuffer(reader.buffer, f"<u{info.itemsize}", info.tokens, info.data)
        first, last = index.block_documents[number : number + 2].tolist()
        spans = slice(*index.span_starts[[first, last]].tolist())
        kinds, lengths = index.kinds[spans].astype(np.int64), index.lengths[spans].astype(np.int64)
        if len(kinds) != info.spans or int(lengths.sum()) != info.tokens or not lengths.all():
            raise ShardError(f"{reader.path}: damaged index: block {info.name}; `plait verify`")
        self._unflushed += info.tokens
        if self._unflushed > FLUSH_TOKENS:
            self._flush()
            self._unflushed = info.tokens
        documents = index.counts[first:last].astype(np.int64)
        shapes = np.stack([self._codes[kinds], lengths.astype(np.uint64)], 1)
        try:
            contents = count_tokens(ids, kinds, shapes, documents, self._codes_used)
        except IndexError as error:
            raise ShardError(f"{reader.path}: block {info.name}: {error}; `plait verify`") from None
        meta = reader.meta(number)
        beside = _Beside(reader, number, kinds, lengths)
        if "patches.npy" in info.members:
            self.patches += beside.sums("patches.npy", self._chosen(meta.patched))
        if "durations.npy" in info.members:
            self.durations += beside.sums("durations.npy", self._chosen(meta.timed))
        if "latents.npy" in info.members:
            beside.mix_latents(contents, documents, self._chosen(meta.continuous))
        at = int(self._stream.starts[shard]) + first
        self._hashes[0, at : at + len(documents)] = contents
        self._hashes[1, at : at + len(documents)] = key_hashes(meta.source, meta.keys)

    def _chosen(self, names: Sequence[str]) -> np.ndarray:
        return np.array([name in names for name in self._names])

    def _flush(self) -> None:
        self.code_counts += self._codes_used.total()
        self._codes_used.lanes[:] = 0
        self._unflushed = 0


def key_hashes(source: str, keys: Sequence[str]) -> np.ndarray:
    """Uint64: a hash of source and key, good within this process."""
    found = np.fromiter(map(hash, keys), np.int64, len(keys)).view(np.uint64)
    return mix(found ^ mix(np.array([hash(source)], np.int64).view(np.uint64)))


@dataclass(frozen=True)
class _Beside:
    """What a block holds for the tokens of some tokenizers: patch starts, durations, latents."""

    reader: ShardReader
    number: int
    kinds: np.ndarray
    lengths: np.ndarray

    def sums(self, suffix: str, chosen: np.ndarray) -> np.ndarray:
        """Int64 [k]: the sum over the tokens of each tokenizer."""
        spans = chosen[self.kinds]
        lengths = self.lengths[spans]
        values = self._values(suffix, int(lengths.sum()))
        if not len(lengths):
            return np.zeros(len(chosen), np.int64)
        totals = np.add.reduceat(values, cumulative(lengths)[:-1], dtype=np.int64)
        return np.bincount(self.kinds[spans], totals, len(chosen)).astype(np.int64)

    def mix_latents(self, hashes: np.ndarray, documents: np.ndarray, chosen: np.ndarray) -> None:
        """Let documents with latents be equal only if these are; their ids may say nothing."""
        rows = cumulative(np.where(chosen[self.kinds], self.lengths, 0))
        latents = self._values("latents.npy", int(rows[-1]))
        bounds = rows[cumulative(documents)].tolist()
        for d in np.flatnonzero(np.diff(bounds)).tolist():
            data = latents[bounds[d] : bounds[d + 1]].tobytes()
            hashes[d] = xxhash.xxh64_intdigest(data, int(hashes[d]))

    def _values(self, suffix: str, count: int) -> np.ndarray:
        where = f"{self.reader.path}: block {self.reader.index.blocks[self.number].name}: {suffix}"
        values = npy_view(self.reader.member(self.number, suffix), where)
        if suffix == "patches.npy" and 8 * len(values) >= count:
            values = np.unpackbits(values, count=count)
        if len(values) != count:
            raise ShardError(f"{where} should have values for {count} tokens; `plait verify`")
        return values


def _add_values(counter: Counter[int], values: np.ndarray) -> None:
    found, counts = np.unique(values, return_counts=True)
    counter.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))


def shard_rows(
    stream: Stream, counts: StreamCounts
) -> Iterator[tuple[str, TokenizerInfo, list[int]]]:
    """(shard, tokenizer, [tokens, spans, documents]) for each tokenizer that a shard has."""
    for shard, table in zip(stream.shards, counts.by_shard, strict=True):
        for info, row in zip(stream.tokenizers, table.tolist(), strict=True):
            if row[SPANS]:
                yield shard.name, info, row
