"""Where samples come from: the types that every source speaks, and how a path becomes sources.

A source is a numbered list of samples that never changes its order: sample i is the same whoever
reads it, so a job can be cut into ranges. Each kind is one file in `sources/`, found by its name;
it defines `open_source(path, root)` and the loose files it takes (`SUFFIXES`, or none).
Reading yields exactly one `Sample` or `Rejected` for each number, never less.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import xxhash

from plait.pipeline.json_text import read_json
from plait.pipeline.lines import open_lines
from plait.tokenizers.base import Waveform
from plait.tokenizers.errors import ConfigError, SampleError

if TYPE_CHECKING:
    from PIL.Image import Image

Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]
PartKind = Literal["text", "image", "audio", "bytes"]

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au"}
TEXT_SUFFIXES = {".txt", ".md"}
NOT_SAMPLES = (
    *("readme", "license", "licence", "licenses", "licences", "manifest", "attribution"),
    *("copying", "notice", "changelog", "contributing", "citation", "authors"),
)
"""Files of these names stand beside the samples of a folder and are passed over."""
PEEKED_ROWS = 20
MAX_FILE_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Part:
    """One piece of a sample, not yet read: a text, or a file's path."""

    kind: PartKind
    value: str | bytes | Path

    def load(self) -> "str | bytes | Image | Waveform":
        """The raw sample that a tokenizer takes; SampleError with a reason if it is unreadable."""
        try:
            return self._load()
        except OSError as error:
            raise SampleError(f"cannot read file: {error.strerror or error}") from error
        except MemoryError:
            raise SampleError("not enough memory to read it") from None

    def _load(self) -> "str | bytes | Image | Waveform":
        value = self.value
        if isinstance(value, Path) and not value.is_file():
            raise SampleError(f"missing file: {value.name}")
        if self.kind == "image" and not isinstance(value, str):
            from plait.tokenizers.media import read_image

            return read_image(value)
        if self.kind == "audio" and not isinstance(value, str):
            from plait.tokenizers.media import read_audio

            return read_audio(value)
        data = _read_bounded(value) if isinstance(value, Path) else value
        if self.kind == "bytes":
            return data.encode() if isinstance(data, str) else data
        return _utf8(data) if isinstance(data, bytes) else _valid(data)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One document in the raw."""

    key: str
    """Unique in its source and stable: a relative path, or `id#line` of a row."""
    parts: tuple[Part, ...]
    metadata: Mapping[str, Json] = field(default_factory=dict)
    """What else the row says."""


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


@dataclass(frozen=True, kw_only=True)
class Found:
    """The sources under a path, and the files there that none of them takes."""

    root: Path
    sources: list[Source]
    passed_over: list[Path]


def open_sources(path: str | Path, kind: str | None = None) -> list[Source]:
    """The sources in a file or folder, in a fixed order; `KIND:PATH` forces a kind.

    A folder is searched to its leaves: each JSONL file is a source, and so are all loose images
    together, all loose sounds and all loose texts. Raises ConfigError if nothing is found.
    """
    return find_sources(path, kind).sources


def find_sources(path: str | Path, kind: str | None = None) -> Found:
    """`open_sources`, with the files that were passed over."""
    path, kind = _split_kind(path, kind)
    if not path.exists():
        raise ConfigError(f"{path}: no such file or folder; a SOURCE is a file or a folder")
    root = path if path.is_dir() else path.parent
    if kind is not None:
        return Found(root=path, sources=[open_kind(kind, path, root)], passed_over=[])
    if path.is_file():
        opened = open_kind(_kind_of_file(path), path, root)
        return Found(root=path, sources=[opened], passed_over=[])
    found = _search(path)
    if not found.sources:
        raise ConfigError(
            f"{path}: no samples found; there should be JSONL files, images, sounds or texts "
            f"(for other files: bytes:{path})"
        )
    return found


def kinds() -> list[str]:
    """The names of all kinds of sources."""
    return sorted(p.stem for p in (Path(__file__).parent / "sources").glob("[a-z]*.py"))


def open_kind(kind: str, path: Path, root: Path) -> Source:
    """A source of this kind at a path; `root` bounds where its rows may point (see `resolve`)."""
    if kind not in kinds():
        raise ConfigError(f"no kind of source {kind!r}; there is {', '.join(kinds())}")
    return import_module(f"plait.pipeline.sources.{kind}").open_source(path, root)


def kind_of_rows(path: Path) -> str:
    """The kind of a JSONL file, from its first rows."""
    seen: set[str] = set()
    with open_lines(path) as lines:
        for _, line in zip(range(PEEKED_ROWS), lines, strict=False):
            row = parse_row(line)
            if isinstance(row, str):
                continue
            if any(isinstance(row.get(k), list) for k in ("segments", "parts", "content")):
                return "interleaved"
            if isinstance(row.get("file_name"), str):
                suffix = Path(str(row["file_name"])).suffix.lower()
                return "audio" if suffix in AUDIO_SUFFIXES else "images"
            if isinstance(row.get("image"), str) or isinstance(row.get("audio"), str):
                return "interleaved"
            if "text" in row:
                return "jsonl"
            seen |= set(row)
    raise ConfigError(
        f"{path}: no row with file_name, text, image, audio, segments, parts or content in the "
        f"first {PEEKED_ROWS} lines; it has {sorted(seen)[:12]}"
    )


def parse_row(line: bytes) -> dict[str, Json] | str:
    """The JSON object of a line, or the reason why it is none."""
    try:
        row = read_json(line)
    except (ValueError, RecursionError) as error:
        return f"bad JSON: {error}"
    return row if isinstance(row, dict) else f"bad row: {type(row).__name__}, not an object"


def resolve(name: str, folder: Path, root: Path) -> Path:
    """The file that a row means: relative to its folder, or to one above it.

    The search ends at the parent of `root`, the SOURCE that the user named. SampleError if the
    name is absolute, leaves that place, or names no file. Symbolic links are followed.
    """
    if not name or "\0" in name or Path(name).is_absolute():
        raise SampleError(f"absolute or empty path: {name!r}")
    limit = Path(os.path.normpath(root.absolute())).parent
    base = Path(os.path.normpath(folder.absolute()))
    inside = False
    while base.is_relative_to(limit):
        path = Path(os.path.normpath(base / name))
        if path.is_relative_to(limit):
            inside = True
            if path.is_file():
                return path
        if base == limit:
            break
        base = base.parent
    raise SampleError(f"missing file: {name}" if inside else f"path leaves the source: {name}")


def list_files(folder: Path) -> list[Path]:
    """All files under a folder, sorted by relative path, without hidden ones."""
    found: list[Path] = []
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        found += [Path(here, n) for n in sorted(names) if not n.startswith(".")]
    return sorted(found)


def listing_hash(folder: Path, files: list[Path]) -> str:
    """A hash of relative names and sizes."""
    digest = xxhash.xxh3_128()
    for file in files:
        size = file.stat().st_size if file.exists() else -1
        digest.update(f"{file.relative_to(folder).as_posix()}\0{size}\n".encode(errors="replace"))
    return digest.hexdigest()


def is_rows(path: Path) -> bool:
    """Whether a file's name says that it is JSONL."""
    return path.name.lower().endswith((".jsonl", ".jsonl.gz"))


