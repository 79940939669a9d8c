"""A shard job: sources to shards, in tasks that may be killed and repeated.

The sources are cut into fixed ranges of samples, whatever the number of workers; a task is one
range and makes one shard. A finished task leaves a record in `OUT/job/`; when all are there, the
records become `stream.json` and `rejected.jsonl`. So the bytes of a stream depend on sources,
tokenizers and options alone, and a job that was killed anywhere goes on where records are missing.
"""

import fcntl
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from plait.pipeline.block import json_bytes
from plait.pipeline.compressed import is_compressed
from plait.pipeline.encode import Encoder, Routing
from plait.pipeline.index import FORMAT
from plait.pipeline.shard_writer import TEMPORARY, ShardInfo, ShardWriter, write_file
from plait.pipeline.source import Json, Rejected, Source
from plait.pipeline.vocabulary import TokenizerInfo
from plait.tokenizers.base import MODALITIES, Tokenizer, load_tokenizer
from plait.tokenizers.errors import ConfigError, ResumeError

MOST_TASKS_OF_GZIP = 32


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that a worker needs."""

    out: Path
    sources: Sequence[Source]
    infos: tuple[TokenizerInfo, ...]
    routing: Routing
    samples_per_shard: int

    @property
    def folder(self) -> Path:
        """Where the records are, until the job is finished."""
        return self.out / "job"

    def tasks(self) -> list["Task"]:
        """The fixed partition of the sources."""
        ranges = []
        for number, source in enumerate(self.sources):
            step = self.samples_per_shard or _task_size(source)
            ranges += [(number, a, min(a + step, len(source))) for a in range(0, len(source), step)]
        return [Task(i, *r) for i, r in enumerate(ranges)]

    def specification(self) -> dict[str, Json]:
        """What the stream's bytes depend on; a job that is repeated must have the same."""
        return {
            "tokenizers": [asdict(info) for info in self.infos],
            "options": {**asdict(self.routing), "samples_per_shard": self.samples_per_shard},
            "sources": [source.describe() for source in self.sources],
        }


