import json

import numpy as np
import pytest
import tokenizers

from plait.tokenizers.errors import ConfigError
from plait.tokenizers.sentencepiece_file import BYTE, NORMAL, UNKNOWN, USER, read_model
from plait.tokenizers.text import MODEL_FILE, FitOptions, Text, fit
from plait.tokenizers.text_export import export, merge_parts, to_json
from plait.tokenizers.text_hf import HuggingFace
from plait.tokenizers.text_merges import PATTERNS, find_plan
from plait.tokenizers.text_tiktoken import Tiktoken

from .text_models import AWKWARD, SCRIPTS, byte_level, mixed, stock_sentencepiece

DOCUMENTS = mixed(150)
TEXTS = [*SCRIPTS, *AWKWARD, *mixed(100, seed=1), "<img> a<img>", "<0x41><unk>", "\u2581\u2581 x"]
SYMBOLS = ("<img>", "naïve")


def library_ids(data: bytes, text: str) -> list[int]:
    library = tokenizers.Tokenizer.from_str(data.decode())
    library.encode_special_tokens = True
    return library.encode(text, add_special_tokens=False).ids


def test_sentencepiece_bpe(tmp_path):
    tokenizer = fit(
        DOCUMENTS,
        FitOptions(vocab_size=600, user_symbols=SYMBOLS, export=str(tmp_path / "out.json")),
    )
    data = (tmp_path / "out.json").read_bytes()
    for text in TEXTS:
        encoded = tokenizer.encode_batch([text])[0]
        assert library_ids(data, text) == encoded.ids.tolist(), repr(text)
        assert HuggingFace(data).decode(encoded) == text


def test_unigram_only_where_near_is_enough():
    tokenizer = fit(DOCUMENTS, FitOptions(vocab_size=600, model="unigram", user_symbols=SYMBOLS))
    with pytest.raises(ConfigError, match="another precision"):
        to_json(tokenizer)
    data = to_json(tokenizer, near=True)
    equal = [library_ids(data, t) == tokenizer.encode_batch([t])[0].ids.tolist() for t in TEXTS]
    assert np.mean(equal) > 0.9
    library = HuggingFace(data)
    for text in TEXTS:
        assert library.decode(library.encode_batch([text])[0]) == text
    raw = "<0x41><unk><0x0A>"
    assert library_ids(data, raw) == tokenizer.encode_batch([raw])[0].ids.tolist()


def test_byte_level_bpe_is_its_own_export():
    tokenizer = fit(DOCUMENTS, FitOptions(vocab_size=600, model="byte_bpe"))
    data = to_json(tokenizer)
    for text in TEXTS:
        assert library_ids(data, text) == tokenizer.encode_batch([text])[0].ids.tolist()


@pytest.mark.parametrize("offset", [0, 7])
def test_tiktoken_ranks(offset):
    plan = find_plan(byte_level(DOCUMENTS, pattern=PATTERNS["o200k"]))
    specials = {"<|end|>": 0 if offset else 9000}
    tokenizer = Tiktoken(plan.ranks, plan.pattern, specials, offset)
    data = to_json(tokenizer)
    assert HuggingFace(data).engine == "tiktoken"
    for text in [*TEXTS, "<|end|>"]:
        assert library_ids(data, text) == tokenizer.encode_batch([text])[0].ids.tolist()
    parsed = tokenizers.Tokenizer.from_str(data.decode()).encode("<|end|>").ids
    assert parsed == list(specials.values())


def test_ranks_that_no_merges_give_are_refused():
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"xyz": 256}
    with pytest.raises(ConfigError, match="no merge leads to the token b'xyz'"):
        to_json(Tiktoken(ranks, PATTERNS["gpt2"], {}))
    with pytest.raises(ConfigError, match="spelled like another"):
        to_json(Tiktoken(ranks | {b"xy": 255, b"\xff": 300}, PATTERNS["gpt2"], {"a": 999}))


def test_merge_parts():
    ranks = {b"ab": 300, b"bc": 299, b"abc": 301}
    assert merge_parts(b"abc", ranks) == [b"a", b"bc"]
    assert merge_parts(b"abcd", ranks | {b"abcd": 298}) == [b"a", b"b", b"c", b"d"]


def test_a_model_that_changes_text_is_refused(tmp_path):
    tokenizer = Text(stock_sentencepiece(DOCUMENTS, tmp_path, "bpe"), lossy=True)
    with pytest.raises(ConfigError, match="changes text"):
        export(tokenizer, tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_the_sentencepiece_file_is_read_as_its_library_reads_it():
    for kind in ("bpe", "unigram"):
        tokenizer = fit(DOCUMENTS, FitOptions(vocab_size=450, model=kind, user_symbols=SYMBOLS))
        data = tokenizer.files()[MODEL_FILE]
        model = read_model(data)
        assert (model.kind, model.changes_text) == (kind, False)
        assert [piece.text for piece in model.pieces] == [
            tokenizer.piece(i) for i in range(tokenizer.vocab_size)
        ]
        kinds = [piece.kind for piece in model.pieces]
        counts = {k: kinds.count(k) for k in (UNKNOWN, BYTE, USER, NORMAL)}
        assert counts == {UNKNOWN: 1, BYTE: 256, USER: 4, NORMAL: tokenizer.vocab_size - 261}
        for damaged in (data[:1000], b"\xff" * 20, data[:-1]):
            with pytest.raises(ConfigError, match="damaged"):
                read_model(damaged)


def test_stock_model_changes_text(tmp_path):
    assert read_model(stock_sentencepiece(DOCUMENTS, tmp_path)).changes_text
    assert json.loads(to_json(fit(["a b"], FitOptions(vocab_size=300))))["normalizer"] is None
