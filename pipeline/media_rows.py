"""Captioned media: rows of JSONL with `file_name` beside the files (Hugging Face's ImageFolder)."""

from pathlib import Path

from plait.pipeline.fields import Fields
from plait.pipeline.files import FileList, open_files_of
from plait.pipeline.json_rows import JsonRows, is_rows
from plait.pipeline.paths import list_files, listing_hash, resolve
from plait.pipeline.source import AUDIO_SUFFIXES, IMAGE_SUFFIXES, Json, Part, PartKind, Sample
from plait.tokenizers.errors import SampleError

NAMES = ("metadata.jsonl", "metadata.jsonl.gz", "metadata.jsonl.zst")


class MediaRows(JsonRows):
    """Rows of a medium and its caption: parts are (medium, caption), or the medium alone."""

    samples_per_task = 1024

    def __init__(
        self, path: Path, root: Path, fields: Fields, *, kind: str, captions: tuple[str, ...]
    ) -> None:
        super().__init__(path, root, fields)
        self.kind = kind
        role = "audio" if kind == "audio" else "image"
        self._names = fields.names(role, ("file_name",))
        self._captions = fields.names("text", captions)

    def sample_of(self, key: str, row: dict[str, Json]) -> Sample:
        """Raises SampleError where the row has no usable file."""
        column = next((n for n in self._names if isinstance(row.get(n), str)), None)
        if column is None:
            raise SampleError(f"row without {' or '.join(self._names)}")
        name = str(row[column])
        medium = Part(kind=self._kind_of(name), value=resolve(name, self.path.parent, self.root))
        used = next((c for c in self._captions if _filled(row.get(c))), None)
        caption = () if used is None else (Part(kind="text", value=str(row[used])),)
        metadata = {k: v for k, v in row.items() if k not in (column, used)}
        return Sample(key=key, parts=(medium, *caption), metadata=metadata, captioned=True)

    def describe(self) -> dict[str, Json]:
        """The hash is of the rows, and of the names and sizes of the files beside them."""
        files = list_files(self.path.parent)
        described = super().describe()
        described["listing"] = f"{described['listing']}-{listing_hash(self.path.parent, files)}"
        return described

    def _kind_of(self, name: str) -> PartKind:
        suffix = Path(name).suffix.lower()
        if suffix in IMAGE_SUFFIXES:
            return "image"
        if suffix in AUDIO_SUFFIXES:
            return "audio"
        return "audio" if self.kind == "audio" else "image"


def open_media(
    path: Path, root: Path, fields: Fields, *, kind: str, captions: tuple[str, ...]
) -> MediaRows | FileList:
    """Rows where there are any (`path`, or `metadata.jsonl` in it), else the files alone."""
    rows = [path] if is_rows(path) else [path / name for name in NAMES]
    for file in rows:
        if file.is_file():
            return MediaRows(file, root, fields, kind=kind, captions=captions)

    def make(folder: Path, files: list[Path]) -> FileList:
        part: PartKind = "image" if kind == "images" else "audio"
        return FileList(folder, files, kind=kind, part=part, samples_per_task=1024)

    return open_files_of(path, kind=kind, make=make)


def _filled(value: Json) -> bool:
    return isinstance(value, str) and bool(value.strip())
