import base64

import pytest

from plait.pipeline.find import open_sources

from ..conftest import write_rows
from ..made_sources import png, wav, write


def read(tmp_path, row):
    write(tmp_path / "set" / "a.png", png())
    write(tmp_path / "set" / "a.wav", wav())
    (source,) = open_sources(write_rows(tmp_path / "set" / "docs.jsonl", [row]), "interleaved")
    (sample,) = source.read(0, 1)
    return sample


def test_every_way_to_write_a_part(tmp_path):
    address = "data:image/png;base64," + base64.b64encode(png(3)).decode()
    listed = [
        *("a", {"type": "text", "text": "b"}, {"type": "image", "path": "a.png"}),
        *({"type": "image", "image": address}, {"type": "audio", "audio": "a.wav"}),
        {"type": "image", "image": {"path": "a.png", "bytes": None}},
        {"type": "image", "path": "https://e.org/a.png"},
    ]
    sample = read(tmp_path, {"parts": listed, "n": 1})
    assert [p.kind for p in sample.parts] == ["text", "text", "image", "image", "audio", "image"]
    assert sample.parts[3].value == png(3) and sample.parts[5].value.name == "a.png"
    assert sample.metadata == {"n": 1, "images_left_out": 1}


def test_parallel_lists(tmp_path):
    row = {"images": [None, "a.png", "//e.org/b.png"], "texts": ["x", None, None], "id": 3}
    sample = read(tmp_path, row)
    assert sample.key == "3#1" and [p.kind for p in sample.parts] == ["text", "image"]
    assert sample.metadata == {"id": 3, "images_left_out": 1}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"segments": [3]}, "unknown part: type None"),
        ({"segments": [{"type": "image"}]}, "image part without path"),
        ({"segments": [{"type": "image", "path": 3}]}, "image part without path"),
        ({"segments": [{"type": "image", "path": "x" * 5000}]}, "missing file"),
        ({"segments": [{"type": "image", "path": "a\ud800.png"}]}, "missing file"),
        ({"images": ["a.png"], "texts": []}, "1 images beside 0 texts"),
        ({"image": "http://e.org/a.png", "text": "a"}, "remote; fetch it first"),
        ({"image": "a.png", "text": 3}, "text part without text"),
    ],
)
def test_bad_rows(tmp_path, row, reason):
    assert reason in read(tmp_path, row).reason
