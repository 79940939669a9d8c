"""Files that may be compressed with gzip or zstd, read as what is in them.

The name says it (`.gz`, `.zst`). A zstd frame may ask for a window of at most 128 MiB, which is the
library's own bound. What is damaged or cut short is an error, never a shorter file.
"""

import gzip
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from plait.tokenizers.errors import ConfigError, SampleError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ENDINGS = (".gz", ".zst")
DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile, zstd.ZstdError)


def is_compressed(path: Path) -> bool:
    """Whether a file's name says that it is compressed."""
    return path.name.lower().endswith(ENDINGS)


def suffix_of(name: str | Path) -> str:
    """What kind of file a name says, in small letters, whatever it is compressed with.

    >>> suffix_of("a/B.TXT"), suffix_of("b.jsonl.gz"), suffix_of("c.d.json.zst"), suffix_of("gz")
    ('.txt', '.jsonl', '.json', '')
    """
    path = Path(str(name).lower())
    return Path(path.stem).suffix if path.suffix in ENDINGS else path.suffix


@contextmanager
def open_plain(path: Path) -> Iterator[IO[bytes]]:
    """The uncompressed bytes of a file; ConfigError where they turn out to be damaged."""
    ending = path.suffix.lower()
    with path.open("rb", buffering=1 << 20) as raw:
        try:
            if ending == ".gz":
                yield cast(IO[bytes], gzip.GzipFile(fileobj=raw))
            elif ending == ".zst":
                yield cast(IO[bytes], zstd.ZstdFile(raw))
            else:
                yield raw
        except DAMAGE as error:
            name = "gzip" if ending == ".gz" else "zstd"
            raise ConfigError(f"{path}: damaged {name} file: {error}; fetch it again") from None


def read_plain(path: Path, limit: int) -> bytes:
    """All of a file, uncompressed; SampleError if it is damaged or more than `limit` bytes."""
    pieces, size = [], 0
    try:
        with open_plain(path) as file:
            while piece := file.read(1 << 20):
                pieces.append(piece)
                size += len(piece)
                if size > limit:
                    raise SampleError(f"file too large: more than {limit:,} bytes")
    except ConfigError as error:
        raise SampleError(str(error).removeprefix(f"{path}: ")) from None
    return b"".join(pieces)
