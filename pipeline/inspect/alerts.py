"""What a reader should look at first, and what can be done about it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from plait.pipeline.inspect.count import DOCUMENTS, SPANS, StreamCounts
from plait.pipeline.inspect.packed_rows import PackedRows
from plait.pipeline.inspect.repeats import HELD_OUT, Repeats, Shared
from plait.pipeline.inspect.statistics import ModalityStatistics
from plait.pipeline.stream import Stream
from plait.pipeline.tables import printable

if TYPE_CHECKING:
    from plait.pipeline.inspect.mixture_shares import StreamShare

REJECTED = 0.01
UNUSED = 0.1
FILL = 0.9
DRIFT = 0.02
LONGER = 0.05
COPIES = 0.001
AT_MOST = 0.01
"""Share of spans of the greatest length from which on they look cut."""
EXPECTED = 8
"""Spans of a modality that a shard should hold, for it to be missed."""
NAMED = 3


def stream_alerts(
    stream: Stream,
    counts: StreamCounts,
    *,
    rejected: Mapping[str, int],
    repeats: Repeats,
    packed: PackedRows | None = None,
    held_out: Shared | None = None,
    validation: Shared | None = None,
) -> list[str]:
    """Sentences, the most pressing first; none if nothing stands out.

    Of a sample, nothing is said of what never occurs.
    """
    whole = len(stream.shards) == len(stream.manifest["shards"])
    found = [
        *_quarantined(stream),
        *leaks(validation, "the validation stream"),
        *_rejected(int(stream.manifest["documents"]), rejected),
        *(_unused(counts.modalities) if whole else ()),
        *_missing(stream, counts),
        *_repeated(stream.documents, repeats),
        *leaks(held_out, f"the {HELD_OUT:.0%} that a run with seed 0 holds out"),
        *_longest(counts.modalities),
    ]
    return found + (_packing(packed) if packed else [])


def leaks(shared: Shared | None, where: str) -> Iterable[str]:
    """Documents kept for validation that are trained on too."""
    if shared is None or not shared.found:
        return
    parts = []
    if shared.same_content:
        parts.append(f"{shared.same_content:,} hold the same as a training document")
    if shared.same_key:
        parts.append(f"{shared.same_key:,} have the source and key of one")
    yield (
        f"Of {shared.documents:,} documents in {where}, {' and '.join(parts)} "
        f"({_some(shared.keys)}): validation loss will look too good. Make the stream again with "
        "`plait shard --deduplicate documents --validation SHARE`."
    )


def mixture_alerts(shares: Sequence["StreamShare"]) -> Iterable[str]:
    """Streams whose share of the tokens is not their weight."""
    for s in shares:
        if not s.tokens:
            yield f"{s.name} has no row among those looked at."
        elif abs(s.drift) > DRIFT:
            yield (
                f"{s.name} has {s.tokens:.1%} of the tokens for a weight of {s.weight:.1%}: "
                f"weights are shares of rows, and its rows are {s.fill:.1%} filled. Ask for shares "
                "of tokens by modality instead (`mixture.shares`), or weigh it by "
                f"{s.weight * s.weight / s.tokens:.3f}."
            )


def _quarantined(stream: Stream) -> Iterable[str]:
    if apart := stream.manifest.get("quarantined"):
        names = _some([entry["name"] for entry in apart])
        lost = sum(entry["documents"] for entry in apart)
        yield f"{lost:,} documents are in quarantine ({names}); see `plait verify`."


def _rejected(documents: int, rejected: Mapping[str, int]) -> Iterable[str]:
    """Samples that were filtered on purpose are not counted as lost."""
    lost = sum(n for reason, n in rejected.items() if not reason.startswith("filtered"))
    samples = documents + sum(rejected.values())
    if lost > REJECTED * samples:
        yield (
            f"{lost:,} of {samples:,} samples ({lost / samples:.1%}) were rejected. rejected.jsonl "
            "names each with its reason: mend them, or filter them on purpose."
        )


def _unused(statistics: Mapping[str, ModalityStatistics]) -> Iterable[str]:
    """Bytes are left out, for their vocabulary is not learned."""
    for name, s in statistics.items():
        unused = 1 - s.codes_used / s.vocab_size
        if not s.tokens:
            yield (
                f"{name}: a tokenizer is there, but no token of it. If that is meant, leave it out "
                "of `plait shard`, so that no run pays for its vocabulary."
            )
        elif unused > UNUSED and name != "bytes":
            yield (
                f"{name}: {unused:.0%} of {s.vocab_size:,} codes are never used. Fit a smaller "
                "vocabulary, or fit it on data like this (`plait fit`)."
            )


def _missing(stream: Stream, counts: StreamCounts) -> Iterable[str]:
    """A modality that is in no document of a shard, but in many of others of the same source."""
    sources = {s["name"]: s.get("source", 0) for s in stream.manifest["shards"]}
    of_shard = np.array([sources[shard.name] for shard in stream.shards])
    documents = np.array([shard.documents for shard in stream.shards])
    for kind, info in enumerate(stream.tokenizers):
        names: list[str] = []
        for source in np.unique(of_shard).tolist():
            mine = of_shard == source
            rate = counts.by_shard[mine, kind, DOCUMENTS].sum() / documents[mine].sum()
            lacking = mine & (counts.by_shard[:, kind, SPANS] == 0)
            lacking &= documents * rate >= EXPECTED
            names += [stream.shards[n].name for n in np.flatnonzero(lacking).tolist()]
        if names:
            yield (
                f"{info.modality} is missing from {_some(names)}, though other shards of the same "
                "source have it. Look at the source's files there, and at rejected.jsonl."
            )


def _repeated(documents: int, repeats: Repeats) -> Iterable[str]:
    if repeats.documents > COPIES * documents:
        share = repeats.documents / documents
        yield (
            f"{repeats.documents:,} documents ({share:.1%}) are copies of others. "
            "`plait shard --deduplicate documents` keeps the first of each."
        )


def _longest(statistics: Mapping[str, ModalityStatistics]) -> Iterable[str]:
    """Spans that end where something cut them: many of exactly the greatest length."""
    for name, s in statistics.items():
        if name == "image" or len(s.lengths) < 20:
            continue
        longest = max(s.lengths)
        share = s.lengths[longest] / s.spans
        if share > AT_MOST and s.lengths[longest] > 2 * s.spans / len(s.lengths):
            yield (
                f"{name}: {share:.1%} of the spans have exactly {longest:,} tokens, the most there "
                "are: something cuts them. Look for a limit in how the samples were made."
            )


def _packing(packed: PackedRows) -> list[str]:
    found = []
    if packed.fill < FILL:
        found.append(
            f"Packed rows are only {packed.fill:.1%} filled; the rest is padding. Try another row "
            "length (`rows.seq_len`), or let more be cut (`rows.cut`, `rows.packing concat`)."
        )
    longer = packed.longer / packed.documents
    if longer > LONGER:
        found.append(
            f"{longer:.0%} of the documents are longer than a row of {packed.seq_len:,} tokens and "
            f"are cut. Rows of {packed.keeps_95:,} keep 95% whole (`rows.seq_len`)."
        )
    return found


def run_alerts(
    train: Mapping[str, float],
    validation: Mapping[str, float],
    fill: float | None,
    skipped: float | None = None,
) -> list[str]:
    """The same for a run: losses that are not numbers, batches skipped, rows with much padding."""
    found = [
        f"{where} loss of {name} is {value}."
        for where, losses in (("training", train), ("validation", validation))
        for name, value in losses.items()
        if not abs(value) < float("inf")
    ]
    if skipped:
        found.append(f"Batches skipped: {skipped:,.0f}; skipped.jsonl names their documents.")
    if fill is not None and fill < FILL:
        found.append(f"Packed rows are only {fill:.1%} filled; the rest is padding.")
    return found


def _some(names: Sequence[str]) -> str:
    """The first few names, each shortened."""
    shown = ", ".join(printable(name, 60) for name in names[:NAMED])
    more = len(names) - NAMED
    return f"{shown} and {more:,} more" if more > 0 else shown
