"""Samples to encoded documents: which tokenizer takes each part, in which order, in batches.

Parts of many samples wait in one queue a tokenizer and are encoded together; what waits is bounded
by its size in memory, so a document of a thousand pictures does not need a thousand pictures of
memory. Documents leave in the order in which samples came. Nothing is dropped without a reason.
"""

import errno
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import xxhash

from plait.pipeline.block import EncodedDocument
from plait.pipeline.source import Part, Rejected, Sample
from plait.tokenizers.base import Encoded, Tokenizer, Waveform
from plait.tokenizers.errors import ConfigError, SampleError

WAITING_PARTS = 512
WAITING_BYTES = 32 << 20
STORAGE_ERRORS = {
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENXIO, errno.ENODEV, errno.ENOMEM),
    *(errno.EMFILE, errno.ENFILE, errno.ECONNRESET, errno.EHOSTDOWN),
}
"""Errors of a disk or a connection; they say nothing about the sample."""
MODALITY_OF = {"text": "text", "image": "image", "audio": "speech", "bytes": "bytes"}


@dataclass(frozen=True, kw_only=True)
class Routing:
    """Choices made for each document by a hash of its key."""

    caption_first: float = 0.8
    bytes_share: float = 0.125


@dataclass(eq=False, slots=True)
class _Waiting:
    """A document whose parts are being encoded."""

    sample: Sample
    tokenizers: list[int]
    encoded: list[Encoded | None]
    left: int
    reason: str = ""


@dataclass(eq=False, slots=True)
class _Queue:
    """Raw parts that wait for one tokenizer, and where their tokens belong."""

    raws: list = field(default_factory=list)
    owners: list[tuple[_Waiting, int]] = field(default_factory=list)


class Encoder:
    """Encodes samples with at most one tokenizer a modality."""

    def __init__(self, tokenizers: Sequence[Tokenizer], routing: Routing) -> None:
        self._tokenizers = list(tokenizers)
        self._number = {t.modality: i for i, t in enumerate(tokenizers)}
        self._routing = routing

    def encode(
        self, samples: Iterable[Sample | Rejected], *, source: str
    ) -> Iterator[EncodedDocument | Rejected]:
        """One document or rejection for each sample, in order."""
        waiting: deque[_Waiting | Rejected] = deque()
        queues = [_Queue() for _ in self._tokenizers]
        takes_bytes = [t.modality == "bytes" for t in self._tokenizers]
        count = size = 0
        for sample in samples:
            if isinstance(sample, Rejected):
                waiting.append(sample)
                continue
            entry = self._enter(sample)
            waiting.append(entry)
            for i, part in enumerate(self._ordered(entry) if sample.captioned else sample.parts):
                if entry.reason:
                    break
                raw = _load(part, entry)
                if raw is None:
                    break
                number = entry.tokenizers[i]
                if takes_bytes[number] and isinstance(raw, str):
                    raw = raw.encode()
                queue = queues[number]
                queue.raws.append(raw)
                queue.owners.append((entry, i))
                count += 1
                size += _size(raw)
                if count >= WAITING_PARTS or size >= WAITING_BYTES:
                    self._flush(queues)
                    count = size = 0
            while waiting and _finished(waiting[0]):
                yield _result(waiting.popleft(), source)
        self._flush(queues)
        while waiting:
            yield _result(waiting.popleft(), source)

    def _enter(self, sample: Sample) -> _Waiting:
        """Choose a tokenizer for each part, or say why there is none."""
        parts = sample.parts
        entry = _Waiting(sample, [], [None] * len(parts), len(parts))
        if not any(map(_filled, parts)):
            entry.reason = "empty text" if parts else "no parts"
            return entry
        as_bytes = self._as_bytes(sample)
        for part in parts:
            modality = MODALITY_OF[part.kind]
            if modality == "text" and as_bytes:
                modality = "bytes"
            number = self._number.get(modality)
            if number is None:
                entry.reason = f"no tokenizer for {modality}"
                return entry
            entry.tokenizers.append(number)
        return entry

    def _as_bytes(self, sample: Sample) -> bool:
        """Whether a sample's text goes to the byte tokenizer."""
        if "bytes" not in self._number:
            return False
        if "text" not in self._number:
            return True
        return len(sample.parts) == 1 and share_of(sample.key, "bytes") < self._routing.bytes_share

    def _ordered(self, entry: _Waiting) -> tuple[Part, ...]:
        """Parts in document order: a caption may come before its picture or sound."""
        sample = entry.sample
        if len(sample.parts) != 2:
            return sample.parts
        if share_of(sample.key, "caption") >= self._routing.caption_first:
            return sample.parts
        entry.tokenizers.reverse()
        return sample.parts[::-1]

    def _flush(self, queues: list[_Queue]) -> None:
        for tokenizer, queue in zip(self._tokenizers, queues, strict=True):
            outcomes = _encode_all(tokenizer, queue.raws)
            for (entry, i), outcome in zip(queue.owners, outcomes, strict=True):
                if isinstance(outcome, str):
                    entry.reason = entry.reason or outcome
                else:
                    entry.encoded[i] = outcome
                    entry.left -= 1
            queue.raws, queue.owners = [], []


