import json
import math
import shutil

import numpy as np
import pytest
import torch

from plait.models.checkpoint import load, newest_checkpoint
from plait.models.config import ModelConfig
from plait.models.decoder import Decoder
from plait.models.evaluation.pairs import evaluate_pairs, find_pairs
from plait.models.evaluation.perplexity import Documents, evaluate
from plait.models.evaluation.recall import evaluate_questions, is_right, read_questions
from plait.models.generation.generate import load_tokenizers
from plait.models.plan import Plan, prompt_batch
from plait.pipeline import cli
from plait.pipeline.rows import Rows
from plait.pipeline.split import Splitter
from plait.pipeline.stream import Stream
from plait.tokenizers.base import Encoded
from plait.tokenizers.errors import ConfigError

LONG = 10240
"""Rows in which no document of the sample data is cut."""


def run_eval(capsys, *words: str, code: int = 0) -> dict:
    assert cli.main(["eval", *words, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def model_of(run) -> Decoder:
    newest = newest_checkpoint(run)
    assert newest is not None
    return load(newest).eval()


def loss_of_rows(model: Decoder, rows: Rows) -> np.ndarray:
    """Mean loss by modality over all rows of an epoch, by the decoder's own loss."""
    sums = torch.zeros(2, len(model.vocabulary.modalities), dtype=torch.float64)
    for i in range(len(rows)):
        batch = rows.batch([i])
        with torch.no_grad():
            losses = model.loss(batch, Plan.of(batch))
        sums += torch.stack([losses.sum_M.double(), losses.count_M.double()])
    return (sums[0] / sums[1]).numpy()


def test_held_out_documents_are_those_of_the_run(sample_run, sample_stream):
    model, stream = model_of(sample_run), Stream(sample_stream)
    options = {"split": "validation", "validation": 0.04, "vocabulary": model.vocabulary}
    rows = Rows(stream, seq_len=LONG, **options)
    documents = Documents.of(stream, model.vocabulary, seed=0, held_out=0.04)
    assert max(sum(len(s.ids) + 2 for s in d.spans) + 2 for d in documents) <= LONG
    tally = evaluate(model, documents, LONG, 2)
    splitter = Splitter(stream, seed=0, split="validation", validation=0.04)
    assert tally.documents == splitter.chosen(np.arange(stream.documents)).sum() > 5
    losses = tally.losses()
    found = [losses[name] for name in model.vocabulary.modalities]
    np.testing.assert_allclose(found, loss_of_rows(model, rows), rtol=1e-5)
    bits = tally.bits_per_byte()
    assert bits["bytes"] * math.log(2) == pytest.approx(losses["bytes"]), "a token is a byte"
    texts = [s for d in documents for s in d.spans if s.modality == "text"]
    raw = b"".join(stream.tokenizer("text").decode(s.encoded).encode() for s in texts)
    assert tally.written_bytes["text"] == len(raw)
    assert bits["text"] < losses["text"] / math.log(2), "a token is several bytes"


def test_command_prints_the_same_for_any_batch(sample_run, sample_stream, capsys):
    words = [str(sample_run), "--pairs", "8", "--batches", "12"]
    one = run_eval(capsys, *words, "--batch", "1")
    many = run_eval(capsys, *words, "--batch", "16")
    (facts,), (other,) = one["data"].values(), many["data"].values()
    assert list(one["data"]) == [str(sample_stream)]
    assert facts["held_out"] and not facts["seen_in_training"]
    for name in ("loss", "perplexity", "bits_per_byte"):
        found, wanted = ({k: v for k, v in f[name].items() if v} for f in (facts, other))
        assert found == pytest.approx(wanted, rel=1e-5)
        assert found
    assert facts["perplexity"]["image"] == pytest.approx(math.exp(facts["loss"]["image"]))
    assert {(p["given"], p["asked"]) for p in facts["pairs"]} >= {
        ("text", "image"),
        ("image", "text"),
    }
    (fewer,) = run_eval(capsys, str(sample_run), "--pairs", "0", "--batches", "1")["data"].values()
    assert 0 < fewer["documents"] < facts["documents"]
    assert fewer["pairs"] == []


def test_a_loss_that_is_no_number_is_a_problem(sample_run, capsys, monkeypatch):
    def broken(folder, device="cpu"):
        model = load(folder, device)
        model.norm.weight.data.fill_(math.nan)
        return model

    monkeypatch.setattr("plait.models.evaluation.evaluate.load", broken)
    words = [str(sample_run), "--pairs", "0", "--batches", "1"]
    (facts,) = run_eval(capsys, *words, code=1)["data"].values()
    assert facts["loss"]["all"] is None
    assert facts["perplexity"]["all"] is None
    assert cli.main(["eval", *words]) == 1


def test_raw_text_is_tokenized_by_the_run(sample_run, tmp_path, capsys):
    source = tmp_path / "texts"
    source.mkdir()
    for number, text in enumerate(("A red flower.", "Grüße aus 東京\n", "x" * 999)):
        (source / f"{number}.txt").write_text(text, encoding="utf-8")
    (facts,) = run_eval(capsys, str(sample_run), "--data", str(source))["data"].values()
    assert facts["documents"] == 3
    assert sum(facts["bytes"].values()) == sum(p.stat().st_size for p in source.iterdir())
    assert not facts["seen_in_training"]


def test_tables_warn_of_what_was_trained_on(sample_run, sample_stream, capsys):
    words = ["--data", str(sample_stream), "--batches", "12", "--pairs", "4"]
    assert cli.main(["eval", str(sample_run), *words]) == 0
    out = capsys.readouterr().out
    for words in ("look: the run was trained on some of this", "Bits per byte", "text -> image"):
        assert words in out


def test_wrong_use_is_named(sample_run, sample_stream, sample_data, tmp_path, capsys):
    words = ["fit", "bytes", str(sample_data / "text"), "--out", str(tmp_path / "bytes")]
    assert cli.main([*words, "--method", "fixed"]) == 0
    (tmp_path / "note.txt").write_text("a few words")
    words = ["shard", str(tmp_path / "note.txt"), "--out", str(tmp_path / "other")]
    assert cli.main([*words, "--tokenizer", str(tmp_path / "bytes")]) == 0
    capsys.readouterr()
    for more, message in (
        (["--data", str(tmp_path / "other")], "its tokenizer bytes"),
        (["--data", str(tmp_path / "other"), "--held-out"], "was not trained on it"),
        (["--data", str(sample_data / "text"), "--held-out"], "is no stream"),
        (["--batch", "0"], "--batch 0: it should be 1 or more"),
        (["--device", "cuda"] if not torch.cuda.is_available() else ["--batch", "-1"], "--"),
    ):
        assert cli.main(["eval", str(sample_run), *more]) == 2
        assert message in capsys.readouterr().err
    newest = newest_checkpoint(sample_run)
    assert newest is not None
    shutil.copytree(newest, tmp_path / "alone")
    assert cli.main(["eval", str(tmp_path / "alone")]) == 2
    assert "config.toml is missing" in capsys.readouterr().err


def test_pairs_against_products_of_conditional_probabilities(sample_run, sample_stream):
    model, stream = model_of(sample_run), Stream(sample_stream)
    documents = Documents.of(stream, model.vocabulary, seed=0)
    pairs = find_pairs(model, documents, most=5, seq_len=256, seed=0)
    assert all(a.text is not b.text for both in pairs.values() for a, b in both)
    found = evaluate_pairs(model, pairs, 256, 3)
    (image,) = [d for d in found if d.asked == "image"]
    (text,) = [d for d in found if d.given == "image"]
    paired = []
    for document in documents:
        names = [span.modality for span in document.spans]
        if sorted(names) == ["image", "text"] and len(paired) < 5:
            spans = documents.spans(document)
            paired.append(
                (spans[names.index("text")].ids.tolist(), spans[names.index("image")].ids.tolist())
            )
    assert image.pairs == text.pairs == len(paired) == 5
    begin, end = (model.vocabulary.specials.index(name) for name in ("<image>", "</image>"))
    wanted = sum(nats(model, [1, *caption, begin], codes) for caption, codes in paired)
    assert image.tokens == sum(len(codes) for _, codes in paired)
    assert image.loss == pytest.approx(wanted / image.tokens, rel=1e-4)
    wanted = sum(nats(model, [1, begin, *codes, end], caption) for caption, codes in paired)
    assert text.loss == pytest.approx(wanted / text.tokens, rel=1e-4)
    every = [
        [nats(model, [1, *caption, begin], codes) for caption, _ in paired] for _, codes in paired
    ]
    low = sum(min(x for j, x in enumerate(row) if j != i) for i, row in enumerate(every))
    high = sum(max(x for j, x in enumerate(row) if j != i) for i, row in enumerate(every))
    slack = 1e-4 * image.tokens
    assert low - slack <= image.shuffled_loss * image.tokens <= high + slack
    assert image.gain == image.shuffled_loss - image.loss != 0


def nats(model: Decoder, given: list[int], asked: list[int]) -> float:
    ids = [*given, *asked]
    with torch.no_grad():
        logits_TV = model(prompt_batch([ids], model.vocabulary))[0].double()
    loss_T = -logits_TV.log_softmax(-1)[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    return float(loss_T[-len(asked) :].sum())


def test_recall_of_a_model_that_always_says_one_word(sample_run, tmp_path):
    vocabulary = model_of(sample_run).vocabulary
    tokenizers = load_tokenizers(sample_run, vocabulary)
    torch.manual_seed(0)
    model = Decoder(ModelConfig(dim=32, n_layers=1, n_heads=2), vocabulary).eval()
    word = next(i for i in range(512) if decoded(tokenizers, i).strip().isalpha())
    counts_V = torch.zeros(vocabulary.size)
    counts_V[vocabulary.start("text") + word] = 1e12
    model.set_prior(counts_V)
    said = decoded(tokenizers, word).strip()
    file = tmp_path / "questions.jsonl"
    asked = [
        {"question": "What?", "answer": said.upper() + "!"},
        {"question": "Who?", "answer": ["nobody", said]},
        {"question": "Where?", "answer": "nowhere"},
    ]
    file.write_text("\n".join(map(json.dumps, asked)) + "\n")
    questions = read_questions(file, "Q: {question} A:")
    assert questions[0].prompt == "Q: What? A:"
    sizes = {"max_tokens": 1, "seq_len": 64}
    found = [
        evaluate_questions(model, tokenizers, questions, batch_size=b, **sizes) for b in (1, 3)
    ]
    assert [f.right for f in found] == [2, 2]
    assert found[0].exact_match == pytest.approx(2 / 3)
    assert found[0].tokens == found[1].tokens > 3
    assert found[0].loss == pytest.approx(found[1].loss, rel=1e-5)


def decoded(tokenizers, *ids: int) -> str:
    return tokenizers["text"].decode(Encoded(ids=np.array(ids)))


def test_questions_through_the_command(sample_run, tmp_path, capsys):
    file = tmp_path / "questions.jsonl"
    file.write_text('{"question": "Capital of France?", "answer": "Paris"}\n')
    (facts,) = run_eval(capsys, str(sample_run), "--data", str(file))["data"].values()
    assert facts["questions"] == 1
    assert facts["exact_match"] == facts["right"] == 0
    assert facts["perplexity"] == pytest.approx(math.exp(facts["loss"]))
    assert cli.main(["eval", str(sample_run), "--data", str(file)]) == 0
    assert "1 questions, 0 answered exactly (0.0%)" in capsys.readouterr().out


def test_answers_are_compared_as_in_squad():
    assert is_right("  the Eiffel  Tower.\nQuestion: more", ["Eiffel tower"])
    assert is_right("A", ["a"])
    assert not is_right("", ["a"])
    assert not is_right("Eiffel", ["Eiffel tower"])


@pytest.mark.parametrize(
    "line", ["{", '{"question": "x"}', '{"question": "x", "answer": []}', "[]"]
)
def test_bad_questions_are_named(line, tmp_path):
    file = tmp_path / "questions.jsonl"
    file.write_text('{"question": "x", "answer": "y"}\n' + line)
    with pytest.raises(ConfigError, match="line 2"):
        read_questions(file, "{question}")
    with pytest.raises(ConfigError, match="should hold"):
        read_questions(file, "no place")
