"""Sources that are a list of files, one document each."""

from collections.abc import Callable, Iterator
from pathlib import Path

from plait.pipeline.compressed import suffix_of
from plait.pipeline.paths import list_files, listing_hash
from plait.pipeline.source import (
    AUDIO_SUFFIXES,
    HTML_SUFFIXES,
    IMAGE_SUFFIXES,
    TEXT_SUFFIXES,
    Json,
    Part,
    PartKind,
    Rejected,
    Sample,
)
from plait.tokenizers.errors import ConfigError

LOOSE = {
    "images": IMAGE_SUFFIXES,
    "audio": AUDIO_SUFFIXES,
    "text": TEXT_SUFFIXES,
    "html": HTML_SUFFIXES,
}
"""Kinds whose files are one document each, and how these files end."""


def loose_kind(file: Path) -> str | None:
    """The kind of a file that is a document of its own; only texts may be compressed."""
    for kind, suffixes in LOOSE.items():
        suffix = suffix_of(file) if kind == "text" else file.suffix.lower()
        if suffix in suffixes:
            return kind
    return None


class FileList:
    """Files under a folder; the key of each is its relative path."""

    def __init__(
        self, path: Path, files: list[Path], *, kind: str, part: PartKind, samples_per_task: int
    ) -> None:
        self.path = path
        self.kind = kind
        self.samples_per_task = samples_per_task
        self._files = files
        self._part: PartKind = part

    def __len__(self) -> int:
        return len(self._files)

    def read(self, start: int, stop: int) -> Iterator[Sample | Rejected]:
        """One sample a file; an unreadable file shows itself when its part is loaded."""
        for file in self._files[start:stop]:
            key = file.relative_to(self._folder).as_posix()
            yield Sample(key=key, parts=(Part(kind=self._part, value=file),))

    def describe(self) -> dict[str, Json]:
        """The hash is of names and sizes."""
        listing = listing_hash(self._folder, self._files)
        return {
            "path": str(self.path),
            "kind": self.kind,
            "samples": len(self),
            "listing": listing,
        }

    @property
    def _folder(self) -> Path:
        return self.path if self.path.is_dir() else self.path.parent


def open_files_of(
    path: Path, *, kind: str, make: Callable[[Path, list[Path]], FileList]
) -> FileList:
    """All files of a kind in a folder, or one file whatever its name; ConfigError if none."""
    files = [path] if path.is_file() else list_files(path)
    if kind in LOOSE and path.is_dir():
        files = [f for f in files if loose_kind(f) == kind]
    if not files:
        wanted = ", ".join(sorted(LOOSE[kind])) if kind in LOOSE else "any files"
        raise ConfigError(f"{path}: no {kind} here (looked for {wanted})")
    return make(path, files)
