"""Write tokenized documents with plait and its peers; weigh `plait shard` against SentencePiece.

    python benchmarks/shard.py write --documents 100000
    python benchmarks/shard.py overhead --data FOLDER

`write`: documents of text (log-normal, mean 500 tokens) and captions (mean 40), uint16 ids. Each
writer's data is first read back and compared; then CPU seconds, and bytes for each byte of ids,
index and keys included. Peers do not flush to the disk; plait does, and checksums. Exit code 1 if
plait misses its bars: 150,000 documents a CPU second, 1.05 and 1.25 bytes. Peers: the extra
`peers`, and mosaicml-streaming, which asks for an older numpy (pip install --no-deps).

`overhead`: CPU time of the whole job on text rows, one worker, over SentencePiece's own
`encode(list of texts)` with one thread, on the same texts in batches of the same size, in turns.
Exit code 1 if it is more than 15 % (median) with the model chosen.
"""

import gc
import json
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import sentencepiece
import tyro
from shard_writers import WRITERS, Corpus, Writer

from plait.pipeline.encode import WAITING_PARTS
from plait.pipeline.fields import NO_FIELDS
from plait.pipeline.shard import shard
from plait.pipeline.sources.jsonl import TextRows
from plait.pipeline.tables import make_console, print_table
from plait.tokenizers import text

LEAST_PER_S = 150_000
MOST_BYTES = {"text": 1.05, "captions": 1.25}
MOST_OVERHEAD = 0.15


@dataclass(frozen=True, kw_only=True)
class Write:
    """Compare writers of tokenized documents."""

    documents: int = 100_000
    """Documents of each corpus."""
    rounds: int = 5
    """Repetitions; the median counts."""
    seed: int = 0
    """Seed of lengths and ids."""
    folder: Path | None = None
    """Where to write; a temporary folder if not given."""
    out: Path | None = None
    """Write the figures here as JSON."""


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """Compare a whole job on text with SentencePiece alone."""

    data: Path
    """A folder of `.jsonl` or `.jsonl.gz` files whose rows have a `text`."""
    model: Literal["bpe", "unigram"] = "bpe"
    """The kind of SentencePiece model; `bpe` is what `plait fit text` trains by default."""
    megabytes: int = 50
    """Text to encode: files are copied, and repeated until there is so much."""
    rounds: int = 5
    """Repetitions; the median counts."""
    out: Path | None = None
    """Write the figures here as JSON."""


def write(options: Write) -> int:
    """Measure all writers on both corpora."""
    rows, missed = [], False
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for corpus in corpora(options):
            writers = [w for w in WRITERS if w.installed]
            for writer in writers:
                check(writer, corpus, Path(folder))
            for result in measure(writers, corpus, Path(folder), options.rounds):
                rows.append({"corpus": corpus.name, **result})
                if str(result["writer"]).startswith("plait"):
                    missed |= result["documents_per_cpu_s"] < LEAST_PER_S
                    missed |= result["bytes_per_byte"] > MOST_BYTES[corpus.name.partition(",")[0]]
    show(rows, f"{options.documents:,} documents a corpus, median of {options.rounds}")
    save(options.out, rows)
    return int(missed)


def corpora(options: Write) -> list[Corpus]:
    """Text and captions, with keys that count and with keys that do not."""
    found = []
    for name, mean, spread in (("text", 500, 1.0), ("captions", 40, 0.5)):
        rng = np.random.default_rng(options.seed)
        drawn = rng.lognormal(np.log(mean) - spread**2 / 2, spread, options.documents)
        lengths = np.maximum(drawn.round().astype(np.int64), 1)
        ids = rng.integers(0, 50_000, lengths.sum()).astype(np.uint16)
        hashes = rng.integers(0, 1 << 32, options.documents).tolist()
        named = [f"{h:08x}#{i}" for i, h in enumerate(hashes)]
        counted = [f"row-{i}" for i in range(options.documents)]
        found.append(Corpus(name=name, ids=ids, lengths=lengths, keys=counted))
        found.append(Corpus(name=f"{name}, hashes as keys", ids=ids, lengths=lengths, keys=named))
    return found


def check(writer: Writer, corpus: Corpus, folder: Path) -> None:
    """Stop if what is read back is not what was written."""
    place = empty(folder)
    writer.write(corpus, place)
    found = writer.read(place)
    for (key, ids), read in zip(corpus.documents(), found, strict=True):
        if not np.array_equal(ids, read):
            raise SystemExit(f"{writer.name}: document {key} of {corpus.name} came back changed")


