import json
import os
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from plait.pipeline.shard import main, shard
from plait.pipeline.stream import Stream
from plait.tokenizers import byte_patch
from plait.tokenizers.base import Encoded, Tokenizer
from plait.tokenizers.errors import ConfigError, ResumeError, SampleError

from .conftest import tree, write_rows


class Letters(Tokenizer):
    """A tokenizer of one id a character; it fails on a sample with an exclamation mark."""

    modality = "text"
    vocab_size = 70000

    def encode_batch(self, samples):
        if any("!" in s for s in samples):
            raise SampleError("an exclamation mark")
        return [Encoded(ids=np.array([min(ord(c), 69999) for c in s])) for s in samples]

    def decode(self, encoded):
        return "".join(map(chr, encoded.ids))

    def config(self):
        return {}

    def files(self):
        return {}

    @classmethod
    def from_files(cls, config, files):
        return cls()


class Shades(Letters):
    """The mean shade of each quarter of a picture."""

    modality = "image"
    vocab_size = 256
    splittable = False

    def encode_batch(self, samples):
        small = [np.asarray(s.convert("L").resize((2, 2))).reshape(-1) for s in samples]
        return [Encoded(ids=ids.astype(np.int64), width=2) for ids in small]


@pytest.fixture
def made_tokenizers(monkeypatch, tmp_path):
    """Folders that load as the tokenizers above."""
    made = {"letters": Letters(), "shades": Shades()}
    made |= {f"tokenizers/{t.modality}": t for t in made.values()}

    def load(folder):
        return next(t for name, t in made.items() if Path(folder).as_posix().endswith(name))

    monkeypatch.setattr("plait.pipeline.job.load_tokenizer", load)
    monkeypatch.setattr("plait.pipeline.stream.load_tokenizer", load)
    return [tmp_path / "letters", tmp_path / "shades"]


def pictures(folder, count=6):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", (9, 7), (i * 20, i, 5)).save(folder / f"{i}.png")
    return folder


def rejected(out):
    return [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]


def documents(stream):
    return [stream.document(i) for i in range(stream.documents)]


def test_captioned_pictures(tmp_path, made_tokenizers):
    folder = pictures(tmp_path / "set", 40)
    rows = [{"file_name": f"{i}.png", "caption": f"picture {i}", "n": i} for i in range(40)]
    rows[3]["caption"] = " "
    write_rows(folder / "metadata.jsonl", rows)
    summary = shard([folder], tmp_path / "out", made_tokenizers, caption_first=0.5)
    assert (summary.samples, summary.documents, summary.rejected) == (40, 40, {})
    stream = Stream(tmp_path / "out")
    found = documents(stream)
    assert [d.key for d in found] == [f"{i}.png#{i + 1}" for i in range(40)]
    assert [s.modality for s in found[3].spans] == ["image"]
    assert found[5].metadata == {"n": 5}
    orders = [tuple(s.name for s in d.spans) for d in found]
    assert 8 < orders.count(("text", "image")) < 32
    assert orders.count(("text", "image")) + orders.count(("image", "text")) == 39
    span = next(s for s in found[7].spans if s.name == "text")
    assert stream.tokenizer("text").decode(span.encoded) == "picture 7"
    picture = next(s for s in found[7].spans if s.name == "image")
    assert picture.width == 2 and len(picture.ids) == 4


def test_every_bad_sample_is_listed_with_its_reason(tmp_path, made_tokenizers):
    folder = pictures(tmp_path / "set", 4)
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:40])
    (folder / "empty.png").write_bytes(b"")
    (tmp_path / "outside.png").write_bytes((folder / "0.png").read_bytes())
    rows = [
        {"file_name": "0.png", "text": "fine"},
        "{not json\n",
        "[1, 2]\n",
        "\n",
        {"file_name": "gone.png", "text": "x"},
        {"file_name": "broken.png", "text": "x"},
        {"file_name": "empty.png", "text": "x"},
        {"file_name": "/etc/passwd", "text": "x"},
        {"file_name": "../../../outside.png", "text": "x"},
        {"text": "no file"},
        {"file_name": "1.png", "text": "stop!"},
        {"file_name": "2.png", "text": "fine"},
    ]
    write_rows(folder / "metadata.jsonl", rows)
    texts = write_rows(
        tmp_path / "texts.jsonl", [{"text": ""}, {"text": "ok", "id": 7}, {"text": 5}]
    )
    summary = shard([folder, texts], tmp_path / "out", made_tokenizers)
    assert summary.documents == 3 and summary.samples == 14
    listed = rejected(tmp_path / "out")
    assert sum(summary.rejected.values()) == len(listed) == 11
    reasons = {e["key"]: e["reason"] for e in listed if e["source"] != str(texts)}
    assert "bad JSON" in reasons["#2"] and "not an object" in reasons["#3"]
    assert "missing file" in reasons["gone.png#5"]
    assert reasons["broken.png#6"] and reasons["empty.png#7"]
    assert "absolute" in reasons["/etc/passwd#8"]
    assert "leaves the source" in reasons["../../../outside.png#9"]
    assert "file_name" in reasons["#10"]
    assert reasons["1.png#11"] == "an exclamation mark"
    assert [e["reason"] for e in listed[-2:]] == ["empty text", "row without text"]
    assert {entry["source"] for entry in listed} == {str(folder / "metadata.jsonl"), str(texts)}
    assert Stream(tmp_path / "out").rejected == 11