def share_of(key: str, purpose: str) -> float:
    """A number in 0..1 that depends on a key alone, another one for each purpose.

    >>> share_of("a", "caption") == share_of("a", "caption") != share_of("a", "bytes")
    True
    """
    return xxhash.xxh3_64_intdigest(f"{purpose}\0{key}".encode(errors="replace")) / 2**64


def _encode_all(tokenizer: Tokenizer, raws: list) -> Sequence[Encoded | str]:
    """Encode a batch; if that fails, one by one, so that only the bad sample is lost."""
    if not raws:
        return []
    try:
        return _checked(tokenizer, tokenizer.encode_batch(raws))
    except ConfigError:
        raise
    except Exception:
        return [_encode_one(tokenizer, raw) for raw in raws]


def _encode_one(tokenizer: Tokenizer, raw: object) -> Encoded | str:
    try:
        return _checked(tokenizer, tokenizer.encode_batch([raw]))[0]
    except ConfigError:
        raise
    except SampleError as error:
        return str(error)
    except Exception as error:
        return f"{tokenizer.modality} tokenizer failed: {type(error).__name__}: {error}"


def _checked(tokenizer: Tokenizer, batch: list[Encoded]) -> list[Encoded]:
    """The batch; ConfigError for ids that are none. One look at all: numpy takes 2 us a call."""
    for encoded in batch:
        ids = encoded.ids
        if ids.ndim != 1 or ids.dtype.kind not in "iu" or encoded.width < 1:
            raise ConfigError(
                f"the {tokenizer.modality} tokenizer gave {ids.dtype} {ids.shape}, no ids"
            )
    ids = np.concatenate([encoded.ids for encoded in batch]) if batch else np.zeros(0, int)
    if ids.size and not (ids.min() >= 0 and ids.max() < tokenizer.vocab_size):
        raise ConfigError(
            f"the {tokenizer.modality} tokenizer gave an id outside 0 .. {tokenizer.vocab_size - 1}"
        )
    return batch


def _load(part: Part, entry: _Waiting) -> object | None:
    try:
        return part.load()
    except SampleError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in STORAGE_ERRORS:
            raise cause from None  # the sample may be fine: the job stops and can go on later
        entry.reason = str(error)
    return None


def _filled(part: Part) -> bool:
    value = part.value
    return not isinstance(value, str) or (value != "" and not value.isspace())


def _size(raw: object) -> int:
    """Bytes that a raw sample takes in memory, about."""
    if isinstance(raw, (str, bytes)):
        return len(raw)
    if isinstance(raw, Waveform):
        return raw.samples.nbytes
    width, height = getattr(raw, "size", (1024, 1024))
    return 3 * width * height


def _finished(entry: _Waiting | Rejected) -> bool:
    return isinstance(entry, Rejected) or entry.left == 0 or bool(entry.reason)


def _result(entry: _Waiting | Rejected, source: str) -> EncodedDocument | Rejected:
    if isinstance(entry, Rejected):
        return entry
    sample = entry.sample
    if entry.reason:
        return Rejected(source=source, key=sample.key, reason=entry.reason)
    pairs = zip(entry.tokenizers, entry.encoded, strict=True)
    spans = [(number, e) for number, e in pairs if e is not None and len(e.ids)]
    if not spans:
        kinds = " and ".join(dict.fromkeys(part.kind for part in sample.parts))
        return Rejected(source=source, key=sample.key, reason=f"empty {kinds}")
    return EncodedDocument(key=sample.key, metadata=sample.metadata, spans=spans)