def _split_kind(path: str | Path, kind: str | None) -> tuple[Path, str | None]:
    prefix, colon, rest = str(path).partition(":")
    if colon and prefix in kinds() and not Path(path).exists():
        return Path(rest), prefix
    return Path(path), kind


def _kind_of_file(path: Path) -> str:
    if is_rows(path):
        return kind_of_rows(path)
    suffix = path.suffix.lower()
    for kind, suffixes in _LOOSE.items():
        if suffix in suffixes:
            return kind
    raise ConfigError(
        f"{path}: not a kind of file known by its name; to take its bytes: bytes:{path}"
    )


_LOOSE = {"images": IMAGE_SUFFIXES, "audio": AUDIO_SUFFIXES, "text": TEXT_SUFFIXES}


def _search(root: Path) -> Found:
    """One source a JSONL file; loose files of a kind together, but none below rows on media."""
    sources: list[Source] = []
    loose: dict[str, list[Path]] = {kind: [] for kind in _LOOSE}
    passed_over: list[Path] = []
    owned: list[Path] = []
    files = list_files(root)
    for file in (f for f in files if is_rows(f)):
        kind = kind_of_rows(file)
        sources.append(open_kind(kind, file, root))
        if kind != "jsonl":
            owned.append(file.parent)
    for file in (f for f in files if not is_rows(f)):
        kind = next((k for k, suffixes in _LOOSE.items() if file.suffix.lower() in suffixes), None)
        if any(file.is_relative_to(folder) for folder in owned):
            if kind not in ("images", "audio"):
                passed_over.append(file)
        elif kind is None or file.stem.lower() in NOT_SAMPLES:
            passed_over.append(file)
        else:
            loose[kind].append(file)
    for kind, found in loose.items():
        if found:
            module = import_module(f"plait.pipeline.sources.{kind}")
            sources.append(module.open_files(root, found))
    return Found(root=root, sources=sources, passed_over=passed_over)


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
