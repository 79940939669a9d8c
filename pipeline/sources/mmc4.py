"""MMC4's JSONL: sentences in `text_list`, and each picture before the sentence that it matches.

`image_info` names for each picture `image_name` and `matched_text_index`. A picture of which there
is only an address (`raw_url`) is left out and counted; one whose file is missing rejects the row.
"""

from pathlib import Path
from typing import cast

from plait.pipeline.fields import Fields
from plait.pipeline.json_rows import JsonRows, rows_in
from plait.pipeline.row_parts import Gathered, Place
from plait.pipeline.source import Json, Sample
from plait.tokenizers.errors import SampleError

USED = ("text_list", "image_info", "similarity_matrix")
"""Columns that do not become metadata; the similarities would be longer than the text."""


class Mmc4Rows(JsonRows):
    """One document a row."""

    kind = "mmc4"
    samples_per_task = 512

    def sample_of(self, key: str, row: dict[str, Json]) -> Sample:
        """SampleError for a row whose lists do not fit together, or whose picture is missing."""
        texts, infos = row.get("text_list"), row.get("image_info")
        if not isinstance(texts, list) or not isinstance(infos, list):
            raise SampleError("row without text_list and image_info")
        before = _by_sentence(infos, len(texts))
        found = Gathered(Place(self.path.parent, self.root))
        for number, text in enumerate(texts):
            for name in before[number]:
                found.add_medium("image", name)
            found.add_text(text)
        metadata = {k: v for k, v in row.items() if k not in USED} | found.note()
        return Sample(key=key, parts=tuple(found.parts), metadata=metadata)


def open_source(path: Path, root: Path, fields: Fields) -> Mmc4Rows:
    """The rows of a file."""
    return Mmc4Rows(path, root, fields)


def paths_in(folder: Path) -> list[Path]:
    """The files of a folder that are a source each."""
    return rows_in(folder)


def _by_sentence(infos: list[Json], sentences: int) -> list[list[Json]]:
    before: list[list[Json]] = [[] for _ in range(sentences)]
    for info in infos:
        given = cast(dict[str, Json], info) if isinstance(info, dict) else {}
        index = given.get("matched_text_index")
        if type(index) is not int or not 0 <= index < sentences:
            raise SampleError(f"matched_text_index is {index!r}, with {sentences} sentences")
        name = given.get("image_name")
        before[index].append(given.get("raw_url") if name is None else name)
    return before
