"""Documents that are there more than once, in a stream or in two, by hashes of 64 bits.

What a document holds is its tokenizers, lengths and ids; a picture without codes, its latents.
Among a billion documents two different ones share a hash with a probability of 3 %.
"""

from dataclasses import dataclass

import numpy as np

from plait.pipeline.inspect.count import StreamCounts
from plait.pipeline.split import Splitter
from plait.pipeline.stream import Stream

HELD_OUT = 0.05
"""The share that a run holds out if nothing else is said (`validation.share`), with seed 0."""
NAMED = 3
"""Keys that are named of each group."""


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
    largest = several[np.argsort(-sizes[several], kind="stable")[:most]]
    groups = [
        _group(stream, np.flatnonzero(contents == ordered[starts[group]])) for group in largest
    ]
    return Repeats(
        documents=len(contents) - len(starts), groups=len(several), largest=tuple(groups)
    )


def held_out(stream: Stream, counts: StreamCounts) -> Shared | None:
    """What a run's own split would put on both sides; None if there is nothing to hold out."""
    splitter = Splitter(stream, seed=0, split="validation", validation=HELD_OUT)
    numbers = np.arange(stream.documents)
    apart = splitter.chosen(numbers)
    if not apart.any() or apart.all():
        return None
    hashes = [(table[apart], table[~apart]) for table in (counts.contents, counts.keys)]
    return _shared(stream, numbers[apart], hashes)


def in_training(validation: Stream, own: StreamCounts, training: list[StreamCounts]) -> Shared:
    """Documents of a validation stream that are in training streams too."""
    hashes = [
        (own.contents, np.concatenate([t.contents for t in training])),
        (own.keys, np.concatenate([t.keys for t in training])),
    ]
    return _shared(validation, np.arange(validation.documents), hashes)


def _shared(
    stream: Stream, numbers: np.ndarray, hashes: list[tuple[np.ndarray, np.ndarray]]
) -> Shared:
    """`hashes` are those of the documents `numbers`, and all others: of contents, then of keys."""
    contents, keys = (np.isin(mine, others) for mine, others in hashes)
    found = numbers[contents | keys][:NAMED].tolist()
    return Shared(
        documents=len(numbers),
        same_content=int(contents.sum()),
        same_key=int(keys.sum()),
        keys=tuple(stream.document(i).key for i in found),
    )


def _group(stream: Stream, numbers: np.ndarray) -> Group:
    documents = [stream.document(i) for i in numbers[:NAMED].tolist()]
    return Group(
        documents=len(numbers),
        tokens=sum(len(span.ids) for span in documents[0].spans),
        keys=tuple(document.key for document in documents),
    )
