"""Which column of a row holds what: `--field text=body --field image=picture --field key=id`.

A role may be given several columns (`--field text=title --field text=body`), which become parts
in that order, or none at all (`--field image=`). A role that is not named keeps the columns that
its kind of source looks for by itself.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from plait.pipeline.source import Json, Source
from plait.tokenizers.errors import ConfigError

ROLES = {
    "key": "the name of a sample",
    "text": "text",
    "image": "a picture",
    "audio": "a sound",
    "bytes": "bytes for the byte tokenizer",
    "parts": "a list of interleaved parts",
    "images": "a list of pictures, parallel to texts",
    "texts": "a list of texts, parallel to images",
}
KEYS = ("id", "key", "__key__", "file_name")
LISTS = ("segments", "parts", "content")


@dataclass(frozen=True)
class Fields:
    """A mapping from roles to columns, as the user gave it."""

    columns: tuple[tuple[str, str], ...] = ()

    def names(self, role: str, default: Iterable[str] = ()) -> tuple[str, ...]:
        """The columns of a role."""
        assert role in ROLES
        if not self.maps(role):
            return tuple(default)
        return tuple(column for r, column in self.columns if r == role and column)

    def maps(self, *roles: str) -> bool:
        """Whether the user named columns for one of these roles."""
        return any(role in roles for role, _ in self.columns)

    def describe(self, source: Source, listing: str) -> dict[str, Json]:
        """What `Source.describe` gives for rows whose columns are mapped."""
        return {
            "path": str(source.path),
            "kind": source.kind,
            "samples": len(source),
            "listing": listing,
            "fields": self.described(),
        }

    def described(self) -> dict[str, Json]:
        """Roles and their columns, as JSON."""
        return {role: [*self.names(role)] for role in sorted({r for r, _ in self.columns})}


NO_FIELDS = Fields()


def parse_fields(words: Iterable[str]) -> Fields:
    """Fields from `role=column` words; ConfigError for one that is none.

    >>> parse_fields(["text=title", "text=body"]).names("text")
    ('title', 'body')
    """
    pairs: list[tuple[str, str]] = []
    for word in words:
        role, equals, column = word.partition("=")
        if not equals or role not in ROLES:
            near = difflib.get_close_matches(role, ROLES, n=1)
            hint = f"did you mean {near[0]}? " if near and near[0] != role else ""
            raise ConfigError(
                f"--field {word}: {hint}it is ROLE=COLUMN, where ROLE is one of {', '.join(ROLES)}"
            )
        if (role, column) in pairs:
            raise ConfigError(f"--field {word}: given twice")
        pairs.append((role, column))
    return Fields(tuple(pairs))


def row_name(row: Mapping[str, object], names: Iterable[str]) -> str:
    """What a row calls itself, by the first of these columns; nothing if it does not."""
    for name in names:
        value = row.get(name)
        if isinstance(value, str | int) and not isinstance(value, bool):
            return str(value)
    return ""
