import builtins
import datetime
import decimal
import json

import pyarrow
import pytest
from pyarrow import parquet

from plait.pipeline.arrow_rows import as_json, rows_of
from plait.pipeline.fields import parse_fields
from plait.pipeline.find import find_sources, open_sources
from plait.pipeline.source import Rejected
from plait.tokenizers.errors import ConfigError

from ..made_sources import captioned_table, png, wav, write


def written(path, columns, **options):
    table = columns if isinstance(columns, pyarrow.Table) else pyarrow.table(columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, **options)
    return path


def samples(path, *fields):
    (source,) = open_sources(path, fields=parse_fields(fields))
    return list(source.read(0, len(source)))


def parts(sample):
    return [(part.kind, part.value) for part in sample.parts]


def test_pictures_with_captions(tmp_path):
    first, *_, seventh = samples(written(tmp_path / "a.parquet", captioned_table(7)))
    assert first.key == "row 0#1" and first.captioned
    assert parts(first) == [("image", png(0)), ("text", "caption 0")]
    assert first.metadata == {"id": "row 0", "n": 0}
    assert parts(seventh) == [("text", "caption 6")] and not seventh.captioned


def test_what_columns_are_is_told_by_type_description_and_name(tmp_path):
    features = {"noise": {"_type": "Audio"}, "label": {"_type": "ClassLabel"}}
    schema = pyarrow.schema(
        [
            pyarrow.field("noise", pyarrow.struct({"bytes": pyarrow.binary(), "path": "string"})),
            pyarrow.field("TEXT", pyarrow.large_string()),
            pyarrow.field("label", pyarrow.int64()),
            pyarrow.field("blob", pyarrow.binary()),
        ],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    row = {"noise": {"bytes": wav(), "path": None}, "TEXT": "a", "label": 3, "blob": b"x"}
    (sample,) = samples(
        written(tmp_path / "a.parquet", pyarrow.Table.from_pylist([row], schema=schema))
    )
    assert parts(sample) == [("audio", wav()), ("text", "a")]
    assert sample.metadata == {"label": 3} and sample.captioned
    columns = {"jpg": [png()], "captions": [["one", "two"]], "mp3": [b"y"], "title": ["t"]}
    (sample,) = samples(written(tmp_path / "b.parquet", columns))
    assert parts(sample) == [("image", png()), ("text", "one"), ("audio", b"y")]
    assert sample.metadata == {"title": "t"} and not sample.captioned


def test_paths_beside_the_file(tmp_path):
    write(tmp_path / "set" / "pictures" / "a.png", png())
    names = ["pictures/a.png", "/etc/passwd", "../../../x.png", "gone.png", "https://e.org/a.png"]
    rows = {"image": names, "text": ["a"] * 5}
    found = samples(written(tmp_path / "set" / "data" / "a.parquet", rows))
    assert found[0].parts[0].value == tmp_path / "set" / "pictures" / "a.png"
    reasons = [sample.reason.partition(":")[0] for sample in found[1:]]
    assert reasons == [
        *("absolute or empty path", "path leaves the source", "missing file"),
        "its picture or sound is remote; fetch it first",
    ]


def test_interleaved_lists(tmp_path):
    listed = [
        {"type": "text", "text": "a", "image": None},
        {"type": "image", "text": None, "image": {"bytes": png(), "path": "a.png"}},
        {"type": "text", "text": "b", "image": None},
    ]
    (sample,) = samples(written(tmp_path / "a.parquet", {"content": [listed], "n": [1]}))
    assert parts(sample) == [("text", "a"), ("image", png()), ("text", "b")]
    assert sample.metadata == {"n": 1}
    video = [[{"type": "video", "text": "a"}], [{"type": "text", "text": None}]]
    found = samples(written(tmp_path / "b.parquet", {"segments": video}))
    assert ["unknown part" in found[0].reason, found[1].reason] == [True, "text part without text"]


def test_parallel_lists(tmp_path):
    picture = {"bytes": png(), "path": None}
    images = [[None, picture, None], [None, picture], [picture, None]]
    texts = [["a", None, "b"], ["a"], [None, "a"]]
    columns = {"images": images, "texts": texts, "metadata": ["{}"] * 3}
    first, second, third = samples(written(tmp_path / "a.parquet", columns))
    assert parts(first) == [("text", "a"), ("image", png()), ("text", "b")]
    assert second.reason == "2 images beside 1 texts; should be as many"
    assert parts(third) == [("image", png()), ("text", "a")] and not third.captioned
    far = {"images": [["https://e.org/a.png", None, None]], "texts": [[None, "a", "b"]]}
    (sample,) = samples(written(tmp_path / "b.parquet", far))
    assert parts(sample) == [("text", "a"), ("text", "b")]
    assert sample.metadata == {"images_left_out": 1}


def test_only_the_row_groups_of_a_range_are_read(tmp_path, monkeypatch):
    path = written(tmp_path / "a.parquet", captioned_table(50), row_group_size=10)
    (source,) = open_sources(path)
    read = []

    class Watched(parquet.ParquetFile):
        def iter_batches(self, batch_size, row_groups, **options):
            read.extend(row_groups)
            return super().iter_batches(batch_size, row_groups, **options)

    monkeypatch.setattr(parquet, "ParquetFile", Watched)
    assert [s.key for s in source.read(19, 31)] == [f"row {i}#{i + 1}" for i in range(19, 31)]
    assert read == [1, 2, 3]
    read.clear()
    assert next(source.read(40, 50)).key == "row 40#41" and read == [4]


def test_batches_and_tasks_are_bounded(tmp_path):
    path = written(tmp_path / "a.parquet", {"image": [bytes([i]) * (2 << 20) for i in range(12)]})
    (source,) = open_sources(path)
    assert max(batch.num_rows for batch in source.batches(0, 12)) <= 4
    path = written(tmp_path / "same.parquet", {"image": [b"one value in a dictionary"] * 1000})
    (source,) = open_sources(path)
    assert max(batch.num_rows for batch in source.batches(0, 1000)) == 64
    path = written(tmp_path / "b.parquet", {"text": ["a"] * 600_000})
    (source,) = open_sources(path)
    assert source.samples_per_task == 37500
    assert source.batches(0, 10).__next__().num_rows == 10


def test_columns_by_option(tmp_path):
    columns = {"a": [png()], "b": ["x"], "c": ["y"], "name": [7], "text": ["z"]}
    path = written(tmp_path / "a.parquet", columns)
    fields = ("image=a", "text=b", "text=c", "key=name")
    (sample,) = samples(path, *fields)
    assert sample.key == "7#1" and sample.metadata == {"name": 7, "text": "z"}
    assert parts(sample) == [("image", png()), ("text", "x"), ("text", "y")]
    (sample,) = samples(path, "bytes=a", "text=")
    assert parts(sample) == [("bytes", png())]
    with pytest.raises(ConfigError, match=r"no column 'body' for text; it has a \(binary\)"):
        samples(path, "text=body")
    with pytest.raises(ConfigError, match=r"no column of text.*name \(int64\).*--field"):
        samples(written(tmp_path / "b.parquet", {"name": [7]}))


def test_a_bad_row_is_rejected_and_the_next_is_read(tmp_path):
    texts = pyarrow.array([b"a", b"\xff\xfe", b"c"], pyarrow.binary())
    bad = pyarrow.StringArray.from_buffers(3, texts.buffers()[1], texts.buffers()[2])
    first, second, third = samples(written(tmp_path / "a.parquet", {"text": bad}))
    assert (first.key, third.key) == ("#1", "#3")
    assert isinstance(second, Rejected) and "UTF8" in second.reason and second.key == "#2"
    found = samples(written(tmp_path / "b.parquet", {"image": [b"x", None], "text": [None, None]}))
    assert parts(found[0]) == [("image", b"x")] and found[1].parts == ()


@pytest.mark.parametrize("kept", [0, 5, 100, -1, -8, -300])
def test_a_cut_file_is_an_error(tmp_path, kept):
    path = written(tmp_path / "a.parquet", captioned_table(30))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ConfigError, match=r"a\.parquet: .*(cut short|damaged)"):
        open_sources(path)


