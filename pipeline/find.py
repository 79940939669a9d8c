"""How a path becomes sources: what is in a file or folder, found by names and first rows.

Each kind of source is one file in `sources/`, found by its name. It defines `open_source(path,
root, fields)`, and `open_files(root, files)` if all its loose files in a folder are one source, or
`paths_in(folder)` if a folder holds several.
"""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

from plait.pipeline.fields import NO_FIELDS, Fields
from plait.pipeline.files import LOOSE, loose_kind
from plait.pipeline.paths import list_files
from plait.pipeline.recognize import kind_in_folder, kind_of_file
from plait.pipeline.source import Source
from plait.tokenizers.errors import ConfigError

NOT_SAMPLES = (
    *("readme", "license", "licence", "licenses", "licences", "manifest", "attribution"),
    *("copying", "notice", "changelog", "contributing", "citation", "authors"),
)
"""Files of these names stand beside the samples of a folder and are passed over."""
WITH_MEDIA = ("images", "audio", "interleaved", "mmc4")
"""Kinds of rows that name files: loose pictures and sounds below such rows are theirs."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """The sources under a path, and the files there that none of them takes."""

    root: Path
    sources: list[Source]
    passed_over: list[Path]


def open_sources(
    path: str | Path, kind: str | None = None, fields: Fields = NO_FIELDS
) -> list[Source]:
    """The sources in a file or folder, in a fixed order; `KIND:PATH` forces a kind.

    A folder is searched to its leaves: each file of rows and each tar is a source, and so are all
    loose images together, all loose sounds, all loose texts and all HTML. Raises ConfigError if
    nothing is found.
    """
    return find_sources(path, kind, fields).sources


def find_sources(path: str | Path, kind: str | None = None, fields: Fields = NO_FIELDS) -> Found:
    """`open_sources`, with the files that were passed over."""
    path, kind = _split_kind(path, kind)
    if not path.exists():
        raise ConfigError(f"{path}: no such file or folder; a SOURCE is a file or a folder")
    root = path if path.is_dir() else path.parent
    if kind is not None:
        opened = [open_kind(kind, p, root, fields) for p in _paths(kind, path)]
        return Found(root=path, sources=opened, passed_over=[])
    if path.is_file():
        opened = open_kind(kind_of_file(path, fields), path, root, fields)
        return Found(root=path, sources=[opened], passed_over=[])
    found = _search(path, fields)
    if not found.sources:
        raise ConfigError(
            f"{path}: no samples found; there should be files of rows, tars, images, sounds or "
            f"texts (for other files: bytes:{path})"
        )
    return found


def kinds() -> list[str]:
    """The names of all kinds of sources."""
    return sorted(p.stem for p in (Path(__file__).parent / "sources").glob("[a-z]*.py"))


def open_kind(kind: str, path: Path, root: Path, fields: Fields = NO_FIELDS) -> Source:
    """A source of this kind at a path; `root` bounds where its rows may point (see `resolve`)."""
    return _module(kind).open_source(path, root, fields)


def _module(kind: str) -> ModuleType:
    if kind not in kinds():
        raise ConfigError(f"no kind of source {kind!r}; there is {', '.join(kinds())}")
    return import_module(f"plait.pipeline.sources.{kind}")


def _split_kind(path: str | Path, kind: str | None) -> tuple[Path, str | None]:
    prefix, colon, rest = str(path).partition(":")
    if colon and prefix in kinds() and not Path(path).exists():
        return Path(rest), prefix
    return Path(path), kind


def _paths(kind: str, path: Path) -> list[Path]:
    """The sources of a kind that a path names."""
    module = _module(kind)
    if path.is_file() or not hasattr(module, "paths_in"):
        return [path]
    paths = module.paths_in(path)
    if not paths:
        raise ConfigError(f"{path}: no {kind} here")
    return paths


def _search(root: Path, fields: Fields) -> Found:
    """One source a file of rows; loose files of a kind together, but none below rows on media."""
    sources: list[Source] = []
    rest: list[Path] = []
    owned: set[Path] = set()
    files = list_files(root)
    datasets = _module("datasets").paths_in(root)
    for file in files:
        if not _is_below(file, set(datasets)):
            kind = kind_in_folder(file, fields)
            if kind is None:
                rest.append(file)
                continue
            sources.append(open_kind(kind, file, root, fields))
            if kind in WITH_MEDIA:
                owned.add(file.parent)
    sources += [open_kind("datasets", folder, root, fields) for folder in datasets]
    loose, passed_over = _loose(root, rest, owned)
    sources += [_module(kind).open_files(root, found) for kind, found in loose.items() if found]
    return Found(root=root, sources=sources, passed_over=passed_over)


def _loose(
    root: Path, files: list[Path], owned: set[Path]
) -> tuple[dict[str, list[Path]], list[Path]]:
    """Files that are a document each by kind, and those that are none."""
    loose: dict[str, list[Path]] = {kind: [] for kind in LOOSE}
    passed_over: list[Path] = []
    for file in files:
        kind = loose_kind(file)
        if _is_below(file, owned):
            if kind not in ("images", "audio"):
                passed_over.append(file)
        elif kind is None or file.name.partition(".")[0].lower() in NOT_SAMPLES:
            passed_over.append(file)
        else:
            loose[kind].append(file)
    if loose["html"] and loose["images"]:
        pictures_of = _module("html").pictures_of
        shown = {picture for file in loose["html"] for picture in pictures_of(file, root)}
        loose["images"] = [f for f in loose["images"] if f.absolute() not in shown]
    return loose, passed_over


def _is_below(file: Path, folders: set[Path]) -> bool:
    return not folders.isdisjoint(file.parents)
