"""A file that lines are added to, also when the disk is full for a while."""

import errno
import sys
from pathlib import Path

DISK_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EIO}
"""Errors of a disk after which a run goes on: there may be space again the next time."""


class LineFile:
    """Adds lines to a file; those that find no space are written before the next one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: list[str] = []

    def append(self, line: str) -> None:
        """Add a line; a full disk is a warning."""
        first = not self._waiting
        self._waiting.append(line + "\n")
        before = self.path.stat().st_size if self.path.is_file() else 0
        try:
            with self.path.open("ab", buffering=0) as file:
                _write_all(file, "".join(self._waiting).encode())
        except OSError as error:
            if error.errno not in DISK_FAULTS:
                raise
            if self.path.is_file():
                with self.path.open("r+b") as file:
                    file.truncate(before)
            if first:
                print(f"warning: {self.path}: {error}; lines are kept for later", file=sys.stderr)
            return
        self._waiting = []


def _write_all(file, data: bytes) -> None:
    while data:
        data = data[file.write(data) :]
