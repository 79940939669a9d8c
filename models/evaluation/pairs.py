"""How well one half of a pair is predicted from the other: caption -> image, image -> caption.

A pair is a document with one text and one span of another modality; whatever their order in the
document, both orders are evaluated. The control is the same half after another pair's: what the
loss rises by is what the model makes of the pair, beyond what it knows of captions and pictures.
Only a span's own tokens count, no markers and no `<eos>`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from plait.models.decoder import Decoder
from plait.models.evaluation.perplexity import Documents
from plait.models.evaluation.scoring import Piece, SpanIds, nats_of, tokens_of
from plait.pipeline.order import permutation


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """A text and what it is about."""

    text: SpanIds
    other: SpanIds

    @property
    def tokens(self) -> int:
        """Of both halves."""
        return len(self.text.ids) + len(self.other.ids)

    def half(self, modality: str) -> SpanIds:
        """The text, or the other half."""
        return self.text if modality == "text" else self.other


@dataclass(frozen=True, kw_only=True)
class Direction:
    """One half of the pairs of a modality, given the other."""

    given: str
    asked: str
    pairs: int
    tokens: int
    """Of the half that is asked for."""
    loss: float
    """Mean nats a token."""
    shuffled_loss: float
    """The same after the given half of another pair."""

    @property
    def gain(self) -> float:
        """Nats a token that the right half saves over another's."""
        return self.shuffled_loss - self.loss


Pairs = dict[str, list[tuple[Pair, Pair]]]
"""Pairs by the modality of what is not text, each with another one for the control."""


def find_pairs(
    model: Decoder, documents: Documents, *, most: int, seq_len: int, seed: int
) -> Pairs:
    """At most `most` pairs of each modality that fit in a row, the first that there are."""
    found = _gather(model, documents, most, seq_len)
    return {name: _with_another(pairs, seq_len, seed) for name, pairs in found.items()}


def evaluate_pairs(
    model: Decoder,
    found: Pairs,
    seq_len: int,
    batch_size: int,
    done: Callable[[int], None] = lambda ids: None,
) -> list[Direction]:
    """Both directions of each modality; `done` hears how many tokens were asked for."""
    return [
        _direction(model, pairs, given, asked, seq_len, batch_size, done)
        for modality, pairs in found.items()
        if pairs
        for asked, given in ((modality, "text"), ("text", modality))
    ]


def _direction(
    model: Decoder,
    pairs: list[tuple[Pair, Pair]],
    given: str,
    asked: str,
    seq_len: int,
    batch_size: int,
    done: Callable[[int], None],
) -> Direction:
    answers = [pair.half(asked) for pair, _ in pairs]
    tokens = sum(len(answer.ids) for answer in answers)
    losses = []
    for control in (0, 1):
        sources = [both[control].half(given) for both in pairs]
        pieces = [_piece(model, *halves) for halves in zip(sources, answers, strict=True)]
        nats = nats_of(model, pieces, seq_len, batch_size, done)
        losses.append(float(np.concatenate(nats).sum()) / tokens)
    return Direction(
        given=given,
        asked=asked,
        pairs=len(pairs),
        tokens=tokens,
        loss=losses[0],
        shuffled_loss=losses[1],
    )


def _gather(model: Decoder, documents: Documents, most: int, seq_len: int) -> dict[str, list[Pair]]:
    """Pairs that fit in a row, by the modality of what is not text."""
    found: dict[str, list[Pair]] = {name: [] for name in model.vocabulary.modalities[1:]}
    for document in documents:
        names = [span.modality for span in document.spans]
        if "text" not in names:
            continue
        spans = documents.spans(document)
        for modality, pairs in found.items():
            if names.count("text") == names.count(modality) == 1 and len(pairs) < most:
                pair = Pair(
                    text=spans[names.index("text")],
                    other=spans[names.index(modality)],
                )
                if _fits(pair.text, pair.other, seq_len):
                    pairs.append(pair)
        if all(len(pairs) == most for pairs in found.values()):
            break
    return found


def _fits(text: SpanIds, other: SpanIds, seq_len: int) -> bool:
    lengths = len(text.ids), len(other.ids)
    return min(lengths) > 0 and sum(lengths) + 3 <= seq_len  # <bos> and markers


def _with_another(pairs: list[Pair], seq_len: int, seed: int) -> list[tuple[Pair, Pair]]:
    """Each pair with the next in a random order whose halves differ from its own and fit."""
    order = [pairs[i] for i in permutation(len(pairs), seed, 9)]
    found = []
    for i, pair in enumerate(order):
        for other in (*order[i + 1 :], *order[:i]):
            differs = not np.array_equal(pair.text.ids, other.text.ids)
            differs = differs and not np.array_equal(pair.other.ids, other.other.ids)
            fit = _fits(pair.text, other.other, seq_len) and _fits(other.text, pair.other, seq_len)
            if differs and fit:
                found.append((pair, other))
                break
    return found


def _piece(model: Decoder, given: SpanIds, asked: SpanIds) -> Piece:
    """Both halves in a document that ends with the one asked for, whose own ids alone count."""
    tokens = tokens_of([given, asked], model.vocabulary)
    own = np.flatnonzero(tokens.spans == 1)
    return Piece(ids=tokens.ids[: own[-1] + 1], first=int(own[0]))
