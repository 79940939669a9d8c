"""`plait inspect`: what is in a stream, a run or a tokenizer, as tables, JSON or one HTML page.

Counting needs numpy alone; torch is imported when a page's packed batch is decoded.
"""

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import tyro
from rich.console import Console
from rich.text import Text

from plait.pipeline.inspect import page
from plait.pipeline.inspect.alerts import run_alerts, stream_alerts
from plait.pipeline.inspect.run_tables import figure_tables, last_figures
from plait.pipeline.inspect.statistics import ModalityStatistics, count_blocks, count_rejected
from plait.pipeline.progress import Progress
from plait.pipeline.remote import is_url
from plait.pipeline.run_folder import RunFolder
from plait.pipeline.stream import Stream
from plait.pipeline.tables import make_console, print_table
from plait.tokenizers.errors import ConfigError, PlaitError

if TYPE_CHECKING:
    from plait.pipeline.inspect.atlas import Atlas
    from plait.pipeline.inspect.batch_view import BatchView

Facts = dict[str, object]


class HasData(Protocol):
    """What a page's script shows."""

    @property
    def page_data(self) -> Mapping[str, object]:
        """JSON values."""
        ...


LARGE = 50_000_000
"""Tokens from which on counting shows its progress."""


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """Show what is in a stream, a run or a tokenizer."""

    path: tyro.conf.Positional[str]
    """Folder of a stream (stream.json), a run (config.toml) or a tokenizer (config.json); or a
    stream's URL."""
    json: bool = False
    """Print the facts as JSON instead of tables."""
    html: str | None = None
    """Also write one self-contained page here."""
    seq_len: int = 512
    """Row length of the packed batch on a stream's page."""
    mask: tuple[str, ...] = ()
    """Modalities that the packed batch only reads, as `objective.mask` of a run."""
    learn: str = "all"
    """Spans that the packed batch learns, as `objective.learn` of a run."""
    originals: bool = True
    """Show pictures and sounds beside their tokens, where the stream's sources are at hand."""


def main(argv: Sequence[str]) -> int:
    """`plait inspect`."""
    options = tyro.cli(InspectOptions, args=list(argv), prog="plait inspect")
    if is_url(options.path):
        inspect_stream(options.path, options)
        return 0
    path = Path(options.path)
    show = {"stream": inspect_stream, "run": inspect_run, "tokenizer": inspect_tokenizer}
    show[kind_of(path)](path, options)
    return 0


def kind_of(path: Path) -> str:
    """stream (finished or not), run or tokenizer; ConfigError if the folder is none of them."""
    for file, kind in (
        ("stream.json", "stream"),
        ("config.toml", "run"),
        ("config.json", "tokenizer"),
    ):
        if (path / file).is_file():
            return kind
    if (path / "job").is_dir():
        return "stream"
    what = "no such folder" if not path.exists() else "neither a stream, a run nor a tokenizer"
    raise ConfigError(f"{path}: {what} (looked for stream.json, config.toml, config.json)")


def inspect_stream(path: str | Path, options: InspectOptions) -> None:
    """Count everything, then print or write it."""
    stream = Stream(path)
    statistics = count_stream(stream)
    rejected = count_rejected(stream.rejected_file().parent)
    view = stream_view(stream, options) if options.html else None
    totals = {
        "documents": stream.documents,
        "rejected": stream.rejected,
        "shards": len(stream.shards),
        "tokens": stream.tokens,
        "bytes": stream.bytes,
    }
    if view is not None:
        view.atlases = stream_atlases(stream, statistics)
    fill = view.fill if view else None
    alerts = stream_alerts(stream.documents, rejected, statistics, fill)
    if apart := stream.manifest.get("quarantined"):
        names = ", ".join(entry["name"] for entry in apart)
        lost = sum(entry["documents"] for entry in apart)
        alerts.insert(0, f"{lost:,} documents are in quarantine ({names}); see `plait verify`.")
    if options.html:
        body = page.stream_body(totals, statistics, rejected, stream.tokenizers, view)
        write_page(options.html, f"Stream {Path(path).resolve().name}", body, alerts, view)
    if options.json:
        facts: Facts = {"format": 1, **totals, "rejected_by_reason": rejected}
        facts["modalities"] = {name: modality_facts(s) for name, s in statistics.items()}
        facts["tokenizers"] = {t.name: _without(asdict(t), "name") for t in stream.tokenizers}
        facts["alerts"] = alerts
        print_json(facts)
        return
    console = make_console()
    console.print(Text(f"stream {path}", style="bold"))
    print_totals(console, totals)
    print_table(console, *page.modality_table(statistics))
    if rejected:
        print_table(
            console, ["Rejected because", "Samples"], [[r, f"{n:,}"] for r, n in rejected.items()]
        )
    names = [[t.name, t.modality, f"{t.vocab_size:,}", t.fingerprint] for t in stream.tokenizers]
    print_table(console, ["Tokenizer", "Modality", "Vocabulary", "Fingerprint"], names)
    print_alerts(console, alerts, options.html)


