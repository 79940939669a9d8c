"""Where samples come from: the types that every source speaks.

A source is a numbered list of samples that never changes its order: sample i is the same whoever
reads it, so a job can be cut into ranges. Each kind is one file in `sources/`, found by its name
(`find.py`). Reading yields exactly one `Sample` or `Rejected` for each number, never less.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from plait.pipeline.compressed import read_plain
from plait.tokenizers.base import Waveform
from plait.tokenizers.errors import SampleError

if TYPE_CHECKING:
    from PIL.Image import Image

Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]
PartKind = Literal["text", "image", "audio", "bytes"]

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au"}
TEXT_SUFFIXES = {".txt", ".md"}
HTML_SUFFIXES = {".html", ".htm", ".xhtml"}
MAX_FILE_BYTES = 1 << 30


@dataclass(frozen=True)
class Slice:
    """Bytes that lie inside a file, not yet read."""

    path: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """The bytes; SampleError if they are not all there, or too many."""
        if self.size > MAX_FILE_BYTES:
            raise SampleError(f"{self.size:,} bytes are too many (at most {MAX_FILE_BYTES:,})")
        with self.path.open("rb") as file:
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) < self.size:
            raise SampleError(f"{self.path.name}: cut short in bytes {self.offset}+{self.size}")
        return data


@dataclass(frozen=True, kw_only=True)
class Part:
    """One piece of a sample, not yet read: a text, a file's path, or a place in a file."""

    kind: PartKind
    value: str | bytes | Path | Slice

    def load(self) -> "str | bytes | Image | Waveform":
        """The raw sample that a tokenizer takes; SampleError with a reason if it is unreadable."""
        try:
            return self._load()
        except OSError as error:
            raise SampleError(f"cannot read file: {error.strerror or error}") from error
        except MemoryError:
            raise SampleError("not enough memory to read it") from None

    def _load(self) -> "str | bytes | Image | Waveform":
        value = self.value.read() if isinstance(self.value, Slice) else self.value
        if isinstance(value, Path) and not value.is_file():
            raise SampleError(f"missing file: {value.name}")
        if self.kind == "image" and not isinstance(value, str):
            from plait.tokenizers.media import read_image

            return read_image(value)
        if self.kind == "audio" and not isinstance(value, str):
            from plait.tokenizers.media import read_audio

            return read_audio(value)
        if self.kind == "bytes":
            data = _read_bounded(value) if isinstance(value, Path) else value
            return data.encode() if isinstance(data, str) else data
        data = read_plain(value, MAX_FILE_BYTES) if isinstance(value, Path) else value
        return _utf8(data) if isinstance(data, bytes) else _valid(data)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One document in the raw."""

    key: str
    """Unique in its source and stable: a relative path, or `id#line` of a row."""
    parts: tuple[Part, ...]
    metadata: Mapping[str, Json] = field(default_factory=dict)
    """What else the row says."""
    captioned: bool = False
    """Whether the parts are a medium and its caption, which may come in either order."""


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A sample that cannot be used, and why."""

    source: str
    key: str
    reason: str


class Source(Protocol):
    """A numbered list of samples."""

    path: Path
    kind: str
    samples_per_task: int
    """How many samples a shard takes unless the user says otherwise."""

    def __len__(self) -> int:
        """How many samples there are; `read` gives exactly as many."""
        ...

    def read(self, start: int, stop: int) -> Iterator[Sample | Rejected]:
        """The samples number start .. stop - 1, in order."""
        ...

    def describe(self) -> dict[str, Json]:
        """Path, kind, count, and a hash of what the source holds that no mtime changes."""
        ...


def _read_bounded(path: Path) -> bytes:
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise SampleError(f"file too large: {size} bytes, at most {MAX_FILE_BYTES}")
    return path.read_bytes()


def _valid(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SampleError(f"not valid Unicode: lone surrogate at {error.start}") from None
    return text


def _utf8(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SampleError(f"not UTF-8: byte {error.start} is {data[error.start]:#04x}") from None
