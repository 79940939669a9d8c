"""All that is said of a stream: gathered once, for tables, JSON, Parquet and the page alike.

A sample is some whole shards, evenly spaced, so that it says the same each time and of a stream at
a URL only those are fetched. What it cannot say is left out.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from plait.pipeline.inspect.alerts import stream_alerts
from plait.pipeline.inspect.charts import bins
from plait.pipeline.inspect.count import StreamCounts, count_stream, shard_rows
from plait.pipeline.inspect.packed_rows import PackedRows, pack
from plait.pipeline.inspect.rates import Rate, rates, spread
from plait.pipeline.inspect.repeats import Part, Repeats, Shared, find_repeats, held_out, shared
from plait.pipeline.inspect.statistics import ModalityStatistics, count_rejected
from plait.pipeline.progress import Progress
from plait.pipeline.stream import Stream
from plait.tokenizers.errors import ConfigError

Facts = dict[str, object]
LARGE = 50_000_000
"""Tokens from which on counting shows its progress."""
PARQUET_COLUMNS = ("stream", "shard", "modality", "tokenizer", "tokens", "spans", "documents")


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamReport:
    """What a stream holds."""

    stream: Stream
    part: Stream
    """What was counted: the stream, or a sample of its shards."""
    counts: StreamCounts
    rejected: dict[str, int]
    """Of the whole stream, by reason."""
    repeats: Repeats
    held_out: Shared | None
    """Of a run's own split; None for a sample, whose documents have other numbers."""
    validation: Shared | None
    rates: list[Rate]
    packed: PackedRows | None
    alerts: list[str]

    @property
    def totals(self) -> dict[str, int]:
        """Of the whole stream."""
        return {
            "documents": self.stream.documents,
            "rejected": self.stream.rejected,
            "shards": len(self.stream.shards),
            "tokens": self.stream.tokens,
            "bytes": self.stream.bytes,
        }

    @property
    def sample(self) -> str:
        """What was counted, in words; empty if it was everything."""
        if self.part is self.stream:
            return ""
        share = self.part.tokens / max(1, self.stream.tokens)
        return (
            f"Sample: {len(self.part.shards):,} of {len(self.stream.shards):,} shards, evenly "
            f"spaced, {share:.1%} of the tokens. The first line counts the whole stream, all that "
            "follows these shards alone."
        )


def look(
    stream: Stream, *, seq_len: int, sample: int = 0, validation: str | Path | None = None
) -> StreamReport:
    """Count all of it, or `sample` shards; `validation` is a stream that should share nothing."""
    part = _sampled(stream, sample)
    counts = count(part)
    rejected = count_rejected(stream.rejected_file().parent)
    repeats = find_repeats(part, counts)
    whole = part is stream
    apart = held_out(part, counts) if whole else None
    leaked = None
    if validation is not None:
        other = Stream(validation)
        theirs = Part(other, count(other), np.arange(other.documents))
        leaked = shared([theirs], [Part(part, counts, np.arange(part.documents))])
    packed = pack(part, counts.sizes, seq_len)
    alerts = stream_alerts(
        part,
        counts,
        rejected=rejected,
        repeats=repeats,
        packed=packed,
        held_out=apart,
        validation=leaked,
    )
    return StreamReport(
        stream=stream,
        part=part,
        counts=counts,
        rejected=rejected,
        repeats=repeats,
        held_out=apart,
        validation=leaked,
        rates=rates(part, counts),
        packed=packed,
        alerts=alerts,
    )


def facts(report: StreamReport) -> Facts:
    """As JSON values."""
    stream, counts = report.stream, report.counts
    tokenizers = {t.name: asdict(t) for t in stream.tokenizers}
    for entry in tokenizers.values():
        del entry["name"]
    return {
        "format": 1,
        **report.totals,
        "sample": _sample_facts(report),
        "rejected_by_reason": report.rejected,
        "modalities": {name: modality_facts(s) for name, s in counts.modalities.items()},
        "rates": [asdict(rate) for rate in report.rates],
        "transitions": transition_facts(report),
        "duplicates": asdict(report.repeats),
        "held_out": None if report.held_out is None else asdict(report.held_out),
        "validation": None if report.validation is None else asdict(report.validation),
        "packing": _packing_facts(report.packed),
        "by_shard": list(shard_facts(report)),
        "tokenizers": tokenizers,
        "alerts": report.alerts,
    }


