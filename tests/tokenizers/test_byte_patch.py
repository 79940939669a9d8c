import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plait.tokenizers import byte_patch, byte_threshold
from plait.tokenizers.base import Encoded, load_tokenizer
from plait.tokenizers.byte_entropy import UNIT, count
from plait.tokenizers.byte_options import FitOptions
from plait.tokenizers.byte_patch import BytePatch, evaluate, fit
from plait.tokenizers.errors import ConfigError, SampleError

TEXTS = [
    b"a cat sat on the mat, and a bat sat on a hat " * 3,
    "Über uns, über euch".encode(),
    b"\0\1\2",
]
SOURCE = count(TEXTS).entropies()
OPTIONS = [
    FitOptions(method="fixed", patch_size=1),
    FitOptions(method="fixed", patch_size=4),
    FitOptions(method="whitespace", max_patch=0),
    FitOptions(method="whitespace", max_patch=5),
    FitOptions(method="entropy", threshold=2.5, max_patch=0),
    FitOptions(method="entropy", threshold=2.5, max_patch=3),
    FitOptions(method="entropy", rule="monotonic", rise=0.5, max_patch=6),
    FitOptions(method="entropy", rule="both", threshold=2.0, rise=-0.25),
]


def made(options: FitOptions) -> BytePatch:
    return BytePatch(options, SOURCE if options.method == "entropy" else None)


def plain_starts(data: bytes, options: FitOptions) -> list[bool]:
    """The rules, byte by byte, as the papers say them."""
    starts, length = [], 0
    for i in range(len(data)):
        if options.method == "fixed":
            starts.append(i % options.patch_size == 0)
            continue
        entropy = options.method == "entropy"
        new = i == 0 or (uncertain(data, i, options) if entropy else ends_patch(data, i - 1))
        length = 0 if new else length + 1
        if options.max_patch and length == options.max_patch:
            new, length = True, 0
        starts.append(new)
    return starts


def uncertain(data: bytes, i: int, options: FitOptions) -> bool:
    now, before = (entropy_after(data[max(j - 3, 0) : j]) for j in (i, i - 1))
    above = options.rule == "monotonic" or now > options.threshold
    return above and (options.rule == "global" or now - before > options.rise)


def entropy_after(context: bytes) -> float:
    return float(SOURCE.orders.arrays[len(context)][int.from_bytes(context, "big")]) * UNIT


def ends_patch(data: bytes, i: int) -> bool:
    return separator(data[i]) and not (i > 0 and separator(data[i - 1]))


def separator(byte: int) -> bool:
    return not (chr(byte).isascii() and chr(byte).isalnum()) and not 0x80 <= byte < 0xC0


@pytest.mark.parametrize("options", OPTIONS)
@given(samples=st.lists(st.one_of(st.binary(max_size=40), st.text(max_size=20).map(str.encode))))
def test_starts_equal_the_plain_rule_and_bytes_come_back(options, samples):
    tokenizer = made(options)
    for sample, encoded in zip(samples, tokenizer.encode_batch(samples), strict=True):
        assert tokenizer.decode(encoded) == sample
        assert encoded.patch_starts.tolist() == plain_starts(sample, options)
        alone = tokenizer.encode_batch([sample])[0]
        assert np.array_equal(alone.patch_starts, encoded.patch_starts)


@pytest.mark.parametrize("options", OPTIONS)
@given(data=st.binary(min_size=1, max_size=60), cut=st.integers(1, 60))
def test_a_start_depends_on_bytes_before_it_alone(options, data, cut):
    tokenizer = made(options)
    whole = tokenizer.encode_batch([data])[0].patch_starts
    part = tokenizer.encode_batch([data[:cut]])[0].patch_starts
    assert np.array_equal(whole[: len(part)], part)
    if cut < len(data):
        changed = data[:cut] + bytes([data[cut] ^ 0xFF]) + data[cut + 1 :]
        assert tokenizer.encode_batch([changed])[0].patch_starts[cut] == whole[cut]


