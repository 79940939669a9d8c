"""Pieces of documents to rows of tokens and masks: numpy alone, one copy a span.

Everything but the token ids follows from run lengths, so it is computed for a whole batch at once.
"""

from dataclasses import dataclass

import numpy as np

from plait.pipeline.index import cumulative
from plait.pipeline.plan import Plan, Window
from plait.pipeline.vocabulary import BOS, EOS, TokenizerInfo, Vocabulary


@dataclass(kw_only=True, eq=False)
class RowArrays:
    """Rows [B, T] as numpy arrays, see Batch; `patch_starts` is None where no span has any."""

    tokens: np.ndarray
    modality: np.ndarray
    document: np.ndarray
    position: np.ndarray
    loss_mask: np.ndarray
    patch_starts: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class GlobalIds:
    """For each tokenizer of a stream, its ids in the run's vocabulary."""

    start: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    """Ids of the markers; -1 for text, which has none."""

    @classmethod
    def of(cls, tokenizers: tuple[TokenizerInfo, ...], vocabulary: Vocabulary) -> "GlobalIds":
        """Tokenizers are matched by fingerprint."""
        names = {info.fingerprint: info.name for info in vocabulary.tokenizers}
        found = [names[t.fingerprint] for t in tokenizers]
        markers = [(vocabulary.begin(n), vocabulary.end(n)) for n in found]
        return cls(
            np.array([vocabulary.start(n) for n in found]),
            np.array([-1 if b is None else b for b, _ in markers]),
            np.array([-1 if e is None else e for _, e in markers]),
        )


def empty_rows(rows: int, seq_len: int) -> RowArrays:
    """Arrays to be filled by `gather`."""
    shape = (rows, seq_len)
    return RowArrays(
        tokens=np.zeros(shape, np.int64),
        modality=np.empty(shape, np.uint8),
        document=np.empty(shape, np.int32),
        position=np.empty(shape, np.int32),
        loss_mask=np.empty(shape, bool),
    )


def gather(
    window: Window, plan: Plan, rows: np.ndarray, ids: GlobalIds, out: RowArrays, to: np.ndarray
) -> None:
    """Fill rows `to` of `out` (all but modality and loss mask) with rows `rows` of a plan."""
    seq_len = out.tokens.shape[1]
    pieces = ranges(plan.rows[rows], plan.rows[rows + 1])
    per_row = plan.rows[rows + 1] - plan.rows[rows]
    start, stop, again = plan.starts[pieces], plan.stops[pieces], plan.again[pieces]
    size = stop - start + again
    ends = cumulative(size)
    first = cumulative(per_row)
    shift = np.repeat(to * seq_len - ends[first[:-1]], per_row)
    begin = ends[:-1] + shift
    document = plan.documents[pieces]
    _fill_runs(
        out, to, document, np.arange(len(pieces)) - np.repeat(first[:-1], per_row), start, size
    )
    real = np.flatnonzero(document >= 0)
    found = _Pieces(
        documents=document[real],
        starts=start[real],
        stops=stop[real],
        again=again[real],
        targets=begin[real],
    )
    _fill_tokens(window, found, ids, out)


