"""Shard jobs whose processes are killed: the same command goes on, and gives the same bytes."""

import multiprocessing
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from plait.pipeline import job as jobs
from plait.pipeline import workers
from plait.pipeline.encode import Routing
from plait.pipeline.find import find_sources
from plait.pipeline.job import Job
from plait.pipeline.job_files import begin, finish, read_records
from plait.pipeline.shard import shard
from plait.pipeline.shard_writer import ShardWriter
from plait.pipeline.store import Folder
from plait.pipeline.workers import run_in_processes
from plait.tokenizers.errors import PlaitError

from .conftest import tree, write_rows


def crash_sources(folder):
    """Three sources; some rows are bad."""
    rows = [{"text": f"text number {i} " * (i % 7)} for i in range(60)]
    write_rows(folder / "a.jsonl", rows)
    write_rows(folder / "b.jsonl", [{"text": ""}] * 20)
    write_rows(folder / "c.jsonl", [{"text": "x" * i} for i in range(45)])
    return [folder / "a.jsonl", folder / "b.jsonl", folder / "c.jsonl"]


def run_until(step, arguments):
    """In a child process: run the job, and kill it at write, flush or rename number `step`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    left = [step]

    def counted(function):
        def wrapper(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return wrapper

    try:
        os.fsync = counted(os.fsync)
        Path.replace = counted(Path.replace)
        ShardWriter._write = counted(ShardWriter._write)
        shard(*arguments, samples_per_shard=20)
        os._exit(0)
    finally:
        os._exit(7)


def test_killed_at_every_step_and_repeated_gives_the_same_bytes(tmp_path, bytes_tokenizer):
    sources = crash_sources(tmp_path)
    shard(sources, tmp_path / "whole", [bytes_tokenizer], samples_per_shard=20)
    expected = tree(tmp_path / "whole")
    steps = range(0, 400, 5)
    for step in steps:
        out = tmp_path / f"killed-{step}"
        status = run_until(step, (sources, out, [bytes_tokenizer]))
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        assert not (out / "stream.json").exists() or tree(out).items() >= expected.items()
        assert run_until(step // 2 + 3, (sources, out, [bytes_tokenizer])) in (0, signal.SIGKILL)
        shard(sources, out, [bytes_tokenizer], samples_per_shard=20)
        assert tree(out) == expected
    else:
        pytest.fail("the job takes more steps than were tried")
    assert step > 40


KILLED_AFTER = """
import os, signal, sys
from plait.pipeline import engines, shard

def dying(job, tasks, workers):
    for number, done in enumerate(run(job, tasks, workers), 1):
        yield done
        if number == {after}:
            os.kill(os.getpid(), signal.SIGKILL)

run, engines.run_in_processes = engines.run_in_processes, dying
shard.shard([{source!r}], {out!r}, [{tokenizer!r}], workers=3, samples_per_shard=20)
"""


@pytest.mark.slow
def test_killed_beside_its_workers_and_repeated(tmp_path, bytes_tokenizer, repository):
    """The parent is killed while workers write; each run finds more of the work done."""
    source = write_rows(tmp_path / "t.jsonl", [{"text": f"number {i} " * 40} for i in range(1000)])
    shard([source], tmp_path / "whole", [bytes_tokenizer], workers=1, samples_per_shard=20)
    out = tmp_path / "killed"
    environment = {**os.environ, "PYTHONPATH": str(repository / ".package")}
    finished = []
    for after in (1, 4, 7):
        words = {"source": str(source), "out": str(out), "tokenizer": str(bytes_tokenizer)}
        code = KILLED_AFTER.format(after=after, **words)
        done = subprocess.run([sys.executable, "-c", code], env=environment, timeout=120)
        assert done.returncode == -signal.SIGKILL
        assert not (out / "stream.json").exists()
        finished.append(len(list((out / "job").glob("task-*.json"))))
    assert finished[0] >= 1 and finished[1] >= 5 and 12 <= finished[2] < 50
    shard([source], out, [bytes_tokenizer], workers=2, samples_per_shard=20)
    assert tree(out) == tree(tmp_path / "whole")


def begun_job(tmp_path, bytes_tokenizer, samples=4000):
    """A job of tasks of 100 samples, ready to be run."""
    source = write_rows(tmp_path / "t.jsonl", [{"text": "a" * 200}] * samples)
    pairs = jobs.read_tokenizers([bytes_tokenizer])
    job = Job(
        store=Folder(tmp_path / "out"),
        sources=find_sources(source, None).sources,
        infos=tuple(info for _, info in pairs),
        routing=Routing(),
        samples_per_shard=100,
    )
    (tmp_path / "out" / "job").mkdir(parents=True)
    begin(job, [tokenizer for tokenizer, _ in pairs])
    return job


def kill_a_worker():
    multiprocessing.active_children()[0].kill()


@pytest.mark.parametrize("done", [0, 1, 5])
def test_a_dead_worker_ends_the_job(done, tmp_path, bytes_tokenizer, monkeypatch):
    """Killed while workers are still being started, and between tasks; none is left behind."""
    job = begun_job(tmp_path, bytes_tokenizer)
    tasks = job.tasks()
    if done == 0:
        start = workers._start

        def start_and_kill(job):
            started = start(job)
            kill_a_worker()
            return started

        monkeypatch.setattr(workers, "_start", start_and_kill)
    results = run_in_processes(job, tasks, workers=2)
    with pytest.raises(PlaitError, match=r"was killed .* at samples \d+ to \d+ of .*t\.jsonl"):
        for number, _ in enumerate(results, 1):
            if number == done:
                kill_a_worker()
    monkeypatch.undo()
    assert multiprocessing.active_children() == []
    done = read_records(job, tasks)
    left = [task for task in tasks if task not in done]
    assert dict(run_in_processes(job, left, workers=2)).keys() == set(left)
    assert multiprocessing.active_children() == []
    assert finish(job)["documents"] == 4000


def test_an_error_in_a_worker_is_raised_with_its_place(tmp_path, bytes_tokenizer):
    job = begun_job(tmp_path, bytes_tokenizer, samples=300)
    (tmp_path / "out" / "shard-000001.tar").mkdir()
    with pytest.raises(OSError, match="shard-000001"):
        list(run_in_processes(job, job.tasks(), workers=2))
    assert multiprocessing.active_children() == []


def test_workers_end_with_a_job_that_is_left(tmp_path, bytes_tokenizer):
    job = begun_job(tmp_path, bytes_tokenizer)
    results = run_in_processes(job, job.tasks(), workers=2)
    next(results)
    assert len(multiprocessing.active_children()) == 2
    results.close()
    assert multiprocessing.active_children() == []
