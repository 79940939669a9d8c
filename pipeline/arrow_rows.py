"""Base of the sources that read Arrow tables: which columns hold what, and rows in bounded memory.

Columns are told by Hugging Face's own description of them where a file has one, else by type and
name. A column of structs or bytes that no role takes is not read. What is in a file is checked
before it is used, so that damaged offsets or text reject a row, and nothing else.
"""

import datetime
import decimal
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, cast

from plait.pipeline.fields import KEYS, LISTS, ROLES, Fields, row_name
from plait.pipeline.row_parts import Columns, Place, gather_row
from plait.pipeline.source import Json, Rejected, Sample
from plait.tokenizers.errors import ConfigError, SampleError

if TYPE_CHECKING:
    import pyarrow

TEXTS = (
    *("text", "caption", "captions", "transcription", "transcript", "sentence"),
    *("content", "sentences", "normalized_text", "description", "title"),
)
"""Names of columns of text; the first that is there is taken."""
IMAGES = ("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp", "image_bytes")
AUDIOS = ("audio", "sound", "speech", "wav", "flac", "mp3", "ogg", "opus", "audio_bytes")
UNREADABLE = (ValueError, OverflowError, NotImplementedError)
"""What a row raises that is damaged or has no Python value; Arrow's own errors are among them."""
BATCH_BYTES = 8 << 20
"""About how much of a table is in memory at once; a single row may take more."""


class ArrowRows(ABC):
    """The rows of a table."""

    kind: str
    path: Path

    def __init__(self, root: Path, folder: Path, schema: "pyarrow.Schema", fields: Fields) -> None:
        self.fields = fields
        try:
            self.columns = columns_of(schema, fields, self.path)
            self.read_columns = [f.name for f in schema if _is_wanted(f, self.columns, fields)]
        except UnicodeDecodeError:
            raise ConfigError(f"{self.path}: damaged: a column's name is not UTF-8") from None
        self.samples_per_task = 16384 if self.columns.names <= {*self.columns.text} else 1024
        self._place = Place(folder, root)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batches(self, start: int, stop: int) -> Iterator["pyarrow.RecordBatch"]:
        """The rows start .. stop - 1 of `read_columns`, in pieces."""

    @abstractmethod
    def listing(self) -> str:
        """A hash of what the table holds."""

    def read(self, start: int, stop: int) -> Iterator[Sample | Rejected]:
        """One sample a row, by its number from 1; a bad row is rejected."""
        names = self.fields.names("key", KEYS)
        number = start
        for batch in self.batches(start, stop):
            for row in rows_of(batch):
                number += 1
                key = f"#{number}" if isinstance(row, str) else f"{row_name(row, names)}#{number}"
                try:
                    if isinstance(row, str):
                        raise SampleError(row)
                    yield self._sample_of(key, row)
                except SampleError as error:
                    yield Rejected(source=str(self.path), key=key, reason=str(error))

    def describe(self) -> dict[str, Json]:
        """Path, kind, count, hash and mapping."""
        return self.fields.describe(self, self.listing())

    def _sample_of(self, key: str, row: dict[str, object]) -> Sample:
        found, used = gather_row(row, self.columns, self._place)
        names = self.columns.names
        rest = {k: v for k, v in row.items() if k not in used and (v is not None or k not in names)}
        kinds = sorted(part.kind for part in found.parts)
        return Sample(
            key=key,
            parts=tuple(found.parts),
            metadata={k: as_json(v) for k, v in rest.items()} | found.note(),
            captioned=kinds in (["image", "text"], ["audio", "text"])
            and len(used) == 2
            and used.isdisjoint({*self.columns.images, *self.columns.texts}),
        )


def import_arrow(kind: str) -> ModuleType:
    """pyarrow; ConfigError with what to install if it is not there."""
    try:
        import pyarrow
    except ImportError:
        raise ConfigError(
            f"sources of kind {kind} need pyarrow: pip install 'plait[parquet]'"
        ) from None
    return pyarrow


def columns_of(schema: "pyarrow.Schema", fields: Fields, path: Path) -> Columns:
    """Which columns hold what; ConfigError if none does, or one that the user named is absent."""
    described = _features(schema)
    found: dict[str, list[str]] = {role: [] for role in ROLES if role != "key"}
    for field in schema:
        role = _role_of(field.name.lower(), field.type, described.get(field.name, ""))
        if role is not None:
            found[role].append(field.name)
    found["text"] = sorted(found["text"], key=lambda name: TEXTS.index(name.lower()))[:1]
    if not (found["images"] and found["texts"]):
        found["images"] = found["texts"] = []
    columns = Columns(**{role: tuple(names) for role, names in found.items()}).mapped(fields)
    _check(schema, columns, fields, path)
    return columns


