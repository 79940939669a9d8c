"""A packed batch that a run held out, each position coloured by the model's loss on its token.

Under each row that is coloured by modality stands the same row by loss: nats of a token given those
before it, on a ramp of one hue; what is no target (padding, <bos>, what is only read) is hatched.
The model is reached by its module's name, for the pipeline does without models; it is imported when
a page of a run is made, and runs on the CPU over a few rows.
"""

import importlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Protocol

import numpy as np

from plait.pipeline.inspect import page, row_bar
from plait.pipeline.inspect.batch_view import BatchView
from plait.pipeline.inspect.content import piece_sizes
from plait.pipeline.inspect.heat import LEVELS, level, ramp
from plait.pipeline.inspect.markup import Markup, tag
from plait.pipeline.inspect.row_spans import Piece, pieces
from plait.pipeline.row import Row
from plait.pipeline.rows import Rows
from plait.pipeline.tables import printable
from plait.pipeline.vocabulary import Vocabulary
from plait.tokenizers.base import Encoded, Tokenizer
from plait.tokenizers.errors import PlaitError

MODULE = "plait.models.evaluation.token_losses"
MOST_ROWS, MOST_TOKENS = 4, 4096
HIGHEST = 5
"""Tokens of each modality, and of each span of text, that are named."""


class HeldOut(Protocol):
    """What `models/evaluation/token_losses.py` opens."""

    @property
    def step(self) -> int:
        """Of the checkpoint."""
        ...

    @property
    def apart(self) -> bool:
        """Whether the rows were held out."""
        ...

    @property
    def rows(self) -> Rows:
        """What the run validates on."""
        ...

    def tokenizer(self, name: str) -> Tokenizer:
        """One of the run's tokenizers."""
        ...

    def nats(self, numbers: Sequence[int]) -> np.ndarray:
        """Of the tokens of some rows [B, T]; NaN where one is no target."""
        ...


@dataclass(frozen=True, kw_only=True)
class Token:
    """A token and its loss."""

    nats: float
    row: int
    position: int
    text: str


def sections(run: Path) -> tuple[list[Markup], BatchView | None]:
    """The sections of a run's page, and what its script needs; why there is none, if so."""
    title = "A packed batch by loss"
    if not any(run.glob("checkpoints/step-*")):
        return [page.section(title, "Not drawn: there is no checkpoint yet.")], None
    try:
        held_out: HeldOut = importlib.import_module(MODULE).HeldOut.open(run)
        found = LossView(held_out)
    except (PlaitError, OSError) as error:
        return [page.section(title, f"Not drawn: {printable(str(error), 300)}.")], None
    return [page.section(title, found.words), *found.sections()], found.view


