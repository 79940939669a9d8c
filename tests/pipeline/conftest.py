"""What the tests of the pipeline share."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from plait.tokenizers import byte_patch


@pytest.fixture(scope="session")
def bytes_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a byte tokenizer."""
    folder = tmp_path_factory.mktemp("tokenizer") / "bytes"
    options = byte_patch.FitOptions(method="whitespace")
    byte_patch.fit([b"a few words"], options).save(folder)
    return folder


def write_rows(path: Path, rows: Sequence[dict | str]) -> Path:
    """A file of JSON lines; a string stands as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in rows))
    return path


def tree(folder: Path) -> dict[str, bytes]:
    """All files of a folder and what is in them."""
    files = (p for p in Path(folder).rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


@pytest.fixture
def memory_url() -> Iterator[str]:
    """A prefix of an object store in this process's memory, empty again afterwards."""
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    yield "memory://bucket/some/prefix"
    MemoryFileSystem.store.clear()


def tree_of(url: str) -> dict[str, bytes]:
    """All objects under a URL and what is in them."""
    files, root = fsspec.url_to_fs(url)
    files.invalidate_cache()
    return {path[len(root) + 1 :]: files.cat_file(path) for path in files.find(root)}
