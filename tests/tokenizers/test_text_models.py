import base64
import json

import numpy as np
import pytest
import sentencepiece
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from plait.tokenizers import text_hf
from plait.tokenizers.base import Encoded, load_tokenizer
from plait.tokenizers.errors import ConfigError, SampleError
from plait.tokenizers.text import FitOptions, Text, evaluate, fit
from plait.tokenizers.text_hf import HuggingFace
from plait.tokenizers.text_merges import PATTERNS, find_plan, splits_agree
from plait.tokenizers.text_tiktoken import Tiktoken, from_tekken

from .text_models import AWKWARD, SCRIPTS, byte_level, mixed, stock_sentencepiece, word_piece

DOCUMENTS = mixed(150)
TEXTS = [*SCRIPTS, *AWKWARD, *mixed(60, seed=1)]
PATTERN_NAMES = sorted(PATTERNS)


def dumped(spec: dict) -> bytes:
    return json.dumps(spec).encode()


def library_ids(data: bytes, texts: list[str]) -> list[list[int]]:
    library = tokenizers.Tokenizer.from_str(data.decode())
    library.encode_special_tokens = True
    library.no_padding()
    library.no_truncation()
    return [library.encode(text, add_special_tokens=False).ids for text in texts]


def assert_ids(tokenizer, texts: list[str], wanted: list[list[int]]) -> None:
    for text, encoded, ids in zip(texts, tokenizer.encode_batch(texts), wanted, strict=True):
        assert encoded.ids.tolist() == ids, repr(text)
        assert encoded.ids.dtype == np.int32


@pytest.fixture(scope="module", params=PATTERN_NAMES)
def spec(request) -> dict:
    return byte_level(DOCUMENTS, pattern=PATTERNS[request.param])


def test_byte_level_bpe_is_encoded_by_tiktoken_with_equal_ids(spec):
    tokenizer = HuggingFace(dumped(spec))
    assert (tokenizer.engine, tokenizer.reason, tokenizer.lossless) == ("tiktoken", "", True)
    assert_ids(tokenizer, TEXTS, library_ids(dumped(spec), TEXTS))
    for text, encoded in zip(TEXTS, tokenizer.encode_batch(TEXTS), strict=True):
        assert tokenizer.decode(encoded) == text


@pytest.fixture(scope="module")
def plain() -> dict:
    return byte_level(DOCUMENTS)


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=80))
@settings(max_examples=200, deadline=None)
def test_any_text_has_the_libraries_ids(plain, text):
    tokenizer = cached(plain)
    assert_ids(tokenizer, [text], library_ids(dumped(plain), [text]))
    assert tokenizer.decode(tokenizer.encode_batch([text])[0]) == text


def cached(spec: dict, made: dict[int, HuggingFace] = {}) -> HuggingFace:  # noqa: B006
    return made.setdefault(id(spec), HuggingFace(dumped(spec)))


def test_special_tokens_in_raw_text_stay_text(plain):
    tokenizer = HuggingFace(dumped(plain))
    special = {plain["model"]["vocab"][name] for name in ("<|endoftext|>", "</s>")}
    ids = tokenizer.encode_batch(["a<|endoftext|>b</s>"])[0].ids.tolist()
    assert not special & set(ids)
    assert tokenizer.decode(Encoded(ids=np.array(sorted(special)))) == "<|endoftext|></s>"
    parsed = tokenizers.Tokenizer.from_str(json.dumps(plain)).encode("a<|endoftext|>b").ids
    assert special & set(parsed)  # what the library does unless told otherwise


def test_added_tokens_that_are_not_special_and_normalisers_as_in_the_library(plain):
    library = tokenizers.Tokenizer.from_str(json.dumps(plain))
    library.normalizer = tokenizers.normalizers.NFC()
    library.add_tokens([AddedToken("  x", normalized=False), AddedToken("é", normalized=True)])
    data = library.to_str().encode()
    tokenizer = HuggingFace(data)
    assert (tokenizer.engine, tokenizer.lossless) == ("tiktoken", False)
    texts = [*TEXTS, "a  x b", "e\u0301 é", "e\u0301", "A\u030a  x", "  x  x"]
    assert_ids(tokenizer, texts, library_ids(data, texts))


