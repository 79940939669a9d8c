import io
import json
import re
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.pipeline.index import decode_index, encode_index, rebuild_index
from plait.pipeline.rows import Rows
from plait.pipeline.stream import Stream
from plait.pipeline.tar import npy_bytes, npy_view, pack, scan
from plait.pipeline.verify import main, verify
from plait.tokenizers import byte_patch
from plait.tokenizers.errors import ShardError

from .made_stream import ALL, TEXT, document, random_stream, text_stream, write_stream


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return random_stream(tmp_path_factory.mktemp("stream") / "made", documents=90)


@pytest.fixture
def copy(made, tmp_path):
    """A copy that may be damaged."""
    shutil.copytree(made[0].path, tmp_path / "copy")
    return tmp_path / "copy"


def same(span, encoded):
    assert (span.ids == encoded.ids).all() and span.width == encoded.width
    for name in ("patch_starts", "durations", "latents"):
        a, b = getattr(span, name), getattr(encoded, name)
        assert (a is None) == (b is None) and (a is None or (a == b).all())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), tokens=st.integers(1, 3000), count=st.integers(1, 50))
def test_documents_come_back(tmp_path_factory, seed, tokens, count):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("plait.pipeline.shard_writer.BLOCK_TOKENS", tokens)
        patch.setattr("plait.pipeline.shard_writer.BLOCK_DOCUMENTS", count)
        stream, written = random_stream(tmp_path_factory.mktemp("s"), documents=60, seed=seed)
    assert stream.documents == len(stream) == 60
    for i in np.random.default_rng(seed).permutation(60).tolist():
        found = stream.document(i)
        assert (found.key, found.metadata, found.source) == (f"d{i}", {"n": i}, "made")
        assert [s.name for s in found.spans] == [ALL[n].name for n, _ in written[i].spans]
        for span, (_, encoded) in zip(found.spans, written[i].spans, strict=True):
            same(span, encoded)
    blocks = list(stream.blocks())
    assert sum(len(b.keys) for b in blocks) == 60
    assert sum(len(b.ids) for b in blocks) == stream.tokens
    problems = [p for p in verify(stream) if "no tokenizer here" not in p.problem]
    assert not problems


def test_no_such_document(made):
    for i in (-1, 90):
        with pytest.raises(IndexError):
            made[0].document(i)


def test_the_index_can_be_rebuilt_from_the_tar(made):
    stream = made[0]
    for shard in stream.shards:
        path = stream.path / f"{shard.name}.idx"
        index = decode_index(path.read_bytes(), "x")
        tar = memoryview((stream.path / f"{shard.name}.tar").read_bytes())
        assert encode_index(rebuild_index(tar, shard.name, "x")) == encode_index(index)


def test_wide_ids_are_kept(tmp_path):
    rng = np.random.default_rng(0)
    stream = write_stream(tmp_path, [[document(0, [("speech", 50)], rng)]])
    block = next(stream.blocks())
    assert block.ids.dtype == np.uint32 and block.ids.max() >= 1 << 16


def test_blocks_are_aligned_and_small(tmp_path):
    lengths = np.random.default_rng(0).lognormal(6, 0.5, 4000).astype(int).tolist()
    stream = text_stream(tmp_path, [lengths])
    reader = stream.reader(0)
    assert all(b.data % 64 == 0 for b in reader.index.blocks)
    assert stream.bytes < 1.1 * 2 * sum(lengths)


def rewrite(path, change):
    manifest = json.loads((path / "stream.json").read_text())
    change(manifest)
    (path / "stream.json").write_text(json.dumps(manifest))


def test_a_folder_that_holds_no_stream(tmp_path, copy):
    with pytest.raises(ShardError, match=r"no stream here \(stream.json is missing\)"):
        Stream(tmp_path)
    (tmp_path / "job").mkdir()
    with pytest.raises(ShardError, match="not finished"):
        Stream(tmp_path)
    rewrite(copy, lambda m: m.update(format=2))
    with pytest.raises(ShardError, match="format 2; this plait reads format 1"):
        Stream(copy)
    (copy / "stream.json").write_text("{")
    with pytest.raises(ShardError, match="damaged"):
        Stream(copy)
    (copy / "stream.json").write_text('{"format": 1, "tokenizers": []}')
    with pytest.raises(ShardError, match="damaged"):
        Stream(copy)


def test_names_in_a_manifest_do_not_leave_the_folder(copy):
    rewrite(copy, lambda m: m["shards"][0].update(name="../../shard-000000"))
    with pytest.raises(ShardError, match="impossible entry"):
        Stream(copy)


@pytest.mark.parametrize(("by", "word"), [(-600, "truncated"), (600, "too long")])
def test_a_shard_of_another_size(copy, by, word):
    path = copy / "shard-000001.tar"
    data = path.read_bytes()
    path.write_bytes(data[:by] if by < 0 else data + bytes(by))
    stream = Stream(copy)
    assert stream.document(0).key == "d0"
    with pytest.raises(ShardError, match=rf"shard-000001\.tar: {word}: .*should be {len(data)}"):
        stream.document(40)
    with pytest.raises(ShardError, match=word):
        rows = Rows(stream, seq_len=64)
        rows.batch(range(len(rows)))
    path.unlink()
    with pytest.raises(ShardError, match=r"shard-000001\.tar: missing"):
        Stream(copy).document(40)


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 16
    path.write_bytes(data)


