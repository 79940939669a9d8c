"""A stream's figures as tables, header and rows, the same in the terminal and on the page."""

import math
from collections.abc import Mapping

from plait.pipeline.inspect.statistics import ModalityStatistics
from plait.pipeline.inspect.stream_report import StreamReport, transition_facts
from plait.pipeline.tables import printable

Table = tuple[list[str], list[list[str]]]


def modality_table(statistics: Mapping[str, ModalityStatistics]) -> Table:
    """How much there is of each modality, and how evenly its vocabulary is used."""
    header = ["Modality", "Tokens", "Spans", "Documents", "Codes used", "Perplexity"]
    header += ["Entropy, bits", "Length min", "median", "p95", "max"]
    rows = []
    for name, s in statistics.items():
        used = f"{s.codes_used:,} of {s.vocab_size:,}"
        bits = s.entropy_nats / math.log(2)
        lengths = [f"{s.length(q):,.0f}" for q in (0, 0.5, 0.95, 1)]
        counts = [f"{n:,}" for n in (s.tokens, s.spans, s.documents)]
        rows.append([name, *counts, used, f"{s.perplexity:,.1f}", f"{bits:.2f}", *lengths])
    return header, rows


def rate_table(report: StreamReport) -> Table:
    """What a token stands for."""
    rows = [
        [r.modality, r.name, f"{r.value:,.2f}", f"{r.source}{', sampled' if r.sampled else ''}"]
        for r in report.rates
    ]
    return ["Modality", "Rate", "Value", "Out of"], rows


def id_table(report: StreamReport, most: int = 10) -> Table:
    """The ids that occur most and least, with their counts."""
    rows = []
    for name, s in report.counts.modalities.items():
        for which, ids in (("most", s.most_used(most)), ("least", s.least_used(most))):
            if ids:
                rows.append([name, which, ", ".join(f"{i} ({n:,})" for i, n in ids)])
    return ["Modality", "Used", "Ids and how often they occur"], rows


def transition_table(report: StreamReport) -> Table:
    """Which modality follows which inside documents; rows and columns of nothing are left out."""
    found = transition_facts(report)
    kept = [name for name in next(iter(found.values())) if any(r[name] for r in found.values())]
    rows = [
        [before, *(f"{row[name]:,}" if row[name] else "-" for name in kept)]
        for before, row in found.items()
        if any(row.values())
    ]
    return ["From / to", *kept], rows


def duplicate_table(report: StreamReport) -> Table:
    """The largest groups of documents that hold the same."""
    rows = []
    for group in report.repeats.largest:
        rest = group.documents - len(group.keys)
        keys = ", ".join(map(printable, group.keys)) + (f" and {rest:,} more" if rest else "")
        rows.append([f"{group.documents:,}", f"{group.tokens:,}", keys])
    return ["Documents", "Tokens each", "The same"], rows


def rejected_table(report: StreamReport) -> Table:
    """Samples that became no document."""
    return ["Rejected because", "Samples"], [
        [printable(r), f"{n:,}"] for r, n in report.rejected.items()
    ]


def tokenizer_table(report: StreamReport) -> Table:
    """What gives these ids."""
    infos = report.stream.tokenizers
    rows = [[t.name, t.modality, f"{t.vocab_size:,}", t.fingerprint] for t in infos]
    return ["Tokenizer", "Modality", "Vocabulary", "Fingerprint"], rows


def packing_facts(report: StreamReport) -> dict[str, str]:
    """How documents fill rows, as named figures; empty if there is nothing to pack."""
    packed = report.packed
    if packed is None:
        return {}
    return {
        "tokens in a row": f"{packed.seq_len:,}",
        "rows": f"{packed.rows:,}",
        "rows filled": f"{packed.fill:.1%}",
        "longer documents": f"{packed.longer:,} of {packed.documents:,}",
    }


def duplicate_words(report: StreamReport) -> str:
    """How many documents are there more than once."""
    repeats, documents = report.repeats, report.part.documents
    if not repeats.documents:
        return f"None of {documents:,} documents holds the same as another."
    return (
        f"{repeats.documents:,} of {documents:,} documents are copies of {repeats.groups:,} "
        "others: the same tokenizers, lengths and ids."
    )
