"""`_repr_html_` of batches and streams: well-formed, escaped, bounded, and true to the counts."""

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from playwright.sync_api import Browser

from plait.pipeline.batch import Batch
from plait.pipeline.inspect import notebook
from plait.pipeline.loader import Loader
from plait.pipeline.rows import Rows
from plait.pipeline.stream import Stream

from ..made_stream import random_stream
from .browser import assert_named, assert_readable, table_of, visit

HOSTILE = "</style><script>window.owned=1</script><img src=x onerror='window.owned=1'>\u202e\x00"
VOID = {"br", "col", "hr", "img", "meta"}


class Balanced(HTMLParser):
    """Asserts that every element ends where it should; counts elements and keeps the words."""

    def __init__(self, fragment: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: list[str] = []
        self.titles: list[str] = []
        self.words = ""
        self.feed(fragment)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        assert not [name for name, _ in attrs if name.startswith("on") or name in ("src", "href")]
        self.titles += [value or "" for name, value in attrs if name == "title"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words += f"{data}\n"


def packed(folder: Path, documents: int = 60) -> tuple[Stream, Batch]:
    stream, _ = random_stream(folder, documents=documents)
    return stream, next(iter(Loader(Rows(stream, seq_len=256), batch_size=4)))


def test_batch_says_what_it_holds(tmp_path: Path):
    """Its numbers are those of a count by numpy, and its spans cover the rows."""
    _, batch = packed(tmp_path)
    shown = Balanced(batch._repr_html_())
    modality, document = batch.modality_BT.numpy(), batch.document_BT.numpy()
    kept = document >= 0
    targets = np.where(batch.loss_mask_BT.numpy()[:, :-1], modality[:, 1:], 255)
    cells = shown.words.split("\n")
    for number, name in enumerate(batch.modalities):
        tokens = int(((modality == number) & kept).sum())
        row = cells[cells.index("Targets") :]
        found = row[row.index(name) + 1 : row.index(name) + 4]
        assert found == [
            f"{tokens:,}",
            f"{tokens / kept.sum():.1%}",
            f"{(targets == number).sum():,}",
        ]
    assert f"{kept.mean():.1%}" in cells and f"{len(batch.tokens_BT)}" in cells
    assert f"{sum(len(set(row[row >= 0])) for row in document):,}" in cells
    spans = [title.split(": ")[1].split(" ") for title in shown.titles if "from" in title]
    assert sum(int(words[0].replace(",", "")) for words in spans) == batch.tokens_BT.numel()
    assert not {"script", "link", "iframe", "button"} & set(shown.names)


def test_large_batch_is_bounded():
    """Of many rows with a span at every position, only the first are drawn, and it says so."""
    B, T = 300, 4096
    document_BT = torch.arange(T, dtype=torch.int32).expand(B, T)
    batch = Batch(
        tokens_BT=torch.zeros(B, T, dtype=torch.int64),
        modality_BT=(document_BT % 3).to(torch.uint8),
        document_BT=document_BT,
        position_BT=torch.zeros(B, T, dtype=torch.int32),
        loss_mask_BT=torch.zeros(B, T, dtype=torch.bool),
        modalities=("text", "image", HOSTILE),
    )
    html = batch._repr_html_()
    shown = Balanced(html)
    assert len(html) < 400_000
    assert "script" not in shown.names and "img" not in shown.names
    assert f"The first {notebook.MOST_ROWS} of 300 rows" in shown.words
    assert f"{T - notebook.MOST_SPANS:,} more spans are not drawn" in shown.titles
    assert f"{B * (T // 3):,}" in shown.words
    assert "\\u202e\\u0000" in shown.words
    nothing = replace(batch, document_BT=torch.full_like(document_BT, -1))
    assert "0.0%" in Balanced(nothing._repr_html_()).words


def test_stream_says_what_it_holds(tmp_path: Path):
    stream, made = random_stream(tmp_path, documents=40)
    shown = Balanced(stream._repr_html_())
    cells = shown.words.split("\n")
    for name in ("text", "image", "speech", "bytes"):
        lengths = [
            len(e.ids)
            for d in made
            for number, e in d.spans
            if stream.tokenizers[number].name == name
        ]
        row = cells[cells.index("Fingerprint") :]
        found = row[row.index(name) + 1 : row.index(name) + 4]
        share = f"{sum(lengths) / stream.tokens:.1%}"
        assert found == [f"{sum(lengths):,}", share, f"{len(lengths):,}"]
    assert f"The first {notebook.MOST_ROWS} of 40 documents" in shown.words
    first = [t for t in shown.titles if t.startswith("span ")]
    assert len(first) == sum(len(stream.document(i).spans) for i in range(notebook.MOST_ROWS))
    next(tmp_path.glob("*.tar")).unlink()
    assert "cannot be read" in Balanced(Stream(tmp_path)._repr_html_()).words


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fragments_in_a_notebook(browser: Browser, tmp_path: Path, scheme: str):
    """They are readable beside others' words, and leave the style of those alone."""
    stream, batch = packed(tmp_path / "stream")
    around = "<!doctype html><html lang=en><title>Notebook</title><h1>Mine</h1><h2>Too</h2>"
    around += "<table><tr><th scope=col>mine<tr><td>1</table><p class=quiet>words <code>x</code>"
    styles = """[...document.querySelectorAll("h1, h2, table, td, p, code")]
        .filter(e => !e.closest(".plait")).map(e => getComputedStyle(e)).map(s =>
          [s.color, s.backgroundColor, s.font, s.margin, s.padding, s.textAlign].join())"""
    file = tmp_path / "notebook.html"
    file.write_text(around, encoding="utf-8")
    with visit(browser, file, scheme=scheme) as seen:
        before = seen.page.evaluate(styles)
        assert len(before) > 4
    file.write_text(f"{around}</p>{stream._repr_html_()}{batch._repr_html_()}", encoding="utf-8")
    for width in (1280, 400):
        with visit(browser, file, scheme=scheme, width=width, scripts=False) as seen:
            assert seen.page.evaluate(styles) == before
            assert_readable(seen.page)
            assert_named(seen.page)
            assert len(table_of(seen.page, "Modality", "Targets")) == 1 + len(batch.modalities)
            ground = seen.page.locator(".plait").first.evaluate(
                "e => getComputedStyle(e).backgroundColor"
            )
            assert ground == ("rgb(20, 22, 26)" if scheme == "dark" else "rgb(251, 250, 247)")
            bar = seen.page.locator(".plait .bar").last
            assert bar.bounding_box()["height"] > 15 and bar.bounding_box()["width"] > 150
    dark = f"<!doctype html><title>x</title><body class=vscode-dark>{batch._repr_html_()}"
    file.write_text(dark, encoding="utf-8")
    with visit(browser, file, scheme=scheme) as seen:
        ground = seen.page.locator(".plait").evaluate("e => getComputedStyle(e).backgroundColor")
        assert ground == "rgb(20, 22, 26)"
