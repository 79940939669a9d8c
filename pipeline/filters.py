"""What a shard job leaves out on purpose: documents out of bounds, duplicates, the other split.

A filter never drops silently: what it takes out is rejected with a reason that begins with
`filtered`, so documents + rejected = samples stays true. Bounds on raw samples are tested when a
part is read, before its tokenizer; the split is by a hash of the key, so it is the same for any
shards, and for a source that has grown.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Literal

import tyro

from plait.pipeline.block import EncodedDocument
from plait.pipeline.encode import share_of
from plait.pipeline.source import Json, Part, Rejected, Sample
from plait.pipeline.store import Store
from plait.tokenizers.base import Waveform
from plait.tokenizers.errors import ConfigError, SampleError

if TYPE_CHECKING:
    from PIL.Image import Image

_NEED_MEDIA = ("min_side", "max_aspect", "min_seconds", "max_seconds")


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Which samples become documents; a bound of 0 is none."""

    min_chars: int = 0
    """Fewest characters of a document's text, all its texts together; without text it passes."""
    max_chars: int = 0
    """Most characters of a document's text."""
    min_tokens: int = 0
    """Fewest tokens of a document, of all modalities."""
    max_tokens: int = 0
    """Most tokens of a document."""
    min_side: int = 0
    """Fewest pixels of the shorter side of each image."""
    max_aspect: float = 0.0
    """Longer side of an image over its shorter side, at most."""
    min_seconds: float = 0.0
    """Shortest sound."""
    max_seconds: float = 0.0
    """Longest sound; above half an hour none is read anyway."""
    deduplicate: Literal["no", "documents", "media"] = "no"
    """documents: not what is the same as an earlier one, byte by byte; media: nor what has an
    image or sound of an earlier one. Takes a second pass over the sources."""
    validation: float = 0.0
    """Share of samples, chosen by key, for a stream of its own: OUT/train, OUT/validation."""
    split_seed: int = 0
    """Another seed chooses other samples for validation."""
    split: tyro.conf.Suppress[Literal["all", "train", "validation"]] = "all"
    """Which part of the split a job writes."""

    def check(self) -> None:
        """ConfigError if a value is impossible."""
        for name, low in (("chars", 0), ("tokens", 0), ("side", 0), ("seconds", 0), ("aspect", 1)):
            least, most = getattr(self, f"min_{name}", 0), getattr(self, f"max_{name}", 0)
            if not least >= 0 or not (most == 0 or most >= max(least, low)):
                raise ConfigError(
                    f"bounds of {name}: from {least:g} to {most:g} lies no document; 0 is no bound"
                )
        if not 0 <= self.validation < 1:
            raise ConfigError(f"--validation {self.validation}: from 0 to below 1")
        if self.split != "all" and not self.validation:
            raise ConfigError(f"split {self.split!r} without a share for validation")

    def chosen(self) -> dict[str, Json]:
        """Those that are not at their defaults, for a job's specification."""
        return {f.name: v for f in fields(self) if (v := getattr(self, f.name)) != f.default}

    def parts(self) -> list["Filters"]:
        """These filters for each stream of the split that is to be written; none without one."""
        if not self.validation or self.split != "all":
            return []
        return [replace(self, split="train"), replace(self, split="validation")]

    def scaled(self, samples: int) -> int:
        """How many samples to read for so many of the split."""
        share = {"all": 1.0, "train": 1 - self.validation, "validation": self.validation}
        return max(1, round(samples / share[self.split]))

    def takes(self, key: str) -> bool:
        """Whether a sample belongs to the split.

        Rows of JSONL are told apart by what they call themselves, if they do: `id` of `id#line`.
        """
        if self.split == "all":
            return True
        name, _, line = key.rpartition("#")
        name = name if name and line.isdecimal() else key
        held_out = share_of(f"{self.split_seed}\0{name}", "split") < self.validation
        return held_out == (self.split == "validation")


