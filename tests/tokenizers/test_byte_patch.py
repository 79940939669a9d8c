from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.tokenizers.base import Encoded, load_tokenizer
from plait.tokenizers.byte_patch import BytePatch, FitOptions, evaluate, fit
from plait.tokenizers.errors import ConfigError, SampleError

OPTIONS = [
    FitOptions(method="fixed", patch_size=1),
    FitOptions(method="fixed", patch_size=4),
    FitOptions(method="whitespace", max_patch=0),
    FitOptions(method="whitespace", max_patch=5),
]


def plain_starts(data: bytes, options: FitOptions) -> list[bool]:
    """The rules, byte by byte, as the papers say them."""
    starts, length = [], 0
    for i in range(len(data)):
        if options.method == "fixed":
            starts.append(i % options.patch_size == 0)
            continue
        new = i == 0 or ends_patch(data, i - 1)
        length = 0 if new else length + 1
        if options.max_patch and length == options.max_patch:
            new, length = True, 0
        starts.append(new)
    return starts


def ends_patch(data: bytes, i: int) -> bool:
    return separator(data[i]) and not (i > 0 and separator(data[i - 1]))


def separator(byte: int) -> bool:
    return not (chr(byte).isascii() and chr(byte).isalnum()) and not 0x80 <= byte < 0xC0


@pytest.mark.parametrize("options", OPTIONS)
@given(samples=st.lists(st.one_of(st.binary(max_size=40), st.text(max_size=20).map(str.encode))))
def test_starts_equal_the_plain_rule_and_bytes_come_back(options, samples):
    tokenizer = BytePatch(options)
    for sample, encoded in zip(samples, tokenizer.encode_batch(samples), strict=True):
        assert tokenizer.decode(encoded) == sample
        assert encoded.patch_starts.tolist() == plain_starts(sample, options)
        alone = tokenizer.encode_batch([sample])[0]
        assert np.array_equal(alone.patch_starts, encoded.patch_starts)


@pytest.mark.parametrize("options", OPTIONS)
@given(data=st.binary(min_size=1, max_size=60), cut=st.integers(1, 60))
def test_a_start_depends_on_bytes_before_it_alone(options, data, cut):
    tokenizer = BytePatch(options)
    whole = tokenizer.encode_batch([data])[0].patch_starts
    part = tokenizer.encode_batch([data[:cut]])[0].patch_starts
    assert np.array_equal(whole[: len(part)], part)
    if cut < len(data):
        changed = data[:cut] + bytes([data[cut] ^ 0xFF]) + data[cut + 1 :]
        assert tokenizer.encode_batch([changed])[0].patch_starts[cut] == whole[cut]


def test_whitespace_cuts_text_into_words():
    text = "Über uns, x  y".encode()
    starts = np.flatnonzero(BytePatch(FitOptions()).encode_batch([text])[0].patch_starts)
    patches = [text[a:b] for a, b in pairwise([*starts, None])]
    assert patches == [b"\xc3", b"\x9cber ", b"uns,", b" x ", b" y"]  # as BLT: leads end one


def test_save_and_load(tmp_path):
    for options in OPTIONS:
        tokenizer = fit([], options)
        tokenizer.save(tmp_path)
        loaded = load_tokenizer(tmp_path)
        assert isinstance(loaded, BytePatch)
        assert loaded.fingerprint == tokenizer.fingerprint
        assert loaded.config() == tokenizer.config()
    assert len({fit([], o).fingerprint for o in OPTIONS}) == len(OPTIONS)


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
    with pytest.raises(ConfigError, match="patch_size"):
        FitOptions(patch_size=0)
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
