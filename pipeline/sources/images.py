"""Images: a folder with `metadata.jsonl` (`file_name`, `caption` or `text`), or images alone."""

from pathlib import Path

from plait.pipeline.fields import Fields
from plait.pipeline.files import FileList
from plait.pipeline.media_rows import MediaRows, open_media

CAPTIONS = ("caption", "text")


def open_source(path: Path, root: Path, fields: Fields) -> MediaRows | FileList:
    """The images of a folder, of the rows of a JSONL file, or one image."""
    return open_media(path, root, fields, kind="images", captions=CAPTIONS)


def open_files(root: Path, files: list[Path]) -> FileList:
    """Images without captions, one document each."""
    return FileList(root, files, kind="images", part="image", samples_per_task=1024)
