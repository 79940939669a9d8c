"""The tasks of a shard job on a Ray cluster: one actor a CPU, one task at a time for each.

Ray core alone: what goes through Ray is the job's plan once, task numbers and records; shards are
written by the actors, so all nodes must see the sources and `--out` under the same names. An
actor that is killed is started again by Ray, on any node, and its task is repeated.
"""

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType

from plait.pipeline.job import Job, Record, Task
from plait.pipeline.workers import Worker, killed
from plait.tokenizers.errors import ConfigError

RETRIES = 3
"""How often a task is repeated whose worker was killed."""
KNOCK_S = 10.0


class RayWorker:
    """An actor; the job's plan comes with each task, as Ray may have started the actor again."""

    def __init__(self) -> None:
        self._worker: Worker | None = None

    def ready(self) -> None:
        """Return when the actor has found its place on the cluster."""

    def answer(self, plan: list, folder: str, task: Task) -> Record | Exception:
        """Run a task in the folder of the command, where relative paths begin (see `Worker`)."""
        if self._worker is None:
            try:
                os.chdir(folder)
            except OSError as error:
                return ConfigError(f"{folder}: {error.strerror} on {os.uname().nodename}")
            self._worker = Worker(_import_ray().get(plan[0]))
        return self._worker.answer(task)


def run_on_ray(
    job: Job, tasks: Sequence[Task], workers: int, address: str | None
) -> Iterator[tuple[Task, Record]]:
    """Tasks as they finish, on `workers` actors (0: one for each CPU of the cluster)."""
    ray = _import_ray()
    with _cluster(workers, address):
        count = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        options = {"num_cpus": 1, "max_restarts": -1, "max_task_retries": RETRIES}
        actor = ray.remote(**options)(RayWorker)
        actors = [actor.remote() for _ in range(min(count, len(tasks)))]
        try:
            yield from _hand_out(job, tasks, actors)
        finally:
            for a in actors:
                ray.kill(a)


def _hand_out(job: Job, tasks: Sequence[Task], actors: list) -> Iterator[tuple[Task, Record]]:
    """Give each actor its next task when it is free; one that finds no place is not waited for."""
    ray = _import_ray()
    plan, folder = [ray.put(job)], str(Path.cwd())
    to_do, left = iter(tasks), len(tasks)
    running: dict = {actor.ready.remote(): (actor, None) for actor in actors}
    while left:
        (first, *_), _ = ray.wait(list(running))
        actor, task = running.pop(first)
        try:
            result = ray.get(first)
        except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError):
            raise killed(job, task or tasks[0], f"killed {RETRIES + 1} times") from None
        if isinstance(result, Exception):
            raise result
        following = next(to_do, None)
        if following is not None:
            running[actor.answer.remote(plan, folder, following)] = (actor, following)
        if task is not None:
            left -= 1
            yield task, result


@contextmanager
def _cluster(workers: int, address: str | None) -> Iterator[None]:
    """The cluster at an address, or one of this machine alone, which ends here."""
    ray = _import_ray()
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address == "local":
            cpus = workers or len(os.sched_getaffinity(0))
            ray.init("local", num_cpus=cpus, include_dashboard=False, **quiet)
        else:
            _knock(address)
            ray.init(address, **quiet)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--address {address}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """OSError if nobody answers at HOST:PORT; Ray itself tries for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=KNOCK_S).close()


def _import_ray() -> ModuleType:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        return import_module("ray")
    except ImportError:
        raise ConfigError("--engine ray: pip install 'plait[ray]'") from None
