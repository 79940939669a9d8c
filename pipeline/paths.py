"""Files of a source: lists of them, hashes of the lists, and what a name in a row may point at."""

import os
import re
from pathlib import Path

import xxhash

from plait.tokenizers.errors import SampleError

_REMOTE = re.compile(r"(?:[a-z][a-z0-9+.-]+:)?//", re.IGNORECASE)


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
            if _is_file(path):
                return path
        if base == limit:
            break
        base = base.parent
    raise SampleError(f"missing file: {name}" if inside else f"path leaves the source: {name}")


def is_remote(name: str) -> bool:
    """Whether a name is an address and no path.

    >>> is_remote("https://a.org/b.png"), is_remote("//a.org/b.png"), is_remote("a//b.png")
    (True, True, False)
    """
    return _REMOTE.match(name) is not None


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


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or no name at all
        return False
