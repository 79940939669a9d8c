"""Documents that are there more than once, in a stream or in two, by hashes of 64 bits.

What a document holds is its tokenizers, lengths and ids; a picture without codes, its latents.
Among a billion documents two different ones share a hash with a probability of 3 %.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from plait.pipeline.inspect.count import StreamCounts
from plait.pipeline.split import Splitter
from plait.pipeline.stream import Stream

HELD_OUT = 0.05
"""The share that a run holds out if nothing else is said (`validation.share`), with seed 0."""
NAMED = 3
"""Keys that are named of each group."""


@dataclass(frozen=True, eq=False)
class Part:
    """Some documents of a stream, by their numbers."""

    stream: Stream
    counts: StreamCounts
    numbers: np.ndarray

    def hashes(self, name: str) -> np.ndarray:
        """Their `contents` or `keys`."""
        return getattr(self.counts, name)[self.numbers]


HASHES = ("contents", "keys")


@dataclass(frozen=True, kw_only=True)
class Group:
    """Documents that hold the same."""

    documents: int
    tokens: int
    """Of each."""
    keys: tuple[str, ...]
    """Of the first few."""


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """How often documents of a stream hold the same."""

    documents: int
    """Copies of an earlier document."""
    groups: int
    """Different documents that have copies."""
    largest: tuple[Group, ...]


@dataclass(frozen=True, kw_only=True)
class Shared:
    """Documents kept for validation that are also trained on."""

    documents: int
    """Documents kept for validation."""
    same_content: int
    same_key: int
    """Those whose source and key a training document has too."""
    keys: tuple[str, ...]
    """Of the first few, of either kind."""

    @property
    def found(self) -> bool:
        """Whether there is any."""
        return bool(self.same_content or self.same_key)


def find_repeats(stream: Stream, counts: StreamCounts, most: int = 5) -> Repeats:
    """Copies among the documents of a stream, and the largest groups."""
    contents = counts.contents
    ordered = np.sort(contents)
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(ordered)])
    sizes = np.diff(starts, append=len(ordered))
    several = np.flatnonzero(sizes > 1)
    chosen = several[np.argsort(-sizes[several], kind="stable")[:most]]
    places = [np.flatnonzero(contents == ordered[starts[group]]) for group in chosen]
    largest = [_group(stream, p) for p in sorted(places, key=lambda p: (-len(p), p[0]))]
    return Repeats(
        documents=len(contents) - len(starts), groups=len(several), largest=tuple(largest)
    )


def held_out(stream: Stream, counts: StreamCounts) -> Shared | None:
    """What a run's own split would put on both sides; None if there is nothing to hold out."""
    apart, others = split(stream, counts, seed=0, share=HELD_OUT)
    return shared([apart], [others]) if len(apart.numbers) and len(others.numbers) else None


def split(stream: Stream, counts: StreamCounts, *, seed: int, share: float) -> tuple[Part, Part]:
    """The documents that a run holds out, and those that it trains on."""
    splitter = Splitter(stream, seed=seed, split="validation", validation=share)
    numbers = np.arange(stream.documents)
    apart = splitter.chosen(numbers)
    return Part(stream, counts, numbers[apart]), Part(stream, counts, numbers[~apart])


def shared(validation: Sequence[Part], training: Sequence[Part]) -> Shared:
    """Documents kept for validation that are in training too."""
    contents = keys = documents = 0
    trained = [np.unique(np.concatenate([p.hashes(name) for p in training])) for name in HASHES]
    named: list[str] = []
    for part in validation:
        same = [np.isin(part.hashes(n), t) for n, t in zip(HASHES, trained, strict=True)]
        contents += int(same[0].sum())
        keys += int(same[1].sum())
        documents += len(part.numbers)
        found = part.numbers[same[0] | same[1]][: NAMED - len(named)].tolist()
        named += [part.stream.document(i).key for i in found]
    return Shared(documents=documents, same_content=contents, same_key=keys, keys=tuple(named))


def _group(stream: Stream, numbers: np.ndarray) -> Group:
    documents = [stream.document(i) for i in numbers[:NAMED].tolist()]
    return Group(
        documents=len(numbers),
        tokens=sum(len(span.ids) for span in documents[0].spans),
        keys=tuple(document.key for document in documents),
    )
