"""Worker processes of a shard job: each is handed one task at a time through a pipe of its own.

`concurrent.futures` is not used because a worker that is killed while others are being started
leaves its pool waiting for ever. Here a dead worker is an end of file in its pipe, whenever it
dies, and the others are killed with it: a task may be stopped anywhere and repeated.
"""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from plait.pipeline import job as jobs
from plait.pipeline.job import Job, Record, Task
from plait.tokenizers.base import Tokenizer
from plait.tokenizers.errors import PlaitError


def run_in_processes(
    job: Job, tasks: Sequence[Task], workers: int
) -> Iterator[tuple[Task, Record]]:
    """Tasks as they finish. What a task raises is raised here; PlaitError if a worker dies."""
    to_do = iter(tasks)
    running: dict[Connection, Task] = {}
    processes: list[BaseProcess] = []
    try:
        with _child_environment():
            for _ in range(min(workers, len(tasks))):
                process, pipe = _start(job)
                processes.append(process)
                running[pipe] = _hand(next(to_do), pipe)
        while running:
            for pipe in wait(list(running)):
                assert isinstance(pipe, Connection)
                task = running.pop(pipe)
                result = _receive(pipe, job, task)
                following = next(to_do, None)
                if following is not None:
                    running[pipe] = _hand(following, pipe)
                yield task, result
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()


def _start(job: Job) -> tuple[BaseProcess, Connection]:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(job, theirs), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _hand(task: Task, pipe: Connection) -> Task:
    with suppress(BrokenPipeError):  # it died: the end of its pipe is found by `wait`
        pipe.send(task)
    return task


def _receive(pipe: Connection, job: Job, task: Task) -> Record:
    try:
        result: Record | Exception = pipe.recv()
    except (EOFError, ConnectionResetError):
        raise killed(job, task, "killed") from None
    if isinstance(result, Exception):
        raise result
    return result


def killed(job: Job, task: Task, how: str) -> PlaitError:
    """What to say of a worker that ended in a task."""
    return PlaitError(
        f"a worker process was {how} (out of memory?) at samples {task.start} to "
        f"{task.stop - 1} of {job.sources[task.source].path}; the same command goes on where "
        "it stopped, fewer --workers need less memory"
    )


class Worker:
    """Answers each task with its record or error; the tokenizers are loaded with the first."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._tokenizers: list[Tokenizer] | None = None

    def answer(self, task: Task) -> Record | Exception:
        """Run a task. An error is returned, for whoever handed the task out to raise."""
        try:
            if self._tokenizers is None:
                self._tokenizers = jobs.stored_tokenizers(self._job)
                if "torch" in sys.modules:
                    sys.modules["torch"].set_num_threads(1)
            return jobs.run_task(self._job, self._tokenizers, task)
        except (PlaitError, OSError) as error:
            return error
        except Exception:
            return RuntimeError(f"in a worker process:\n{traceback.format_exc()}")


def _work(job: Job, pipe: Connection) -> None:
    """A worker's life: answer one task after the other."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers to the keyboard
    parent = parent_process()
    assert parent is not None
    threading.Thread(target=_die_with, args=(parent.join,), daemon=True).start()
    worker = Worker(job)
    with suppress(EOFError, OSError):  # the parent is gone
        while True:
            pipe.send(worker.answer(pipe.recv()))


def _die_with(join: Callable[[], None]) -> None:
    join()
    os._exit(1)


@contextmanager
def _child_environment() -> Iterator[None]:
    """One thread a worker, and no spinning while it waits."""
    wanted = {"GOMP_SPINCOUNT": "1000", "OMP_NUM_THREADS": "1"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
