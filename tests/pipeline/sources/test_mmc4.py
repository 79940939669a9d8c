import pytest

from plait.pipeline.find import open_sources

from ..conftest import write_rows
from ..made_sources import png, write


def read(tmp_path, row):
    (source,) = open_sources(write_rows(tmp_path / "set" / "docs.jsonl", [row]))
    assert source.kind == "mmc4"
    (sample,) = source.read(0, 1)
    return sample


def test_pictures_stand_before_their_sentences(tmp_path):
    for name in ("a.png", "b.png"):
        write(tmp_path / "set" / name, png())
    infos = [
        {"image_name": "b.png", "matched_text_index": 2, "matched_sim": 0.3},
        {"image_name": "a.png", "matched_text_index": 0},
        {"image_name": "a.png", "matched_text_index": 2},
        {"raw_url": "https://e.org/c.png", "matched_text_index": 1},
    ]
    row = {
        "text_list": ["x", "y", "z"],
        "image_info": infos,
        "url": "u",
        "similarity_matrix": [[0]],
    }
    sample = read(tmp_path, row)
    found = [p.value if p.kind == "text" else p.value.name for p in sample.parts]
    assert found == ["a.png", "x", "y", "b.png", "a.png", "z"]
    assert sample.metadata == {"url": "u", "images_left_out": 1}


@pytest.mark.parametrize(
    ("infos", "reason"),
    [
        ([{"image_name": "a.png", "matched_text_index": 1}], "matched_text_index is 1, with 1"),
        ([{"image_name": "a.png", "matched_text_index": -1}], "matched_text_index is -1"),
        ([{"image_name": "a.png", "matched_text_index": True}], "matched_text_index is True"),
        ([{"image_name": "a.png"}], "matched_text_index is None"),
        (["a.png"], "matched_text_index is None"),
        ([{"image_name": "gone.png", "matched_text_index": 0}], "missing file: gone.png"),
        ([{"image_name": "/a.png", "matched_text_index": 0}], "absolute or empty path"),
        ([{"matched_text_index": 0}], "image part without path"),
    ],
)
def test_bad_rows(tmp_path, infos, reason):
    assert reason in read(tmp_path, {"text_list": ["x"], "image_info": infos}).reason


def test_a_text_that_is_none(tmp_path):
    assert read(tmp_path, {"text_list": [3], "image_info": []}).reason == "text part without text"
