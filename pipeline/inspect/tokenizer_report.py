"""A tokenizer's report: its configuration and fit, samples before and after, codebook or pieces.

The samples are those that come with plait, the same for every tokenizer, so reports can be
compared; samples that were held out of a fit are in the `report.html` that the fit left.
"""

import heapq
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from plait.pipeline.inspect import page
from plait.pipeline.inspect.atlas import Atlas, make_atlas
from plait.pipeline.inspect.charts import colour, histogram
from plait.pipeline.inspect.examples import drawn_pieces, examples
from plait.pipeline.inspect.markup import Markup, tag
from plait.pipeline.inspect.token_pieces import Pieces, pieces_of, visible
from plait.pipeline.tables import print_table
from plait.tokenizers.base import Encoded, Raw, Tokenizer, Waveform, load_tokenizer
from plait.tokenizers.errors import PlaitError

SENTENCES = (
    "The quick brown fox jumps over the lazy dog, 1,024 times in 3.5 seconds.",
    "Zwölf Boxkämpfer jagen Viktor; être ou ne pas être; Привет, мир; 你好，世界 \U0001f44b",
    "def area(r):\n\treturn math.pi * r ** 2  # https://example.org",
)
"""What text and byte tokenizers are shown with."""
MEDIA = {"image": ("images", "*.png"), "speech": ("speech", "*.flac")}
SHOWN = 6
"""Samples of pictures and sounds."""
MOST_PIECES = 30
"""Longest and shortest pieces that are named."""
MOST_CHARACTERS = 2000
"""Of a value in the table of facts: a curve may have hundreds of points."""
BYTE = re.compile("<0x[0-9A-F]{2}>")
"""The name of a piece that is a byte."""


@dataclass(frozen=True)
class TokenizerReport:
    """A tokenizer's folder, read."""

    path: Path
    tokenizer: Tokenizer
    report: Mapping[str, Any]
    """Of its fit; empty where there is none."""
    config: Mapping[str, object]

    @classmethod
    def read(cls, path: Path) -> "TokenizerReport":
        """ConfigError if there is no tokenizer."""
        tokenizer = load_tokenizer(path)
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        file = path / "report.json"
        report = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return cls(path, tokenizer, report if isinstance(report, dict) else {}, config)

    @property
    def facts(self) -> dict[str, object]:
        """What `--json` prints."""
        return {
            "kind": self.config["kind"],
            "modality": self.tokenizer.modality,
            "vocab_size": self.tokenizer.vocab_size,
            "fingerprint": self.tokenizer.fingerprint,
            "config": {k: v for k, v in self.config.items() if k != "kind"},
            "report": self.report,
        }

    @cached_property
    def pairs(self) -> list[tuple[Raw, Encoded]]:
        """The samples that come with plait, and their tokens."""
        return list(_encoded(self.tokenizer, samples_for(self.tokenizer.modality)))

    @cached_property
    def atlas(self) -> Atlas | None:
        """Of an image codebook."""
        return make_atlas(self.tokenizer)

    @property
    def page_data(self) -> dict[str, object]:
        """What the page's script needs."""
        return {"atlases": [] if self.atlas is None else [self.atlas.data]}

    def sections(self) -> list[Markup]:
        """The sections of its page."""
        size = f"{self.tokenizer.vocab_size:,}"
        body = [page.facts({"modality": self.tokenizer.modality, "vocabulary": size})]
        if self.figures:
            body += [page.section("Measured by its fit", "On held-out samples.")]
            body += [page.facts(self.figures)]
        if self.pairs:
            held_out = (self.path / "report.html").is_file()
            words = "The samples that come with plait, the same for every tokenizer."
            words += " Held-out samples of its fit are in its report.html." if held_out else ""
            title = "Its tokens" if _spelled(self.tokenizer) else "Before and after"
            body += [page.section(title, words), examples(self.tokenizer, self.pairs)]
        body += [page.atlas_section(self.atlas)] if self.atlas is not None else []
        if self.tokenizer.modality == "text":
            body += piece_sections(self.tokenizer)
        rows = list(flat(self.facts))
        return [
            *body,
            page.section("All facts", ""),
            page.table(["Fact", "Value"], rows, class_="words"),
        ]

    def show(self, console: Console) -> None:
        """The same in the terminal."""
        console.print(Text(f"tokenizer {self.path}", style="bold"))
        print_table(console, ["Fact", "Value"], flat(self.facts))
        if _spelled(self.tokenizer):
            for _, encoded in self.pairs:
                console.print()
                console.print(bordered(pieces_of(self.tokenizer, encoded)))
        elif self.pairs:
            rows = [_media_row(self.tokenizer, i, *pair) for i, pair in enumerate(self.pairs, 1)]
            print_table(
                console, ["Sample", "Tokens", "PSNR of what they decode to"][: len(rows[0])], rows
            )
        if names := piece_names(self.tokenizer) if self.tokenizer.modality == "text" else {}:
            found = longest_and_shortest(names)
            spelled = ("  ".join(visible(name) for _, name in some) for some in found)
            table = [list(row) for row in zip(("longest", "shortest"), spelled, strict=True)]
            print_table(console, ["Pieces", ""], table)

    @property
    def figures(self) -> dict[str, str]:
        """What its fit measured."""
        found = self.report.get("metrics")
        metrics = found if isinstance(found, Mapping) else {}
        return {
            str(name).replace("_", " "): f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
            for name, value in metrics.items()
            if isinstance(value, (int, float))
        }


