"""Base of the sources that read JSONL or a JSON array: one row a sample, keys `id#line`."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from plait.pipeline.compressed import suffix_of
from plait.pipeline.fields import KEYS, Fields, row_name
from plait.pipeline.json_text import read_json
from plait.pipeline.lines import Lines
from plait.pipeline.paths import list_files
from plait.pipeline.source import Json, Rejected, Sample
from plait.tokenizers.errors import SampleError

SUFFIXES = {".jsonl", ".ndjson", ".json"}


class JsonRows(ABC):
    """The rows of one file."""

    kind: str
    samples_per_task: int

    def __init__(self, path: Path, root: Path, fields: Fields) -> None:
        self.path = path
        self.root = root
        self.fields = fields

    @abstractmethod
    def sample_of(self, key: str, row: dict[str, Json]) -> Sample:
        """The sample of a row; SampleError if there is none in it."""

    @cached_property
    def lines(self) -> Lines:
        """The file's rows, counted when first asked for."""
        return Lines(self.path)

    def __len__(self) -> int:
        return len(self.lines)

    def read(self, start: int, stop: int) -> Iterator[Sample | Rejected]:
        """One sample a row; a bad row is rejected under its line number."""
        names = self.fields.names("key", KEYS)
        for number, line in self.lines.read(start, stop):
            row = parse_row(line)
            if isinstance(row, str):
                yield Rejected(source=str(self.path), key=f"#{number}", reason=row)
                continue
            key = f"{row_name(row, names)}#{number}"
            try:
                yield self.sample_of(key, row)
            except SampleError as error:
                yield Rejected(source=str(self.path), key=key, reason=str(error))

    def describe(self) -> dict[str, Json]:
        """The hash is of the file."""
        return self.fields.describe(self, self.lines.hash)


def parse_row(line: bytes) -> dict[str, Json] | str:
    """The JSON object of a line, or the reason why it is none."""
    try:
        row = read_json(line)
    except (ValueError, RecursionError) as error:
        return f"bad JSON: {error}"
    return row if isinstance(row, dict) else f"bad row: {type(row).__name__}, not an object"


def is_rows(path: Path) -> bool:
    """Whether a file's name says that it holds rows of JSON, whatever it is compressed with."""
    return suffix_of(path) in SUFFIXES


def rows_in(folder: Path) -> list[Path]:
    """The files of rows under a folder."""
    return [f for f in list_files(folder) if is_rows(f)]