def measure(
    writers: Sequence[Writer], corpus: Corpus, folder: Path, rounds: int
) -> list[dict[str, str | float]]:
    """All writers in turns, so that a busy machine slows all of them."""
    cpu: dict[str, list[float]] = {w.name: [] for w in writers}
    wall: dict[str, list[float]] = {w.name: [] for w in writers}
    size = {}
    for _ in range(rounds):
        for writer in writers:
            place = empty(folder)
            began = time.monotonic()
            cpu[writer.name].append(cpu_seconds(lambda w=writer, p=place: w.write(corpus, p)))
            wall[writer.name].append(time.monotonic() - began)
            size[writer.name] = sum(p.stat().st_size for p in place.rglob("*") if p.is_file())
    count = len(corpus.keys)
    return [
        {
            "writer": w.name,
            "documents_per_cpu_s": count / statistics.median(cpu[w.name]),
            "documents_per_s": count / statistics.median(wall[w.name]),
            "bytes_per_byte": size[w.name] / corpus.ids.nbytes,
        }
        for w in writers
    ]


def overhead(options: Overhead) -> int:
    """Measure the job and SentencePiece in turns."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data").mkdir()
        texts = copy_rows(options, folder / "data")
        text.fit(texts, text.FitOptions(model=options.model)).save(folder / "tokenizer")
        model = (folder / "tokenizer" / text.MODEL_FILE).read_bytes()
        pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        batches = [texts[i : i + WAITING_PARTS] for i in range(0, len(texts), WAITING_PARTS)]

        def encode(kind: object) -> None:
            for batch in batches:
                pieces.encode(batch, out_type=kind, num_threads=1)

        def job() -> None:
            shard([folder / "data"], folder / "out", [folder / "tokenizer"], workers=1)

        seconds: dict[str, list[float]] = {"lists": [], "arrays": [], "job": []}
        for _ in range(options.rounds):
            shutil.rmtree(folder / "out", ignore_errors=True)
            seconds["lists"].append(cpu_seconds(lambda: encode(int)))
            seconds["arrays"].append(cpu_seconds(lambda: encode("numpy")))
            seconds["job"].append(cpu_seconds(job))
    facts = {
        "model": options.model,
        "documents": len(texts),
        "megabytes": round(sum(len(t.encode()) for t in texts) / 1e6, 1),
        **{f"{k}_cpu_s": round(statistics.median(v), 3) for k, v in seconds.items()},
        "over_lists": over(seconds["job"], seconds["lists"]),
        "over_arrays": over(seconds["job"], seconds["arrays"]),
    }
    print(json.dumps(facts, indent=1))
    save(options.out, facts)
    return int(facts["over_lists"] > MOST_OVERHEAD)


def copy_rows(options: Overhead, folder: Path) -> list[str]:
    """Plain copies of the rows in `folder`, and their texts in the order of the job."""
    files = sorted(p for p in options.data.rglob("*.jsonl*"))
    sources = [TextRows(path, options.data, NO_FIELDS) for path in files]
    texts: list[str] = []
    size = number = 0
    while size < options.megabytes * 1_000_000:
        source = sources[number % len(sources)]
        with (folder / f"{number:06d}.jsonl").open("wb") as file:
            for _, line in source.lines.read(0, len(source)):
                file.write(line)
                texts.append(json.loads(line)["text"])
                size += len(line)
        number += 1
    return texts


def over(job: Sequence[float], alone: Sequence[float]) -> float:
    """Share that the job takes more, median of the rounds."""
    return round(statistics.median(j / a - 1 for j, a in zip(job, alone, strict=True)), 3)


def cpu_seconds(do: Callable[[], None]) -> float:
    """CPU time of this process and its finished children.

    What is there before is frozen: the garbage collector would look through all of the peers'
    modules, 0.3 s each time, for whoever makes many objects.
    """
    gc.collect()
    gc.freeze()
    began = _cpu_seconds()
    do()
    return _cpu_seconds() - began


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def empty(folder: Path) -> Path:
    """A new place in the folder, without what was there before."""
    place = folder / "written"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    return place


def show(rows: Sequence[dict[str, str | float]], title: str) -> None:
    """The table; ratios are plait's `add_many` over each writer."""
    console = make_console()
    console.print(title)
    best = {r["corpus"]: r["documents_per_cpu_s"] for r in reversed(rows)}
    best |= {r["corpus"]: r["documents_per_cpu_s"] for r in rows if r["writer"] == WRITERS[0].name}
    cells = [
        [
            str(r["corpus"]),
            str(r["writer"]),
            f"{r['documents_per_cpu_s']:,.0f}",
            f"{r['documents_per_s']:,.0f}",
            f"{best[r['corpus']] / r['documents_per_cpu_s']:.1f}",
            f"{r['bytes_per_byte']:.3f}",
        ]
        for r in rows
    ]
    header = [
        "corpus",
        "writer",
        "documents / CPU s",
        "documents / s",
        "plait is x",
        "bytes / byte",
    ]
    print_table(console, header, cells)


def save(path: Path | None, facts: object) -> None:
    """Write JSON, if a file was named."""
    if path is not None:
        path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    chosen = tyro.cli(Write | Overhead, description=__doc__)
    sys.exit(write(chosen) if isinstance(chosen, Write) else overhead(chosen))
