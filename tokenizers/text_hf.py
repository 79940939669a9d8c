"""Text by a Hugging Face `tokenizer.json`: the ids of `encode(text, add_special_tokens=False)`.

Special tokens in raw text stay text (the library's `encode_special_tokens`): a document cannot
forge the end of another. Added tokens that are not special are found in text, as in the library.
Padding, truncation and templates are left out, so that batch mates change nothing.

Byte-level BPE is encoded by tiktoken, 4 to 8 times faster per core, where it provably gives the
same ids (`text_merges.py`) and does so on a probe; `engine` says which it is and `reason` why not.
The library itself works in one thread, unless TOKENIZERS_PARALLELISM is set.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Self

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import tokenizers

from plait.tokenizers.base import Encoded, Tokenizer
from plait.tokenizers.errors import ConfigError
from plait.tokenizers.text_common import (
    MOST_TOKENS,
    PROBE,
    checked,
    encoded,
    in_threads,
    panics,
    to_arrays,
)
from plait.tokenizers.text_merges import Unfit, find_plan, to_bytes
from plait.tokenizers.text_ranks import Ranks, Table

MODEL_FILE = "tokenizer.json"
PROBES = (
    *(PROBE, "I'll don't WE'VE naïve 1234567 x\u0301 \t\n  \n   deep   space  ", "  \r\n\r\n\n "),
    *("def f(x):\n    return x ** 2  # \u00a0\u3000", "".join(map(chr, range(0x500)))),
    *("Größe नमस्ते दुनिया สวัสดี 你好，世界 こんにちは 한국어", "العربية עברית Ελληνικά кириллица"),
    *(
        "\U0001f469\u200d\U0001f680\u2028\u2029\x85\x1f<|endoftext|></s>[PAD]",
        "aaaaaaaaaaaaa      ",
    ),
)
"""Texts on which both engines have to agree when a model is loaded."""


class HuggingFace(Tokenizer):
    """A tokenizer of the tokenizers library; `engine` is what encodes: tiktoken or tokenizers."""

    modality = "text"

    def __init__(self, model: bytes, engine: str = "tiktoken") -> None:
        self._model = model
        spec, self._library = _load(model)
        added: dict[int, tokenizers.AddedToken] = self._library.get_added_tokens_decoder()
        plain = {t.content for t in added.values() if not t.special and t.content}
        self._added = re.compile("|".join(map(re.escape, sorted(plain)))) if plain else None
        self.vocab_size = 1 + max(
            [*self._library.get_vocab(with_added_tokens=True).values(), *added]
        )
        if self.vocab_size > MOST_TOKENS:
            raise ConfigError(f"{MODEL_FILE}: an id is {MOST_TOKENS:,} or more")
        self._ranks, self._table, self.reason = None, None, "asked for"
        if engine == "tiktoken":
            self._use_tiktoken(spec, added)
        self.engine = "tiktoken" if self._ranks else "tokenizers"
        self.lossless = self.decode(self.encode_batch([PROBE])[0]) == PROBE

    def _use_tiktoken(self, spec: Mapping, added: Mapping[int, tokenizers.AddedToken]) -> None:
        try:
            plan = find_plan(spec)
            ranks = Ranks(plan.ranks, plan.pattern, plan.ids)
        except (Unfit, ConfigError) as error:
            self.reason = str(error)
            return
        wanted = self._by_library(list(PROBES))
        self._ranks = ranks
        found = self._encode(list(PROBES))
        if not all(map(np.array_equal, wanted, found)):
            self._ranks, self.reason = None, "tiktoken's ids differ on the probe"
            return
        vocab = {i: to_bytes(token) for token, i in self._library.get_vocab(False).items()}
        tokens = {i: token for i, token in vocab.items() if token is not None}
        self._table = Table(tokens | {i: t.content.encode() for i, t in added.items()})
        self.reason = ""

    def encode_batch(self, samples: Sequence[str], num_threads: int = 1) -> list[Encoded]:
        """Ids of each string; SampleError if one is no valid Unicode (a lone surrogate)."""
        return encoded(in_threads(self._encode, list(samples), num_threads))

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        if self._ranks is None:
            return self._by_library(texts)
        normalizer = self._library.normalizer
        normal = texts if normalizer is None else [_normal(normalizer, text) for text in texts]
        if self._added is None:
            return self._ranks.encode(normal)
        slow = [
            place
            for place, text in enumerate(texts)
            if self._added.search(text) or self._added.search(normal[place])
        ]
        arrays = self._ranks.encode(normal)
        ids = self._by_library([texts[place] for place in slow])
        for place, array in zip(slow, ids, strict=True):
            arrays[place] = array
        return arrays

    def _by_library(self, texts: list[str]) -> list[np.ndarray]:
        try:
            with panics():
                batch = self._library.encode_batch_fast(texts, add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):
            for text in texts:
                checked(text)
            raise
        return to_arrays([encoding.ids for encoding in batch])

    def decode(self, encoded: Encoded) -> str:
        """The string; bytes that are not UTF-8, as a model may produce, become U+FFFD."""
        if self._table is not None:
            return self._table.decode(encoded.ids)
        return self._library.decode(encoded.ids.tolist(), skip_special_tokens=False)

    def piece(self, index: int) -> str:
        """A token as one reads it, for tables."""
        if self._table is not None and index < self._table.vocab_size:
            return self._table.piece(index)
        return self._library.id_to_token(index) or "\ufffd"

    def config(self) -> dict[str, object]:
        """Nothing: the model says it all."""
        return {}

    def files(self) -> dict[str, bytes]:
        """The `tokenizer.json`, as it was."""
        return {MODEL_FILE: self._model}

    @classmethod
    def from_files(cls, config: Mapping[str, object], files: Mapping[str, bytes]) -> Self:
        """Rebuild it; ConfigError if the model is missing or damaged."""
        if MODEL_FILE not in files:
            raise ConfigError(f"text tokenizer: {MODEL_FILE} is missing")
        return cls(files[MODEL_FILE])


def _load(model: bytes) -> tuple[dict, tokenizers.Tokenizer]:
    try:
        text = model.decode()
        spec = json.loads(text)
        library = tokenizers.Tokenizer.from_str(text)
        if spec["model"].get("dropout"):
            raise ConfigError(
                f"{MODEL_FILE}: it drops merges at random, so the same text has other ids each "
                'time; set "dropout" to null'
            )
    except ConfigError:
        raise
    except Exception as error:  # the library raises plain Exception
        raise ConfigError(f"{MODEL_FILE}: not a tokenizer.json, or damaged: {error}") from None
    library.no_padding()
    library.no_truncation()
    library.encode_special_tokens = True
    return spec, library


def _normal(normalizer: tokenizers.normalizers.Normalizer, text: str) -> str:
    """Normalised text; SampleError if it holds a lone surrogate."""
    return normalizer.normalize_str(text if text.isascii() else checked(text))
