"""Counts of a stream against slow ones made with plain loops."""

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from plait.pipeline import unigram
from plait.pipeline.block import EncodedDocument
from plait.pipeline.inspect import count
from plait.pipeline.inspect.count import count_stream, shard_rows
from plait.pipeline.inspect.statistics import ModalityStatistics, count_rejected
from plait.pipeline.stream import Stream
from plait.pipeline.vocabulary import Vocabulary
from plait.tokenizers.base import Encoded
from plait.tokenizers.errors import ShardError

from ..made_stream import ALL, document, random_stream, write_stream

Made = list[EncodedDocument]


@pytest.fixture(params=[(0, 1, 1 << 22), (1, 2, 7), (2, 5, 64), (3, 3, 1)])
def counted(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Stream, Made, count.StreamCounts]:
    """Some numbers of threads, and tasks of many blocks and of one."""
    seed, workers, task = request.param
    monkeypatch.setattr(count, "TASK_TOKENS", task)
    monkeypatch.setattr("plait.pipeline.shard_writer.BLOCK_DOCUMENTS", 5)
    stream, made = random_stream(tmp_path, documents=60, longest=30, seed=seed)
    seen: list[int] = []
    found = count_stream(stream, seen.append, workers)
    assert sum(seen) == stream.tokens
    assert len(stream.reader(0).index.blocks) > 3
    return stream, made, found


def test_counts_equal_slow_counts(counted: tuple[Stream, Made, count.StreamCounts]):
    _, made, counts = counted
    for number, info in enumerate(ALL):
        spans = [e.ids.tolist() for d in made for t, e in d.spans if t == number]
        codes = Counter(i for ids in spans for i in ids)
        n = codes.total()
        entropy = -sum(c / n * math.log(c / n) for c in codes.values())
        s = counts.modalities[info.modality]
        assert (s.tokens, s.spans, s.vocab_size) == (n, len(spans), info.vocab_size)
        assert s.documents == sum(any(t == number for t, _ in d.spans) for d in made)
        assert s.codes_used == len(codes)
        assert {i: int(c) for i, c in enumerate(s.code_counts) if c} == dict(codes)
        assert s.lengths == Counter(map(len, spans))
        assert s.entropy_nats == pytest.approx(entropy, rel=1e-12)
        assert s.perplexity == pytest.approx(math.exp(entropy), rel=1e-12)
        for q in (0, 0.25, 0.5, 0.95, 1):
            assert s.length(q) == pytest.approx(np.quantile([len(x) for x in spans], q))
        assert s.most_used(3) == sorted(codes.items(), key=lambda c: (-c[1], c[0]))[:3]
        assert s.least_used(7) == sorted(codes.items(), key=lambda c: (c[1], c[0]))[:7]


def test_what_stands_beside_the_ids(counted: tuple[Stream, Made, count.StreamCounts]):
    """Frames, patches and durations by tokenizer."""
    _, made, counts = counted

    def total(value: Callable[[Encoded], int]) -> list[int]:
        found = [0] * len(ALL)
        for d in made:
            for t, e in d.spans:
                found[t] += value(e)
        return found

    assert counts.frames.tolist() == total(lambda e: len(e.ids) // e.width)
    for name, found in (("patch_starts", counts.patches), ("durations", counts.durations)):
        assert found.tolist() == total(
            lambda e, n=name: 0 if getattr(e, n) is None else int(getattr(e, n).sum())
        )


def test_transitions_and_sizes(counted: tuple[Stream, Made, count.StreamCounts]):
    _, made, counts = counted
    k = len(ALL)
    pairs: Counter[tuple[int, int]] = Counter()
    sizes: Counter[int] = Counter()
    for d in made:
        kinds = [t for t, _ in d.spans]
        pairs.update(zip([k, *kinds], [*kinds, k], strict=True))
        sizes[2 + sum(len(e.ids) + 2 * (t != 0) for t, e in d.spans)] += 1
    assert {p: int(n) for p, n in np.ndenumerate(counts.transitions) if n} == dict(pairs)
    assert counts.sizes == sizes


def test_counts_by_shard(counted: tuple[Stream, Made, count.StreamCounts]):
    stream, made, counts = counted
    found = {(shard, info.name): row for shard, info, row in shard_rows(stream, counts)}
    expected: dict[tuple[str, str], list[int]] = {}
    for n, d in enumerate(made):
        shard = stream.shards[int(np.searchsorted(stream.starts, n, "right")) - 1].name
        for number, info in enumerate(ALL):
            spans = [len(e.ids) for t, e in d.spans if t == number]
            if spans:
                row = expected.setdefault((shard, info.name), [0, 0, 0])
                row[0] += sum(spans)
                row[1] += len(spans)
                row[2] += 1
    assert found == expected


def test_many_tokens_are_moved_out_of_small_counters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    stream, _ = random_stream(tmp_path, documents=40)
    expected = count_stream(stream).modalities["text"].code_counts
    monkeypatch.setattr(count, "FLUSH_TOKENS", 50)
    found = count_stream(Stream(tmp_path)).modalities["text"].code_counts
    assert (found == expected).all()


def test_ids_beyond_the_vocabulary_are_an_error(tmp_path: Path):
    rng = np.random.default_rng(0)
    good = document(0, [("text", 5), ("image", 8)], rng)
    bad = [(t, replace(e, ids=e.ids + 100 * t)) for t, e in good.spans]
    stream = write_stream(tmp_path, [[good], [replace(good, spans=bad)]])
    with pytest.raises(ShardError, match=r"shard-000001.*beyond its tokenizer's vocabulary"):
        count_stream(stream)


def test_a_damaged_block_is_an_error(tmp_path: Path):
    stream, _ = random_stream(tmp_path, documents=30)
    place = stream.reader(1).index.blocks[0].data
    with (tmp_path / "shard-000001.tar").open("r+b") as file:
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(ShardError, match=r"shard-000001.*is damaged"):
        count_stream(Stream(tmp_path))


def test_unigrams_find_tokenizers_by_name_not_by_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A block may list its tokenizers in another order than the stream."""
    rng = np.random.default_rng(0)
    stream = write_stream(tmp_path, [[document(0, [("text", 5), ("image", 8)], rng)]])
    block = next(stream.blocks())
    spans = block.spans.copy()
    spans[:, 2] = len(ALL) - 1 - spans[:, 2]
    turned = replace(block, spans=spans, tokenizers=block.tokenizers[::-1])
    vocabulary = Vocabulary(ALL)
    expected = unigram.unigram_counts([stream], vocabulary)
    monkeypatch.setattr(unigram, "_some_blocks", lambda stream: iter([turned]))
    assert (unigram.unigram_counts([stream], vocabulary) == expected).all()
    text, image = vocabulary.start("text"), vocabulary.start("image")
    assert expected[text : text + 1000].sum() == 5
    assert expected[image : image + 100].sum() == 8
    assert expected[vocabulary.begin("image")] == 1


def test_nothing_counted_is_all_zero():
    s = ModalityStatistics(vocab_size=3, code_counts=np.zeros(3, np.int64))
    assert (s.tokens, s.codes_used, s.entropy_nats, s.perplexity, s.length(0.5)) == (0, 0, 0, 1, 0)
    assert s.most_used() == s.least_used() == []


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