UNFIT = {
    "dropout": lambda s: s["model"].update(dropout=0.1),
    "not BPE": lambda s: s["model"].update(type="Unigram"),
    "256 bytes": lambda s: s["model"]["vocab"].pop("Ā"),
    "space in front": lambda s: s["pre_tokenizer"]["pretokenizers"][1].update(
        add_prefix_space=True
    ),
    "several steps": lambda s: s["pre_tokenizer"]["pretokenizers"].insert(
        0, {"type": "Digits", "individual_digits": True}
    ),
    "several places": lambda s: s["model"]["merges"].append(s["model"]["merges"][0]),
    "no merge leads": lambda s: s["model"].update(
        ignore_merges=True, vocab=s["model"]["vocab"] | {"qqqq": 900}
    ),
    "do not lead": lambda s: s["model"]["merges"].reverse(),
    "cut text differently": lambda s: s["pre_tokenizer"]["pretokenizers"][0].update(
        pattern={"Regex": "\\p{L}+"}
    ),
}


@pytest.mark.parametrize("reason", UNFIT)
def test_what_is_not_proven_equal_is_left_to_the_library(plain, reason):
    spec = json.loads(json.dumps(plain))
    UNFIT[reason](spec)
    with pytest.raises(ValueError, match=reason):
        find_plan(spec)


def test_merges_that_tiktoken_would_not_follow():
    """`ab` + `c` is a merge, but `bc` comes first: the library never reaches `abc`."""
    spec = byte_level(["x"], size=258)
    vocab = spec["model"]["vocab"]
    vocab |= {"bc": 600, "ab": 601, "abc": 602}
    spec["model"]["merges"] = [["b", "c"], ["a", "b"], ["ab", "c"]]
    tokenizer = HuggingFace(dumped(spec))
    assert tokenizer.engine == "tokenizers"
    assert "do not lead to the token 'abc'" in tokenizer.reason
    assert_ids(tokenizer, ["abc ab"], library_ids(dumped(spec), ["abc ab"]))


def test_ids_in_any_order_and_several_merges_of_a_token(plain):
    """As Llama 3 has them: every way to put a token together is listed."""
    spec = json.loads(json.dumps(plain))
    vocab = spec["model"]["vocab"]
    spec["model"]["merges"] = [
        [token[:i], token[i:]]
        for token in ("".join(merge) for merge in plain["model"]["merges"])
        for i in range(1, len(token))
        if token[:i] in vocab and token[i:] in vocab
    ]
    spec["model"]["vocab"] = {token: 2000 - i for token, i in vocab.items()}
    spec["model"]["ignore_merges"] = True
    for added in spec["added_tokens"]:
        added["id"] = 2000 - added["id"]
    tokenizer = HuggingFace(dumped(spec))
    assert tokenizer.engine == "tiktoken", tokenizer.reason
    assert_ids(tokenizer, TEXTS, library_ids(dumped(spec), TEXTS))


def test_another_kind_of_tokenizer_json(tmp_path):
    data = word_piece(DOCUMENTS)
    tokenizer = HuggingFace(data)
    assert (tokenizer.engine, tokenizer.lossless) == ("tokenizers", False)
    assert_ids(tokenizer, TEXTS, library_ids(data, TEXTS))
    tokenizer.save(tmp_path)
    assert_ids(load_tokenizer(tmp_path), TEXTS, library_ids(data, TEXTS))


def ranks_of(spec: dict) -> dict[bytes, int]:
    return find_plan(spec).ranks


@pytest.fixture(scope="module")
def tiktoken_file(spec, tmp_path_factory):
    lines = [f"{base64.b64encode(t).decode()} {rank}\n" for t, rank in ranks_of(spec).items()]
    path = tmp_path_factory.mktemp("ranks") / "small.tiktoken"
    path.write_text("".join(lines))
    return path


