"""Plain USTAR archives: the same bytes every time, and a reader that trusts no header.

Members have mtime 0, uid 0 and no PAX headers (stock `webdataset.ShardWriter` writes them: 1 KiB
more a member). Member data starts at a multiple of 512, so the payload of an .npy member, whose
header is padded to 64 bytes, is aligned for every number type.
"""

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from plait.tokenizers.errors import ShardError

END = bytes(1024)
_SECTOR = 512
_HEADER = re.compile(
    rb"\{'descr': '(?P<type>[^']{1,16})' *, 'fortran_order': (?P<order>True|False), "
    rb"'shape': \((?P<shape>(?:\d{1,18}, ?)*\d{0,18})\),? ?\} *\n"
)
_DTYPES = {name: np.dtype(name) for name in ("|u1", "<u2", "<u4", "<i4", "<i8", "<f2", "<f4")}


@dataclass(frozen=True)
class Member:
    """Where a member's data lies in its archive."""

    name: str
    offset: int
    size: int


def header(name: str, size: int) -> bytes:
    """The 512 bytes before a member's data."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT)


def padding(size: int) -> bytes:
    """The zeros after a member's data."""
    return bytes(-size % _SECTOR)


def pack(members: dict[str, bytes]) -> bytes:
    """A whole archive in memory."""
    pieces = [p for n, d in members.items() for p in (header(n, len(d)), d, padding(len(d)))]
    return b"".join([*pieces, END])


def scan(buffer: memoryview, where: str) -> Iterator[Member]:
    """The members of an archive; ShardError if it is cut short, or is no plain archive."""
    offset, total = 0, len(buffer)
    while True:
        if offset + _SECTOR > total:
            raise ShardError(f"{where}: truncated: no end of archive after {total} bytes")
        head = bytes(buffer[offset : offset + _SECTOR])
        if head == END[:_SECTOR]:
            break
        try:
            info = tarfile.TarInfo.frombuf(head, "utf-8", "strict")
        except (tarfile.HeaderError, ValueError) as error:
            raise ShardError(f"{where}: no tar header at byte {offset}: {error}") from None
        offset += _SECTOR
        if info.type != tarfile.REGTYPE or info.size < 0 or offset + info.size > total:
            raise ShardError(
                f"{where}: member {info.name!r} at byte {offset} ({info.size} bytes) is cut short "
                "or no regular file"
            )
        yield Member(info.name, offset, info.size)
        offset += info.size + -info.size % _SECTOR
    if bytes(buffer[offset:]).strip(b"\0") or total - offset < len(END):
        raise ShardError(f"{where}: truncated or longer than its archive at byte {offset}")


def npy_bytes(array: np.ndarray) -> bytes:
    """An array as an .npy file, version 1.0."""
    array = np.ascontiguousarray(array)
    head = _npy_header(array)
    return head + array.tobytes()


def npy_view(buffer: memoryview, where: str) -> np.ndarray:
    """The array of an .npy member, without a copy; ShardError if it is not what it says."""
    array, _ = npy_parse(buffer, where)
    return array


def npy_parse(buffer: memoryview, where: str) -> tuple[np.ndarray, int]:
    """The array, and the byte at which its data begins."""
    head = bytes(buffer[:10])
    if len(head) < 10 or head[:8] != b"\x93NUMPY\x01\x00":
        raise ShardError(f"{where}: not an .npy array (wrong magic number {head[:8]!r})")
    start = 10 + int.from_bytes(head[8:10], "little")
    shape, dtype = _npy_fields(bytes(buffer[10:start]), where)
    if start + int(np.prod(shape, dtype=object)) * dtype.itemsize != len(buffer):
        raise ShardError(f"{where}: {shape} values of {dtype} do not fill its {len(buffer)} bytes")
    return np.frombuffer(buffer[start:], dtype).reshape(shape), start


def _npy_header(array: np.ndarray) -> bytes:
    fields = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
    text = repr(fields).encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def _npy_fields(text: bytes, where: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type from a header.

    Not by `ast.literal_eval`, as numpy does: in Python 3.11 that is not safe in threads.
    """
    found = _HEADER.fullmatch(text)
    if found is None:
        raise ShardError(f"{where}: damaged .npy header")
    shape = tuple(int(n) for n in found["shape"].replace(b",", b" ").split())
    name = found["type"].decode("latin-1")
    dtype = _DTYPES.get(name)
    if found["order"] == b"True" or dtype is None or len(shape) > 2:
        raise ShardError(f"{where}: an array {shape} of {name} has no place in a shard")
    return shape, dtype


def smallest(array: np.ndarray) -> np.ndarray:
    """The same values, none negative, in the smallest of uint8, uint16 and uint32 that fits."""
    top = int(array.max()) if array.size else 0
    for dtype in (np.uint8, np.uint16, np.uint32):
        if top <= np.iinfo(dtype).max:
            return array.astype(dtype)
    raise ShardError(f"a count of {top} does not fit in 32 bits")
