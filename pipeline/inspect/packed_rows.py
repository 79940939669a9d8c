"""How a stream's documents fill rows: exact, from lengths alone, without a token and without torch.

The rows are those that a run of the same length of rows begins with: best fit, text cut to fill,
seed 0. How full they are is the same for every seed and epoch.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from plait.kernels.fill_rows import Pieces
from plait.pipeline.plan import StreamPlan
from plait.pipeline.stream import Stream
from plait.pipeline.window import Window
from plait.tokenizers.errors import ConfigError

LOOKED_AT = 256
"""Rows among which examples are chosen."""
MARKER, PADDING = -1, -2
"""Stand for a tokenizer in a run."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Neighbouring tokens of one kind in a row."""

    kind: int
    """The tokenizer's number in its stream, MARKER or PADDING."""
    document: int
    """Which of the row's pieces, from 0; -1 for padding."""
    tokens: int


@dataclass(frozen=True, kw_only=True)
class PackedRows:
    """An epoch's rows."""

    seq_len: int
    """Tokens in a row; more than was asked for, if a picture did not fit."""
    rows: int
    tokens: int
    """Tokens in the rows, markers among them."""
    documents: int
    longer: int
    """Documents that hold more than a row, so that they are cut."""
    keeps_95: int
    """The least power of two that keeps 95 % of the documents whole."""
    examples: tuple[tuple[int, tuple[Run, ...]], ...]
    """Some rows, by their numbers, that together show every modality."""

    @property
    def fill(self) -> float:
        """Share of the rows that is no padding."""
        return self.tokens / max(1, self.rows * self.seq_len)


def pack(
    stream: Stream, sizes: Counter[int], seq_len: int, *, examples: int = 8, most: int = 1 << 16
) -> PackedRows | None:
    """Pack with rows of `seq_len`, or the next of twice, four times, ... as many that suffices.

    `sizes` are the documents by their tokens with markers. None if `most` does not suffice or
    there are no documents.
    """
    while stream.documents and seq_len <= most:
        try:
            plan = StreamPlan(
                stream,
                seq_len=seq_len,
                packing="best_fit",
                cut=("text",),
                seed=0,
                number=0,
                split="all",
                validation=0.0,
            )
        except ConfigError:
            seq_len *= 2
            continue
        return PackedRows(
            seq_len=seq_len,
            rows=plan.rows,
            tokens=plan.tokens,
            documents=stream.documents,
            longer=sum(n for size, n in sizes.items() if size > seq_len),
            keeps_95=_keeps(sizes, 0.95),
            examples=tuple(_examples(plan, examples)),
        )
    return None


def row_runs(window: Window, pieces: Pieces, row: int) -> list[Run]:
    """A row of a window, as runs that cover it."""
    runs: list[Run] = []
    first, last = pieces.rows[row : row + 2].tolist()
    for number, q in enumerate(range(first, last)):
        document = int(pieces.documents[q])
        start, stop = int(pieces.starts[q]), int(pieces.stops[q])
        if document < 0:
            parts = [(PADDING, stop - start)]
        else:
            parts = [(MARKER, int(pieces.again[q])), *_parts(window, document, start, stop)]
        own = number if document >= 0 else -1
        runs += [Run(kind=kind, document=own, tokens=n) for kind, n in parts if n > 0]
    return runs


def varied(tokens_NM: np.ndarray, count: int) -> list[int]:
    """Numbers of rows, rising, that together show much of every column, so the rare ones too."""
    chosen: list[int] = []
    so_far_M = np.zeros(tokens_NM.shape[1])
    while len(chosen) < min(count, len(tokens_NM)):
        gain_N = np.sqrt(so_far_M + tokens_NM).sum(1)
        gain_N[chosen] = -1
        chosen.append(int(gain_N.argmax()))
        so_far_M += tokens_NM[chosen[-1]]
    return sorted(chosen)


def _parts(window: Window, document: int, start: int, stop: int) -> list[tuple[int, int]]:
    """(kind, tokens) from place `start` to `stop` of a document."""
    spans = slice(*window.span_starts[document : document + 2].tolist())
    kinds, lengths = window.kinds[spans].astype(np.int64), window.lengths[spans].astype(np.int64)
    marked = np.array([t.modality != "text" for t in window.tokenizers])[kinds]
    # Three parts a span: begin marker, tokens, end marker; a marker of text has no length.
    sizes = np.stack([marked, lengths, marked], 1).reshape(-1).astype(np.int64)
    names = np.stack([np.full(len(kinds), MARKER), kinds, np.full(len(kinds), MARKER)], 1)
    sizes = np.concatenate([[1], sizes, [1]])
    names = np.concatenate([[MARKER], names.reshape(-1), [MARKER]])
    ends = np.cumsum(sizes)
    inside = np.minimum(ends, stop) - np.maximum(ends - sizes, start)
    kept = inside > 0
    return list(zip(names[kept].tolist(), inside[kept].tolist(), strict=True))


def _examples(plan: StreamPlan, count: int) -> list[tuple[int, tuple[Run, ...]]]:
    found = []
    for row in range(min(plan.rows, LOOKED_AT)):
        epoch, number, local = plan.locate(row)
        found.append(row_runs(*plan.plan(number, epoch), local))
    tokens_NM = np.zeros((len(found), len(plan.stream.tokenizers) + 1))
    for row, runs in enumerate(found):
        for run in runs:
            if run.kind >= 0:
                tokens_NM[row, run.kind] += run.tokens
        # Documents count too, so that a stream of one modality shows more than full rows.
        tokens_NM[row, -1] = min(8, runs[-1].document + 1) * plan.seq_len / 8
    return [(row, tuple(found[row])) for row in varied(tokens_NM, count)]


def _keeps(sizes: Counter[int], share: float) -> int:
    """The least power of two that so many documents fit into."""
    left = sizes.total() * share
    for size, n in sorted(sizes.items()):
        left -= n
        if left <= 0:
            return 1 << (size - 1).bit_length()
    return 1
