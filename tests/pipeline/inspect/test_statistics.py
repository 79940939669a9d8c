"""Counts of a stream against slow ones made with plain loops."""

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from plait.pipeline.inspect import statistics
from plait.pipeline.inspect.statistics import ModalityStatistics, count_blocks, count_rejected
from plait.tokenizers.errors import ShardError

from ..made_stream import ALL, document, random_stream, write_stream


@pytest.mark.parametrize(("seed", "chunk"), [(0, 1 << 18), (1, 7), (2, 64), (3, 1)])
def test_counts_equal_slow_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, chunk: int
):
    """Chunks of every size: span borders fall on, before and after theirs."""
    monkeypatch.setattr(statistics, "CHUNK", chunk)
    stream, made = random_stream(tmp_path, documents=60, longest=30, seed=seed)
    seen: list[int] = []
    found = count_blocks(stream.blocks(), stream.tokenizers, seen.append)
    assert sum(seen) == stream.tokens
    for number, info in enumerate(ALL):
        spans = [e.ids.tolist() for d in made for t, e in d.spans if t == number]
        codes = Counter(i for ids in spans for i in ids)
        n = codes.total()
        entropy = -sum(c / n * math.log(c / n) for c in codes.values())
        s = found[info.modality]
        assert (s.tokens, s.spans, s.vocab_size) == (n, len(spans), info.vocab_size)
        assert s.documents == sum(any(t == number for t, _ in d.spans) for d in made)
        assert s.codes_used == len(codes)
        assert {i: int(c) for i, c in enumerate(s.code_counts) if c} == dict(codes)
        assert s.entropy_nats == pytest.approx(entropy, rel=1e-12)
        assert s.perplexity == pytest.approx(math.exp(entropy), rel=1e-12)
        for q in (0, 0.25, 0.5, 0.95, 1):
            assert s.length(q) == pytest.approx(np.quantile([len(x) for x in spans], q))


def test_tokenizers_are_found_by_name_not_by_number(tmp_path: Path):
    """A block may list its tokenizers in another order than the stream."""
    rng = np.random.default_rng(0)
    stream = write_stream(tmp_path, [[document(0, [("text", 5), ("image", 8)], rng)]])
    block = next(stream.blocks())
    spans = block.spans.copy()
    spans[:, 2] = len(ALL) - 1 - spans[:, 2]
    turned = replace(block, spans=spans, tokenizers=block.tokenizers[::-1])
    found = count_blocks([turned], stream.tokenizers)
    assert (found["text"].tokens, found["image"].tokens) == (5, 8)


def test_ids_beyond_the_vocabulary_are_an_error(tmp_path: Path):
    rng = np.random.default_rng(0)
    stream = write_stream(tmp_path, [[document(0, [("text", 5), ("image", 8)], rng)]])
    block = next(stream.blocks())
    ids = block.ids.copy()
    ids[-1] = 100
    with pytest.raises(ShardError, match="beyond its tokenizer's vocabulary"):
        count_blocks([replace(block, ids=ids)], stream.tokenizers)


def test_nothing_counted_is_all_zero():
    s = ModalityStatistics(vocab_size=3, code_counts=np.zeros(3, np.int64))
    assert (s.tokens, s.codes_used, s.entropy_nats, s.perplexity, s.length(0.5)) == (0, 0, 0, 1, 0)


def test_perplexity_of_equal_use_is_the_vocabulary():
    s = ModalityStatistics(vocab_size=8, code_counts=np.full(8, 5))
    assert s.perplexity == pytest.approx(8)
    s = ModalityStatistics(vocab_size=8, code_counts=np.array([9, 0, 0, 0, 0, 0, 0, 0]))
    assert (s.perplexity, s.entropy_nats) == (1, 0)


def test_rejected_by_reason(tmp_path: Path):
    reasons = [*["empty text"] * 3, *[f"cannot read: file {i}" for i in range(5)], "a", "b", "c"]
    lines = [json.dumps({"source": "s", "key": "k", "reason": r}) for r in reasons]
    (tmp_path / "rejected.jsonl").write_text("\n".join(lines) + "\n")
    expected = {"cannot read": 5, "empty text": 3, "a": 1, "b": 1, "c": 1}
    assert count_rejected(tmp_path) == expected
    assert count_rejected(tmp_path, most=2) == {
        "cannot read": 5,
        "empty text": 3,
        "other reasons": 3,
    }
    assert count_rejected(tmp_path / "none") == {}
