"""The sections of a stream's page. All that is drawn is bounded, whatever the stream."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from plait.pipeline.inspect import stream_tables as tables
from plait.pipeline.inspect.charts import (
    DASHES,
    Line,
    colour,
    histogram,
    line_chart,
    stacked_bar,
    swatch,
)
from plait.pipeline.inspect.markup import Markup, join, tag
from plait.pipeline.inspect.page import facts, packed_batch, section, table
from plait.pipeline.inspect.statistics import ModalityStatistics
from plait.pipeline.inspect.stream_report import StreamReport, transition_facts

if TYPE_CHECKING:
    from plait.pipeline.inspect.batch_view import BatchView


def sections(report: StreamReport, view: "BatchView | None") -> list[Markup]:
    """What a stream's page shows below its alerts."""
    statistics = report.counts.modalities
    present = {name: s for name, s in statistics.items() if s.tokens}
    body = [facts({name: f"{value:,}" for name, value in report.totals.items()})]
    body += [tag("p", report.sample)] if report.sample else []
    body += [section("By modality", "Tokens, and how evenly each vocabulary is used.")]
    body += [stacked_bar([(name, s.tokens) for name, s in present.items()])]
    body += [table(*tables.modality_table(statistics), swatches=True)]
    if view is not None:
        body += [packed_batch(view)]
    if packing := tables.packing_facts(report):
        words = "Exact, of a whole epoch: best fit, text cut to fill, markers counted."
        body += [section("Rows", words), facts(packing)]
    body += [section("Lengths", "Tokens in a span: a caption, a picture, an utterance, a text.")]
    body += [tag("div", *(_lengths(name, s) for name, s in present.items()), class_="small")]
    body += _rates(report)
    body += [section("Code use", "How often each id occurs, the most used first: flat is even.")]
    body += [tag("figure", _code_use(present), class_="wide")]
    body += [table(*tables.id_table(report), class_="words")]
    words = "Which modality follows which inside a document; each row's shares are shaded."
    body += [section("Transitions", words), _transitions(report)]
    return [*body, *_duplicates(report), *_rejected(report), *_tokenizers(report)]


def _rates(report: StreamReport) -> list[Markup]:
    header, rows = tables.rate_table(report)
    if not rows:
        return []
    words = "What a token stands for; sampled figures are of some documents only."
    return [section("Rates", words), table(header, rows, class_="words")]


def _duplicates(report: StreamReport) -> list[Markup]:
    header, rows = tables.duplicate_table(report)
    words = section("Duplicates", tables.duplicate_words(report))
    return [words, table(header, rows, class_="words")] if rows else [words]


def _rejected(report: StreamReport) -> list[Markup]:
    header, rows = tables.rejected_table(report)
    words = "Set aside with their reason in rejected.jsonl."
    if not rows:
        return []
    return [section("Rejected samples", words), table(header, rows, class_="words")]


def _tokenizers(report: StreamReport) -> list[Markup]:
    words = "A tokenizer with this fingerprint gives these ids."
    header, rows = tables.tokenizer_table(report)
    return [section("Tokenizers", words), table(header, rows, class_="words")]


def _lengths(name: str, s: ModalityStatistics) -> Markup:
    values, counts = s.length_histogram()
    chart = histogram(values, counts, colour=colour(name), unit="tokens")
    return tag("figure", tag("h3", swatch(name), name), chart)


def _code_use(statistics: Mapping[str, ModalityStatistics]) -> Markup:
    lines = []
    for name, s in statistics.items():
        x, y = s.use_curve()
        lines.append(Line(name=name, x=x, y=y, colour=colour(name), dash=DASHES.get(name)))
    label = "share of the vocabulary, %"
    return line_chart(lines, x_label=label, y_label="times used", log_y=True)


def _transitions(report: StreamReport) -> Markup:
    """Counts with each cell shaded by its share of the row; the figure stands in it."""
    counts = transition_facts(report)
    header, rows = tables.transition_table(report)
    drawn = []
    for before, *cells in rows:
        total = sum(counts[before].values()) or 1
        shares = [counts[before][after] / total for after in header[1:]]
        shaded = (
            tag("td", cell, title=f"{share:.1%}", style=_shade(share))
            for cell, share in zip(cells, shares, strict=True)
        )
        drawn.append(tag("tr", tag("th", _marked(before), scope="row"), *shaded))
    head = tag("tr", *(tag("th", _marked(word), scope="col") for word in header))
    return tag("div", tag("table", tag("thead", head), tag("tbody", *drawn)), class_="scroll")


def _shade(share: float) -> str | None:
    if not share:
        return None
    percent = f"{8 + 42 * share:.0f}%"
    return f"background:color-mix(in oklab,{colour('text')} {percent},transparent)"


def _marked(word: str) -> Markup:
    plain = word in ("start", "end", "From / to")
    return join(word) if plain else join(swatch(word), word)