@pytest.mark.parametrize("options", OPTIONS)
@given(
    samples=st.lists(st.one_of(st.binary(max_size=30), st.sampled_from(TEXTS)), max_size=4),
    cuts=st.lists(st.integers(0, 90), max_size=6),
)
def test_a_stream_cut_anywhere_gives_the_same_starts(options, samples, cuts):
    stream, tokenizer = made(options).stream(), made(options)
    for sample, encoded in zip(samples, tokenizer.encode_batch(samples), strict=True):
        bounds = [0, *sorted(min(cut, len(sample)) for cut in cuts), len(sample)]
        pieces = [sample[a:b] for a, b in pairwise(bounds)]
        starts = [stream.push(piece, new_document=not i) for i, piece in enumerate(pieces)]
        assert np.concatenate(starts).tolist() == encoded.patch_starts.tolist()


@pytest.mark.parametrize("options", OPTIONS)
def test_parts_of_a_large_batch(options, monkeypatch):
    """Bytes are marked a part at a time; the parts do not show."""
    samples = [*TEXTS, b"", b"", TEXTS[0]]
    whole = made(options).encode_batch(samples)
    monkeypatch.setattr(byte_patch, "CHUNK", 7)
    for a, b in zip(whole, made(options).encode_batch(samples), strict=True):
        assert np.array_equal(a.patch_starts, b.patch_starts)


@pytest.mark.parametrize("options", OPTIONS)
def test_one_letter_ten_million_times(options):
    began = time.process_time()
    encoded = made(options).encode_batch([b"a" * 10_000_000])[0]
    assert encoded.patch_starts.sum() >= 1
    assert time.process_time() - began < 2  # a quadratic rule would take hours


@pytest.mark.parametrize("rule", ["global", "monotonic", "both"])
@pytest.mark.parametrize("mean", [3.0, 4.5])
def test_threshold_for_a_mean_patch(rule, mean):
    """The mean is met on text of the same kind that was not learned."""
    rng = np.random.default_rng(0)
    words = [bytes(rng.integers(97, 123, rng.integers(2, 9), np.uint8)) for _ in range(400)]
    texts = [b" ".join(words[i] for i in rng.integers(0, 400, 3000)) for _ in range(14)]
    options = FitOptions(method="entropy", rule=rule, mean_patch=mean, max_patch=16)
    tokenizer = fit(texts[:12], options)
    assert getattr(tokenizer.options, options.searched) is not None
    report = evaluate(tokenizer, texts[12:])
    assert report["bytes_per_patch"] == pytest.approx(mean, rel=0.1)
    assert report["longest_patch"] <= 16
    assert 1 < report["model_bits_per_byte"] < 4
    assert fit(texts[:12], options).fingerprint == tokenizer.fingerprint


def test_bytes_for_the_threshold_come_from_everywhere(monkeypatch):
    """A bounded part, from all sources alike; the rest is learned, each piece once."""
    monkeypatch.setattr(byte_threshold, "PIECE", 10)
    samples, kept = [bytes([i]) * 25 for i in range(200)], []
    learned = list(byte_threshold.part_for_threshold(samples, kept, 300))
    assert sorted(kept + learned) == sorted(x[a : a + 10] for x in samples for a in (0, 10, 20))
    assert 250 < sum(map(len, kept)) <= 300
    assert min(kept)[0] < 50 and max(kept)[0] > 150 and kept == sorted(kept)


def test_a_mean_that_cannot_be_met_is_told():
    notes = []
    options = FitOptions(method="entropy", mean_patch=30, max_patch=32)
    tokenizer = fit([b"ab"], options, progress=lambda text, _: notes.append(text))
    assert any("nearest gives 2.00 on 2 bytes" in note for note in notes)
    assert tokenizer.encode_batch([b""])[0].patch_starts.tolist() == []


