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
from plait.models.perplexity import Documents
from plait.models.scoring import Piece, SpanIds, nats_of, tokens_of
from plait.pipeline.order import permutation


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """A text and what it is about."""

    text: SpanIds
    other: SpanIds

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


def evaluate_pairs(
    model: Decoder,
    documents: Documents,
    *,
    most: int,
    seq_len: int,
    batch_size: int,
    seed: int = 0,
    done: Callable[[int], None] = lambda ids: None,
) -> list[Direction]:
    """Both directions for each modality that is paired with text, over at most `most` pairs each.

    Pairs longer than a row are left out.
    """
    found: list[Direction] = []
    for modality, pairs in _gather(model, documents, most, seq_len).items():
        chosen = _with_another(pairs, seq_len, seed)
        for asked, given in ((modality, "text"), ("text", modality)) if chosen else ():
            answers = [pair.half(asked) for pair, _ in chosen]
            pieces = [
                _piece(model, source.half(given), answer)
                for n in (0, 1)
                for source, answer in zip([both[n] for both in chosen], answers, strict=True)
            ]
            nats = nats_of(model, pieces, seq_len, batch_size, done)
            tokens = sum(len(answer.ids) for answer in answers)
            right, wrong = nats[: len(chosen)], nats[len(chosen) :]
            found.append(
                Direction(
                    given=given,
                    asked=asked,
                    pairs=len(chosen),
                    tokens=tokens,
                    loss=float(np.concatenate(right).sum()) / tokens,
                    shuffled_loss=float(np.concatenate(wrong).sum()) / tokens,
                )
            )
    return found


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
    return (
        bool(len(text.ids))
        and bool(len(other.ids))
        and len(text.ids) + len(other.ids) + 3 <= seq_len
    )


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
