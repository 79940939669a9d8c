"""Bytes with patch boundaries: ids are the bytes themselves, and a boundary is a bit beside each.

The boundary before byte i depends on bytes before i alone, so a model can place it while it
generates. Rules: `fixed` (MEGABYTE, arXiv:2305.07185) and `whitespace` (the space patching of BLT,
arXiv:2412.09871, section 2.2), vectorised over a whole batch: hundreds of MB a CPU-second. BLT's
extra one-byte first patch is the begin marker that a row puts before a span of bytes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Self, get_args

import numpy as np

from plait.tokenizers.base import Encoded, Progress, Tokenizer, ignore
from plait.tokenizers.errors import ConfigError, SampleError

Method = Literal["fixed", "whitespace"]


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """Cutting bytes into patches; nothing is learned."""

    method: Method = "whitespace"
    """`fixed`: a patch every `patch_size` bytes; `whitespace`: after a space or a sign."""
    patch_size: int = 6
    """Bytes in a patch of method `fixed`."""
    max_patch: int = 32
    """Longest patch of method `whitespace`; 0 for no limit."""

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ConfigError(f"method is {self.method!r}; there is {', '.join(get_args(Method))}")
        if self.patch_size < 1 or self.max_patch < 0:
            raise ConfigError("patch_size must be 1 or more, and max_patch 0 or more")


class BytePatch(Tokenizer):
    """Bytes as ids 0..255, with `patch_starts`.

    >>> tokenizer = BytePatch(FitOptions(method="whitespace"))
    >>> encoded = tokenizer.encode_batch([b"to be, or"])[0]
    >>> "".join("|" * bool(s) + chr(b) for b, s in zip(encoded.ids, encoded.patch_starts))
    '|to |be,| or'
    """

    modality = "bytes"
    vocab_size = 256

    def __init__(self, options: FitOptions) -> None:
        self.options = options

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
        first = np.zeros(len(data), bool)
        first[document_starts[document_starts < len(data)]] = True
        if self.options.method == "fixed":
            return _every(self.options.patch_size, first)
        starts = first | _after_separator(data, first)
        return _every(self.options.max_patch, starts) if self.options.max_patch else starts

    def decode(self, encoded: Encoded) -> bytes:
        """The bytes."""
        return np.asarray(encoded.ids).astype(np.uint8).tobytes()

    def config(self) -> dict[str, object]:
        """The options of its method."""
        if self.options.method == "fixed":
            return {"method": "fixed", "patch_size": self.options.patch_size}
        return {"method": "whitespace", "max_patch": self.options.max_patch}

    def files(self) -> dict[str, bytes]:
        """None: nothing is learned."""
        return {}

    @classmethod
    def from_files(cls, config: Mapping[str, object], files: Mapping[str, bytes]) -> Self:
        """Rebuild it; ConfigError if an option is unknown or out of range."""
        options = {key: value for key, value in config.items() if key != "kind"}
        try:
            return cls(FitOptions(**options))  # type: ignore[arg-type]
        except TypeError as error:
            raise ConfigError(f"byte tokenizer: config.json does not fit: {error}") from None


def fit(
    samples: Iterable[bytes], options: FitOptions, *, seed: int = 0, progress: Progress = ignore
) -> BytePatch:
    """The tokenizer; the samples are not looked at."""
    progress("nothing to learn", 1.0)
    return BytePatch(options)


def evaluate(tokenizer: BytePatch, held_out: Iterable[bytes]) -> dict[str, float]:
    """Bytes a patch, the longest patch, and use of the 256 values."""
    counts = np.zeros(256, np.int64)
    documents = patches = longest = exact = 0
    for sample in held_out:
        encoded = tokenizer.encode_batch([sample])[0]
        counts += np.bincount(encoded.ids, minlength=256)
        assert encoded.patch_starts is not None
        starts = np.flatnonzero(encoded.patch_starts)
        documents += 1
        patches += len(starts)
        exact += tokenizer.decode(encoded) == sample
        longest = max(longest, int(np.diff(starts, append=len(encoded.ids)).max(initial=0)))
    return {
        "documents": documents,
        "tokens": int(counts.sum()),
        "bytes_per_patch": int(counts.sum()) / max(patches, 1),
        "longest_patch": longest,
        "exact": exact / max(documents, 1),
        "codes_used": int((counts > 0).sum()),
        "bits_per_token": 8.0,
    }


def _every(size: int, starts: np.ndarray) -> np.ndarray:
    """The starts, and one more each `size` bytes after each of them."""
    place = np.flatnonzero(starts)
    more = (np.diff(place, append=len(starts)) - 1) // size
    count = np.arange(more.sum()) - np.repeat(np.cumsum(more) - more, more) + 1
    starts = starts.copy()
    starts[np.repeat(place, more) + size * count] = True
    return starts


def _separators() -> np.ndarray:
    table = np.ones(256, bool)
    for kept in (b"0-9", b"A-Z", b"a-z", b"\x80-\xbf"):
        table[kept[0] : kept[2] + 1] = False
    return table


SEPARATES = _separators()
"""By byte: all but ASCII letters, digits and UTF-8 continuations end a patch."""


def _after_separator(data: np.ndarray, first: np.ndarray) -> np.ndarray:
    """True after the first byte of each run of separators, inside one document."""
    separates = SEPARATES[data]
    follows = np.zeros(len(data), bool)
    follows[1:] = separates[:-1]
    follows &= ~first
    ends = separates & ~follows
    starts = np.zeros(len(data), bool)
    starts[1:] = ends[:-1]
    return starts
