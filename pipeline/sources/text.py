"""Text files (.txt, .md; plain, gzip or zstd), UTF-8, one document each."""

from pathlib import Path

from plait.pipeline.fields import Fields
from plait.pipeline.files import FileList, open_files_of


def open_source(path: Path, root: Path, fields: Fields) -> FileList:
    """All text files of a folder, or one file."""
    del root, fields
    return open_files_of(path, kind="text", make=open_files)


def open_files(root: Path, files: list[Path]) -> FileList:
    """These text files, one document each."""
    return FileList(root, files, kind="text", part="text", samples_per_task=4096)