@dataclass(frozen=True)
class Task:
    """Samples start .. stop - 1 of one source."""

    number: int
    source: int
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a finished task leaves."""

    documents: int
    rejected: list[tuple[str, str]]
    """Key and reason of each."""
    shard: ShardInfo | None


def read_tokenizers(folders: Sequence[Path]) -> list[tuple[Tokenizer, TokenizerInfo]]:
    """Load tokenizers, at most one a modality, in the order of a vocabulary."""
    loaded = [(folder, _load_tokenizer(folder)) for folder in folders]
    by_modality: dict[str, tuple[Path, Tokenizer]] = {}
    for folder, tokenizer in loaded:
        if tokenizer.modality in by_modality:
            other = by_modality[tokenizer.modality][0]
            raise ConfigError(
                f"two tokenizers for {tokenizer.modality}: {other} and {folder}; a job takes one a "
                "modality (make two streams, and train on both)"
            )
        by_modality[tokenizer.modality] = (folder, tokenizer)
    if not loaded:
        raise ConfigError("no tokenizer; give one or more with --tokenizer DIR")
    known = [m for m in MODALITIES if m in by_modality]
    names = known + sorted(set(by_modality) - set(known))
    return [(by_modality[m][1], info_of(by_modality[m][1])) for m in names]


def _task_size(source: Source) -> int:
    """Samples a task takes; fewer, larger tasks where each has to read what comes before it."""
    if not is_compressed(source.path):
        return source.samples_per_task
    return max(source.samples_per_task, -(-len(source) // MOST_TASKS_OF_GZIP))


def _load_tokenizer(folder: Path) -> Tokenizer:
    try:
        return load_tokenizer(folder)
    except ConfigError as error:
        named = str(folder) in str(error)
        raise ConfigError(str(error) if named else f"{folder}: {error}") from None


def info_of(tokenizer: Tokenizer) -> TokenizerInfo:
    """How a stream names a tokenizer."""
    return TokenizerInfo(
        name=tokenizer.modality,
        modality=tokenizer.modality,
        vocab_size=tokenizer.vocab_size,
        fingerprint=tokenizer.fingerprint,
        splittable=tokenizer.splittable,
    )


def run_task(job: Job, tokenizers: Sequence[Tokenizer], task: Task) -> Record:
    """Encode a range into a shard and leave its record."""
    source = job.sources[task.source]
    writer = ShardWriter(
        job.out,
        f"shard-{task.number:06d}",
        source=str(source.path),
        tokenizers=[info.name for info in job.infos],
        modalities=[info.modality for info in job.infos],
    )
    rejected: list[tuple[str, str]] = []
    documents = 0
    encoder = Encoder(tokenizers, job.routing)
    try:
        samples = source.read(task.start, task.stop)
        for document in encoder.encode(samples, source=str(source.path), kind=source.kind):
            if isinstance(document, Rejected):
                rejected.append((document.key, document.reason))
            else:
                writer.add(document)
                documents += 1
        if documents + len(rejected) != task.stop - task.start:
            raise ResumeError(f"{source.path}: changed while it was read; run the command again")
        shard = writer.finish()
    except BaseException:
        writer.abort()
        raise
    record = Record(documents=documents, rejected=rejected, shard=shard)
    write_file(_record_path(job, task), json_bytes(asdict(record)))
    return record


def read_record(job: Job, task: Task) -> Record | None:
    """The record of a task, if it is finished and its files are still there."""
    try:
        entry = json.loads(_record_path(job, task).read_bytes())
    except FileNotFoundError:
        return None
    shard = ShardInfo(**entry["shard"]) if entry["shard"] else None
    if shard is not None:
        files = [(f"{shard.name}.tar", shard.bytes), (f"{shard.name}.idx", shard.index_bytes)]
        for name, size in files:
            path = job.out / name
            if not path.is_file() or path.stat().st_size != size:
                return None
    rejected = [(str(key), str(reason)) for key, reason in entry["rejected"]]
    return Record(documents=entry["documents"], rejected=rejected, shard=shard)


def begin(job: Job, tokenizers: Sequence[Tokenizer]) -> bool:
    """Prepare the folder; False if the job is already finished there.

    Raises ResumeError if the folder holds another job, ConfigError if it holds something else.
    """
    specification = job.specification()
    finished = job.out / "stream.json"
    if finished.is_file():
        compare(json.loads(finished.read_bytes()), specification, job.out)
        _clean(job)
        return False
    begun = job.folder / "job.json"
    if begun.is_file():
        compare(json.loads(begun.read_bytes()), specification, job.out)
    elif any(p.name not in ("job", "tokenizers") for p in job.out.iterdir()):
        raise ConfigError(
            f"{job.out}: not empty, and no shard job; choose another folder for --out"
        )
    for tokenizer, info in zip(tokenizers, job.infos, strict=True):
        _save_tokenizer(tokenizer, job.out / "tokenizers" / info.name)
    write_file(begun, json_bytes(specification))
    return True


def compare(found: dict, wanted: dict, out: Path) -> None:
    """ResumeError naming each part in which a job differs from the one in the folder."""
    differing = []
    for part in ("tokenizers", "options"):
        if found.get(part) != wanted[part]:
            differing.append(f"{part}: was {_short(found.get(part))}, is {_short(wanted[part])}")
    old, new = found.get("sources", []), wanted["sources"]
    if len(old) != len(new):
        differing.append(f"sources: there were {len(old)}, now {len(new)}")
    for a, b in zip(old, new, strict=False):
        fields = [k for k in b if a.get(k) != b[k]]
        differing += [f"source {b['path']}: {k} was {a.get(k)!r}, is {b[k]!r}" for k in fields]
    if differing:
        raise ResumeError(
            f"{out} holds another job:\n  "
            + "\n  ".join(differing[:10])
            + "\nchoose another --out, "
            "or delete that folder to begin again"
        )


def finish(job: Job) -> dict[str, Json]:
    """Assemble `rejected.jsonl` and `stream.json` from the records; returns the manifest."""
    shards, rejected, reasons = [], [], Counter()
    samples = documents = 0
    for task in job.tasks():
        record = read_record(job, task)
        assert record is not None, f"task {task.number} has no record"
        source = str(job.sources[task.source].path)
        if record.shard is not None:
            place = {"source": task.source, "start": task.start, "stop": task.stop}
            shards.append({**asdict(record.shard), **place})
        for key, reason in record.rejected:
            rejected.append(json_bytes({"source": source, "key": key, "reason": reason}))
            reasons[reason.partition(":")[0]] += 1
        samples += task.stop - task.start
        documents += record.documents
    manifest = {
        "format": FORMAT,
        "documents": documents,
        "rejected": len(rejected),
        "samples": samples,
        "tokens": _total(shards, "tokens"),
        "rejected_reasons": dict(sorted(reasons.items())),
        **job.specification(),
        "shards": shards,
    }
    write_file(job.out / "rejected.jsonl", b"".join(line + b"\n" for line in rejected))
    text = json.dumps(manifest, indent=1, ensure_ascii=True) + "\n"
    write_file(job.out / "stream.json", text.encode())
    _clean(job)
    return manifest


@contextmanager
def locked(job: Job) -> Iterator[None]:
    """Hold the folder for this job; the lock ends with the process."""
    job.folder.mkdir(parents=True, exist_ok=True)
    with (job.out / "job" / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{job.out}: another shard job is writing here") from None
        yield


def _record_path(job: Job, task: Task) -> Path:
    return job.folder / f"task-{task.number:06d}.json"


def _save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    if folder.is_dir():
        return
    part = folder.with_name(f".{folder.name}{TEMPORARY}")
    shutil.rmtree(part, ignore_errors=True)
    tokenizer.save(part)
    part.replace(folder)


def _clean(job: Job) -> None:
    """Remove records, and what killed processes left."""
    shutil.rmtree(job.folder, ignore_errors=True)
    for path in job.out.glob(f".*{TEMPORARY}"):
        path.unlink(missing_ok=True)


def _total(shards: Sequence[dict], name: str) -> dict[str, int]:
    total: Counter[str] = Counter()
    for shard in shards:
        total.update(shard[name])
    return {m: total[m] for m in sorted(total)}


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 300 else text[:300] + "..."
