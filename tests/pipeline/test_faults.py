"""Full disks, failing disks and stores, random kills: one clear line, then the same bytes."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from plait.pipeline.shard import shard
from plait.pipeline.shard_writer import ShardWriter
from plait.tokenizers.errors import PlaitError

from .conftest import tree, tree_of, write_rows


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    """What the kernel holds outlives a killed process: flushing to the disk is left out here."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    return [
        write_rows(folder / "a.jsonl", [{"text": f"number {i} " * (i % 5)} for i in range(50)]),
        write_rows(folder / "b.jsonl", [{"text": ""}] * 20),
    ]


@pytest.fixture(scope="module")
def whole(sources, bytes_tokenizer, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    shard(sources, out, [bytes_tokenizer], samples_per_shard=20)
    return tree(out)


def assert_nothing_half(found, whole):
    """Files under a final name are those of the whole stream; no temporary file is left."""
    for name, data in found.items():
        assert ".tmp" not in name
        assert name.startswith("job/") or data == whole[name], name


class Failing:
    """Lets functions fail with an error from call number `first` on, `times` times in all."""

    def __init__(self, monkeypatch, error, first, times):
        self.error, self.first, self.times = error, first, times
        self.calls = 0
        self.monkeypatch = monkeypatch

    def patch(self, owner, name):
        function = getattr(owner, name)

        def wrapper(*args, **kwargs):
            self.calls += 1
            if self.first <= self.calls < self.first + self.times:
                raise self.error
            return function(*args, **kwargs)

        self.monkeypatch.setattr(owner, name, wrapper)

    @property
    def failed(self):
        return self.calls >= self.first


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_at_any_step(code, sources, whole, bytes_tokenizer, tmp_path):
    """Once, or from then on; then the same command on a disk that works again."""
    for first in range(1, 200):
        out = tmp_path / str(first)
        with pytest.MonkeyPatch.context() as patch:
            error = OSError(code, os.strerror(code))
            disk = Failing(patch, error, first, times=1 if first % 2 else 1000)
            disk.patch(os, "fsync")
            disk.patch(Path, "replace")
            disk.patch(ShardWriter, "_write")
            if first % 3 == 0:
                disk.patch(Path, "mkdir")
            try:
                shard(sources, out, [bytes_tokenizer], samples_per_shard=20)
            except PlaitError as raised:
                message = str(raised)
            else:
                assert not disk.failed
                break
        assert message == f"{out}: {os.strerror(code)}; the same command goes on where it stopped"
        if out.exists():
            assert_nothing_half(tree(out), whole)
        shard(sources, out, [bytes_tokenizer], samples_per_shard=20)
        assert tree(out) == whole
    assert first > 25


@pytest.mark.parametrize("operation", ["pipe_file", "put_file", "cat_file", "ls", "rm_file"])
def test_a_store_that_fails_at_any_request(
    operation, sources, whole, bytes_tokenizer, memory_url, monkeypatch
):
    monkeypatch.setattr("plait.pipeline.bucket.PAUSES_S", (0, 0))

    def run(first, times):
        MemoryFileSystem.store.clear()
        with pytest.MonkeyPatch.context() as patch:
            store = Failing(patch, TimeoutError("too slow"), first, times)
            store.patch(MemoryFileSystem, operation)
            try:
                shard(sources, memory_url, [bytes_tokenizer], samples_per_shard=20)
            except PlaitError as error:
                assert str(error).startswith(f"{memory_url}: too slow (tried 3 times)")
                return True
            return False

    for first in range(1, 100, 3):
        failed = run(first, times=1000)
        assert_nothing_half(tree_of(memory_url), whole)
        shard(sources, memory_url, [bytes_tokenizer], samples_per_shard=20)
        assert tree_of(memory_url) == whole
        if not failed:
            break
        assert not run(first, times=2)
        assert tree_of(memory_url) == whole
    assert 1 < first < 97


def test_no_space_before_the_upload(sources, bytes_tokenizer, memory_url, monkeypatch):
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    Failing(monkeypatch, error, first=1, times=1).patch(ShardWriter, "_write")
    with pytest.raises(PlaitError, match="no space for a shard before its upload; set TMPDIR"):
        shard(sources, memory_url, [bytes_tokenizer], samples_per_shard=20)


def test_a_disk_that_cannot_be_read_is_no_bad_sample(tmp_path, sample_tokenizers, monkeypatch):
    for i in range(4):
        (tmp_path / "set").mkdir(exist_ok=True)
        Image.new("RGB", (32, 32), (60 * i, i, 5)).save(tmp_path / "set" / f"{i}.png")
    arguments = ([tmp_path / "set"], tmp_path / "out", [sample_tokenizers / "image"])
    read_bytes = Path.read_bytes

    def failing(path):
        if path.name == "2.png":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return read_bytes(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", failing)
        with pytest.raises(PlaitError, match=r"set/2\.png: Input/output error; the same command"):
            shard(*arguments)
    summary = shard(*arguments)
    assert (summary.documents, summary.rejected) == (4, {})


@pytest.fixture(scope="module")
def large(tmp_path_factory, bytes_tokenizer):
    """A source of about 700 kB in four shards, and the words of its command."""
    folder = tmp_path_factory.mktemp("large")
    source = write_rows(folder / "t.jsonl", [{"text": f"row {i} " * 100} for i in range(1000)])
    words = ["--tokenizer", str(bytes_tokenizer), "--samples-per-shard", "250", "--workers", "2"]
    shard([source], folder / "whole", [bytes_tokenizer], samples_per_shard=250)
    python = [sys.executable, "-m", "plait.pipeline.cli", "shard"]
    return [*python, str(source), *words], tree(folder / "whole")


def run_bash(script, *words, repository):
    environment = {**os.environ, "PYTHONPATH": str(repository / ".package")}
    command = ["bash", "-c", script, "bash", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_a_limit_on_file_sizes(large, tmp_path, repository):
    """The error of a worker process is one line, and the exit code 2."""
    command, whole = large
    out = str(tmp_path / "out")
    done = run_bash('ulimit -f 200; exec "$@"', *command, "--out", out, repository=repository)
    assert done.returncode == 2
    assert done.stderr == (
        f"plait shard: {out}: File too large; the same command goes on where it stopped\n"
    )
    assert_nothing_half(tree(tmp_path / "out"), whole)
    done = run_bash('exec "$@"', *command, "--out", out, repository=repository)
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "out") == whole


FULL = """
mount -t tmpfs -o size=1200k none "$1" || exit 99
"${@:3}" --out "$1/out"; echo "code $?"
mkdir "$2/left" && cp -r "$1/out/." "$2/left"
mount -o remount,size=64m "$1"
"${@:3}" --out "$1/out"; echo "code $?"
cp -r "$1/out" "$2"
"""


@pytest.mark.slow
def test_a_disk_that_is_full(large, tmp_path, repository):
    """On a file system of 1.2 MB in memory, which then grows."""
    command, whole = large
    (tmp_path / "disk").mkdir()
    namespace = ["unshare", "--mount", *(() if os.getuid() == 0 else ("--map-root-user",))]
    words = ["bash", "-c", FULL, "bash", str(tmp_path / "disk"), str(tmp_path), *command]
    done = run_bash('exec "$@"', *namespace, *words, repository=repository)
    if "code" not in done.stdout:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    lines = done.stderr.splitlines()
    assert [line for line in done.stdout.splitlines() if line.startswith("code")] == [
        "code 2",
        "code 0",
    ]
    assert len(lines) == 1 and lines[0].endswith(
        "No space left on device; the same command goes on where it stopped"
    )
    assert_nothing_half(tree(tmp_path / "left"), whole)
    assert tree(tmp_path / "out") == whole


def killed_after(delay_s, *arguments):
    """Run a job in a child process and kill it after a while; whether it was still at work."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = os.fork()
    if not child:
        try:
            shard(*arguments, workers=1, samples_per_shard=20)
            os._exit(0)
        finally:
            os._exit(7)
    time.sleep(delay_s)  # the moment is arbitrary: this waits for nothing
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.slow
def test_a_hundred_random_kills(bytes_tokenizer, tmp_path):
    """Jobs killed at random moments, each again and again until one is done before its kill."""
    rows = [{"id": i, "text": f"number {i} " * (i % 50)} for i in range(200)]
    source = write_rows(tmp_path / "t.jsonl", rows)
    started = time.monotonic()
    shard([source], tmp_path / "whole", [bytes_tokenizer], workers=1, samples_per_shard=20)
    takes_s = time.monotonic() - started
    whole = tree(tmp_path / "whole")
    generator = random.Random(0)
    kills = jobs = 0
    while kills < 100:
        out = tmp_path / f"job-{jobs}"
        while killed_after(generator.uniform(0, takes_s), [source], out, [bytes_tokenizer]):
            kills += 1
            found = {n: d for n, d in tree(out).items() if ".tmp" not in n}
            assert_nothing_half(found, whole)
        assert tree(out) == whole
        jobs += 1
