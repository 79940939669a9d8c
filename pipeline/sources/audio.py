"""Sounds: a folder with `metadata.jsonl` (`file_name`, `text` or `transcript`), or sounds alone."""

from pathlib import Path

from plait.pipeline.fields import Fields
from plait.pipeline.files import FileList
from plait.pipeline.media_rows import MediaRows, open_media

CAPTIONS = ("text", "transcript", "transcription", "sentence", "caption")


def open_source(path: Path, root: Path, fields: Fields) -> MediaRows | FileList:
    """The sounds of a folder, of the rows of a JSONL file, or one sound."""
    return open_media(path, root, fields, kind="audio", captions=CAPTIONS)


def open_files(root: Path, files: list[Path]) -> FileList:
    """Sounds without transcripts, one document each."""
    return FileList(root, files, kind="audio", part="audio", samples_per_task=1024)