def test_a_flipped_bit_is_never_delivered(copy, capsys):
    stream = Stream(copy)
    info = stream.reader(1).index.blocks[0]
    flip(copy / "shard-000001.tar", info.data + 11)
    stream = Stream(copy)
    with pytest.raises(ShardError, match=rf"block {info.name}: tokens\.npy is damaged"):
        stream.document(40)
    rows = Rows(stream, seq_len=64)
    with pytest.raises(ShardError, match=info.name):
        rows.batch(range(len(rows)))
    assert main([str(copy), "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert not facts["ok"]
    first = facts["problems"][0]
    assert (first["shard"], first["block"]) == ("shard-000001", info.name)


@pytest.mark.parametrize("name", ["shard-000002.idx", "shard-000002.tar"])
def test_verify_finds_any_flipped_byte(copy, name):
    size = (copy / name).stat().st_size
    quiet = []
    for at in np.random.default_rng(1).integers(0, size, 40).tolist():
        flip(copy / name, at)
        found = [p for p in verify(Stream(copy)) if p.shard == "shard-000002"]
        flip(copy / name, at)
        quiet += [] if found else [at]
    assert not quiet
    assert not [p for p in verify(Stream(copy)) if p.shard]


def test_verify_counts_and_ids(copy, tmp_path, capsys):
    assert all("no tokenizer here" in p.problem for p in verify(Stream(copy)))
    rewrite(copy, lambda m: m.update(samples=99))
    assert any("are not the 99 samples" in p.problem for p in verify(Stream(copy)))
    (copy / "rejected.jsonl").write_text("{}\n")
    assert any("rejected.jsonl has 1 lines" in p.problem for p in verify(Stream(copy)))
    rewrite(copy, lambda m: m["tokenizers"][0].update(vocab_size=500))
    found = [p for p in verify(Stream(copy)) if p.block]
    assert found and "tokenizer text has ids up to 499" in found[0].problem
    rng = np.random.default_rng(0)
    doubled = write_stream(tmp_path / "twice", [[document(3, [("text", 4)], rng)] * 2])
    assert any("key of another" in p.problem for p in verify(doubled))
    assert main([str(doubled.path)]) == 1
    out = capsys.readouterr().out
    assert "problems: " in out and "; 1 shards" in out


@pytest.mark.parametrize("dtype", ["u1", "<u2", "<u4", "<i4", "<i8", "<f2", "<f4"])
@pytest.mark.parametrize("shape", [(0,), (5,), (3, 4), (0, 5), (2, 0)])
def test_arrays_come_back_also_from_numpy(dtype, shape):
    array = np.arange(np.prod(shape)).astype(dtype).reshape(shape)
    file = io.BytesIO()
    np.save(file, array)
    for data in (npy_bytes(array), file.getvalue()):
        found = npy_view(memoryview(data), "x")
        assert found.dtype == array.dtype and np.array_equal(found, array)


def damaged_block(tmp_path, member, data):
    """What is said of a whole tar in which one member of a block was changed."""
    stream = text_stream(tmp_path / "s", [[5, 6, 7]])
    path = stream.path / "shard-000000.tar"
    tar = memoryview(path.read_bytes())
    members = {m.name: bytes(tar[m.offset : m.offset + m.size]) for m in scan(tar, "x")}
    name = next(n for n in members if n.endswith(member))
    members[name] = data(members[name])
    new = pack(members)
    with pytest.raises(ShardError) as error:
        rebuild_index(memoryview(new), "shard-000000", "shard-000000")
    assert name.partition(".")[0] in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("member", "data", "message"),
    [
        ("tokens.npy", lambda d: b"PK" + d[2:], "wrong magic"),
        ("tokens.npy", lambda d: d.replace(b"'<u2'", b"'|O' "), "no place in a shard"),
        ("tokens.npy", lambda d: d.replace(b"(18,)", b"(90,)"), "do not fill"),
        ("tokens.npy", lambda d: d.replace(b"'<u2'", b"'<f2'"), "should be uint16"),
        ("tokens.npy", lambda d: d[:-2], "do not fill"),
        ("tokens.npy", lambda d: npy_bytes(np.zeros(17, np.uint16)), "do not add up"),
        ("spans.npy", lambda d: npy_bytes(np.zeros((3, 4), np.uint8)), r"unsigned \[s, 1\]"),
        ("spans.npy", lambda d: npy_bytes(np.full((3, 1), 6, np.int32)), r"unsigned \[s, 1\]"),
        (
            "spans.npy",
            lambda d: npy_bytes(np.array([[5], [13]], np.uint8)),
            "entries of metadata|keys",
        ),
        ("meta.json", lambda d: d.replace(b'"length"', b'"width"'), "not named in meta.json"),
        ("meta.json", lambda d: d.replace(b'"width":1', b'"width":-1'), "holds no counts"),
        ("meta.json", lambda d: d.replace(b'"tokenizer":0', b'"tokenizer":9'), "names none"),
        ("meta.json", lambda d: b"[]", "damaged"),
        ("meta.json", lambda d: d.replace(b'"d1",', b""), "keys"),
    ],
)
def test_damaged_members_are_named(tmp_path, member, data, message):
    assert re.search(message, damaged_block(tmp_path, member, data))


def test_another_tokenizer_in_the_folder_is_refused(copy):
    byte_patch.fit([b"x"], byte_patch.FitOptions()).save(copy / "tokenizers" / "bytes")
    with pytest.raises(ShardError, match="another tokenizer than the one that made"):
        Stream(copy).tokenizer("bytes")


def test_streams_of_one_content_have_one_fingerprint(made, copy, tmp_path):
    assert Stream(copy).fingerprint == made[0].fingerprint
    other = text_stream(tmp_path / "other", [[5]])
    assert other.fingerprint != made[0].fingerprint
    assert TEXT in other.tokenizers
