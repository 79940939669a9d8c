"""`plait verify`: checks every checksum, id and count of a stream, and repairs what can be.

Shards are checked in threads and reported in their order. A thread checks about 1 GB of web text
in a second, more than most disks give; processes took longer to start than 200 MB to check. A
stream without the shards in quarantine is whole in itself: that is a note, not a problem.
"""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import tyro

from plait.pipeline.remote import is_url
from plait.pipeline.repair import repair
from plait.pipeline.shard_check import Problem, check_shard
from plait.pipeline.stream import Stream
from plait.tokenizers.errors import ConfigError, PlaitError


def verify(stream: Stream, workers: int = 0) -> Iterator[Problem]:
    """All problems of a stream; a shard that cannot be read does not hide the others'.

    `workers` is the number of threads, 0 one for each CPU.
    """
    keys = [np.zeros(0, np.uint64)]
    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
        for problems, found in pool.map(partial(_check, stream), range(len(stream.shards))):
            yield from problems
            keys.append(found)
    yield from _verify_manifest(stream)
    yield from _verify_keys(np.concatenate(keys))
    for info in stream.tokenizers:
        try:
            stream.tokenizer(info.name)
        except PlaitError as error:
            yield Problem(shard=None, block=None, problem=str(error))


def _check(stream: Stream, number: int) -> tuple[list[Problem], np.ndarray]:
    stream.prefetch_in_order(number)
    return check_shard(stream, number)


def _verify_manifest(stream: Stream) -> Iterator[Problem]:
    manifest = stream.manifest
    lost = sum(entry["documents"] for entry in manifest.get("quarantined", []))
    listed = _count_lines(stream.rejected_file())
    if listed != stream.rejected:
        text = f"rejected.jsonl has {listed} lines, stream.json says {stream.rejected}"
        yield Problem(shard=None, block=None, problem=text)
    if manifest["documents"] != stream.documents:
        text = f"shards hold {stream.documents} documents, stream.json says {manifest['documents']}"
        yield Problem(shard=None, block=None, problem=text)
    if manifest["samples"] != stream.documents + stream.rejected + lost:
        also = f", {lost} in quarantined shards" if lost else ""
        text = (
            f"{stream.documents} documents{also} and {stream.rejected} rejected are not the "
            f"{manifest['samples']} samples read"
        )
        yield Problem(shard=None, block=None, problem=text)


def _verify_keys(keys: np.ndarray) -> Iterator[Problem]:
    keys.sort()
    extra = int((keys[1:] == keys[:-1]).sum())
    if extra:
        text = f"{extra} documents have a key of another one"
        yield Problem(shard=None, block=None, problem=text)


def _count_lines(path: Path) -> int:
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        return sum(1 for _ in file)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Check every checksum, id and count of a stream; exit code 1 if something is wrong.

    A stream whose damaged shards are in quarantine is fine: that is said, and is exit code 0.
    """

    stream: tyro.conf.Positional[str]
    """Folder or URL of the stream."""
    repair: bool = False
    """Rebuild damaged indexes from their tars; take damaged shards out of the stream, into
    STREAM/quarantine."""
    workers: int = 0
    """Threads; 0 is one for each CPU."""
    json: bool = False
    """Print the problems as JSON."""


def main(argv: list[str]) -> int:
    """Run the command."""
    options = tyro.cli(Options, args=argv, prog="plait verify")
    stream = Stream(options.stream)
    problems = list(verify(stream, options.workers))
    repairs: list[str] = []
    if options.repair and is_url(options.stream):
        raise ConfigError(f"{options.stream}: only a stream in a local folder can be repaired")
    if options.repair:
        repairs = repair(stream.path, problems)
    if repairs:
        if not options.json:
            _print(problems)
        stream = Stream(options.stream)
        problems = list(verify(stream, options.workers))
    if options.json:
        print(json.dumps(_facts(stream, problems, repairs), indent=1))
    else:
        _print(problems)
        print("\n".join([*repairs, *_quarantined(stream), _total(stream, problems)]))
    return int(bool(problems))


def _facts(stream: Stream, problems: list[Problem], repairs: list[str]) -> dict[str, object]:
    return {
        "ok": not problems,
        "shards": len(stream.shards),
        "documents": stream.documents,
        "tokens": stream.tokens,
        "problems": [asdict(p) for p in problems],
        "repairs": repairs,
        "quarantined": stream.manifest.get("quarantined", []),
    }


def _print(problems: list[Problem]) -> None:
    for p in problems:
        place = " ".join(x for x in (p.shard, p.block) if x)
        print(f"{place}: {p.problem}" if place else p.problem)


def _quarantined(stream: Stream) -> list[str]:
    """What the stream lacks, and how it comes back."""
    entries = stream.manifest.get("quarantined", [])
    if not entries:
        return []
    lines = []
    for entry in entries:
        tokens = sum(entry["tokens"].values())
        where = ""
        if "start" in entry:
            source = stream.manifest["sources"][entry["source"]]["path"]
            where = f" (samples {entry['start']} to {entry['stop'] - 1} of {source})"
        lines.append(
            f"in quarantine: {entry['name']}: {entry['documents']:,} documents, {tokens:,} "
            f"tokens{where}"
        )
    return [*lines, "  the command of `plait shard` that made the stream makes them again"]


def _total(stream: Stream, problems: list[Problem]) -> str:
    done = f"{len(stream.shards)} shards, {stream.documents:,} documents, {stream.tokens:,} tokens"
    return f"problems: {len(problems)}; {done}" if problems else f"all well: {done}"
