"""Streams of made-up documents, written without any tokenizer, and what they should pack to."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from plait.pipeline.block import EncodedDocument
from plait.pipeline.shard_writer import ShardWriter
from plait.pipeline.stream import Stream
from plait.pipeline.vocabulary import TokenizerInfo
from plait.tokenizers.base import Encoded

TEXT = TokenizerInfo(name="text", modality="text", vocab_size=1000, fingerprint="text-a")
IMAGE = TokenizerInfo(
    name="image", modality="image", vocab_size=100, fingerprint="image-a", splittable=False
)
SPEECH = TokenizerInfo(name="speech", modality="speech", vocab_size=70000, fingerprint="speech-a")
BYTES = TokenizerInfo(name="bytes", modality="bytes", vocab_size=256, fingerprint="bytes-a")
ALL = (TEXT, IMAGE, SPEECH, BYTES)


def encoded(kind: str, length: int, rng: np.random.Generator) -> Encoded:
    """Random tokens of a tokenizer; an image has 4 columns, speech 2 codebooks."""
    info = next(t for t in ALL if t.name == kind)
    width = {"image": 4, "speech": 2}.get(kind, 1)
    length = -(-length // width) * width
    ids = rng.integers(0, info.vocab_size, length)
    starts = rng.random(length) < 0.3 if kind == "bytes" else None
    durations = rng.integers(1, 9, length).astype(np.uint8) if kind == "speech" else None
    latents = np.stack([ids, ids + 0.5, -ids], 1) / 64 if kind == "image" else None
    return Encoded(ids=ids, width=width, patch_starts=starts, durations=durations, latents=latents)


def document(
    number: int, shape: list[tuple[str, int]], rng: np.random.Generator
) -> EncodedDocument:
    names = [t.name for t in ALL]
    spans = [(names.index(kind), encoded(kind, length, rng)) for kind, length in shape]
    return EncodedDocument(key=f"d{number}", metadata={"n": number}, spans=spans)


def random_shape(rng: np.random.Generator, longest: int) -> list[tuple[str, int]]:
    """Spans of a document; images have 8 or 16 tokens."""
    shape = []
    for _ in range(rng.integers(1, 5)):
        kind = str(rng.choice(["text", "text", "image", "speech", "bytes"]))
        length = int(rng.choice([8, 16])) if kind == "image" else int(rng.integers(1, longest))
        shape.append((kind, length))
    return shape


def write_stream(folder: Path, shards: list[list[EncodedDocument]], tokenizers=ALL) -> Stream:
    """Write documents as a stream, one shard for each list."""
    folder.mkdir(parents=True, exist_ok=True)
    infos = []
    for number, documents in enumerate(shards):
        writer = ShardWriter(
            folder,
            f"shard-{number:06d}",
            source="made",
            tokenizers=[t.name for t in tokenizers],
            modalities=[t.modality for t in tokenizers],
        )
        for each in documents:
            writer.add(each)
        info = writer.finish()
        assert info is not None
        infos.append(info)
    manifest = {
        "format": 1,
        "documents": sum(i.documents for i in infos),
        "rejected": 0,
        "samples": sum(i.documents for i in infos),
        "tokenizers": [asdict(t) for t in tokenizers],
        "shards": [asdict(i) for i in infos],
    }
    (folder / "stream.json").write_text(json.dumps(manifest))
    (folder / "rejected.jsonl").write_text("")
    return Stream(folder)


def random_stream(
    folder: Path, *, documents: int = 200, shards: int = 3, longest: int = 60, seed: int = 0
) -> tuple[Stream, list[EncodedDocument]]:
    """A stream of random documents, and the documents in its order."""
    rng = np.random.default_rng(seed)
    made = [document(i, random_shape(rng, longest), rng) for i in range(documents)]
    parts = [list(part) for part in np.array_split(np.array(made, object), shards)]
    return write_stream(folder, [p for p in parts if p]), made


def text_stream(folder: Path, lengths: list[list[int]], seed: int = 0) -> Stream:
    """A stream of text documents of these lengths, one shard for each list."""
    rng = np.random.default_rng(seed)
    count = 0
    shards = []
    for shard in lengths:
        shards.append([document(count + i, [("text", n)], rng) for i, n in enumerate(shard)])
        count += len(shard)
    return write_stream(folder, shards)
