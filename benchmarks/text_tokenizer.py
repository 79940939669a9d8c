"""Encode the same text by plait and by the libraries' own calls; then the worst texts.

    python benchmarks/text_tokenizer.py FILE.jsonl[.gz]... [--documents 10000] [--rounds 5]

All in one thread and in CPU-seconds, the median of rounds that take turns. "own call" is the
fastest call of the library that a model is encoded with (for tokenizers with the ids taken out),
giving lists or arrays as it does by itself; plait's time includes the arrays and the `Encoded`s.
Exit code 1 if plait is more than 10 % slower than an own call, byte-level BPE is under 2 million
tokens a CPU-second, a document does not come back exactly, ids differ from the library's, or 10 MB
of one character take more than 25 times as long as 1 MB. Refused may be a mixture of white-space
characters of 10 MB, and by the tokenizers library white space of 10 MB. With `--all-characters`,
also whether both engines cut text alike around each of Unicode's 1.1 million characters, for every
pattern (25 CPU-seconds each).
"""

import gzip
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import sentencepiece
import tiktoken
import tokenizers
import tyro

from plait.pipeline.tables import make_console, print_table
from plait.tokenizers.base import Tokenizer
from plait.tokenizers.errors import SampleError
from plait.tokenizers.text import FitOptions, Text, fit
from plait.tokenizers.text_hf import HuggingFace
from plait.tokenizers.text_merges import PATTERNS, find_plan, splits_agree

LETTERS = {"letter": "a", "space": " ", "newline": "\n", "emoji": "\U0001f600", "tab, space": "\t "}


LIBRARY = {"bpe": "bpe", "unigram": "unigram", "byte_bpe": "byte_bpe by tokenizers"}
"""The model whose library gives the ids that each model has to give."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare text tokenizers with their libraries."""

    sources: tyro.conf.Positional[tuple[Path, ...]]
    """Rows with a field `text`, by JSON lines."""
    documents: int = 10_000
    """Documents to encode, spread evenly over each source."""
    train_characters: int = 3_000_000
    """Characters to train each model on."""
    vocab_size: int = 8192
    """Size of each vocabulary."""
    speed_bytes: int = 3_000_000
    """Bytes of the documents that speed is measured on, cut at 4,000 characters each."""
    rounds: int = 5
    """Rounds of each measurement."""
    largest: int = 10_000_000
    """Bytes of the texts of one character."""
    all_characters: bool = False
    """Compare the engines on every character too."""


def main(options: Options) -> int:
    """Print the tables."""
    documents = read(options)
    timed = some(documents, options.speed_bytes)
    short = [line for text in timed for line in text.split("\n") if line]
    size = sum(len(text.encode()) for text in documents)
    print(f"{len(documents):,} documents, {size / 1e6:.1f} MB; {len(short):,} lines")
    models = {
        name: fit(
            documents[::3],
            FitOptions(
                vocab_size=options.vocab_size,
                model=name,
                max_characters=options.train_characters,
            ),
        )
        for name in ("bpe", "unigram", "byte_bpe")
    }
    by_bytes = models["byte_bpe"]
    assert isinstance(by_bytes, HuggingFace)
    models["byte_bpe by tokenizers"] = HuggingFace(
        by_bytes.files()["tokenizer.json"], engine="tokenizers"
    )
    console, bad, rows = make_console(), False, []
    for name, model in models.items():
        calls = own_calls(model)
        if name in LIBRARY:
            bad |= not all(same(model, documents, own_calls(models[LIBRARY[name]])))
        for kind, texts in (("documents", timed), ("lines", short)):
            row, missed = compare(name, kind, model, texts, calls, options.rounds)
            rows.append(row)
            bad |= missed
    header = ["model", "texts", "M tokens/s", "bytes/token", "own M tokens/s", "time / own", "met"]
    print_table(console, header, rows)
    worst = [(name, *w) for name, model in models.items() for w in worst_cases(model, options)]
    print_table(console, ["model", "text", "1/10, s", "whole, s", "met"], [w[:5] for w in worst])
    for name, pattern in PATTERNS.items() if options.all_characters else ():
        alike = splits_agree(pattern, sample=False)
        print(f"pattern {name}: cut alike around every character: {alike}")
        bad |= not alike
    return int(bad or any(w[5] for w in worst))


