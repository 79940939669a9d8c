"""The cache of downloaded files: shared by processes that end when and how they like."""

import contextlib
import itertools
import json
import mmap
import os
import signal
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest

from plait.pipeline import cache as caches
from plait.pipeline.cache import Cache
from plait.pipeline.rows import Rows
from plait.pipeline.stream import Stream
from plait.tokenizers.errors import ConfigError, ShardError

from .fault_server import serving
from .made_stream import random_stream


def place(cache, name):
    return cache.folder / f"{caches.STREAM}x" / f"{name}.tar"


def put(cache, name, size=100, urgent=True):
    """Open a file, filled if it is new; `release` has nothing to give."""

    def fill(file):
        file.write(name.encode() * size)

    return cache.open(place(cache, name), size, fill, (lambda: False) if urgent else None)


def names(cache):
    return "".join(sorted(p.name.partition(".")[0] for p in cache.folder.glob("*/*")))


def use(cache, *wanted):
    """Use files one after the other, each a while later by its time."""
    for name in wanted:
        put(cache, name).close()
        for path in cache.folder.glob("*/*"):
            moved = path.stat().st_mtime_ns - 10**9
            os.utime(path, ns=(moved, moved))


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path, 300)


@contextlib.contextmanager
def forked(act):
    """A child process that runs `act` and then waits to be killed."""
    done, ready = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = os.fork()
    if not child:
        try:
            held = act()
            os.write(ready, b"." if held is not None else b"!")
            signal.pause()
        finally:
            os._exit(1)
    try:
        os.close(ready)
        assert os.read(done, 1) == b"."
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(done)


def test_what_was_used_longest_ago_goes_first(cache):
    use(cache, "a", "b", "c", "a", "d")
    assert names(cache) == "acd"
    with put(cache, "a") as file:
        assert file.read() == b"a" * 100


def test_what_is_in_use_stays(cache):
    use(cache, "a", "b", "c")
    with put(cache, "a") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    use(cache, "b", "c", "d", "e")
    assert names(cache) == "ade"
    mapped.close()
    use(cache, "f")
    assert names(cache) == "def"


def test_what_another_process_uses_stays_until_it_ends(cache):
    use(cache, "a", "b", "c")
    with forked(lambda: put(cache, "a")):
        use(cache, "b", "c", "d", "e")
        assert names(cache) == "ade"
    use(cache, "f", "g", "h")
    assert names(cache) == "fgh"


def test_who_needs_room_waits_a_moment_for_it(cache):
    held = [put(cache, name) for name in "abc"]
    asked = []

    def release():
        asked.append(1)
        if len(asked) == 3:
            held.pop(0).close()
        return False

    cache.open(place(cache, "d"), 100, lambda file: None, release).close()
    assert names(cache) == "bcd" and len(asked) == 3
    for each in held:
        each.close()


def test_maps_are_given_up_for_room(cache, monkeypatch):
    monkeypatch.setattr(caches, "PATIENCE_S", 0.1)
    held = [put(cache, name) for name in "abc"]
    assert put(cache, "d", urgent=False) is None
    file = cache.open(
        place(cache, "d"), 100, lambda file: None, lambda: held.pop(0).close() is None
    )
    file.close()
    assert names(cache) == "bcd" and len(held) == 2
    more = put(cache, "e")
    assert names(cache) == "bce"
    put(cache, "f").close()
    assert names(cache) == "bcef"
    for each in [*held, more]:
        each.close()


def test_only_streams_are_touched(cache):
    (cache.folder / "mine").mkdir()
    for path in (cache.folder / "mine.tar", cache.folder / "mine" / "a.tar"):
        path.write_bytes(bytes(1000))
    use(cache, "a", "b", "c", "d")
    assert names(cache) == "abcd"
    assert (cache.folder / "mine.tar").exists() and (cache.folder / "mine" / "a.tar").exists()


def test_a_failed_download_leaves_nothing(cache):
    def fill(file):
        file.write(b"half")
        raise ShardError("broken off")

    with pytest.raises(ShardError, match="broken off"):
        cache.open(place(cache, "a"), 100, fill, lambda: False)
    assert names(cache) == "" and not caches._exclusive
    put(cache, "a").close()


def test_no_space_says_what_to_do(cache):
    def fill(file):
        raise OSError(28, "No space left on device")

    with pytest.raises(
        ShardError, match=r"a\.tar: cannot be cached: .*No space.*PLAIT_CACHE_BYTES"
    ):
        cache.open(place(cache, "a"), 100, fill, lambda: False)
    (cache.folder / "file").write_text("")
    with pytest.raises(ShardError, match="cannot be cached"):
        put(Cache(cache.folder / "file", 300), "a")
    with pytest.raises(ConfigError, match="cache_bytes 0"):
        Cache(cache.folder, 0)


