"""Text by a tiktoken vocabulary: the ids that tiktoken's `encode_ordinary` gives.

Special tokens in raw text stay text ("<|endoftext|>" becomes "<", "|", ...): a document cannot
forge the end of another. Their ids count in the vocabulary, for whoever puts them in by id. Also
Mistral's tekken.json, whose special tokens come first.
"""

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np

from plait.tokenizers.base import Encoded, Tokenizer
from plait.tokenizers.errors import ConfigError
from plait.tokenizers.text_common import MOST_TOKENS, PROBE, encoded
from plait.tokenizers.text_ranks import Ranks, Table

RANKS_FILE = "ranks.tiktoken"


class Tiktoken(Tokenizer):
    """Ranks of bytes, a pattern, special tokens by name, and the id of rank 0."""

    modality = "text"

    def __init__(
        self, ranks: dict[bytes, int], pattern: str, specials: Mapping[str, int], offset: int = 0
    ) -> None:
        ids = {token: rank + offset for token, rank in ranks.items()}
        table = {i: token for token, i in ids.items()}
        special = {i: name.encode() for name, i in specials.items()}
        if len(table) != len(ids) or len(special) != len(specials) or table.keys() & special.keys():
            raise ConfigError(f"{RANKS_FILE}: two tokens have the same id")
        if max([*table, *special]) >= MOST_TOKENS:
            raise ConfigError(f"{RANKS_FILE}: an id is {MOST_TOKENS:,} or more")
        self._ranks, self._specials, self._offset = dict(ranks), dict(specials), offset
        shifted = np.arange(max(ranks.values()) + 1, dtype=np.int32) + offset if offset else None
        self._engine = Ranks(self._ranks, pattern, shifted)
        self._table = Table(table | special)
        self.vocab_size = self._table.vocab_size
        self.lossless = self.decode(self.encode_batch([PROBE])[0]) == PROBE

    @property
    def pattern(self) -> str:
        """The regular expression that cuts text into words."""
        return self._engine.pattern

    @property
    def tokens(self) -> dict[bytes, int]:
        """Ids by the bytes of a token, special tokens left out."""
        return {token: rank + self._offset for token, rank in self._ranks.items()}

    @property
    def specials(self) -> dict[str, int]:
        """Ids of the special tokens."""
        return dict(self._specials)

    def encode_batch(self, samples: Sequence[str], num_threads: int = 1) -> list[Encoded]:
        """Ids of each string; SampleError if one is no valid Unicode (a lone surrogate)."""
        return encoded(self._engine.encode(list(samples), num_threads))

    def decode(self, encoded: Encoded) -> str:
        """The string; bytes that are not UTF-8, as a model may produce, become U+FFFD."""
        return self._table.decode(encoded.ids)

    def piece(self, index: int) -> str:
        """A token as one reads it, for tables."""
        return self._table.piece(index)

    def config(self) -> dict[str, object]:
        """The pattern, special tokens and the id of rank 0."""
        return {"pattern": self.pattern, "specials": self._specials, "offset": self._offset}

    def files(self) -> dict[str, bytes]:
        """The ranks, as tiktoken writes them."""
        lines = [
            f"{base64.b64encode(token).decode() or '='} {rank}\n"
            for token, rank in sorted(self._ranks.items(), key=lambda entry: entry[1])
        ]
        return {RANKS_FILE: "".join(lines).encode()}

    @classmethod
    def from_files(cls, config: Mapping[str, object], files: Mapping[str, bytes]) -> Self:
        """Rebuild it; ConfigError if the ranks are missing or damaged."""
        if RANKS_FILE not in files:
            raise ConfigError(f"text tokenizer: {RANKS_FILE} is missing")
        pattern, specials, offset = (config.get(n) for n in ("pattern", "specials", "offset"))
        if not isinstance(pattern, str) or not isinstance(offset, int) or offset < 0:
            raise ConfigError("config.json: pattern and offset do not make a text tokenizer")
        if not isinstance(specials, dict) or not all(
            isinstance(i, int) and i >= 0 for i in specials.values()
        ):
            raise ConfigError(f"config.json: specials are {specials!r}: should be ids by name")
        return cls(read_ranks(files[RANKS_FILE]), pattern, specials, offset)


def read_ranks(data: bytes) -> dict[bytes, int]:
    """Ranks of a `*.tiktoken` file: base64 and a number a line; ConfigError if damaged."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            key = b"" if token == b"=" else base64.b64decode(token, validate=True)
            value = int(rank)
        except (ValueError, binascii.Error):
            raise ConfigError(f"line {number}: not base64 and a rank, as tiktoken has") from None
        if key in ranks or not 0 <= value < MOST_TOKENS:
            raise ConfigError(f"line {number}: a repeated token, or a rank {value}")
        ranks[key] = value
    if not ranks or len(set(ranks.values())) != len(ranks):
        raise ConfigError("no ranks, or two tokens with the same rank")
    return ranks


def from_tekken(data: bytes) -> Tiktoken:
    """The tokenizer of a tekken.json, as mistral-common reads it; ConfigError if it is none."""
    try:
        spec = json.loads(data)
        numbers = spec["config"]
        n_special = int(numbers["default_num_special_tokens"])
        kept = spec["vocab"][: int(numbers["default_vocab_size"]) - n_special]
        ranks = {base64.b64decode(entry["token_bytes"]): int(entry["rank"]) for entry in kept}
        names = {entry["rank"]: entry["token_str"] for entry in spec.get("special_tokens") or []}
        pattern = numbers["pattern"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"not a tekken.json: {error!r}") from None
    if len(ranks) != len(kept) or sorted(ranks.values()) != list(range(len(kept))):
        raise ConfigError("tekken.json: its ranks are not 0, 1, 2, ..., each once")
    if not 0 <= n_special < MOST_TOKENS or not isinstance(pattern, str):
        raise ConfigError(f"tekken.json: {n_special} special tokens, pattern {pattern!r}")
    specials = {names.get(i, f"<SPECIAL_{i}>"): i for i in range(n_special)}
    return Tiktoken(ranks, pattern, specials, n_special)


def special_ids(names: Sequence[str], ranks: Mapping[bytes, int]) -> dict[str, int]:
    """Ids of special tokens: `NAME=ID`, or `NAME` for the next after the ranks."""
    ids: dict[str, int] = {}
    following = max(ranks.values()) + 1
    for name in names:
        match = re.fullmatch(r"(.+)=(\d{1,8})", name, re.DOTALL)
        key, value = (match[1], int(match[2])) if match else (name, following)
        if not key or key in ids:
            raise ConfigError(f"special token {name!r}: empty, or given twice")
        ids[key] = value
        following = value + 1
    return ids
