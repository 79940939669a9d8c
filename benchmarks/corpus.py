"""Made-up corpora for the loader's benchmark: streams written without any tokenizer.

`text`: documents of log-normal lengths, mean 500 and median 303 tokens. `mixed`: text alone,
captions with a picture of 1,024 tokens, spoken turns with their words, and pages with pictures in
between. Everything follows from the seed; a corpus that is there already is not made again.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from plait.pipeline.block import EncodedDocument
from plait.pipeline.shard_writer import ShardWriter
from plait.pipeline.stream import Stream
from plait.pipeline.vocabulary import TokenizerInfo
from plait.tokenizers.base import Encoded

TOKENIZERS = (
    TokenizerInfo(name="text", modality="text", vocab_size=50_000, fingerprint="text"),
    TokenizerInfo(
        name="image", modality="image", vocab_size=8_192, fingerprint="image", splittable=False
    ),
    TokenizerInfo(name="speech", modality="speech", vocab_size=2_048, fingerprint="speech"),
)
TEXT, IMAGE, SPEECH = range(3)
IMAGE_TOKENS = 1_024

Shape = list[tuple[int, int]]
"""(tokenizer, tokens) of each span of a document."""


def text_corpus(folder: Path, documents: int, shard_documents: int, seed: int = 0) -> Stream:
    """Log-normal text, mean 500 tokens."""
    rng = np.random.default_rng(seed)
    lengths = _lengths(rng, documents, 303, 1.0)
    return _write(folder, ([(TEXT, n)] for n in lengths), documents, shard_documents, rng)


def mixed_corpus(folder: Path, documents: int, shard_documents: int, seed: int = 0) -> Stream:
    """Half text, a quarter captioned pictures, the rest speech and illustrated pages."""
    rng = np.random.default_rng(seed)
    return _write(
        folder, (_mixed_shape(rng) for _ in range(documents)), documents, shard_documents, rng
    )


def _mixed_shape(rng: np.random.Generator) -> Shape:
    draw = rng.random()
    if draw < 0.5:
        return [(TEXT, _length(rng, 303))]
    if draw < 0.75:
        return [(TEXT, _length(rng, 30)), (IMAGE, IMAGE_TOKENS)]
    if draw < 0.95:
        return [(SPEECH, _length(rng, 400)), (TEXT, _length(rng, 30))]
    page: Shape = [(TEXT, _length(rng, 150))]
    for _ in range(rng.integers(1, 4)):
        page += [(IMAGE, IMAGE_TOKENS), (TEXT, _length(rng, 150))]
    return page


def _length(rng: np.random.Generator, median: float) -> int:
    return _lengths(rng, 1, median, 1.0)[0]


def _lengths(rng: np.random.Generator, n: int, median: float, sigma: float) -> list[int]:
    return np.maximum(1, np.rint(rng.lognormal(np.log(median), sigma, n))).astype(int).tolist()


def _write(
    folder: Path,
    shapes: Iterator[Shape],
    documents: int,
    shard_documents: int,
    rng: np.random.Generator,
) -> Stream:
    if (folder / "stream.json").is_file():
        return Stream(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pool = rng.random(1 << 22)
    pools = [(pool * t.vocab_size).astype(np.uint16) for t in TOKENIZERS]
    infos, writer = [], None
    for number in range(documents):
        if number % shard_documents == 0:
            infos += [] if writer is None else [writer.finish()]
            writer = _writer(folder, number // shard_documents)
        assert writer is not None
        writer.add(_document(number, next(shapes), pools, rng))
    infos += [] if writer is None else [writer.finish()]
    manifest = {
        "format": 1,
        "documents": documents,
        "rejected": 0,
        "samples": documents,
        "tokenizers": [asdict(t) for t in TOKENIZERS],
        "shards": [asdict(i) for i in infos if i is not None],
    }
    (folder / "stream.json").write_text(json.dumps(manifest))
    return Stream(folder)


def _writer(folder: Path, shard: int) -> ShardWriter:
    return ShardWriter(
        folder,
        f"shard-{shard:06d}",
        source="made",
        tokenizers=[t.name for t in TOKENIZERS],
        modalities=[t.modality for t in TOKENIZERS],
    )


def _document(
    number: int, shape: Shape, pools: list[np.ndarray], rng: np.random.Generator
) -> EncodedDocument:
    spans = []
    for kind, length in shape:
        start = int(rng.integers(0, max(1, len(pools[kind]) - length)))
        ids = pools[kind][start : start + length]
        spans.append((kind, Encoded(ids=ids, width=32 if kind == IMAGE else 1)))
    return EncodedDocument(key=f"{number:09d}", metadata={}, spans=spans)