def test_threads_fill_a_file_once(cache):
    fills = []
    begun = threading.Event()

    def fill(file):
        fills.append(1)
        begun.wait(20)
        file.write(b"a" * 100)

    found = []

    def get():
        with cache.open(place(cache, "a"), 100, fill, lambda: False) as file:
            found.append(file.read())

    threads = [threading.Thread(target=get) for _ in range(6)]
    for thread in threads:
        thread.start()
    begun.set()
    for thread in threads:
        thread.join()
    assert found == [b"a" * 100] * 6 and fills == [1]


def test_a_killed_downloader_blocks_nobody(cache):
    use(cache, "b", "c")
    with forked(lambda: begin(cache, "a", 100)):
        assert put(cache, "a", urgent=False) is None
        assert names(cache) == "abc"
    with put(cache, "a") as file:
        assert file.read() == b"a" * 100
    assert names(cache) == "abc"


def test_a_file_that_arrives_meanwhile_is_not_fetched_again(cache, monkeypatch):
    claim = caches._claim

    def late(path):
        monkeypatch.undo()
        put(cache, "a").close()
        return claim(path)

    monkeypatch.setattr(caches, "_claim", late)
    with cache.open(place(cache, "a"), 100, pytest.fail, lambda: False) as file:
        assert file.read() == b"a" * 100
    assert names(cache) == "a"


def test_a_part_that_vanishes_meanwhile_is_begun_anew(cache, monkeypatch):
    lock = caches._lock_now

    def late(part):
        monkeypatch.undo()
        os.unlink(part.name)
        return lock(part)

    monkeypatch.setattr(caches, "_lock_now", late)
    with put(cache, "a") as file:
        assert file.read() == b"a" * 100
    assert names(cache) == "a"


def begin(cache, name, size):
    """A download that has only just begun."""
    part = caches._claim(touch(cache, name))
    part.truncate(size)
    return part


def touch(cache, name):
    place(cache, name).parent.mkdir(exist_ok=True)
    return place(cache, name)


def test_a_killed_downloaders_part_makes_room(cache):
    with forked(lambda: begin(cache, "a", 250)):
        pass
    use(cache, "b", "c")
    assert names(cache) == "bc"


def test_a_child_does_not_hold_its_parents_downloads(cache):
    """The parent lets go of its claim as a killed process would: by the descriptor alone."""
    part = caches._claim(touch(cache, "a"))
    with forked(lambda: True):
        caches._exclusive.discard(part.fileno())
        part.close()
        put(cache, "a").close()
    assert names(cache) == "a"


def test_a_lock_is_lifted_though_a_child_was_forked_in_it(cache):
    with contextlib.ExitStack() as stack:
        with caches._locked(cache.folder / "plait.lock"):
            stack.enter_context(forked(lambda: True))
        put(cache, "a").close()


def test_a_forked_child_reads_on_beside_its_parent(tmp_path):
    """It is forked while the parent's threads download, one of them without end."""
    random_stream(tmp_path / "s" / "made", documents=60, shards=4)
    with serving(tmp_path / "s") as server:
        stream = Stream(f"{server.url}/made", cache=tmp_path / "cache")
        assert stream.document(0).key == "d0"
        arrived = threading.Event()
        server.on_request = lambda name: arrived.set()
        server.faults["shard-000001.tar"] = itertools.repeat("stall")
        stream.prefetch([1])
        assert arrived.wait(20)
        with forked(lambda: stream.document(59).key == "d59" or None):
            assert stream.document(35).key == "d35"
        server.faults.clear()
        assert Stream(f"{server.url}/made", cache=tmp_path / "other").document(20).key == "d20"


READ = """
import sys
import numpy as np
from plait.pipeline.rows import Rows
from plait.pipeline.stream import Stream
url, cache, limit, out = sys.argv[1:]
rows = Rows(Stream(url, cache=cache, cache_bytes=int(limit)), seq_len=64, seed=3)
print("begun", flush=True)
sys.stdin.read(1)
tokens = [rows[i].tokens for i in range(2 * len(rows))]
np.save(out, np.concatenate(tokens))
"""


def start_reader(repository, url, cache, limit, out, first=None):
    """A process that reads two epochs, once it is told to."""
    environment = {**os.environ, "PYTHONPATH": str(repository / ".package")}
    code = (first or "") + READ
    command = [sys.executable, "-W", "error", "-c", code, url, str(cache), str(limit), str(out)]
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def go(process):
    process.stdin.write(".")
    process.stdin.flush()


