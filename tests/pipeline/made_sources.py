"""A small source of every kind, with good samples and bad ones."""

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow
import soundfile
from PIL import Image
from pyarrow import ipc, parquet

from .conftest import write_rows


def png(shade: int = 0) -> bytes:
    """A picture of 6 x 4 pixels."""
    output = io.BytesIO()
    Image.new("RGB", (6, 4), (shade % 256, 10, 20)).save(output, "PNG")
    return output.getvalue()


def wav(pitch: int = 1, rate_hz: int = 16000) -> bytes:
    """A sound of a tenth of a second."""
    output = io.BytesIO()
    samples = 0.5 * np.sin(np.arange(rate_hz // 10) * 0.05 * pitch)
    soundfile.write(output, samples.astype(np.float32), rate_hz, format="WAV")
    return output.getvalue()


def write(path: Path, data: bytes) -> Path:
    """A file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def write_tar(path: Path, members: Sequence[tuple[str, bytes | str]], **options) -> Path:
    """A tar; a member whose data is a string is a link to that name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            if isinstance(data, str):
                info.type, info.linkname = tarfile.SYMTYPE, data
                tar.addfile(info)
            else:
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def write_dataset(folder: Path, tables: Sequence[pyarrow.Table], batch_rows: int = 3) -> Path:
    """What `datasets.Dataset.save_to_disk` writes, one file a table."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"data-{i:05d}-of-{len(tables):05d}.arrow" for i in range(len(tables))]
    for name, table in zip(names, tables, strict=True):
        with ipc.new_stream(str(folder / name), table.schema) as stream:
            stream.write_table(table, max_chunksize=batch_rows)
    state = {"_data_files": [{"filename": n} for n in names], "_fingerprint": "f", "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def captioned_table(count: int, first: int = 0) -> pyarrow.Table:
    """Pictures with captions; each fifth is damaged, each seventh is nowhere."""
    numbers = range(first, first + count)
    pictures = [
        {"bytes": b"damaged" if i % 5 == 4 else png(i), "path": f"{i}.png"} for i in numbers
    ]
    rows = [None if i % 7 == 6 else picture for i, picture in zip(numbers, pictures, strict=True)]
    image = pyarrow.array(rows, pyarrow.struct({"bytes": pyarrow.binary(), "path": "string"}))
    columns = {"id": [f"row {i}" for i in numbers], "image": image, "n": list(numbers)}
    return pyarrow.table(columns | {"caption": [f"caption {i}" for i in numbers]})


def _images(folder: Path) -> Path:
    rows = [{"file_name": f"{i}.png", "caption": f"picture {i}"} for i in range(12)]
    for i in range(10):
        write(folder / f"{i}.png", png(i))
    write_rows(folder / "metadata.jsonl", rows)
    return folder


def _audio(folder: Path) -> Path:
    for i in range(5):
        write(folder / f"{i}.wav", b"RIFF" if i == 3 else wav(i + 1))
    return folder


def _text(folder: Path) -> Path:
    for i in range(9):
        write(folder / f"{i % 2}" / f"{i}.txt", f"text {i}".encode() if i != 4 else b"\xff")
    return folder


def _bytes(folder: Path) -> Path:
    for i in range(6):
        write(folder / f"{i}.bin", bytes(range(i)))
    return folder


def _jsonl(folder: Path) -> Path:
    rows = [{"id": i, "text": f"text {i}"} if i % 4 else {"id": i, "text": i} for i in range(13)]
    return write_rows(folder / "a.jsonl", [*rows, "not json\n"])


def _interleaved(folder: Path) -> Path:
    write(folder / "a.png", png())
    rows = [{"segments": ["a", {"type": "image", "path": "a.png"}, f"b {i}"]} for i in range(7)]
    bad = [{"segments": [{"type": "image", "path": p}]} for p in ("/a.png", "../../../x", "gone")]
    lists = {"images": [None, "a.png"], "texts": ["a", None]}
    (folder / "a.json").write_text(json.dumps([*rows, *bad, lists, 3]))
    return folder / "a.json"


def _mmc4(folder: Path) -> Path:
    write(folder / "a.png", png())
    infos = [{"image_name": "a.png", "matched_text_index": 1}]
    rows = [{"text_list": [f"a {i}", "b"], "image_info": infos} for i in range(6)]
    bad = {"text_list": ["a"], "image_info": infos}
    return write_rows(folder / "a.jsonl", [*rows, bad])


def _parquet(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    parquet.write_table(captioned_table(20), folder / "a.parquet", row_group_size=6)
    return folder


def _datasets(folder: Path) -> Path:
    return write_dataset(folder, [captioned_table(8), captioned_table(5, first=8)])


def _webdataset(folder: Path) -> Path:
    members: list[tuple[str, bytes | str]] = []
    for i in range(150):
        members += [(f"set/{i:03d}.png", png(i)), (f"set/{i:03d}.txt", b"caption %d" % i)]
        members += [(f"set/{i:03d}.json", b'{"n": %d}' % i)] if i % 3 else []
    members += [
        ("150.png", "set/000.png"),
        ("../151.png", png()),
        ("152.json", b"{"),
        ("153.x", b""),
    ]
    write_tar(folder / "a.tar", members)
    return folder


def _html(folder: Path) -> Path:
    write(folder / "a.png", png())
    for i in range(6):
        name = "gone.png" if i == 3 else "../a.png"
        write(folder / "docs" / f"{i}.html", f"<p>a {i}<img src={name}><p>b".encode())
    return folder


MAKERS: dict[str, Callable[[Path], Path]] = {
    "audio": _audio,
    "bytes": _bytes,
    "datasets": _datasets,
    "html": _html,
    "images": _images,
    "interleaved": _interleaved,
    "jsonl": _jsonl,
    "mmc4": _mmc4,
    "parquet": _parquet,
    "text": _text,
    "webdataset": _webdataset,
}
"""For each kind of source: make one in a folder, and say where it is."""
REJECTED = {
    "audio": 1,
    "bytes": 1,
    "datasets": 2,
    "html": 1,
    "images": 2,
    "interleaved": 4,
    "jsonl": 5,
    "mmc4": 1,
    "parquet": 4,
    "text": 1,
    "webdataset": 4,
}
"""How many samples of each cannot be used; an empty file of bytes is one."""
