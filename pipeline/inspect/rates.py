"""What a token stands for: bytes of text, a part of a picture, milliseconds of speech.

A stream holds no samples. Grids, durations and patches are in it; how many bytes a text had is
known by decoding, which is done for some documents only; how long a frame of speech lasts stands in
the tokenizer's config.json. What cannot be known is left out.
"""

import json
from dataclasses import dataclass

import numpy as np

from plait.pipeline.inspect.count import StreamCounts
from plait.pipeline.stream import Stream
from plait.pipeline.vocabulary import TokenizerInfo
from plait.tokenizers.errors import PlaitError

SHARDS, DOCUMENTS, TOKENS = 16, 64, 512
"""Text is decoded of so many shards, so many documents of each, so many tokens of each."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """One figure of a modality."""

    modality: str
    name: str
    value: float
    source: str
    """Out of what it comes, in words."""
    sampled: bool = False
    """Whether it is of some documents only."""


def rates(stream: Stream, counts: StreamCounts) -> list[Rate]:
    """What can be said of each modality that the stream holds."""
    found = []
    for kind, info in enumerate(stream.tokenizers):
        tokens, spans = (int(n) for n in counts.by_shard[:, kind, :2].sum(0))
        rate = None
        if not tokens:
            continue
        if info.modality == "text":
            rate = _bytes_per_token(stream, kind, info, tokens)
        elif info.modality == "image":
            rate = Rate(
                modality="image",
                name="tokens per image",
                value=tokens / spans,
                source=f"{spans:,} images",
            )
        elif info.modality == "speech":
            rate = _tokens_per_s(stream, info, tokens, _frames(counts, kind))
        elif counts.patches[kind]:
            rate = Rate(
                modality=info.modality,
                name="bytes per patch",
                value=tokens / int(counts.patches[kind]),
                source=f"{int(counts.patches[kind]):,} patches",
            )
        found += [rate] if rate else []
    return found


def _frames(counts: StreamCounts, kind: int) -> int:
    return int(counts.durations[kind] or counts.frames[kind])


def _tokens_per_s(stream: Stream, info: TokenizerInfo, tokens: int, frames: int) -> Rate | None:
    frames_per_s = frame_rate_hz(stream, info.name)
    if not frames_per_s:
        return None
    seconds = frames / frames_per_s
    return Rate(
        modality="speech",
        name="tokens per second",
        value=tokens / seconds,
        source=f"{seconds:,.0f} s at {frames_per_s:g} frames per second",
    )


def frame_rate_hz(stream: Stream, name: str) -> float | None:
    """Frames a second of a speech tokenizer; None if its config.json does not say so."""
    try:
        path = stream.tokenizer_folder(name) / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        if "unit_rate_hz" in config:
            return float(config["unit_rate_hz"])
        return float(config["sample_rate_hz"]) / float(config["hop"])
    except (OSError, PlaitError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return None


def _bytes_per_token(stream: Stream, kind: int, info: TokenizerInfo, tokens: int) -> Rate | None:
    try:
        tokenizer = stream.tokenizer(info.name)
    except (OSError, PlaitError):
        return None
    size = looked_at = 0
    for number in _some_with(stream, kind):
        span = next(s for s in stream.document(number).spans if s.name == info.name)
        encoded = span.encoded
        if len(encoded.ids) > TOKENS:
            encoded = type(encoded)(ids=encoded.ids[:TOKENS])
        text = tokenizer.decode(encoded)
        size += len(str(text).encode(errors="surrogatepass"))
        looked_at += len(encoded.ids)
    return Rate(
        modality=info.modality,
        name="bytes per token",
        value=size / looked_at,
        source=f"{looked_at:,} tokens decoded",
        sampled=looked_at < tokens,
    )


def _some_with(stream: Stream, kind: int) -> list[int]:
    """Numbers of documents that have spans of a tokenizer, spread evenly."""
    having = [
        n for n, s in enumerate(stream.shards) if s.spans.get(stream.tokenizers[kind].modality)
    ]
    found = []
    for shard in spread(np.array(having), SHARDS).tolist():
        index = stream.reader(shard).index
        owners = np.repeat(np.arange(index.documents), index.counts)
        documents = spread(np.unique(owners[index.kinds == kind]), DOCUMENTS)
        found += (int(stream.starts[shard]) + documents).tolist()
    return found


def spread(values: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the values, evenly spaced, the first and the last among them.

    >>> spread(np.arange(11), 3).tolist()
    [0, 5, 10]
    """
    if len(values) <= count:
        return values
    return values[np.linspace(0, len(values) - 1, count).round().astype(np.int64)]
