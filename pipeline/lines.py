"""Numbered rows of JSONL or a JSON array, plain, gzip or zstd, without ever holding the file.

Opening counts the rows and hashes the file as it lies on disk. A row is a line that is not blank,
as in most JSONL readers, or an element of the array that a `.json` file begins with. A plain file
keeps the byte offset of every 4096th row, so a range is found by a seek; in a compressed file the
rows before a range are read and thrown away.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import IO

import xxhash

from plait.pipeline.compressed import is_compressed, open_plain, suffix_of
from plait.pipeline.json_array import array_items
from plait.tokenizers.errors import ConfigError

MAX_LINE_BYTES = 256 << 20
SEEK_EVERY = 4096
PEEKED_BYTES = 1 << 16


class Lines:
    """The rows of one file, by number from 0."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.hash = _hash_file(path)
        self.count = 0
        self._array = is_array(path)
        self._places: list[tuple[int, int]] = []
        for offset, number, _ in self._scan(0, 1):
            if self.count % SEEK_EVERY == 0:
                self._places.append((offset, number))
            self.count += 1

    def __len__(self) -> int:
        return self.count

    def read(self, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
        """Rows start .. stop - 1, each with its line in the file, or its place in the array.

        Both count from 1.
        """
        if start >= stop:
            return
        seek = 0 if is_compressed(self.path) else start // SEEK_EVERY
        rows = self._scan(*self._places[seek])
        for number, (_, named, row) in enumerate(rows, seek * SEEK_EVERY):
            if number >= stop:
                return
            if number >= start:
                yield named, row

    def _scan(self, offset: int, number: int) -> Iterator[tuple[int, int, bytes]]:
        return scan_rows(self.path, offset, number, array=self._array)


def scan_rows(
    path: Path, offset: int = 0, number: int = 1, *, array: bool
) -> Iterator[tuple[int, int, bytes]]:
    """(byte offset, line or place in the array, row) from a row of the uncompressed file on."""
    with open_plain(path) as file:
        file.seek(offset)
        if array:
            yield from array_items(file, path, offset, number, limit=MAX_LINE_BYTES)
            return
        for line in _bounded_lines(file, path):
            if line.strip():
                yield offset, number, line
            offset += len(line)
            number += 1


def is_array(path: Path) -> bool:
    """Whether a file is a JSON array: named `.json`, and its text begins with a bracket."""
    if suffix_of(path) != ".json":
        return False
    with open_plain(path) as file:
        return file.read(PEEKED_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["


def _bounded_lines(file: IO[bytes], path: Path) -> Iterator[bytes]:
    while line := file.readline(MAX_LINE_BYTES):
        if len(line) == MAX_LINE_BYTES:
            raise ConfigError(f"{path}: a line is longer than {MAX_LINE_BYTES >> 20} MiB")
        yield line


def _hash_file(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
