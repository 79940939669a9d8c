"""`--restart` removes the files of the job that is there, and nothing else."""

import json
import os

import pytest

from plait.pipeline import cli
from plait.pipeline.bucket import Bucket, open_store
from plait.pipeline.engines import Engine
from plait.pipeline.job_files import RESTART
from plait.pipeline.shard import shard
from plait.pipeline.store import Folder
from plait.tokenizers.errors import ConfigError, ResumeError, ShardError

from .conftest import tree_of, write_rows


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    """Nothing here depends on what a power failure leaves."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(params=["folder", "memory"])
def out(request, tmp_path, memory_url):
    return str(tmp_path / "out") if request.param == "folder" else memory_url


@pytest.fixture
def source(tmp_path):
    return write_rows(tmp_path / "t.jsonl", [{"text": f"text {i}"} for i in range(60)])


@pytest.fixture
def whole(source, tmp_path, bytes_tokenizer):
    """The stream of the new options."""
    shard([source], tmp_path / "whole", [bytes_tokenizer], samples_per_shard=25)
    return tree_of(str(tmp_path / "whole"))


def begin_again(source, out, bytes_tokenizer, restart=True):
    engine = Engine(restart=restart)
    return shard([source], out, [bytes_tokenizer], samples_per_shard=25, engine=engine)


@pytest.mark.parametrize("finished", [True, False])
def test_the_old_job_goes_and_other_files_stay(finished, out, source, bytes_tokenizer, whole):
    """Of an unfinished job also the shards without a record, and temporary files."""
    ranks = [Engine(rank=i, world=2) for i in range(1 + finished)]
    for rank in ranks:
        shard([source], out, [bytes_tokenizer], samples_per_shard=10, engine=rank)
    store = open_store(out)
    others = {"notes.txt": b"mine", "shard-999999.tar": b"mine", "tokenizers/other/a": b"mine"}
    for name, data in others.items():
        if isinstance(store, Folder):
            (store.path / name).parent.mkdir(exist_ok=True)
        store.write(name, data)
    if not finished:
        store.remove(["job/task-000002.json"])
        store.write("shard-000005.idx", b"without a record")
        store.write(".shard-000003.tar.0123.tmp", b"of a killed process")
    with pytest.raises(ResumeError, match=r"samples_per_shard.*(.|\n)*with --restart"):
        begin_again(source, out, bytes_tokenizer, restart=False)
    assert begin_again(source, out, bytes_tokenizer).state == "finished"
    assert tree_of(out) == whole | others


def test_a_restart_of_the_same_job_writes_it_anew(out, source, bytes_tokenizer, whole):
    begin_again(source, out, bytes_tokenizer)
    store = open_store(out)
    store.write("shard-000001.tar", b"damaged")
    assert begin_again(source, out, bytes_tokenizer).state == "finished"
    assert tree_of(out) == whole


def test_a_restart_where_nothing_is_begins(out, source, bytes_tokenizer, whole):
    assert begin_again(source, out, bytes_tokenizer).state == "finished"
    assert tree_of(out) == whole


class Killed(BaseException):
    """Stands for a SIGKILL."""


@pytest.mark.parametrize("then_restart", [True, False])
def test_a_restart_killed_at_any_step(then_restart, out, source, bytes_tokenizer, whole):
    """It never leaves what looks like the old stream; the next run goes on."""
    kind = Folder if isinstance(open_store(out), Folder) else Bucket
    remove, write = kind.remove, kind.write
    for step in range(100):
        shard([source], out, [bytes_tokenizer], engine=Engine(restart=True), samples_per_shard=10)
        left = [step]

        def counted(left=left):
            left[0] -= 1
            if left[0] < 0:
                raise Killed

        def removing(self, names, counted=counted):
            for name in names:
                counted()
                remove(self, [name])

        def writing(self, name, data, counted=counted):
            counted()
            write(self, name, data)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kind, "remove", removing)
            patch.setattr(kind, "write", writing)
            try:
                begin_again(source, out, bytes_tokenizer)
                break
            except Killed:
                pass
        if step == 0:  # nothing was done yet
            continue
        begin_again(source, out, bytes_tokenizer, restart=then_restart)
        assert tree_of(out) == whole
    assert step > 20


def test_ranks_wait_for_the_restart(source, tmp_path, bytes_tokenizer):
    shard([source], tmp_path / "out", [bytes_tokenizer])
    (tmp_path / "out" / "job").mkdir()
    (tmp_path / "out" / RESTART).write_text("[]")
    with pytest.raises(ResumeError, match="a --restart was stopped here"):
        shard([source], tmp_path / "out", [bytes_tokenizer], engine=Engine(rank=0, world=2))


def test_a_folder_that_is_no_job_is_left_alone(source, tmp_path, bytes_tokenizer, capsys):
    thesis = tmp_path / "full" / "thesis.tex"
    thesis.parent.mkdir()
    thesis.write_text("mine")
    words = [str(source), "--out", str(thesis.parent), "--tokenizer", str(bytes_tokenizer)]
    assert cli.main(["shard", *words, "--restart"]) == 2
    assert "not empty (thesis.tex), and no stream or shard job" in capsys.readouterr().err
    assert os.listdir(thesis.parent) == ["thesis.tex"]
    with pytest.raises(ConfigError, match="not empty"):
        shard([source], thesis.parent, [bytes_tokenizer])
    assert os.listdir(thesis.parent) == ["thesis.tex"]


@pytest.mark.parametrize(
    "manifest",
    [
        {"shards": [{"name": "../../thesis"}], "tokenizers": []},
        {"shards": [{"name": "/etc/x"}], "tokenizers": []},
        {"shards": [], "tokenizers": [{"name": "../.."}]},
        {"shards": [{}], "tokenizers": []},
        {"shards": 7, "tokenizers": []},
        {"shards": []},
        [],
        "text",
    ],
)
def test_a_manifest_cannot_have_other_files_removed(manifest, source, tmp_path, bytes_tokenizer):
    out = tmp_path / "a" / "b" / "out"
    out.mkdir(parents=True)
    for suffix in (".tar", ".idx"):
        (tmp_path / "a" / f"thesis{suffix}").write_text("mine")
    (tmp_path / "a" / "config.json").write_text("mine")
    (out / "stream.json").write_text(json.dumps(manifest))
    before = tree_of(str(tmp_path / "a"))
    with pytest.raises(ShardError, match="out"):
        begin_again(source, out, bytes_tokenizer)
    after = tree_of(str(tmp_path / "a"))
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) <= {"b/out/job/lock"}
    (out / "job").mkdir(exist_ok=True)
    (out / RESTART).write_text(json.dumps({"remove": ["../../thesis.tar"]}))
    with pytest.raises(ShardError, match=r"restart\.json: damaged"):
        begin_again(source, out, bytes_tokenizer, restart=False)
    assert (tmp_path / "a" / "thesis.tar").read_text() == "mine"
