"""SentencePiece's ids of many texts at once, as views of one array.

The library makes an array of each text from a raw buffer, in Python: 0.5 of the 2.8 us that a short
line takes, and two objects each that the garbage collector walks over. Here the buffers of a batch
are joined and looked at once. The call that gives buffers is private to the library, so it is used
only where its ids are those of the public one on a probe.
"""

from collections.abc import Callable
from itertools import accumulate, pairwise, starmap

import numpy as np
import sentencepiece

from plait.tokenizers.text_common import PROBE

Encode = Callable[[list[str], int], list[np.ndarray]]
"""Int32 ids of each text, by so many threads; TypeError for a lone surrogate."""
PROBES = [
    PROBE,
    "",
    "a rose is a rose",
    "I'll don't 1234567 Größe नमस्ते 你好，世界 \u2581",
    "x" * 300,
]


def batch_encoder(pieces: sentencepiece.SentencePieceProcessor) -> Encode:
    """The fastest call that gives the library's ids."""

    def by_arrays(texts: list[str], num_threads: int) -> list[np.ndarray]:
        return pieces.encode(texts, out_type="numpy", num_threads=num_threads)

    by_buffers = _by_buffers(pieces)
    try:
        pairs = zip(by_buffers(PROBES, 1), by_arrays(PROBES, 1), strict=True)
        return by_buffers if all(starmap(np.array_equal, pairs)) else by_arrays
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return by_arrays


def _by_buffers(pieces: sentencepiece.SentencePieceProcessor) -> Encode:
    plain = (
        None,
        False,
        -1,
        0.0,
        False,
        False,
        False,
    )  # no pool, no sampling, no bos, eos, reverse

    def encode(texts: list[str], num_threads: int) -> list[np.ndarray]:
        call = pieces._processor._EncodeAsBufferBatch  # pyright: ignore[reportAttributeAccessIssue]
        parts = list(map(bytes, call(texts, num_threads, *plain)))
        flat = np.frombuffer(b"".join(parts), np.int32)
        bounds = accumulate((len(part) // 4 for part in parts), initial=0)
        return [flat[start:stop] for start, stop in pairwise(bounds)]

    return encode
