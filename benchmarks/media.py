"""How fast one core turns raw media into a shard, and where its time goes.

    python benchmarks/media.py --tokenizer TOK/image --data image:FOLDER --tokenizer TOK/speech ...

For each tokenizer and the folder given in the same place: pictures, seconds of sound or MB of text
for each CPU second (one thread, median of the rounds), and the shares of reading with decoding, of
the tokenizer, and of writing. Parts are taken 512 at a time, as `plait shard` takes them; captions
are left out. The ids of all rounds must be the same, or the exit code is 1.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
import tyro
import xxhash
from PIL.Image import Image

from plait.pipeline.block import EncodedDocument
from plait.pipeline.encode import MODALITY_OF, WAITING_BYTES, WAITING_PARTS
from plait.pipeline.fields import NO_FIELDS
from plait.pipeline.find import open_sources
from plait.pipeline.shard_writer import ShardWriter
from plait.pipeline.source import Part, Rejected
from plait.pipeline.tables import make_console, print_table
from plait.tokenizers.base import Raw, Tokenizer, Waveform, load_tokenizer
from plait.tokenizers.errors import SampleError

UNITS = {"image": "images", "speech": "s of sound", "text": "MB", "bytes": "MB"}
COLUMNS = ("tokenizer", "samples", "unit", "a CPU s", "tokens a CPU s", "read", "model", "write")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure the sharding of media."""

    tokenizer: tuple[Path, ...]
    """Folders of tokenizers."""
    data: tuple[str, ...]
    """For each tokenizer, a file or folder, or `KIND:PATH`."""
    samples: int = 1000
    """Most samples of each."""
    rounds: int = 3
    """Repetitions; the median counts."""


@dataclass(kw_only=True)
class Round:
    """CPU seconds of each phase, and what was done."""

    read: float = 0.0
    model: float = 0.0
    write: float = 0.0
    samples: int = 0
    amount: float = 0.0
    tokens: int = 0
    ids: str = ""

    @property
    def total(self) -> float:
        """CPU seconds of all phases."""
        return self.read + self.model + self.write


def main(options: Options) -> int:
    """Print the table."""
    torch.set_num_threads(1)
    if len(options.tokenizer) != len(options.data):
        raise SystemExit("--tokenizer and --data should name as many folders each")
    rows, same = [], True
    for folder, data in zip(options.tokenizer, options.data, strict=True):
        tokenizer = load_tokenizer(folder)
        measure(tokenizer, data, min(64, options.samples))
        rounds = [measure(tokenizer, data, options.samples) for _ in range(options.rounds)]
        same &= len({r.ids for r in rounds}) == 1
        rows.append(row(tokenizer, rounds))
    console = make_console()
    console.print(f"one thread, median of {options.rounds}; shares of the CPU time")
    print_table(console, COLUMNS, rows)
    return 0 if same else 1


def measure(tokenizer: Tokenizer, data: str, most: int) -> Round:
    """One pass over the data, into a shard in a temporary folder."""
    done, digest = Round(), xxhash.xxh3_128()
    parts = islice(parts_of(tokenizer.modality, data), most)
    with tempfile.TemporaryDirectory() as folder:
        names = {"tokenizers": [tokenizer.modality], "modalities": [tokenizer.modality]}
        writer = ShardWriter(Path(folder), "shard", source=data, **names)
        while True:
            began = time.process_time()
            raws = batch_of(tokenizer, parts)
            read = time.process_time()
            done.read += read - began
            if not raws:
                break
            encoded = tokenizer.encode_batch(raws)
            coded = time.process_time()
            for e in encoded:
                key = str(done.samples)
                writer.add(EncodedDocument(key=key, metadata={}, spans=[(0, e)]))
                done.samples += 1
            done.model += coded - read
            done.write += time.process_time() - coded
            done.amount += sum(map(amount_of, raws))
            done.tokens += sum(len(e.ids) for e in encoded)
            for e in encoded:
                digest.update(e.ids.tobytes())
        began = time.process_time()
        writer.finish()
        done.write += time.process_time() - began
    done.ids = digest.hexdigest()
    return done


def parts_of(modality: str, data: str) -> Iterator[Part]:
    """Parts that the tokenizer takes, without captions."""
    for source in open_sources(data, None, NO_FIELDS):
        for sample in source.read(0, len(source)):
            if isinstance(sample, Rejected):
                continue
            wanted = {modality, "text"} if modality == "bytes" else {modality}
            yield from (p for p in sample.parts if MODALITY_OF[p.kind] in wanted)


def batch_of(tokenizer: Tokenizer, parts: Iterator[Part]) -> list[Raw]:
    """The next raw samples, as many as `plait shard` keeps waiting."""
    raws: list[Raw] = []
    size = 0
    while len(raws) < WAITING_PARTS and size < WAITING_BYTES:
        part = next(parts, None)
        if part is None:
            break
        try:
            raw = part.load()
        except SampleError:
            continue
        raws.append(raw.encode() if tokenizer.modality == "bytes" and isinstance(raw, str) else raw)
        size += size_of(raws[-1])
    return raws


def size_of(raw: Raw) -> int:
    """Bytes in memory."""
    if isinstance(raw, Image):
        return 3 * raw.width * raw.height
    return raw.samples.nbytes if isinstance(raw, Waveform) else len(raw)


def amount_of(raw: Raw) -> float:
    """In the unit of its modality."""
    if isinstance(raw, Image):
        return 1
    if isinstance(raw, Waveform):
        return len(raw.samples) / raw.sample_rate_hz
    return len(raw.encode() if isinstance(raw, str) else raw) / 1e6


def row(tokenizer: Tokenizer, rounds: list[Round]) -> list[str]:
    """A line of the table."""
    middle = sorted(rounds, key=lambda r: r.total)[len(rounds) // 2]
    rate = statistics.median(r.amount / r.total for r in rounds)
    shares = [f"{part / middle.total:.0%}" for part in (middle.read, middle.model, middle.write)]
    return [
        f"{tokenizer.modality} {type(tokenizer).__name__}",
        f"{middle.samples:,}",
        UNITS[tokenizer.modality],
        f"{rate:,.3g}" if rate < 100 else f"{rate:,.0f}",
        f"{middle.tokens / middle.total:,.0f}",
        *shares,
    ]


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
