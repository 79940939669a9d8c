"""Loss by modality and bits per byte, over all documents of a stream or those that a run held out.

The loss by modality counts what a run's `validation/loss` counts: every token but `<bos>`, markers
and `<eos>` under text; but also spans that a run only reads (`objective.mask` and `learn`). Bits
per byte are those of the text itself: the nats of its own tokens, no special ones, over ln 2 and
the number of bytes that they decode to, so that runs with different tokenizers can be compared; for
bytes likewise.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from plait.models.decoder import Decoder
from plait.models.evaluation.scoring import SpanIds, Tokens, nats_of, tokens_of, windows
from plait.pipeline.order import hashes, order_of
from plait.pipeline.split import Splitter
from plait.pipeline.stream import Document, Stream
from plait.pipeline.vocabulary import Vocabulary
from plait.tokenizers.errors import ConfigError

POOL = 1 << 18
"""Tokens that are packed and evaluated together, more or less."""
WRITTEN = ("text", "bytes")
"""Modalities of which bits per byte are told."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Documents:
    """Documents of one stream, in the order in which they are evaluated."""

    stream: Stream
    numbers: np.ndarray
    vocabulary: Vocabulary
    most_tokens: int = 0
    """End once so many tokens were read; 0 is all."""

    @classmethod
    def of(
        cls,
        stream: Stream,
        vocabulary: Vocabulary,
        *,
        seed: int,
        held_out: float | None = None,
        most_tokens: int = 0,
    ) -> "Documents":
        """All, or the share that a run of this seed held out; drawn by the seed if bounded.

        ConfigError where the stream was made by tokenizers that the vocabulary does not have.
        """
        check_tokenizers(stream, vocabulary)
        numbers = np.arange(stream.documents)
        if held_out is not None:
            splitter = Splitter(stream, seed=seed, split="validation", validation=held_out)
            numbers = numbers[splitter.chosen(numbers)]
        found = cls(stream=stream, numbers=numbers, vocabulary=vocabulary, most_tokens=most_tokens)
        return found.shuffled(seed) if most_tokens else found

    def shuffled(self, seed: int) -> Self:
        """The same documents in a random order, which depends on the seed alone."""
        return replace(self, numbers=self.numbers[order_of(hashes(self.numbers, seed, 8))])

    @property
    def tokens(self) -> int:
        """About how many tokens there are, for a bar of progress."""
        share = len(self.numbers) / max(1, self.stream.documents)
        whole = round(self.stream.tokens * share)
        return min(whole, self.most_tokens) if self.most_tokens else whole

    def __iter__(self) -> Iterator[Document]:
        tokens = 0
        for number in self.numbers.tolist():
            if self.most_tokens and tokens >= self.most_tokens:
                return
            document = self.stream.document(number)
            tokens += sum(len(span.ids) for span in document.spans)
            yield document

    def spans(self, document: Document) -> list[SpanIds]:
        """A document's spans in the run's ids."""
        infos = {info.name: info.fingerprint for info in self.stream.tokenizers}
        found = []
        for span in document.spans:
            name = self.vocabulary.name_of(infos[span.name])
            ids = self.vocabulary.to_global(name, span.ids)
            found.append(SpanIds(name=name, ids=ids, width=span.width))
        return found


def check_tokenizers(stream: Stream, vocabulary: Vocabulary) -> None:
    """ConfigError where the stream was made by another tokenizer than the run's."""
    known = {info.fingerprint for info in vocabulary.tokenizers}
    for info in stream.tokenizers:
        if info.fingerprint not in known:
            raise ConfigError(
                f"{stream.url}: its tokenizer {info.name} ({info.fingerprint}) is not one of the"
                " run's, so the ids mean something else; give the raw source as --data, or shard it"
                " with --tokenizer RUN/tokenizers/..."
            )


@dataclass(kw_only=True)
class Tally:
    """Sums over documents."""

    modalities: tuple[str, ...]
    documents: int = 0
    nats: np.ndarray = field(init=False)
    """By the modality of the target [M]."""
    targets: np.ndarray = field(init=False)
    written_nats: dict[str, float] = field(default_factory=dict)
    """Of text's and bytes' own tokens."""
    written_bytes: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.nats = np.zeros(len(self.modalities))
        self.targets = np.zeros(len(self.modalities), np.int64)

    def losses(self) -> dict[str, float | None]:
        """Mean nats a target, over `all` and by modality; None where there is none."""
        named = zip(self.modalities, self.nats.tolist(), self.targets.tolist(), strict=True)
        n = int(self.targets.sum())
        everything = {"all": float(self.nats.sum()) / n if n else None}
        return everything | {name: nats / k if k else None for name, nats, k in named}

    def counts(self) -> dict[str, int]:
        """Targets, over `all` and by modality."""
        named = zip(self.modalities, self.targets.tolist(), strict=True)
        return {"all": int(self.targets.sum()), **dict(named)}

    def bits_per_byte(self) -> dict[str, float]:
        """By modality, where there is text or bytes."""
        return {
            name: self.written_nats[name] / math.log(2) / count
            for name, count in self.written_bytes.items()
            if count
        }


def evaluate(
    model: Decoder,
    documents: Documents,
    seq_len: int,
    batch_size: int,
    done: Callable[[int], None] = lambda ids: None,
) -> Tally:
    """Tally all documents."""
    tally = Tally(modalities=model.vocabulary.modalities)
    for pool in _pools(documents):
        flat = [tokens_of(documents.spans(document), model.vocabulary) for document in pool]
        cut = [list(windows(tokens, seq_len)) for tokens in flat]
        pieces = [piece for own in cut for piece in own]
        nats = iter(nats_of(model, pieces, seq_len, batch_size, done))
        for document, tokens, own in zip(pool, flat, cut, strict=True):
            found = np.concatenate([next(nats) for _ in own])
            _add(tally, documents, document, tokens, found)
    return tally


def _pools(documents: Documents) -> Iterator[list[Document]]:
    pool: list[Document] = []
    tokens = 0
    for document in documents:
        pool.append(document)
        tokens += sum(len(span.ids) for span in document.spans)
        if tokens >= POOL:
            yield pool
            pool, tokens = [], 0
    if pool:
        yield pool


def _add(
    tally: Tally, documents: Documents, document: Document, tokens: Tokens, nats: np.ndarray
) -> None:
    """Take in a document and the nats of its ids from the second on."""
    modality = documents.vocabulary.modality_of(tokens.ids[1:])
    tally.documents += 1
    tally.nats += np.bincount(modality, nats, len(tally.modalities))
    tally.targets += np.bincount(modality, minlength=len(tally.modalities))
    for number, span in enumerate(document.spans):
        if span.modality in WRITTEN:
            own = float(nats[tokens.spans[1:] == number].sum())
            raw = documents.stream.tokenizer(span.name).decode(span.encoded)
            n = len(raw.encode() if isinstance(raw, str) else bytes(raw))  # pyright: ignore
            name = span.modality
            tally.written_nats[name] = tally.written_nats.get(name, 0.0) + own
            tally.written_bytes[name] = tally.written_bytes.get(name, 0) + n
