import io
import json
import tracemalloc

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st

from plait.tokenizers.base import Encoded, load_tokenizer
from plait.tokenizers.errors import ConfigError, SampleError
from plait.tokenizers.text import MODEL_FILE, FitOptions, Text, evaluate, fit

DOCUMENTS = [
    "The quick brown fox jumps over the lazy dog.\n\n\tIndented  twice,   thrice.\n",
    "def f(x):\n\treturn x ** 2  # 1234567890\r\n",
    "Größe naïve façade — “quoted” 日本語テキスト 😀\n",
] * 20
MODELS = ["bpe", "unigram"]


@pytest.fixture(scope="module", params=MODELS)
def tokenizer(request):
    return fit(DOCUMENTS, FitOptions(vocab_size=400, model=request.param))


AWKWARD = [
    "",
    "\u2581",
    "a \u2581 b\u2581\u2581 ",
    " ",
    "\n",
    "\r\n\r\n\t\t",
    "\x00",
    "a\x00\x00b",
    "  lead and trail  ",
    "<s></s><unk><pad><0x41>",
    "\ufeff\ufffd\u200b\u00a0\u3000",
    "\U0010ffff\U0001f469\u200d\U0001f680",
    "e\u0301 \u00e9 \ufb01 \u2126",
    "\x7f\x80\x85\u2028\u2029\x1f",
]


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_text_comes_back(tokenizer, text):
    encoded = tokenizer.encode_batch([text])[0]
    assert tokenizer.decode(encoded) == text
    assert encoded.ids.max(initial=0) < tokenizer.vocab_size


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
@example(text="\u2581 ")
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode_batch([text])[0]) == text


@pytest.mark.parametrize("text", ["\ud800", "ok \udfff", "\ud83d\ude00"])
def test_lone_surrogates_are_a_sample_error(tokenizer, text):
    with pytest.raises(SampleError, match="lone surrogate"):
        tokenizer.encode_batch(["fine", text])


def test_equals_sentencepiece(tokenizer):
    peer = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.files()[MODEL_FILE])
    texts = [*DOCUMENTS[:3], *(t for t in AWKWARD if "\u2581" not in t)]
    for text, encoded in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert encoded.ids.tolist() == peer.encode(text)
        assert tokenizer.decode(encoded) == peer.decode(encoded.ids.tolist())
    assert tokenizer.vocab_size == peer.vocab_size()


def test_batch_and_threads_change_nothing(tokenizer):
    texts = [*DOCUMENTS, *AWKWARD]
    alone = [tokenizer.encode_batch([text])[0].ids for text in texts]
    for threads in (1, 2, 3):
        together = tokenizer.encode_batch(texts, num_threads=threads)
        assert all(np.array_equal(a, b.ids) for a, b in zip(alone, together, strict=True))
    assert tokenizer.encode_batch([]) == []


def test_bytes_that_are_no_utf8_decode_to_replacements(tokenizer):
    half = tokenizer.encode_batch(["\U0001f680"])[0].ids[:2]
    assert tokenizer.decode(Encoded(ids=half)) == "\ufffd"
    assert tokenizer.decode(Encoded(ids=np.zeros(0, np.int32))) == ""
    assert tokenizer.decode(Encoded(ids=np.array([0]))) == "\ufffd"


@pytest.mark.parametrize("model", MODELS)
def test_fit_is_deterministic(model):
    options = FitOptions(vocab_size=320, model=model)
    assert fit(DOCUMENTS, options).fingerprint == fit(iter(DOCUMENTS), options).fingerprint


def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert isinstance(loaded, Text)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert np.array_equal(
        loaded.encode_batch(DOCUMENTS[:1])[0].ids, tokenizer.encode_batch(DOCUMENTS[:1])[0].ids
    )