def expected_tokens(folder):
    rows = Rows(Stream(folder), seq_len=64, seed=3)
    return np.concatenate([rows[i].tokens for i in range(2 * len(rows))])


@pytest.mark.slow
def test_processes_that_share_a_cache_fetch_each_shard_once(tmp_path, repository):
    random_stream(tmp_path / "s" / "made", documents=90, shards=6)
    with serving(tmp_path / "s") as server, contextlib.ExitStack() as stack:
        readers = [
            stack.enter_context(
                start_reader(
                    repository,
                    f"{server.url}/made",
                    tmp_path / "cache",
                    10**6,
                    tmp_path / f"{i}.npy",
                )
            )
            for i in range(2)
        ]
        for reader in readers:
            assert reader.stdout.readline() == "begun\n"
        for reader in readers:
            go(reader)
        assert [reader.wait(60) for reader in readers] == [0, 0]
        shards = {n: c for n, c in server.requests.items() if n.startswith("shard-")}
        assert shards == {f"shard-{i:06d}.{end}": 1 for i in range(6) for end in ("tar", "idx")}
    for i in range(2):
        assert np.array_equal(
            np.load(tmp_path / f"{i}.npy"), expected_tokens(tmp_path / "s" / "made")
        )


KILLS = """
import json, os, random, signal, sys, time
from pathlib import Path
import fsspec.implementations.http, numpy as np
from plait.pipeline import order, remote
from plait.pipeline.rows import Rows
from plait.pipeline.stream import Stream

url, cache, limit, expected, kills = sys.argv[1:]
remote.PART, order.WINDOW_DOCUMENTS = 4000, 50
chance = random.Random(0)
cache = Path(cache)

def read():
    stream = Stream(url, cache=cache, cache_bytes=int(limit))
    rows = Rows(stream, seq_len=64, seed=3)
    wanted = np.load(expected, mmap_mode="r")
    return all(np.array_equal(rows[i].tokens, wanted[i]) for i in range(len(wanted)))

def start():
    child = os.fork()
    if not child:
        code = 7
        try:
            code = 0 if read() else 3
        finally:
            os._exit(code)
    return child

readers, codes, killed, halves = {start() for _ in range(3)}, [], 0, 0
while killed < int(kills):
    time.sleep(chance.uniform(0, 0.3))
    for child in list(readers):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            readers.discard(child)
            codes.append(os.waitstatus_to_exitcode(status))
    for child in chance.sample(sorted(readers), min(len(readers), 1)):
        before = set(cache.glob("*/*.part"))
        os.kill(child, signal.SIGKILL)
        killed += os.waitpid(child, 0)[1] == signal.SIGKILL
        readers.discard(child)
        halves += bool(before)
    while len(readers) < 3:
        readers.add(start())
codes += [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in readers]
print(json.dumps({"killed": killed, "in_a_download": halves, "codes": codes, "last": read()}))
"""


@pytest.mark.slow
def test_fifty_killed_readers_leave_the_others_their_rows(tmp_path, repository):
    """Three readers share a cache of five of eight shards; one after the other is killed."""
    random_stream(tmp_path / "s" / "made", documents=400, shards=8, longest=200)
    made = tmp_path / "s" / "made"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("plait.pipeline.order.WINDOW_DOCUMENTS", 50)
        rows = Rows(Stream(made), seq_len=64, seed=3)
        expected = [rows[i].tokens for i in range(len(rows))]
    np.save(tmp_path / "expected.npy", np.stack(expected))
    limit = sum(p.stat().st_size for p in made.glob("shard-*")) * 5 // 8
    environment = {**os.environ, "PYTHONPATH": str(repository / ".package")}
    with serving(tmp_path / "s") as server:
        words = [f"{server.url}/made", tmp_path / "cache", limit, tmp_path / "expected.npy", 50]
        command = [sys.executable, "-W", "error", "-c", KILLS, *map(str, words)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["killed"] == 50 and facts["in_a_download"] >= 10
    assert facts["last"] and len(facts["codes"]) >= 3 and set(facts["codes"]) == {0}
    kept = [p for p in (tmp_path / "cache").glob("*/shard-*") if p.suffix != ".part"]
    assert kept and all(p.read_bytes() == (made / p.name).read_bytes() for p in kept)
    assert sum(p.stat().st_size for p in (tmp_path / "cache").glob("*/shard-*")) <= limit
