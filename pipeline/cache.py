"""A bounded folder of downloaded files that processes share.

Whoever downloads a file holds a lock on its `.part`, whoever has it open or mapped a shared lock on
it (`flock`: the kernel lifts it when the process ends, however it ends). So a file is downloaded
once, a killed process blocks nobody, and nothing is evicted that a live process uses. A file
appears under its name by a rename, when it is whole and its checksum was right. Eviction takes what
was used longest ago. On Linux even a file that somebody else removes stays readable to those who
have it mapped.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from plait.tokenizers.errors import ConfigError, ShardError

DEFAULT_BYTES = 32 << 30
STREAM = "plait-stream-"
"""A stream's folder; nothing else in the cache's folder is touched."""
PART = ".part"
EVICTED = (".tar", ".idx", PART)
POLL_S = 0.01
"""Who waits for another's download, or for room, looks again so often."""
PATIENCE_S = 1.0
"""So long does a file that is needed wait for room before it passes the bound."""


def default_folder() -> Path:
    """`PLAIT_CACHE`, else a folder in the user's cache."""
    if named := os.environ.get("PLAIT_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "plait" / "streams"


def default_bytes() -> int:
    """`PLAIT_CACHE_BYTES` (as 50e9), else 32 GiB."""
    text = os.environ.get("PLAIT_CACHE_BYTES") or str(DEFAULT_BYTES)
    try:
        return int(float(text))
    except (ValueError, OverflowError):
        raise ConfigError(f"PLAIT_CACHE_BYTES={text}: should be a number of bytes") from None


class Cache:
    """Shards and indexes of streams below `folder`; only what is in use may pass `limit` bytes."""

    def __init__(self, folder: Path, limit: int) -> None:
        if limit < 1:
            raise ConfigError(f"cache_bytes {limit}: should be at least 1")
        self.folder = folder
        self.limit = limit

    def open(
        self,
        path: Path,
        size: int,
        fill: Callable[[BinaryIO], None],
        release: Callable[[], bool] | None,
    ) -> BinaryIO | None:
        """The file, in use until it and all its maps are closed; `fill` writes it if it is new.

        Where it has no room, `release` is asked to give up maps, one a call; what others use may
        get free in a moment. Without `release` this is not urgent: None comes back if there is no
        room, or another downloads it.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            while (file := _found(path, size)) is None:
                part = _claim(path)
                if part is not None:
                    return self._download(part, path, size, fill, release)
                if release is None:
                    return None
                time.sleep(POLL_S)
        except OSError as error:
            raise ShardError(
                f"{path}: cannot be cached: {error}; free some space, or choose another folder or "
                "a smaller bound (PLAIT_CACHE, PLAIT_CACHE_BYTES)"
            ) from None
        return file

    def _download(
        self,
        part: BinaryIO,
        path: Path,
        size: int,
        fill: Callable[[BinaryIO], None],
        release: Callable[[], bool] | None,
    ) -> BinaryIO | None:
        """Fill a claimed part and put it in place; the claim turns into a shared lock."""
        patience = time.monotonic() + PATIENCE_S
        try:
            while not self._reserve(part, size, must=time.monotonic() > patience):
                if release is None:
                    _abandon(part)
                    return None
                if not release():
                    time.sleep(POLL_S)
            fill(part)
            part.seek(0)
            Path(part.name).replace(path)
        except BaseException:
            _abandon(part)
            raise
        fcntl.flock(part, fcntl.LOCK_SH)
        _exclusive.discard(part.fileno())
        return part

    def _reserve(self, part: BinaryIO, size: int, *, must: bool) -> bool:
        """Give the part its size, which counts from now on, if that keeps the bound or must be."""
        with _locked(self.folder / "plait.lock"):
            fits = self._evict(size)
            if fits or must:
                part.truncate(size)
            return fits or must

    def _evict(self, need: int) -> bool:
        """Remove what was used longest ago until `need` bytes have room; whether they have."""
        files = []
        for path in self.folder.glob(f"{STREAM}*/*"):
            with suppress(FileNotFoundError):
                if path.name.endswith(EVICTED):
                    status = path.stat()
                    files.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total + need <= self.limit:
                break
            if _remove(path):
                total -= size
        return total + need <= self.limit


_exclusive: set[int] = set()
"""Descriptors with an exclusive lock: a forked process lets go of them, or it would hold the lock
after its parent has closed them or was killed."""


def _after_fork() -> None:
    if _exclusive:
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in _exclusive:
            os.dup2(null, descriptor, inheritable=False)
        os.close(null)
        _exclusive.clear()


os.register_at_fork(after_in_child=_after_fork)


def _found(path: Path, size: int) -> BinaryIO | None:
    """The file if it is there, marked as in use and as used last."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    if os.fstat(file.fileno()).st_size != size:
        file.close()
        path.unlink(missing_ok=True)
        return None
    fcntl.flock(file, fcntl.LOCK_SH)
    with suppress(PermissionError):
        os.utime(file.fileno())
    return file


def _claim(path: Path) -> BinaryIO | None:
    """An empty part that is ours alone; None if another downloads the file, or just did."""
    part = open(path.with_name(path.name + PART), "r+b", opener=_create)  # noqa: SIM115
    if _lock_now(part):
        if _is_in_place(part) and not path.exists():
            part.truncate(0)
            return part
        _abandon(part)
    part.close()
    return None


def _create(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_CREAT, 0o666)


def _abandon(part: BinaryIO) -> None:
    """Give up an exclusive lock, and the file unless it has another's name by now."""
    if _is_in_place(part):
        Path(part.name).unlink()
    _exclusive.discard(part.fileno())
    part.close()


def _remove(path: Path) -> bool:
    """Remove a file that nobody uses; whether it is gone."""
    try:
        file = path.open("r+b")  # network file systems lock exclusively only what can be written
    except FileNotFoundError:
        return True
    except PermissionError:
        return False
    if not _lock_now(file):
        file.close()
        return False
    _abandon(file)
    return True


def _lock_now(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    _exclusive.add(file.fileno())
    return True


def _is_in_place(file: BinaryIO) -> bool:
    """Whether the file still has the name under which it was opened."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), Path(file.name).stat())
    return False


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        _exclusive.add(file.fileno())
        try:
            yield
        finally:
            _exclusive.discard(file.fileno())