def count_stream(stream: Stream) -> dict[str, ModalityStatistics]:
    """All counts by modality; shows its progress where it takes more than a moment."""
    if stream.tokens < LARGE:
        return count_blocks(stream.blocks(), stream.tokenizers)
    with Progress("counting", total=stream.tokens, unit="tokens") as progress:
        return count_blocks(stream.blocks(), stream.tokenizers, progress.advance)


def modality_facts(s: ModalityStatistics) -> Facts:
    """The statistics of a modality as JSON values."""
    quantiles = {"min": 0.0, "median": 0.5, "p95": 0.95, "max": 1.0}
    return {
        "tokens": s.tokens,
        "spans": s.spans,
        "documents": s.documents,
        "vocab_size": s.vocab_size,
        "codes_used": s.codes_used,
        "perplexity": s.perplexity,
        "entropy_bits": s.entropy_nats / math.log(2),
        "entropy_nats": s.entropy_nats,
        "length": {name: _whole(s.length(q)) for name, q in quantiles.items()},
    }


def stream_view(stream: Stream, options: InspectOptions, most: int = 1 << 16) -> "BatchView | None":
    """A packed batch; rows are made longer where a picture does not fit in them."""
    seq_len = options.seq_len
    from plait.pipeline.inspect.batch_view import BatchView
    from plait.pipeline.learned import Learned
    from plait.pipeline.rows import Rows

    while stream.documents and seq_len <= most:
        try:
            learned = Learned(mask=options.mask, learn=options.learn)
            rows = Rows(stream, seq_len=seq_len, learned=learned)
            return BatchView(rows, stream.tokenizer, originals=options.originals)
        except ConfigError:
            seq_len *= 2
    return None


def stream_atlases(stream: Stream, statistics: Mapping[str, ModalityStatistics]) -> "list[Atlas]":
    """The atlases of its codebooks, by what the stream uses."""
    from plait.pipeline.inspect.atlas import make_atlas

    found = []
    for info in stream.tokenizers:
        counted = statistics.get(info.modality)
        if info.modality == "image" and counted is not None:
            with contextlib.suppress(PlaitError):
                found.append(make_atlas(stream.tokenizer(info.name), counted.code_counts))
    return [atlas for atlas in found if atlas is not None]


def inspect_run(path: Path, options: InspectOptions) -> None:
    """Print or write a run's sizes and losses."""
    run = RunFolder.read(path)
    train, validation, tokens = run.losses(), run.losses("validation/"), run.tokens()
    alerts = run_alerts(train, validation, run.last("fill"), run.last("skipped"))
    if options.html:
        write_page(options.html, f"Run {path.resolve().name}", page.run_body(run), alerts, None)
    if options.json:
        print_json(
            {
                "preset": run.preset,
                "step": run.step,
                "parameters": {"total": run.parameters, "active": run.active},
                "loss": {"train": train, "validation": validation},
                "tokens": tokens,
                "figures": last_figures(run),
                "resumed": run.resumed,
                "alerts": alerts,
            }
        )
        return
    console = make_console()
    console.print(Text(f"run {path}: {run.preset or 'no preset'}", style="bold"))
    print_totals(console, {"step": run.step, "parameters": run.parameters})
    print_table(console, *page.run_table(run))
    for _, header, rows in figure_tables(run):
        print_table(console, header, rows)
    if run.resumed:
        console.print(f"\nresumed at step {', '.join(f'{s:,}' for s in run.resumed)}")
    print_alerts(console, alerts, options.html)


def inspect_tokenizer(path: Path, options: InspectOptions) -> None:
    """Print or write a tokenizer's configuration, its fit, and samples of its work."""
    from plait.pipeline.inspect.tokenizer_report import TokenizerReport

    report = TokenizerReport.read(path)
    if options.html:
        title = f"Tokenizer {path.resolve().name}"
        write_page(options.html, title, report.sections(), [], report)
    if options.json:
        print_json(report.facts)
        return
    console = make_console()
    report.show(console)
    print_alerts(console, [], options.html)


def write_page(
    file: str, title: str, body: Sequence[str], alerts: Sequence[str], view: "HasData | None"
) -> None:
    """Write the HTML page, in UTF-8."""
    data = None if view is None else view.page_data
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text(page.render(title, body, alerts=alerts, data=data), encoding="utf-8")


def print_totals(console: Console, totals: Mapping[str, int]) -> None:
    """One line of named counts."""
    console.print("  ".join(f"{name} {value:,}" for name, value in totals.items()))


def print_alerts(console: Console, alerts: Sequence[str], html: str | None) -> None:
    """What stands out, and where the page lies."""
    console.print()
    for alert in alerts:
        console.print(Text(f"look: {alert}"))
    if html:
        console.print(Text(f"page: {html}"))


def print_json(facts: Facts) -> None:
    """JSON on standard output."""
    print(json.dumps(facts, indent=2, ensure_ascii=False))


def _whole(value: float) -> float | int:
    return int(value) if value == int(value) else value


def _without(facts: Facts, key: str) -> Facts:
    return {k: v for k, v in facts.items() if k != key}
