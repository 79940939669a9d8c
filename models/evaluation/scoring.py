"""Nats of every token of a document, whatever rows and batches it comes to stand in.

A document is one sequence with its markers. One longer than a row is seen through windows, each
with up to half a row of what comes before as context, so that every token but `<bos>` is predicted
exactly once; a long document costs up to twice its length. Packed rows isolate documents and every
model is causal in eval, so a token's nats do not depend on the batch but for rounding. A window
never begins inside a picture, and inside a sound or a run of bytes only at a whole frame, behind a
repeated begin marker, as rows do in training.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from plait.models.decoder import Decoder
from plait.pipeline.batch import Batch
from plait.pipeline.packing import best_fit
from plait.pipeline.vocabulary import BOS, EOS, Vocabulary
from plait.tokenizers.errors import ConfigError

NOWHERE, PLAIN = -2, -1


@dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
    """Global ids of one document that stand in one row."""

    ids: np.ndarray
    first: int = 1
    """The first whose nats count; those before it are context alone."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SpanIds:
    """A span's global ids, and the name of its tokenizer in the vocabulary."""

    name: str
    ids: np.ndarray
    width: int = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Tokens:
    """A document as one sequence [n] of global ids with its markers."""

    ids: np.ndarray
    spans: np.ndarray
    """Which span a token is of; -1 for markers, `<bos>` and `<eos>`."""
    heads: np.ndarray
    """How a window may begin at a token: `PLAIN`, `NOWHERE`, or behind this begin marker."""


def tokens_of(spans: Sequence[SpanIds], vocabulary: Vocabulary) -> Tokens:
    """A document from its spans: `<bos>`, the spans between their markers, `<eos>`."""
    ids, owners, heads = [[BOS]], [[-1]], [[PLAIN]]
    for number, span in enumerate(spans):
        begin, end, n = vocabulary.begin(span.name), vocabulary.end(span.name), len(span.ids)
        marked = begin is not None and end is not None
        head = np.full(n, PLAIN)
        if marked:
            head[:] = NOWHERE
            if vocabulary.info(span.name).splittable:
                head[span.width :: span.width] = begin
        ids += [[begin], span.ids, [end]] if marked else [span.ids]
        owners += [[-1], np.full(n, number), [-1]] if marked else [np.full(n, number)]
        heads += [[PLAIN], head, [NOWHERE]] if marked else [head]
    parts = [np.concatenate([*part, [last]]) for part, last in ((ids, EOS), (owners, -1))]
    return Tokens(ids=parts[0], spans=parts[1], heads=np.concatenate([*heads, [NOWHERE]]))


def windows(tokens: Tokens, seq_len: int) -> Iterator[Piece]:
    """Pieces of at most `seq_len` ids in which each id from the second on counts once, in order.

    ConfigError where something that stays whole is longer than a row.
    """
    n, places = len(tokens.ids), np.flatnonzero(tokens.heads != NOWHERE)
    stop = min(n, seq_len)
    yield Piece(ids=tokens.ids[:stop])
    while stop < n:
        first = stop
        start = _start(places, first, first - seq_len // 2)
        head = tokens.heads[start]
        before = [] if head == PLAIN else [head]
        stop = min(n, start + seq_len - len(before))
        if stop <= first:
            raise ConfigError(f"rows.seq_len {seq_len}: too short for a span that stays whole")
        ids = np.concatenate([np.array(before, np.int64), tokens.ids[start:stop]])
        yield Piece(ids=ids, first=len(before) + first - start)


def _start(places: np.ndarray, first: int, wanted: int) -> int:
    """The first place from the wanted one on that lies before `first`, else the last before it."""
    at = int(np.searchsorted(places, wanted))
    if at == len(places) or places[at] >= first:
        at -= 1
    return int(places[at])


def nats_of(
    model: Decoder,
    pieces: Sequence[Piece],
    seq_len: int,
    batch_size: int,
    done: Callable[[int], None] = lambda ids: None,
) -> list[np.ndarray]:
    """Nats of each piece's ids from its `first` on, float64; `done` hears how many were found.

    Pieces are packed into rows of at most `seq_len`, `batch_size` of them at a time.
    """
    model.eval()
    lengths = np.array([len(piece.ids) for piece in pieces], np.int64)
    order = np.argsort(-lengths, kind="stable")
    row_of, n_rows = best_fit(lengths[order], seq_len)
    rows: list[list[int]] = [[] for _ in range(n_rows)]
    for i, row in zip(order.tolist(), row_of.tolist(), strict=True):
        rows[row].append(i)
    found = [np.empty(0)] * len(pieces)
    for start in range(0, n_rows, batch_size):
        taken = rows[start : start + batch_size]
        batch = _batch([[pieces[i] for i in row] for row in taken], model.vocabulary)
        nats_BT = _nats(model, batch)
        for row, numbers in enumerate(taken):
            at = 0
            for i in numbers:
                piece = pieces[i]
                found[i] = nats_BT[row, at + piece.first - 1 : at + len(piece.ids) - 1]
                at += len(piece.ids)
        done(sum(len(found[i]) for row in taken for i in row))
    return found


def _nats(model: Decoder, batch: Batch) -> np.ndarray:
    """[B, T], by bf16 autocast on a GPU, as in training."""
    device = model.embedding.device
    with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
        return model.nats(batch.to(device)).double().cpu().numpy()


def _batch(rows: Sequence[Sequence[Piece]], vocabulary: Vocabulary) -> Batch:
    """Pieces one after the other in rows as long as the longest."""
    T = max(sum(len(piece.ids) for piece in row) for row in rows)
    tokens_BT = np.zeros((len(rows), T), np.int64)
    document_BT = np.full((len(rows), T), -1, np.int32)
    position_BT = np.zeros((len(rows), T), np.int32)
    mask_BT = np.zeros((len(rows), T), bool)
    for b, row in enumerate(rows):
        at = 0
        for number, piece in enumerate(row):
            here = slice(at, at + len(piece.ids))
            tokens_BT[b, here] = piece.ids
            document_BT[b, here] = number
            position_BT[b, here] = np.arange(len(piece.ids))
            mask_BT[b, at + piece.first - 1 : here.stop - 1] = True
            at = here.stop
    return Batch(
        tokens_BT=torch.from_numpy(tokens_BT),
        modality_BT=torch.from_numpy(vocabulary.modality_table[tokens_BT]),
        document_BT=torch.from_numpy(document_BT),
        position_BT=torch.from_numpy(position_BT),
        loss_mask_BT=torch.from_numpy(mask_BT),
        modalities=vocabulary.modalities,
    )
