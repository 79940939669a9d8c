"""Interleaved JSONL: rows with a list of text, image and audio parts, or with one of each.

`segments`, `parts` or `content` is a list of `{"type": "text", "text": ...}`, `{"type": "image",
"path": ...}`, `{"type": "audio", "path": ...}` or plain strings. Else the keys `image`, `audio`
and `text` stand beside each other, and the document follows the order of the row.
"""

from pathlib import Path

from plait.pipeline.json_rows import JsonRows
from plait.pipeline.source import Json, Part, Sample, resolve
from plait.tokenizers.errors import SampleError

LISTS = ("segments", "parts", "content")
PATHS = ("path", "file_name", "image", "audio")


class InterleavedRows(JsonRows):
    """One document a row; its parts are texts and files near the JSONL file."""

    kind = "interleaved"
    samples_per_task = 512

    def sample_of(self, key: str, row: dict[str, Json]) -> Sample:
        """SampleError for a row without parts, or with one that is unknown or missing."""
        name = next((n for n in LISTS if isinstance(row.get(n), list)), None)
        if name is not None:
            listed = row[name]
            assert isinstance(listed, list)
            parts = [self._part(entry) for entry in listed]
            used = {name}
        else:
            used = {k for k, v in row.items() if k in ("image", "audio", "text") and v is not None}
            parts = [self._part({"type": k, k: v}) for k, v in row.items() if k in used]
        metadata = {k: v for k, v in row.items() if k not in used}
        return Sample(key=key, parts=tuple(p for p in parts if p is not None), metadata=metadata)

    def _part(self, entry: Json) -> Part | None:
        if isinstance(entry, str):
            entry = {"type": "text", "text": entry}
        kind = entry.get("type") if isinstance(entry, dict) else None
        if not isinstance(entry, dict) or kind not in ("text", "image", "audio"):
            raise SampleError(f"unknown part: type {kind!r}, should be text, image or audio")
        if kind == "text":
            text = entry.get("text")
            if not isinstance(text, str):
                raise SampleError("text part without text")
            return Part(kind="text", value=text) if text else None
        name = next((v for v in map(entry.get, PATHS) if isinstance(v, str)), None)
        if name is None:
            raise SampleError(f"{kind} part without path")
        return Part(kind=kind, value=resolve(name, self.path.parent, self.root))


def open_source(path: Path, root: Path) -> InterleavedRows:
    """The rows of a JSONL file."""
    return InterleavedRows(path, root)
