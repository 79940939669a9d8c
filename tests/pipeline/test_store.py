"""Folders and object stores hold files in the same way; requests to a store are tried again."""

import fcntl
import os
import tempfile
import threading
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from plait.pipeline import bucket
from plait.pipeline.bucket import Bucket, open_store
from plait.pipeline.store import BusyError, Folder
from plait.tokenizers.errors import ConfigError, PlaitError


@pytest.fixture(params=["folder", "bucket"])
def store(request, tmp_path, memory_url):
    return open_store(tmp_path / "out" if request.param == "folder" else memory_url)


def test_files_are_written_listed_read_and_removed(store):
    if isinstance(store, Folder):
        (store.path / "job").mkdir(parents=True)
    assert store.names() <= {"job"} and store.files() == store.files("job") == {}
    assert store.read(["a", "job/b"]) == {}
    store.write("a", b"one")
    store.write("job/b", b"")
    store.write("job/b", b"more")
    assert store.names() == {"a", "job"}
    assert store.files() == {"a": 3} and store.files("job") == {"b": 4}
    assert store.read(["a", "gone", "job/b"]) == {"a": b"one", "job/b": b"more"}
    store.remove(["a", "gone"])
    store.remove_folder("job")
    store.remove_folder("job")
    assert store.names() == set()


def test_files_of_a_workplace_are_published(store):
    if isinstance(store, Folder):
        store.path.mkdir()
    with store.workplace() as folder:
        (folder / "x.tar").write_bytes(b"shard")
        store.publish(folder, ["x.tar"])
        for i in range(2):  # a second rank saves the same tokenizer
            part = folder / f".{i}.tmp"
            part.mkdir()
            (part / "config.json").write_bytes(b"{}")
            (part / "weights").write_bytes(b"w")
            store.publish_folder(part, "tokenizers/t")
    assert store.names() - {".1.tmp"} == {"x.tar", "tokenizers"}
    assert store.files("tokenizers/t") == {"config.json": 2, "weights": 1}
    with store.local("tokenizers/t") as copy:
        assert {p.name: p.read_bytes() for p in copy.iterdir()} == {
            "config.json": b"{}",
            "weights": b"w",
        }


def test_the_configuration_is_uploaded_last(memory_url, tmp_path, monkeypatch):
    """A tokenizer whose configuration is there is whole."""
    for name in ("a", "config.json", "weights", "z"):
        (tmp_path / name).write_bytes(b"x")
    written = []
    monkeypatch.setattr(Bucket, "write", lambda self, name, data: written.append(name))
    Bucket(memory_url).publish_folder(tmp_path, "t")
    assert written[-1] == "t/config.json" and len(written) == 4


def test_what_killed_processes_left_is_removed(memory_url, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("plait-shard-dead", "plait-shard-alive", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "lock").write_text("")
    with (tmp_path / "plait-shard-alive" / "lock").open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with Bucket(memory_url).workplace() as folder:
            left = {p.name for p in tmp_path.iterdir()}
            assert left == {"plait-shard-alive", "other", folder.name}
            with Bucket(memory_url).workplace():
                assert folder.is_dir()
    assert not folder.exists()


def test_one_job_or_many_ranks_hold_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("plait.pipeline.store.LOCK_PATIENCE_S", 0)
    store = Folder(tmp_path)

    def is_held(shared):
        try:
            with store.lock(shared=shared):
                return False
        except BusyError:
            return True

    with store.lock(shared=True):
        assert (is_held(shared=True), is_held(shared=False)) == (False, True)
    with store.lock(shared=False):
        assert is_held(shared=True) and is_held(shared=False)
    assert not is_held(shared=False)


def test_a_file_system_without_locks_is_trusted(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(38, os.strerror(38))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with Folder(tmp_path).lock(shared=False), Folder(tmp_path).lock(shared=False):
        assert (tmp_path / "job" / "lock").is_file()


@pytest.mark.parametrize("error", [TimeoutError("slow"), OSError(5, "EIO"), Exception("503")])
def test_requests_are_tried_again_after_growing_pauses(error, memory_url, monkeypatch):
    pauses, left = [], [3]
    monkeypatch.setattr(bucket.time, "sleep", pauses.append)
    pipe_file = MemoryFileSystem.pipe_file

    def failing(*args, **kwargs):
        left[0] -= 1
        if left[0] >= 0:
            raise error
        return pipe_file(*args, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", failing)
    store = open_store(memory_url)
    store.write("a", b"1")
    assert store.read(["a"]) == {"a": b"1"}
    assert len(pauses) == 3 and 0.5 <= pauses[0] <= 1 <= pauses[1] <= 2 <= pauses[2] <= 4
    left[0] = 1000
    with pytest.raises(PlaitError, match=r"^memory://.* \(tried 6 times\); the same command"):
        store.write("b", b"2")
    assert len(pauses) == 8


def test_a_lasting_error_is_not_tried_again(memory_url, monkeypatch):
    calls = []

    def refused(*args, **kwargs):
        calls.append(args)
        raise PermissionError("not yours")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", refused)
    with pytest.raises(PermissionError):
        open_store(memory_url).write("a", b"1")
    assert len(calls) == 1


def test_urls_that_cannot_be_written_to(monkeypatch):
    assert open_store("file:///a/b") == Folder(Path("/a/b"))
    for url in ("sftp://host/x", "http://host/x", "simplecache::s3://b/x", "C://x"):
        with pytest.raises(ConfigError, match=r"cannot write to .*, memory, .*, s3"):
            open_store(url)

    def not_installed(*_, **__):
        raise ImportError("install it")

    monkeypatch.setattr("fsspec.url_to_fs", not_installed)
    with pytest.raises(ConfigError, match=r"install it; .* pip install 'plait\[cloud\]'"):
        open_store("s3://bucket/x")


def test_threads_read_at_once(memory_url):
    store = open_store(memory_url)
    for i in range(40):
        store.write(f"f{i}", str(i).encode())
    before = threading.active_count()
    assert store.read(f"f{i}" for i in range(50)) == {f"f{i}": str(i).encode() for i in range(40)}
    assert threading.active_count() == before
