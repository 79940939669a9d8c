"""The pictures and sounds that tokens were made of, where a stream's source is still at hand.

A stream's manifest says which file and rows a shard came from; a document's key names the row. The
original is shown only if the tokenizer makes the same tokens of it, so a source that has changed
since, or a manifest that points at something else, shows nothing. Local files alone are looked at,
never a network; the search is bounded in time, file size and number, and what it does not find is
left out.
"""

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from plait.pipeline.compressed import is_compressed
from plait.pipeline.fields import Fields
from plait.pipeline.files import LOOSE
from plait.pipeline.find import kinds, open_kind
from plait.pipeline.inspect.content import Content, show
from plait.pipeline.inspect.row_spans import Within
from plait.pipeline.remote import is_url
from plait.pipeline.source import Part, PartKind, Sample, Source
from plait.pipeline.stream import Stream
from plait.tokenizers.base import Encoded, Tokenizer, Waveform
from plait.tokenizers.errors import PlaitError

KIND_OF: Mapping[str, PartKind] = {"image": "image", "speech": "audio"}
"""The part of a sample that a span of a modality is made of."""
SEARCH_S = 8.0
"""Seconds that the search takes at most; what is being opened or read then is finished."""
MOST_SAMPLES = 20_000
"""Samples that are passed over in the search for one, at most."""
MOST_BYTES, MOST_COMPRESSED = 256 << 20, 32 << 20
"""Sizes of a source's file above which it is not opened: counting its rows means reading it."""
MOST_TOKENS = 1 << 16
"""Tokens of a span above which its original is not encoded again."""
SIDE = 192
"""Pixels of an original's longer side in the page."""
ALIKE = 0.9
"""Share of codes that must agree: floating point may turn some on another machine."""
PARENTS = 3
"""Folders above a stream that a relative path of its manifest is looked up from."""


class Originals:
    """Looks up originals in the sources of a stream."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._sources: dict[int, Source | Path | None] = {}
        self._samples: dict[int, Sample | None] = {}
        self._left_s = SEARCH_S
        self._until = 0.0
        self.asked = self.found = 0

    def content(
        self, document: int, within: Within, tokens: int, tokenizer: Tokenizer
    ) -> Content | None:
        """The original of so many tokens as the page shows it; None if it is not at hand."""
        if tokenizer.modality not in KIND_OF:
            return None
        self.asked += 1
        if self._left_s <= 0:
            return None
        began = time.monotonic()
        self._until = began + self._left_s
        try:
            shown = self._content(document, within, tokens, tokenizer)
        except (PlaitError, OSError, ValueError, TypeError, LookupError, RuntimeError):
            shown = None  # a source that is gone, changed or damaged since
        self._left_s -= time.monotonic() - began
        self.found += shown is not None
        return shown

    @property
    def words(self) -> str:
        """A sentence for the page."""
        if not self.asked:
            return ""
        if not self.found:
            return "The originals are not at hand: what is shown is what tokens decode to."
        return f"{self.found} of {self.asked} originals were found in the stream's sources."

    def _content(
        self, document: int, within: Within, tokens: int, tokenizer: Tokenizer
    ) -> Content | None:
        spans = self._stream.document(document).spans
        stored = spans[within.span].encoded
        if len(stored.ids) > MOST_TOKENS:
            return None
        sample = self._sample(document)
        if sample is None:
            return None
        parts = [part for part in sample.parts if part.kind == KIND_OF[tokenizer.modality]]
        numbers = [i for i, span in enumerate(spans) if span.modality == tokenizer.modality]
        if len(parts) != len(numbers):
            return None
        raw = parts[numbers.index(within.span)].load()
        if not alike(stored, tokenizer.encode_batch([raw])[0]):
            return None
        if isinstance(raw, Waveform):
            raw = _seconds_of(raw, stored, within.offset, tokens)
        return show(raw, SIDE)

    def _sample(self, document: int) -> Sample | None:
        if document not in self._samples:
            self._samples[document] = self._look_up(document)
        return self._samples[document]

    def _look_up(self, document: int) -> Sample | None:
        shard = int(np.searchsorted(self._stream.starts, document, "right")) - 1
        entry = self._stream.manifest["shards"][shard]
        number, start, stop = (int(entry[name]) for name in ("source", "start", "stop"))
        described = self._stream.manifest["sources"][number]
        if number not in self._sources:
            self._sources[number] = open_described(described, self._stream.path)
        source, key = self._sources[number], self._stream.document(document).key
        if isinstance(source, Path):
            file = (source / key).resolve()
            if not file.is_relative_to(source.resolve()):
                return None
            kind = KIND_OF["image" if described["kind"] == "images" else "speech"]
            return Sample(key=key, parts=(Part(kind=kind, value=file),))
        if source is None:
            return None
        return self._search(source, key, start + document - int(self._stream.starts[shard]), stop)

    def _search(self, source: Source, key: str, first: int, stop: int) -> Sample | None:
        """The sample of that key: at its number if none before it was rejected, else later."""
        for a, b in ((first, first + 1), (first + 1, first + MOST_SAMPLES)):
            for sample in source.read(a, min(b, stop)):
                if sample.key == key:
                    return sample if isinstance(sample, Sample) else None
                if time.monotonic() > self._until:
                    return None
        return None


def open_described(described: Mapping[str, object], near: Path) -> Source | Path | None:
    """The source that a manifest describes, or the folder of loose files whose names are keys.

    None if it is not on this machine, or too large. A relative path is looked up from the working
    folder, then from `near` and those above it.
    """
    path, kind, fields = described["path"], described["kind"], described.get("fields") or {}
    if not isinstance(path, str) or is_url(path) or path.startswith(("//", "\\\\")):
        return None
    if kind not in kinds() or not isinstance(fields, dict):
        return None
    folders = [Path(), near, *list(near.resolve().parents)[:PARENTS]]
    found = next((file for file in (folder / path for folder in folders) if file.exists()), None)
    if found is None:
        return None
    if found.is_dir() and kind in LOOSE:
        return found if kind in ("images", "audio") else None
    most = MOST_COMPRESSED if is_compressed(found) else MOST_BYTES
    if found.is_file() and found.stat().st_size > most:
        return None
    columns = [(str(role), str(name)) for role, names in fields.items() for name in names]
    root = found if found.is_dir() else found.parent
    return open_kind(str(kind), found, root, Fields(tuple(columns)))


def alike(stored: Encoded, again: Encoded) -> bool:
    """Whether two encodings are of one sample, but for the rounding of another machine."""
    if len(stored.ids) != len(again.ids) or stored.width != again.width:
        return False
    if (stored.latents is None) != (again.latents is None):
        return False
    if stored.latents is not None and again.latents is not None:
        return np.allclose(stored.latents, again.latents, rtol=0.02, atol=0.02)
    return bool((stored.ids == again.ids).mean() >= ALIKE)


def _seconds_of(sound: Waveform, stored: Encoded, first: int, tokens: int) -> Waveform:
    """The part of a sound that a piece of its tokens is about; it may be cut at a row's end."""
    lasts = np.ones(len(stored.ids)) if stored.durations is None else stored.durations
    shares = np.concatenate([[0.0], np.cumsum(lasts) / np.sum(lasts)]) * len(sound.samples)
    a, b = (round(shares[at]) for at in (first, first + tokens))
    return Waveform(samples=sound.samples[a:b], sample_rate_hz=sound.sample_rate_hz)
