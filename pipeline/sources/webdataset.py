"""Raw WebDataset tars: members that share a name up to its first dot are one sample.

A tar is a source. Opening reads its headers only; pictures and sounds are read by their place in
the tar when they are needed. Suffixes of pictures, sounds, text and `json` are known (`cls` and the
JSON object become metadata); others, such as `seg.png`, are left out and named in the metadata,
unless `--field image=seg.png` says so. Arrays and pickles are never decoded.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import cast

import xxhash

from plait.pipeline.fields import Fields, row_name
from plait.pipeline.paths import list_files
from plait.pipeline.raw_tar import Entry, entries
from plait.pipeline.row_parts import Columns, Place, gather_row
from plait.pipeline.source import (
    AUDIO_SUFFIXES,
    IMAGE_SUFFIXES,
    Json,
    Rejected,
    Sample,
    Slice,
)
from plait.tokenizers.errors import ConfigError, SampleError

TEXTS = ("txt", "text", "caption", "captions", "transcript", "transcription")
NUMBERS = ("cls", "class", "count", "index", "id")
OBJECTS = ("json", "jsn")
LEFT_OUT = "members_left_out"
SEEK_EVERY = 64
MAX_TEXT_BYTES = 64 << 20
_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)


@dataclass
class Group:
    """The members of a sample, in the order of the tar."""

    name: str
    header: int
    members: dict[str, Slice] = field(default_factory=dict)
    reason: str = ""

    def described(self) -> str:
        """Name, suffixes, places and sizes, on a line."""
        members = "".join(f"\0{n}\0{m.offset}\0{m.size}" for n, m in self.members.items())
        return f"{self.name}{members}\0{self.reason}\n"


class Tar:
    """The samples of one tar, in order."""

    kind = "webdataset"
    samples_per_task = 1024

    def __init__(self, path: Path, root: Path, fields: Fields) -> None:
        self.path = path
        self.fields = fields
        self._place = Place(path.parent, root)
        self._columns = Columns(
            text=TEXTS,
            image=tuple(sorted(s[1:] for s in IMAGE_SUFFIXES)),
            audio=tuple(sorted(s[1:] for s in AUDIO_SUFFIXES)),
            parts=(),
            images=(),
            texts=(),
        ).mapped(fields)

    def __len__(self) -> int:
        return self._index[0]

    def read(self, start: int, stop: int) -> Iterator[Sample | Rejected]:
        """One sample a group of members; its key ends in its number in the tar, from 1."""
        if start >= stop:
            return
        first = start - start % SEEK_EVERY
        groups = self._groups(self._index[1][start // SEEK_EVERY])
        for number, group in enumerate(groups, first):
            if number >= stop:
                return
            if number >= start:
                yield self._sample_or_reason(group, number + 1)

    def describe(self) -> dict[str, Json]:
        """The hash is of names, sizes and places."""
        return self.fields.describe(self, self._index[2])

    @cached_property
    def _index(self) -> tuple[int, list[int], str]:
        """How many samples there are, where every 64th begins, and the hash."""
        digest = xxhash.xxh3_128()
        places: list[int] = []
        count = 0
        for group in self._groups(0):
            if count % SEEK_EVERY == 0:
                places.append(group.header)
            if "tokens.npy" in group.members and "spans.npy" in group.members:
                raise ConfigError(f"{self.path}: a shard of a stream, and no raw samples")
            digest.update(group.described().encode(errors="replace"))
            count += 1
        return count, places, digest.hexdigest()

    def _groups(self, offset: int) -> Iterator[Group]:
        """Members side by side that share a name; one that has no dot is no sample."""
        group = None
        with self.path.open("rb") as file:
            for entry in entries(file, self.path, offset):
                found = _NAME.fullmatch(entry.name)
                if found is None or entry.is_folder:
                    continue
                name, suffix = found[1].removeprefix("./"), found[2].lower()
                if group is None or name != group.name:
                    if group is not None:
                        yield group
                    group = Group(name, entry.header)
                self._add(group, suffix, entry)
        if group is not None:
            yield group

    def _add(self, group: Group, suffix: str, entry: Entry) -> None:
        if not entry.is_file:
            group.reason = group.reason or f"a link or device, no file: {entry.name}"
        elif entry.name.startswith("/") or ".." in entry.name.split("/"):
            group.reason = group.reason or f"path leaves the tar: {entry.name}"
        elif suffix in group.members:
            group.reason = group.reason or f"two members of one name: {entry.name}"
        else:
            group.members[suffix] = Slice(self.path, entry.offset, entry.size)

    def _sample_or_reason(self, group: Group, number: int) -> Sample | Rejected:
        key = f"{group.name}#{number}"
        try:
            if group.reason:
                raise SampleError(group.reason)
            row = _row(group.members, {*self._columns.text, *self.fields.names("key")})
            named = row_name(row, self.fields.names("key"))
            key = f"{named}#{number}" if named else key
            return self._sample_of(key, row)
        except SampleError as error:
            return Rejected(source=str(self.path), key=key, reason=str(error))

    def _sample_of(self, key: str, row: dict[str, object]) -> Sample:
        columns = self._columns
        if not self.fields.maps("text"):
            text = next((name for name in columns.text if isinstance(row.get(name), str)), None)
            columns = Columns(**{**vars(columns), "text": () if text is None else (text,)})
        found, used = gather_row(row, columns, self._place)
        if not found.parts:
            raise SampleError(f"no picture, sound or text among {', '.join(row)}"[:300])
        left_out: list[Json] = []
        metadata: dict[str, Json] = {}
        for name in (name for name in row if name not in used):
            value = row[name]
            if isinstance(value, Slice):
                left_out.append(name)
            else:
                metadata[name] = cast(Json, value)
        kinds = sorted(part.kind for part in found.parts)
        return Sample(
            key=key,
            parts=tuple(found.parts),
            metadata=metadata | ({LEFT_OUT: left_out} if left_out else {}),
            captioned=kinds in (["image", "text"], ["audio", "text"]),
        )


def open_source(path: Path, root: Path, fields: Fields) -> Tar:
    """The samples of a tar."""
    return Tar(path, root, fields)


def paths_in(folder: Path) -> list[Path]:
    """The tars under a folder."""
    return [f for f in list_files(folder) if f.suffix.lower() == ".tar"]


def _row(members: dict[str, Slice], texts: set[str]) -> dict[str, object]:
    """Suffixes with what they hold, and what a JSON object says; media are left as they lie."""
    row: dict[str, object] = {}
    said: dict[str, Json] = {}
    for suffix, place in members.items():
        if suffix in OBJECTS:
            said |= _object(place)
        elif suffix in texts or suffix in TEXTS or suffix in NUMBERS:
            text = _text(place)
            whole = suffix in NUMBERS and suffix not in texts
            row[suffix] = int(text) if whole and re.fullmatch(r"-?\d{1,18}", text.strip()) else text
        else:
            row[suffix] = place
    return row | {name: value for name, value in said.items() if name not in row}


def _object(place: Slice) -> dict[str, Json]:
    try:
        found = json.loads(_text(place))
    except (ValueError, RecursionError) as error:
        raise SampleError(f"bad JSON: {error}") from None
    return found if isinstance(found, dict) else {"json": found}


def _text(place: Slice) -> str:
    if place.size > MAX_TEXT_BYTES:
        raise SampleError(f"text of {place.size:,} bytes (at most {MAX_TEXT_BYTES:,})")
    try:
        return place.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SampleError(f"not UTF-8: byte {error.start}") from None
