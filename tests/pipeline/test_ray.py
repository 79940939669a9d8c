"""A shard job on a Ray cluster of this machine, in a process of its own."""

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from plait.pipeline import cli
from plait.pipeline.shard import shard

from .conftest import tree, write_rows

pytest.importorskip("ray", reason="Ray is not installed (plait[ray])")

JOB = """
import os, signal, sys, threading, warnings
from pathlib import Path
from plait.pipeline import cli, job as jobs

class Killing:
    '''A source that kills the process which reads sample 130, once.'''
    def __init__(self, source, marker):
        self._source, self._marker = source, marker
        self.path, self.kind = source.path, source.kind
        self.samples_per_task = source.samples_per_task
        self.describe = source.describe
    def __len__(self):
        return len(self._source)
    def read(self, start, stop):
        for number, sample in enumerate(self._source.read(start, stop), start):
            yield sample
            if number == 130 and not self._marker.exists():
                self._marker.write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)

def find(*arguments):
    sources, passed_over = find_job_sources(*arguments)
    return [Killing(source, Path("killed")) for source in sources], passed_over

find_job_sources, jobs.find_job_sources = jobs.find_job_sources, find
code = cli.main(["shard", *sys.argv[1:], "--engine", "ray", "--workers", "2"])
assert threading.enumerate() == [threading.main_thread()], threading.enumerate()
sys.exit(code)
"""


@pytest.mark.slow
def test_a_killed_actor_and_the_same_bytes(tmp_path, bytes_tokenizer, repository, monkeypatch):
    """Paths are relative; the process ends by itself, and leaves nothing running."""
    monkeypatch.chdir(tmp_path)
    rows = [{"text": f"number {i} " * (i % 5)} for i in range(200)]
    source = write_rows(Path("t.jsonl"), rows)
    shard([source], "whole", [bytes_tokenizer], samples_per_shard=20)
    words = [str(source), "--out", "out", "--tokenizer", str(bytes_tokenizer)]
    words += ["--samples-per-shard", "20"]
    with tempfile.TemporaryDirectory(prefix="plait-ray-") as temporary:  # sockets: a short path
        environment = {**os.environ, "PYTHONPATH": str(repository / ".package")}
        environment |= {"RAY_TMPDIR": temporary, "HOME": temporary}
        command = [sys.executable, "-W", "error", "-c", JOB, *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    killed = int((tmp_path / "killed").read_text())
    assert killed != os.getpid() and not Path(f"/proc/{killed}").exists()
    assert "160 documents of 200 samples" in done.stdout
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_without_ray_it_says_what_to_install(tmp_path, bytes_tokenizer, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    source = write_rows(tmp_path / "t.jsonl", [{"text": "a"}])
    words = ["--out", str(tmp_path / "out"), "--tokenizer", str(bytes_tokenizer)]
    assert cli.main(["shard", str(source), *words, "--engine", "ray"]) == 2
    assert capsys.readouterr().err == "plait shard: --engine ray: pip install 'plait[ray]'\n"


def test_an_address_where_no_cluster_is(tmp_path, bytes_tokenizer, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        source = write_rows(tmp_path / "t.jsonl", [{"text": "a"}])
        words = ["--out", str(tmp_path / "out"), "--tokenizer", str(bytes_tokenizer)]
        words += ["--engine", "ray", "--address", address]
        assert cli.main(["shard", str(source), *words]) == 2
    assert f"plait shard: --address {address}: [Errno" in capsys.readouterr().err
