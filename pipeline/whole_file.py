"""A small file that is written whole or not at all, whenever the process is killed."""

import os
from pathlib import Path


def write_whole(path: Path, text: str, *, synced: bool = False) -> None:
    """Put a file in the place of one that is there; `synced` waits until the disk has it.

    What a killed process leaves is named `.NAME.writing`.
    """
    temporary = path.with_name(f".{path.name}.writing")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        if synced:
            file.flush()
            os.fsync(file.fileno())
    temporary.replace(path)
