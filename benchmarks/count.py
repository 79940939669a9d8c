"""Time to count a stream of 100 M tokens, as `plait inspect` does, beside one thread of numpy.

    python benchmarks/count.py --kind text

Counting is all of it: checksums, ids, lengths, transitions, hashes of contents and keys. The
baseline is the earlier pass: whole blocks one after the other, one bincount each, no hashes. Counts
are compared first, and no figure is printed where they differ. The passes take turns, so that a
busy machine slows all of them; files are in the page cache. Median of the rounds.
"""

import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from corpus import mixed_corpus, text_corpus

from plait.pipeline.inspect.count import count_stream
from plait.pipeline.spans import DOCUMENT, LENGTH, TOKENIZER
from plait.pipeline.stream import Stream
from plait.pipeline.tables import make_console, print_table

CHUNK = 1 << 18


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare passes over one stream."""

    kind: Literal["text", "mixed"] = "text"
    """text: log-normal, mean 500 tokens; mixed: pictures and speech too."""
    millions: int = 100
    """Tokens of the stream, about."""
    rounds: int = 7
    """Repetitions; the median counts."""
    folder: Path | None = None
    """Where the stream is made, or lies already; a temporary folder if not given."""
    out: Path | None = None
    """Write the figures here as JSON."""


def main(options: Options) -> None:
    """Make the stream, compare the counts, then time."""
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        make, mean = (text_corpus, 500) if options.kind == "text" else (mixed_corpus, 900)
        documents = options.millions * 1_000_000 // mean
        stream = make(folder, documents, -(-documents // 16))
        threads = len(os.sched_getaffinity(0))
        passes: dict[str, Callable[[], list[np.ndarray]]] = {
            "numpy, one thread": lambda: plain_counts(Stream(folder)),
            "plait inspect, one thread": lambda: counts(Stream(folder), 1),
            f"plait inspect, {threads} threads": lambda: counts(Stream(folder), threads),
        }
        first, *others = (run() for run in passes.values())
        for found in others:
            if not all(np.array_equal(a, b) for a, b in zip(first, found, strict=True)):
                raise SystemExit("the counts differ")
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in passes}
        for _ in range(options.rounds):
            for name, run in passes.items():
                began = time.perf_counter(), cpu_seconds()
                run()
                seconds[name].append((time.perf_counter() - began[0], cpu_seconds() - began[1]))
        report(options, stream, seconds)


def report(options: Options, stream: Stream, seconds: dict[str, list[tuple[float, float]]]) -> None:
    """A table, and the same as JSON."""
    wall = {name: statistics.median(w for w, _ in found) for name, found in seconds.items()}
    cpu = {name: statistics.median(c for _, c in found) for name, found in seconds.items()}
    base = next(iter(wall.values()))
    header = ["Pass", "s", "CPU s", "M tokens/s", "M tokens/CPU s", "Ratio"]
    rows = []
    for name in wall:
        speeds = [f"{stream.tokens / s / 1e6:,.0f}" for s in (wall[name], cpu[name])]
        times = [f"{wall[name]:.2f}", f"{cpu[name]:.2f}"]
        rows.append([name, *times, *speeds, f"{base / wall[name]:.1f}"])
    console = make_console()
    console.print(
        f"{options.kind}: {stream.tokens:,} tokens, {stream.documents:,} documents, "
        f"{len(stream.shards)} shards; median of {options.rounds}"
    )
    print_table(console, header, rows)
    if options.out is not None:
        facts = {"tokens": stream.tokens, "documents": stream.documents, "s": wall, "cpu_s": cpu}
        options.out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def counts(stream: Stream, workers: int) -> list[np.ndarray]:
    """Counts of ids by modality."""
    return [s.code_counts for s in count_stream(stream, workers=workers).modalities.values()]


def plain_counts(stream: Stream) -> list[np.ndarray]:
    """The same by one bincount a block, and lengths and documents by `np.unique`."""
    sizes = np.array([info.vocab_size for info in stream.tokenizers])
    starts = np.cumsum(sizes) - sizes
    found = np.zeros(sizes.sum(), np.int64)
    for block in stream.blocks():
        owner, lengths = block.spans[:, TOKENIZER], block.spans[:, LENGTH]
        ends = np.cumsum(lengths, dtype=np.int64)
        for first in range(0, len(block.ids), CHUNK):
            ids = block.ids[first : first + CHUNK]
            a, b = np.searchsorted(ends, [first, first + len(ids) - 1], side="right")
            bounds = np.clip(np.concatenate([[first], ends[a : b + 1]]), first, first + len(ids))
            owners, parts = owner[a : b + 1], np.diff(bounds)
            assert (ids < np.repeat(sizes[owners], parts)).all()
            shifted = ids + np.repeat(starts[owners], parts)
            found += np.bincount(shifted, minlength=len(found))
        for kind in range(len(sizes)):
            mine = block.spans[owner == kind]
            np.unique(mine[:, DOCUMENT])
            np.unique(mine[:, LENGTH], return_counts=True)
    return np.split(found, starts[1:])


def cpu_seconds() -> float:
    """CPU time of this process, all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
