"""Reads the parts of a SentencePiece `.model` that its library does not tell: kinds and settings.

The file is a protocol buffer (`sentencepiece_model.proto`): pieces are field 1 (text 1, score 2,
kind 3), the trainer's settings field 2 (kind of model 3), the normaliser's field 3 (table 2, space
in front 3, squeezed spaces 4, U+2581 for a space 5).
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from plait.tokenizers.errors import ConfigError

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
KINDS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}


@dataclass(frozen=True)
class Piece:
    """A piece: its text (U+2581 for a space), score and kind."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class Model:
    """What a model file says."""

    pieces: list[Piece]
    kind: str
    """unigram, bpe, word or char."""
    changes_text: bool
    """Whether its normaliser changes anything but writing U+2581 for a space."""


def read_model(data: bytes) -> Model:
    """The pieces and settings; ConfigError if the file is damaged."""
    pieces: list[Piece] = []
    trainer: dict[int, object] = {}
    normalizer: dict[int, object] = {}
    try:
        for field, value in _fields(data):
            if field == 1 and isinstance(value, bytes):
                parts = dict(_fields(value))
                text = bytes(parts.get(1, b"")).decode()  # type: ignore[arg-type]
                pieces.append(Piece(text, float(parts.get(2, 0.0)), int(parts.get(3, NORMAL))))
            elif field in (2, 3) and isinstance(value, bytes):
                (trainer if field == 2 else normalizer).update(_fields(value))
    except (ValueError, IndexError, struct.error, TypeError) as error:
        raise ConfigError(f"SentencePiece model: damaged ({error})") from None
    same = not normalizer.get(2) and not normalizer.get(3, 1) and not normalizer.get(4, 1)
    kind = trainer.get(3, 1)
    name = KINDS.get(kind, "unknown") if isinstance(kind, int) else "unknown"
    return Model(pieces, name, not (same and normalizer.get(5, 1)))


def _fields(data: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """Numbers and values of a message's fields."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
        elif kind == 2:
            size, at = _varint(data, at)
            value, at = data[at : at + size], at + size
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value, at = struct.unpack_from("<d" if kind == 1 else "<f", data, at)[0], at + size
        else:
            raise ValueError(f"a field of wire type {kind}")
        if at > len(data):
            raise ValueError("it ends early")
        yield tag >> 3, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
