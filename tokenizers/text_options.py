"""What `plait fit text` can be told."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from plait.tokenizers.errors import ConfigError

SPACE = "\u2581"
"""What SentencePiece writes for a space."""
RESERVED = 259
"""Pieces that every SentencePiece model of ours has: unknown, newline, tab and 256 bytes."""
SMALLEST = 300


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """Training a text tokenizer, or taking over one that exists (`--from`)."""

    vocab_size: int = 8192
    """Number of pieces, 259 of them reserved; less if the text is too small to fill it."""
    model: Literal["bpe", "unigram", "byte_bpe"] = "bpe"
    """SentencePiece's bpe, which trains fastest; its unigram, which trains 20 times slower and
    encodes 3 times faster; or byte-level BPE, which tiktoken encodes 6 times faster."""
    character_coverage: float = 0.9995
    """Share of the characters that get a piece; the rarer ones are spelled in bytes."""
    max_characters: int = 20_000_000
    """Most characters to train on; beyond that, a random choice of the documents."""

    user_symbols: tuple[str, ...] = ()
    """Strings that are always one piece, wherever they stand in text (bpe and unigram)."""
    source_model: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """Train nothing: take over a SentencePiece `.model`, a `tokenizer.json`, a `*.tiktoken` or a
    `tekken.json`, with its library's ids. SOURCE is optional then, for the evaluation. Special
    tokens in raw text stay plain text, whatever the model."""
    allow_lossy: bool = False
    """With --from: take a model that changes text (it normalises, squeezes spaces), too."""
    pattern: str = ""
    """With --from *.tiktoken: the regular expression that cuts words, or its name: gpt2, cl100k,
    o200k, qwen2, tekken. The file does not hold it."""
    special_tokens: tuple[str, ...] = ()
    """With --from *.tiktoken: special tokens as NAME=ID, or NAME for the next free id."""
    export: str | None = None
    """Also write the tokenizer as a `tokenizer.json` of Hugging Face's library to this file, if
    that gives equal ids (never for unigram, whose ties are broken by rounding)."""
    export_near: bool = False
    """With --export: write a unigram model too, though some documents get other ids."""

    def __post_init__(self) -> None:
        smallest = SMALLEST + len(self.user_symbols)
        if self.vocab_size < smallest:
            raise ConfigError(f"vocab_size is {self.vocab_size}: at least {smallest} are needed")
        _check_symbols(self.user_symbols, self.model)
        if not 0 < self.character_coverage <= 1:
            raise ConfigError(f"character_coverage is {self.character_coverage}: not in 0..1")


def _check_symbols(symbols: tuple[str, ...], model: str) -> None:
    """ConfigError for a symbol that SentencePiece would change, refuse or already has."""
    if symbols and model == "byte_bpe":
        raise ConfigError("--user-symbols are SentencePiece's: with --model bpe or unigram")
    for symbol in symbols:
        taken = symbol == "<unk>" or re.fullmatch("<0x[0-9A-F]{2}>", symbol)
        if not symbol or taken or SPACE in symbol or any(map(str.isspace, symbol)):
            raise ConfigError(f"user symbol {symbol!r}: empty, taken or with white space in it")
    if len(set(symbols)) < len(symbols):
        raise ConfigError("--user-symbols: the same twice")