def test_starts_equal_blt_in_transformers():
    """Global threshold and longest patch; there a begin marker stands before the bytes."""
    blt = pytest.importorskip("transformers.models.blt.modeling_blt")
    tokenizer = made(OPTIONS[4])
    assert tokenizer.source is not None
    for text in TEXTS:
        data, firsts = np.frombuffer(text, np.uint8), np.zeros(1, np.int64)
        entropies = tokenizer.source.stream().push(data, firsts)
        # theirs: entropies[i] foretells token i + 1; token 0 is the marker, 1 the first byte
        theirs = torch.from_numpy(np.append(entropies, 9).astype(np.float32))[None]
        for limit in (None, 3, 7):
            lengths = blt.BltPatcher.patch_lengths_from_entropies(theirs, len(data) + 1, None, 2.5)
            lengths = blt.process_patch_lengths(lengths, limit)[0]
            begins = torch.cumsum(lengths[lengths > 0], 0)[:-1] - 1
            ours = made(replace(OPTIONS[4], max_patch=limit or 0)).encode_batch([text])[0]
            assert np.flatnonzero(ours.patch_starts).tolist() == begins.tolist()


def test_whitespace_cuts_text_into_words():
    text = "Über uns, x  y".encode()
    starts = np.flatnonzero(BytePatch(FitOptions()).encode_batch([text])[0].patch_starts)
    patches = [text[a:b] for a, b in pairwise([*starts, None])]
    assert patches == [b"\xc3", b"\x9cber ", b"uns,", b" x ", b" y"]  # as BLT: leads end one


def test_save_and_load(tmp_path):
    for options in OPTIONS:
        tokenizer = made(options)
        tokenizer.save(tmp_path)
        loaded = load_tokenizer(tmp_path)
        assert isinstance(loaded, BytePatch)
        assert loaded.fingerprint == tokenizer.fingerprint
        assert loaded.config() == tokenizer.config()
        whole = [x.patch_starts.tolist() for x in tokenizer.encode_batch(TEXTS)]
        assert [x.patch_starts.tolist() for x in loaded.encode_batch(TEXTS)] == whole
    assert len({made(o).fingerprint for o in OPTIONS}) == len(OPTIONS)


def test_damaged_folder(tmp_path):
    fit([], FitOptions()).save(tmp_path)
    config = tmp_path / "config.json"
    config.write_text('{"kind": "byte_patch:BytePatch", "method": "entropy"}')
    with pytest.raises(ConfigError, match="entropy"):
        load_tokenizer(tmp_path)
    config.write_text('{"kind": "byte_patch:BytePatch", "stride": 4}')
    with pytest.raises(ConfigError, match="stride"):
        load_tokenizer(tmp_path)


def test_wrong_options_and_samples():
    wrong = {
        "patch_size": {"patch_size": 0},
        "whole numbers": {"max_patch": 2.5},
        "method is 'space'": {"method": "space"},
        "rule is 'local'": {"rule": "local"},
        "mean_patch is 40": {"method": "entropy", "mean_patch": 40},
        "threshold is nan": {"threshold": float("nan")},
        "rise is 9": {"rise": 9},
    }
    for message, options in wrong.items():
        with pytest.raises(ConfigError, match=message):
            FitOptions(**options)
    with pytest.raises(ConfigError, match="source of entropies"):
        BytePatch(FitOptions(method="entropy", threshold=1.0))
    with pytest.raises(SampleError, match="str"):
        BytePatch(FitOptions()).encode_batch(["text"])


def test_decode_takes_any_integer_array():
    ids = np.array([104, 105], np.int64)
    assert BytePatch(FitOptions()).decode(Encoded(ids=ids)) == b"hi"


def test_evaluate():
    report = evaluate(BytePatch(FitOptions(method="fixed", patch_size=4)), [b"abcdefgh", b"ab"])
    assert report["bytes_per_patch"] == 10 / 3
    assert report["longest_patch"] == 4
    assert report["exact"] == 1
    assert report["codes_used"] == 8
    assert (report["patch_p10"], report["patch_p50"], report["patch_p99"]) == (2, 4, 4)
    assert report["share_at_max"] == 2 / 3
    assert "model_bits_per_byte" not in report