def modality_facts(s: ModalityStatistics) -> Facts:
    """The statistics of a modality as JSON values."""
    quantiles = {"min": 0.0, "median": 0.5, "p95": 0.95, "max": 1.0}
    edges, bars = bins(*s.length_histogram())
    return {
        "tokens": s.tokens,
        "spans": s.spans,
        "documents": s.documents,
        "vocab_size": s.vocab_size,
        "codes_used": s.codes_used,
        "perplexity": s.perplexity,
        "entropy_bits": s.entropy_nats / math.log(2),
        "entropy_nats": s.entropy_nats,
        "length": {name: _whole(s.length(q)) for name, q in quantiles.items()},
        "lengths": {"edges": edges.tolist(), "spans": bars.tolist()},
        "most_used": [{"id": i, "times": n} for i, n in s.most_used()],
        "least_used": [{"id": i, "times": n} for i, n in s.least_used()],
    }


def transition_facts(report: StreamReport) -> dict[str, dict[str, int]]:
    """Spans by the modality before them, `start` of a document, and after them, its `end`."""
    names = [info.modality for info in report.stream.tokenizers]
    rows = zip(["start", *names], _start_first(report.counts.transitions).tolist(), strict=True)
    return {before: dict(zip([*names, "end"], row, strict=True)) for before, row in rows}


def shard_facts(report: StreamReport) -> Iterator[dict[str, str | int]]:
    """A row for each shard and modality that it holds; not where the stream lies."""
    for shard, info, numbers in shard_rows(report.part, report.counts):
        values = (shard, info.modality, info.name, *numbers)
        yield dict(zip(PARQUET_COLUMNS[1:], values, strict=True))


def write_parquet(report: StreamReport, file: str | Path) -> None:
    """One tidy table; ConfigError if pyarrow is not there."""
    try:
        import pyarrow
        from pyarrow.parquet import write_table
    except ImportError:
        raise ConfigError("--parquet needs pyarrow: pip install 'plait[parquet]'") from None
    columns: dict[str, list[str | int]] = {name: [] for name in PARQUET_COLUMNS}
    for row in shard_facts(report):
        for name, value in {"stream": report.stream.url, **row}.items():
            columns[name].append(value)
    types = [pyarrow.string()] * 4 + [pyarrow.int64()] * 3
    schema = pyarrow.schema(list(zip(PARQUET_COLUMNS, types, strict=True)))
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    write_table(pyarrow.table(columns, schema=schema), str(file))


def _sampled(stream: Stream, shards: int) -> Stream:
    if shards < 0:
        raise ConfigError(f"--sample {shards}: a number of shards, 0 for all")
    if not shards or shards >= len(stream.shards):
        return stream
    return stream.of_shards(spread(np.arange(len(stream.shards)), shards).tolist())


def count(stream: Stream) -> StreamCounts:
    """All counts; shows its progress where it takes more than a moment."""
    if stream.tokens < LARGE:
        return count_stream(stream)
    with Progress("counting", total=stream.tokens, unit="tokens") as progress:
        return count_stream(stream, progress.advance)


def _sample_facts(report: StreamReport) -> Facts | None:
    if report.part is report.stream:
        return None
    return {
        "shards": len(report.part.shards),
        "documents": report.part.documents,
        "tokens": report.part.tokens,
        "share_of_tokens": report.part.tokens / max(1, report.stream.tokens),
    }


def _packing_facts(packed: PackedRows | None) -> Facts | None:
    if packed is None:
        return None
    names = ("seq_len", "rows", "tokens", "fill", "longer", "keeps_95")
    return {name: getattr(packed, name) for name in names}


def _start_first(transitions: np.ndarray) -> np.ndarray:
    return np.roll(transitions, 1, axis=0)


def _whole(value: float) -> float | int:
    return int(value) if value == int(value) else value
