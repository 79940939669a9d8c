"""Ranks of any world and the elements of a Slurm array give the bytes of one local job."""

import os
import random
import subprocess

import pytest

from plait.pipeline.engines import Engine
from plait.pipeline.shard import main, shard
from plait.pipeline.slurm import write_script
from plait.pipeline.store import Folder
from plait.tokenizers.errors import ConfigError, ResumeError

from .conftest import tree, tree_of, write_rows


@pytest.fixture(scope="module")
def job(tmp_path_factory, bytes_tokenizer):
    """Sources in 12 tasks, some of rejects alone, and the stream that one local job makes."""
    folder = tmp_path_factory.mktemp("job")
    rows = [{"text": f"text number {i} " * (i % 9)} for i in range(200)]
    sources = [
        write_rows(folder / "a set's rows.jsonl", rows),
        write_rows(folder / "b.jsonl", [{"text": ""}] * 30),
    ]
    shard(sources, folder / "whole", [bytes_tokenizer], samples_per_shard=20)
    return sources, tree(folder / "whole")


def run(job, out, bytes_tokenizer, **engine):
    return shard(job[0], out, [bytes_tokenizer], samples_per_shard=20, engine=Engine(**engine))


@pytest.mark.parametrize("world", [1, 2, 5, 40])
@pytest.mark.parametrize("where", ["folder", "memory"])
def test_ranks_in_any_order_assemble_the_same_stream(
    world, where, job, bytes_tokenizer, tmp_path, memory_url
):
    out = tmp_path / "out" if where == "folder" else memory_url
    ranks = list(range(world))
    random.Random(world).shuffle(ranks)
    last = None
    for i, rank in enumerate(ranks):
        summary = run(job, out, bytes_tokenizer, rank=rank, world=world)
        if summary.state == "others at work":
            assert i < world - 1 and "stream.json" not in tree_of(str(out))
        elif last is None:
            last = i
            assert summary.state == "finished" and summary.samples == 230
        else:  # its tasks were none, and the stream is there
            assert summary.state == "already finished"
    assert last == max(i for i, rank in enumerate(ranks) if rank < 12)
    assert tree_of(str(out)) == job[1]
    assert run(job, out, bytes_tokenizer).already_done


def test_a_rank_reports_its_own_share(job, bytes_tokenizer, tmp_path, capsys):
    words = [*map(str, job[0]), "--tokenizer", str(bytes_tokenizer), "--samples-per-shard", "20"]
    words += ["--out", str(tmp_path / "out"), "--world", "12", "--rank"]
    assert main([*words, "11"]) == 0
    assert "this rank is done, 0 documents of 10 samples; the last" in capsys.readouterr().out
    assert main([*words, "1"]) == 0
    assert "this rank is done, 18 documents of 20 samples" in capsys.readouterr().out


def test_what_is_missing_is_said_and_finished(job, bytes_tokenizer, tmp_path):
    out = tmp_path / "out"
    for rank in (0, 2, 3):
        run(job, out, bytes_tokenizer, rank=rank, world=4)
    (out / "shard-000002.idx").unlink()
    with pytest.raises(ResumeError, match=r"4 of 12 tasks are not finished \(1, 2, 5, 9\)"):
        run(job, out, bytes_tokenizer, finish=True)
    run(job, out, bytes_tokenizer, rank=2, world=4)
    with Folder(out).lock(shared=True):  # another rank has not ended yet
        summary = run(job, out, bytes_tokenizer, rank=1, world=4)
        assert summary.state == "others at work"
    assert run(job, out, bytes_tokenizer, finish=True).state == "finished"
    assert tree(out) == job[1]


