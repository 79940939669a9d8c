import json

import pytest

from plait.pipeline import fit
from plait.pipeline.fields import Fields, parse_fields, row_name
from plait.pipeline.find import open_sources
from plait.pipeline.shard import main, shard
from plait.pipeline.stream import Stream
from plait.tokenizers.errors import ConfigError, ResumeError

from .conftest import write_rows
from .made_sources import png, wav, write


def samples(path, *words):
    (source,) = open_sources(path, fields=parse_fields(words))
    return source.kind, list(source.read(0, len(source)))


def test_roles_and_columns():
    fields = parse_fields(["text=a", "text=b=c", "image="])
    assert fields.names("text", ("text",)) == ("a", "b=c")
    assert fields.names("image", ("image",)) == () and fields.maps("image")
    assert fields.names("audio", ("audio",)) == ("audio",) and not fields.maps("audio")
    assert fields.described() == {"image": [], "text": ["a", "b=c"]}
    assert Fields().described() == {}


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["body"], "--field body: it is ROLE=COLUMN"),
        (["txet=body"], r"--field txet=body: did you mean text\? it is ROLE=COLUMN.*key, text"),
        (["text=a", "text=a"], "--field text=a: given twice"),
    ],
)
def test_wrong_words(words, reason):
    with pytest.raises(ConfigError, match=reason):
        parse_fields(words)


def test_a_row_names_itself():
    assert row_name({"id": 3, "key": "x"}, ("key", "id")) == "x"
    assert row_name({"id": True, "key": None}, ("key", "id")) == ""


def test_texts(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", [{"title": "t", "body": "b", "uid": "u"}, {"title": 5}])
    kind, (first, second) = samples(path, "text=title", "text=body", "key=uid")
    assert (kind, first.key, first.metadata) == ("jsonl", "u#1", {"uid": "u"})
    assert [p.value for p in first.parts] == ["t", "b"]
    assert second.reason == "row without title or body"
    with pytest.raises(ConfigError, match=r"body.*--field text=COLUMN"):
        samples(path)


def test_media(tmp_path):
    write(tmp_path / "a.png", png())
    write(tmp_path / "a.wav", wav())
    row = {"picture": "a.png", "sound": "a.wav", "words": "w", "text": "t"}
    path = write_rows(tmp_path / "a.jsonl", [row])
    kind, (sample,) = samples(path, "image=picture", "text=words")
    assert kind == "images" and sample.captioned
    assert [p.kind for p in sample.parts] == ["image", "text"]
    assert sample.metadata == {"sound": "a.wav", "text": "t"}
    kind, (sample,) = samples(path, "audio=sound")
    assert kind == "audio" and [p.value for p in sample.parts] == [tmp_path / "a.wav", "t"]
    kind, (sample,) = samples(path, "audio=sound", "image=picture")
    assert kind == "interleaved" and [p.kind for p in sample.parts] == ["image", "audio", "text"]


def test_lists(tmp_path):
    write(tmp_path / "a.png", png())
    listed = [{"type": "image", "path": "a.png"}, "b"]
    path = write_rows(tmp_path / "a.jsonl", [{"turns": listed, "pics": ["a.png"], "says": [None]}])
    kind, (sample,) = samples(path, "parts=turns")
    assert kind == "interleaved" and [p.kind for p in sample.parts] == ["image", "text"]
    kind, (sample,) = samples(path, "images=pics", "texts=says")
    assert kind == "interleaved" and [p.kind for p in sample.parts] == ["image"]
    assert sample.metadata == {"turns": listed}


def test_a_tokenizer_is_fitted_on_mapped_columns(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", [{"body": f"some words {i}"} for i in range(20)])
    out = tmp_path / "out"
    assert fit.main(["bytes", str(path), "--out", str(out), "--field", "text=body"]) == 0
    assert json.loads((out / "report.json").read_text())["samples"]["rejected"] == 0


def test_the_mapping_is_part_of_the_job(tmp_path, bytes_tokenizer):
    source = write_rows(tmp_path / "a.jsonl", [{"a": "one", "b": "two"}])
    out = tmp_path / "out"
    argv = [str(source), "--out", str(out), "--tokenizer", str(bytes_tokenizer)]
    assert main([*argv, "--field", "text=a", "--field", "key=b"]) == 0
    document = Stream(out).document(0)
    assert document.key == "two#1" and bytes(document.spans[0].ids.tolist()) == b"one"
    again = {"field": ("text=a", "key=b")}
    assert shard([source], out, [bytes_tokenizer], **again).already_done
    with pytest.raises(ResumeError, match=r"a\.jsonl: fields was .*'a'.* is .*'b'"):
        shard([source], out, [bytes_tokenizer], field=("text=b",))
