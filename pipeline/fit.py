"""`plait fit KIND SOURCE...`: train a tokenizer and report how well it does on held-out samples."""

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, make_dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import tyro
import xxhash

from plait.pipeline.fields import parse_fields
from plait.pipeline.fit_page import empty_folder, write_fit_page
from plait.pipeline.fit_samples import FitSamples, find_samples
from plait.pipeline.progress import Progress
from plait.tokenizers.base import Tokenizer
from plait.tokenizers.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from plait.tokenizers.fit_state import FitState

MODULES = {
    "text": "text",
    "image": "image",
    "speech": "speech",
    "bytes": "byte_patch",
    "entropy": "byte_lm",
}
"""The file in tokenizers/ that fits each kind of tokenizer."""
PAGE = "report.html"
STATE = "unfinished.safetensors"
"""What a fit that was killed goes on from; gone when it is done."""
PRETRAINED = "pretrained"
"""The kind that is not fitted: a published codec, taken as it is."""
NOTE = "note: "
"""A progress message that starts so is printed, and kept in the report."""


class FitModule(Protocol):
    """What a file in tokenizers/ gives this command."""

    FitOptions: "type[DataclassInstance]"
    fit: Callable[..., Tokenizer]
    evaluate: Callable[[Tokenizer, Iterable], dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class FitJob:
    """Which samples to fit on, and where the tokenizer goes."""

    sources: tyro.conf.Positional[tuple[str, ...]] = ()
    """Files or folders; `KIND:PATH` forces a kind of source."""
    out: Path
    """Folder for the tokenizer."""
    source: str | None = None
    """Kind of all sources, where it should not be recognised."""
    field: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """ROLE=COLUMN: which column of rows holds the text, image and so on, as in `plait shard`."""
    max_samples: int = 10_000
    """Most samples to use, chosen by seed and key; 0 for all."""
    held_out: float = 0.05
    """Share of the samples that is kept for the evaluation."""
    seed: int = 0
    """Seed of every random choice."""
    overwrite: bool = False
    """Replace a tokenizer that is there already."""
    json: bool = False
    """Print the report as JSON."""

    def check(self, needs_sources: bool = True) -> None:
        """ConfigError if an option is out of range or the tokenizer is there already."""
        if needs_sources and not self.sources:
            raise ConfigError("no SOURCE given; it is a file or a folder")
        if not 0 <= self.held_out < 1:
            raise ConfigError(f"--held-out is {self.held_out}: should be 0 or more, and below 1")
        if self.max_samples < 0:
            raise ConfigError(f"--max-samples is {self.max_samples}: should be 0 or more")
        if self.out.exists() and not self.out.is_dir():
            raise ConfigError(f"{self.out}: a file is there, and should be a folder")
        if (self.out / "config.json").exists() and not self.overwrite:
            raise ConfigError(f"{self.out}: a tokenizer is there already; --overwrite replaces it")


def main(argv: Sequence[str]) -> int:
    """`plait fit`."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0 if argv else 2
    kind, *rest = argv
    if kind == PRETRAINED:
        return import_module("plait.pipeline.fit_pretrained").main(rest)
    module = find_module(kind)
    command = tyro.cli(
        tyro.conf.OmitArgPrefixes[make_dataclass("Command", _groups(kind, module))],
        args=rest,
        prog=f"plait fit {kind}",
        description=f"Train a tokenizer for {kind}, and report its quality on held-out samples.",
    )
    job: FitJob = command.samples
    report = run_fit(kind, job, getattr(command, kind))
    if job.json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        print_report(report, job.out)
    return 0


def _groups(kind: str, module: FitModule) -> list[tuple[str, type]]:
    return [("samples", FitJob), (kind, module.FitOptions)]


def find_module(kind: str) -> FitModule:
    """The module that fits a kind of tokenizer; ConfigError if there is none."""
    if kind not in MODULES:
        known = ", ".join([*MODULES, PRETRAINED])
        raise ConfigError(f"no kind of tokenizer {kind!r}; there is {known}")
    return cast(FitModule, import_module(f"plait.tokenizers.{MODULES[kind]}"))


def run_fit(kind: str, job: FitJob, options: "DataclassInstance") -> dict[str, object]:
    """Fit, evaluate and save; returns what report.json holds."""
    taken_over = getattr(options, "source_model", None) is not None
    job.check(needs_sources=not taken_over)
    module = find_module(kind)
    samples = find_samples(
        kind,
        job.sources,
        source_kind=job.source,
        fields=parse_fields(job.field),
        max_samples=job.max_samples,
        held_out=job.held_out,
        seed=job.seed,
    )
    notes: list[str] = []
    curves: dict[str, list[tuple[float, float]]] = {}
    began = time.monotonic()
    state = _state(module, samples, options, job)
    tokenizer = _fit(module, samples, options, job.seed, notes, curves, state)
    fitted = time.monotonic()
    metrics = module.evaluate(tokenizer, samples.load(samples.held_out))
    report: dict[str, object] = {
        "kind": kind,
        "vocab_size": tokenizer.vocab_size,
        "fingerprint": tokenizer.fingerprint,
        "metrics": finite(metrics),
        "samples": samples.counts(),
        "seconds": {
            "fit": round(fitted - began, 2),
            "evaluate": round(time.monotonic() - fitted, 2),
        },
        "options": {**asdict(options), "seed": job.seed, "held_out": job.held_out},
        "sources": list(job.sources),
        "notes": notes,
        "curves": {name: thinned(points) for name, points in curves.items()},
    }
    save_fit(tokenizer, report, samples, job.out)
    if state is not None:
        state.clear()
    write_fit_page(job.out / PAGE, tokenizer, report, samples.load(samples.held_out))
    return report


def _fit(
    module: FitModule,
    samples: FitSamples,
    options: "DataclassInstance",
    seed: int,
    notes: list[str],
    curves: dict[str, list[tuple[float, float]]],
    state: "FitState | None",
) -> Tokenizer:
    with Progress(f"fitting {samples.kind}", total=100, unit="%") as bar:

        def progress(message: str, share: float, **figures: float) -> None:
            if message.startswith(NOTE):
                notes.append(message.removeprefix(NOTE))
            for name, value in figures.items():
                curves.setdefault(name.replace("_", " "), []).append((share, value))
                message += f", {name.replace('_', ' ')} {value:.4g}"
            bar.update(100 * share, message)

        loaded = first_or_error(samples) if samples.sources else ()
        more = {} if state is None else {"state": state}
        tokenizer = module.fit(loaded, options, seed=seed, progress=progress, **more)
    for note in notes:
        print(f"{NOTE}{note}", file=sys.stderr)
    return tokenizer


def _state(
    module: FitModule, samples: FitSamples, options: "DataclassInstance", job: FitJob
) -> "FitState | None":
    """Where a fit that takes `state` keeps it, for these samples and options alone."""
    if "state" not in signature(module.fit).parameters:
        return None
    from plait.tokenizers.fit_state import FitState

    facts = {
        "sources": [source.describe() for source in samples.sources],
        "samples": [sorted(chosen) for chosen in samples.fit],
        "options": asdict(options),
        "seed": job.seed,
    }
    text = json.dumps(facts, sort_keys=True, default=str)
    return FitState(job.out / STATE, xxhash.xxh3_128_hexdigest(text.encode()))


def finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """The metrics as JSON has them: null for what is no number."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def thinned(points: list[tuple[float, float]], most: int = 200) -> list[tuple[float, float]]:
    """Means of neighbours, so that a curve has at most so many points."""
    size = -(-len(points) // most)
    groups = (points[i : i + size] for i in range(0, len(points), size or 1))
    means = ([sum(column) / len(group) for column in zip(*group, strict=True)] for group in groups)
    return [(round(x, 4), float(f"{y:.5g}")) for x, y in means]


def first_or_error(samples: FitSamples) -> Iterable:
    """The samples to fit on; ConfigError if not one of them can be read."""
    loaded = samples.load(samples.fit)
    for first in loaded:
        return _chain(first, loaded)
    reasons = [f"{r.source}: {r.key}: {r.reason}" for r in samples.rejected.values()]
    raise ConfigError(f"none of the samples can be used; the first: {reasons[0]}")


def _chain(first: object, others: Iterable) -> Iterable:
    yield first
    yield from others


def save_fit(
    tokenizer: Tokenizer, report: Mapping[str, object], samples: FitSamples, out: Path
) -> None:
    """The tokenizer's folder, without a page, in place of one that is there."""
    empty_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(
        json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    if samples.rejected:
        lines = [json.dumps(asdict(r)) + "\n" for r in samples.rejected.values()]
        (out / "rejected.jsonl").write_text("".join(lines), encoding="utf-8")
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


def _usage() -> str:
    lines = [f"  plait fit {kind} SOURCE... --out DIR [options]" for kind in MODULES]
    lines.append(f"  plait fit {PRETRAINED} FOLDER [SOURCE...] --out DIR [options]")
    return "\n".join(
        [
            "usage:",
            *lines,
            "",
            "Trains a tokenizer on files or folders, and reports its quality on held-out samples.",
            "`plait fit KIND --help` lists the options of a kind.",
        ]
    )
