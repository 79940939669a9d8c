import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.pipeline.rows import Rows
from plait.pipeline.vocabulary import BOS, EOS, Vocabulary
from plait.tokenizers.errors import ConfigError, ShardError

from .made_stream import ALL, TEXT, document, random_shape, random_stream, text_stream, write_stream

PACKINGS = ["best_fit", "concat"]


def whole_sequence(doc, vocabulary: Vocabulary):
    """A document as one sequence of global ids, with its modalities and patch starts."""
    ids, starts = [BOS], [False]
    for number, encoded in doc.spans:
        name = ALL[number].name
        begin, end = vocabulary.begin(name), vocabulary.end(name)
        flags = encoded.patch_starts
        ids += [] if begin is None else [begin]
        starts += [] if begin is None else [False]
        ids += vocabulary.to_global(name, encoded.ids).tolist()
        starts += [False] * len(encoded.ids) if flags is None else flags.tolist()
        ids += [] if end is None else [end]
        starts += [] if end is None else [False]
    return [*ids, EOS], [*starts, False]


def pieces_of(rows: Rows, numbers):
    """(document, first position, tokens, patch starts) of each piece in these rows."""
    for i in numbers:
        row = rows[i]
        documents = rows.documents_of(i)
        assert row.tokens.shape == (rows.seq_len,)
        used = int((row.document >= 0).sum())
        assert (row.document[used:] == -1).all() and (row.tokens[used:] == 0).all()
        assert (row.position[used:] == 0).all()
        assert set(row.document[:used].tolist()) == set(range(len(documents)))
        assert (np.diff(row.document[:used]) >= 0).all()
        assert (row.modality == rows.vocabulary.modality_of(row.tokens)).all()
        same = np.append(row.document[1:] == row.document[:-1], False) & (row.document >= 0)
        assert (row.loss_mask == same).all()
        for number, (_, name) in enumerate(documents):
            here = np.flatnonzero(row.document == number)
            first = int(row.position[here[0]])
            assert (row.position[here] == first + np.arange(len(here))).all()
            starts = None if row.patch_starts is None else row.patch_starts[here].tolist()
            yield name, first, row.tokens[here].tolist(), starts


def check_epoch(rows: Rows, made, numbers, expected):
    """Every token of every expected document comes exactly once, at its position."""
    seen = {name: [] for name in expected}
    for name, first, tokens, starts in pieces_of(rows, numbers):
        sequence, flags = whole_sequence(made[name], rows.vocabulary)
        again = tokens[0] != sequence[first]
        if again:
            assert tokens[0] in [rows.vocabulary.begin(t.name) for t in ALL[1:]]
            tokens, starts = tokens[1:], None if starts is None else starts[1:]
        assert tokens == sequence[first : first + len(tokens)]
        assert (starts or [False] * len(tokens)) == flags[first : first + len(tokens)]
        seen[name].append((first, first + len(tokens)))
    for name, places in seen.items():
        places.sort()
        ends = [0, *(stop for _, stop in places)]
        assert [start for start, _ in places] == ends[:-1], f"document {name}"
        assert ends[-1] == len(whole_sequence(made[name], rows.vocabulary)[0])


@pytest.mark.parametrize("packing", PACKINGS)
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    seq_len=st.integers(24, 130),
    longest=st.integers(2, 300),
    cut=st.sampled_from([(), ("text",), ("text", "speech", "bytes")]),
)
def test_every_token_comes_once_an_epoch(tmp_path_factory, packing, seed, seq_len, longest, cut):
    folder = tmp_path_factory.mktemp("stream")
    stream, made = random_stream(folder, documents=25, longest=longest, seed=seed)
    rows = Rows(stream, seq_len=seq_len, packing=packing, seed=seed, cut=cut)
    for epoch in range(2):
        numbers = range(epoch * len(rows), (epoch + 1) * len(rows))
        check_epoch(rows, made, numbers, range(len(made)))


