import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.pipeline import json_array, lines
from plait.pipeline.compressed import zstd
from plait.pipeline.find import find_sources, open_sources
from plait.pipeline.lines import Lines
from plait.tokenizers.errors import ConfigError

from .made_sources import write

PACKERS = {"": bytes, ".gz": gzip.compress, ".zst": zstd.compress}
VALUES = st.recursive(
    st.none() | st.integers() | st.text('a"\\[]{},:\n\xe9', max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("[k"), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(VALUES, max_size=12),
    st.sampled_from(sorted(PACKERS)),
    st.sampled_from([None, 1]),
    st.integers(1, 40),
    st.data(),
)
def test_elements_are_those_of_json(tmp_path_factory, values, ending, indent, chunk, data):
    raw = data.draw(st.sampled_from([b"", b" \n", b"\xef\xbb\xbf"]))
    raw += json.dumps(values, indent=indent).encode() + b"\n"
    path = write(tmp_path_factory.mktemp("a") / f"a.json{ending}", PACKERS[ending](raw))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_array, "_CHUNK", chunk)
        patch.setattr(lines, "SEEK_EVERY", 3)
        rows = Lines(path)
        start = data.draw(st.integers(0, len(rows)))
        stop = data.draw(st.integers(start, len(rows)))
        found = [(number, json.loads(row)) for number, row in rows.read(start, stop)]
    assert len(rows) == len(values)
    assert found == list(enumerate(values, 1))[start:stop]


def test_a_bad_element_does_not_hide_the_next(tmp_path):
    text = b'[{"text": "a"}, {"text": }, nonsense, {"text": "b"}}, [1], {"text": "c", "id": "x"},]'
    (source,) = open_sources(write(tmp_path / "a.json", text))
    found = list(source.read(0, len(source)))
    assert source.kind == "jsonl"
    assert [s.key for s in found] == ["#1", "#2", "#3", "#4", "#5", "x#6"]
    reasons = [getattr(s, "reason", "fine").partition(":")[0] for s in found]
    assert reasons == ["fine", *["bad JSON"] * 3, "bad row", "fine"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'[{"text": "a"}, {"text', "the JSON array ends within element 2; fetch it again"),
        (b'[{"text": "a"}', "the JSON array ends within element 1"),
        (b'[{"text": "a"},', "the JSON array ends within element 2"),
        (b'[{"text": "a"}] x', "something follows the JSON array at byte 16"),
    ],
)
def test_damaged_arrays_are_errors(tmp_path, text, reason):
    with pytest.raises(ConfigError, match=rf"a\.json: {reason}"):
        len(open_sources(write(tmp_path / "a.json", text), "jsonl")[0])


def test_an_element_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 1 << 20)
    path = write(tmp_path / "a.json", b'[{"text": "' + b"x" * (3 << 20) + b'"}]')
    with pytest.raises(ConfigError, match="element 1 of the JSON array is longer than 1 MiB"):
        Lines(path)


def test_a_folder_has_json_that_is_no_source(tmp_path):
    write(tmp_path / "config.json", b'{"text": "not a row"}')
    write(tmp_path / "pretty.json", b'{\n "text": "a"\n}')
    write(tmp_path / "numbers.json", b"[1, 2]")
    write(tmp_path / "array.json", b'[{"text": "a"}]')
    write(tmp_path / "lines.json", b'{"text": "a"}\n{"text": "b"}\n')
    write(tmp_path / "c4.json.gz", gzip.compress(b'{"text": "a"}\n{"text": "b"}\n'))
    write(tmp_path / "z.ndjson.zst", zstd.compress(b'{"text": "a"}\n'))
    found = find_sources(tmp_path)
    assert [s.path.name for s in found.sources] == [
        *("array.json", "c4.json.gz", "lines.json", "z.ndjson.zst")
    ]
    assert [p.name for p in found.passed_over] == ["config.json", "numbers.json", "pretty.json"]
