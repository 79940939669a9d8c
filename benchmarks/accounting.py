"""Is every sample accounted for? Proven by lists of keys and by every token, under kills.

    python benchmarks/accounting.py --data FOLDER --tokenizer TOKENIZER

`plait shard` is killed with SIGKILL at random moments and started again until it ends. Then the
keys of the sources, as they are read one by one, are compared with the keys of the stream's
documents and of `rejected.jsonl`: each as often. Then ranks deliver an epoch, stopped and resumed
from their JSON state at random steps; the tokens of each document, put together from all rows that
hold a part of it, must be those of the stream, in order and once. Exit code 1 if anything differs.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from plait.pipeline.find import open_sources
from plait.pipeline.loader import Loader
from plait.pipeline.plan import Packing
from plait.pipeline.rows import Rows
from plait.pipeline.stream import Stream

PACKINGS: tuple[Packing, ...] = ("best_fit", "concat")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to prove, and how hard to make it."""

    data: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SOURCE...")]
    """Files or folders, as `plait shard` takes them."""
    tokenizer: tuple[Path, ...]
    """Folders of tokenizers, one for each modality."""
    kills: int = 10
    """How often the shard job, and each rank's epoch, is ended before its time."""
    ranks: int = 4
    seq_len: int = 2048
    seed: int = 0


def main(options: Options) -> int:
    """Shard and stream; 1 if a key or a token is lost or doubled."""
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "stream"
        killed = shard_with_kills(options, out, rng)
        stream = Stream(out)
        wrong = compare(*keys_of_sources(options), *keys_of_stream(stream))
        print(f"shard: killed {killed} times; {stream.documents:,} documents, ", end="")
        print(f"{stream.rejected:,} rejected, {wrong} keys lost or doubled")
        for packing in PACKINGS:
            rows = Rows(stream, seq_len=options.seq_len, packing=packing, seed=options.seed)
            bad = check_epoch(rows, options, rng)
            print(f"{packing}: {len(rows):,} rows; {bad} of {stream.documents:,} documents differ")
            wrong += bad
    return int(wrong > 0)


def shard_with_kills(options: Options, out: Path, rng: random.Random) -> int:
    """Run the command until it ends by itself; how often it was killed."""
    command = [sys.executable, "-m", "plait.pipeline.cli", "shard", *options.data]
    command += ["--out", str(out), *(f"--tokenizer={t}" for t in options.tokenizer)]
    for killed in range(options.kills + 1):
        process = subprocess.Popen(
            command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            if killed < options.kills:
                process.wait(rng.uniform(1, 15))
            _, errors = process.communicate()
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            continue
        if process.returncode:
            raise SystemExit(errors.decode())
        return killed
    raise AssertionError("the last run is never killed")


def keys_of_sources(options: Options) -> tuple[Counter[str], int]:
    """Every key that the sources give, and how many samples they say they hold."""
    found, said = Counter(), 0
    for path in options.data:
        for source in open_sources(path):
            said += len(source)
            found.update(sample.key for sample in source.read(0, len(source)))
    return found, said


def keys_of_stream(stream: Stream) -> tuple[Counter[str], int]:
    """Every key of a document or a rejection, and how many the manifest says there are."""
    found = Counter(key for block in stream.blocks() for key in block.keys)
    if (file := stream.rejected_file()).is_file():
        lines = file.read_text(encoding="utf-8").splitlines()
        found.update(json.loads(line)["key"] for line in lines)
    return found, stream.manifest["samples"]


def compare(wanted: Counter[str], said: int, found: Counter[str], written: int) -> int:
    """How many keys are missing or too many; the first are named."""
    missing, extra = wanted - found, found - wanted
    for word, keys in (("lost", missing), ("doubled or invented", extra)):
        for key in list(keys)[:5]:
            print(f"{word}: {key}")
    return missing.total() + extra.total() + abs(wanted.total() - said) + abs(said - written)


def check_epoch(rows: Rows, options: Options, rng: random.Random) -> int:
    """Documents whose tokens do not come exactly once and in order over one epoch of all ranks."""
    parts: dict[int, list[tuple[int, np.ndarray]]] = defaultdict(list)
    for rank in range(options.ranks):
        for number, row in epoch_of(rows, rank, options, rng):
            for document, place, tokens in pieces(rows, number, *row):
                parts[document].append((place, tokens))
    (stream,) = rows.streams
    wrong = 0
    for number in range(stream.documents):
        spans = stream.document(number).spans
        wanted = np.concatenate([rows.vocabulary.start(s.name) + s.ids.astype(int) for s in spans])
        found = [tokens for _, tokens in sorted(parts[number], key=lambda part: part[0])]
        wrong += not np.array_equal(np.concatenate([np.zeros(0, int), *found]), wanted)
    return wrong


def epoch_of(rows: Rows, rank: int, options: Options, rng: random.Random):
    """(number, [tokens, documents, positions]) of a rank's rows; its loader is replaced at times.

    The new one knows the old one's state alone, as JSON; what was made ahead is lost.
    """
    each = 2
    size = each * options.ranks
    steps = -(-len(rows) // size)
    ends = [*sorted(rng.sample(range(1, steps), min(options.kills, steps - 1))), steps]
    state = Loader(rows, batch_size=size).state_dict()
    for end in ends:
        loader = Loader(rows, batch_size=size, rank=rank, world_size=options.ranks)
        loader.load_state_dict(json.loads(json.dumps(state)))
        batches = iter(loader)
        while loader.step < end:
            step, batch = loader.step, next(batches)
            columns = (batch.tokens_BT, batch.document_BT, batch.position_BT)
            first = step * size + rank * each
            for i in range(min(each, len(rows) - first)):
                yield first + i, [column[i].numpy() for column in columns]
        state = loader.state_dict()
        batches.close()


def pieces(rows: Rows, number: int, tokens: np.ndarray, document: np.ndarray, place: np.ndarray):
    """(document, first place, its tokens without markers) of each part in a row."""
    content = tokens >= min(rows.vocabulary.start(t.name) for t in rows.vocabulary.tokenizers)
    for d, (_, of) in enumerate(rows.documents_of(number)):
        there = document == d
        yield of, int(place[there][0]), tokens[there & content]


if __name__ == "__main__":
    began = time.monotonic()
    code = main(tyro.cli(Options, description=__doc__))
    print(f"{time.monotonic() - began:.0f} s")
    sys.exit(code)
