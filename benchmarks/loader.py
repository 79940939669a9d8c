"""How fast batches come, beside the peers that are installed: tokens per CPU second, B=8 T=2048.

    python benchmarks/loader.py --out loader.json

The bound is gathering shuffled documents from one `np.memmap` into int64 tokens, and nothing else.
Every contender first delivers an epoch whose tokens are counted: they must be the
corpus's, each as often. Then all run in turn, and the medians of their ratios to the bound are
printed. Peers deliver tokens alone, without masks. Text has 200,000 documents, log-normal, mean
500 tokens; see corpus.py. Exit code 1 if a contender delivers other tokens.
"""

import json
import platform
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice, pairwise
from pathlib import Path

import loader_peers
import numpy as np
import torch
import tyro
from corpus import mixed_corpus, text_corpus

from plait.pipeline.loader import Loader
from plait.pipeline.plan import Packing
from plait.pipeline.rows import Rows
from plait.pipeline.stream import Stream

Epoch = Callable[[], Iterator[np.ndarray]]
"""Batches of one epoch, int64 [B, T] in the vocabulary of plait; ids below `specials` are none."""

PACKINGS: tuple[Packing, ...] = ("concat", "best_fit")
BOUND = "bound: numpy's memmap"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    folder: Path = Path(tempfile.gettempdir()) / "plait-loader"
    """Where the corpora are made, and found again."""
    documents: int = 200_000
    many: int = 1_000_000
    """Documents of two more corpora, text and mixed, whose start is measured; 0 leaves it out."""
    mixed: int = 60_000
    batch_size: int = 8
    seq_len: int = 2048
    repeats: int = 5
    peer_batches: int = 300
    """Batches of a peer in each repeat; plait and the bound run a whole epoch."""
    out: Path | None = None
    """JSON file of all figures."""


@dataclass(kw_only=True)
class Result:
    """Figures of one contender."""

    same_tokens: bool | None
    speeds: list[float] = field(default_factory=list)
    """Tokens per CPU second of each repeat."""
    ratios: list[float] = field(default_factory=list)
    """To the bound of the same repeat."""


def main(options: Options) -> int:
    """Print the tables; 1 if a contender delivers other tokens."""
    torch.set_num_threads(1)
    stream = text_corpus(options.folder / f"text-{options.documents}", options.documents, 20_000)
    mixed = mixed_corpus(options.folder / f"mixed-{options.mixed}", options.mixed, 6_000)
    results = speeds(stream, options)
    near = {stream.path.name: neighbours(stream, options.seq_len)}
    report: dict[str, object] = {
        "machine": f"{processor()}, torch {torch.__version__}, python {platform.python_version()}",
        "options": {k: str(v) for k, v in vars(options).items()},
        "speed": {name: asdict(result) for name, result in results.items()},
        "padding": {
            "text": padding(stream, options.seq_len, ("text",)),
            "mixed": padding(mixed, options.seq_len, ("text",)),
            "mixed, nothing cut": padding(mixed, options.seq_len, ()),
        },
        "neighbours within 1,000": near,
    }
    if options.many:
        many = text_corpus(options.folder / f"text-{options.many}", options.many, 8_000)
        near[many.path.name] = neighbours(many, options.seq_len)
        manifold = mixed_corpus(options.folder / f"mixed-{options.many}", options.many, 8_000)
        report["start"] = {
            f"{corpus.path.name}, {packing}": start(corpus.path, options, packing)
            for corpus in (many, manifold)
            for packing in PACKINGS
        }
    print(json.dumps({k: v for k, v in report.items() if k != "speed"}, indent=1))
    if options.out is not None:
        options.out.write_text(json.dumps(report, indent=1))
    return int(any(result.same_tokens is False for result in results.values()))


def speeds(stream: Stream, options: Options) -> dict[str, Result]:
    """All contenders in turn, and the table of medians."""
    contenders = plait_contenders(stream, options)
    contenders |= loader_peers.contenders(stream, options.batch_size, options.seq_len)
    wanted = token_counts(stream)
    gathers = gathers_of_numpy(stream, options)
    results = {name: Result(same_tokens=None) for name in gathers}
    for name, epoch in contenders.items():
        results[name] = Result(same_tokens=same_tokens(epoch, wanted))
    own = {name: e for name, e in contenders.items() if name.startswith("plait")} | gathers
    for _ in range(options.repeats):
        for name, epoch in {**gathers, **contenders}.items():
            limit = None if name in own else options.peer_batches
            results[name].speeds.append(speed(lambda e=epoch, n=limit: islice(e(), n)))
            bound = results[BOUND].speeds[-1]
            results[name].ratios.append(results[name].speeds[-1] / bound)
    print(f"{'':<34}{'M tokens/CPU s':>16}{'of the bound':>14}{'same tokens':>13}")
    for name, result in results.items():
        ratio = f"{statistics.median(result.ratios):.4f}"
        million = statistics.median(result.speeds) / 1e6
        print(f"{name:<34}{million:>16.1f}{ratio:>14}{result.same_tokens!s:>13}", flush=True)
    return results