def read(options: Options) -> list[str]:
    """Texts of all sources, as many of each as it has, up to an even share of what is left."""
    texts, left = [], options.documents
    found = []
    for path in options.sources:
        data = path.read_bytes()
        lines = (gzip.decompress(data) if path.suffix == ".gz" else data).splitlines()
        found.append([json.loads(line)["text"] for line in lines])
    for place, rows in enumerate(sorted(found, key=len)):
        share = min(len(rows), left // (len(found) - place))
        texts += [rows[i * len(rows) // share] for i in range(share)]
        left -= share
    return texts


def some(documents: list[str], size: int) -> list[str]:
    """Documents spread evenly over all, cut at 4,000 characters, of about `size` bytes."""
    cut = [text[:4000] for text in documents]
    step = max(1, sum(len(text.encode()) for text in cut) // size)
    return cut[::step]


def own_calls(model: Tokenizer) -> list[Callable[[list[str]], list]]:
    """The calls of the library that encodes a model; the fastest is what plait has to match."""
    if isinstance(model, Text):
        pieces = sentencepiece.SentencePieceProcessor(
            model_proto=model.files()["sentencepiece.model"]
        )
        return [
            lambda texts: pieces.encode(texts, num_threads=1),
            lambda texts: pieces.encode(texts, out_type="numpy", num_threads=1),
        ]
    assert isinstance(model, HuggingFace)
    data = model.files()["tokenizer.json"]
    if model.engine == "tokenizers":
        library = tokenizers.Tokenizer.from_str(data.decode())
        library.encode_special_tokens = True
        return [
            lambda texts: [e.ids for e in library.encode_batch_fast(texts, False, False)],
            lambda texts: [e.ids for e in library.encode_batch(texts, False, False)],
        ]
    plan = find_plan(json.loads(data))
    ranks = {token: int(plan.ids[rank]) for token, rank in plan.ranks.items()}
    encoding = tiktoken.Encoding(
        "own", pat_str=plan.pattern, mergeable_ranks=ranks, special_tokens={"\U0010ffff": 1 << 20}
    )
    return [
        lambda texts: [encoding.encode_ordinary(text) for text in texts],
        lambda texts: [encoding.encode_to_numpy(text, disallowed_special=()) for text in texts],
    ]


def same(model: Tokenizer, texts: list[str], calls: list) -> list[bool]:
    """For each text: whether ids equal those of the first call, and the text comes back."""
    ours, theirs = model.encode_batch(texts), calls[0](texts)
    escaped = isinstance(model, Text)
    equal = [
        (np.array_equal(mine.ids, other) or (escaped and "\u2581" in text))
        and model.decode(mine) == text
        for text, mine, other in zip(texts, ours, theirs, strict=True)
    ]
    print(f"{type(model).__name__}: {sum(equal):,} of {len(texts):,} exact, with equal ids")
    return equal


def compare(
    name: str, kind: str, model: Tokenizer, texts: list[str], calls: list, rounds: int
) -> tuple[list[str], bool]:
    """A row of the table, and whether a bar was missed."""
    times: list[list[float]] = [[] for _ in (model, *calls)]
    for round_number in range(rounds + 1):
        for place, call in enumerate((model.encode_batch, *calls)):
            began = time.process_time()
            call(texts)
            if round_number:
                times[place].append(time.process_time() - began)
    ours, *own = map(statistics.median, times)
    tokens = sum(len(encoded.ids) for encoded in model.encode_batch(texts))
    size = sum(len(text.encode()) for text in texts)
    ratio, rate = ours / min(own), tokens / ours / 1e6
    too_slow = name == "byte_bpe" and rate < 2
    missed = ratio > 1.10 or too_slow
    shown = [f"{rate:.2f}", f"{size / tokens:.2f}", f"{tokens / min(own) / 1e6:.2f}"]
    return [name, kind, *shown, f"{ratio:.3f}", "no" if missed else "yes"], missed


def worst_cases(model: Tokenizer, options: Options) -> list[tuple[str, str, str, str, bool]]:
    """Seconds for a tenth of the largest text of one character and for the whole, and if linear."""
    found = []
    for name, letters in LETTERS.items():
        seconds = []
        for size in (options.largest // 10, options.largest):
            text = letters * (size // len(letters.encode()))
            began = time.process_time()
            try:
                encoded = model.encode_batch([text])[0]
            except SampleError as error:
                print(f"{name}, {size:,} bytes: refused: {error}")
                seconds.append(math.inf)
                continue
            seconds.append(time.process_time() - began)
            if model.decode(encoded) != text:
                raise RuntimeError(f"{name}: does not come back")
        linear = seconds[1] <= 25 * max(seconds[0], 0.01)
        by_library = isinstance(model, HuggingFace) and model.engine == "tokenizers"
        refused = math.isinf(seconds[1]) and (by_library or len(letters) > 1)
        missed = not linear and not refused
        shown = ["refused" if math.isinf(s) else f"{s:.2f}" for s in seconds]
        found.append((name, shown[0], shown[1], "no" if missed else "yes", missed))
    return found


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