@pytest.mark.parametrize("packing", PACKINGS)
def test_one_token_documents_and_exact_fits(tmp_path, packing):
    stream = text_stream(tmp_path, [[1, 1, 6, 6, 14, 15], [1]])
    rows = Rows(stream, seq_len=8, packing=packing)
    made = [stream.document(i) for i in range(stream.documents)]
    total = sum(len(s.ids) for d in made for s in d.spans) + 2 * len(made)
    used = sum(int((rows[i].document >= 0).sum()) for i in range(len(rows)))
    assert used == total
    if packing == "concat":
        assert len(rows) == -(-total // 8)


def test_images_are_never_cut_in_best_fit(tmp_path):
    stream, made = random_stream(tmp_path, documents=120, longest=90)
    rows = Rows(stream, seq_len=48)
    begin, end = rows.vocabulary.begin("image"), rows.vocabulary.end("image")
    images = 0
    for i in range(len(rows)):
        tokens = rows[i].tokens.tolist()
        opened = [t for t, token in enumerate(tokens) if token == begin]
        for start in opened:
            stop = tokens.index(end, start)
            assert stop - start - 1 in (8, 16)
        assert tokens.count(end) == len(opened)
        images += len(opened)
    assert images == sum(number == 1 for d in made for number, _ in d.spans)


def test_text_fills_rows_and_the_rest_stays_whole(tmp_path):
    rng = np.random.default_rng(0)
    made = [document(i, [("text", 3), ("image", 16)], rng) for i in range(60)]
    made += [document(60 + i, [("speech", 22)], rng) for i in range(30)]
    made += [document(90 + i, [("text", 35)], rng) for i in range(30)]
    stream = write_stream(tmp_path, [made])
    whole, cut = (Rows(stream, seq_len=42, cut=c) for c in ((), ("text",)))
    check_epoch(cut, made, range(len(cut)), range(120))
    documents = [set(rows.documents_of(i)) for rows in (whole, cut) for i in range(len(rows))]
    parts = np.bincount([d for row in documents[len(whole) :] for _, d in row])
    assert len(whole) == 120 and len(cut) <= 95
    assert (parts[:90] == 1).all() and (parts[90:] > 1).any()


def test_a_document_is_found_in_its_rows(tmp_path):
    stream, _ = random_stream(tmp_path / "a", documents=50, longest=200)
    other, _ = random_stream(tmp_path / "b", documents=30, seed=1)
    for rows in (Rows(stream, seq_len=64), Rows([stream, other], seq_len=64, weights=[2, 1])):
        places = {}
        for i in range(3 * len(rows)):
            for name in set(rows.documents_of(i)):
                places.setdefault(name, []).append(i)
        for s, one in enumerate(rows.streams):
            for d in range(one.documents):
                found = [i for epoch in range(2) for i in rows.rows_of(s, d, epoch)]
                assert sorted(found) == places[s, d][: len(found)]
    with pytest.raises(IndexError):
        rows.rows_of(0, 50)


def test_rows_of_a_document_outside_the_split(tmp_path):
    stream = text_stream(tmp_path, [[10] * 100])
    train = Rows(stream, seq_len=12, split="train", validation=0.3)
    found = [len(train.rows_of(0, d)) for d in range(100)]
    assert set(found) == {0, 1} and sum(found) == len(train)


@pytest.mark.parametrize("exhausted", ["stop", "error"])
def test_rows_end_where_a_stream_is_exhausted(tmp_path, exhausted):
    a = text_stream(tmp_path / "a", [[10] * 60])
    b = text_stream(tmp_path / "b", [[10] * 30], seed=1)
    rows = Rows([a, b], seq_len=12, weights=[1, 1], exhausted=exhausted)
    drawn = [rows.documents_of(i)[0] for i in range(len(rows))]
    assert len(rows) == rows.end and len(drawn) in (60, 61)
    assert len(set(drawn)) == len(drawn) and sum(s == 1 for s, _ in drawn) == 30
    assert rows.epochs(len(rows)) == pytest.approx([0.5, 1.0], abs=0.02)
    with pytest.raises(IndexError if exhausted == "stop" else ConfigError, match="exhausted"):
        rows[len(rows)]
    alone = Rows(b, seq_len=12, exhausted=exhausted)
    assert len(alone) == 30
    with pytest.raises((IndexError, ConfigError)):
        alone.batch(range(25, 33))


def test_speech_is_cut_between_frames(tmp_path):
    rng = np.random.default_rng(0)
    stream = write_stream(tmp_path, [[document(0, [("text", 5), ("speech", 301)], rng)]])
    rows = Rows(stream, seq_len=32)
    begin, end = rows.vocabulary.begin("speech"), rows.vocabulary.end("speech")
    for i in range(len(rows)):
        tokens = rows[i].tokens[rows[i].document == 0]
        speech = rows.vocabulary.modality_of(tokens) == rows.vocabulary.modalities.index("speech")
        assert speech.sum() % 2 == 0
        assert (tokens == begin).sum() == 1
    assert sum(int((rows[i].tokens == end).sum()) for i in range(len(rows))) == 1


def test_an_image_that_cannot_fit_is_named(tmp_path):
    rng = np.random.default_rng(0)
    stream = write_stream(tmp_path, [[document(0, [("text", 3), ("image", 16)], rng)]])
    with pytest.raises(ConfigError, match=r"document 0: seq_len 18 .* at least 20"):
        Rows(stream, seq_len=18)
    assert len(Rows(stream, seq_len=20)) == 2
    assert len(Rows(stream, seq_len=18, packing="concat")) == 2


@pytest.mark.parametrize("packing", PACKINGS)
def test_epochs_differ_and_repeat_themselves(tmp_path, packing):
    stream, _ = random_stream(tmp_path, documents=60)
    rows, again = (Rows(stream, seq_len=64, packing=packing, seed=5) for _ in range(2))
    first = [rows[i].tokens.tobytes() for i in range(len(rows))]
    second = [rows[len(rows) + i].tokens.tobytes() for i in range(len(rows))]
    assert first != second
    assert second == [again[len(rows) + i].tokens.tobytes() for i in range(len(rows))]
    other = Rows(stream, seq_len=64, packing=packing, seed=6)
    assert first != [other[i].tokens.tobytes() for i in range(min(len(other), len(first)))]


@pytest.mark.parametrize("packing", PACKINGS)
def test_splits_part_the_documents(tmp_path, packing):
    stream, made = random_stream(tmp_path, documents=150)
    names = {}
    for split in ("train", "validation"):
        rows = Rows(stream, seq_len=64, packing=packing, split=split, validation=0.2, seed=3)
        names[split] = {d for i in range(len(rows)) for _, d in rows.documents_of(i)}
        check_epoch(rows, made, range(len(rows)), names[split])
    assert names["train"] | names["validation"] == set(range(150))
    assert not names["train"] & names["validation"]
    assert 10 < len(names["validation"]) < 60


def test_many_windows(tmp_path, monkeypatch):
    monkeypatch.setattr("plait.pipeline.order.WINDOW_DOCUMENTS", 20)
    stream, made = random_stream(tmp_path, documents=90, shards=9)
    for packing in PACKINGS:
        rows = Rows(stream, seq_len=64, packing=packing)
        assert len(rows._plans[0].window_rows) > 3
        check_epoch(rows, made, range(len(rows)), range(90))
        backwards = [rows[i].tokens.tobytes() for i in reversed(range(len(rows)))]
        fresh = Rows(stream, seq_len=64, packing=packing)
        assert backwards[::-1] == [fresh[i].tokens.tobytes() for i in range(len(rows))]


def test_a_batch_of_rows_is_its_rows(tmp_path):
    stream, _ = random_stream(tmp_path / "a", documents=40)
    other, _ = random_stream(tmp_path / "b", documents=30, seed=1)
    rows = Rows([stream, other], seq_len=64)
    order = [5, 0, 17, 3, len(rows) + 2, 5]
    batch = rows.batch(order, step=7)
    for b, i in enumerate(order):
        row = rows[i]
        assert (batch.tokens_BT[b].numpy() == row.tokens).all()
        assert (batch.modality_BT[b].numpy() == row.modality).all()
        assert (batch.document_BT[b].numpy() == row.document).all()
        assert (batch.position_BT[b].numpy() == row.position).all()
        assert (batch.loss_mask_BT[b].numpy() == row.loss_mask).all()
    assert batch.step == 7 and batch.modalities == rows.vocabulary.modalities
    assert batch.patch_start_BT is not None and batch.patch_start_BT.any()


@pytest.mark.parametrize("packing", PACKINGS)
def test_rows_are_the_same_without_a_compiler(tmp_path, monkeypatch, packing):
    stream, _ = random_stream(tmp_path, documents=80, longest=150)
    made = []
    for path in ("", "reference"):
        monkeypatch.setenv("PLAIT_KERNELS", path)
        rows = Rows(stream, seq_len=64, packing=packing)
        made.append((rows.batch(range(len(rows))), rows.tokens([7, 2, 9])))
    (first, few), (second, few_again) = made
    for name in ("tokens_BT", "modality_BT", "document_BT", "position_BT", "loss_mask_BT"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    assert first.patch_start_BT is not None and second.patch_start_BT is not None
    assert torch.equal(first.patch_start_BT, second.patch_start_BT)
    assert torch.equal(few, few_again) and torch.equal(few, first.tokens_BT[[7, 2, 9]])


@pytest.mark.parametrize("weights", [None, [0.7, 0.3]])
def test_streams_are_mixed_by_weights(tmp_path, weights):
    a = text_stream(tmp_path / "a", [[10] * 60])
    b = text_stream(tmp_path / "b", [[10] * 30], seed=1)
    rows = Rows([a, b], seq_len=12, weights=weights)
    share = 2 / 3 if weights is None else 0.7
    counts = 0
    for i in range(200):
        ((stream, _),) = rows.documents_of(i)
        counts += stream == 0
        assert abs(counts - share * (i + 1)) < 1
    if weights is None:
        found = [rows.documents_of(i)[0] for i in range(len(rows))]
        assert sorted(found) == sorted([(0, d) for d in range(60)] + [(1, d) for d in range(30)])


def test_the_same_stream_twice_comes_in_two_orders(tmp_path):
    stream = text_stream(tmp_path, [[10] * 40])
    rows = Rows([stream, stream], seq_len=12)
    drawn = [rows.documents_of(i)[0] for i in range(80)]
    first, second = ([d for s, d in drawn if s == n] for n in (0, 1))
    assert sorted(first) == sorted(second) == list(range(40)) and first != second


def test_a_span_outside_its_block_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("plait.pipeline.shard_writer.BLOCK_DOCUMENTS", 2)
    stream = text_stream(tmp_path, [[5, 6, 7, 8]])
    index = stream.reader(0).index
    first, second = index.blocks
    moved = (replace(first, tokens=first.tokens - 1), replace(second, tokens=second.tokens + 1))
    stream.reader(0).index = replace(index, blocks=moved)
    with pytest.raises(ShardError, match="outside its block"):
        Rows(stream, seq_len=16)[0]


def test_wrong_use_is_refused(tmp_path):
    stream = text_stream(tmp_path, [[5]])
    cases = [
        ({"packing": "first_fit"}, "packing"),
        ({"seq_len": 3}, "seq_len"),
        ({"weights": [1, 2]}, "2 weights for 1 streams"),
        ({"cut": ["image"]}, "always whole"),
        ({"cut": "text"}, "list of modalities"),
        ({"exhausted": "end"}, "exhausted"),
        ({"split": "validation"}, "validation"),
        ({"split": "test"}, "split"),
        ({"vocabulary": Vocabulary((TEXT,))}, "not in the vocabulary"),
    ]
    for options, message in cases:
        with pytest.raises(ConfigError, match=message):
            Rows(stream, **{"seq_len": 16, **options})
    with pytest.raises(IndexError):
        Rows(stream, seq_len=16)[-1]


def test_random_shapes_hold_all_kinds():
    rng = np.random.default_rng(0)
    kinds = itertools.chain(*(random_shape(rng, 9) for _ in range(40)))
    assert {kind for kind, _ in kinds} == {"text", "image", "speech", "bytes"}