def test_damaged_bytes_never_raise_anything_else(tmp_path):
    path = written(tmp_path / "a.parquet", captioned_table(30), row_group_size=7)
    data = path.read_bytes()
    for place in range(4, len(data), 97):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x5A]) + data[place + 1 :])
        try:
            (source,) = open_sources(path)
            assert len(list(source.read(0, len(source)))) <= max(len(source), 30)
        except ConfigError as error:
            assert "a.parquet" in str(error)


def test_a_folder_holds_a_source_a_file(tmp_path):
    for name in ("train-00001", "train-00000", "test-00000"):
        written(tmp_path / "data" / f"{name}.parquet", {"text": [name]})
    write(tmp_path / "README.md", b"a card")
    found = find_sources(tmp_path)
    assert [s.path.stem for s in found.sources] == ["test-00000", "train-00000", "train-00001"]
    assert [p.name for p in found.passed_over] == ["README.md"]
    assert len(open_sources(f"parquet:{tmp_path}")) == 3
    with pytest.raises(ConfigError, match="no parquet here"):
        open_sources(write(tmp_path / "empty" / "x", b"").parent, "parquet")


def test_without_pyarrow_it_is_said_what_to_install(tmp_path, monkeypatch):
    path = written(tmp_path / "a.parquet", {"text": ["a"]})
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install 'plait\[parquet\]'"):
        open_sources(path)


def test_values_become_json(tmp_path):
    day = datetime.date(2024, 2, 3)
    columns = {
        "text": ["a"],
        "day": [day],
        "ns": pyarrow.array([1], pyarrow.timestamp("ns")),
        "exact": [decimal.Decimal("1.50")],
        "nan": [float("nan")],
        "map": pyarrow.array([[("k", 1)]], pyarrow.map_("string", "int8")),
        "tags": pyarrow.array(["x"]).dictionary_encode(),
    }
    (sample,) = samples(written(tmp_path / "a.parquet", columns))
    assert sample.metadata == {
        "day": "2024-02-03",
        "ns": "1970-01-01 00:00:00.000000001",
        "exact": "1.50",
        "nan": None,
        "map": [["k", 1]],
        "tags": "x",
    }
    span = pyarrow.array([(1, 2, 3)], pyarrow.month_day_nano_interval())
    (row,) = rows_of(pyarrow.record_batch([span], ["span"]))
    assert as_json(row) == {"span": [1, 2, 3]}
    assert as_json([b"abc", {1: datetime.timedelta(seconds=1)}]) == ["3 bytes", {"1": "0:00:01"}]