def test_a_tiktoken_file(spec, tiktoken_file, tmp_path):
    pattern = spec["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    specials = ("<|endoftext|>", "<|pad|>=700", "<|after|>")
    options = FitOptions(source_model=str(tiktoken_file), pattern=pattern, special_tokens=specials)
    tokenizer = fit([], options)
    ranks = ranks_of(spec)
    own = tiktoken.Encoding(
        "own",
        pat_str=pattern,
        mergeable_ranks=ranks,
        special_tokens={"<|endoftext|>": len(ranks), "<|pad|>": 700, "<|after|>": 701},
    )
    assert tokenizer.vocab_size == 702
    long = "".join(TEXTS)
    texts = [*TEXTS, long, long * 3]
    assert_ids(tokenizer, texts, [own.encode_ordinary(text) for text in texts])
    assert tokenizer.decode(Encoded(ids=np.array([700, 699]))) == "<|pad|>\ufffd"
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert_ids(loaded, texts, [own.encode_ordinary(text) for text in texts])


def tekken(ranks: dict[bytes, int], n_special: int, extra: int = 3) -> bytes:
    entries = [
        {"rank": rank, "token_bytes": base64.b64encode(t).decode(), "token_str": None}
        for t, rank in ranks.items()
    ]
    beyond = [
        {"rank": len(ranks) + i, "token_bytes": base64.b64encode(b"zz" * (i + 9)).decode()}
        for i in range(extra)
    ]
    config = {
        "pattern": PATTERNS["gpt2"],
        "num_vocab_tokens": len(ranks) + extra,
        "default_vocab_size": len(ranks) + n_special,
        "default_num_special_tokens": n_special,
        "version": "v3",
    }
    return json.dumps({"config": config, "vocab": entries + beyond}).encode()


def test_a_tekken_file(plain):
    ranks = ranks_of(plain)
    tokenizer = from_tekken(tekken(ranks, 10))
    own = tiktoken.Encoding(
        "own", pat_str=PATTERNS["gpt2"], mergeable_ranks=ranks, special_tokens={}
    )
    assert tokenizer.vocab_size == len(ranks) + 10
    assert_ids(tokenizer, TEXTS, [[i + 10 for i in own.encode_ordinary(t)] for t in TEXTS])
    assert tokenizer.decode(tokenizer.encode_batch(["zz"])[0]) == "zz"
    for damaged in (b"{}", b'{"config": 3, "vocab": []}', tekken({b"a": 5}, 1)):
        with pytest.raises(ConfigError, match="tekken"):
            from_tekken(damaged)


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_a_lossy_sentencepiece_model_only_if_allowed(kind, tmp_path):
    data = stock_sentencepiece(DOCUMENTS, tmp_path, kind)
    path = tmp_path / "stock.model"
    with pytest.raises(ConfigError, match=r"changes text.*--allow-lossy"):
        fit([], FitOptions(source_model=str(path)))
    notes = []
    options = FitOptions(source_model=str(path), allow_lossy=True)
    tokenizer = fit([], options, progress=lambda message, share: notes.append(message))
    assert any(note.startswith("note: this model changes text") for note in notes)
    assert isinstance(tokenizer, Text) and not tokenizer.lossless
    peer = sentencepiece.SentencePieceProcessor(model_proto=data)
    assert_ids(tokenizer, TEXTS, [peer.encode(text) for text in TEXTS])
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode_batch([text])[0]) == peer.decode(peer.encode(text))
    control = peer.piece_to_id("<|control|>")
    assert control not in tokenizer.encode_batch(["a <|control|> b"])[0].ids
    tokenizer.save(tmp_path / "saved")
    assert_ids(load_tokenizer(tmp_path / "saved"), TEXTS, [peer.encode(text) for text in TEXTS])
    assert evaluate(tokenizer, TEXTS)["exact"] < 1


