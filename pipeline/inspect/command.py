"""`plait inspect`: what is in a stream, a run or a tokenizer, as tables, JSON or one HTML page.

Counting needs numpy alone; torch is imported when a page's packed batch is decoded.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from rich.console import Console
from rich.text import Text

from plait.pipeline.inspect import compare, page, run_report
from plait.pipeline.inspect.alerts import stream_alerts
from plait.pipeline.inspect.statistics import ModalityStatistics, count_blocks, count_rejected
from plait.pipeline.progress import Progress
from plait.pipeline.remote import is_url
from plait.pipeline.run_folder import RunFolder
from plait.pipeline.stream import Stream
from plait.pipeline.tables import make_console, print_table
from plait.tokenizers.base import load_tokenizer
from plait.tokenizers.errors import ConfigError

if TYPE_CHECKING:
    from plait.pipeline.inspect.batch_view import BatchView

Facts = dict[str, object]
LARGE = 50_000_000
"""Tokens from which on counting shows its progress."""


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """Show what is in a stream, a run or a tokenizer."""

    paths: tyro.conf.Positional[tuple[str, ...]]
    """Folder of a stream (stream.json), a run (config.toml) or a tokenizer (config.json); or a
    stream's URL. Two or more of a kind are put side by side."""
    json: bool = False
    """Print the facts as JSON instead of tables."""
    html: str | None = None
    """Also write one self-contained page here."""
    seq_len: int = 512
    """Row length of the packed batch on a stream's page."""
    losses: bool = True
    """On a run's page, colour held-out rows by loss, with its newest checkpoint on the CPU."""


def main(argv: Sequence[str]) -> int:
    """`plait inspect`."""
    options = tyro.cli(InspectOptions, args=list(argv), prog="plait inspect")
    if not options.paths:
        raise ConfigError("nothing to inspect: name a stream, a run or a tokenizer")
    kinds = ["stream" if is_url(path) else kind_of(Path(path)) for path in options.paths]
    if len(kinds) > 1:
        inspect_several(kinds, options)
        return 0
    path = options.paths[0]
    if kinds[0] == "stream":
        inspect_stream(path, options)
    else:
        show = {"run": inspect_run, "tokenizer": inspect_tokenizer}
        show[kinds[0]](Path(path), options)
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


def inspect_several(kinds: Sequence[str], options: InspectOptions) -> None:
    """Print or write streams, runs or tokenizers side by side."""
    compare.check(options.paths, kinds)
    kind, sides = kinds[0], [_side(kinds[0], path) for path in options.paths]
    alerts = compare.alerts(sides)
    if options.html:
        names = " and ".join(Path(path).resolve().name for path in options.paths)
        title = f"{kind.capitalize()}s {names}"
        write_page(options.html, title, compare.sections(sides), alerts, None)
    if options.json:
        print_json(compare.to_json(kind, sides))
        return
    console = make_console()
    compare.show(console, kind, sides)
    print_alerts(console, alerts, options.html)


def _side(kind: str, path: str) -> compare.Side:
    """One of those that are compared: the facts of `--json`, and what charts need."""
    if kind == "run":
        run = RunFolder.read(Path(path))
        facts = {**run_report.facts(run), "config": run.config}
        return compare.Side(path=path, facts=facts, run=run, alerts=run_report.alerts(run))
    if kind == "tokenizer":
        return compare.Side(path=path, facts=tokenizer_facts(Path(path)))
    stream = Stream(path)
    statistics = count_stream(stream)
    rejected = count_rejected(stream.rejected_file().parent)
    shares = {name: s.tokens / (stream.tokens or 1) for name, s in statistics.items()}
    return compare.Side(
        path=path,
        facts={**stream_facts(stream, statistics, rejected), "shares": shares},
        statistics=statistics,
        alerts=stream_alerts(stream.documents, rejected, statistics),
    )


def inspect_stream(path: str | Path, options: InspectOptions) -> None:
    """Count everything, then print or write it."""
    stream = Stream(path)
    statistics = count_stream(stream)
    rejected = count_rejected(stream.rejected_file().parent)
    view = stream_view(stream, options.seq_len) if options.html else None
    totals = stream_totals(stream)
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
        facts = stream_facts(stream, statistics, rejected)
        print_json({"format": 1, **facts, "alerts": alerts})
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


def stream_totals(stream: Stream) -> dict[str, int]:
    """Counts of a whole stream."""
    return {
        "documents": stream.documents,
        "rejected": stream.rejected,
        "shards": len(stream.shards),
        "tokens": stream.tokens,
        "bytes": stream.bytes,
    }


def stream_facts(
    stream: Stream, statistics: Mapping[str, ModalityStatistics], rejected: Mapping[str, int]
) -> Facts:
    """A stream as JSON values."""
    return {
        **stream_totals(stream),
        "rejected_by_reason": rejected,
        "modalities": {name: modality_facts(s) for name, s in statistics.items()},
        "tokenizers": {t.name: _without(asdict(t), "name") for t in stream.tokenizers},
    }


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


def stream_view(stream: Stream, seq_len: int, most: int = 1 << 16) -> "BatchView | None":
    """A packed batch; rows are made longer where a picture does not fit in them."""
    from plait.pipeline.inspect.batch_view import BatchView
    from plait.pipeline.rows import Rows

    while stream.documents and seq_len <= most:
        try:
            return BatchView(Rows(stream, seq_len=seq_len), stream.tokenizer)
        except ConfigError:
            seq_len *= 2
    return None


def inspect_run(path: Path, options: InspectOptions) -> None:
    """Print or write how a run went."""
    run = RunFolder.read(path)
    facts = run_report.facts(run)
    alerts = run_report.alerts(run)
    if options.html:
        more, view = [], None
        if options.losses and run.step:
            from plait.pipeline.inspect import loss_view

            more, view = loss_view.sections(path)
        body = run_report.sections(run, more)
        write_page(options.html, f"Run {path.resolve().name}", body, alerts, view)
    if options.json:
        print_json({**facts, "alerts": alerts})
        return
    console = make_console()
    run_report.show(console, run)
    print_alerts(console, alerts, options.html)


def tokenizer_facts(path: Path) -> Facts:
    """A tokenizer's configuration and the report of its fit."""
    tokenizer = load_tokenizer(path)
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    report = path / "report.json"
    return {
        "kind": config.pop("kind"),
        "modality": tokenizer.modality,
        "vocab_size": tokenizer.vocab_size,
        "fingerprint": tokenizer.fingerprint,
        "config": config,
        "report": json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {},
    }


def inspect_tokenizer(path: Path, options: InspectOptions) -> None:
    """Print or write what is known of a tokenizer."""
    facts = tokenizer_facts(path)
    rows = list(flat(facts))
    if options.html:
        body = [page.table(["Fact", "Value"], rows, class_="words")]
        write_page(options.html, f"Tokenizer {path.resolve().name}", body, [], None)
    if options.json:
        print_json(facts)
        return
    console = make_console()
    console.print(Text(f"tokenizer {path}", style="bold"))
    print_table(console, ["Fact", "Value"], rows)
    print_alerts(console, [], options.html)


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
            rows.append([f"{prefix}{name}", shown])
    return rows


def write_page(
    file: str, title: str, body: Sequence[str], alerts: Sequence[str], view: "BatchView | None"
) -> None:
    """Write the HTML page, in UTF-8."""
    data = None
    if view is not None:
        data = {"rows": view.data, "colours": view.colours}
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