def test_damaged_folders(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    model = tmp_path / MODEL_FILE
    data = model.read_bytes()
    for damaged in (b"", b"not a model", data[: len(data) // 2]):
        model.write_bytes(damaged)
        with pytest.raises(ConfigError, match=MODEL_FILE):
            load_tokenizer(tmp_path)
    model.unlink()
    with pytest.raises(ConfigError, match="missing"):
        load_tokenizer(tmp_path)


def test_a_stock_model_that_changes_text_is_refused():
    output = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(DOCUMENTS),
        model_writer=output,
        vocab_size=400,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    with pytest.raises(ConfigError, match="changes text"):
        Text(output.getvalue())


@pytest.mark.parametrize("documents", [["hello"], ["\t"], ["\x00"], [" "], ["a\n" * 5], ["\u2581"]])
@pytest.mark.parametrize("model", MODELS)
def test_too_little_text_shrinks_the_vocabulary_and_says_so(documents, model):
    messages = []
    options = FitOptions(vocab_size=5000, model=model)
    tokenizer = fit(documents, options, progress=lambda message, share: messages.append(message))
    assert 259 <= tokenizer.vocab_size < 300
    assert any(m.startswith(f"note: {tokenizer.vocab_size} pieces, not 5000") for m in messages)
    for text in [*documents, *AWKWARD]:
        assert tokenizer.decode(tokenizer.encode_batch([text])[0]) == text


def test_many_characters_do_not_crowd_out_the_vocabulary():
    documents = [f"common words and {chr(0x4E00 + i)}" for i in range(2000)]
    tokenizer = fit(documents, FitOptions(vocab_size=400))
    assert tokenizer.vocab_size == 400
    pieces = {tokenizer.piece(i) for i in range(tokenizer.vocab_size)}
    assert "\u2581words" in pieces
    assert tokenizer.decode(tokenizer.encode_batch(documents[-1:])[0]) == documents[-1]


def test_only_max_characters_are_trained_on():
    options = FitOptions(vocab_size=5000, max_characters=500)
    documents = [f"{i} {'xyzzy' * 10}" for i in range(1000)]
    assert fit(documents, options).vocab_size < 400
    assert fit(documents, options, seed=1).fingerprint != fit(documents, options).fingerprint


def test_nothing_to_train_on_and_wrong_options():
    with pytest.raises(ConfigError, match="empty"):
        fit(["", ""], FitOptions())
    with pytest.raises(ConfigError, match="vocab_size"):
        FitOptions(vocab_size=100)
    with pytest.raises(ConfigError, match="character_coverage"):
        FitOptions(character_coverage=0)


def test_evaluate(tokenizer):
    report = evaluate(tokenizer, DOCUMENTS[:3])
    assert report["exact"] == 1
    assert report["tokens"] == sum(len(e.ids) for e in tokenizer.encode_batch(DOCUMENTS[:3]))
    assert report["bytes_per_token"] > 1
    assert 1 < report["perplexity"] <= report["codes_used"] <= tokenizer.vocab_size
    json.dumps(report, allow_nan=False)


def test_user_symbols_are_one_piece():
    for model in MODELS:
        options = FitOptions(vocab_size=420, model=model, user_symbols=("<img>", "naïve"))
        tokenizer = fit(DOCUMENTS, options)
        for text, pieces in (("<img>", 1), ("<img><img>naïve", 3)):
            encoded = tokenizer.encode_batch([text])[0]
            assert len(encoded.ids) == pieces
            assert tokenizer.decode(encoded) == text
    for wrong in ("", "a b", "\u2581", "<unk>", "<0x41>", "a\n"):
        with pytest.raises(ConfigError, match="user symbol"):
            FitOptions(user_symbols=(wrong,))
    with pytest.raises(ConfigError, match="twice"):
        FitOptions(user_symbols=("a", "a"))
    with pytest.raises(ConfigError, match="SentencePiece"):
        FitOptions(user_symbols=("a",), model="byte_bpe")
    with pytest.raises(ConfigError, match="at least 301"):
        FitOptions(vocab_size=300, user_symbols=("a",))


def test_byte_level_bpe(tmp_path):
    options = FitOptions(vocab_size=350, model="byte_bpe")
    tokenizer = fit(DOCUMENTS, options)
    assert tokenizer.vocab_size == 350
    assert tokenizer.fingerprint == fit(iter(DOCUMENTS), options).fingerprint
    for text in [*DOCUMENTS[:3], *AWKWARD]:
        assert tokenizer.decode(tokenizer.encode_batch([text])[0]) == text
    report = evaluate(tokenizer, DOCUMENTS[:3])
    assert report["exact"] == 1
    assert report["bytes_per_token"] > 1
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint
    messages = []
    small = fit(["hello"], options, progress=lambda message, share: messages.append(message))
    assert 256 <= small.vocab_size < 300
    assert any("there is too little text" in m for m in messages)


@pytest.mark.parametrize("model", [*MODELS, "byte_bpe"])
def test_a_very_long_line_is_trained_on(model):
    line = "".join(f"xyzzyplugh{i % 7} " for i in range(30_000))
    tokenizer = fit([line], FitOptions(vocab_size=300, model=model))
    assert any("xyzzyplugh" in tokenizer.piece(i) for i in range(tokenizer.vocab_size))


def test_training_says_what_it_leaves_out():
    messages = []

    def note(message, share):
        messages.append(message)

    fit(["a b c " * 1000, "x"], FitOptions(vocab_size=300, max_characters=900), progress=note)
    assert any(m.startswith("note: trained on ") and "1 of them cut at 900" in m for m in messages)
    messages.clear()
    fit(["a b c"], FitOptions(vocab_size=300), progress=note)
    assert not any("trained on" in m for m in messages)


def test_memory_of_a_streamed_fit_is_bounded():
    def stream():
        for i in range(3000):
            yield f"{i} " + "lorem ipsum dolor " * 500

    options = FitOptions(vocab_size=300, max_characters=100_000)
    tracemalloc.start()
    fit(stream(), options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000  # of 27 million characters
