import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.pipeline.find import find_sources, open_sources
from plait.pipeline.lines import Lines
from plait.pipeline.paths import resolve
from plait.pipeline.source import Part, Rejected
from plait.tokenizers.errors import ConfigError, SampleError


def samples(source):
    return list(source.read(0, len(source)))


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"this is {name}")


def test_a_tree_of_sets(tmp_path):
    touch(tmp_path, "README.md", "LICENSES.md", "MANIFEST.tsv", "notes/a.txt", "notes/b.md")
    touch(tmp_path, "images/one.png", "images/raw/page.html", "loose/z.jpg", "loose/deep/y.PNG")
    (tmp_path / "images/metadata.jsonl").write_text('{"file_name": "one.png", "caption": "c"}\n')
    (tmp_path / "text.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    found = find_sources(tmp_path)
    kinds = [(s.kind, len(s)) for s in found.sources]
    assert kinds == [("images", 1), ("jsonl", 2), ("images", 2), ("text", 2)]
    loose = found.sources[2]
    assert [s.key for s in samples(loose)] == ["loose/deep/y.PNG", "loose/z.jpg"]
    names = {p.name for p in found.passed_over}
    assert names == {"README.md", "LICENSES.md", "MANIFEST.tsv", "page.html"}


def test_sample_data_of_the_repository(sample_data):
    for source in open_sources(sample_data):
        if source.path.is_file():
            opener = gzip.open if source.path.suffix == ".gz" else open
            with opener(source.path, "rb") as file:
                assert len(source) == sum(bool(line.strip()) for line in file)
        read = samples(source)
        assert len(read) == len(source) > 0
        assert not [s for s in read if isinstance(s, Rejected)]
        assert len({s.key for s in read}) == len(read)


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"file_name": "a.png"}, "images"),
        ({"file_name": "a.opus", "image": "x.png"}, "audio"),
        ({"text": "a"}, "jsonl"),
        ({"content": "a", "text": "b"}, "jsonl"),
        ({"content": [], "text": "b"}, "interleaved"),
        ({"image": "a.png", "text": "b", "audio": "c.wav"}, "interleaved"),
    ],
)
def test_rows_tell_their_kind(tmp_path, row, kind):
    path = tmp_path / "rows.jsonl"
    path.write_text("not json\n" + json.dumps(row) + "\n")
    (source,) = open_sources(path)
    assert (source.kind, len(source)) == (kind, 2)


def test_a_kind_may_be_forced(tmp_path):
    touch(tmp_path, "README.md", "data.bin", "x.txt")
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    (source,) = open_sources(f"bytes:{tmp_path}")
    assert [s.key for s in samples(source)] == ["README.md", "data.bin", "rows.jsonl", "x.txt"]
    assert samples(source)[1].parts[0].load() == b"this is data.bin"
    (source,) = open_sources(tmp_path, "text")
    assert [s.key for s in samples(source)] == ["README.md", "x.txt"]
    with pytest.raises(ConfigError, match="no kind of source 'video'; there is audio, bytes"):
        open_sources(tmp_path, "video")
    with pytest.raises(ConfigError, match=r"no images here .*\.png"):
        open_sources(tmp_path, "images")


def test_what_cannot_be_recognised_is_said(tmp_path):
    touch(tmp_path, "x.bin")
    (tmp_path / "rows.jsonl").write_text('{"label": 3}\n')
    with pytest.raises(ConfigError, match=r"rows\.jsonl: no row with file_name.*label"):
        open_sources(tmp_path)
    with pytest.raises(ConfigError, match=r"bytes:.*x\.bin"):
        open_sources(tmp_path / "x.bin")
    (tmp_path / "rows.jsonl").unlink()
    with pytest.raises(ConfigError, match="no samples found"):
        open_sources(tmp_path)


def test_paths_are_looked_up_to_the_parent_of_the_source(tmp_path):
    touch(tmp_path, "data/pictures/a.png", "data/set/rows/b.png", "data/a.png", "secret.png")
    folder, root = tmp_path / "data/set/rows", tmp_path / "data/set"
    assert resolve("b.png", folder, root) == folder / "b.png"
    assert resolve("pictures/a.png", folder, root) == tmp_path / "data/pictures/a.png"
    assert resolve("../../a.png", folder, root) == tmp_path / "data/a.png"
    for name, reason in [
        ("secret.png", "missing file"),
        ("../../../secret.png", "leaves"),
        (str(tmp_path / "data/a.png"), "absolute"),
        ("", "empty path"),
    ]:
        with pytest.raises(SampleError, match=reason):
            resolve(name, folder, root)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_characters="\r\n", codec="utf-8"), max_size=8)),
    st.booleans(),
    st.booleans(),
    st.data(),
)
def test_line_ranges(tmp_path_factory, texts, compressed, ended, data):
    path = tmp_path_factory.mktemp("lines") / ("a.jsonl.gz" if compressed else "a.jsonl")
    raw = "\n".join(texts).encode() + (b"\n" if ended else b"")
    path.write_bytes(gzip.compress(raw) if compressed else raw)
    lines = Lines(path)
    expected = [(i + 1, line) for i, line in enumerate(raw.split(b"\n")) if line.strip()]
    assert len(lines) == len(expected)
    start = data.draw(st.integers(0, len(expected)))
    stop = data.draw(st.integers(start, len(expected)))
    read = [(number, line.rstrip(b"\n")) for number, line in lines.read(start, stop)]
    assert read == expected[start:stop]


def test_long_files_are_read_from_the_middle(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f"{i}\n\n" for i in range(10000)))
    lines = Lines(path)
    assert [line for _, line in lines.read(9000, 9002)] == [b"9000\n", b"9001\n"]
    assert next(lines.read(9000, 9001))[0] == 18001


def test_a_damaged_gzip_file_is_named(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n' * 1000)[:-20])
    with pytest.raises(ConfigError, match=r"a\.jsonl\.gz: damaged gzip"):
        len(open_sources(path)[0])


def test_parts_say_why_they_cannot_be_read(tmp_path):
    bad = tmp_path / "latin.txt"
    bad.write_bytes(b"caf\xe9")
    with pytest.raises(SampleError, match="not UTF-8: byte 3 is 0xe9"):
        Part(kind="text", value=bad).load()
    with pytest.raises(SampleError, match=r"missing file: gone\.txt"):
        Part(kind="text", value=tmp_path / "gone.txt").load()
    with pytest.raises(SampleError, match="surrogate"):
        Part(kind="text", value="a\ud800").load()