def test_interleaved_documents(tmp_path, made_tokenizers):
    pictures(tmp_path / "set" / "images", 3)
    parts = [
        {"type": "text", "text": "a"},
        {"type": "image", "path": "images/0.png"},
        "b",
        {"type": "text", "text": ""},
        {"type": "image", "file_name": "images/2.png"},
    ]
    rows = [
        {"id": "one", "segments": parts, "lang": "en"},
        {"id": "two", "segments": [*parts, {"type": "video", "path": "x"}]},
        {"id": "three", "segments": []},
        {"id": "four", "segments": [{"type": "audio", "path": "images/1.png"}]},
        {"id": "five", "image": "images/1.png", "text": "beside", "n": 1},
    ]
    write_rows(tmp_path / "set" / "docs.jsonl", rows)
    shard([tmp_path / "set"], tmp_path / "out", made_tokenizers)
    one, five = documents(Stream(tmp_path / "out"))
    assert [s.name for s in one.spans] == ["text", "image", "text", "image"]
    assert one.metadata == {"id": "one", "lang": "en"}
    assert [s.name for s in five.spans] == ["image", "text"] and five.metadata["n"] == 1
    reasons = [entry["reason"] for entry in rejected(tmp_path / "out")]
    assert "unknown part" in reasons[0] and "no parts" in reasons[1]
    assert reasons[2] == "no tokenizer for speech"


def test_a_share_of_texts_goes_to_the_byte_tokenizer(tmp_path, made_tokenizers, monkeypatch):
    byte = byte_patch.fit([b"x"], byte_patch.FitOptions())
    loaded = {"letters": Letters(), "bytes": byte}
    monkeypatch.setattr("plait.pipeline.job.load_tokenizer", lambda p: loaded[Path(p).name])
    source = write_rows(tmp_path / "t.jsonl", [{"text": f"text {i}"} for i in range(400)])
    (tmp_path / "file.bin").write_bytes(b"\0\xff\n")
    folders = [tmp_path / "letters", tmp_path / "bytes"]
    shard([source, f"bytes:{tmp_path / 'file.bin'}"], tmp_path / "out", folders, workers=1)
    found = documents(Stream(tmp_path / "out"))
    names = [d.spans[0].name for d in found]
    assert names[-1] == "bytes" and found[-1].spans[0].ids.tolist() == [0, 255, 10]
    assert 25 < names[:-1].count("bytes") < 85
    assert all(s.patch_starts is not None for d in found for s in d.spans if s.name == "bytes")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_stock_webdataset_reads_the_shards(tmp_path, made_tokenizers):
    folder = pictures(tmp_path / "set", 5)
    rows = [{"file_name": f"{i}.png", "caption": "é" * i + "\u4e2d"} for i in range(5)]
    write_rows(folder / "metadata.jsonl", rows)
    shard([folder], tmp_path / "out", made_tokenizers, samples_per_shard=2)
    stream = Stream(tmp_path / "out")
    tars = sorted(str(p) for p in (tmp_path / "out").glob("*.tar"))
    dataset = webdataset.WebDataset(tars, shardshuffle=False, empty_check=False).decode()
    samples = list(dataset)
    assert len(samples) == len({s["__key__"] for s in samples}) == 3
    ids = np.concatenate([s["tokens.npy"] for s in samples])
    columns = {name for s in samples for name in s["meta.json"]["columns"]}
    lengths = [s["spans.npy"][:, s["meta.json"]["columns"].index("length")] for s in samples]
    keys = [k for s in samples for k in s["meta.json"]["keys"]]
    found = documents(stream)
    assert keys == [d.key for d in found]
    assert (ids == np.concatenate([s.ids for d in found for s in d.spans])).all()
    assert np.concatenate(lengths).sum() == stream.tokens
    assert columns == {"document", "modality", "tokenizer", "length", "width"}


