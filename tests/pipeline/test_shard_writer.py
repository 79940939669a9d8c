"""The two ways to write, what a shard costs beside its ids, and how stock webdataset reads it."""

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.pipeline import shard_writer
from plait.pipeline.block import EncodedDocument
from plait.pipeline.index import decode_index, encode_index, rebuild_index
from plait.pipeline.make_block import make_block
from plait.pipeline.shard_writer import ShardWriter
from plait.pipeline.spans import check_spans, pack_spans, unpack_spans
from plait.tokenizers.base import Encoded
from plait.tokenizers.errors import ConfigError, ShardError

NAMES = ("text", "image")


def writer(folder):
    folder.mkdir(exist_ok=True, parents=True)
    return ShardWriter(folder, "shard-000003", source="s", tokenizers=NAMES, modalities=NAMES)


def shard(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def corpus(count, mean, seed=0, most=50_000):
    """Ids and lengths of documents, log-normal."""
    rng = np.random.default_rng(seed)
    lengths = 1 + rng.lognormal(np.log(mean) - 0.5, 1, count).astype(np.int64)
    return rng.integers(0, most, lengths.sum()), lengths


def one_by_one(target, ids, lengths, keys, tokenizer=0):
    for key, part in zip(keys, np.split(ids, np.cumsum(lengths)[:-1]), strict=True):
        target.add(EncodedDocument(key=key, metadata={}, spans=[(tokenizer, Encoded(ids=part))]))


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_runs_and_documents_make_the_same_shard(tmp_path_factory, data):
    """Whatever is given in which pieces, also where a document is longer than a block."""
    lengths = data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=40))
    kinds = data.draw(st.lists(st.tuples(st.booleans(), st.integers(1, 9)), max_size=9))
    folder = tmp_path_factory.mktemp("both")
    ids, keys = np.arange(sum(lengths)) * 997 % 70_000, [f"k{i}" for i in range(len(lengths))]
    plain, mixed = writer(folder / "plain"), writer(folder / "mixed")
    ends = np.concatenate([[0], np.cumsum(lengths)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_writer, "BLOCK_TOKENS", 50)
        patch.setattr(shard_writer, "BLOCK_DOCUMENTS", 6)
        one_by_one(plain, ids, lengths, keys)
        first = 0
        for many, count in [*kinds, (True, len(lengths))]:
            last = min(first + count, len(lengths))
            part = (ids[ends[first] : ends[last]], lengths[first:last], keys[first:last])
            if many or first == last:
                mixed.add_many(*part)
            else:
                one_by_one(mixed, *part)
            first = last
        assert plain.finish() == mixed.finish()
    assert shard(folder / "plain") == shard(folder / "mixed")


def test_a_caller_may_reuse_its_arrays(tmp_path):
    ids, lengths = np.arange(9, dtype=np.uint16), np.array([4, 5])
    for name, after in (("a", 0), ("b", 7)):
        target = writer(tmp_path / name)
        given_ids, given_lengths, keys = ids.copy(), lengths.copy(), ["x", "y"]
        target.add_many(given_ids, given_lengths, keys, tokenizer=1)
        if after:
            given_ids[:] = given_lengths[:] = after
            keys[:] = ["u", "v"]
        target.finish()
    assert shard(tmp_path / "a") == shard(tmp_path / "b")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": [4, 4]}, "should agree"),
        ({"keys": ["a"]}, "should agree"),
        ({"lengths": [0, 9]}, "is empty"),
        ({"tokenizer": 2}, "not of this shard"),
        ({"tokenizer": -1}, "not of this shard"),
        ({"ids": np.arange(9) / 2}, "should be integers"),
        ({"ids": np.arange(9) - 1}, "negative"),
    ],
)
def test_wrong_runs_are_refused(tmp_path, change, message):
    good = {"ids": np.arange(9), "lengths": [4, 5], "keys": ["a", "b"], "tokenizer": 0}
    with pytest.raises(ConfigError, match=message):
        writer(tmp_path).add_many(**{**good, **change})


