"""Counts and hashes of the C pass equal those of numpy and xxhash."""

from collections import Counter

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.kernels import count_tokens as module
from plait.kernels.compile_c import library
from plait.kernels.count_tokens import CodeCounts, count_tokens, reference

SIZES = np.array([300, 5, 70_000])


def made_block(rng: np.random.Generator, wide: bool, documents: int, longest: int) -> tuple:
    """Ids, kinds, shapes and spans of each document; some spans are empty."""
    counts = rng.integers(1, 5, documents)
    kinds = rng.integers(0, 3 if wide else 2, counts.sum())
    lengths = rng.integers(0, longest, counts.sum())
    lengths[rng.random(len(lengths)) < 0.2] = 0
    ids = rng.integers(0, 1 << 40, lengths.sum()) % np.repeat(SIZES[kinds], lengths)
    shapes = np.stack([kinds + 7, lengths], 1).astype(np.uint64)
    return ids.astype(np.uint32 if wide else np.uint16), kinds, shapes, counts


@pytest.mark.parametrize("path", ["c", "reference"])
@given(seed=st.integers(0, 1 << 30), wide=st.booleans(), longest=st.sampled_from([2, 40, 3000]))
@settings(max_examples=40, deadline=None)
def test_counts_and_hashes(path: str, seed: int, wide: bool, longest: int):
    """Against a Counter and the xxhash package; documents of any length, also beyond a chunk."""
    if path == "c" and library("count_tokens") is None:
        pytest.skip("no C compiler")
    function = module._compiled if path == "c" else reference
    ids, kinds, shapes, documents = made_block(np.random.default_rng(seed), wide, 9, longest)
    counts = CodeCounts(SIZES)
    hashes = function(ids, kinds, shapes, documents, counts)
    function(ids, kinds, shapes, documents, counts)
    owners = np.repeat(kinds, shapes[:, 1].astype(np.int64))
    slow = Counter(zip(owners.tolist(), ids.tolist(), strict=True))
    found = np.split(counts.total(), counts.starts[1:])
    pairs = {(k, i): int(n) for k, part in enumerate(found) for i, n in enumerate(part) if n}
    assert pairs == {pair: 2 * n for pair, n in slow.items()}
    span = at = 0
    for spans, value in zip(documents.tolist(), hashes.tolist(), strict=True):
        shape = shapes[span : span + spans]
        n = int(shape[:, 1].sum())
        own = ids[at : at + n]
        kind = np.uint32 if (own >= 1 << 16).any() else np.uint16
        data, head = own.astype(kind).tobytes(), xxhash.xxh64_intdigest(shape.tobytes())
        assert value == xxhash.xxh64_intdigest(data, head)
        span, at = span + spans, at + n


@pytest.mark.parametrize("function", [count_tokens, reference])
@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_an_id_beyond_its_vocabulary_is_an_error(function, dtype):
    ids, kinds = np.array([0, 299, 4, 5], dtype), np.array([0, 1])
    shapes = np.array([[1, 2], [2, 2]], np.uint64)
    with pytest.raises(IndexError, match="beyond its tokenizer's vocabulary"):
        function(ids, kinds, shapes, np.array([2]), CodeCounts(SIZES))


def test_the_same_document_has_one_hash_whatever_its_block():
    """Ids are kept in four bytes where a neighbour needs them."""
    own, big = np.arange(1500) % 300, np.array([69_999])
    shapes = np.array([[7, 1500], [9, 1]], np.uint64)
    narrow = count_tokens(
        own.astype(np.uint16), np.array([0]), shapes[:1], np.array([1]), CodeCounts(SIZES)
    )
    ids = np.concatenate([own, big]).astype(np.uint32)
    wide = count_tokens(ids, np.array([0, 2]), shapes, np.array([1, 1]), CodeCounts(SIZES))
    assert wide[0] == narrow[0] != wide[1]
