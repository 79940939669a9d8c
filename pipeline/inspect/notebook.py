"""Batches and streams as notebooks draw them: a fragment of HTML without scripts.

It has the page's style, nested under one class so that it reaches nothing else in the notebook, and
follows the notebook's theme. What is drawn is bounded and says what it leaves out; the counts are
those of the whole, a stream's from `stream.json` alone.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import TYPE_CHECKING

from plait.pipeline.inspect import page
from plait.pipeline.inspect.charts import colour, stacked_bar
from plait.pipeline.inspect.markup import Markup, tag
from plait.tokenizers.errors import PlaitError

if TYPE_CHECKING:
    from plait.pipeline.batch import Batch
    from plait.pipeline.stream import Document, Stream

MOST_ROWS = 16
"""Rows of a batch, or documents of a stream, that are drawn."""
MOST_SPANS = 64
"""Spans of a row that are drawn."""
MOST_KEY = 60
"""Characters of a document's key."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One piece of a bar; without a modality it is empty or left out."""

    n: int
    modality: str | None
    title: str
    tint: int = 0


def batch_html(batch: "Batch") -> str:
    """Counts by modality, then the first rows, each span in its modality's colour."""
    rows, seq_len = batch.tokens_BT.shape
    totals = {"rows": f"{rows:,}", "positions": f"{seq_len:,}", "filled": f"{batch.fill:.1%}"}
    documents = (batch.document_BT.max(1).values + 1).sum() if seq_len else 0
    totals["documents"] = f"{int(documents):,}"
    totals |= {"step": f"{batch.step:,}"} if batch.step >= 0 else {}
    tokens, header, counts = _batch_counts(batch)
    first = _first_rows(batch)
    bars: dict[int, list[Drawn]] = {row: [] for row in range(len(first.tokens_BT))}
    for row, start, stop, modality, document in first.spans():
        name = None if document < 0 else batch.modalities[modality]
        what = "padding" if name is None else f"document {document}, {name}"
        title = f"{what}: {stop - start:,} tokens from {start:,}"
        bars[row].append(Drawn(n=stop - start, modality=name, title=title, tint=document % 3))
    note = f"The first {len(bars)} of {rows:,} rows; tint is the document, markers count as text."
    drawn = [_row(str(row), _bounded(bar)) for row, bar in bars.items()]
    return _fragment("Batch", totals, tokens, header, counts, note, drawn)


def _batch_counts(batch: "Batch") -> tuple[dict[str, int], list[str], list[list[str]]]:
    """Tokens by their modality; header and rows of these, and of targets by theirs."""
    masks_MBT, target_BT = batch.modality_masks, batch.target_modality_BT
    total = max(int((~batch.padding_BT).sum()), 1)
    tokens = {name: int(masks_MBT[m].sum()) for m, name in enumerate(batch.modalities)}
    rows = []
    for m, (name, n) in enumerate(tokens.items()):
        targets = int((batch.loss_mask_BT & (target_BT == m)).sum())
        rows.append([name, f"{n:,}", f"{n / total:.1%}", f"{targets:,}"])
    return tokens, ["Modality", "Tokens", "Share", "Targets"], rows


def _first_rows(batch: "Batch") -> "Batch":
    cut = {
        name: getattr(batch, name)[:MOST_ROWS].cpu()
        for name in ("tokens_BT", "modality_BT", "document_BT", "position_BT", "loss_mask_BT")
    }
    return replace(batch, **cut, patch_start_BT=None)


def stream_html(stream: "Stream") -> str:
    """Counts by modality, then the first documents with their spans."""
    totals = {
        "documents": f"{stream.documents:,}",
        "rejected": f"{stream.rejected:,}",
        "shards": f"{len(stream.shards):,}",
        "tokens": f"{stream.tokens:,}",
        "bytes": f"{stream.bytes:,}",
    }
    tokens, spans = Counter(), Counter()
    for shard in stream.shards:
        tokens.update(shard.tokens)
        spans.update(shard.spans)
    rows = []
    for info in stream.tokenizers:
        n, share = tokens[info.modality], tokens[info.modality] / max(stream.tokens, 1)
        counts = [f"{n:,}", f"{share:.1%}", f"{spans[info.modality]:,}", f"{info.vocab_size:,}"]
        rows.append([info.modality, *counts, info.fingerprint[:12]])
    header = ["Modality", "Tokens", "Share", "Spans", "Vocabulary", "Fingerprint"]
    drawn, note = _first_documents(stream)
    shown = {info.modality: tokens[info.modality] for info in stream.tokenizers}
    return _fragment("Stream", totals, shown, header, rows, note, drawn)


