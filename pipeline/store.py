"""Where a shard job writes: a local folder, or a prefix of an object store (bucket.py).

A task writes its files in a local `workplace`; `publish` puts them under their names. In a folder
the workplace is the folder itself, and the shard writer's own rename has published them already.
"""

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from plait.pipeline.shard_writer import sync_folder, write_file
from plait.tokenizers.errors import ConfigError

LOCK_PATIENCE_S = 10.0
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


class BusyError(ConfigError):
    """Another job is writing there."""


class Store(Protocol):
    """A folder of named files; a name is relative, with `/` between folders."""

    def names(self) -> set[str]:
        """The files and folders at the top."""
        ...

    def files(self, folder: str = "") -> dict[str, int]:
        """Sizes of the files in one folder, by their name there; empty if there is none."""
        ...

    def read(self, names: Iterable[str]) -> dict[str, bytes]:
        """What is in these files, those that are there."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Write a small file, which is there whole or not at all."""
        ...

    def remove(self, names: Iterable[str]) -> None:
        """Remove files in this order; it is fine if one is gone."""
        ...

    def remove_folder(self, name: str) -> None:
        """Remove a folder and the files in it; it is fine if it is gone."""
        ...

    def workplace(self) -> AbstractContextManager[Path]:
        """A local folder to write large files in."""
        ...

    def publish(self, folder: Path, names: Sequence[str]) -> None:
        """Put files of a workplace under their names, in this order."""
        ...

    def publish_folder(self, folder: Path, name: str) -> None:
        """Put a folder of a workplace under its name, its `config.json` last."""
        ...

    def local(self, name: str) -> AbstractContextManager[Path]:
        """A local folder with the files of this folder."""
        ...

    def lock(self, *, shared: bool) -> AbstractContextManager[None]:
        """Hold the store for one job, or for one of several ranks; BusyError if another has it."""
        ...


@dataclass(frozen=True)
class Folder:
    """A folder of this machine, or one that machines share."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def names(self) -> set[str]:
        """The files and folders at the top."""
        return {path.name for path in self.path.iterdir()} if self.path.is_dir() else set()

    def files(self, folder: str = "") -> dict[str, int]:
        """Sizes of the files in one folder."""
        found: dict[str, int] = {}
        with suppress(FileNotFoundError), os.scandir(self.path / folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    if entry.is_file():
                        found[entry.name] = entry.stat().st_size
        return found

    def read(self, names: Iterable[str]) -> dict[str, bytes]:
        """What is in those of the files that are there."""
        found: dict[str, bytes] = {}
        for name in names:
            with suppress(FileNotFoundError):
                found[name] = (self.path / name).read_bytes()
        return found

    def write(self, name: str, data: bytes) -> None:
        """Write a small file."""
        write_file(self.path / name, data)

    def remove(self, names: Iterable[str]) -> None:
        """Remove files."""
        for path in (self.path / name for name in names):
            path.unlink(missing_ok=True)
            if path.parent != self.path:
                with suppress(OSError):  # not empty
                    path.parent.rmdir()

    def remove_folder(self, name: str) -> None:
        """Remove a folder and the files in it."""
        shutil.rmtree(self.path / name, ignore_errors=True)

    def workplace(self) -> AbstractContextManager[Path]:
        """The folder itself."""
        return nullcontext(self.path)

    def publish(self, folder: Path, names: Sequence[str]) -> None:
        """Nothing: the files are in their place."""
        assert folder == self.path

    def publish_folder(self, folder: Path, name: str) -> None:
        """Flush the files to the disk and rename the folder."""
        target = self.path / name
        target.parent.mkdir(exist_ok=True)
        for path in folder.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        try:
            folder.replace(target)
        except OSError:
            if not (target / "config.json").is_file():  # else another rank was first
                raise
        sync_folder(target.parent)

    def local(self, name: str) -> AbstractContextManager[Path]:
        """The folder of this name."""
        return nullcontext(self.path / name)

    @contextmanager
    def lock(self, *, shared: bool) -> Iterator[None]:
        """The lock ends with the process. A file system without locks is trusted."""
        (self.path / "job").mkdir(parents=True, exist_ok=True)
        with (self.path / "job" / "lock").open("w") as file:
            patience_s = LOCK_PATIENCE_S if shared else 0  # another rank may be assembling
            if not _flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, patience_s):
                raise BusyError(f"{self.path}: another shard job is writing here")
            yield


def _flock(file: IO[str], kind: int, patience_s: float) -> bool:
    until = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(0.1)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return True