class Gate:
    """The filters of one task: its samples pass on the way in, its documents on the way out.

    `dropped` has the reasons of `read_dropped`.
    """

    def __init__(self, filters: Filters, source: str, dropped: Mapping[int, str]) -> None:
        self._filters = filters
        self._source = source
        self._dropped = dropped
        self._chars = bool(filters.min_chars or filters.max_chars)
        self._media = any(getattr(filters, name) for name in _NEED_MEDIA)
        self._tokens = bool(filters.min_tokens or filters.max_tokens)
        self._split = filters.split != "all"
        self.elsewhere = 0
        """Samples of the other split."""

    def samples(self, samples: Iterable[Sample | Rejected]) -> Iterator[Sample | Rejected]:
        """The samples of the split, each of them or why it is left out."""
        if self._chars or self._media or self._split or self._dropped:
            return self._each(samples)
        return iter(samples)

    def _each(self, samples: Iterable[Sample | Rejected]) -> Iterator[Sample | Rejected]:
        for number, sample in enumerate(samples):
            if not self._filters.takes(sample.key):
                self.elsewhere += 1
            elif isinstance(sample, Rejected):
                yield sample
            elif number in self._dropped:
                yield self._rejected(sample.key, self._dropped[number])
            else:
                yield self._passed(sample)

    def document(self, document: EncodedDocument | Rejected) -> EncodedDocument | Rejected:
        """A document, or why it is left out."""
        if not self._tokens or isinstance(document, Rejected):
            return document
        f, tokens = self._filters, sum(len(encoded.ids) for _, encoded in document.spans)
        if tokens < f.min_tokens:
            reason = f"too few tokens: {tokens}, at least {f.min_tokens}"
            return self._rejected(document.key, reason)
        if f.max_tokens and tokens > f.max_tokens:
            reason = f"too many tokens: {tokens}, at most {f.max_tokens}"
            return self._rejected(document.key, reason)
        return document

    def _passed(self, sample: Sample) -> Sample | Rejected:
        if self._chars:
            try:
                sample = _with_text(sample)
            except SampleError as error:
                return Rejected(source=self._source, key=sample.key, reason=str(error))
            if reason := self._text_reason(sample):
                return self._rejected(sample.key, reason)
        if not self._media:
            return sample
        return replace(sample, parts=tuple(self._bounded(part) for part in sample.parts))

    def _bounded(self, part: Part) -> Part:
        if part.kind not in ("image", "audio"):
            return part
        return _BoundedPart(kind=part.kind, value=part.value, part=part, filters=self._filters)

    def _text_reason(self, sample: Sample) -> str:
        texts = [str(part.value) for part in sample.parts if part.kind == "text"]
        chars, f = sum(map(len, texts)), self._filters
        if texts and any(text.strip() for text in texts):  # else it is rejected as empty
            if chars < f.min_chars:
                return f"text too short: {chars} characters, at least {f.min_chars}"
            if f.max_chars and chars > f.max_chars:
                return f"text too long: {chars} characters, at most {f.max_chars}"
        return ""

    def _rejected(self, key: str, reason: str) -> Rejected:
        return Rejected(source=self._source, key=key, reason=f"filtered, {reason}")


@dataclass(frozen=True, kw_only=True)
class _BoundedPart(Part):
    """An image or a sound that cannot be loaded if it is out of bounds."""

    part: Part
    filters: Filters

    def load(self) -> "str | bytes | Image | Waveform":
        raw = self.part.load()
        reason = ""
        if isinstance(raw, Waveform):
            reason = _sound_reason(raw, self.filters)
        elif not isinstance(raw, str | bytes):
            reason = _image_reason(raw, self.filters)
        if reason:
            raise SampleError(f"filtered, {reason}")
        return raw


def read_dropped(store: Store, task: int) -> dict[int, str]:
    """What `mark_duplicates` leaves out of a task: reasons by number of the sample in its range."""
    name = dropped_name(task)
    reasons = json.loads(store.read([name]).get(name, b"{}"))
    return {int(number): str(reason) for number, reason in reasons.items()}


def dropped_name(task: int) -> str:
    """The file of `read_dropped`."""
    return f"job/dropped-{task:06d}.json"


def _with_text(sample: Sample) -> Sample:
    """The sample with its texts read; SampleError if one is unreadable."""
    if all(isinstance(part.value, str) for part in sample.parts if part.kind == "text"):
        return sample
    parts = [
        Part(kind="text", value=str(part.load())) if part.kind == "text" else part
        for part in sample.parts
    ]
    return replace(sample, parts=tuple(parts))


def _image_reason(image: "Image", filters: Filters) -> str:
    width, height = image.size
    size = f"{width}x{height}"
    if min(width, height) < filters.min_side:
        return f"image too small: {size} pixels, a side of at least {filters.min_side}"
    aspect = max(width, height) / min(width, height)
    if filters.max_aspect and aspect > filters.max_aspect:
        return f"image too narrow: {size} pixels, sides of at most 1 to {filters.max_aspect:g}"
    return ""


def _sound_reason(sound: Waveform, filters: Filters) -> str:
    seconds = len(sound.samples) / sound.sample_rate_hz
    if seconds < filters.min_seconds:
        return f"sound too short: {seconds:.3f} s, at least {filters.min_seconds:g} s"
    if filters.max_seconds and seconds > filters.max_seconds:
        return f"sound too long: {seconds:.3f} s, at most {filters.max_seconds:g} s"
    return ""