def ranges(starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """The numbers start .. stop - 1 of each range, one range after the other.

    >>> ranges(np.array([3, 7]), np.array([5, 9])).tolist()
    [3, 4, 7, 8]
    """
    counts = stops - starts
    ends = cumulative(counts)
    return np.arange(ends[-1]) + np.repeat(starts - ends[:-1], counts)


def finish(out: RowArrays, vocabulary: Vocabulary) -> None:
    """Modality and loss mask, which follow from the rest."""
    np.take(vocabulary.modality_table, out.tokens, out=out.modality)
    document = out.document
    np.equal(document[:, :-1], document[:, 1:], out=out.loss_mask[:, :-1])
    out.loss_mask[:, -1] = False
    out.loss_mask &= document >= 0


def _fill_runs(
    out: RowArrays,
    to: np.ndarray,
    document: np.ndarray,
    number: np.ndarray,
    start: np.ndarray,
    size: np.ndarray,
) -> None:
    """Document numbers and positions, which are runs over pieces."""
    seq_len = out.tokens.shape[1]
    padding = document < 0
    ends = cumulative(size)
    numbers = np.repeat(np.where(padding, -1, number).astype(np.int32), size)
    places = np.arange(ends[-1], dtype=np.int32)
    places -= np.repeat((ends[:-1] - start).astype(np.int32), size)
    for p in np.flatnonzero(padding).tolist():
        places[ends[p] : ends[p + 1]] = 0
    out.document[to] = numbers.reshape(-1, seq_len)
    out.position[to] = places.reshape(-1, seq_len)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Pieces:
    """Pieces of documents in a batch, without padding; arrays [p], see Plan."""

    documents: np.ndarray
    starts: np.ndarray
    stops: np.ndarray
    again: np.ndarray
    targets: np.ndarray
    """Where each piece begins in the flat rows."""

    @property
    def origins(self) -> np.ndarray:
        """Place v of a document lies at v + origin in the flat rows."""
        return self.targets + self.again - self.starts


@dataclass(frozen=True, kw_only=True, eq=False)
class _Runs:
    """Tokens of spans in a batch, in order; arrays [r]."""

    spans: np.ndarray
    skip: np.ndarray
    """Tokens of the span that lie in an earlier row."""
    counts: np.ndarray
    targets: np.ndarray


def _fill_tokens(window: Window, pieces: _Pieces, ids: GlobalIds, out: RowArrays) -> None:
    flat = out.tokens.reshape(-1)
    first, last = _spans_of(window, pieces)
    spans = ranges(first, last)
    owner = np.repeat(np.arange(len(first)), last - first)
    origin, low, high = pieces.origins[owner], pieces.starts[owner], pieces.stops[owner]
    at = window.at[spans] - window.bases[pieces.documents][owner]
    end = at + window.lengths[spans]
    a, b = np.maximum(at, low), np.minimum(end, high)
    some = np.flatnonzero(b > a)
    runs = _Runs(
        spans=spans[some],
        skip=(a - at)[some],
        counts=(b - a)[some],
        targets=(origin + a)[some],
    )
    kind = window.kinds[spans]
    _copy_ids(window, runs, flat)
    _lift(flat, runs, ids.start[kind[some]])
    _copy_patches(window, runs, out)
    marked = ids.begin[kind] >= 0
    for place, marker in ((at - 1, ids.begin), (end, ids.end)):
        here = np.flatnonzero(marked & (place >= low) & (place < high))
        flat[(origin + place)[here]] = marker[kind[here]]
    repeated = np.flatnonzero(pieces.again)
    flat[pieces.targets[repeated]] = ids.begin[window.kinds[first[repeated]]]
    flat[pieces.targets[pieces.starts == 0]] = BOS
    whole = pieces.stops == window.sizes[pieces.documents]
    flat[(pieces.origins + pieces.stops - 1)[whole]] = EOS


def _spans_of(window: Window, pieces: _Pieces) -> tuple[np.ndarray, np.ndarray]:
    """First and past-the-last span that a piece touches, markers counted; at least one."""
    base = window.bases[pieces.documents]
    least = window.span_starts[pieces.documents]
    most = window.span_starts[pieces.documents + 1]
    first = np.searchsorted(window.ends, base + pieces.starts, "left")
    first = np.maximum(np.minimum(first, most - 1), least)
    last = np.searchsorted(window.at, base + pieces.stops, "right")
    return first, np.minimum(np.maximum(last, first + 1), most)


def _copy_ids(window: Window, runs: _Runs, flat: np.ndarray) -> None:
    """Copy local ids out of the shards, whose blocks are checked when first used."""
    shards, blocks = window.shards[runs.spans], window.blocks[runs.spans]
    for shard in np.unique(shards).tolist():
        window.readers[shard].verify_blocks(blocks[shards == shard])
    place = window.places[runs.spans] + runs.skip
    wide, stop = window.wide[runs.spans], runs.targets + runs.counts
    columns = (shards, wide, place, place + runs.counts, runs.targets, stop)
    for shard, is_wide, a, b, c, d in zip(*(x.tolist() for x in columns), strict=True):
        reader = window.readers[shard]
        flat[c:d] = reader.ids32[a:b] if is_wide else reader.ids16[a:b]


def _lift(flat: np.ndarray, runs: _Runs, start: np.ndarray) -> None:
    """Add each run's first id in the run's vocabulary.

    One addition over the whole batch: numpy takes 1 us for each small one.
    """
    if not len(start):
        return
    end = runs.targets + runs.counts
    lengths = np.zeros(2 * len(start), np.int64)
    lengths[0::2] = runs.counts
    lengths[1:-1:2] = runs.targets[1:] - end[:-1]
    values = np.zeros_like(lengths)
    values[0::2] = start
    flat[runs.targets[0] : end[-1]] += np.repeat(values, lengths)


def _copy_patches(window: Window, runs: _Runs, out: RowArrays) -> None:
    """Unpack patch starts where spans have any."""
    places = window.patch_places[runs.spans]
    having = np.flatnonzero(places >= 0)
    if not len(having):
        return
    if out.patch_starts is None:
        out.patch_starts = np.zeros(out.tokens.shape, bool)
    flat = out.patch_starts.reshape(-1)
    for i in having.tolist():
        a, n, c = int(places[i] + runs.skip[i]), int(runs.counts[i]), int(runs.targets[i])
        reader = window.readers[int(window.shards[runs.spans[i]])]
        packed = reader.patches(int(window.blocks[runs.spans[i]]))
        flat[c : c + n] = np.unpackbits(packed[a // 8 : (a + n + 7) // 8])[a % 8 :][:n]
