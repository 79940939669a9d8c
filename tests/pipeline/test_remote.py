"""Streams at URLs: from a real S3 server and over HTTP, with and without faults on the way."""

import contextlib
import fcntl
import itertools
import json
import logging
import os
import pickle
import subprocess
import sys
import threading
import time

import boto3
import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from plait.pipeline import cli, remote
from plait.pipeline.remote import Retry
from plait.pipeline.rows import Rows
from plait.pipeline.stream import Stream
from plait.tokenizers import byte_patch
from plait.tokenizers.errors import ConfigError, ShardError

from .fault_server import FAULTS, serving
from .made_stream import random_stream

QUICK = Retry(tries=3, first_s=0.001, timeout_s=0.3)
SHARDS = 5
BUCKET = "streams"
FILES = ("stream.json", "shard-000001.idx", "shard-000003.tar")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that holds a stream `made`."""
    folder = tmp_path_factory.mktemp("served")
    random_stream(folder / "made", documents=90, shards=SHARDS)
    return folder


@pytest.fixture(scope="module")
def s3(folder):
    """Host and port of an S3 server whose bucket holds what the folder holds."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    keys = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "x", "AWS_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in keys.items():
            patch.setenv(name, value)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        upload((host, port), folder, "made")
        yield host, port
        server.stop()


def upload(s3, folder, name):
    client = boto3.client("s3", endpoint_url=f"http://{s3[0]}:{s3[1]}", region_name="us-east-1")
    client.create_bucket(Bucket=BUCKET)
    for path in (folder / name).rglob("*"):
        if path.is_file():
            key = path.relative_to(folder).as_posix()
            client.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())
    client.close()


@pytest.fixture(params=["http", "s3"])
def served(request, folder):
    """(server, open a stream of it), over HTTP and S3."""
    root = folder if request.param == "http" else request.getfixturevalue("s3")
    with serving(root) as server:
        if request.param == "http":
            yield server, lambda **options: Stream(f"{server.url}/made", **options)
        else:
            there = {"endpoint_url": server.url}
            yield (
                server,
                lambda **options: Stream(f"s3://{BUCKET}/made", storage_options=there, **options),
            )


def all_rows(stream):
    rows = Rows(stream, seq_len=64)
    return rows.batch(range(len(rows)))


def assert_same(stream, folder):
    found, expected = all_rows(stream), all_rows(Stream(folder / "made"))
    for name in (
        "tokens_BT",
        "modality_BT",
        "document_BT",
        "position_BT",
        "loss_mask_BT",
        "patch_start_BT",
    ):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name


def cached(cache):
    return {p.name: p.read_bytes() for p in cache.glob("*/*") if p.is_file()}


def test_rows_and_documents_are_those_of_the_folder(served, folder, tmp_path):
    server, open_stream = served
    stream = open_stream(cache=tmp_path)
    assert_same(stream, folder)
    local = Stream(folder / "made")
    assert stream.fingerprint == local.fingerprint and stream.url != str(stream.path)
    for i in (0, 41, 89):
        a, b = stream.document(i), local.document(i)
        assert a.key == b.key and all(
            map(np.array_equal, *([s.ids for s in d.spans] for d in (a, b)))
        )
    shards = {name: n for name, n in server.requests.items() if name.startswith("shard-")}
    assert shards == {
        f"shard-{i:06d}{suffix}": 1 for i in range(SHARDS) for suffix in (".tar", ".idx")
    }
    again = pickle.loads(pickle.dumps(stream))
    assert again.document(41).key == "d41" and again.path == stream.path
    assert {n: c for n, c in server.requests.items() if n in shards} == shards
    whole = {p.name: p.read_bytes() for p in (folder / "made").iterdir()}
    assert {
        k: v for k, v in cached(tmp_path).items() if k != "rejected.jsonl"
    }.items() <= whole.items()


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_that_pass(served, folder, tmp_path, fault):
    server, open_stream = served
    names = {"flip": FILES[1:], "short": FILES[1:], "stall": FILES[2:]}.get(fault, FILES)
    for name in names:
        server.faults[name] = iter([fault, fault])
    assert_same(open_stream(cache=tmp_path, retry=QUICK), folder)
    assert all(server.requests[name] >= 3 for name in names)
    assert fault != "flip" or server.requests[FILES[2]] == 3
    assert not list(tmp_path.glob("*/*.part"))


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_that_last(served, folder, tmp_path, fault):
    server, open_stream = served
    name = FILES[2]
    server.faults[name] = itertools.repeat(fault)
    stream = open_stream(cache=tmp_path, retry=QUICK)
    what = "failed 3 times, at last with .+"
    if fault == "flip" and stream.url.startswith("http"):  # S3 has a checksum of its own
        what = "arrived damaged 3 times"
    with pytest.raises(ShardError, match=rf"made/{name.replace('.', '[.]')}: {what}"):
        all_rows(stream)
    assert name not in cached(tmp_path)
    assert fault == "reset" or server.requests[name] <= 6, "tried ahead of need, and when needed"
    server.faults.clear()
    assert_same(stream, folder)


