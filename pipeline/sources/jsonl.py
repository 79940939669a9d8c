"""JSONL, plain or gzip, whose rows have a `text`; one document a row."""

from pathlib import Path

from plait.pipeline.json_rows import JsonRows
from plait.pipeline.source import Json, Part, Sample
from plait.tokenizers.errors import SampleError


class TextRows(JsonRows):
    """The `text` of each row; everything else in the row is metadata."""

    kind = "jsonl"
    samples_per_task = 16384

    def sample_of(self, key: str, row: dict[str, Json]) -> Sample:
        """SampleError for a row without text."""
        text = row.pop("text", None)
        if not isinstance(text, str):
            raise SampleError("row without text")
        return Sample(key=key, parts=(Part(kind="text", value=text),), metadata=row)


def open_source(path: Path, root: Path) -> TextRows:
    """The rows of a JSONL file."""
    return TextRows(path, root)
