"""`plait verify`: checks every checksum, id and count of a stream, and names the block at fault."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tyro
import xxhash

from plait.pipeline.block import LENGTH, TOKENIZER, Block
from plait.pipeline.index import encode_index, rebuild_index
from plait.pipeline.shard_writer import ShardInfo
from plait.pipeline.stream import Stream
from plait.tokenizers.errors import PlaitError, ShardError


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something wrong in a stream."""

    shard: str | None
    block: str | None
    problem: str


def verify(stream: Stream) -> Iterator[Problem]:
    """All problems of a stream; a shard that cannot be read does not hide the others'."""
    keys: list[int] = []
    for number, info in enumerate(stream.shards):
        stream.prefetch([number], range(number + 1, min(number + 4, len(stream.shards))))
        yield from _verify_shard(stream, number, info, keys)
    yield from _verify_manifest(stream)
    if len(set(keys)) != len(keys):
        extra = len(keys) - len(set(keys))
        yield Problem(
            shard=None, block=None, problem=f"{extra} documents have a key of another one"
        )
    for info in stream.tokenizers:
        try:
            stream.tokenizer(info.name)
        except PlaitError as error:
            yield Problem(shard=None, block=None, problem=str(error))


def _verify_shard(
    stream: Stream, number: int, info: ShardInfo, keys: list[int]
) -> Iterator[Problem]:
    def problem(text: str, block: str | None = None) -> Problem:
        return Problem(shard=info.name, block=block, problem=text)

    try:
        reader = stream.reader(number)
        tar = reader.buffer
    except ShardError as error:
        yield problem(str(error))
        return
    whole = xxhash.xxh3_128_hexdigest(tar) == info.checksum
    found = False
    counts = np.zeros(len(stream.tokenizers), np.int64)
    for at, block_info in enumerate(reader.index.blocks):
        try:
            block = reader.block(at)
        except ShardError as error:
            found = True
            yield problem(str(error), block_info.name)
            continue
        np.add.at(counts, block.spans[:, TOKENIZER], block.spans[:, LENGTH])
        keys += [
            xxhash.xxh3_64_intdigest(f"{block.source}\0{k}".encode(errors="replace"))
            for k in block.keys
        ]
        if wrong := _wrong_ids(block, stream):
            found = True
            yield problem(wrong, block_info.name)
    if found:
        return
    if not whole:
        yield problem("bytes outside the blocks' data differ (checksum of the tar is wrong)")
    try:
        same = encode_index(rebuild_index(tar, info.name, str(reader.path))) == reader.index_data()
    except ShardError as error:
        yield problem(f"no whole tar: {error}")
        return
    if not same:
        yield problem("its index is not the one that its tar gives")
    tokens = {t.modality: int(n) for t, n in zip(stream.tokenizers, counts, strict=True) if n}
    if tokens != info.tokens:
        yield problem(f"holds {tokens} tokens, stream.json says {info.tokens}")


def _wrong_ids(block: Block, stream: Stream) -> str | None:
    """What is wrong if a span has an id outside its tokenizer."""
    starts = np.concatenate([[0], np.cumsum(block.spans[:-1, LENGTH])])
    top = np.maximum.reduceat(block.ids, starts)
    sizes = np.array([t.vocab_size for t in stream.tokenizers])[block.spans[:, TOKENIZER]]
    for span in np.flatnonzero(top >= sizes)[:1].tolist():
        key = block.keys[block.spans[span, 0]]
        name = stream.tokenizers[block.spans[span, TOKENIZER]].name
        return (
            f"id {top[span]} of document {key!r}: tokenizer {name} has ids up to {sizes[span] - 1}"
        )
    return None


def _verify_manifest(stream: Stream) -> Iterator[Problem]:
    manifest = stream.manifest
    listed = _count_lines(stream.rejected_file())
    if listed != stream.rejected:
        text = f"rejected.jsonl has {listed} lines, stream.json says {stream.rejected}"
        yield Problem(shard=None, block=None, problem=text)
    if manifest["documents"] != stream.documents:
        text = f"shards hold {stream.documents} documents, stream.json says {manifest['documents']}"
        yield Problem(shard=None, block=None, problem=text)
    if manifest["samples"] != stream.documents + stream.rejected:
        text = (
            f"{stream.documents} documents and {stream.rejected} rejected are not the "
            f"{manifest['samples']} samples read"
        )
        yield Problem(shard=None, block=None, problem=text)


def _count_lines(path: Path) -> int:
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        return sum(1 for _ in file)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Check every checksum, id and count of a stream; exit code 1 if something is wrong."""

    stream: tyro.conf.Positional[str]
    """Folder or URL of the stream."""
    json: bool = False
    """Print the problems as JSON."""


def main(argv: list[str]) -> int:
    """Run the command."""
    options = tyro.cli(Options, args=argv, prog="plait verify")
    stream = Stream(options.stream)
    problems = list(verify(stream))
    if options.json:
        facts = {
            "ok": not problems,
            "shards": len(stream.shards),
            "documents": stream.documents,
            "tokens": stream.tokens,
            "problems": [asdict(p) for p in problems],
        }
        print(json.dumps(facts, indent=1))
        return int(bool(problems))
    for p in problems:
        place = " ".join(x for x in (p.shard, p.block) if x)
        print(f"{place}: {p.problem}" if place else p.problem)
    done = f"{len(stream.shards)} shards, {stream.documents:,} documents, {stream.tokens:,} tokens"
    print(f"problems: {len(problems)}; {done}" if problems else f"all well: {done}")
    return int(bool(problems))
