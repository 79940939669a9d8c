"""What a mixture of streams gives, and whether its validation is apart from its training.

Of a run, or of streams before there is one. Shares follow from lengths alone; to find documents of
the validation in the training, every stream is counted once (count.py).
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.text import Text

from plait.pipeline.inspect.alerts import FILL, leaks, mixture_alerts
from plait.pipeline.inspect.charts import stacked_bar
from plait.pipeline.inspect.markup import Markup
from plait.pipeline.inspect.mixture_shares import (
    StreamShare,
    mixture_shares,
    modality_shares,
    share_table,
)
from plait.pipeline.inspect.page import facts as large_figures
from plait.pipeline.inspect.page import section, table
from plait.pipeline.inspect.repeats import Part, Shared, shared, split
from plait.pipeline.inspect.stream_report import count
from plait.pipeline.rows import Rows
from plait.pipeline.stream import Stream
from plait.pipeline.tables import print_table
from plait.tokenizers.errors import ConfigError

Facts = dict[str, object]


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """A mixture and its validation."""

    title: str
    rows: int
    """First rows of the order that were looked at: those of the run, or about an epoch."""
    seq_len: int
    fill: float
    shares: list[StreamShare]
    modalities: dict[str, float]
    """Shares of the tokens, without markers."""
    validation: Shared | None
    alerts: list[str]


def look_at_run(path: Path) -> DataReport:
    """The streams that a run's config.toml names; ConfigError if it is no run's."""
    try:
        config = tomllib.loads((path / "config.toml").read_text(encoding="utf-8"))
        streams = [Stream(name) for name in config["data"]]
        held_out = [Stream(name) for name in config["validation"]["data"]]
        seed, share = int(config["seed"]), float(config["validation"]["share"])
        r, m = config["rows"], config["mixture"]
        step = r["batch_size"] * r["accumulate"]
        stretches = [(s["step"] * step, s["weights"]) for s in m.get("schedule", [])]
        apart = share > 0 and not held_out
        rows = Rows(
            streams,
            seq_len=r["seq_len"],
            packing=r["packing"],
            cut=tuple(r["cut"]),
            seed=seed,
            weights=m["weights"] or stretches or None,
            temperature=m["temperature"],
            modality_shares=m["shares"] or None,
            exhausted=m["exhausted"],
            split="train" if apart else "all",
            validation=share if apart else 0.0,
        )
        wanted = int(config["steps"]) * step
    except (KeyError, TypeError, ValueError, OSError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}/config.toml: no run's: {error!r}") from None
    return _look(f"data of {path}", rows, wanted, held_out, seed=seed, share=share)


def look_at_streams(
    paths: Sequence[str], weights: Sequence[float], seq_len: int, validation: str | None
) -> DataReport:
    """Streams that are to be mixed by weights, in about an epoch of them."""
    rows = Rows([Stream(path) for path in paths], seq_len=seq_len, weights=list(weights))
    held_out = [Stream(validation)] if validation else []
    return _look(" + ".join(paths), rows, len(rows), held_out, seed=0, share=0.0)


def facts(report: DataReport) -> Facts:
    """As JSON values."""
    return {
        "format": 1,
        "rows": report.rows,
        "seq_len": report.seq_len,
        "fill": report.fill,
        "streams": [{**asdict(s), "drift": s.drift} for s in report.shares],
        "modalities": report.modalities,
        "validation": None if report.validation is None else asdict(report.validation),
        "alerts": report.alerts,
    }


def show(console: Console, report: DataReport) -> None:
    """Everything but the alerts."""
    console.print(Text(report.title, style="bold"))
    console.print("  ".join(f"{name} {value}" for name, value in _figures(report).items()))
    print_table(console, *share_table(report.shares))
    print_table(console, *_modality_table(report))
    if words := _validation_words(report.validation):
        console.print(f"\n{words}")


def sections(report: DataReport) -> list[Markup]:
    """What its page shows below the alerts."""
    words = "Weights are shares of rows; tokens and documents follow from lengths."
    body = [large_figures(_figures(report)), section("Mixture", words)]
    body += [table(*share_table(report.shares))]
    parts = [(name, round(1e6 * share)) for name, share in report.modalities.items()]
    body += [section("By modality", "Shares of the tokens, without markers."), stacked_bar(parts)]
    if words := _validation_words(report.validation):
        body += [section("Validation", words)]
    return body


def _look(
    title: str, rows: Rows, wanted: int, held_out: Sequence[Stream], *, seed: int, share: float
) -> DataReport:
    number = wanted if rows.end is None else min(wanted, rows.end)
    shares = mixture_shares(rows, number)
    fill = sum(s.rows * s.fill for s in shares)
    leaked = _leaked(rows.streams, held_out, seed=seed, share=share)
    alerts = [*leaks(leaked, "the validation"), *mixture_alerts(shares)]
    alerts += [
        f"Rows of {s.name} are only {s.fill:.1%} filled; the rest is padding. Try another "
        "`rows.seq_len`."
        for s in shares
        if s.fill < FILL
    ]
    return DataReport(
        title=title,
        rows=number,
        seq_len=rows.seq_len,
        fill=fill,
        shares=shares,
        modalities=modality_shares(rows, number),
        validation=leaked,
        alerts=alerts,
    )


def _leaked(
    training: Sequence[Stream], held_out: Sequence[Stream], *, seed: int, share: float
) -> Shared | None:
    """None if nothing is held out."""
    if not held_out and not share:
        return None
    counted = [(stream, count(stream)) for stream in training]
    if held_out:
        apart = [Part(s, count(s), np.arange(s.documents)) for s in held_out]
        return shared(apart, [Part(s, c, np.arange(s.documents)) for s, c in counted])
    halves = [split(s, c, seed=seed, share=share) for s, c in counted]
    return shared([apart for apart, _ in halves], [trained for _, trained in halves])


def _figures(report: DataReport) -> Mapping[str, str]:
    return {
        "rows": f"{report.rows:,}",
        "tokens in a row": f"{report.seq_len:,}",
        "rows filled": f"{report.fill:.1%}",
    }


def _modality_table(report: DataReport) -> tuple[list[str], list[list[str]]]:
    rows = [[name, f"{share:.1%}"] for name, share in report.modalities.items()]
    return ["Modality", "Share of tokens"], rows


def _validation_words(found: Shared | None) -> str:
    if found is None:
        return ""
    return (
        f"Validation: {found.documents:,} documents, of which {found.same_content:,} hold the same "
        f"as a training document and {found.same_key:,} have the source and key of one."
    )