def test_a_rank_with_other_options_is_refused(job, bytes_tokenizer, tmp_path):
    run(job, tmp_path / "out", bytes_tokenizer, rank=0, world=2)
    with pytest.raises(ResumeError, match="samples_per_shard"):
        shard(job[0], tmp_path / "out", [bytes_tokenizer], engine=Engine(rank=1, world=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "--rank R --world W"),
        ({"world": 3}, "--rank R --world W"),
        ({"rank": 3, "world": 3}, "ranks are 0 to world - 1"),
        ({"rank": -1, "world": 3}, "ranks are 0 to"),
        ({"rank": 0, "world": 3, "finish": True}, "commands of their own"),
        ({"rank": 0, "world": 3, "restart": True}, "commands of their own"),
        ({"name": "slurm", "rank": 0, "world": 3}, "writes a script"),
        ({"address": "auto"}, "--engine ray"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(ConfigError, match=message):
        Engine(**options)


FAKE_SBATCH = """#!/bin/bash
printf '%s\\n' "$*" >> "$(dirname "$0")/calls"
echo "4711;cluster"
"""


@pytest.fixture
def slurm_script(job, bytes_tokenizer, tmp_path, monkeypatch):
    """A script of three elements, written by the command with relative paths and --restart."""
    monkeypatch.chdir(job[0][0].parent)
    words = [str(source) for source in job[0]]
    words += ["--out", os.path.relpath(tmp_path / "the out"), "--tokenizer", str(bytes_tokenizer)]
    words += ["--samples-per-shard", "20", "--engine", "slurm", "--workers", "3", "--restart"]
    script = tmp_path / "array's.sbatch"
    assert main([*words, "--script", str(script)]) == 0
    monkeypatch.chdir(tmp_path)
    return script


def bash(script, *words, repository, **variables):
    environment = {**os.environ, "PYTHONPATH": str(repository / ".package"), **variables}
    environment["PATH"] = f"{script.parent}:{environment['PATH']}"
    command = ["bash", str(script), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_array_elements_in_any_order_make_the_stream(slurm_script, job, repository):
    out = slurm_script.parent / "the out"
    assert "#SBATCH --array=0-2\n" in slurm_script.read_text()
    for element in (2, 0, 1):
        assert not (out / "stream.json").exists()
        done = bash(slurm_script, repository=repository, SLURM_ARRAY_TASK_ID=str(element))
        assert done.returncode == 0, done.stderr
    assert tree(out) == job[1]
    done = bash(slurm_script, "--finish", repository=repository, SLURM_ARRAY_TASK_ID="0")
    assert done.returncode == 0 and "already complete" in done.stdout


def test_array_elements_make_both_streams_of_a_split(job, bytes_tokenizer, tmp_path, repository):
    words = [*map(str, job[0]), "--tokenizer", str(bytes_tokenizer), "--samples-per-shard", "20"]
    words += ["--validation", "0.2"]
    assert main([*words, "--out", str(tmp_path / "whole"), "--workers", "1"]) == 0
    script = tmp_path / "split.sbatch"
    words += ["--engine", "slurm", "--workers", "2", "--script", str(script)]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    for element in (1, 0):
        done = bash(script, repository=repository, SLURM_ARRAY_TASK_ID=str(element))
        assert done.returncode == 0, done.stderr
    for part in ("train", "validation"):
        assert tree(tmp_path / "out" / part) == tree(tmp_path / "whole" / part)


def test_the_script_submits_itself_and_a_last_step(slurm_script, repository):
    sbatch = slurm_script.with_name("sbatch")
    sbatch.write_text(FAKE_SBATCH)
    sbatch.chmod(0o755)
    done = bash(slurm_script, "--time=1:00:00", repository=repository)
    assert done.returncode == 0, done.stderr
    assert slurm_script.with_name("calls").read_text().splitlines() == [
        f"--parsable --time=1:00:00 {slurm_script}",
        f"--dependency=afterany:4711 --time=1:00:00 --array=0 {slurm_script} --finish",
    ]


def test_an_array_has_at_most_a_thousand_elements(tmp_path):
    script = tmp_path / "script"
    for tasks, asked, world in ((12, 0, 12), (5000, 0, 1000), (5000, 64, 64), (3, 8, 3), (0, 0, 1)):
        assert write_script(script, ["x"], tasks, asked) == world
        assert f"--array=0-{world - 1}\n" in script.read_text()
        assert f"--world {world}\n" in script.read_text()
    with pytest.raises(ConfigError, match="at most 1000"):
        write_script(script, ["x"], 5000, 1001)
