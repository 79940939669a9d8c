"""A prefix of an object store, by any fsspec URL, that shard jobs on many machines write to.

An object store is atomic by itself: an object appears when its upload is complete. So there are
no locks and no renames, and what two machines write twice is the same. A task's files are written
to a temporary folder first, which its next user removes if the process was killed.
"""

import errno
import fcntl
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from plait.pipeline.store import Folder, Store
from plait.tokenizers.errors import ConfigError, PlaitError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

ATOMIC = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci", "oss", "memory"}
"""Protocols of stores where an object is never seen in part."""
PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Pauses before a request is tried again, up to doubled by chance."""
LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, ImportError, TypeError)
"""Errors that another try does not mend."""
CONNECTIONS = 16
_WORKPLACE = "plait-shard-"

Result = TypeVar("Result")


def open_store(out: str | Path) -> Store:
    """The store at a path or URL; ConfigError if its protocol cannot be written to safely."""
    protocol, separator, rest = str(out).partition("://")
    if not separator:
        return Folder(Path(out))
    if protocol == "file":
        return Folder(Path(rest))
    if protocol not in ATOMIC:
        raise ConfigError(
            f"--out {out}: cannot write to {protocol}://; there is {', '.join(sorted(ATOMIC))}, "
            "or a folder"
        )
    store = Bucket(str(out).rstrip("/"))
    try:
        _ = store.root
    except ImportError as error:
        raise ConfigError(f"--out {out}: {error}; for s3://: pip install 'plait[cloud]'") from None
    return store


@dataclass(frozen=True)
class Bucket:
    """A prefix of an object store. Requests that fail are tried again, with growing pauses."""

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def file_system(self) -> "AbstractFileSystem":
        """The fsspec file system, one a process."""
        import fsspec

        return fsspec.url_to_fs(self.url, use_listings_cache=False)[0]

    @property
    def root(self) -> str:
        """The prefix as the file system names it."""
        return str(self.file_system._strip_protocol(self.url)).rstrip("/")

    def names(self) -> set[str]:
        """The files and folders at the top."""
        return {entry["name"].rstrip("/").rpartition("/")[2] for entry in self._list("")}

    def files(self, folder: str = "") -> dict[str, int]:
        """Sizes of the files in one folder."""
        entries = (entry for entry in self._list(folder) if entry["type"] == "file")
        found = {entry["name"].rpartition("/")[2]: int(entry["size"]) for entry in entries}
        return {name: size for name, size in found.items() if name}

    def read(self, names: Iterable[str]) -> dict[str, bytes]:
        """What is in those of the files that are there."""

        def get(name: str) -> tuple[str, bytes | None]:
            with suppress(FileNotFoundError):
                data = self._request(self.file_system.cat_file, self._path(name))
                assert isinstance(data, bytes)
                return name, data
            return name, None

        with ThreadPoolExecutor(CONNECTIONS) as pool:
            return {name: data for name, data in pool.map(get, names) if data is not None}

    def write(self, name: str, data: bytes) -> None:
        """Write a small file."""
        self._request(self.file_system.pipe_file, self._path(name), data)

    def remove(self, names: Iterable[str]) -> None:
        """Remove files."""
        for name in names:
            with suppress(FileNotFoundError):
                self._request(self.file_system.rm_file, self._path(name))

    def remove_folder(self, name: str) -> None:
        """Remove a folder and the files in it."""
        names = [[f"{name}/{file}"] for file in self.files(name)]
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            list(pool.map(self.remove, names))

    @contextmanager
    def workplace(self) -> Iterator[Path]:
        """A temporary folder, locked while in use: those of killed processes are removed."""
        _remove_abandoned(Path(tempfile.gettempdir()))
        with tempfile.TemporaryDirectory(prefix=_WORKPLACE) as name:
            folder = Path(name)
            with (folder / "new").open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                (folder / "new").rename(folder / "lock")
                try:
                    yield folder
                except OSError as error:
                    if error.errno == errno.ENOSPC:
                        raise PlaitError(
                            f"{folder.parent}: no space for a shard before its upload; set TMPDIR "
                            "to a larger disk, the same command goes on where it stopped"
                        ) from error
                    raise

    def publish(self, folder: Path, names: Sequence[str]) -> None:
        """Upload files, one after the other."""
        for name in names:
            self._request(self.file_system.put_file, str(folder / name), self._path(name))

    def publish_folder(self, folder: Path, name: str) -> None:
        """Upload a folder, `config.json` last."""
        for path in sorted(folder.iterdir(), key=lambda p: (p.name == "config.json", p)):
            self.write(f"{name}/{path.name}", path.read_bytes())

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """A copy, while it is in use."""
        with self.workplace() as folder:
            copy = folder / "copy"
            copy.mkdir()
            for path, data in self.read([f"{name}/{file}" for file in self.files(name)]).items():
                (copy / path.rpartition("/")[2]).write_bytes(data)
            yield copy

    def lock(self, *, shared: bool) -> AbstractContextManager[None]:
        """There is none."""
        return nullcontext()

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _list(self, folder: str) -> list[dict]:
        self.file_system.invalidate_cache()
        path = self._path(folder).rstrip("/")
        try:
            entries = self._request(self.file_system.ls, path, True)
        except FileNotFoundError:
            return []
        return [e for e in entries if e["name"].rstrip("/").lstrip("/") != path.lstrip("/")]

    def _request(self, function: Callable[..., Result], *args: object) -> Result:
        for pause_s in PAUSES_S:
            try:
                return function(*args)
            except LASTING:
                raise
            except Exception:
                time.sleep(pause_s * random.uniform(1, 2))
        try:
            return function(*args)
        except LASTING:
            raise
        except Exception as error:
            raise PlaitError(
                f"{self.url}: {error or type(error).__name__} (tried {len(PAUSES_S) + 1} times); "
                "the same command goes on where it stopped"
            ) from error


def _remove_abandoned(parent: Path) -> None:
    """Remove the workplaces of this user whose process is gone."""
    for folder in parent.glob(f"{_WORKPLACE}*"):
        with suppress(OSError):
            if folder.stat().st_uid == os.getuid():
                with (folder / "lock").open("r+") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
