"""Which kind of source a file is, by its name, and a file of JSON by its first rows."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from plait.pipeline.compressed import suffix_of
from plait.pipeline.fields import NO_FIELDS, Fields
from plait.pipeline.files import loose_kind
from plait.pipeline.json_rows import is_rows, parse_row
from plait.pipeline.lines import is_array, scan_rows
from plait.pipeline.row_parts import Columns
from plait.pipeline.source import AUDIO_SUFFIXES, Json
from plait.tokenizers.errors import ConfigError

PEEKED_ROWS = 20
WHOLE_FILES = {".parquet": "parquet", ".tar": "webdataset", ".arrow": "datasets"}
"""Files that are a source each."""


def kind_of_file(path: Path, fields: Fields = NO_FIELDS) -> str:
    """The kind of a file that the user named; ConfigError if its name does not say it."""
    kind = WHOLE_FILES.get(path.suffix.lower())
    kind = kind or (kind_of_rows(path, fields) if is_rows(path) else loose_kind(path))
    if kind is None:
        raise ConfigError(
            f"{path}: not a kind of file known by its name; to take its bytes: bytes:{path}"
        )
    return kind


def kind_in_folder(path: Path, fields: Fields = NO_FIELDS) -> str | None:
    """The kind of a file that is a source of its own among others; None if it is none.

    Many a `.json` file only stands beside samples: it is a source if it is an array of rows that
    are known, or has two lines that are.
    """
    kind = WHOLE_FILES.get(path.suffix.lower())
    if kind is not None or not is_rows(path):
        return kind
    if suffix_of(path) != ".json":
        return kind_of_rows(path, fields)
    rows = list(_first_rows(path))
    if not is_array(path) and len(rows) < 2:
        return None
    return next((kind for kind in (_kind_of_row(row, fields) for row in rows) if kind), None)


def kind_of_rows(path: Path, fields: Fields = NO_FIELDS) -> str:
    """The kind of a file of JSON, from its first rows."""
    seen: set[str] = set()
    for row in _first_rows(path):
        kind = _kind_of_row(row, fields)
        if kind is not None:
            return kind
        seen |= set(row)
    raise ConfigError(
        f"{path}: no row with file_name, text, image, audio, segments, parts or content in the "
        f"first {PEEKED_ROWS} lines; it has {sorted(seen)[:12]} (--field text=COLUMN names one)"
    )


def _first_rows(path: Path) -> Iterator[dict[str, Json]]:
    for _, _, line in islice(scan_rows(path, array=is_array(path)), PEEKED_ROWS):
        row = parse_row(line)
        if not isinstance(row, str):
            yield row


def _kind_of_row(row: dict[str, Json], fields: Fields) -> str | None:
    columns = Columns().mapped(fields)

    def has(names: tuple[str, ...], *types: type) -> bool:
        return any(isinstance(row.get(name), types) for name in names)

    if has(columns.parts, list) or (has(columns.images, list) and has(columns.texts, list)):
        return "interleaved"
    if has(("text_list",), list) and has(("image_info",), list):
        return "mmc4"
    image, audio = has(columns.image, str), has(columns.audio, str)
    if fields.maps("image", "audio") and image != audio:
        return "images" if image else "audio"
    name = row.get("file_name")
    if isinstance(name, str):
        return "audio" if Path(name).suffix.lower() in AUDIO_SUFFIXES else "images"
    if has(columns.image, str, dict) or has(columns.audio, str, dict):
        return "interleaved"
    return "jsonl" if any(name in row for name in columns.text) else None
