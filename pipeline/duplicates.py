"""Finds duplicates before a job's tasks begin, so that the tasks stay independent.

A pass over the raw samples hashes what each holds, task by task in processes; then one sort finds
what comes again, and each task gets a small file of what it drops. The first in the order of the
job is kept, so the result depends neither on workers nor on kills; it is kept whatever becomes of
it, and if it is rejected for another reason, so are its copies. A process hashes about 100,000 rows
or 300 MB of web text a second; in memory lie 16 bytes a hash, more only for those that come twice.
"""

import json
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import groupby
from multiprocessing import get_context
from multiprocessing.connection import wait
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import xxhash

from plait.pipeline.block import json_bytes
from plait.pipeline.filters import dropped_name
from plait.pipeline.index import cumulative
from plait.pipeline.job import Job, Task
from plait.pipeline.progress import Progress
from plait.pipeline.shard_writer import write_file
from plait.pipeline.source import Part, Rejected, Sample, Slice
from plait.pipeline.store import Folder, Store
from plait.pipeline.tar import npy_bytes
from plait.tokenizers.errors import PlaitError, SampleError

SMALL_JOB = 1 << 16
"""A job of fewer samples is hashed in one process: that takes less than to start others."""
DONE = "job/dropped"
KINDS = ("document", "image", "audio")
_HIGH, _LOW, _KIND, _SAMPLE, _KEY = range(5)
"""Columns of a task's table: a hash, of what, the sample's number, where its key lies."""

Drop = tuple[int, int, int]
"""Number of a sample in the job, of the earlier one, and of what they share (see KINDS)."""


def mark_duplicates(job: Job, workers: int) -> None:
    """Leave each task the file that `read_dropped` reads; does nothing if that was done before.

    `workers` is the number of processes, 0 and at most one for each CPU.
    """
    if job.store.read([DONE]):
        return
    with _tables(job.store) as folder:
        _mark(job, folder, workers)


@contextmanager
def _tables(store: Store) -> Iterator[Path]:
    """Where the tables of hashes lie: in a local job's folder they last if it is killed."""
    if isinstance(store, Folder):
        folder = store.path / "job"
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with TemporaryDirectory(prefix="plait-") as name:
        yield Path(name)


def _mark(job: Job, folder: Path, workers: int) -> None:
    tasks = job.tasks()
    starts = cumulative(np.array([task.stop - task.start for task in tasks], np.int64))
    _hash_all(job, folder, tasks, workers)
    drops = find_repeats(*_collect(folder, tasks, starts))
    namer = _Namer(job, folder, tasks, starts)
    for number, group in groupby(drops, lambda d: int(np.searchsorted(starts, d[0], "right")) - 1):
        reasons = {str(sample - starts[number]): namer.reason(a, k) for sample, a, k in group}
        job.store.write(dropped_name(tasks[number].number), json_bytes(reasons))
    job.store.write(DONE, b"all")


def find_repeats(hashes: np.ndarray, samples: np.ndarray, kinds: np.ndarray) -> Iterator[Drop]:
    """Samples that share a hash with an earlier one that is kept; all arrays in job order.

    `hashes` is uint64 [n, 2]. Only what comes twice is looked at one by one.
    """
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))
    new = np.ones(len(order), bool)
    new[1:] = (hashes[order[1:]] != hashes[order[:-1]]).any(1)
    groups = np.cumsum(new) - 1
    repeated = np.bincount(groups)[groups] > 1 if len(groups) else new
    at, groups = order[repeated], np.unique(groups[repeated], return_inverse=True)[1]
    again = np.argsort(at)
    at, groups = at[again], groups[again]
    owner = np.full(int(groups.max(initial=-1)) + 1, -1, np.int64)
    rows = zip(samples[at].tolist(), groups.tolist(), kinds[at].tolist(), strict=True)
    for sample, found in groupby(rows, itemgetter(0)):
        entries = [(group, kind) for _, group, kind in found]
        owned = [(int(owner[group]), kind) for group, kind in entries if owner[group] >= 0]
        if owned:
            yield (sample, *owned[0])
        else:
            owner[[group for group, _ in entries]] = sample


class _Namer:
    """Says what a sample is a duplicate of."""

    def __init__(self, job: Job, folder: Path, tasks: Sequence[Task], starts: np.ndarray) -> None:
        self._job = job
        self._folder = folder
        self._tasks = tasks
        self._starts = starts
        self._open = lru_cache(64)(self._open_keys)

    def reason(self, sample: int, kind: int) -> str:
        """The reason to drop a duplicate of this sample of the job."""
        number = int(np.searchsorted(self._starts, sample, "right")) - 1
        table, keys = self._open(number)
        row = int(np.searchsorted(table[:, _SAMPLE], sample - self._starts[number]))
        keys.seek(int(table[row, _KEY]))
        what = "duplicate" if kind == 0 else f"duplicate {KINDS[kind]}"
        source = self._job.sources[self._tasks[number].source].path
        return f"{what}: of {json.loads(keys.readline())} in {source}"

    def _open_keys(self, number: int) -> tuple[np.ndarray, mmap.mmap]:
        table, keys = _paths(self._folder, self._tasks[number])
        with keys.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return np.load(table), mapped


