"""A stream in the terminal: tables, packed rows as coloured letters, small histograms.

Letters name the modality and their case tells documents apart, so nothing is lost without colour,
in a pipe or over ssh; 80 columns suffice.
"""

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter

import numpy as np
from rich.console import Console
from rich.text import Text

from plait.pipeline.inspect import stream_tables as tables
from plait.pipeline.inspect.charts import bins, colour
from plait.pipeline.inspect.packed_rows import MARKER, PADDING, PackedRows, Run
from plait.pipeline.inspect.stream_report import StreamReport
from plait.pipeline.tables import print_table, printable

LEAST, MOST = 16, 96
"""Letters in a row."""
BLOCKS, PLAIN = " ▁▂▃▄▅▆▇█", " .:-=+*#@"


def show(console: Console, report: StreamReport) -> None:
    """Everything but the alerts."""
    console.print(Text(f"stream {printable(report.stream.url)}", style="bold"))
    console.print("  ".join(f"{name} {value:,}" for name, value in report.totals.items()))
    if report.sample:
        console.print(Text(report.sample, style="bold"))
    statistics = report.counts.modalities
    print_table(console, *tables.modality_table(statistics))
    if report.packed is not None:
        _show_rows(console, report, report.packed)
    _show_lengths(console, report)
    for header, rows in (
        tables.rate_table(report),
        tables.transition_table(report),
        tables.id_table(report, most=5),
        tables.duplicate_table(report),
        tables.rejected_table(report),
        tables.tokenizer_table(report),
    ):
        if rows:
            print_table(console, header, rows)


def letters(modalities: Sequence[str]) -> dict[str, str]:
    """A capital letter for each modality, its first one where it is free.

    >>> letters(["text", "image", "touch"])
    {'text': 'T', 'image': 'I', 'touch': 'O'}
    """
    found: dict[str, str] = {}
    for name in modalities:
        own = [c.upper() for c in name if c.isascii() and c.isalpha()]
        free = (c for c in [*own, *"XYZWVUQ"] if c not in found.values())
        found[name] = next(free, "?")
    return found


def row_letters(runs: Sequence[Run], names: Sequence[str], width: int) -> list[tuple[str, int]]:
    """A row in `width` cells: what most of a cell's tokens are, as a letter and its tokenizer.

    Upper case is every other document; a cell of padding is `.`, one of markers alone `|`.
    """
    kinds = np.repeat([run.kind for run in runs], [run.tokens for run in runs])
    documents = np.repeat([run.document for run in runs], [run.tokens for run in runs])
    cells = []
    for part in np.array_split(np.arange(len(kinds)), min(width, len(kinds))):
        some = part[kinds[part] != MARKER]
        if not len(some):
            cells.append(("|", MARKER))
            continue
        pairs, counts = np.unique(
            np.stack([kinds[some], documents[some]]), axis=1, return_counts=True
        )
        kind, document = (int(x) for x in pairs[:, counts.argmax()])
        letter = "." if kind == PADDING else names[kind]
        cells.append((letter.lower() if document % 2 else letter, kind))
    return cells


def bars(counts: Sequence[int], marks: str = BLOCKS) -> str:
    """A histogram in one line; what is not 0 can be seen.

    >>> bars([0, 1, 4, 8])
    ' ▁▄█'
    """
    top = max([*counts, 1])
    return "".join(marks[min(8, -(-8 * n // top))] for n in counts)


def _show_rows(console: Console, report: StreamReport, packed: PackedRows) -> None:
    modalities = [info.modality for info in report.stream.tokenizers]
    named = letters(modalities)
    width = max(LEAST, min(MOST, console.width - 8, packed.seq_len))
    facts = "  ".join(f"{k} {v}" for k, v in tables.packing_facts(report).items())
    console.print(Text(f"\nPacked rows: {facts}"))
    for number, runs in packed.examples:
        line = Text(f"{number:>6}  ")
        cells = row_letters(runs, [named[m] for m in modalities], width)
        for kind, group in groupby(cells, itemgetter(1)):
            words = "".join(letter for letter, _ in group)
            line.append(words, style=_style(modalities[kind]) if kind >= 0 else "")
        console.print(line, no_wrap=True, overflow="crop")
    legend = Text(" " * 8)
    for name in dict.fromkeys(modalities):
        legend.append(named[name], style=_style(name)).append(f" {name}  ")
    console.print(legend.append(". padding  ").append("case: another document"))


def _show_lengths(console: Console, report: StreamReport) -> None:
    """A histogram of span lengths for each modality, one line each."""
    marks = BLOCKS if (console.encoding or "").lower().startswith("utf") else PLAIN
    present = {n: s for n, s in report.counts.modalities.items() if s.tokens}
    console.print("\nTokens in a span, few to many; bins grow where lengths spread far")
    for name, s in present.items():
        _, found = bins(*s.length_histogram())
        low, high = f"{min(s.lengths):,}", f"{max(s.lengths):,}"
        line = Text(f"{name:<9}{low:>9} ").append(bars(found.tolist(), marks), style=colour(name))
        console.print(line.append(f" {high}"), no_wrap=True, overflow="crop")


def _style(modality: str) -> str:
    """Dark words on the modality's colour, light ones on text's."""
    return f"{'white' if modality == 'text' else 'black'} on {colour(modality)}"
