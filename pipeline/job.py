"""A shard job: sources to shards, in tasks that may be killed and repeated.

The sources are cut into fixed ranges of samples, whatever the number of workers; a task is one
range and makes one shard. A finished task leaves a record in `OUT/job/`; when all are there, the
records become `stream.json` and `rejected.jsonl` (job_files.py). So the bytes of a stream depend
on sources, tokenizers and options alone, and a job that was killed anywhere goes on where records
are missing.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from plait.pipeline.block import json_bytes
from plait.pipeline.compressed import is_compressed
from plait.pipeline.encode import Encoder, Routing
from plait.pipeline.fields import Fields
from plait.pipeline.filters import Filters, Gate, read_dropped
from plait.pipeline.find import Found, find_sources
from plait.pipeline.shard_writer import ShardInfo, ShardWriter
from plait.pipeline.source import Json, Rejected, Source
from plait.pipeline.store import Folder, Store
from plait.pipeline.vocabulary import TokenizerInfo
from plait.tokenizers.base import MODALITIES, Tokenizer, load_tokenizer
from plait.tokenizers.errors import ConfigError, ResumeError

MOST_TASKS_OF_GZIP = 32


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that a worker needs."""

    store: Store
    sources: Sequence[Source]
    infos: tuple[TokenizerInfo, ...]
    routing: Routing
    samples_per_shard: int
    filters: Filters = field(default_factory=Filters)

    def tasks(self) -> list["Task"]:
        """The fixed partition of the sources."""
        ranges = []
        for number, source in enumerate(self.sources):
            step = self.filters.scaled(self.samples_per_shard or _task_size(source))
            ranges += [(number, a, min(a + step, len(source))) for a in range(0, len(source), step)]
        return [Task(i, *r) for i, r in enumerate(ranges)]

    def specification(self) -> dict[str, Json]:
        """What the stream's bytes depend on; a job that is repeated must have the same."""
        options = {**asdict(self.routing), "samples_per_shard": self.samples_per_shard}
        return {
            "tokenizers": [asdict(info) for info in self.infos],
            "options": {**options, **self.filters.chosen()},
            "sources": [source.describe() for source in self.sources],
        }


@dataclass(frozen=True)
class Task:
    """Samples start .. stop - 1 of one source."""

    number: int
    source: int
    start: int
    stop: int

    @property
    def shard(self) -> str:
        """The name of its shard."""
        return f"shard-{self.number:06d}"

    @property
    def record(self) -> str:
        """The name of its record in the folder `job`."""
        return f"task-{self.number:06d}.json"


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a finished task leaves."""

    documents: int
    rejected: list[tuple[str, str]]
    """Key and reason of each."""
    shard: ShardInfo | None


def find_job_sources(
    paths: Sequence[str | Path], kind: str | None, fields: Fields, store: Store
) -> tuple[list[Source], list[Path]]:
    """The sources at all paths, and the files there that none takes; ConfigError on wrong use."""
    if not paths:
        raise ConfigError("no SOURCE; name one or more files or folders of samples")
    found = [find_sources(path, kind, fields) for path in paths]
    sources = [source for f in found for source in f.sources]
    seen = set()
    for source in sources:
        place = (source.kind, source.path.resolve())
        if place in seen:
            raise ConfigError(f"{source.path}: named twice; each document should come once")
        seen.add(place)
    if isinstance(store, Folder):
        _check_place(store.path, found)
    return sources, [path for f in found for path in f.passed_over]


def _check_place(out: Path, found: Sequence[Found]) -> None:
    sources = [source for f in found for source in f.sources]
    media = [s.path for s in sources if s.kind in ("images", "audio")]
    captioned = [path.parent for path in media if path.is_file()]
    for folder in [s.path for s in sources] + captioned + [f.root for f in found]:
        if folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(
                f"--out {out} lies inside the source {folder}; choose a place outside"
            )


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


def stored_tokenizers(job: Job) -> list[Tokenizer]:
    """The job's tokenizers, from the copies that `begin` left."""
    loaded = []
    for info in job.infos:
        with job.store.local(f"tokenizers/{info.name}") as folder:
            loaded.append(load_tokenizer(folder))
    return loaded


def run_task(job: Job, tokenizers: Sequence[Tokenizer], task: Task) -> Record:
    """Encode a range into a shard and leave its record."""
    with job.store.workplace() as folder:
        record = _write_shard(job, tokenizers, task, folder)
        if record.shard is not None:
            job.store.publish(folder, [f"{task.shard}.tar", f"{task.shard}.idx"])
    job.store.write(f"job/{task.record}", json_bytes(asdict(record)))
    return record


def _write_shard(job: Job, tokenizers: Sequence[Tokenizer], task: Task, folder: Path) -> Record:
    source = job.sources[task.source]
    writer = ShardWriter(
        folder,
        task.shard,
        source=str(source.path),
        tokenizers=[info.name for info in job.infos],
        modalities=[info.modality for info in job.infos],
    )
    rejected: list[tuple[str, str]] = []
    documents = 0
    encoder = Encoder(tokenizers, job.routing)
    dropped = read_dropped(job.store, task.number) if job.filters.deduplicate != "no" else {}
    gate = Gate(job.filters, str(source.path), dropped)
    try:
        samples = gate.samples(source.read(task.start, task.stop))
        encoded = encoder.encode(samples, source=str(source.path))
        for document in map(gate.document, encoded):
            if isinstance(document, Rejected):
                rejected.append((document.key, document.reason))
            else:
                writer.add(document)
                documents += 1
        if documents + len(rejected) + gate.elsewhere != task.stop - task.start:
            raise ResumeError(f"{source.path}: changed while it was read; run the command again")
        shard = writer.finish()
    except BaseException:
        writer.abort()
        raise
    return Record(documents=documents, rejected=rejected, shard=shard)
