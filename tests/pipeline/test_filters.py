"""Filters of a shard job: bounds, and the split; each drop is listed and counted."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from plait.pipeline.filters import Filters, Gate
from plait.pipeline.inspect import command as inspect
from plait.pipeline.shard import main, shard
from plait.pipeline.source import Part, Rejected, Sample
from plait.pipeline.stream import Stream
from plait.tokenizers.errors import ConfigError, ResumeError, SampleError

from .conftest import tree, write_rows


def text_rows(path, lengths):
    return write_rows(path, [{"id": f"r{i}", "text": "x" * n} for i, n in enumerate(lengths)])


def reasons(out):
    listed = map(json.loads, (out / "rejected.jsonl").read_text().splitlines())
    return {entry["key"]: entry["reason"] for entry in listed}


def test_text_and_tokens_are_bounded_and_counted(tmp_path, bytes_tokenizer):
    source = text_rows(tmp_path / "t.jsonl", [0, 1, 4, 5, 40, 41, 60])
    out = tmp_path / "out"
    filters = Filters(min_chars=4, max_chars=50, min_tokens=5, max_tokens=40)
    summary = shard([source], out, [bytes_tokenizer], filters=filters)
    assert summary.rejected == {
        "empty text": 1,
        "filtered, text too long": 1,
        "filtered, text too short": 1,
        "filtered, too few tokens": 1,
        "filtered, too many tokens": 1,
    }
    assert (summary.documents, summary.samples) == (2, 7)
    stream = Stream(out)
    assert [stream.document(i).key for i in range(2)] == ["r3#4", "r4#5"]
    found = reasons(out)
    assert found["r1#2"] == "filtered, text too short: 1 characters, at least 4"
    assert found["r6#7"] == "filtered, text too long: 60 characters, at most 50"
    assert found["r2#3"] == "filtered, too few tokens: 4, at least 5"
    assert found["r5#6"] == "filtered, too many tokens: 41, at most 40"
    with pytest.raises(ResumeError, match="min_chars"):
        shard([source], out, [bytes_tokenizer])
    assert shard([source], out, [bytes_tokenizer], filters=filters).already_done


def test_what_was_filtered_is_shown_and_is_no_alert(tmp_path, bytes_tokenizer, capsys):
    source = text_rows(tmp_path / "t.jsonl", [1] * 9 + [0] + [10] * 90)
    filters = Filters(min_chars=2)
    shard([source], tmp_path / "out", [bytes_tokenizer], filters=filters)
    assert inspect.main([str(tmp_path / "out"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["rejected_by_reason"] == {"filtered, text too short": 9, "empty text": 1}
    assert not [alert for alert in facts["alerts"] if "rejected" in alert]


def passed(filters, *parts):
    """What the gate says of a sample of these parts: nothing, or a reason."""
    gate = Gate(filters, "source", {})
    (sample,) = gate.samples([Sample(key="k", parts=parts)])
    if isinstance(sample, Rejected):
        return sample.reason
    try:
        for part in sample.parts:
            part.load()
    except SampleError as error:
        return str(error)
    return ""


def image(tmp_path, width, height):
    path = tmp_path / f"{width}x{height}.png"
    Image.new("RGB", (width, height)).save(path)
    return Part(kind="image", value=path)


def sound(tmp_path, seconds):
    path = tmp_path / f"{seconds}.wav"
    soundfile.write(path, np.zeros(int(seconds * 8000), np.float32), 8000)
    return Part(kind="audio", value=path)


def test_images_are_bounded(tmp_path):
    bounds = Filters(min_side=10, max_aspect=3.0)
    assert passed(bounds, image(tmp_path, 30, 10)) == ""
    assert passed(bounds, image(tmp_path, 10, 31)).startswith("filtered, image too narrow: 10x31")
    small = passed(bounds, Part(kind="text", value="a"), image(tmp_path, 12, 9))
    assert small == "filtered, image too small: 12x9 pixels, a side of at least 10"
    assert passed(Filters(min_side=10), image(tmp_path, 10, 31)) == ""
    assert passed(bounds, image(tmp_path, 20, 20), image(tmp_path, 8, 8)).endswith("at least 10")


def test_sounds_are_bounded(tmp_path):
    bounds = Filters(min_seconds=0.5, max_seconds=2.0)
    assert passed(bounds, sound(tmp_path, 0.5)) == passed(bounds, sound(tmp_path, 2.0)) == ""
    short = "filtered, sound too short: 0.250 s, at least 0.5 s"
    assert passed(bounds, sound(tmp_path, 0.25)) == short
    assert passed(bounds, sound(tmp_path, 2.25)).startswith("filtered, sound too long: 2.250 s")


def test_the_texts_of_a_document_count_together(tmp_path):
    (tmp_path / "t.txt").write_text("four")
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    file = Part(kind="text", value=tmp_path / "t.txt")
    three = Part(kind="text", value="abc")
    bounds = Filters(min_chars=7, max_chars=7)
    assert passed(bounds, file, three) == ""
    assert "too short: 4" in passed(bounds, file)
    assert "too long: 8" in passed(bounds, file, file)
    assert "not UTF-8" in passed(bounds, Part(kind="text", value=tmp_path / "bad.txt"))
    assert passed(bounds, sound(tmp_path, 1)) == ""


@pytest.mark.parametrize(
    "filters",
    [
        Filters(min_chars=-1),
        Filters(max_tokens=-1),
        Filters(min_chars=5, max_chars=4),
        Filters(max_aspect=0.5),
        Filters(max_seconds=float("nan")),
        Filters(validation=1.0),
        Filters(split="train"),
    ],
)
def test_impossible_bounds_are_refused(filters, tmp_path):
    with pytest.raises(ConfigError):
        shard([tmp_path], tmp_path / "out", [], filters=filters)


def test_media_out_of_bounds_are_listed(sample_data, sample_tokenizers, tmp_path):
    """Through the tokenizers: a picture with its caption is left out whole, texts pass."""
    tokenizers = [sample_tokenizers / kind for kind in ("text", "image", "speech")]
    filters = Filters(min_side=10_000, max_seconds=0.01)
    places = [sample_data / name for name in ("images", "speech", "text")]
    summary = shard(places, tmp_path / "out", tokenizers, filters=filters, workers=1)
    stream = Stream(tmp_path / "out")
    sizes = {source["kind"]: source["samples"] for source in stream.manifest["sources"]}
    assert summary.rejected == {
        "filtered, image too small": sizes["images"],
        "filtered, sound too long": sizes["audio"],
    }
    assert set(summary.tokens) == {"text"} and summary.documents > 0
    assert summary.documents + stream.rejected == summary.samples


def keys(out):
    stream = Stream(out)
    return [stream.document(i).key for i in range(stream.documents)]


def test_a_split_makes_two_whole_streams(tmp_path, bytes_tokenizer, capsys):
    rows = [{"id": f"r{i}", "text": "x" if i % 7 else ""} for i in range(400)]
    source = write_rows(tmp_path / "t.jsonl", [*rows, "{\n"])
    out = tmp_path / "out"
    argv = [str(source), "--out", str(out), "--tokenizer", str(bytes_tokenizer)]
    argv += ["--validation", "0.2", "--samples-per-shard", "50"]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    train, held_out = Stream(out / "train"), Stream(out / "validation")
    assert f"{out}/train: {train.documents:,} documents of" in shown
    assert 50 < held_out.documents < 100
    samples = [s.documents + s.rejected for s in (train, held_out)]
    assert [train.manifest["samples"], held_out.manifest["samples"]] == samples
    assert sum(samples) == 401 and train.rejected + held_out.rejected == 59
    both = keys(out / "train") + keys(out / "validation")
    assert sorted(both) == sorted(f"r{i}#{i + 1}" for i in range(400) if i % 7)
    assert len(train.shards) == 7 and len(held_out.shards) == 2
    before = tree(out)
    assert main(argv) == 0 and tree(out) == before
    with pytest.raises(ConfigError, match="holds a stream that is not split"):
        shard([source], out / "train", [bytes_tokenizer], filters=Filters(validation=0.2))


def test_the_split_stays_when_shards_and_lines_change(tmp_path, bytes_tokenizer):
    rows = [{"id": f"r{i}", "text": "some words"} for i in range(200)]
    source = write_rows(tmp_path / "a" / "t.jsonl", rows)
    grown = write_rows(tmp_path / "b" / "t.jsonl", [{"text": "new"}, *rows[:150], {"text": "b"}])
    filters = Filters(validation=0.3)
    shard([source], tmp_path / "one", [bytes_tokenizer], filters=filters)
    shard([grown], tmp_path / "two", [bytes_tokenizer], filters=filters, samples_per_shard=9)
    seeded = replace(filters, split_seed=1)
    shard([source], tmp_path / "other", [bytes_tokenizer], filters=seeded)
    held_out = [
        {key.partition("#")[0] for key in keys(tmp_path / name / "validation")} - {""}
        for name in ("one", "two", "other")
    ]
    first = {f"r{i}" for i in range(150)}
    assert held_out[0] & first == held_out[1]
    assert held_out[0] != held_out[2]


def test_a_sample_whose_key_has_no_name_is_told_by_its_line():
    filters = Filters(validation=0.5, split="validation")
    taken = [filters.takes(f"#{i}") for i in range(200)]
    assert 60 < sum(taken) < 140
    files = [filters.takes(f"a#b{i}.png") for i in range(200)]
    assert 60 < sum(files) < 140
    assert len({filters.takes(f"one#{i}") for i in range(200)}) == 1


def test_options_of_the_command_are_the_filters(tmp_path, bytes_tokenizer):
    source = text_rows(tmp_path / "t.jsonl", [1, 9])
    argv = [str(source), "--out", str(tmp_path / "out"), "--tokenizer", str(bytes_tokenizer)]
    assert main([*argv, "--min-chars", "5"]) == 0
    manifest = json.loads((Path(tmp_path) / "out" / "stream.json").read_bytes())
    assert manifest["options"]["min_chars"] == 5 and "max_chars" not in manifest["options"]
    assert manifest["documents"] == 1