def test_a_finished_job_does_nothing(tmp_path, bytes_tokenizer, capsys):
    source = write_rows(tmp_path / "t.jsonl", [{"text": f"text {i}"} for i in range(30)])
    argv = [str(source), "--out", str(tmp_path / "out"), "--tokenizer", str(bytes_tokenizer)]
    assert main(argv) == 0
    before = tree(tmp_path / "out")
    assert main([*argv, "--workers", "2"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert tree(tmp_path / "out") == before
    assert set(before) == {
        *("stream.json", "rejected.jsonl", "shard-000000.tar", "shard-000000.idx"),
        *(f"tokenizers/bytes/{p.name}" for p in bytes_tokenizer.iterdir()),
    }


def test_another_job_in_the_folder_is_refused_by_name(tmp_path, bytes_tokenizer):
    source = write_rows(tmp_path / "t.jsonl", [{"text": f"text {i}"} for i in range(30)])
    out = tmp_path / "out"
    shard([source], out, [bytes_tokenizer])
    with pytest.raises(ResumeError, match=r"options.*samples_per_shard"):
        shard([source], out, [bytes_tokenizer], samples_per_shard=7)
    other = tmp_path / "other"
    byte_patch.fit([b"x"], byte_patch.FitOptions(method="fixed")).save(other)
    with pytest.raises(ResumeError, match="tokenizers: was"):
        shard([source], out, [other])
    os.utime(source, (1, 1))
    assert shard([source], out, [bytes_tokenizer]).already_done
    source.write_text(source.read_text().replace("text 3", "text x"))
    with pytest.raises(ResumeError, match=r"t\.jsonl: listing was"):
        shard([source], out, [bytes_tokenizer])
    source.write_text('{"text": "one more"}\n' + source.read_text())
    with pytest.raises(ResumeError, match="samples was 30, is 31"):
        shard([source], out, [bytes_tokenizer])


def test_wrong_use_is_refused(tmp_path, bytes_tokenizer):
    source = write_rows(tmp_path / "set" / "t.jsonl", [{"text": "a"}])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    out, tokenizers = tmp_path / "out", [bytes_tokenizer]
    cases = [
        (([tmp_path / "gone"], out, tokenizers), "no such file"),
        (([source], out, []), "no tokenizer"),
        (([source], out, [*tokenizers, *tokenizers]), "two tokenizers for bytes"),
        (([source], tmp_path / "full", tokenizers), "not empty"),
        (([tmp_path / "set"], tmp_path / "set" / "out", tokenizers), "inside the source"),
        (([source, tmp_path / "set"], out, tokenizers), "named twice"),
    ]
    for arguments, message in cases:
        with pytest.raises(ConfigError, match=message):
            shard(*arguments)
    with pytest.raises(ConfigError, match="caption-first"):
        shard([source], out, tokenizers, caption_first=2)


def test_a_source_of_rejects_alone_leaves_no_shard(tmp_path, bytes_tokenizer):
    source = write_rows(tmp_path / "t.jsonl", [{"text": ""}] * 5)
    out = tmp_path / "out"
    assert main([str(source), "--out", str(out), "--tokenizer", str(bytes_tokenizer)]) == 1
    assert not list(out.glob("*.tar")) and len(rejected(out)) == 5
    assert Stream(out).documents == 0


def test_loose_media_beside_the_stream(sample_data, sample_tokenizers, tmp_path, monkeypatch):
    """A folder of pictures without metadata; the stream goes beside it, both paths relative."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for path in sorted((sample_data / "images").glob("*.png"))[:2]:
        (tmp_path / "photos" / path.name).write_bytes(path.read_bytes())
    summary = shard(["photos"], "stream", [sample_tokenizers / "image"], workers=1)
    assert (summary.documents, summary.rejected) == (2, {})
    with pytest.raises(ConfigError, match="lies inside the source"):
        shard(["photos"], "photos/stream", [sample_tokenizers / "image"], workers=1)


def test_a_job_without_sources_is_wrong_use(tmp_path, bytes_tokenizer):
    with pytest.raises(ConfigError, match="no SOURCE"):
        shard([], tmp_path / "out", [bytes_tokenizer])
    assert not (tmp_path / "out").exists()
