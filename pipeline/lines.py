"""Numbered lines of a JSONL file, plain or gzip, without ever holding the file.

Opening counts the lines and hashes the file as it lies on disk, in one pass. Blank lines are no
samples, as in most JSONL readers. A plain file keeps the byte offset of every 4096th line, so a
range is found by a seek; in a gzip file the lines before a range are read and thrown away.
"""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import xxhash

from plait.tokenizers.errors import ConfigError

MAX_LINE_BYTES = 256 << 20
SEEK_EVERY = 4096


@contextmanager
def open_lines(path: Path, offset: int = 0) -> Iterator[Iterator[bytes]]:
    """The lines that are not blank, from a byte offset of the uncompressed text on."""
    with path.open("rb") as raw:
        file = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if path.suffix == ".gz" else raw
        file.seek(offset)
        yield (line for line in _bounded_lines(file, path) if line.strip())


class Lines:
    """The lines of one file that are not blank, by number from 0."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.compressed = path.suffix == ".gz"
        self.hash = _hash_file(path)
        self._places: list[tuple[int, int]] = []
        self.count = 0
        for offset, line_number, _ in self._scan(0, 1):
            if self.count % SEEK_EVERY == 0:
                self._places.append((offset, line_number))
            self.count += 1

    def __len__(self) -> int:
        return self.count

    def read(self, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
        """Lines start .. stop - 1, each with its line number in the file, which counts from 1."""
        if start >= stop:
            return
        seek = 0 if self.compressed else start // SEEK_EVERY
        lines = self._scan(*self._places[seek])
        for number, (_, line_number, line) in enumerate(lines, seek * SEEK_EVERY):
            if number >= stop:
                return
            if number >= start:
                yield line_number, line

    def _scan(self, offset: int, line_number: int) -> Iterator[tuple[int, int, bytes]]:
        """(byte offset, line number, line) from a place in the file on."""
        with self.path.open("rb", buffering=1 << 20) as raw:
            file = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if self.compressed else raw
            file.seek(offset)
            for line in _bounded_lines(file, self.path):
                if line.strip():
                    yield offset, line_number, line
                offset += len(line)
                line_number += 1


def _bounded_lines(file: IO[bytes], path: Path) -> Iterator[bytes]:
    try:
        while line := file.readline(MAX_LINE_BYTES):
            if len(line) == MAX_LINE_BYTES:
                raise ConfigError(f"{path}: a line is longer than {MAX_LINE_BYTES >> 20} MiB")
            yield line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ConfigError(f"{path}: damaged gzip file: {error}; fetch it again") from None


def _hash_file(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
