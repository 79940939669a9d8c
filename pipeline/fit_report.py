"""What a fit reports: figures and notes while it runs, its folder, and the table at its end."""

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

from plait.pipeline.fit_samples import FitSamples
from plait.pipeline.progress import Progress
from plait.pipeline.whole_file import write_whole
from plait.tokenizers.base import Tokenizer

PAGE = "report.html"
NOTE = "note: "
"""A progress message that starts so is printed, and kept in the report."""


class Watched:
    """Shows a fit's progress, and keeps its notes and curves."""

    def __init__(self, title: str) -> None:
        self.notes: list[str] = []
        self.curves: dict[str, list[tuple[float, float]]] = {}
        """By name: share of the fit, and the figure there."""
        self._bar = Progress(title, total=100, unit="%")

    def __enter__(self) -> Self:
        self._bar.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.__exit__(kind, error, trace)
        for note in self.notes:
            print(f"{NOTE}{note}", file=sys.stderr)

    def progress(self, message: str, share: float, **figures: float) -> None:
        """As tokenizers.base.Progress."""
        if message.startswith(NOTE):
            self.notes.append(message.removeprefix(NOTE))
        for name, value in figures.items():
            self.curves.setdefault(name.replace("_", " "), []).append((share, value))
            message += f", {name.replace('_', ' ')} {value:.4g}"
        self._bar.update(100 * share, message)


def finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """The metrics as JSON has them: null for what is no number."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def thinned(points: list[tuple[float, float]], most: int = 200) -> list[tuple[float, float]]:
    """Means of neighbours, so that a curve has at most so many points."""
    size = -(-len(points) // most)
    groups = (points[i : i + size] for i in range(0, len(points), size or 1))
    means = ([sum(column) / len(group) for column in zip(*group, strict=True)] for group in groups)
    return [(round(x, 4), float(f"{y:.5g}")) for x, y in means]


def save_fit(
    tokenizer: Tokenizer, report: Mapping[str, object], samples: FitSamples, out: Path
) -> None:
    """The tokenizer's folder, without a page, in place of one that is there."""
    empty_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    write_whole(out / "report.json", text)
    if samples.rejected:
        lines = [json.dumps(asdict(r)) + "\n" for r in samples.rejected.values()]
        write_whole(out / "rejected.jsonl", "".join(lines))
    tokenizer.save(out)


def print_report(report: dict[str, object], out: Path) -> None:
    """A table of what report.json holds."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(f"{report['kind']} tokenizer in {out}", highlight=False, soft_wrap=True)
    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    samples, seconds = report["samples"], report["seconds"]
    assert isinstance(samples, dict) and isinstance(seconds, dict)
    table.add_row("vocabulary", f"{report['vocab_size']:,}")
    table.add_row("samples fitted on", f"{samples['fit']:,}")
    table.add_row("samples held out", f"{samples['held_out']:,}")
    table.add_row("seconds", f"{seconds['fit']:g}", end_section=True)
    metrics = report["metrics"]
    assert isinstance(metrics, dict)
    for name, value in metrics.items():
        table.add_row(name, _shown(value))
    console.print(table)
    console.print(f"page: {out / PAGE}", highlight=False, soft_wrap=True)
    if samples["rejected"]:
        text = f"{samples['rejected']:,} samples were set aside: {out / 'rejected.jsonl'}"
        console.print(text, highlight=False, soft_wrap=True)


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def empty_folder(folder: Path) -> None:
    """Remove the tokenizer that is in a folder: each file beside its config.json belongs to it."""
    if (folder / "config.json").is_file():
        for path in [path for path in folder.iterdir() if path.is_file()]:
            path.unlink()