def rows_of(batch: "pyarrow.RecordBatch") -> Iterator[dict[str, object] | str]:
    """The rows of a batch as Python values, or the reason why one is none."""
    for piece in _pieces(batch):
        try:
            yield from _values(piece)
        except UNREADABLE:
            for number in range(piece.num_rows):
                yield _one_row(piece.slice(number, 1))


def _pieces(batch: "pyarrow.RecordBatch") -> list["pyarrow.RecordBatch"]:
    try:
        batch.validate(full=True)  # before its size: offsets that lead astray are followed there
        step = max(1, int(BATCH_BYTES / max(1, batch.nbytes / max(1, batch.num_rows))))
    except UNREADABLE:
        step = batch.num_rows
    return [batch.slice(start, step) for start in range(0, batch.num_rows, step)]


def as_json(value: object) -> Json:
    """A value as metadata; of bytes, only how many."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, list | tuple):
        return [as_json(v) for v in value]
    if isinstance(value, dict):
        return {str(k): as_json(v) for k, v in value.items()}
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value) if isinstance(value, decimal.Decimal | datetime.timedelta) else repr(value)


def _one_row(row: "pyarrow.RecordBatch") -> dict[str, object] | str:
    try:
        return _values(row)[0]
    except UNREADABLE as error:
        return f"bad row: {str(error)[:300]}"


def _values(batch: "pyarrow.RecordBatch") -> list[dict[str, object]]:
    import pyarrow.types as types

    batch.validate(full=True)
    for number, field in enumerate(batch.schema):
        kind = field.type
        if types.is_temporal(kind) and not types.is_interval(kind):  # Python has no nanoseconds
            text = batch.column(number).cast("string")
            batch = batch.set_column(number, field.name, text)
    return batch.to_pylist()


def _role_of(name: str, kind: "pyarrow.DataType", described: str) -> str | None:
    """The role of a column by what is said of it, its type and its name in small letters."""
    import pyarrow.types as types

    if described in ("Image", "Audio"):
        return described.lower()
    if types.is_struct(kind) and {f.name for f in kind.fields} >= {"bytes", "path"}:
        return "audio" if any(word in name for word in AUDIOS) else "image"
    if types.is_list(kind) or types.is_large_list(kind):
        if name in LISTS or name in ("images", "texts"):
            return "parts" if name in LISTS else name
        return "text" if name in TEXTS and _is_text(kind.value_type) else None
    if _is_text(kind):
        return "text" if name in TEXTS else name if name in ("image", "audio") else None
    if _is_binary(kind):
        return "image" if name in IMAGES else "audio" if name in AUDIOS else None
    return None


def _is_text(kind: "pyarrow.DataType") -> bool:
    import pyarrow.types as types

    if types.is_dictionary(kind):
        kind = cast("pyarrow.DictionaryType", kind).value_type
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _is_binary(kind: "pyarrow.DataType") -> bool:
    import pyarrow.types as types

    fixed = types.is_binary(kind) or types.is_fixed_size_binary(kind)
    return fixed or types.is_large_binary(kind) or types.is_binary_view(kind)


def _is_wanted(field: "pyarrow.Field", columns: Columns, fields: Fields) -> bool:
    if field.name in columns.names or field.name in fields.names("key"):
        return True
    return not _holds_bytes(field.type)


def _holds_bytes(kind: "pyarrow.DataType") -> bool:
    inside = (kind.field(i).type for i in range(kind.num_fields))
    return _is_binary(kind) or any(map(_holds_bytes, inside))


def _features(schema: "pyarrow.Schema") -> dict[str, str]:
    """Hugging Face's types of columns, where the schema has them."""
    try:
        text = (schema.metadata or {})[b"huggingface"]
        features = json.loads(text)["info"]["features"]
        return {name: str(said["_type"]) for name, said in features.items() if "_type" in said}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _check(schema: "pyarrow.Schema", columns: Columns, fields: Fields, path: Path) -> None:
    there = ", ".join(f"{field.name} ({field.type})" for field in schema)[:1000]
    for role in ROLES:
        missing = [n for n in fields.names(role) if n not in schema.names]
        if missing:
            raise ConfigError(f"{path}: no column {missing[0]!r} for {role}; it has {there}")
    if not columns.names:
        raise ConfigError(
            f"{path}: no column of text, pictures or sounds is known by its name; it has {there}; "
            "--field ROLE=COLUMN says which it is"
        )
