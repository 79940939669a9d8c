"""Bytes with patch boundaries: ids are the bytes themselves, and a boundary is a bit beside each.

The boundary before byte i depends on bytes before i alone, so a model can place it while it
generates: `BytePatch.stream` marks bytes as they come, in pieces of any size, exactly as a whole
document is marked. Rules: `fixed` (MEGABYTE, arXiv:2305.07185); `whitespace` and `entropy` (BLT,
arXiv:2412.09871, sections 2.2 and 2.3). Hundreds of MB a CPU-second each, entropies by counts
included (kernels/mark_patches.py). BLT's extra one-byte first patch is the begin marker that a row
puts before a span of bytes.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Self

import numpy as np

from plait.kernels.mark_patches import State, mark_entropy, mark_separators, mark_stride
from plait.tokenizers.base import Encoded, Progress, Tokenizer, ignore
from plait.tokenizers.byte_entropy import ContextEntropies, count
from plait.tokenizers.byte_options import FitOptions, options_from_config, options_to_config
from plait.tokenizers.byte_threshold import EntropySource, part_for_threshold, with_limit
from plait.tokenizers.errors import ConfigError, SampleError

CHUNK = 1 << 20
"""Bytes marked at a time: what is kept beside the bytes themselves stays small."""
CALIBRATION_BYTES = 1 << 23
"""Bytes at most that set the threshold and are not counted."""
MOST_COUNTED = 4096
"""Patches of more bytes are counted as of so many."""


class BytePatch(Tokenizer):
    """Bytes as ids 0..255, with `patch_starts`.

    >>> tokenizer = BytePatch(FitOptions(method="whitespace"))
    >>> encoded = tokenizer.encode_batch([b"to be, or"])[0]
    >>> "".join("|" * bool(s) + chr(b) for b, s in zip(encoded.ids, encoded.patch_starts))
    '|to |be,| or'
    """

    modality = "bytes"
    vocab_size = 256

    def __init__(self, options: FitOptions, source: EntropySource | None = None) -> None:
        """ConfigError unless an entropy tokenizer has its source and limits."""
        self.options = options
        self.source = source
        if options.must_search or (options.method == "entropy" and source is None):
            raise ConfigError(
                f"byte tokenizer: patches by entropy need a source of entropies and a "
                f"{options.searched}; `plait fit bytes --method entropy` finds both"
            )

    def encode_batch(self, samples: Sequence[bytes]) -> list[Encoded]:
        """Bytes as uint8 ids; the first byte of a sample always starts a patch."""
        for sample in samples:
            if not isinstance(sample, (bytes, bytearray, memoryview)):
                raise SampleError(f"the byte tokenizer takes bytes, not {type(sample).__name__}")
        data = np.frombuffer(b"".join(samples), np.uint8)
        ends = np.cumsum([len(sample) for sample in samples], dtype=np.int64)
        bounds = np.concatenate([[0], ends]).astype(np.int64)
        starts = self.patch_starts(data, bounds[:-1])
        return [Encoded(ids=data[a:b], patch_starts=starts[a:b]) for a, b in pairwise(bounds)]

    def patch_starts(self, data: np.ndarray, document_starts: np.ndarray) -> np.ndarray:
        """Bool [n] over documents back to back, uint8 [n], that begin at `document_starts`."""
        stream, starts = self.stream(), np.empty(len(data), bool)
        for a in range(0, len(data), CHUNK):
            b = min(a + CHUNK, len(data))
            first, last = np.searchsorted(document_starts, [a, b])
            starts[a:b] = stream.mark(data[a:b], document_starts[first:last] - a)
        return starts

    def stream(self) -> "PatchStream":
        """Marks bytes as they come."""
        return PatchStream(self.options, self.source)

    def decode(self, encoded: Encoded) -> bytes:
        """The bytes."""
        return np.asarray(encoded.ids).astype(np.uint8).tobytes()

    def config(self) -> dict[str, object]:
        """The options of its method."""
        return options_to_config(self.options)

    def files(self) -> dict[str, bytes]:
        """The source of entropies; none for the other methods: nothing is learned."""
        return {} if self.source is None else self.source.files()

    @classmethod
    def from_files(cls, config: Mapping[str, object], files: Mapping[str, bytes]) -> Self:
        """Rebuild it; ConfigError if an option is unknown or out of range, or a file damaged."""
        options = options_from_config(config)
        entropy = options.method == "entropy"
        return cls(options, ContextEntropies.from_files(files) if entropy else None)


class PatchStream:
    """Patch starts of bytes that come in pieces of any size, the same as those of the whole.

    >>> stream = BytePatch(FitOptions(method="whitespace")).stream()
    >>> [stream.push(piece).tolist() for piece in (b"a", b" b", b"c")]
    [[True], [False, True], [False]]
    """

    def __init__(self, options: FitOptions, source: EntropySource | None) -> None:
        self.options = options
        self.entropies = source.stream() if source and options.method == "entropy" else None
        self.state = State()

    def push(self, data: bytes, *, new_document: bool = False) -> np.ndarray:
        """Bool [n] for the next bytes; with `new_document` they are the first of one."""
        firsts = np.zeros(1 if new_document else 0, np.int64)
        return self.mark(np.frombuffer(data, np.uint8), firsts)

    def mark(self, data: np.ndarray, firsts: np.ndarray) -> np.ndarray:
        """The same for uint8 [n] in which documents begin at `firsts`, int64, rising."""
        options = self.options
        if options.method == "fixed":
            return mark_stride(len(data), firsts, options.patch_size, self.state)
        if self.entropies is None:
            return mark_separators(data, firsts, SEPARATES, options.max_patch, self.state)
        entropies = self.entropies.push(data, firsts)
        return mark_entropy(entropies, firsts, *options.limits, options.max_patch, self.state)


def fit(
    samples: Iterable[bytes], options: FitOptions, *, seed: int = 0, progress: Progress = ignore
) -> BytePatch:
    """The tokenizer; only for patches by entropy the samples are looked at."""
    if options.method != "entropy":
        progress("nothing to learn", 1.0)
        return BytePatch(options)
    kept: list[bytes] = []
    model = count(part_for_threshold(samples, kept, CALIBRATION_BYTES))
    progress("counted", 0.9)
    source = model.entropies()
    return BytePatch(with_limit(options, source, kept, progress), source)


def evaluate(tokenizer: BytePatch, held_out: Iterable[bytes]) -> dict[str, float]:
    """Patch lengths, the share that `max_patch` cut, and bits a byte of the entropies' model."""
    values, lengths = np.zeros(256, np.int64), np.zeros(MOST_COUNTED + 1, np.int64)
    documents = longest = exact = 0
    bits: float | None = 0.0
    for sample in held_out:
        encoded = tokenizer.encode_batch([sample])[0]
        values += np.bincount(encoded.ids, minlength=256)
        assert encoded.patch_starts is not None
        length = np.diff(np.flatnonzero(encoded.patch_starts), append=len(encoded.ids))
        lengths += np.bincount(np.minimum(length, MOST_COUNTED), minlength=len(lengths))
        documents += 1
        exact += tokenizer.decode(encoded) == sample
        longest = max(longest, int(length.max(initial=0)))
        bits = _plus(bits, tokenizer.source, encoded.ids)
    total, patches = int(values.sum()), max(int(lengths.sum()), 1)
    limit = {"fixed": tokenizer.options.patch_size}.get(
        tokenizer.options.method, tokenizer.options.max_patch
    )
    report = {
        "documents": documents,
        "tokens": total,
        "bytes_per_patch": total / patches,
        **{f"patch_p{share}": _percentile(lengths, share) for share in (10, 50, 90, 99)},
        "longest_patch": longest,
        "share_at_max": int(lengths[limit]) / patches if 0 < limit < MOST_COUNTED else 0.0,
        "exact": exact / max(documents, 1),
        "codes_used": int((values > 0).sum()),
        "bits_per_token": 8.0,
    }
    return report if bits is None else {**report, "model_bits_per_byte": bits / max(total, 1)}


def _plus(bits: float | None, source: EntropySource | None, ids: np.ndarray) -> float | None:
    """Bits so far and of one more document; None where there is no model of probabilities."""
    if bits is None or source is None:
        return None
    more = source.bits(ids, np.zeros(1, np.int64))
    return None if more is None else bits + float(more.sum())


def _percentile(lengths: np.ndarray, share: int) -> int:
    """The least length that `share` % of the patches do not exceed."""
    return int(np.searchsorted(np.cumsum(lengths), share / 100 * lengths.sum()))


def _separators() -> np.ndarray:
    table = np.ones(256, bool)
    for kept in (b"0-9", b"A-Z", b"a-z", b"\x80-\xbf"):
        table[kept[0] : kept[2] + 1] = False
    return table


SEPARATES = _separators()
"""By byte: all but ASCII letters, digits and UTF-8 continuations end a patch."""
