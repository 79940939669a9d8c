"""`plait inspect`: what is in a stream, a run or a tokenizer, as tables, JSON or one HTML page.

Counting needs numpy alone; torch is imported when a page's packed batch is decoded.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import tyro
from rich.console import Console
from rich.text import Text

from plait.pipeline.inspect import compare, page, run_report, stream_page
from plait.pipeline.inspect.stream_report import facts as stream_facts
from plait.pipeline.inspect.stream_report import look, write_parquet
from plait.pipeline.inspect.stream_terminal import show as show_stream
from plait.pipeline.remote import is_url
from plait.pipeline.run_folder import RunFolder
from plait.pipeline.stream import Stream
from plait.pipeline.tables import make_console, printable
from plait.tokenizers.errors import ConfigError, PlaitError

if TYPE_CHECKING:
    from plait.pipeline.inspect.atlas import Atlas
    from plait.pipeline.inspect.batch_view import BatchView
    from plait.pipeline.inspect.statistics import ModalityStatistics

Facts = dict[str, object]


class HasData(Protocol):
    """What a page's script shows."""

    @property
    def page_data(self) -> Mapping[str, object]:
        """JSON values."""
        ...


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """Show what is in a stream, a run or a tokenizer."""

    paths: tyro.conf.Positional[tuple[str, ...]]
    """Folder of a stream (stream.json), a run (config.toml) or a tokenizer (config.json); or a
    stream's URL. Two or more of a kind are put side by side."""
    weights: tuple[float, ...] = ()
    """Shares of rows, one a stream: what would a mixture of these streams hold?"""
    data: bool = False
    """Of a run: its streams in place of its losses, their shares, and what validation shares with
    training."""
    json: bool = False
    """Print the facts as JSON instead of tables."""
    html: str | None = None
    """Also write one self-contained page here."""
    seq_len: int = 512
    """Row length to pack a stream with."""
    mask: tuple[str, ...] = ()
    """Modalities that the packed batch only reads, as `objective.mask` of a run."""
    learn: str = "all"
    """Spans that the packed batch learns, as `objective.learn` of a run."""
    originals: bool = True
    """Show pictures and sounds beside their tokens, where the stream's sources are at hand."""
    sample: int = 0
    """Count so many shards only, evenly spaced over a huge stream; 0 is all."""
    parquet: str | None = None
    """Also write a stream's counts here, one row a shard and modality."""
    validation: str | None = None
    """Another stream, kept for validation: its documents are looked for in this one."""
    losses: bool = True
    """On a run's page, colour held-out rows by loss, with its newest checkpoint on the CPU."""


def main(argv: Sequence[str]) -> int:
    """`plait inspect`."""
    options = tyro.cli(InspectOptions, args=list(argv), prog="plait inspect")
    if not options.paths:
        raise ConfigError("nothing to inspect: name a stream, a run or a tokenizer")
    if options.weights or options.data:
        inspect_mixture(options)
        return 0
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
    kind, sides = kinds[0], [_side(kinds[0], path, options) for path in options.paths]
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


def _side(kind: str, path: str, options: InspectOptions) -> compare.Side:
    """One of those that are compared: the facts of `--json`, and what charts need."""
    if kind == "run":
        run = RunFolder.read(Path(path))
        facts = {**run_report.facts(run), "config": run.config}
        return compare.Side(path=path, facts=facts, run=run, alerts=run_report.alerts(run))
    if kind == "tokenizer":
        from plait.pipeline.inspect.tokenizer_report import TokenizerReport

        return compare.Side(path=path, facts=TokenizerReport.read(Path(path)).facts)
    report = look(Stream(path), seq_len=options.seq_len, sample=options.sample)
    counted = report.counts.modalities
    tokens = sum(s.tokens for s in counted.values()) or 1
    shares = {name: s.tokens / tokens for name, s in counted.items()}
    facts = {**stream_facts(report), "shares": shares}
    return compare.Side(path=path, facts=facts, statistics=counted, alerts=report.alerts)


def inspect_stream(path: str | Path, options: InspectOptions) -> None:
    """Count everything, then print or write it."""
    stream = Stream(path)
    report = look(
        stream,
        seq_len=options.seq_len,
        sample=options.sample,
        validation=options.validation,
    )
    if options.parquet:
        write_parquet(report, options.parquet)
    if options.html:
        view = None
        if report.packed is not None:
            view = stream_view(report.part, report.packed.seq_len, options)
            view.atlases = stream_atlases(report.part, report.counts.modalities)
        body = stream_page.sections(report, view)
        write_page(options.html, f"Stream {Path(path).resolve().name}", body, report.alerts, view)
    if options.json:
        print_json(stream_facts(report))
        return
    console = make_console()
    show_stream(console, report)
    print_alerts(console, report.alerts, options.html)


def inspect_mixture(options: InspectOptions) -> None:
    """Print or write what a run's streams, or these, give when they are mixed."""
    from plait.pipeline.inspect import data_report

    paths = options.paths
    if options.data:
        report = data_report.look_at_run(Path(paths[0]))
    elif len(paths) == len(options.weights):
        report = data_report.look_at_streams(
            paths, options.weights, options.seq_len, options.validation
        )
    else:
        raise ConfigError(f"{len(paths)} streams and {len(options.weights)} --weights: one each")
    if options.html:
        write_page(options.html, report.title, data_report.sections(report), report.alerts, None)
    if options.json:
        print_json(data_report.facts(report))
        return
    console = make_console()
    data_report.show(console, report)
    print_alerts(console, report.alerts, options.html)


def stream_view(stream: Stream, seq_len: int, options: InspectOptions) -> "BatchView":
    """A packed batch, of the rows that were found to serve (packed_rows.py)."""
    from plait.pipeline.inspect.batch_view import BatchView
    from plait.pipeline.learned import Learned
    from plait.pipeline.rows import Rows

    learned = Learned(mask=options.mask, learn=options.learn)
    rows = Rows(stream, seq_len=seq_len, learned=learned)
    return BatchView(rows, stream.tokenizer, originals=options.originals)


def stream_atlases(stream: Stream, statistics: "Mapping[str, ModalityStatistics]") -> "list[Atlas]":
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


def print_alerts(console: Console, alerts: Sequence[str], html: str | None) -> None:
    """What stands out, and where the page lies."""
    console.print()
    for alert in alerts:
        console.print(Text(f"look: {printable(alert, 2000)}"))
    if html:
        console.print(Text(f"page: {html}"))


def print_json(facts: Facts) -> None:
    """JSON on standard output."""
    print(json.dumps(facts, indent=2, ensure_ascii=False))
