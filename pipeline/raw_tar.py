"""Members of any tar (ustar, GNU, pax), found by their headers; nothing is extracted.

Reads 512 bytes a member and seeks over the data. A header is checked before it is believed; long
names are bounded; links, devices and sparse files are no regular members.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from plait.tokenizers.errors import ConfigError

_SECTOR = 512
MAX_NAME_BYTES = 1 << 16
_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL = b"L", b"K", b"x", b"g"
_WITHOUT_DATA = (
    *(tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE),
    *(tarfile.DIRTYPE, tarfile.FIFOTYPE),
)


@dataclass(frozen=True)
class Entry:
    """One member: where its header and its data begin."""

    name: str
    header: int
    offset: int
    size: int
    type: bytes

    @property
    def is_file(self) -> bool:
        """Whether it holds data of its own, all of it and nothing else."""
        return self.type in (tarfile.REGTYPE, tarfile.AREGTYPE)

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return self.type == tarfile.DIRTYPE


def entries(file: IO[bytes], path: Path, offset: int = 0) -> Iterator[Entry]:
    """The members from a header on; ConfigError if the tar is damaged or cut short."""
    total = file.seek(0, 2)
    name: str | None = None
    size: int | None = None
    begin = offset
    while offset < total:
        file.seek(offset)
        head = file.read(_SECTOR)
        if head == bytes(_SECTOR):
            return
        info = _header(head, path, offset)
        data, length = offset + _SECTOR, info.size if size is None else size
        length = 0 if info.type in _WITHOUT_DATA else length
        offset = data + length + -length % _SECTOR
        if length < 0 or offset > total:
            raise ConfigError(
                f"{path}: ends within member {(name or info.name)!r} at byte {data}; fetch it again"
            )
        if info.type in (_LONG_NAME, _PAX):
            new_name, new_size = _long_fields(file, path, info.type, data, length)
            name, size = new_name or name, new_size if new_size is not None else size
        elif info.type not in (_LONG_LINK, _PAX_GLOBAL):
            yield Entry(name or info.name, begin, data, length, info.type)
            name = size = None
            begin = offset


def _header(head: bytes, path: Path, offset: int) -> tarfile.TarInfo:
    try:
        info = tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError) as error:
        raise ConfigError(
            f"{path}: no tar header at byte {offset}: {error}; is it compressed, or damaged?"
        ) from None
    if info.type == tarfile.GNUTYPE_SPARSE:
        raise ConfigError(
            f"{path}: a sparse member at byte {offset}; make the tar without --sparse"
        )
    return info


def _long_fields(
    file: IO[bytes], path: Path, kind: bytes, data: int, length: int
) -> tuple[str | None, int | None]:
    """Name and size that the next member has, from the data of a member that says so."""
    if length > MAX_NAME_BYTES:
        raise ConfigError(f"{path}: {length} bytes of names at byte {data} are too many")
    file.seek(data)
    text = file.read(length)
    if kind == _LONG_NAME:
        return text.split(b"\0", 1)[0].decode("utf-8", "surrogateescape"), None
    records = dict(_pax_records(text, path))
    size = records.get(b"size")
    if size is not None and not (size.isdigit() and len(size) < 20):
        raise ConfigError(f"{path}: a size that is no number at byte {data}")
    name = records.get(b"path")
    decoded = None if name is None else name.decode("utf-8", "surrogateescape")
    return decoded, None if size is None else int(size)


def _pax_records(text: bytes, path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Records of the form `length key=value`, each with its line's end."""
    while text.strip(b"\0"):
        digits, space, _ = text.partition(b" ")
        length = int(digits) if space and digits.isdigit() and len(digits) < 8 else 0
        key, equals, value = text[len(digits) + 1 : length].partition(b"=")
        if not equals or length > len(text) or not value.endswith(b"\n"):
            raise ConfigError(f"{path}: damaged pax header")
        yield key, value[:-1]
        text = text[length:]
