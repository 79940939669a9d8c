"""tiktoken as an engine: ranks of bytes and a pattern to arrays of ids, for any text.

Costs 5 to 7 million tokens a CPU-second. Special tokens are not known to it, so raw text cannot
hold any. tiktoken panics at some million white-space characters in a row (its pattern backtracks
on a stack); such a text is cut into words first, as `long_space.py` says.
"""

import numpy as np
import tiktoken

from plait.tokenizers.errors import ConfigError
from plait.tokenizers.long_space import has_long_space, words_of
from plait.tokenizers.text_common import checked, in_threads, panics, to_arrays

SHORT = 400
"""Characters below which tiktoken's list is faster than its array."""
NEVER = "\U0010fffe\U0010ffff\U0010fffe"


class Ranks:
    """`encode` and `decode` by ranks; `ids` [n_ranks] gives the id of a rank, if it is another."""

    def __init__(self, ranks: dict[bytes, int], pattern: str, ids: np.ndarray | None = None):
        if not all(bytes([byte]) in ranks for byte in range(256)):
            raise ConfigError("its vocabulary lacks some of the 256 bytes: text could not be told")
        try:
            self._encoding = _encoding(ranks, pattern)
            self._words = _encoding(ranks, r"(?s:.+)")
        except (ValueError, KeyError) as error:
            raise ConfigError(f"its pattern is none that tiktoken takes: {error}") from None
        self.pattern = pattern
        same = ids is None or np.array_equal(ids, np.arange(len(ids)))
        self._ids = None if same else ids

    def encode(self, texts: list[str], num_threads: int = 1) -> list[np.ndarray]:
        """Int32 ids of each text; SampleError if one holds a lone surrogate."""
        with panics():
            return in_threads(self._encode, texts, num_threads)

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        short = [text for text in texts if len(text) < SHORT]
        for text in short:
            if not text.isascii():
                checked(text)
        arrays = to_arrays(list(map(self._encoding.encode_ordinary, short)), self._ids)
        if len(short) == len(texts):
            return arrays
        rest = iter(arrays)
        return [next(rest) if len(text) < SHORT else self._long(text) for text in texts]

    def _long(self, text: str) -> np.ndarray:
        if has_long_space(text):
            return self._word_by_word(checked(text))
        try:
            ids = self._encoding.encode_to_numpy(text, disallowed_special=()).view(np.int32)
            return ids if self._ids is None else self._ids[ids]
        except UnicodeEncodeError:
            checked(text)
            raise

    def _word_by_word(self, text: str) -> np.ndarray:
        words = words_of(text, self.pattern)
        lists = [self._words.encode_ordinary(word) for word in words]
        return np.concatenate(to_arrays(lists, self._ids))


def _encoding(ranks: dict[bytes, int], pattern: str) -> tiktoken.Encoding:
    """An encoding; with no special token at all, `encode_to_numpy` looks for one everywhere."""
    return tiktoken.Encoding(
        "plait",
        pat_str=pattern,
        mergeable_ranks=ranks,
        special_tokens={NEVER: max(ranks.values()) + 1},
    )


class Table:
    """The bytes of each id [vocab_size]; what is no id is spelled U+FFFD."""

    def __init__(self, tokens: dict[int, bytes]):
        self.vocab_size = max(tokens) + 1
        self._bytes = [tokens.get(i, "\ufffd".encode()) for i in range(self.vocab_size)]

    def decode(self, ids: np.ndarray) -> str:
        """The text; bytes that are not UTF-8, as a model may produce, become U+FFFD."""
        return b"".join([self._bytes[i] for i in ids]).decode("utf-8", errors="replace")

    def piece(self, index: int) -> str:
        """A token as one reads it; a byte that is no UTF-8 by itself as `<0xC3>`."""
        try:
            return self._bytes[index].decode()
        except UnicodeDecodeError:
            return "".join(f"<0x{byte:02X}>" for byte in self._bytes[index])
