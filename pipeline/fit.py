"""`plait fit KIND SOURCE...`: train a tokenizer and report how well it does on held-out samples."""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, make_dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import tyro
import xxhash

from plait.pipeline.fields import parse_fields
from plait.pipeline.fit_page import write_fit_page
from plait.pipeline.fit_report import PAGE, Watched, finite, print_report, save_fit, thinned
from plait.pipeline.fit_samples import FitSamples, find_samples, first_or_error
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
STATE = "unfinished.safetensors"
"""What a fit that was killed goes on from; gone when it is done."""
PRETRAINED = "pretrained"
"""The kind that is not fitted: a published codec, taken as it is."""


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
    began = time.monotonic()
    state = _state(module, samples, options, job)
    more = {} if state is None else {"state": state}
    loaded = first_or_error(samples) if samples.sources else ()
    with Watched(f"fitting {kind}") as watched:
        tokenizer = module.fit(loaded, options, seed=job.seed, progress=watched.progress, **more)
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
        "notes": watched.notes,
        "curves": {name: thinned(points) for name, points in watched.curves.items()},
    }
    save_fit(tokenizer, report, samples, job.out)
    if state is not None:
        state.clear()
    write_fit_page(job.out / PAGE, tokenizer, report, samples.load(samples.held_out))
    return report


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
