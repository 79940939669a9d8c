"""The elements of one long JSON array as they stand, cut apart without being parsed.

Only strings and brackets are looked at, so an element that is no valid JSON is a row like any other
and the next one is still found. Memory is that of one element; about 80 MB a second.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from plait.tokenizers.errors import ConfigError

_CHUNK = 1 << 18
_START = re.compile(rb"(?:\xef\xbb\xbf)?\s*+\[")
_END = re.compile(rb"\]")
_SKIP = re.compile(rb"[\s,]*+")
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_INSIDE = re.compile(rb'[^"\[\]{}]*+(?:' + _STRING + rb'[^"\[\]{}]*+)*+([\[\]{}])', re.DOTALL)
_BETWEEN = re.compile(rb'[^"\[\]{},]*+(?:' + _STRING + rb'[^"\[\]{},]*+)*+([\[\]{},])', re.DOTALL)


def array_items(
    file: IO[bytes], path: Path, offset: int, number: int, *, limit: int
) -> Iterator[tuple[int, int, bytes]]:
    """(byte offset, number, bytes) of each element; the file stands at `offset`.

    Offset 0 is the array's beginning, another one that of element `number`. ConfigError if the
    array does not end, something follows it, or an element takes more than `limit` bytes.
    """
    text = _Text(file, path, offset, limit)
    if offset == 0:
        text.skip(_START)
    while True:
        text.skip(_SKIP)
        item = text.take_item(number)
        if not item:
            break
        yield text.offset - len(item), number, item.rstrip()
        number += 1
    text.skip(_END)
    if text.rest().strip():
        raise ConfigError(f"{path}: something follows the JSON array at byte {text.offset}")


class _Text:
    """What has been read of a file and not yet been taken."""

    def __init__(self, file: IO[bytes], path: Path, base: int, limit: int) -> None:
        self._file = file
        self._path = path
        self._limit = limit
        self._data = b""
        self._base = base
        self._at = 0

    @property
    def offset(self) -> int:
        """The byte of the file at which we stand."""
        return self._base + self._at

    def skip(self, pattern: re.Pattern[bytes]) -> None:
        """Pass over what matches here, and over blanks and commas after it."""
        while not (found := pattern.match(self._data, self._at)) and self._more():
            pass
        self._at = found.end() if found else self._at
        while blanks := _SKIP.match(self._data, self._at):
            self._at = blanks.end()
            if self._at < len(self._data) or not self._more():
                return

    def take_item(self, number: int) -> bytes:
        """The element that begins here, up to its comma; nothing at the end of the array."""
        depth = taken = 0
        while True:
            pattern = _INSIDE if depth else _BETWEEN
            found = pattern.match(self._data, self._at + taken)
            if found is None:
                self._read_on(number)
                continue
            sign, taken = found[1], found.end() - self._at
            if depth == 0 and sign in b",]":
                item = self._data[self._at : found.start(1)]
                self._at = found.start(1)
                return item
            depth = max(depth + (1 if sign in b"[{" else -1), 0)

    def rest(self) -> bytes:
        """A little of what is left."""
        while not self._data[self._at :].strip() and self._more():
            pass
        return self._data[self._at :]

    def _read_on(self, number: int) -> None:
        if len(self._data) - self._at > self._limit:
            raise ConfigError(
                f"{self._path}: element {number} of the JSON array is longer than "
                f"{self._limit >> 20} MiB"
            )
        if not self._more():
            raise ConfigError(
                f"{self._path}: the JSON array ends within element {number}; fetch it again"
            )

    def _more(self) -> bool:
        """Read on, in steps that grow with what waits, so that long elements cost no more."""
        waiting = self._data[self._at :]
        chunk = self._file.read(max(_CHUNK, len(waiting)))
        self._data = waiting + chunk
        self._base += self._at
        self._at = 0
        return bool(chunk)
