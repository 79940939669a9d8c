"""Tables for the terminal that read well without colour, in a pipe and over ssh."""

import sys
from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


def make_console() -> Console:
    """A console that keeps tables whole in a pipe, where there is no width to know."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 140)


def print_table(console: Console, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table without colours or frames; the first column is words, numbers stand right.

    One of short columns that is wider than the console becomes several with the same first column.
    """
    for part in _parts(header, rows, console.width):
        _print(console, [header[i] for i in part], [[row[i] for i in part] for row in rows])


def printable(text: str, most: int = 200) -> str:
    """Text of others for a terminal or a page: control characters by their codes, not too long.

    >>> printable("a\\x1b[31m")
    'a\\\\u001b[31m'
    """
    shown = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text[:most])
    return shown if len(text) <= most else f"{shown}..."


def _parts(
    header: Sequence[str], rows: Sequence[Sequence[str]], width: int
) -> Iterator[Sequence[int]]:
    """Columns of each part."""
    wide = [max(len(row[i]) for row in [header, *rows]) + 2 for i in range(len(header))]
    if sum(wide) <= width + 2 or max(wide) > width // 2:
        yield range(len(header))
        return
    part = [0]
    for column in range(1, len(header)):
        if len(part) > 1 and sum(wide[i] for i in [*part, column]) > width + 2:
            yield part
            part = [0]
        part.append(column)
    yield part


def _print(console: Console, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for i, name in enumerate(header):
        numbers = all(_is_number(row[i]) for row in rows)
        table.add_column(name, justify="right" if i and numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print()
    console.print(table)


def _is_number(cell: str) -> bool:
    """A figure, perhaps with its unit, or nothing."""
    return cell in ("", "-") or (cell.lstrip("+-")[:1].isdigit() and ", " not in cell)
