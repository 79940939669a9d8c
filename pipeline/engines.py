"""How a shard job is run: in processes here, on Ray, by a Slurm script, or as one of several ranks.

None of it changes a byte of the stream: all run the same tasks, and whoever finds the last record
there assembles the manifest.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from plait.pipeline import job as jobs
from plait.pipeline.duplicates import mark_duplicates
from plait.pipeline.job import Job, Record, Task
from plait.pipeline.job_files import (
    all_recorded,
    assemble,
    begin,
    clean,
    finish,
    read_manifest,
    read_records,
    refuse_foreign,
    remove_unfinished,
)
from plait.pipeline.progress import Progress
from plait.pipeline.ray_workers import run_on_ray
from plait.pipeline.repair import restore
from plait.pipeline.slurm import write_script
from plait.pipeline.store import BusyError
from plait.pipeline.workers import run_in_processes
from plait.tokenizers.base import Tokenizer
from plait.tokenizers.errors import ConfigError, PlaitError

SMALL_JOB = 256
"""A job of fewer samples is not worth starting worker processes for."""

State = Literal["finished", "already finished", "restored", "others at work", "to be submitted"]


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Who runs the tasks; ConfigError if the options do not go together."""

    name: Literal["local", "ray", "slurm"] = "local"
    address: str | None = None
    """Of a Ray cluster."""
    rank: int | None = None
    world: int | None = None
    """Run the tasks rank, rank + world, ... alone."""
    finish: bool = False
    """Run no task, assemble what ranks have left."""
    restart: bool = False
    """Remove the job that is there, and begin anew."""
    script: Path = Path("plait-shard.sbatch")
    """The Slurm script to write."""
    argv: tuple[str, ...] = ()
    """The command that the Slurm script repeats."""

    def __post_init__(self) -> None:
        if (self.rank is None) != (self.world is None):
            raise ConfigError("--rank and --world go together: --rank R --world W, R from 0 to W-1")
        if self.rank is not None and not 0 <= self.rank < (self.world or 0):
            raise ConfigError(f"--rank {self.rank} --world {self.world}: ranks are 0 to world - 1")
        if (self.rank is not None) + self.finish + self.restart > 1:
            raise ConfigError("--rank, --finish and --restart are for commands of their own")
        if self.name == "slurm" and (self.rank is not None or self.finish):
            raise ConfigError("--engine slurm writes a script, without --rank or --finish")
        if self.address is not None and self.name != "ray":
            raise ConfigError("--address is that of a Ray cluster: add --engine ray")


HERE = Engine()


def run_job(
    job: Job, tokenizers: Sequence[Tokenizer], engine: Engine, workers: int
) -> tuple[dict, State]:
    """Run the job or a rank's share of it; the manifest, or that of the rank's own tasks.

    `workers` processes, Ray actors, or elements of a Slurm array; 0 chooses.
    """
    store, shared = job.store, engine.rank is not None
    refuse_foreign(store)
    with store.lock(shared=shared):
        if not begin(job, tokenizers, restart=engine.restart, shared=shared):
            restored = 0 if shared else restore(job, tokenizers, workers)
            clean(store)
            return read_manifest(store) or {}, "restored" if restored else "already finished"
        tasks = job.tasks()
        if engine.name == "slurm":
            if job.filters.deduplicate != "no":
                mark_duplicates(job, 0)  # else each element would
            write_script(engine.script, engine.argv, len(tasks), workers)
            return assemble(job, {})[0], "to be submitted"
        mine = tasks[engine.rank :: engine.world] if shared else [] if engine.finish else tasks
        records = _run(job, tokenizers, mine, engine, workers)
        if not shared:
            return finish(job), "finished"
    if all_recorded(job):
        with suppress(BusyError), store.lock(shared=False):
            return finish(job), "finished"
    manifest = read_manifest(store)
    if manifest is not None:
        return manifest, "finished"
    return assemble(job, records)[0], "others at work"


def _run(
    job: Job, tokenizers: Sequence[Tokenizer], tasks: Sequence[Task], engine: Engine, workers: int
) -> dict[Task, Record]:
    """Run those of the tasks that have no record yet; the records of all of them."""
    records = read_records(job, tasks)
    missing = [task for task in tasks if task not in records]
    remove_unfinished(job.store, missing)
    if missing and job.filters.deduplicate != "no":
        mark_duplicates(job, workers)
    total, left = (sum(t.stop - t.start for t in ts) for ts in (tasks, missing))
    if missing and engine.name == "ray":
        results = run_on_ray(job, missing, workers, engine.address)
    else:
        workers = workers or len(os.sched_getaffinity(0))
        results = _run_here(job, tokenizers, missing, workers if left >= SMALL_JOB else 1)
    try:
        with Progress("sharding", total=total, unit="samples") as progress:
            progress.update(total - left)
            for task, record in results:
                records[task] = record
                progress.advance(task.stop - task.start)
    except (PlaitError, OSError):
        with suppress(PlaitError, OSError):  # of workers that were ended; the disk may be full
            remove_unfinished(job.store, missing)
        raise
    return records


def _run_here(
    job: Job, tokenizers: Sequence[Tokenizer], tasks: Sequence[Task], workers: int
) -> Iterator[tuple[Task, Record]]:
    if min(workers, len(tasks)) > 1:
        return run_in_processes(job, tasks, workers)
    return ((task, jobs.run_task(job, tokenizers, task)) for task in tasks)
