"""Parquet as Hugging Face lays it out: text, pictures and sounds as bytes, interleaved lists.

A file is a source. Only the row groups that hold a range are read, in batches of about 8 MiB, with
a few pages of each column in memory (a group of 800 MB took 360 MB). Rows of the same group that
come before the range are decoded and thrown away, so a task is made no smaller than a sixteenth of
a row group. Needs pyarrow (`plait[parquet]`).
"""

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from plait.pipeline.arrow_rows import BATCH_BYTES, ArrowRows, import_arrow
from plait.pipeline.fields import Fields
from plait.pipeline.paths import list_files
from plait.tokenizers.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow
    from pyarrow.parquet import ParquetFile

MAX_FOOTER_BYTES = 256 << 20
TASKS_OF_A_GROUP = 16
MOST_ROWS = 1 << 20
"""A file that says it has more rows than this has at least a byte for a thousand of them."""


class ParquetRows(ArrowRows):
    """The rows of one file."""

    kind = "parquet"

    def __init__(self, path: Path, root: Path, fields: Fields) -> None:
        self.path = path
        self._hash = _footer_hash(path)
        with _opened(path) as file:
            schema, groups = file.schema_arrow, file.metadata
            rows = [groups.row_group(g).num_rows for g in range(groups.num_row_groups)]
            sizes = [groups.row_group(g).total_byte_size for g in range(groups.num_row_groups)]
        if min(rows, default=0) < 0 or sum(rows) > max(MOST_ROWS, 1000 * path.stat().st_size):
            raise ConfigError(f"{path}: damaged Parquet file: it says it has {sum(rows)} rows")
        super().__init__(root, path.parent, schema, fields)
        self._starts = [0, *accumulate(rows)]
        most = 4096 if self.samples_per_task > 1024 else 64
        self._batch_rows = [
            max(1, min(n, most, int(BATCH_BYTES * n / max(size, 1))))
            for n, size in zip(rows, sizes, strict=True)
        ]
        largest = -(-max(rows, default=0) // TASKS_OF_A_GROUP)
        self.samples_per_task = max(self.samples_per_task, largest)

    def __len__(self) -> int:
        return self._starts[-1]

    def batches(self, start: int, stop: int) -> Iterator["pyarrow.RecordBatch"]:
        """Batches cut to the range; ConfigError if the file turns out to be damaged."""
        if start >= stop:
            return
        with _opened(self.path) as file:
            group = bisect_right(self._starts, start) - 1
            while group < len(self._batch_rows) and self._starts[group] < stop:
                yield from self._of_group(file, group, start, stop)
                group += 1

    def listing(self) -> str:
        """The hash is of the footer, which says where everything lies, and of the size."""
        return self._hash

    def _of_group(
        self, file: "ParquetFile", group: int, start: int, stop: int
    ) -> Iterator["pyarrow.RecordBatch"]:
        first = self._starts[group]
        found = file.iter_batches(
            self._batch_rows[group],
            row_groups=[group],
            columns=self.read_columns,
            use_threads=False,
        )
        for batch in found:
            begin, end = max(start - first, 0), min(stop - first, batch.num_rows)
            if begin < end:
                yield batch.slice(begin, end - begin)
            first += batch.num_rows
            if first >= stop:
                return


def open_source(path: Path, root: Path, fields: Fields) -> ParquetRows:
    """The rows of a file."""
    return ParquetRows(path, root, fields)


def paths_in(folder: Path) -> list[Path]:
    """The Parquet files under a folder."""
    return [f for f in list_files(folder) if f.suffix.lower() == ".parquet"]


@contextmanager
def _opened(path: Path) -> Iterator["ParquetFile"]:
    pyarrow = import_arrow("parquet")
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            yield file
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: damaged Parquet file: {str(error)[:300]}") from None


def _footer_hash(path: Path) -> str:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(size - 8, 0))
        tail = file.read()
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != b"PAR1" or not 0 < length <= min(size - 12, MAX_FOOTER_BYTES):
            raise ConfigError(f"{path}: not a whole Parquet file; was it cut short?")
        file.seek(size - 8 - length)
        digest = xxhash.xxh3_128(file.read(length))
    digest.update(f"{size}".encode())
    return digest.hexdigest()
