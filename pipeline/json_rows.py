"""Base of the sources that read JSONL: one row a sample, keys `id#line`."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from plait.pipeline.lines import Lines
from plait.pipeline.source import Json, Rejected, Sample, parse_row
from plait.tokenizers.errors import SampleError


class JsonRows(ABC):
    """The rows of one `.jsonl` or `.jsonl.gz` file."""

    kind: str
    samples_per_task: int

    def __init__(self, path: Path, root: Path) -> None:
        self.path = path
        self.root = root

    @abstractmethod
    def sample_of(self, key: str, row: dict[str, Json]) -> Sample:
        """The sample of a row; SampleError if there is none in it."""

    @cached_property
    def lines(self) -> Lines:
        """The file's lines, counted when first asked for."""
        return Lines(self.path)

    def __len__(self) -> int:
        return len(self.lines)

    def read(self, start: int, stop: int) -> Iterator[Sample | Rejected]:
        """One sample a row; a bad row is rejected under its line number."""
        for number, line in self.lines.read(start, stop):
            row = parse_row(line)
            if isinstance(row, str):
                yield Rejected(source=str(self.path), key=f"#{number}", reason=row)
                continue
            key = f"{row_name(row)}#{number}"
            try:
                yield self.sample_of(key, row)
            except SampleError as error:
                yield Rejected(source=str(self.path), key=key, reason=str(error))

    def describe(self) -> dict[str, Json]:
        """The hash is of the file."""
        return {
            "path": str(self.path),
            "kind": self.kind,
            "samples": len(self),
            "listing": self.lines.hash,
        }


def row_name(row: dict[str, Json]) -> str:
    """What a row calls itself; nothing if it does not."""
    for name in ("id", "key", "file_name"):
        value = row.get(name)
        if isinstance(value, str | int) and not isinstance(value, bool):
            return str(value)
    return ""
