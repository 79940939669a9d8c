"""The samples that a tokenizer is fitted on: found in sources, split, loaded one by one.

Sources are read three times, media only as needed: to see what is there, to fit, to evaluate. Which
samples are held out follows from their keys alone, so a repeated fit, or one with other options,
is judged on the same samples.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import xxhash

from plait.pipeline.fields import NO_FIELDS, Fields
from plait.pipeline.find import open_sources
from plait.pipeline.source import Rejected, Sample, Source
from plait.tokenizers.errors import ConfigError, SampleError

if TYPE_CHECKING:
    from PIL.Image import Image

    from plait.tokenizers.base import Waveform

PARTS = {
    "text": ("text",),
    "image": ("image",),
    "speech": ("audio",),
    "bytes": ("bytes", "text"),
    "entropy": ("bytes", "text"),
}
"""The parts of a sample that each kind of tokenizer takes."""
MOST_HELD_OUT = 2000

Raw: TypeAlias = "str | bytes | Image | Waveform"


@dataclass(kw_only=True)
class FitSamples:
    """Samples that hold a part of the kind, by source and number, and what was set aside."""

    kind: str
    sources: list[Source]
    fit: list[set[int]] = field(default_factory=list)
    """For each source, the numbers of the samples to fit on."""
    held_out: list[set[int]] = field(default_factory=list)
    """The same for the evaluation."""
    rejected: dict[tuple[str, str], Rejected] = field(default_factory=dict)
    """Samples that cannot be used, by source and key."""

    def load(self, numbers: list[set[int]]) -> Iterator[Raw]:
        """Raw samples of `fit` or `held_out`; one that cannot be read moves to `rejected`."""
        for source, chosen in zip(self.sources, numbers, strict=True):
            for number, sample in enumerate(source.read(0, len(source)) if chosen else ()):
                if number not in chosen or isinstance(sample, Rejected):
                    continue
                try:
                    yield from _load_parts(sample, self.kind)
                except SampleError as error:
                    path, reason = str(source.path), str(error)
                    self.reject(Rejected(source=path, key=sample.key, reason=reason))
                    chosen.discard(number)

    def reject(self, rejected: Rejected) -> None:
        """Note a sample, once, however often it is read."""
        self.rejected.setdefault((rejected.source, rejected.key), rejected)

    def counts(self) -> dict[str, int]:
        """Samples fitted on, held out and rejected, as they now stand."""
        fitted, held_out = sum(map(len, self.fit)), sum(map(len, self.held_out))
        return {"fit": fitted, "held_out": held_out, "rejected": len(self.rejected)}


def first_or_error(samples: FitSamples) -> Iterator[Raw]:
    """The samples to fit on; ConfigError if not one of them can be read."""
    loaded = samples.load(samples.fit)
    for first in loaded:
        return chain([first], loaded)
    reasons = [f"{r.source}: {r.key}: {r.reason}" for r in samples.rejected.values()]
    raise ConfigError(f"none of the samples can be used; the first: {reasons[0]}")


def find_samples(
    kind: str,
    paths: Sequence[str | Path],
    *,
    source_kind: str | None = None,
    fields: Fields = NO_FIELDS,
    max_samples: int = 0,
    held_out: float = 0.05,
    seed: int = 0,
) -> FitSamples:
    """Look through sources; ConfigError if one of the paths holds nothing of this kind."""
    samples = FitSamples(kind=kind, sources=[])
    found: list[tuple[int, int, str]] = []
    for path in paths:
        sources = open_sources(path, source_kind, fields)
        usable = _look(samples, sources)
        if not usable:
            raise ConfigError(_nothing_found(kind, path, sources, samples))
        found += [(len(samples.sources) + s, number, key) for s, number, key in usable]
        samples.sources += sources
    _split(samples, found, max_samples, held_out, seed)
    return samples


def _look(samples: FitSamples, sources: Sequence[Source]) -> list[tuple[int, int, str]]:
    """Source, number and key of each sample that has a part of the kind."""
    usable = []
    for place, source in enumerate(sources):
        for number, sample in enumerate(source.read(0, len(source))):
            if isinstance(sample, Rejected):
                samples.reject(sample)
            elif any(part.kind in PARTS[samples.kind] for part in sample.parts):
                usable.append((place, number, sample.key))
    return usable


def _split(
    samples: FitSamples,
    found: list[tuple[int, int, str]],
    max_samples: int,
    held_out: float,
    seed: int,
) -> None:
    """By hashes of keys: which samples are used at all (with the seed), which are held out."""
    if 0 < max_samples < len(found):
        drawn = sorted(found, key=lambda entry: _hash(entry[2], seed + 1))[:max_samples]
        found = sorted(drawn)
    hashes = np.array([_hash(key) for _, _, key in found], np.uint64)
    below = int((hashes < held_out * 2.0**64).sum())
    if held_out > 0 and len(found) > 1:
        below = min(max(below, 1), MOST_HELD_OUT, len(found) - 1)
    kept_out = set(np.argsort(hashes, kind="stable")[:below].tolist())
    samples.fit = [set() for _ in samples.sources]
    samples.held_out = [set() for _ in samples.sources]
    for i, (source, number, _) in enumerate(found):
        (samples.held_out if i in kept_out else samples.fit)[source].add(number)


def _hash(key: str, seed: int = 0) -> int:
    return xxhash.xxh3_64_intdigest(key.encode(errors="surrogatepass"), seed)


def _nothing_found(
    kind: str, path: str | Path, sources: Sequence[Source], samples: FitSamples
) -> str:
    seen: Counter[str] = Counter()
    for source in sources:
        for sample in source.read(0, len(source)):
            rejected = isinstance(sample, Rejected)
            seen.update(["unreadable row"] if rejected else [p.kind for p in sample.parts])
    what = ", ".join(f"{count} {name}" for name, count in seen.most_common()) or "no sample at all"
    wanted = " or ".join(PARTS[kind])
    reasons = [f" (first: {r.key}: {r.reason})" for r in samples.rejected.values()][:1]
    return f"{path}: nothing to fit {kind} on: no {wanted}, but {what}{''.join(reasons)}"


def _load_parts(sample: Sample, kind: str) -> list[Raw]:
    """Raw samples as the tokenizers take them; SampleError if one is not usable."""
    return [_checked(part.load(), kind) for part in sample.parts if part.kind in PARTS[kind]]


def _checked(raw: Raw, kind: str) -> Raw:
    if isinstance(raw, str):
        try:
            data = raw.encode()
        except UnicodeEncodeError as error:
            reason = f"lone surrogate at character {error.start}: no valid Unicode"
            raise SampleError(reason) from None
        raw = data if "bytes" in PARTS[kind] else raw
    if isinstance(raw, (str, bytes)) and not raw:
        raise SampleError("empty")
    return raw
