"""JSONL or a JSON array, plain, gzip or zstd, whose rows have a `text`; one document a row."""

from pathlib import Path

from plait.pipeline.fields import Fields
from plait.pipeline.json_rows import JsonRows, rows_in
from plait.pipeline.source import Json, Part, Sample
from plait.tokenizers.errors import SampleError


class TextRows(JsonRows):
    """The `text` of each row; everything else in the row is metadata."""

    kind = "jsonl"
    samples_per_task = 16384

    def sample_of(self, key: str, row: dict[str, Json]) -> Sample:
        """SampleError for a row without text."""
        names = self.fields.names("text", ("text",))
        texts = [text for text in (row.pop(name, None) for name in names) if text is not None]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise SampleError(f"row without {' or '.join(names)}")
        parts = tuple(Part(kind="text", value=str(text)) for text in texts)
        return Sample(key=key, parts=parts, metadata=row)


def open_source(path: Path, root: Path, fields: Fields) -> TextRows:
    """The rows of a file."""
    return TextRows(path, root, fields)


def paths_in(folder: Path) -> list[Path]:
    """The files of a folder that are a source each."""
    return rows_in(folder)
