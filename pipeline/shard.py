"""`plait shard`: tokenize sources and write a stream, with processes here or on many machines."""

import dataclasses
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

from plait.pipeline import job as jobs
from plait.pipeline.bucket import open_store
from plait.pipeline.encode import Routing
from plait.pipeline.engines import HERE, Engine, State, run_job
from plait.pipeline.fields import parse_fields
from plait.pipeline.filters import Filters
from plait.pipeline.job import Job
from plait.pipeline.job_files import MARKERS
from plait.tokenizers.errors import ConfigError, PlaitError


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a shard job did; while others are at work, what this rank of it did."""

    out: str
    state: State
    samples: int
    documents: int
    rejected: dict[str, int]
    """Counts by reason."""
    tokens: dict[str, int]
    """Counts by modality."""
    seconds: float
    passed_over: tuple[Path, ...]
    """Files beside the samples that no source takes."""
    parts: tuple["Summary", ...] = ()
    """Those of the train and the validation stream, if the samples were split."""

    @property
    def already_done(self) -> bool:
        """Whether there was nothing to do."""
        return self.state == "already finished"


def shard(
    sources: Sequence[str | Path],
    out: str | Path,
    tokenizers: Sequence[str | Path],
    *,
    workers: int = 0,
    engine: Engine = HERE,
    source: str | None = None,
    field: Sequence[str] = (),
    caption_first: float = 0.8,
    bytes_share: float = 0.125,
    samples_per_shard: int = 0,
    filters: Filters | None = None,
) -> Summary:
    """Tokenize sources into the stream `out`, a folder or an fsspec URL of an object store.

    Goes on where an earlier run was stopped. `workers` 0 is one for each CPU; `engine` says more
    of who runs the tasks. The files are the same for any workers and engine. With
    `filters.validation` there are two streams, `out/train` and `out/validation`.
    """
    filters = filters or Filters()
    filters.check()
    if parts := filters.parts():
        one = partial(
            shard,
            sources,
            tokenizers=tokenizers,
            workers=workers,
            engine=engine,
            source=source,
            field=field,
            caption_first=caption_first,
            bytes_share=bytes_share,
            samples_per_shard=samples_per_shard,
        )
        _check_split(out)
        return _together(str(out), [one(out=_part(out, f.split), filters=f) for f in parts])
    started = time.monotonic()
    _check_options(caption_first, bytes_share, samples_per_shard, workers)
    try:
        store = open_store(out)
        fields = parse_fields(field)
        opened, passed_over = jobs.find_job_sources(sources, source, fields, store)
        pairs = jobs.read_tokenizers([Path(t) for t in tokenizers])
        job = Job(
            store=store,
            sources=opened,
            infos=tuple(info for _, info in pairs),
            routing=Routing(caption_first=caption_first, bytes_share=bytes_share),
            samples_per_shard=samples_per_shard,
            filters=filters,
        )
        manifest, state = run_job(job, [t for t, _ in pairs], engine, workers)
    except OSError as error:
        raise PlaitError(
            f"{error.filename or out}: {error.strerror or error}; the same command goes on "
            "where it stopped"
        ) from error
    return Summary(
        out=str(store),
        state=state,
        samples=manifest["samples"],
        documents=manifest["documents"],
        rejected=manifest["rejected_reasons"],
        tokens=manifest["tokens"],
        seconds=time.monotonic() - started,
        passed_over=tuple(passed_over),
    )


def _check_options(caption_first: float, bytes_share: float, per_shard: int, workers: int) -> None:
    for name, value in (("--caption-first", caption_first), ("--bytes-share", bytes_share)):
        if not 0 <= value <= 1:
            raise ConfigError(f"{name} {value}: a share is between 0 and 1")
    if per_shard < 0 or workers < 0:
        raise ConfigError("--samples-per-shard and --workers are 0 (automatic) or more")


def _check_split(out: str | Path) -> None:
    if open_store(out).read(MARKERS):
        raise ConfigError(f"{out}: holds a stream that is not split; choose another --out")


def _part(out: str | Path, split: str) -> str | Path:
    return out / split if isinstance(out, Path) else f"{out.rstrip('/')}/{split}"


def _together(out: str, parts: list[Summary]) -> Summary:
    rejected, tokens = Counter(), Counter()
    for part in parts:
        rejected.update(part.rejected)
        tokens.update(part.tokens)
    states: list[State] = [part.state for part in parts if part.state != "already finished"]
    return Summary(
        out=out,
        state=states[-1] if states else "already finished",
        samples=sum(part.samples for part in parts),
        documents=sum(part.documents for part in parts),
        rejected=dict(sorted(rejected.items())),
        tokens=dict(sorted(tokens.items())),
        seconds=sum(part.seconds for part in parts),
        passed_over=parts[0].passed_over,
        parts=tuple(parts),
    )


@dataclass(frozen=True, kw_only=True)
class Options:
    """Tokenize sources and write a stream of shards.

    The same command goes on where it was stopped, and gives the same files for any --workers,
    --engine and --world.
    """

    sources: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Files or folders; KIND:PATH or --source says a kind that cannot be recognised."""
    out: str
    """Folder of the stream, or a URL of an object store (s3://bucket/prefix)."""
    tokenizer: tyro.conf.UseAppendAction[tuple[Path, ...]]
    """Folder of a tokenizer (`plait fit`); one for each modality."""
    workers: int = 0
    """Worker processes; 0 is one for each CPU (slurm: array elements, at most 1,000)."""
    engine: Literal["local", "ray", "slurm"] = "local"
    """Who runs the tasks: processes here, a Ray cluster, a Slurm array (writes its script)."""
    address: str | None = None
    """Of a Ray cluster (auto: the one on this machine); else one is started for this command."""
    script: Path = Path("plait-shard.sbatch")
    """The Slurm script to write."""
    rank: int | None = None
    """For any other scheduler: run the tasks RANK, RANK + WORLD, ... alone."""
    world: int | None = None
    """How many ranks there are; the last to finish assembles the stream."""
    finish: bool = False
    """Only assemble what the ranks have left."""
    restart: bool = False
    """Remove the files of the job that is in --out, and begin anew."""
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
    filters: tyro.conf.OmitArgPrefixes[Filters] = dataclasses.field(default_factory=Filters)
    """What to leave out on purpose; a bound of 0 is none."""


