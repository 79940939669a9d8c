"""A stream's folder at a URL, of which a local one in the cache gets what is asked for.

The local folder is named by a hash of `stream.json`: a stream that was made anew never meets the
shards of the old one, and one stream under two URLs is kept once. Shards and indexes are checked
when they arrive, by the checksums in `stream.json`, and tokenizers by their fingerprints.
"""

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import xxhash

from plait.pipeline.cache import STREAM, Cache, default_bytes, default_folder
from plait.pipeline.remote import Remote, Retry
from plait.pipeline.shard_writer import TEMPORARY, ShardInfo
from plait.tokenizers.base import files_fingerprint
from plait.tokenizers.errors import ConfigError, ShardError

THREADS = 8
"""Downloads at a time, ahead of need."""
MODEL_FILES = ("sentencepiece.model", "weights.safetensors", "tokenizer.json", "ranks.tiktoken")
"""Asked for where a server does not list a tokenizer's folder."""


class RemoteFolder:
    """The files of a stream; `path` is the local folder."""

    def __init__(
        self,
        url: str,
        cache: str | Path | None,
        cache_bytes: int | None,
        options: Mapping[str, object],
        retry: Retry,
    ) -> None:
        self._remote = Remote(url, options, retry)
        limit = default_bytes() if cache_bytes is None else cache_bytes
        self._cache = Cache(Path(cache) if cache else default_folder(), limit)
        try:
            manifest = self._remote.read("stream.json")
        except FileNotFoundError:
            raise ShardError(
                f"{url}: no stream here (stream.json is missing), or its `plait shard` command is "
                "not finished"
            ) from None
        self.path = self._cache.folder / f"{STREAM}{xxhash.xxh3_128_hexdigest(manifest)}"
        self._write("stream.json", manifest)
        self._mapped: dict[str, weakref.WeakMethod[Callable[[], None]]] = {}
        self._queue: deque[tuple[ShardInfo, str]] = deque()
        self._threads: list[threading.Thread] = []

    def open(self, info: ShardInfo, suffix: str) -> BinaryIO:
        """A shard's `.tar` or `.idx`, fetched if need be, and in use until closed and unmapped."""
        file = self._open(info, suffix, urgent=True)
        assert file is not None
        return file

    def mapped(self, info: ShardInfo, release: Callable[[], None]) -> None:
        """Note that a shard is mapped; `release`, a method, is called if others need the room."""
        self._mapped[info.name] = weakref.WeakMethod(release)

    def discard(self, info: ShardInfo) -> None:
        """Forget a shard that was damaged in the cache."""
        (self.path / f"{info.name}.tar").unlink(missing_ok=True)

    def prefetch(self, now: Iterable[ShardInfo], then: Iterable[ShardInfo]) -> None:
        """Fetch shards in the background, as many as have room, those of `now` first.

        ConfigError if not even those have room.
        """
        now, room = list(now), self._cache.limit
        need = sum(info.bytes + info.index_bytes for info in now)
        if need > room:
            raise ConfigError(
                f"{self._remote.url}: {len(now)} shards of {need:,} bytes are used at a time, more "
                f"than the cache may hold ({room:,}): raise cache_bytes or PLAIT_CACHE_BYTES"
            )
        for info in now:
            if (release := self._mapped.pop(info.name, None)) is not None:
                self._mapped[info.name] = release
        chosen = []
        for info in {info.name: info for info in [*now, *then]}.values():
            room -= info.bytes + info.index_bytes
            if room >= 0:
                chosen.append((info, ".tar"))
        self._queue.extendleft(reversed(self._new(chosen)))
        self._start()

    def prefetch_indexes(self, shards: Iterable[ShardInfo]) -> None:
        """Fetch indexes in the background."""
        self._queue.extend(self._new([(info, ".idx") for info in shards]))
        self._start()

    def file(self, name: str) -> Path:
        """Another file, fetched now; its path, where nothing is if the URL has none."""
        try:
            self._write(name, self._remote.read(name))
        except FileNotFoundError:
            (self.path / name).unlink(missing_ok=True)
        return self.path / name

    def tokenizer(self, name: str, fingerprint: str) -> Path:
        """The folder of a tokenizer."""
        if "/" in name or name.startswith("."):
            raise ShardError(f"{self._remote.url}/stream.json: impossible tokenizer {name!r}")
        below = f"tokenizers/{name}"
        if (self.path / below / "config.json").is_file():
            return self.path / below
        files = self._tokenizer_files(below)
        for _ in range(self._remote.retry.tries - 1):
            if files_fingerprint(files) == fingerprint:
                break
            files = self._tokenizer_files(below)
        else:
            found = files_fingerprint(files)
            raise ShardError(
                f"{self._remote.url}/{below}: another tokenizer than the one that made the stream, "
                f"or damaged: its files {sorted(files)} have fingerprint {found}, should be "
                f"{fingerprint}"
            )
        for file in sorted(files, key=lambda name: name == "config.json"):
            self._write(f"{below}/{file}", files[file])
        return self.path / below

    def _tokenizer_files(self, below: str) -> dict[str, bytes]:
        try:
            files = {"config.json": self._remote.read(f"{below}/config.json")}
        except FileNotFoundError:
            raise ShardError(f"{self._remote.url}/{below}: no tokenizer here") from None
        try:
            names = self._remote.names(below)
        except (FileNotFoundError, ShardError):
            names = []
        for name in set(names or MODEL_FILES) - {"config.json"}:
            try:
                files[name] = self._remote.read(f"{below}/{name}")
            except FileNotFoundError:
                continue
        return files

    def _open(self, info: ShardInfo, suffix: str, *, urgent: bool) -> BinaryIO | None:
        name = info.name + suffix
        tar = suffix == ".tar"
        size = info.bytes if tar else info.index_bytes
        checksum = info.checksum if tar else info.index_checksum

        def fill(file: BinaryIO) -> None:
            try:
                self._remote.save(name, file, size, checksum)
            except FileNotFoundError:
                raise ShardError(
                    f"{self._remote.url}/{name}: missing; `stream.json` lists it: upload it again"
                ) from None

        return self._cache.open(self.path / name, size, fill, self._release if urgent else None)

    def _release(self) -> bool:
        """Unmap the shard that was mapped longest ago; False if there is none."""
        for name in list(self._mapped):
            held = self._mapped.pop(name, None)
            release = held() if held else None
            if release is not None:
                release()
                return True
        return False

    def _new(self, wanted: list[tuple[ShardInfo, str]]) -> list[tuple[ShardInfo, str]]:
        """Those that are neither here nor queued."""
        known = {info.name + suffix for info, suffix in self._queue.copy()}
        if self.path.is_dir():
            known |= {path.name for path in self.path.iterdir()}
        return [(info, suffix) for info, suffix in wanted if info.name + suffix not in known]

    def _start(self) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        for _ in range(min(len(self._queue), THREADS) - len(self._threads)):
            thread = threading.Thread(target=self._work, daemon=True)
            self._threads.append(thread)
            thread.start()

    def _work(self) -> None:
        """Fetch what is queued, then end; what fails is tried again, and reported, when needed."""
        while self._queue:
            try:
                file = self._open(*self._queue.popleft(), urgent=False)
            except (IndexError, ConfigError, ShardError):
                continue
            if file is not None:
                file.close()

    def _write(self, name: str, data: bytes) -> None:
        path = self.path / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(
                f".{path.name}.{os.getpid()}.{threading.get_ident()}{TEMPORARY}"
            )
            temporary.write_bytes(data)
            temporary.replace(path)
        except OSError as error:
            raise ShardError(f"{path}: cannot be cached: {error}") from None