def tokenizers_of_all_kinds(plain) -> list:
    return [
        HuggingFace(dumped(plain)),
        HuggingFace(dumped(plain), engine="tokenizers"),
        HuggingFace(word_piece(DOCUMENTS)),
        Tiktoken(ranks_of(plain), PATTERNS["gpt2"], {}),
    ]


def test_batch_mates_threads_and_order_change_nothing(plain):
    for tokenizer in tokenizers_of_all_kinds(plain):
        texts = [*TEXTS, "long " * 1000]
        alone = [tokenizer.encode_batch([text])[0].ids for text in texts]
        for threads in (1, 2, 3):
            together = tokenizer.encode_batch(texts[::-1], num_threads=threads)[::-1]
            assert all(np.array_equal(a, b.ids) for a, b in zip(alone, together, strict=True))
        assert tokenizer.encode_batch([]) == []


@pytest.mark.parametrize("text", ["\ud800", "ok \udfff", "x" * 5000 + "\ud83d\ude00"])
def test_lone_surrogates_are_a_sample_error(plain, text):
    for tokenizer in tokenizers_of_all_kinds(plain):
        with pytest.raises(SampleError, match="lone surrogate"):
            tokenizer.encode_batch(["fine", text])


@pytest.mark.parametrize("letters", ["a", " ", "\n", "\U0001f600", "\t ", ". ", "\u3000"])
def test_a_megabyte_of_the_same_comes_back(plain, letters):
    text = f"x.{letters * (1_000_000 // len(letters.encode()))}y"
    tokenizer = cached(plain)
    ids = tokenizer.encode_batch([text])[0]
    assert tokenizer.decode(ids) == text
    assert ids.ids.tolist() == library_ids(dumped(plain), [text])[0]


@pytest.mark.parametrize("name", PATTERN_NAMES)
def test_both_engines_cut_text_alike_around_many_characters(name):
    assert splits_agree(PATTERNS[name])
    assert splits_agree(PATTERNS[name], 0x3000, 0x3400, sample=False)


def test_engines_that_differ_are_seen():
    assert not splits_agree(r"\p{L}+")  # one library drops what no word covers
    assert not splits_agree(r"(")
    assert not splits_agree(r"^..|[\s\S]")  # where a line starts, or the text alone


def test_damaged_files(tmp_path, plain):
    HuggingFace(dumped(plain)).save(tmp_path)
    model = tmp_path / text_hf.MODEL_FILE
    for damaged in (
        b"",
        b"{}",
        b"\xff\xfe",
        b'{"model": {"type": "BPE"}}',
        model.read_bytes()[:999],
    ):
        model.write_bytes(damaged)
        with pytest.raises(ConfigError, match=r"tokenizer\.json"):
            load_tokenizer(tmp_path)
    plain = json.loads(json.dumps(plain))
    plain["model"]["dropout"] = 0.1
    with pytest.raises(ConfigError, match="at random"):
        HuggingFace(dumped(plain))
    plain["model"].update(dropout=None, vocab=plain["model"]["vocab"] | {"huge": 1 << 30})
    with pytest.raises(ConfigError, match="an id is"):
        HuggingFace(dumped(plain))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"YQ== 0\n",
        b"YQ== x\n",
        b"!!! 0\n",
        b"YQ== 0\nYQ== 1\n",
        b"YQ== 0\nYg== 0\n",
        b"YQ== -1",
    ],
)
def test_damaged_ranks(data, tmp_path):
    path = tmp_path / "bad.tiktoken"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"bad\.tiktoken"):
        fit([], FitOptions(source_model=str(path), pattern="gpt2"))
    with pytest.raises(ConfigError, match="--pattern is missing"):
        fit([], FitOptions(source_model=str(path)))


def test_what_is_no_model(tmp_path):
    path = tmp_path / "file"
    for data in (b"", b"words", b"{", b"{}", b'{"a": 1}', b"[]"):
        path.write_bytes(data)
        with pytest.raises(ConfigError, match="file: "):
            fit([], FitOptions(source_model=str(path)))
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(ConfigError, match=r"no such file|in this folder"):
            fit([], FitOptions(source_model=str(missing)))
