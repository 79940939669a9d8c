"""The run's vocabulary: special tokens, then one contiguous id range for each tokenizer.

Shards hold ids local to a tokenizer; which global id they become is decided here, when a run
starts, from the tokenizers of its streams alone. Markers belong to text, as in Chameleon
(arXiv:2405.09818, section 2) and Mixture-of-Transformers (arXiv:2411.04996).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Self

import numpy as np

from plait.tokenizers.base import MODALITIES
from plait.tokenizers.errors import ConfigError

PAD, BOS, EOS = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class TokenizerInfo:
    """What a stream says of one of its tokenizers."""

    name: str
    """Unique in its stream; the modality's name unless said otherwise."""
    modality: str
    vocab_size: int
    fingerprint: str
    splittable: bool = True
    """Whether a span may be cut at a multiple of its width."""


@dataclass(frozen=True)
class Vocabulary:
    """Global ids of a run.

    >>> text = TokenizerInfo(name="text", modality="text", vocab_size=9, fingerprint="a")
    >>> image = TokenizerInfo(name="image", modality="image", vocab_size=4, fingerprint="b")
    >>> v = Vocabulary((image, text))
    >>> v.size, v.modalities, v.start("text"), v.start("image")
    (18, ('text', 'image'), 5, 14)
    >>> v.specials
    ('<pad>', '<bos>', '<eos>', '<image>', '</image>')
    """

    tokenizers: tuple[TokenizerInfo, ...]

    def __post_init__(self) -> None:
        order = sorted(self.tokenizers, key=_layout_key)
        object.__setattr__(self, "tokenizers", tuple(order))
        if len({t.name for t in order}) != len(order):
            raise ConfigError(f"two tokenizers share a name: {[t.name for t in order]}")

    @classmethod
    def merge(cls, groups: Sequence[Sequence[TokenizerInfo]]) -> Self:
        """The vocabulary of several streams; equal fingerprints are one tokenizer."""
        found: dict[str, TokenizerInfo] = {}
        for info in (info for group in groups for info in group):
            found.setdefault(info.fingerprint, info)
        names = [info.name for info in found.values()]
        unique = [
            info if names.count(info.name) == 1 else _renamed(info) for info in found.values()
        ]
        return cls(tuple(unique))

    @cached_property
    def modalities(self) -> tuple[str, ...]:
        """Names by batch modality id; text is always 0, for markers are text."""
        return tuple(dict.fromkeys(["text", *(t.modality for t in self.tokenizers)]))

    @cached_property
    def specials(self) -> tuple[str, ...]:
        """Names of the special tokens, ids 0, 1, ..."""
        marked = [t.name for t in self.tokenizers if t.modality != "text"]
        return ("<pad>", "<bos>", "<eos>", *(f"<{s}{name}>" for name in marked for s in ("", "/")))

    @cached_property
    def _starts(self) -> dict[str, int]:
        sizes = [t.vocab_size for t in self.tokenizers]
        starts = len(self.specials) + np.cumsum([0, *sizes])
        return {t.name: int(s) for t, s in zip(self.tokenizers, starts, strict=False)}

    @cached_property
    def size(self) -> int:
        """Number of global ids."""
        return len(self.specials) + sum(t.vocab_size for t in self.tokenizers)

    def info(self, name: str) -> TokenizerInfo:
        """The tokenizer of that name."""
        for info in self.tokenizers:
            if info.name == name:
                return info
        raise ConfigError(f"no tokenizer {name!r}; there is {[t.name for t in self.tokenizers]}")

    def name_of(self, fingerprint: str) -> str:
        """The name in this vocabulary of the tokenizer with that fingerprint."""
        for info in self.tokenizers:
            if info.fingerprint == fingerprint:
                return info.name
        raise ConfigError(f"no tokenizer with fingerprint {fingerprint}")

    def start(self, name: str) -> int:
        """First global id of a tokenizer's range."""
        return self._starts[self.info(name).name]

    def begin(self, name: str) -> int | None:
        """Id of a tokenizer's begin marker; None for text, which has none."""
        return None if self.info(name).modality == "text" else self.specials.index(f"<{name}>")

    def end(self, name: str) -> int | None:
        """Id of a tokenizer's end marker; None for text, which has none."""
        return None if self.info(name).modality == "text" else self.specials.index(f"</{name}>")

    def to_global(self, name: str, local: np.ndarray) -> np.ndarray:
        """Local ids of a tokenizer to global ids, int64."""
        return np.asarray(local, np.int64) + self.start(name)

    def to_local(self, name: str, ids: np.ndarray) -> np.ndarray:
        """Global ids in a tokenizer's range to its local ids; ValueError outside it."""
        local = np.asarray(ids, np.int64) - self.start(name)
        if local.size and (local.min() < 0 or local.max() >= self.info(name).vocab_size):
            raise ValueError(f"ids outside the range of tokenizer {name!r}")
        return local

    @cached_property
    def modality_table(self) -> np.ndarray:
        """Uint8 [size]: the modality id of each global id."""
        table = np.zeros(self.size, np.uint8)
        for info in self.tokenizers:
            start = self._starts[info.name]
            table[start : start + info.vocab_size] = self.modalities.index(info.modality)
        return table

    def modality_of(self, ids: np.ndarray) -> np.ndarray:
        """The modality id of each global id, uint8."""
        return self.modality_table[ids]

    def to_json(self) -> str:
        """As text; `from_json` reads it."""
        return json.dumps({"tokenizers": [asdict(t) for t in self.tokenizers]}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The vocabulary that `to_json` wrote."""
        return cls(tuple(TokenizerInfo(**entry) for entry in json.loads(text)["tokenizers"]))


def _layout_key(info: TokenizerInfo) -> tuple[int, str, str]:
    known = info.modality in MODALITIES
    return MODALITIES.index(info.modality) if known else len(MODALITIES), info.modality, info.name


def _renamed(info: TokenizerInfo) -> TokenizerInfo:
    return TokenizerInfo(**{**asdict(info), "name": f"{info.name}_{info.fingerprint[:8]}"})
