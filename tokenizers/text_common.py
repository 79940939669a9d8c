"""What the text tokenizers share: valid Unicode, arrays of a batch, threads, a probe."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import accumulate, chain, pairwise, repeat
from typing import TypeVar

import numpy as np

from plait.tokenizers.base import Encoded
from plait.tokenizers.errors import SampleError

MOST_TOKENS = 1 << 24
"""Largest vocabulary that is loaded: what a file can make one allocate."""
PROBE = " a  b \n\tB\r\n\ufb01 e\u0301 \u00e9 \U0001f600 \x00"
"""Text that a tokenizer which normalises, or squeezes spaces, does not give back."""
TOGETHER = 512
"""Texts whose lists of ids are made before they become arrays: few enough to stay in the cache, and
to be let go before the garbage collector looks at them."""

Ids = TypeVar("Ids")


def checked(text: str) -> str:
    """The text; SampleError if it holds a lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SampleError(
            f"text is not valid Unicode: a lone surrogate {text[error.start]!a} "
            f"at character {error.start}"
        ) from None
    return text


@contextmanager
def panics() -> Iterator[None]:
    """SampleError for a panic of a library written in Rust, which is no Exception of Python."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise SampleError(f"the tokenizer's library gave up on this text: {error}") from None


def encoded(arrays: Sequence[np.ndarray]) -> list[Encoded]:
    """An `Encoded` for each array; a fifth of the constructor's time, which short texts feel."""
    made = list(map(object.__new__, repeat(Encoded, len(arrays))))
    deque(map(object.__setattr__, made, repeat("ids"), arrays), maxlen=0)
    return made


def to_arrays(lists: Sequence[list[int]], table: np.ndarray | None = None) -> list[np.ndarray]:
    """Int32 arrays of lists of ids, or of their places in a table: one conversion for all."""
    flat = np.fromiter(chain.from_iterable(lists), np.int32, sum(map(len, lists)))
    if table is not None:
        flat = table[flat]
    bounds = accumulate(map(len, lists), initial=0)
    return [flat[start:stop] for start, stop in pairwise(bounds)]


def in_threads(
    encode: Callable[[list[str]], list[Ids]], texts: list[str], num_threads: int
) -> list[Ids]:
    """`encode` over parts of the texts, in so many threads; in order."""
    if len(texts) < 2:
        return encode(texts)
    share = -(-len(texts) // (4 * num_threads)) if num_threads > 1 else TOGETHER
    size = min(TOGETHER, share)
    parts = [texts[i : i + size] for i in range(0, len(texts), size)]
    if num_threads <= 1:
        return list(chain.from_iterable(map(encode, parts)))
    with ThreadPoolExecutor(num_threads) as pool:
        return list(chain.from_iterable(pool.map(encode, parts)))
