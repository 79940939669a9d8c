"""Tables for the terminal that read well without colour, in a pipe and over ssh."""

import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


def make_console() -> Console:
    """A console that keeps tables whole in a pipe, where there is no width to know."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 140)


def print_table(console: Console, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table without colours or frames; the first column is words, numbers stand right."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for i, name in enumerate(header):
        numbers = all(row[i].lstrip("+-")[:1].isdigit() or not row[i] for row in rows)
        table.add_column(name, justify="right" if i and numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print()
    console.print(table)