def samples_for(modality: str) -> Iterator[Raw]:
    """Some of the samples that come with plait."""
    from plait.pipeline.demo import SAMPLE_DATA
    from plait.tokenizers.media import read_audio, read_image

    if modality in ("text", "bytes"):
        yield from (s if modality == "text" else s.encode() for s in SENTENCES)
        return
    folder, pattern = MEDIA.get(modality, ("", ""))
    files = sorted((SAMPLE_DATA / folder).glob(pattern)) if folder else []
    for file in files[:: max(1, len(files) // SHOWN)][:SHOWN]:
        yield read_image(file) if modality == "image" else read_audio(file)


def piece_sections(tokenizer: Tokenizer) -> list[Markup]:
    """How long a text tokenizer's pieces are, and the longest and shortest."""
    names = piece_names(tokenizer)
    if not names:
        return []
    lengths, counts = np.unique([len(name) for name in names.values()], return_counts=True)
    chart = histogram(lengths, counts, colour=colour("text"), unit="characters")
    drawn = [tag("figure", tag("h3", "Characters in a piece"), tag("div", chart, class_="small"))]
    style = f"--c:{colour('text')}"
    for title, found in zip(("Longest", "Shortest"), longest_and_shortest(names), strict=True):
        spelled = Pieces(pieces=[visible(name) for _, name in found], ids=[[i] for i, _ in found])
        drawn.append(
            tag("figure", tag("h3", title), drawn_pieces(spelled), style=style, class_="apart")
        )
    words = f"{len(names):,} pieces; single bytes are left out, and \u2581 is a space."
    return [page.section("Pieces", words), tag("div", *drawn, class_="pairs")]


def piece_names(tokenizer: Tokenizer) -> dict[int, str]:
    """How the pieces of a text tokenizer read, by id, but for those that are a byte."""
    piece = getattr(tokenizer, "piece", None)
    if piece is None:
        return {}
    names = ((i, str(piece(i))) for i in range(tokenizer.vocab_size))
    return {i: name for i, name in names if name and not BYTE.fullmatch(name)}


def longest_and_shortest(
    names: Mapping[int, str],
) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """Ids and names of the longest pieces and of the shortest, some of each."""
    longest = heapq.nsmallest(MOST_PIECES, names.items(), key=lambda e: (-len(e[1]), e[0]))
    return longest, heapq.nsmallest(MOST_PIECES, names.items(), key=lambda e: (len(e[1]), e[0]))


def bordered(pieces: Pieces) -> Text:
    """Text or bytes for the terminal, with a stroke between tokens or patches."""
    drawn = Text()
    for i, piece in enumerate(pieces.pieces):
        drawn.append("\u2502" if i else "", style="dim")
        drawn.append(piece.replace(" ", "\u00b7"), style="bold" if i % 2 else "")
    return drawn.append(f"  ({pieces.note})" if pieces.note else "", style="dim")


def flat(facts: Mapping[str, object], prefix: str = "") -> list[list[str]]:
    """Nested facts as rows of a dotted name and a value."""
    rows: list[list[str]] = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            rows += flat(value, f"{prefix}{name}.")
        else:
            shown = (
                f"{value:,}"
                if isinstance(value, int)
                else f"{value:.6g}"
                if isinstance(value, float)
                else str(value)
            )
            rows.append([f"{prefix}{name}", clipped(shown)])
    return rows


def clipped(text: str) -> str:
    """A value that a table has room for."""
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} ..."


def _spelled(tokenizer: Tokenizer) -> bool:
    return tokenizer.modality in ("text", "bytes")


def _encoded(tokenizer: Tokenizer, raws: Iterator[Raw]) -> Iterator[tuple[Raw, Encoded]]:
    for raw in raws:
        with suppress(PlaitError):
            yield raw, tokenizer.encode_batch([raw])[0]


def _media_row(tokenizer: Tokenizer, number: int, raw: Raw, encoded: Encoded) -> list[str]:
    """A picture or sound in a line: its size, its tokens, how near what they decode to is."""
    tokens = f"{len(encoded.ids):,}"
    if isinstance(raw, Waveform):
        return [f"sound {number}, {len(raw.samples) / raw.sample_rate_hz:.1f} s", tokens]
    size = f"picture {number}, {getattr(raw, 'width', 0)} x {getattr(raw, 'height', 0)}"
    seen, decoded = getattr(tokenizer, "to_pixels", None), getattr(tokenizer, "decodes", True)
    if seen is None or not decoded:
        return [size, tokens]
    before_3HW = np.asarray(seen(raw), np.float64)
    after_3HW = np.asarray(tokenizer.decode(encoded), np.float64).transpose(2, 0, 1)
    error = np.mean((before_3HW - after_3HW) ** 2)
    return [size, tokens, f"{10 * np.log10(255**2 / max(error, 1e-9)):.1f} dB"]
