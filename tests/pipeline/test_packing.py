import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.pipeline.packing import SpanShape, best_fit, cut_document
from plait.tokenizers.errors import ConfigError


def best_fit_one_by_one(lengths, seq_len):
    """Best-fit decreasing as books say it."""
    room, rows = [], []
    for length in lengths:
        fitting = [(left, row) for row, left in enumerate(room) if left >= length]
        if fitting:
            row = min(fitting)[1]
        else:
            row = len(room)
            room.append(seq_len)
        room[row] -= length
        rows.append(row)
    return rows, room


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(1, 40), max_size=80), st.integers(40, 64))
def test_as_full_as_one_by_one(lengths, seq_len):
    lengths = sorted(lengths, reverse=True)
    rows, n = best_fit(np.array(lengths, np.int64), seq_len)
    fill = np.bincount(rows, lengths, n)
    assert (fill <= seq_len).all() and (fill > 0).all()
    _, room = best_fit_one_by_one(lengths, seq_len)
    assert sorted(fill.astype(int).tolist()) == sorted(seq_len - r for r in room)


def test_padding_of_ordinary_text_is_small():
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.lognormal(5.7, 1, 20000).astype(int) + 1, 2048)
    lengths = -np.sort(-lengths)
    _, n = best_fit(lengths, 2048)
    assert 1 - lengths.sum() / (n * 2048) < 0.002


shapes = st.builds(
    lambda kind, n: SpanShape(4 * n, 4, True, False) if kind == "image" else SpanShape(
        n * (2 if kind == "speech" else 1), 2 if kind == "speech" else 1, kind != "text", True
    ),
    st.sampled_from(["text", "image", "speech"]),
    st.integers(1, 5) | st.integers(1, 60),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(shapes, min_size=1, max_size=6), st.integers(8, 70))
def test_cuts_cover_the_document_and_keep_grids(spans, seq_len):
    stuck = max(s.length if not s.splittable else s.width for s in spans) + 4 > seq_len
    if stuck:
        try:
            cuts = cut_document(spans, seq_len)
        except ConfigError:
            return
    else:
        cuts = cut_document(spans, seq_len)
    size = 2 + sum(s.length + 2 * s.marked for s in spans)
    assert [c.start for c in cuts] == [0, *(c.stop for c in cuts[:-1])] and cuts[-1].stop == size
    assert all(0 < c.stop - c.start + c.again <= seq_len for c in cuts)
    assert len(cuts) == 1 or cuts[0].stop > 1, "a piece of <bos> alone"
    allowed, inside, at = {0, size}, set(), 1
    for span in spans:
        begin = at + span.marked
        if span.splittable:
            places = range(begin + span.width, begin + span.length, span.width)
            allowed |= set(places)
            inside |= set(places) if span.marked else set()
        at = begin + span.length + span.marked
        allowed.add(at)
    assert {c.stop for c in cuts} <= allowed
    assert [c.again for c in cuts[:-1]] == [False, *(c.start in inside for c in cuts[1:-1])][
        : len(cuts) - 1
    ]


def test_a_span_that_fits_the_next_row_is_left_whole():
    text, speech = SpanShape(12, 1, False, True), SpanShape(14, 2, True, True)
    cuts = cut_document([text, speech], 20)
    assert [(c.start, c.stop, c.again) for c in cuts] == [(0, 13, False), (13, 30, False)]


def test_long_text_fills_its_rows():
    cuts = cut_document([SpanShape(100, 1, False, True)], 16)
    assert [c.stop - c.start for c in cuts] == [16] * 6 + [6]


def test_what_must_stay_whole_and_does_not_fit():
    with pytest.raises(ConfigError, match="at least 20"):
        cut_document([SpanShape(16, 4, True, False)], 18)
    with pytest.raises(ConfigError, match="8 tokens stay together"):
        cut_document([SpanShape(80, 8, True, True)], 9)
