"""Several processes write one stream to a real S3 server on this machine."""

import os
import signal
import subprocess
import sys

import pytest

from plait.pipeline.shard import shard

from .conftest import tree, write_rows

boto3 = pytest.importorskip("boto3", reason="boto3 is not installed (plait[dev])")
moto = pytest.importorskip("moto.server", reason="moto is not installed (plait[dev])")
pytest.importorskip("s3fs", reason="s3fs is not installed (plait[cloud])")

KILLED = """
import os, signal, sys
from plait.pipeline import cli
from s3fs import S3FileSystem

def put_and_die(*arguments):
    if arguments[2].endswith("shard-000002.idx"):
        os.kill(os.getpid(), signal.SIGKILL)
    put_file(*arguments)

put_file, S3FileSystem.put_file = S3FileSystem.put_file, put_and_die
cli.main(sys.argv[1:])
"""


@pytest.fixture
def bucket(monkeypatch):
    """A client for an empty bucket `data`, which child processes find by their environment."""
    server = moto.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    client = boto3.client("s3")
    client.create_bucket(Bucket="data")
    yield client
    client.close()
    server.stop()


def objects(client, prefix):
    listed = client.list_objects_v2(Bucket="data", Prefix=prefix).get("Contents", [])
    names = [entry["Key"] for entry in listed]
    bodies = (client.get_object(Bucket="data", Key=name)["Body"].read() for name in names)
    return {name[len(prefix) :]: body for name, body in zip(names, bodies, strict=True)}


@pytest.mark.slow
def complaints(errors: bytes) -> list[bytes]:
    """What a command wrote beside its progress, of which a slow machine shows some."""
    return [line for line in errors.splitlines() if not line.startswith(b"sharding ")]


def test_ranks_write_to_one_bucket(bucket, tmp_path, bytes_tokenizer, repository, monkeypatch):
    """One is killed between a shard and its index, and repeated while the other runs."""
    monkeypatch.setenv("PYTHONPATH", str(repository / ".package"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    rows = [{"text": f"number {i} " * (i % 5)} for i in range(300)]
    source = write_rows(tmp_path / "t.jsonl", rows)
    shard([source], tmp_path / "whole", [bytes_tokenizer], samples_per_shard=30)
    whole = tree(tmp_path / "whole")
    words = [str(source), "--tokenizer", str(bytes_tokenizer), "--samples-per-shard", "30"]
    words = ["shard", *words, "--out", "s3://data/some/prefix/", "--world", "2", "--rank"]

    done = subprocess.run([sys.executable, "-c", KILLED, *words, "0"], timeout=100)
    assert done.returncode == -signal.SIGKILL
    found = objects(bucket, "some/prefix/")
    shards = {name: data for name, data in found.items() if name.startswith("shard-")}
    assert shards.keys() == {"shard-000000.tar", "shard-000000.idx", "shard-000002.tar"}
    assert shards.items() <= whole.items()
    assert list(tmp_path.glob("plait-shard-*"))

    command = [sys.executable, "-m", "plait.pipeline.cli", *words]
    ranks = [
        subprocess.Popen([*command, rank], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for rank in ("0", "1")
    ]
    outputs = [rank.communicate(timeout=100) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    assert [complaints(errors) for _, errors in outputs] == [[], []]
    assert objects(bucket, "some/prefix/") == whole
    assert os.listdir(tmp_path / "whole") and not list(tmp_path.glob("plait-shard-*"))


@pytest.mark.slow
def test_worker_processes_and_a_bucket_that_is_not_there(
    bucket, tmp_path, bytes_tokenizer, repository, monkeypatch
):
    monkeypatch.setenv("PYTHONPATH", str(repository / ".package"))
    source = write_rows(tmp_path / "t.jsonl", [{"text": f"number {i} " * 9} for i in range(300)])
    shard([source], tmp_path / "whole", [bytes_tokenizer], samples_per_shard=50)
    words = [str(source), "--tokenizer", str(bytes_tokenizer), "--samples-per-shard", "50"]
    command = [sys.executable, "-m", "plait.pipeline.cli", "shard", *words, "--workers", "2"]
    done = subprocess.run([*command, "--out", "s3://data/x"], capture_output=True, timeout=100)
    assert (done.returncode, complaints(done.stderr)) == (0, [])
    assert objects(bucket, "x/") == tree(tmp_path / "whole")
    done = subprocess.run([*command, "--out", "s3://gone/x"], capture_output=True, timeout=100)
    assert done.returncode == 2
    assert done.stderr.startswith(b"plait shard: s3://gone/x: The specified bucket does not exist;")