def main(argv: list[str]) -> int:
    """Run the command; the exit code is 1 if there is not one document."""
    options = tyro.cli(Options, args=argv, prog="plait shard")
    engine = Engine(
        name=options.engine,
        address=options.address,
        rank=options.rank,
        world=options.world,
        finish=options.finish,
        restart=options.restart,
        script=options.script,
        argv=tuple(argv),
    )
    summary = shard(
        options.sources,
        options.out,
        options.tokenizer,
        workers=options.workers,
        engine=engine,
        source=options.source,
        field=options.field,
        caption_first=options.caption_first,
        bytes_share=options.bytes_share,
        samples_per_shard=options.samples_per_shard,
        filters=options.filters,
    )
    if summary.state == "to be submitted":
        print(f"{options.script}: written; submit it with: bash {options.script}")
        return 0
    print(report(summary))
    return 0 if summary.documents or summary.state == "others at work" else 1


def report(summary: Summary) -> str:
    """The lines printed at the end."""
    if summary.state == "others at work":
        counts = f"{summary.documents:,} documents of {summary.samples:,} samples"
        done = f"{summary.out}: this rank is done, {counts}"
        return f"{done}; the last rank to finish (or --finish) assembles the stream"
    lines, shown, data = _facts(summary), summary.out, f"--data {summary.out}"
    if summary.parts:
        train, held_out = summary.parts
        lines = [line for part in summary.parts for line in _facts(part)]
        shown, data = train.out, f"--data {train.out} --validation.data {held_out.out}"
    lines.append(f"Next: plait inspect {shown}   or   plait train mot {data} --out RUN")
    return "\n".join(lines)


def _facts(summary: Summary) -> list[str]:
    rejected = sum(summary.rejected.values())
    counts = f"{summary.documents:,} documents of {summary.samples:,} samples"
    lines = [f"{summary.out}: {counts}"]
    if summary.already_done:
        lines[0] += "; already complete, nothing to do"
    if summary.state == "restored":
        lines[0] += "; what was missing or in quarantine was made again"
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
    return lines
