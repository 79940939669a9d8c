"""Reads the files below a URL through fsspec, and tries again what may go better the next time.

A file is read in parts of 8 MiB, so a break costs a part and not a shard, and memory is bounded. Of
fsspec's file systems only `cat_file` and `ls` are used, and their own retries are switched off
where they have any, so that tries are counted here alone.
"""

import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import xxhash

from plait.tokenizers.errors import ConfigError, ShardError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

PART = 8 << 20
"""Bytes asked for at once."""
PERMANENT = (
    *(FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError),
    *(NotImplementedError, ImportError, TypeError, ValueError),
)
"""Errors that another try does not mend."""
T = TypeVar("T")


def is_url(place: object) -> bool:
    """Whether this names files elsewhere; `file://` does not."""
    text = str(place)
    return "://" in text and not text.startswith("file://")


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How long to try: `tries` times, waiting `first_s`, then twice as long each time.

    Each wait is cut by a random share of up to a half, so that many readers do not come back at
    once.
    """

    tries: int = 6
    first_s: float = 0.5
    longest_s: float = 20.0
    timeout_s: float = 30.0
    """Wait for a connection, or for more bytes, at most so long (S3 and HTTP)."""

    def wait(self, failures: int) -> None:
        """Sleep after so many failures in a row."""
        longest = min(self.first_s * 2 ** (failures - 1), self.longest_s)
        time.sleep(longest * (1 - random.SystemRandom().random() / 2))


class Remote:
    """The files below a URL; `options` go to fsspec's file system."""

    def __init__(self, url: str, options: Mapping[str, object], retry: Retry) -> None:
        self.url = url.rstrip("/")
        self.retry = retry
        self._options = options
        self._made: tuple[int, AbstractFileSystem, str] | None = None
        self._inherited: list[object] = []

    def read(self, name: str) -> bytes:
        """A whole small file; FileNotFoundError if there is none, ShardError after the last try."""
        return self._again(name, lambda: self._cat(name, None, None))

    def save(self, name: str, file: BinaryIO, size: int, checksum: str) -> None:
        """Write a file of known size and xxh3_128 to a local one, at its position.

        Raises as `read` does.
        """
        start = file.tell()
        for _ in range(self.retry.tries):
            file.seek(start)
            if self._copy(name, file, size) == checksum:
                return
        raise ShardError(
            f"{self.url}/{name}: arrived damaged {self.retry.tries} times (its checksum is not the "
            "one in stream.json): upload this file again"
        )

    def names(self, folder: str) -> list[str]:
        """Names of what lies in a folder, as far as the server lists it."""

        def found() -> list[str]:
            files, path = self._connect()
            below = f"{path}/{folder}/"
            listed = (str(entry) for entry in files.ls(below, detail=False))
            return [p.removeprefix(below) for p in listed if p.startswith(below)]

        names = self._again(f"{folder}/", found)
        return sorted({n for n in names if n and n[0] != "." and not set(n) & set("/?#")})

    def _copy(self, name: str, file: BinaryIO, size: int) -> str:
        """Write the file once; its checksum."""
        digest = xxhash.xxh3_128()
        at = 0
        while at < size:
            data = self._again(name, lambda at=at: self._part(name, at, size))
            file.write(data)
            digest.update(data)
            at += len(data)
        return digest.hexdigest()

    def _part(self, name: str, start: int, size: int) -> bytes:
        """The next part; the whole file if the server does not know ranges."""
        stop = min(start + PART, size)
        data = self._cat(name, start, stop)
        if len(data) == size:
            return data[start:]
        if len(data) != stop - start:
            raise EOFError(f"{len(data)} bytes came, should be {stop - start}")
        return data

    def _cat(self, name: str, start: int | None, stop: int | None) -> bytes:
        files, path = self._connect()
        data = files.cat_file(f"{path}/{name}", start=start, end=stop)
        assert isinstance(data, bytes)
        return data

    def _again(self, name: str, act: Callable[[], T]) -> T:
        """Do it until it goes well; ShardError at last."""
        for failures in range(1, self.retry.tries + 1):
            try:
                return act()
            except (FileNotFoundError, ConfigError):
                raise
            except Exception as error:
                reason = f"{type(error).__name__}: {error}".rstrip(": ")
                if _is_permanent(error):
                    raise ShardError(f"{self.url}/{name}: {reason}") from None
            if failures < self.retry.tries:
                self.retry.wait(failures)
        raise ShardError(
            f"{self.url}/{name}: failed {self.retry.tries} times, at last with {reason}"
        )

    def _connect(self) -> tuple["AbstractFileSystem", str]:
        """The file system of this process, and the path of the URL in it.

        A forked process makes its own, and keeps the one that it inherited untouched: closing that
        would disturb its parent.
        """
        made = self._made
        if made is None or made[0] != os.getpid():
            self._inherited.append(made)
            made = self._made = (os.getpid(), *_open(self.url, self._options, self.retry))
        return made[1:]


def _open(
    url: str, options: Mapping[str, object], retry: Retry
) -> tuple["AbstractFileSystem", str]:
    import fsspec

    protocol = url.partition("://")[0]
    try:
        fsspec.get_filesystem_class(protocol)
        chosen = _merge(_defaults(protocol, retry.timeout_s), options)
        files, path = fsspec.url_to_fs(url, skip_instance_cache=True, **chosen)
    except (ImportError, ValueError) as error:
        hint = "pip install 'plait[cloud]' has s3:// and http://, pip install gcsfs has gs://"
        raise ConfigError(f"{url}: {error} ({hint})") from None
    if hasattr(files, "retries"):
        files.retries = 1
    return files, path.rstrip("/")


def _defaults(protocol: str, timeout_s: float) -> dict[str, object]:
    """Timeouts, and no retries inside."""
    if protocol in ("s3", "s3a"):
        retries = {"total_max_attempts": 1}
        timeouts = {"connect_timeout": timeout_s, "read_timeout": timeout_s}
        return {"config_kwargs": {**timeouts, "retries": retries}}
    if protocol in ("http", "https"):
        from aiohttp import ClientTimeout

        timeout = ClientTimeout(total=None, sock_connect=timeout_s, sock_read=timeout_s)
        headers = {"Accept-Encoding": "identity"}
        return {"client_kwargs": {"timeout": timeout}, "headers": headers}
    return {}


def _merge(defaults: Mapping[str, object], options: Mapping[str, object]) -> dict[str, object]:
    """The user's options over ours, dicts key by key."""
    merged = {**defaults, **options}
    for key, ours in defaults.items():
        theirs = options.get(key)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            merged[key] = {**ours, **theirs}
    return merged


def _is_permanent(error: Exception) -> bool:
    status = getattr(error, "status", None)
    refused = isinstance(status, int) and 400 <= status < 500 and status not in (408, 425, 429)
    return refused or isinstance(error, PERMANENT) or type(error).__name__ == "NoCredentialsError"
