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
    _fill_tokens(
        window, document[real], start[real], stop[real], again[real], begin[real], ids, out
    )


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


def _fill_tokens(
    window: Window,
    document: np.ndarray,
    start: np.ndarray,
    stop: np.ndarray,
    again: np.ndarray,
    begin: np.ndarray,
    ids: GlobalIds,
    out: RowArrays,
) -> None:
    flat = out.tokens.reshape(-1)
    base = window.bases[document]
    after = np.searchsorted(window.at + window.lengths, base + start, "left")
    first = np.maximum(
        np.minimum(after, window.span_starts[document + 1] - 1), window.span_starts[document]
    )
    last = np.searchsorted(window.at, base + stop, "right")
    last = np.minimum(np.maximum(last, first + 1), window.span_starts[document + 1])
    spans = ranges(first, last)
    owner = np.repeat(np.arange(len(document)), last - first)
    # A place v of a document lies at v + origin in the flat rows.
    origin = (begin + again - start)[owner]
    low, high = start[owner], stop[owner]
    kind = window.kinds[spans]
    at = window.at[spans] - base[owner]
    end = at + window.lengths[spans]
    flat[begin[start == 0]] = BOS
    whole = stop == window.sizes[document]
    flat[(begin + again - start + stop - 1)[whole]] = EOS
    marked = ids.begin[kind] >= 0
    opening = marked & (at - 1 >= low) & (at - 1 < high)
    flat[(origin + at - 1)[opening]] = ids.begin[kind[opening]]
    closing = marked & (end >= low) & (end < high)
    flat[(origin + end)[closing]] = ids.end[kind[closing]]
    repeated = np.flatnonzero(again)
    flat[begin[repeated]] = ids.begin[window.kinds[first[repeated]]]
    a, b = np.maximum(at, low), np.minimum(end, high)
    some = np.flatnonzero(b > a)
    _copy(
        window,
        spans[some],
        (a - at)[some],
        (b - a)[some],
        (origin + a)[some],
        ids.start[kind[some]],
        flat,
    )
    _copy_patches(window, spans[some], (a - at)[some], (b - a)[some], (origin + a)[some], out)


def _copy(
    window: Window,
    spans: np.ndarray,
    skip: np.ndarray,
    count: np.ndarray,
    target: np.ndarray,
    start: np.ndarray,
    flat: np.ndarray,
) -> None:
    """Copy ids out of the shards, lifted into the run's vocabulary."""
    shards, blocks = window.shards[spans], window.blocks[spans]
    for shard in np.unique(shards).tolist():
        window.readers[shard].verify_blocks(blocks[shards == shard])
    place = window.places[spans] + skip
    columns = (shards, window.wide[spans], place, place + count, target, target + count)
    for shard, wide, a, b, c, d in zip(*(x.tolist() for x in columns), strict=True):
        reader = window.readers[shard]
        flat[c:d] = reader.ids32[a:b] if wide else reader.ids16[a:b]
    _lift(flat, target, count, start)


def _lift(flat: np.ndarray, target: np.ndarray, count: np.ndarray, start: np.ndarray) -> None:
    """Add `start` to each run of `count` from `target` on; the runs are in order.

    One addition over the whole batch: numpy takes 1 us for each small one.
    """
    if not len(target):
        return
    end = target + count
    lengths = np.empty(2 * len(target), np.int64)
    lengths[0::2] = count
    lengths[1:-1:2] = target[1:] - end[:-1]
    lengths[-1] = 0
    values = np.zeros_like(lengths)
    values[0::2] = start
    flat[target[0] : end[-1]] += np.repeat(values, lengths)


def _copy_patches(
    window: Window,
    spans: np.ndarray,
    skip: np.ndarray,
    count: np.ndarray,
    target: np.ndarray,
    out: RowArrays,
) -> None:
    """Unpack patch starts where spans have any."""
    places = window.patch_places[spans]
    having = np.flatnonzero(places >= 0)
    if not len(having):
        return
    if out.patch_starts is None:
        out.patch_starts = np.zeros(out.tokens.shape, bool)
    flat = out.patch_starts.reshape(-1)
    for i in having.tolist():
        a, n, c = int(places[i] + skip[i]), int(count[i]), int(target[i])
        reader = window.readers[int(window.shards[spans[i]])]
        packed = reader.patches(int(window.blocks[spans[i]]))
        flat[c : c + n] = np.unpackbits(packed[a // 8 : (a + n + 7) // 8])[a % 8 :][:n]