class LossView:
    """Some held-out rows and the losses of their tokens."""

    def __init__(self, held_out: HeldOut) -> None:
        self.held_out, self.rows = held_out, held_out.rows
        self._tokenizers: dict[str, Tokenizer] = {}
        count = min(MOST_ROWS, max(1, MOST_TOKENS // self.rows.seq_len))
        self.view = BatchView(self.rows, self._tokenizer, count)
        self.nats = dict(zip(self.view.numbers, held_out.nats(self.view.numbers), strict=True))
        """By number of the row, [T]; NaN where a token is no target."""
        scored = np.concatenate([nats[np.isfinite(nats)] for nats in self.nats.values()])
        self.top = float(math.ceil(np.quantile(scored, 0.99))) if scored.size else 1.0
        """Nats at the ramp's upper end."""
        self._highest: dict[str, list[Token]] = {m: [] for m in self.rows.vocabulary.modalities}
        strips = []
        for at, number in enumerate(self.view.numbers):
            row = self.rows[number]
            strips.append(_strip(number, row, self.rows.vocabulary, self.nats[number], self.top))
            self._tell(at, number, row)
        pairs = [bar for pair in zip(self.view.bars, strips, strict=True) for bar in pair]
        self.markup = tag("div", *pairs, class_="rows", role="group", aria_label="Packed rows")

    @property
    def words(self) -> str:
        """What is drawn."""
        which = "held out" if self.held_out.apart else "trained on, for none are held out"
        return (
            f"Rows of documents that were {which}, by modality and below it by the loss of each "
            f"token, given what stands before it, after step {self.held_out.step:,}. Hatched is "
            "what is no target. Choose a span to see what it decodes to, its tokens on the same "
            "scale."
        )

    def sections(self) -> list[Markup]:
        """The ramp, the rows, the panel of a span, and tables of losses."""
        region = {"role": "region", "aria_live": "polite", "aria_label": "The chosen document"}
        header = ["Modality", "Tokens", "Mean, nats", "Median, nats"]
        return [
            row_bar.legend(list(self.view.colours)),
            ramp("0 nats", f"{self.top:.0f} nats a token and more"),
            tag("div", self.markup, class_="scroll"),
            tag("div", id="panel", **region),
            page.section("Loss in these rows", "Markers and <eos> count as text."),
            page.table(header, self.summary(), swatches=True),
            tag("p", "The highest, with their row and position:"),
            page.table(["Modality", "Tokens"], self.highest(), swatches=True, class_="words"),
        ]

    def summary(self) -> list[list[str]]:
        """Losses of these rows by the token's modality."""
        nats_N = np.concatenate([self.nats[n] for n in self.view.numbers])
        tokens_N = np.concatenate([self.rows[n].tokens for n in self.view.numbers])
        modality_N = self.rows.vocabulary.modality_of(tokens_N)
        rows = []
        for m, name in enumerate(self.rows.vocabulary.modalities):
            own = nats_N[(modality_N == m) & np.isfinite(nats_N)]
            if own.size:
                rows.append([name, f"{own.size:,}", f"{own.mean():.4f}", f"{np.median(own):.4f}"])
        return rows

    def highest(self) -> list[list[str]]:
        """The tokens of each modality with the highest losses."""
        rows = []
        for name, found in self._highest.items():
            tokens = sorted(found, key=lambda token: -token.nats)[:HIGHEST]
            words = (f"{t.text} {t.nats:.2f} ({t.row}, {t.position})" for t in tokens)
            rows += [[name, ", ".join(words)]] if tokens else []
        return rows

    def _tell(self, at: int, number: int, row: Row) -> None:
        """Add the losses of a row's spans to what the page's script shows of them."""
        seen: Counter[int] = Counter()
        nats_T, vocabulary = self.nats[number], self.rows.vocabulary
        for piece in pieces(row, vocabulary):
            if piece.document < 0:
                continue
            here = slice(piece.start, piece.stop)
            named = _highest(nats_T[here], HIGHEST)
            tokens = [self._token(number, row, piece, piece.start + i) for i in named]
            info = piece.tokenizer
            self._highest[info.modality if info else "text"] += tokens
            if info is None:
                continue
            part = self._part(at, piece.document, seen[piece.document])
            seen[piece.document] += 1
            scored = nats_T[here][np.isfinite(nats_T[here])]
            if part is None or not scored.size:
                continue
            part["loss"] = f"{scored.mean():.2f} nats a token; highest: " + ", ".join(
                f"{token.text} {token.nats:.2f}" for token in tokens
            )
            if "pieces" in part:
                local = vocabulary.to_local(info.name, row.tokens[here])
                starts = None if row.patch_starts is None else row.patch_starts[here]
                encoded = Encoded(ids=local, patch_starts=starts)
                sizes = piece_sizes(self._tokenizer(info.name), encoded)
                part |= _by_piece(nats_T[here], sizes, self.top)

    def _part(self, at: int, document: int, number: int) -> dict[str, object] | None:
        """What the page's script shows of a span; None where the batch's view left it out."""
        documents = self.view.data[at]
        parts = documents[document]["parts"] if document < len(documents) else []
        assert isinstance(parts, list)
        return parts[number] if number < len(parts) else None

    def _token(self, number: int, row: Row, piece: Piece, position: int) -> Token:
        nats, info = float(self.nats[number][position]), piece.tokenizer
        if info is None:
            text = self.rows.vocabulary.specials[int(row.tokens[position])]
        else:
            ids = row.tokens[position : position + 1]
            local = self.rows.vocabulary.to_local(info.name, ids)
            text = f"code {local[0]}"
            if info.modality in ("text", "bytes"):
                raw = self._tokenizer(info.name).decode(Encoded(ids=local))
                shown = raw.decode("utf-8", "backslashreplace") if isinstance(raw, bytes) else raw
                text = f"“{printable(str(shown), 24)}”"
        return Token(nats=nats, row=number, position=position, text=text)

    def _tokenizer(self, name: str) -> Tokenizer:
        if name not in self._tokenizers:
            self._tokenizers[name] = self.held_out.tokenizer(name)
        return self._tokenizers[name]


def _strip(number: int, row: Row, vocabulary: Vocabulary, nats_T: np.ndarray, top: float) -> Markup:
    """A row by loss, in the places of the bar by modality."""
    drawn, before = [], 0
    for piece in pieces(row, vocabulary):
        if piece.document != before and piece.document >= 0:
            drawn.append(row_bar.gap())
            before = piece.document
        drawn.append(_segment(nats_T[piece.start : piece.stop], top))
    scored = nats_T[np.isfinite(nats_T)]
    label = f"row {number}: no targets"
    if scored.size:
        mean, at = scored.mean(), int(np.nanargmax(nats_T))
        label = f"row {number}: {scored.size} targets, {mean:.2f} nats each; the highest "
        label += f"{nats_T[at]:.2f} at position {at}"
    bar = tag("div", *drawn, class_="bar", role="img", aria_label=label, title=label)
    return tag("div", tag("span", class_="n"), bar, class_="row losses")


def _segment(nats_n: np.ndarray, top: float) -> Markup:
    """Neighbouring tokens as runs of equal steps of the ramp, one path a step."""
    levels = [level(float(x), top) if np.isfinite(x) else -1 for x in nats_n]
    paths: list[list[str]] = [[] for _ in range(LEVELS + 1)]
    start = 0
    for step, run in groupby(levels):
        n = len(list(run))
        if step >= 0:
            paths[step].append(f"M{start} 0h{n}v1h-{n}z")
        start += n
    drawn = [tag("path", d="".join(p), class_=f"h{i}") for i, p in enumerate(paths) if p]
    size = {"viewBox": f"0 0 {start} 1", "preserveAspectRatio": "none"}
    return tag("svg", *drawn, class_="pad", style=f"flex:{start}", aria_hidden="true", **size)


def _by_piece(nats_n: np.ndarray, sizes: list[int], top: float) -> dict[str, list[float] | str]:
    """The mean nats a token of each piece of a span, and its step of the ramp, or `-` for none."""
    losses, levels, start = [], "", 0
    for n in sizes:
        own = nats_n[start : start + n]
        own = own[np.isfinite(own)]
        losses.append(round(float(own.mean()), 2) if own.size else 0.0)
        levels += str(level(losses[-1], top)) if own.size else "-"
        start += n
    return {"losses": losses, "levels": levels}


def _highest(nats_n: np.ndarray, most: int) -> list[int]:
    """Places of the highest losses, the highest first."""
    order = np.argsort(-np.nan_to_num(nats_n, nan=-1.0), kind="stable")[:most]
    return [int(i) for i in order if np.isfinite(nats_n[i])]
