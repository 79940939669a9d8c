"""The parts of a row: a list of them, parallel lists of pictures and texts, or one beside another.

`segments`, `parts` or `content` is a list of `{"type": "text", "text": ...}`, `{"type": "image",
"path": ...}`, `{"type": "audio", "path": ...}` or plain strings. `images` and `texts` are lists of
one length with nulls in them (OBELICS). Else columns stand beside each other, and the document
follows the order of the row. A medium is a path near the rows, bytes, a `data:` address, or
Hugging Face's `{"bytes": ..., "path": ...}`; a remote one in a list is left out and counted.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from plait.pipeline.fields import LISTS, ROLES, Fields
from plait.pipeline.paths import is_remote, resolve
from plait.pipeline.source import Json, Part, Slice
from plait.tokenizers.errors import SampleError

PLACES = ("bytes", "path", "file_name", "image", "audio")
BESIDE = ("text", "image", "audio", "bytes")
LEFT_OUT = "images_left_out"
"""Name in the metadata of the number of pictures that a document has elsewhere."""

Row = Mapping[str, object]
Medium = Literal["image", "audio"]


@dataclass(frozen=True)
class Columns:
    """Which columns of a row hold what."""

    text: tuple[str, ...] = ("text",)
    image: tuple[str, ...] = ("image",)
    audio: tuple[str, ...] = ("audio",)
    bytes: tuple[str, ...] = ()
    parts: tuple[str, ...] = LISTS
    images: tuple[str, ...] = ("images",)
    texts: tuple[str, ...] = ("texts",)

    @property
    def names(self) -> set[str]:
        """All columns that hold a part."""
        return {name for role in ROLES if role != "key" for name in getattr(self, role)}

    def mapped(self, fields: Fields) -> "Columns":
        """These columns, but for the roles that the user mapped."""
        roles = {role: getattr(self, role) for role in ROLES if role != "key"}
        return Columns(**{role: fields.names(role, names) for role, names in roles.items()})


@dataclass(frozen=True)
class Place:
    """Where rows lie, and how far up their paths may reach."""

    folder: Path
    root: Path


@dataclass
class Gathered:
    """The parts of a document, as they are found in order."""

    place: Place
    parts: list[Part] = field(default_factory=list)
    left_out: int = 0

    def add_text(self, value: object) -> None:
        """A text; nothing if it is empty."""
        if not isinstance(value, str):
            raise SampleError("text part without text")
        if value:
            self.parts.append(Part(kind="text", value=value))

    def add_medium(self, kind: Medium, value: object) -> None:
        """A picture or sound; one that is not here but at some address is counted only."""
        value = _inside(value)
        if isinstance(value, str) and is_remote(value):
            self.left_out += 1
        else:
            self.parts.append(Part(kind=kind, value=_medium(kind, value, self.place)))

    def note(self) -> dict[str, Json]:
        """What the metadata say of what was left out."""
        return {LEFT_OUT: self.left_out} if self.left_out else {}


def gather_row(row: Row, columns: Columns, place: Place) -> tuple[Gathered, set[str]]:
    """The parts of a row, and the columns they came from.

    SampleError for a part that is unknown, of a wrong type, or missing.
    """
    found = Gathered(place)
    name = next((n for n in columns.parts if isinstance(row.get(n), list)), None)
    if name is not None:
        for entry in cast(list, row[name]):
            _add_listed(found, entry)
        return found, {name}
    for images, texts in zip(columns.images, columns.texts, strict=False):
        if isinstance(row.get(images), list) and isinstance(row.get(texts), list):
            _add_parallel(found, cast(list, row[images]), cast(list, row[texts]))
            return found, {images, texts}
    return found, _add_beside(found, row, columns)


def _add_listed(found: Gathered, entry: object) -> None:
    if isinstance(entry, str):
        entry = {"type": "text", "text": entry}
    given = cast(Row, entry) if isinstance(entry, Mapping) else {}
    kind = given.get("type")
    if kind == "text":
        found.add_text(given.get("text"))
    elif kind in ("image", "audio"):
        found.add_medium(cast(Medium, kind), given)
    else:
        raise SampleError(f"unknown part: type {kind!r}, should be text, image or audio")


def _add_parallel(found: Gathered, images: list, texts: list) -> None:
    if len(images) != len(texts):
        raise SampleError(f"{len(images)} images beside {len(texts)} texts; should be as many")
    for image, text in zip(images, texts, strict=True):
        if image is not None:
            found.add_medium("image", image)
        if text is not None:
            found.add_text(text)


def _add_beside(found: Gathered, row: Row, columns: Columns) -> set[str]:
    roles = {name: role for role in BESIDE for name in getattr(columns, role)}
    used = {name for name in row if name in roles and row[name] is not None}
    for name, value in row.items():
        role = roles.get(name)
        if value is None or role is None:
            continue
        if role == "text":
            found.add_text(_first(value))
        elif role == "bytes":
            found.parts.append(Part(kind="bytes", value=_bytes(name, value)))
        else:
            found.add_medium(cast(Medium, role), value)
    if found.left_out:
        raise SampleError("its picture or sound is remote; fetch it first")
    return used


def _inside(value: object) -> object:
    """The path or bytes in a `{"bytes": ..., "path": ...}`, bytes first."""
    for _ in range(2):  # a part of type image may hold such a pair under "image"
        if isinstance(value, Mapping):
            given = cast(Row, value)
            value = next((given[n] for n in PLACES if given.get(n) is not None), None)
    return value


def _medium(kind: Medium, value: object, place: Place) -> bytes | Path | Slice:
    if isinstance(value, bytes | Slice):
        return value
    if not isinstance(value, str):
        raise SampleError(f"{kind} part without path")
    if value[:5].lower() == "data:":
        return _data_address(value)
    return resolve(value, place.folder, place.root)


def _first(value: object) -> object:
    """The first of several captions."""
    return (value[0] if value else "") if isinstance(value, list) else value


def _bytes(name: str, value: object) -> bytes | str | Slice:
    if not isinstance(value, bytes | str | Slice):
        raise SampleError(f"{name} holds {type(value).__name__}, no bytes")
    return value


def _data_address(value: str) -> bytes:
    head, _, data = value.partition(",")
    if not head.lower().endswith(";base64"):
        raise SampleError(f"data address without base64: {value[:60]!r}")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise SampleError(f"damaged data address: {error}") from None
