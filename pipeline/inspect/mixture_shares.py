"""What a mixture gives of each stream, beside its weights: rows, tokens and documents.

Weights are shares of rows, and those are met to one row. Rows of one stream may be fuller than
another's, and its documents shorter, so shares of tokens and documents differ; how much follows
from lengths alone, before a step is made.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from plait.pipeline.rows import Rows

Table = tuple[list[str], list[list[str]]]


@dataclass(frozen=True, kw_only=True)
class StreamShare:
    """One stream's part in the first rows of a mixture."""

    name: str
    weight: float
    """Share that was asked for; by size where nothing was."""
    rows: float
    tokens: float
    documents: float
    """Shares of what there is in the rows; a document in two rows counts as half in each."""
    epochs: float
    """How often the stream comes."""
    fill: float
    """How full its rows are."""

    @property
    def drift(self) -> float:
        """Share of tokens less the weight."""
        return self.tokens - self.weight


def mixture_shares(rows: Rows, count: int) -> list[StreamShare]:
    """Shares in rows 0 .. count - 1, a stream after the other."""
    epochs = rows.epochs(count)
    in_epoch = rows.epoch_rows
    taken = [e * n for e, n in zip(epochs, in_epoch, strict=True)]
    tokens = [e * n for e, n in zip(epochs, rows.epoch_tokens, strict=True)]
    documents = [e * s.documents for e, s in zip(epochs, rows.streams, strict=True)]
    weights = _shares(_wanted(rows, count))
    columns = (rows.names, weights, _shares(taken), _shares(tokens), _shares(documents))
    return [
        StreamShare(
            name=name,
            weight=weight,
            rows=of_rows,
            tokens=of_tokens,
            documents=of_documents,
            epochs=epoch,
            fill=all_tokens / (n * rows.seq_len),
        )
        for name, weight, of_rows, of_tokens, of_documents, epoch, all_tokens, n in zip(
            *columns, epochs, rows.epoch_tokens, in_epoch, strict=True
        )
    ]


def modality_shares(rows: Rows, count: int) -> dict[str, float]:
    """Each modality's share of the tokens in rows 0 .. count - 1, without markers."""
    totals = dict.fromkeys(rows.vocabulary.modalities, 0.0)
    for stream, epochs in zip(rows.streams, rows.epochs(count), strict=True):
        for shard in stream.shards:
            for modality, tokens in shard.tokens.items():
                totals[modality] += epochs * tokens
    return dict(zip(totals, _shares(list(totals.values())), strict=True))


def share_table(shares: Sequence[StreamShare]) -> Table:
    """Header and rows, as the terminal and the page show them."""
    header = ["Stream", "Weight", "Rows", "Tokens", "Documents", "Rows filled", "Epochs"]
    rows = [
        [
            s.name,
            *(f"{x:.1%}" for x in (s.weight, s.rows, s.tokens, s.documents, s.fill)),
            f"{s.epochs:.2f}",
        ]
        for s in shares
    ]
    return header, rows


def _wanted(rows: Rows, count: int) -> list[float]:
    """Rows of each stream among the first `count`, by the weights alone."""
    given = json.loads(rows.fingerprint)["weights"]
    stretches = given if given and isinstance(given[0], list) else [(0, given)]
    ends = [*(first for first, _ in stretches[1:]), count]
    total = [0.0] * len(rows.streams)
    for (first, weights), end in zip(stretches, ends, strict=True):
        parts = _shares(weights or rows.epoch_rows)
        length = max(0, min(end, count) - first)
        total = [t + length * part for t, part in zip(total, parts, strict=True)]
    return total


def _shares(values: Sequence[float]) -> list[float]:
    total = sum(values) or 1
    return [value / total for value in values]