def _first_documents(stream: "Stream") -> tuple[list[Markup], str]:
    if "://" in stream.url:
        return [], f"At {stream.url}; documents are not fetched to be drawn."
    try:
        documents = [stream.document(i) for i in range(min(stream.documents, MOST_ROWS))]
    except PlaitError as error:
        return [], f"Documents cannot be read: {error}"
    drawn = [_row(_short(d.key), _bounded(_document(d))) for d in documents]
    return drawn, f"The first {len(drawn)} of {stream.documents:,} documents, each as wide."


def _document(document: "Document") -> Iterator[Drawn]:
    for number, span in enumerate(document.spans):
        title = f"span {number}, {span.modality}: {len(span.ids):,} tokens"
        yield Drawn(n=len(span.ids), modality=span.modality, title=title)


def _bounded(bar: Iterable[Drawn]) -> list[Drawn]:
    """The first pieces of a bar, and one for all others."""
    pieces = list(bar)
    kept, rest = pieces[:MOST_SPANS], pieces[MOST_SPANS:]
    if rest:
        title = f"{len(rest):,} more spans are not drawn"
        kept.append(Drawn(n=sum(p.n for p in rest), modality=None, title=title))
    return kept


def _row(name: str, bar: list[Drawn]) -> Markup:
    pieces = [
        tag("span", class_="pad", style=f"flex:{piece.n}", title=piece.title)
        if piece.modality is None
        else tag(
            "span",
            class_=f"span tint{piece.tint}",
            style=f"flex:{piece.n};--c:{colour(piece.modality)}",
            title=piece.title,
        )
        for piece in bar
    ]
    label = "; ".join(f"{p.modality or 'empty'} {p.n:,}" for p in bar[:8])
    drawn = tag("span", *pieces, class_="bar", role="img", aria_label=label)
    return tag("div", tag("span", name, class_="n"), drawn, class_="row")


def _fragment(
    title: str,
    totals: dict[str, str],
    tokens: dict[str, int],
    header: list[str],
    counts: list[list[str]],
    note: str,
    drawn: list[Markup],
) -> str:
    return tag(
        "div",
        tag("style", _style()),
        tag("div", title, class_="title"),
        page.facts(totals),
        stacked_bar([(name, n) for name, n in tokens.items() if n]),
        page.table(header, counts, swatches=True),
        tag("p", note, class_="quiet"),
        tag("div", *drawn, class_="rows"),
        class_="plait",
    )


def _style() -> Markup:
    """The page's style for what lies in an element of class `plait`, by CSS nesting."""
    template = files("plait.pipeline.inspect").joinpath("page.html").read_text(encoding="utf-8")
    style = template.partition("<style>")[2].partition("</style>")[0]
    for whole in (":root {", "body {"):
        style = style.replace(f"\n{whole}", "\n& {")
    return Markup(f".plait {{{style}}}\n{_OWN}")


_OWN = """.plait { padding: 12px 16px; max-width: 1120px; border: 1px solid var(--rule); }
.plait .title { font-weight: 600; }
.plait .facts { margin: 8px 0 0; }
.plait .rows { min-width: 0; }
.plait .row .n { width: 18ch; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.plait .span { cursor: default; }
body:is([data-jp-theme-light="true"], .vscode-light) .plait { color-scheme: light; }
body:is([data-jp-theme-light="false"], .vscode-dark) .plait { color-scheme: dark; }
"""


def _short(key: str) -> str:
    return key if len(key) <= MOST_KEY else f"{key[:MOST_KEY]}..."