def gathers_of_numpy(stream: Stream, options: Options) -> dict[str, Epoch]:
    """Gathers of the text's ids from one flat file into int64, the bound first.

    The bound takes shuffled documents from an `np.memmap`, a slice each, cut where a batch is full.
    Most of its time goes into the memmap's own slices: the same gather from a plain array over the
    same memory, and one of whole rows of the file, say what else there is to win.
    """
    path = stream.path / "flat.bin"
    if not path.is_file():
        np.concatenate([block.ids.astype(np.uint16) for block in stream.blocks()]).tofile(path)
    flat = np.memmap(path, np.uint16, mode="r")
    rng = np.random.default_rng(0)
    size = options.batch_size * options.seq_len
    lengths = np.concatenate([block.spans[:, 3] for block in stream.blocks()])
    order = rng.permutation(len(lengths))
    ends = np.cumsum(lengths[order])
    shift = (np.cumsum(lengths) - lengths)[order] - (ends - lengths[order])
    cuts = np.unique(np.concatenate([[0], ends, np.arange(0, ends[-1], size)]))
    begins = cuts[:-1] + shift[np.searchsorted(ends, cuts[:-1], "right")]
    parts = list(map(slice, begins.tolist(), (begins + np.diff(cuts)).tolist()))
    first = np.searchsorted(cuts, np.arange(0, ends[-1] + size, size)).tolist()

    def documents(ids: np.ndarray) -> Iterator[np.ndarray]:
        for a, b in pairwise(first):
            yield np.concatenate([ids[part] for part in parts[a:b]]).astype(np.int64)

    rows = flat[: len(flat) // size * size].reshape(-1, options.seq_len)
    shuffled = rng.permutation(len(rows)).reshape(-1, options.batch_size)
    return {
        BOUND: lambda: documents(flat),
        "the same from a plain array": lambda: documents(np.asarray(flat)),
        "whole rows of the file": lambda: (rows[chosen].astype(np.int64) for chosen in shuffled),
    }


def plait_contenders(stream: Stream, options: Options) -> dict[str, Epoch]:
    """Both packings: batches with all masks, in a thread ahead and without, and tokens alone."""
    found: dict[str, Epoch] = {}
    size = options.batch_size
    for packing in PACKINGS:
        rows = Rows(stream, seq_len=options.seq_len, packing=packing)
        steps = range(-(-len(rows) // size))

        def tokens(rows=rows, steps=steps) -> Iterator[np.ndarray]:
            for s in steps:
                numbers = range(s * size, min(len(rows), s * size + size))
                yield rows.tokens(numbers).numpy()

        def batches(rows=rows, steps=steps, prefetch=0) -> Iterator[np.ndarray]:
            rest = len(rows) % size
            loader = Loader(rows, batch_size=size, prefetch=prefetch)
            for s, batch in zip(steps, loader, strict=False):
                whole = s < len(steps) - 1 or not rest
                yield batch.tokens_BT.numpy() if whole else batch.tokens_BT[:rest].numpy()

        found[f"plait {packing}"] = batches
        found[f"plait {packing}, thread ahead"] = lambda f=batches: f(prefetch=8)
        found[f"plait {packing}, tokens only"] = tokens
    return found


def speed(epoch: Epoch) -> float:
    """Tokens per CPU second of this process, all its threads."""
    began, tokens = time.process_time(), 0
    for batch in epoch():
        tokens += batch.size
    return tokens / (time.process_time() - began)


def token_counts(stream: Stream) -> np.ndarray:
    """How often each id of the corpus comes."""
    counts = np.zeros(1 << 16, np.int64)
    for block in stream.blocks():
        counts += np.bincount(block.ids, minlength=1 << 16)
    return counts


def same_tokens(epoch: Epoch, wanted: np.ndarray) -> bool:
    """Whether an epoch delivers each id as often as the corpus holds it."""
    counts = np.zeros(2 << 16, np.int64)
    for batch in epoch():
        counts += np.bincount(batch.reshape(-1), minlength=2 << 16)
    return bool((counts[loader_peers.SPECIALS :][: len(wanted)] == wanted).all())


def padding(stream: Stream, seq_len: int, cut: tuple[str, ...]) -> dict[str, float]:
    """Share of best fit's positions that hold no document, and of documents that are cut."""
    rows = Rows(stream, seq_len=seq_len, cut=cut)
    empty, parts = 0, 0
    for start in range(0, len(rows), 64):
        document_BT = rows.batch(range(start, min(len(rows), start + 64))).document_BT
        empty += int((document_BT < 0).sum())
        parts += int((document_BT.amax(1) + 1).sum())
    return {
        "padding": empty / (len(rows) * seq_len),
        "parts a document": parts / stream.documents,
    }


def neighbours(stream: Stream, seq_len: int) -> dict[str, float]:
    """The chance that a document and the next one come from within 1,000 of each other."""
    found = {"ideal": 2000 / stream.documents}
    for packing in PACKINGS:
        rows = Rows(stream, seq_len=seq_len, packing=packing)
        drawn = np.array([d for i in range(len(rows)) for _, d in rows.documents_of(i)])
        steps = np.abs(np.diff(drawn))
        found[packing] = float((steps[steps > 0] < 1000).mean())
    return found


def start(folder: Path, options: Options, packing: Packing) -> dict[str, float]:
    """Medians of the CPU seconds until a plan and a first batch, and the memory that they take."""
    times: dict[str, list[float]] = {"plan_s": [], "first_batch_s": [], "resume_at_90_%_s": []}
    for _ in range(options.repeats):
        for name, share in (("first_batch_s", 0.0), ("resume_at_90_%_s", 0.9)):
            began = time.process_time()
            rows = Rows(Stream(folder), seq_len=options.seq_len, packing=packing)
            times["plan_s"].append(time.process_time() - began)
            loader = Loader(rows, batch_size=options.batch_size, prefetch=0)
            loader.batch(int(share * len(rows) / options.batch_size))
            times[name].append(time.process_time() - began)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {**medians, "most_megabytes": plan_megabytes(folder, options, packing)}


def plan_megabytes(folder: Path, options: Options, packing: Packing) -> float:
    """Most memory of numpy and Python while a stream is opened and planned."""
    tracemalloc.start()
    rows = Rows(Stream(folder), seq_len=options.seq_len, packing=packing)
    rows.batch(range(options.batch_size))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def processor() -> str:
    """The processor's name."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
