"""`plait list`: the tokenizers, sources and presets there are; a part is a file in its folder.

Files are parsed and not imported, so listing takes milliseconds and a new file shows by itself.
"""

import ast
import json
import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Literal

import tyro

from plait.pipeline.tables import make_console, print_table

Kind = Literal["tokenizers", "sources", "presets"]


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """List the parts that plait has."""

    what: tyro.conf.Positional[Kind | None] = None
    """tokenizers, sources or presets; all three when left out."""
    json: bool = False
    """Print JSON instead of tables."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part: its name is its file's, its summary the first sentence that the file says."""

    name: str
    summary: str
    classes: tuple[str, ...] = ()
    """Names of the tokenizer classes in the file."""


def main(argv: Sequence[str]) -> int:
    """`plait list`."""
    options = tyro.cli(ListOptions, args=list(argv), prog="plait list")
    kinds: list[Kind] = [options.what] if options.what else list(FIND)
    found = {kind: FIND[kind]() for kind in kinds}
    if options.json:
        facts = {kind: [_facts(p) for p in parts] for kind, parts in found.items()}
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        return 0
    console = make_console()
    for kind, parts in found.items():
        print_table(console, [kind, "what it is"], [[p.name, p.summary] for p in parts])
    return 0


def tokenizers() -> list[Part]:
    """Files of tokenizers/ that define a tokenizer; the helpers beside them are left out."""
    found = []
    for file in _sorted(files("plait.tokenizers"), ".py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        classes = [c for c in tree.body if isinstance(c, ast.ClassDef)]
        names = tuple(c.name for c in classes if "Tokenizer" in map(ast.unparse, c.bases))
        if names:
            found.append(Part(name=_stem(file), summary=_docstring(tree), classes=names))
    return found


def sources() -> list[Part]:
    """Files of pipeline/sources/."""
    folder = files("plait.pipeline").joinpath("sources")
    trees = {_stem(f): ast.parse(f.read_text(encoding="utf-8")) for f in _sorted(folder, ".py")}
    return [Part(name=name, summary=_docstring(tree)) for name, tree in trees.items()]


def presets() -> list[Part]:
    """Files of models/presets/; the first comment says what a preset is."""
    found = []
    for file in _sorted(files("plait.models").joinpath("presets"), ".toml"):
        text = file.read_text(encoding="utf-8")
        tomllib.loads(text)
        comment = re.match(r"(?:#[^\n]*\n)+", text)
        words = re.sub(r"^# ?", "", comment[0], flags=re.MULTILINE) if comment else ""
        found.append(Part(name=_stem(file), summary=first_sentence(words)))
    return found


FIND: dict[Kind, Callable[[], list[Part]]] = {
    "tokenizers": tokenizers,
    "sources": sources,
    "presets": presets,
}


def first_sentence(text: str) -> str:
    """Up to the first full stop or empty line, on one line, without the full stop.

    >>> first_sentence("Reads v1.5\\nfiles (e.g. a.txt). Then more.")
    'Reads v1.5 files (e.g. a.txt)'
    """
    paragraph = " ".join(text.strip().split("\n\n")[0].split())
    return re.split(r"(?<!e\.g)(?<!i\.e)\.(?:\s|$)", paragraph)[0]


def _sorted(folder: Traversable, suffix: str) -> list[Traversable]:
    names = (f for f in folder.iterdir() if f.name.endswith(suffix) and not f.name.startswith("_"))
    return sorted(names, key=lambda f: f.name)


def _stem(file: Traversable) -> str:
    return file.name.rpartition(".")[0]


def _docstring(tree: ast.Module) -> str:
    return first_sentence(ast.get_docstring(tree) or "")


def _facts(part: Part) -> dict[str, object]:
    return {k: v for k, v in asdict(part).items() if v or k != "classes"}