def test_a_stream_that_is_not_there(served, folder, tmp_path):
    server, open_stream = served
    server.faults["shard-000003.tar"] = itertools.repeat("404")
    with pytest.raises(ShardError, match=r"shard-000003\.tar: missing; `stream.json` lists it"):
        all_rows(open_stream(cache=tmp_path, retry=QUICK))
    server.faults["shard-000001.idx"] = itertools.repeat("403")
    began = server.requests["shard-000001.idx"]
    with pytest.raises(ShardError, match=r"shard-000001\.idx: "):
        open_stream(cache=tmp_path / "other", retry=QUICK).reader(1)
    assert server.requests["shard-000001.idx"] == began + 1
    server.faults["stream.json"] = itertools.repeat("404")
    with pytest.raises(ShardError, match=r"made: no stream here \(stream\.json is missing\)"):
        open_stream(cache=tmp_path, retry=QUICK)


def test_waits_grow_and_differ(monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    for _ in range(200):
        for failures in range(1, 9):
            Retry(first_s=1, longest_s=20).wait(failures)
    longest = np.array(waits).reshape(200, 8)
    assert (longest <= [1, 2, 4, 8, 16, 20, 20, 20]).all()
    assert (longest >= np.array([1, 2, 4, 8, 16, 20, 20, 20]) / 2).all()
    assert len(set(waits)) == len(waits)


def test_a_break_costs_a_part_and_not_the_shard(served, folder, tmp_path, monkeypatch):
    server, open_stream = served
    monkeypatch.setattr(remote, "PART", 3000)
    size = (folder / "made" / FILES[2]).stat().st_size
    server.faults[FILES[2]] = iter(["", "truncate", "", "reset", "500"])
    stream = open_stream(cache=tmp_path, retry=QUICK)
    assert stream.reader(3).buffer == (folder / "made" / FILES[2]).read_bytes()
    assert size > 6000 and server.requests[FILES[2]] == -(-size // 3000) + 3


def test_servers_that_give_files_whole_or_compressed(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "PART", 3000)
    with serving(folder, ranges=False) as server:
        assert_same(Stream(f"{server.url}/made", cache=tmp_path / "1", retry=QUICK), folder)
        assert server.requests[FILES[2]] == 1
    with serving(folder, compresses=True) as server:
        assert_same(Stream(f"{server.url}/made", cache=tmp_path / "2", retry=QUICK), folder)


def test_the_next_window_is_fetched_ahead(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("plait.pipeline.order.WINDOW_DOCUMENTS", 18)
    with serving(folder) as server:
        rows = Rows(Stream(f"{server.url}/made", cache=tmp_path), seq_len=64)
        assert not [name for name in server.requests if name.endswith(".tar")]
        _ = rows[0]
        deadline = time.monotonic() + 20
        while len(list(tmp_path.glob("*/*.tar"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        ahead = [name for name in server.requests if name.endswith(".tar")]
        assert len(ahead) == 2
        rows.batch(range(len(rows)))
        tars = {name: n for name, n in server.requests.items() if name.endswith(".tar")}
        assert tars == {f"shard-{i:06d}.tar": 1 for i in range(SHARDS)}


def test_indexes_are_fetched_side_by_side(folder, tmp_path):
    """Each waits until the last one is asked for."""
    with serving(folder) as server:
        stream = Stream(f"{server.url}/made", cache=tmp_path)
        together = threading.Barrier(SHARDS)
        server.on_request = lambda name: name.endswith(".idx") and together.wait(20)
        assert len(Rows(stream, seq_len=64)) and not together.broken


def test_no_more_is_fetched_ahead_than_has_room(folder, tmp_path):
    sizes = [info.bytes + info.index_bytes for info in Stream(folder / "made").shards]
    with serving(folder) as server:
        stream = Stream(f"{server.url}/made", cache=tmp_path, cache_bytes=sum(sizes[:3]) - 1)
        stream.prefetch([0], [1, 0, 2, 3, 4])
        for thread in stream._remote._threads:
            thread.join()
        assert set(server.requests) == {"stream.json", "shard-000000.tar", "shard-000001.tar"}


def test_the_cache_keeps_its_bound(served, folder, tmp_path, monkeypatch):
    """Two epochs through a cache of four shards, one a window: old ones go, rows are the same."""
    monkeypatch.setattr("plait.pipeline.order.WINDOW_DOCUMENTS", 18)
    server, open_stream = served
    each = max(p.stat().st_size for p in (folder / "made").glob("*.tar"))
    limit = 4 * each
    used = []

    def measure(name):
        with (tmp_path / "plait.lock").open("a") as lock:  # else files come and go while counted
            fcntl.flock(lock, fcntl.LOCK_EX)
            sizes = {}
            for path in tmp_path.glob("*/shard-*"):
                with contextlib.suppress(FileNotFoundError):
                    sizes[path.stat().st_ino] = path.stat().st_size
        used.append(sum(sizes.values()))

    server.on_request = measure
    rows = Rows(open_stream(cache=tmp_path, cache_bytes=limit), seq_len=64)
    expected = Rows(Stream(folder / "made"), seq_len=64)
    for i in range(2 * len(rows)):
        assert np.array_equal(rows[i].tokens, expected[i].tokens)
    measure("end")
    assert 2 * each < max(used) <= limit
    small = open_stream(cache=tmp_path, cache_bytes=each // 2)
    with pytest.raises(ConfigError, match=r"more than the cache may hold .* raise cache_bytes"):
        _ = Rows(small, seq_len=64)[0]


def test_damage_in_the_cache_is_found_and_mended(folder, tmp_path):
    with serving(folder) as server:
        stream = Stream(f"{server.url}/made", cache=tmp_path)
        place = stream.reader(0).index.blocks[0].data
        del stream
        Stream(f"{server.url}/made", cache=tmp_path).document(0)
        path = next(tmp_path.glob("*/shard-000000.tar"))
        data = bytearray(path.read_bytes())
        data[place + 3] ^= 1
        path.write_bytes(data)
        with pytest.raises(ShardError, match="removed from the cache: try again"):
            Stream(f"{server.url}/made", cache=tmp_path).document(0)
        assert not path.exists()
        path.write_bytes(bytes(7))
        assert_same(Stream(f"{server.url}/made", cache=tmp_path), folder)


def test_a_stream_made_anew_does_not_meet_the_old_shards(tmp_path):
    for seed in (1, 2):
        made, _ = random_stream(tmp_path / "s" / "made", documents=30, seed=seed)
        with serving(tmp_path / "s") as server:
            stream = Stream(f"{server.url}/made", cache=tmp_path / "cache")
            assert np.array_equal(all_rows(stream).tokens_BT, all_rows(made).tokens_BT)


@pytest.mark.parametrize("lists", [True, False])
def test_tokenizers_arrive_whole(tmp_path, lists):
    tokenizer = byte_patch.fit([b"a b"], byte_patch.FitOptions(method="whitespace"))
    random_stream(tmp_path / "made", documents=5)
    tokenizer.save(tmp_path / "made" / "tokenizers" / "bytes")
    manifest = json.loads((tmp_path / "made" / "stream.json").read_text())
    manifest["tokenizers"][3]["fingerprint"] = tokenizer.fingerprint
    (tmp_path / "made" / "stream.json").write_text(json.dumps(manifest))
    with serving(tmp_path, lists=lists) as server:
        stream = Stream(f"{server.url}/made", cache=tmp_path / "cache", retry=QUICK)
        server.faults["config.json"] = itertools.repeat("short")
        with pytest.raises(ShardError, match="another tokenizer than the one that made the stream"):
            stream.tokenizer("bytes")
        with pytest.raises(ShardError, match="tokenizers/text: no tokenizer here"):
            server.faults.clear()
            stream.tokenizer("text")
        server.faults["config.json"] = iter(["500", "short"])
        assert stream.tokenizer("bytes").fingerprint == tokenizer.fingerprint
        assert stream.tokenizer_folder("bytes").is_relative_to(tmp_path / "cache")


def test_commands_take_urls(sample_stream, s3, tmp_path, monkeypatch, capsys):
    """The commands find server and cache by the environment."""
    upload(s3, sample_stream.parent, sample_stream.name)
    url = f"s3://{BUCKET}/{sample_stream.name}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{s3[0]}:{s3[1]}")
    monkeypatch.setenv("PLAIT_CACHE", str(tmp_path / "cache"))
    facts = []
    for place in (str(sample_stream), url):
        assert cli.main(["verify", place]) == 0
        assert "all well" in capsys.readouterr().out
        assert cli.main(["inspect", place, "--json"]) == 0
        facts.append(json.loads(capsys.readouterr().out))
        words = ["--model.dim", "32", "--model.n-heads", "2", "--rows.seq-len", "128"]
        out = tmp_path / f"run-{len(facts)}"
        words += ["--steps", "2", "--out", str(out), "--device", "cpu"]
        assert cli.main(["train", "dense", "--data", place, *words]) == 0
        capsys.readouterr()
    assert facts[0] == facts[1]
    runs = [tmp_path / "run-1", tmp_path / "run-2"]
    lines = [json.loads((run / "metrics.jsonl").read_text().splitlines()[-1]) for run in runs]
    assert lines[0]["loss"] == lines[1]["loss"]
    names = [{p.relative_to(run) for p in (run / "tokenizers").rglob("*.*")} for run in runs]
    assert {p.name for p in names[1]} >= {"config.json", "weights.safetensors"}
    assert names[1] >= {p for p in names[0] if p.name != "report.json"}
    assert list((tmp_path / "cache").glob("plait-stream-*/shard-*.tar"))


def test_urls_that_cannot_be_opened(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"odd://x/y: .*known"):
        Stream("odd://x/y", cache=tmp_path)
    with pytest.raises(ConfigError, match="cache_bytes 0"):
        Stream("memory://x/y", cache=tmp_path, cache_bytes=0)
    with pytest.raises(ShardError, match="memory://x/y: no stream here"):
        Stream("memory://x/y", cache=tmp_path)
    monkeypatch.setenv("PLAIT_CACHE_BYTES", "many")
    with pytest.raises(ConfigError, match="PLAIT_CACHE_BYTES=many"):
        Stream("memory://x/y", cache=tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PLAIT_CACHE_BYTES", "50e9")


def test_a_file_url_is_a_folder(folder):
    stream = Stream(f"file://{folder}/made")
    assert stream.path == folder / "made" and stream.document(3).key == "d3"


READ = """
import sys
from plait.pipeline.stream import Stream
stream = Stream(sys.argv[1], cache=sys.argv[2])
print(stream.document(0).key)
stream.prefetch([1], [2, 3, 4])
"""


def test_a_process_ends_at_once_and_in_silence(served, folder, tmp_path, repository):
    """Warnings are errors there; a download that hangs in the background holds nothing up."""
    server, open_stream = served
    server.faults["shard-000002.tar"] = itertools.repeat("stall")
    environment = {**os.environ, "PYTHONPATH": str(repository / ".package")}
    environment["AWS_ENDPOINT_URL"] = server.url
    command = [sys.executable, "-W", "error", "-c", READ, open_stream(cache=tmp_path).url]
    command.append(str(tmp_path))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout, done.stderr) == (0, "d0\n", "")
