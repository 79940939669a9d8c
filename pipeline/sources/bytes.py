"""Files of any kind, one document of bytes each; always for the byte tokenizer."""

from pathlib import Path

from plait.pipeline.fields import Fields
from plait.pipeline.files import FileList, open_files_of


def open_source(path: Path, root: Path, fields: Fields) -> FileList:
    """All files of a folder, or one file."""
    del root, fields
    return open_files_of(path, kind="bytes", make=open_files)


def open_files(root: Path, files: list[Path]) -> FileList:
    """These files, one document each."""
    return FileList(root, files, kind="bytes", part="bytes", samples_per_task=4096)
