"""Interleaved JSON: rows with a list of text, image and audio parts, or with one of each.

The rows of JSONL or of a JSON array. What a row may look like stands in `row_parts.py`.
"""

from pathlib import Path

from plait.pipeline.fields import Fields
from plait.pipeline.json_rows import JsonRows, rows_in
from plait.pipeline.row_parts import Columns, Place, gather_row
from plait.pipeline.source import Json, Sample


class InterleavedRows(JsonRows):
    """One document a row; its parts are texts and files near the JSON file."""

    kind = "interleaved"
    samples_per_task = 512

    def sample_of(self, key: str, row: dict[str, Json]) -> Sample:
        """SampleError for a row without parts, or with one that is unknown or missing."""
        place = Place(self.path.parent, self.root)
        found, used = gather_row(row, Columns().mapped(self.fields), place)
        metadata = {k: v for k, v in row.items() if k not in used} | found.note()
        return Sample(key=key, parts=tuple(found.parts), metadata=metadata)


def open_source(path: Path, root: Path, fields: Fields) -> InterleavedRows:
    """The rows of a file."""
    return InterleavedRows(path, root, fields)


def paths_in(folder: Path) -> list[Path]:
    """The files of a folder that are a source each."""
    return rows_in(folder)
