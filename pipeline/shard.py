"""`plait shard`: tokenize sources and write a stream, with local worker processes."""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from plait.pipeline import job as jobs
from plait.pipeline.encode import Routing
from plait.pipeline.fields import parse_fields
from plait.pipeline.find import find_sources
from plait.pipeline.job import Job
from plait.pipeline.progress import Progress
from plait.pipeline.source import Source
from plait.pipeline.workers import run_in_processes
from plait.tokenizers.base import Tokenizer
from plait.tokenizers.errors import ConfigError, PlaitError

SMALL_JOB = 256
"""A job of fewer samples is not worth starting worker processes for."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a shard job did."""

    out: Path
    samples: int
    documents: int
    rejected: dict[str, int]
    """Counts by reason."""
    tokens: dict[str, int]
    """Counts by modality."""
    seconds: float
    already_done: bool
    passed_over: tuple[Path, ...]
    """Files beside the samples that no source takes."""


def shard(
    sources: Sequence[str | Path],
    out: str | Path,
    tokenizers: Sequence[str | Path],
    *,
    workers: int = 0,
    source: str | None = None,
    field: Sequence[str] = (),
    caption_first: float = 0.8,
    bytes_share: float = 0.125,
    samples_per_shard: int = 0,
) -> Summary:
    """Tokenize sources into the stream `out`; goes on where an earlier run was stopped.

    `workers` 0 is one for each CPU. The files are the same for any number of workers.
    """
    started = time.monotonic()
    _check_options(caption_first, bytes_share, samples_per_shard, workers)
    fields = parse_fields(field)
    found = [find_sources(path, source, fields) for path in sources]
    opened = [s for f in found for s in f.sources]
    _check_distinct(opened)
    out = Path(out)
    media = [s.path for s in opened if s.kind in ("images", "audio")]
    captioned = [path.parent for path in media if path.is_file()]
    _check_place(out, [s.path for s in opened] + captioned + [f.root for f in found])
    pairs = jobs.read_tokenizers([Path(t) for t in tokenizers])
    job = Job(
        out=out,
        sources=opened,
        infos=tuple(info for _, info in pairs),
        routing=Routing(caption_first=caption_first, bytes_share=bytes_share),
        samples_per_shard=samples_per_shard,
    )
    out.mkdir(parents=True, exist_ok=True)
    with jobs.locked(job):
        to_do = jobs.begin(job, [t for t, _ in pairs])
        if to_do:
            try:
                _run(job, [t for t, _ in pairs], workers)
                jobs.finish(job)
            except OSError as error:
                raise PlaitError(
                    f"{error.filename or out}: {error.strerror or error}; the same command goes on "
                    "where it stopped"
                ) from error
    return _summary(
        job, time.monotonic() - started, not to_do, [p for f in found for p in f.passed_over]
    )


def _run(job: Job, tokenizers: list[Tokenizer], workers: int) -> None:
    tasks = job.tasks()
    missing = [t for t in tasks if jobs.read_record(job, t) is None]
    total = sum(t.stop - t.start for t in tasks)
    left = sum(t.stop - t.start for t in missing)
    workers = min(workers or len(os.sched_getaffinity(0)), len(missing))
    if left < SMALL_JOB:
        workers = 1
    with Progress("sharding", total=total, unit="samples") as progress:
        progress.update(total - left)
        if workers <= 1:
            for task in missing:
                jobs.run_task(job, tokenizers, task)
                progress.advance(task.stop - task.start)
        else:
            for task, _ in run_in_processes(job, missing, workers):
                progress.advance(task.stop - task.start)


def _check_options(caption_first: float, bytes_share: float, per_shard: int, workers: int) -> None:
    for name, value in (("--caption-first", caption_first), ("--bytes-share", bytes_share)):
        if not 0 <= value <= 1:
            raise ConfigError(f"{name} {value}: a share is between 0 and 1")
    if per_shard < 0 or workers < 0:
        raise ConfigError("--samples-per-shard and --workers are 0 (automatic) or more")


def _check_place(out: Path, folders: Sequence[Path]) -> None:
    for folder in (f for f in folders if f.is_dir()):
        if out.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(
                f"--out {out} lies inside the source {folder}; choose a place outside"
            )


def _check_distinct(sources: Sequence[Source]) -> None:
    seen = set()
    for source in sources:
        place = (source.kind, source.path.resolve())
        if place in seen:
            raise ConfigError(f"{source.path}: named twice; each document should come once")
        seen.add(place)


def _summary(job: Job, seconds: float, already_done: bool, passed_over: list[Path]) -> Summary:
    manifest = json.loads((job.out / "stream.json").read_bytes())
    return Summary(
        out=job.out,
        samples=manifest["samples"],
        documents=manifest["documents"],
        rejected=manifest["rejected_reasons"],
        tokens=manifest["tokens"],
        seconds=seconds,
        already_done=already_done,
        passed_over=tuple(passed_over),
    )


@dataclass(frozen=True, kw_only=True)
class Options:
    """Tokenize sources and write a stream of shards.

    The same command goes on where it was stopped, and gives the same files for any --workers.
    """

    sources: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Files or folders; KIND:PATH or --source says a kind that cannot be recognised."""
    out: Path
    """Folder of the stream."""
    tokenizer: tyro.conf.UseAppendAction[tuple[Path, ...]]
    """Folder of a tokenizer (`plait fit`); one for each modality."""
    workers: int = 0
    """Worker processes; 0 is one for each CPU."""
    source: str | None = None
    """Kind of all sources (`plait list sources`); recognised if left out."""
    field: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """ROLE=COLUMN: which column of rows holds the key, text, image, audio, bytes, parts, images or
    texts."""
    caption_first: float = 0.8
    """Share of captioned pictures and sounds whose caption comes first."""
    bytes_share: float = 0.125
    """Share of plain text documents for the byte tokenizer, where there is also one for text."""
    samples_per_shard: int = 0
    """Samples a shard; 0 chooses by the kind of source."""


def main(argv: list[str]) -> int:
    """Run the command; the exit code is 1 if there is not one document."""
    options = tyro.cli(Options, args=argv, prog="plait shard")
    summary = shard(
        options.sources,
        options.out,
        options.tokenizer,
        workers=options.workers,
        source=options.source,
        field=options.field,
        caption_first=options.caption_first,
        bytes_share=options.bytes_share,
        samples_per_shard=options.samples_per_shard,
    )
    print(report(summary))
    return 0 if summary.documents else 1


def report(summary: Summary) -> str:
    """The lines printed at the end."""
    rejected = sum(summary.rejected.values())
    lines = [f"{summary.out}: {summary.documents:,} documents of {summary.samples:,} samples"]
    if summary.already_done:
        lines[0] += "; already complete, nothing to do"
    lines += [f"  {n:>14,} {name} tokens" for name, n in summary.tokens.items()]
    if rejected:
        lines.append(f"  {rejected:>14,} samples rejected, listed in {summary.out}/rejected.jsonl:")
        lines += [f"  {n:>14,}   {reason}" for reason, n in summary.rejected.items()]
    if summary.passed_over:
        names = ", ".join(str(p) for p in summary.passed_over[:5])
        more = len(summary.passed_over) - 5
        lines.append(f"  passed over: {names}" + (f" and {more} more" if more > 0 else ""))
    if not summary.already_done:
        lines.append(f"  {summary.seconds:.1f} s")
    lines.append(
        f"Next: plait inspect {summary.out}   or   plait train mot --data {summary.out} --out RUN"
    )
    return "\n".join(lines)