def _collect(
    folder: Path, tasks: Sequence[Task], starts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The arguments of `find_repeats`, from rows whose first half of a hash comes again."""
    paths = [_paths(folder, task)[0] for task in tasks]
    high = np.concatenate([np.zeros(0, np.uint64), *(np.load(p)[:, _HIGH].copy() for p in paths)])
    high.sort()
    again = np.unique(high[1:][high[1:] == high[:-1]])
    chosen = [np.zeros((0, 5), np.uint64)]
    for start, path in zip(starts.tolist(), paths, strict=False):
        table = np.load(path)
        table = table[_within(table[:, _HIGH], again)]
        table[:, _SAMPLE] += np.uint64(start)
        chosen.append(table)
    rows = np.concatenate(chosen)
    return rows[:, :2], rows[:, _SAMPLE].astype(np.int64), rows[:, _KIND].astype(np.int64)


def _within(values: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """Which values are in a sorted list."""
    if not len(ascending):
        return np.zeros(len(values), bool)
    places = np.searchsorted(ascending, values).clip(max=len(ascending) - 1)
    return ascending[places] == values


def _hash_all(job: Job, folder: Path, tasks: Sequence[Task], workers: int) -> None:
    """Hash what is not hashed; a process that dies leaves its tasks to this one."""
    missing = [task for task in tasks if not _paths(folder, task)[0].is_file()]
    total = sum(task.stop - task.start for task in missing)
    processors = len(os.sched_getaffinity(0))
    workers = min(workers or processors, processors, len(missing))
    with Progress("looking for duplicates", total=total, unit="samples") as progress:
        if total >= SMALL_JOB and workers > 1:
            _hash_in_processes(job, folder, missing, workers, progress)
        progress.update(0)
        for task in missing:
            if not _paths(folder, task)[0].is_file():
                _hash_task(job, folder, task)
            progress.advance(task.stop - task.start)


def _hash_in_processes(
    job: Job, folder: Path, tasks: list[Task], workers: int, progress: Progress
) -> None:
    context = get_context("spawn")
    processes = [
        context.Process(target=_hash_tasks, args=(job, folder, tasks[first::workers]), daemon=True)
        for first in range(workers)
    ]
    try:
        for process in processes:
            process.start()
        while running := [p.sentinel for p in processes if p.is_alive()]:
            wait(running, timeout=1.0)
            ready = [task for task in tasks if _paths(folder, task)[0].is_file()]
            progress.update(sum(task.stop - task.start for task in ready))
    finally:
        for process in processes:
            if process.pid is not None:
                process.kill()
                process.join()


def _hash_tasks(job: Job, folder: Path, tasks: Sequence[Task]) -> None:
    """In a process of its own; what goes wrong goes wrong again, and is told, in the job's."""
    with suppress(PlaitError, OSError, KeyboardInterrupt):
        for task in tasks:
            _hash_task(job, folder, task)


def _hash_task(job: Job, folder: Path, task: Task) -> None:
    rows: list[tuple[int, int, int, int, int]] = []
    keys = bytearray()
    media = job.filters.deduplicate == "media"
    samples = job.sources[task.source].read(task.start, task.stop)
    for number, sample in enumerate(samples):
        hashes = [] if isinstance(sample, Rejected) else _hashes(sample, media=media)
        rows += [(h >> 64, h & (1 << 64) - 1, kind, number, len(keys)) for kind, h in hashes]
        if hashes:
            keys += json.dumps(sample.key).encode() + b"\n"
    table, names = _paths(folder, task)
    write_file(names, bytes(keys))
    write_file(table, npy_bytes(np.array(rows, np.uint64).reshape(-1, 5)))


def _hashes(sample: Sample, *, media: bool) -> list[tuple[int, int]]:
    """A sample as (number of a kind, hash): the whole first, then its images and sounds if asked.

    None if a part cannot be read or there is nothing but blanks: it is no document anyway.
    """
    try:
        contents = [(part.kind, _content_hash(part)) for part in sample.parts]
    except (OSError, SampleError):
        return []
    if all(isinstance(p.value, str) and not p.value.strip() for p in sample.parts):
        return []
    whole = "\n".join(f"{kind} {h:032x}" for kind, h in contents)
    found = [(0, xxhash.xxh3_128_intdigest(whole.encode()))]
    return found + [(KINDS.index(kind), h) for kind, h in contents if media and kind in KINDS]


def _content_hash(part: Part) -> int:
    """Of a text, wherever it is written, or of the bytes of a file."""
    value = part.value
    if part.kind == "text" and not isinstance(value, str):
        value = str(part.load())
    if isinstance(value, Slice):
        value = value.read()
    if isinstance(value, str):
        value = value.encode(errors="surrogatepass")
    if isinstance(value, bytes):
        return xxhash.xxh3_128_intdigest(value)
    digest = xxhash.xxh3_128()
    with value.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.intdigest()


def _paths(folder: Path, task: Task) -> tuple[Path, Path]:
    """A task's table, and the keys of its samples, one JSON string a line."""
    path = folder / f"content-{task.number:06d}.npy"
    return path, path.with_suffix(".keys")