@pytest.mark.parametrize(
    ("mean", "key", "most"),
    [
        (500, "d{}", 0.02),
        (500, "page-{:x}.md#{}", 0.05),
        (40, "d{}", 0.08),
        (40, "{:05x}#{}", 0.25),
    ],
)
def test_what_a_shard_costs_beside_its_ids(tmp_path, mean, key, most):
    """Text at most 5 %, captions at most 25 %, index and keys included."""
    ids, lengths = corpus(8000, mean)
    counts = key.count("{") == 1
    keys = [key.format(i) if counts else key.format(i * 7919 % 8000, i) for i in range(8000)]
    target = writer(tmp_path)
    target.add_many(ids.astype(np.uint16), lengths, keys)
    info = target.finish()
    assert info is not None
    assert info.bytes + info.index_bytes <= (1 + most) * 2 * len(ids)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_stock_webdataset_reads_what_is_left_of_the_spans(tmp_path):
    ids, lengths = corpus(5000, 30)
    target = writer(tmp_path)
    target.add_many(ids, lengths, [f"{i:06d}.txt" for i in range(5000)], tokenizer=1)
    target.finish()
    path = tmp_path / "shard-000003.tar"
    found = list(webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False).decode())
    assert len(found) == 2
    assert (np.concatenate([s["tokens.npy"] for s in found]) == ids).all()
    assert (np.concatenate([s["spans.npy"][:, 0] for s in found]) == lengths).all()
    meta = found[1]["meta.json"]
    assert meta["columns"] == ["length"]
    assert meta["constants"] == {"modality": 1, "tokenizer": 1, "width": 1}
    assert meta["keys"] == {
        "before": "",
        "numbers": [[4096, 5000]],
        "digits": 6,
        "after": ".txt",
    }


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_span_tables_come_back(data):
    """Also with constant columns, wide values and documents of many spans."""
    counts = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=9))
    n = sum(counts)
    top = data.draw(st.sampled_from([1, 255, 256, 65_536, 2**31 - 1]))
    columns = [np.repeat(np.arange(len(counts)), counts)]
    for least in (0, 0, 1, 1):
        one = st.integers(least, top)
        same = data.draw(st.booleans())
        columns.append(
            np.array([data.draw(one)] * n if same else [data.draw(one) for _ in range(n)])
        )
    spans = np.stack(columns, 1).astype(np.int32)
    table, names, constants = pack_spans(spans)
    found = unpack_spans(table, {"columns": names, "constants": constants}, "x")
    assert found.dtype == np.int32 and (found == spans).all()
    assert check_spans(found, int(spans[:, 3].sum(dtype=np.int64)), "x") == len(counts)


def test_documents_out_of_order_are_refused():
    for numbers in ([0, 2], [1, 2], [1, 0], [0, 1, 0]):
        spans = np.ones((len(numbers), 5), np.int32)
        spans[:, 0] = numbers
        with pytest.raises(ShardError, match="in order"):
            check_spans(spans, len(numbers), "x")


def index_of(folder, lengths):
    target = writer(folder)
    target.add_many(np.arange(sum(lengths)), lengths, [str(i) for i in range(len(lengths))])
    target.finish()
    data = (folder / "shard-000003.idx").read_bytes()
    return data, rebuild_index(
        memoryview((folder / "shard-000003.tar").read_bytes()), "shard-000003", "x"
    )


def test_an_index_names_what_is_the_same_everywhere(tmp_path):
    data, rebuilt = index_of(tmp_path, [3, 4, 5])
    assert encode_index(rebuilt) == data
    index = decode_index(data, "x")
    for name in ("counts", "lengths", "widths", "kinds"):
        assert (getattr(index, name) == getattr(rebuilt, name)).all()
    assert b"lengths.npy" in data and b"counts.npy" not in data and b"kinds.npy" not in data


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"counts":1', b'"counts":0'),
        (b'"counts":1', b'"counts":3'),
        (b'"widths":1', b'"widths":0'),
        (b'"kinds":0', b'"kinds":7'),
        (b'"kinds":0', b'"kinks":0'),
        (b'"kinds":0', b'"kinds":""'),
    ],
)
def test_a_damaged_constant_is_found(tmp_path, old, new):
    data, _ = index_of(tmp_path, [3, 4, 5])
    assert old in data
    changed = data.replace(old, new)
    with pytest.raises(ShardError):
        decode_index(changed, "x")


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (np.full((3, 2), 1e6), "float16 cannot hold"),
        (np.full((3, 2), np.nan), "float16 cannot hold"),
        (np.zeros(3), "float16 cannot hold"),
        (np.zeros((2, 2)), "not one a token"),
    ],
)
def test_latents_that_cannot_be_stored(latents, message):
    document = EncodedDocument(
        key="a", metadata={}, spans=[(0, Encoded(ids=np.arange(3), latents=latents))]
    )
    with pytest.raises(ConfigError, match=message):
        make_block([document], source="s", tokenizers=["image"], modalities=["image"])
