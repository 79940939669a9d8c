"""Progress of a long command: a live bar on a terminal, now and then a plain line elsewhere."""

import sys
import time
from types import TracebackType
from typing import Self, TextIO

LINE_EVERY_S = 10.0


class Progress:
    """Counts up to `total`; use it in a `with` statement.

    >>> with Progress("sharding", total=2, unit="samples") as progress:
    ...     progress.advance(2, note="1.2M tokens")
    """

    def __init__(
        self, title: str, *, total: float, unit: str = "", file: TextIO | None = None
    ) -> None:
        self.title = title
        self.total = total
        self.unit = unit
        self.done = 0.0
        self._file = file or sys.stderr
        self._started = self._last = time.monotonic()
        self._bar = None

    def __enter__(self) -> Self:
        self._started = self._last = time.monotonic()
        if self._file.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[unit]}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(file=self._file),
            )
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, unit=self.unit, note="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, amount: float, note: str = "") -> None:
        """So much more is done."""
        self.update(self.done + amount, note)

    def update(self, done: float, note: str = "") -> None:
        """So much is done in all."""
        self.done = done
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note)
        elif time.monotonic() - self._last >= LINE_EVERY_S:
            self._last = time.monotonic()
            self._print_line(note)

    def _print_line(self, note: str) -> None:
        share = self.done / self.total if self.total else 1.0
        left_s = (self._last - self._started) * (1 / share - 1) if share else float("inf")
        count = f"{self.done:.0f}/{self.total:.0f} {self.unit}".rstrip()
        parts = [f"{self.title} {100 * share:.0f} %", count, f"{left_s:.0f} s left", note]
        print("  ".join(p for p in parts if p), file=self._file, flush=True)
