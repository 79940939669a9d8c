"""A folder made by Hugging Face's `save_to_disk`: Arrow files and the `state.json` that lists them.

Files are memory-mapped and read with pyarrow alone (`plait[parquet]`); reaching a range passes over
the headers of the batches before it. A DatasetDict holds one source a split. One Arrow file alone
is a source too.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from plait.pipeline.arrow_rows import ArrowRows, import_arrow
from plait.pipeline.fields import Fields
from plait.pipeline.paths import list_files
from plait.tokenizers.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow

END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


class DatasetRows(ArrowRows):
    """The rows of one dataset, file after file."""

    kind = "datasets"

    def __init__(self, path: Path, root: Path, fields: Fields) -> None:
        self.path = path
        self._files = _data_files(path)
        counts = [_count(file) for file in self._files]
        schema = _one_schema(self._files)
        super().__init__(root, self._files[0].parent, schema, fields)
        self._starts = [0, *accumulate(counts)]

    def __len__(self) -> int:
        return self._starts[-1]

    def batches(self, start: int, stop: int) -> Iterator["pyarrow.RecordBatch"]:
        """Batches cut to the range; ConfigError if a file turns out to be damaged."""
        for file, begin, end in zip(self._files, self._starts, self._starts[1:], strict=False):
            if begin < stop and start < end:
                yield from self._of_file(file, start - begin, stop - begin)

    def listing(self) -> str:
        """The hash is of sizes, and of the state, which has Hugging Face's fingerprint."""
        state = self.path / "state.json"
        digest = xxhash.xxh3_128(state.read_bytes() if state.is_file() else b"")
        for file in self._files:
            digest.update(f"{file.name}\0{file.stat().st_size}\n".encode(errors="replace"))
        return digest.hexdigest()

    def _of_file(self, file: Path, start: int, stop: int) -> Iterator["pyarrow.RecordBatch"]:
        first = 0
        with _opened(file) as reader:
            for batch in reader:
                begin, end = max(start - first, 0), min(stop - first, batch.num_rows)
                if begin < end:
                    yield batch.select(self.read_columns).slice(begin, end - begin)
                first += batch.num_rows
                if first >= stop:
                    return


def open_source(path: Path, root: Path, fields: Fields) -> DatasetRows:
    """The rows of a dataset's folder, or of one Arrow file."""
    return DatasetRows(path, root, fields)


def paths_in(folder: Path) -> list[Path]:
    """The datasets under a folder, or the folder itself if it is one."""
    return [f.parent for f in list_files(folder) if is_state(f)]


def is_state(file: Path) -> bool:
    """Whether a file says that its folder is a dataset."""
    return file.name == "state.json" and bool(_state(file).get("_data_files"))


def _state(file: Path) -> dict:
    try:
        state = json.loads(file.read_bytes()) if file.stat().st_size < 1 << 24 else None
    except (OSError, ValueError, RecursionError):
        return {}
    return state if isinstance(state, dict) else {}


def _data_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    state = _state(path / "state.json")
    listed = state.get("_data_files")
    names = [f.get("filename") if isinstance(f, dict) else None for f in listed or []]
    if not names or not all(isinstance(n, str) and Path(n).name == n != ".." for n in names):
        raise ConfigError(
            f"{path}: no dataset of save_to_disk: its state.json names no data files in the folder"
        )
    if state.get("_indices_data_files"):
        raise ConfigError(f"{path}: has an indices file; save it after flatten_indices()")
    return [path / str(name) for name in names]


def _count(path: Path) -> int:
    with _opened(path) as reader:
        return sum(batch.num_rows for batch in reader)


def _one_schema(files: list[Path]) -> "pyarrow.Schema":
    first = None
    for file in files:
        with _opened(file) as reader:
            schema = reader.schema
        first = first or schema
        if not schema.equals(first):
            raise ConfigError(f"{file}: other columns than {files[0].name} has")
    assert first is not None
    return first


@contextmanager
def _opened(path: Path) -> Iterator["pyarrow.RecordBatchStreamReader"]:
    pyarrow = import_arrow("datasets")
    from pyarrow.ipc import open_stream

    if not path.is_file():
        raise ConfigError(f"{path}: missing file of a dataset")
    try:
        with pyarrow.memory_map(str(path)) as mapped:
            mapped.seek(max(mapped.size() - len(END_OF_STREAM), 0))
            if not mapped.read().endswith(END_OF_STREAM):
                raise ConfigError(f"{path}: no whole Arrow stream; was it cut short?")
            mapped.seek(0)
            with open_stream(mapped) as reader:
                yield reader
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: damaged Arrow file: {str(error)[:300]}") from None
