import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.pipeline.items import _cut_text
from plait.pipeline.packing import SpanShape, cut_document
from plait.pipeline.slots import Form, make_slots

TEXT = Form()
FORMS = (TEXT, Form(True, 2, True, True), Form(True, 2, False, True), Form(True, 3, False, False))


def slots_of(sizes, forms, seq_len):
    """Slots, and sizes and forms in the order in which they are taken."""
    again = np.array([int(f > 0 and not FORMS[f].first) for f in forms])
    slots = make_slots(np.array(sizes), again, np.array(forms), FORMS, seq_len)
    order = np.argsort(slots.groups, kind="stable")
    return slots, np.array(sizes)[order], np.array(forms)[order], again[order]


items = st.lists(st.tuples(st.integers(8, 60), st.integers(-1, 3)), min_size=1, max_size=60)


@settings(max_examples=200, deadline=None)
@given(items, st.integers(60, 90))
def test_every_token_has_one_place_and_no_row_is_too_long(made, seq_len):
    slots, sizes, forms, again = slots_of(*zip(*made, strict=True), seq_len)
    assert (np.diff(sizes) <= 0).all()
    for item, (size, form) in enumerate(zip(sizes.tolist(), forms.tolist(), strict=True)):
        parts = sorted(np.flatnonzero(slots.items == item), key=lambda p: slots.begins[p])
        place = 0
        for number, part in enumerate(parts):
            assert slots.begins[part] == place
            repeated = int(slots.again[part]) if number else int(again[item])
            place += int(slots.sizes[part]) - repeated
        assert place == size - again[item]
        if form < 0:
            assert len(parts) == 1
        elif form > 0:
            before = 2 if FORMS[form].first else 0
            cuts = [int(slots.begins[p]) - before for p in parts[1:]]
            assert all(c % FORMS[form].width == 0 and c > 0 for c in cuts)
            assert all(slots.again[p] for p in parts[1:])
    fills = np.bincount(slots.rows, slots.sizes, len(slots.fills))
    assert (fills == slots.fills).all()
    assert (fills <= seq_len).all() and (fills > 0).all()


def test_text_fills_what_pictures_leave_open():
    sizes = [1030] * 100 + [1500] * 60
    whole = slots_of(sizes, [-1] * 160, 2048)[0]
    cut = slots_of(sizes, [-1] * 100 + [0] * 60, 2048)[0]
    assert len(whole.fills) == 160
    assert len(cut.fills) == 100
    assert len(cut.items) < 160 + 100


def test_text_alone_stays_whole():
    rng = np.random.default_rng(0)
    sizes = rng.integers(700, 2048, 500)
    slots = slots_of(sizes, [0] * 500, 2048)[0]
    assert len(slots.items) == 500


@settings(max_examples=60, deadline=None)
@given(items, st.integers(60, 90), st.randoms())
def test_the_order_of_items_changes_no_slot(made, seq_len, random):
    first = slots_of(*zip(*made, strict=True), seq_len)[0]
    shuffled = list(made)
    random.shuffle(shuffled)
    second = slots_of(*zip(*shuffled, strict=True), seq_len)[0]
    for name in ("items", "begins", "sizes", "rows", "fills"):
        assert (getattr(first, name) == getattr(second, name)).all()


@pytest.mark.parametrize("seq_len", [4, 7, 16])
def test_long_text_is_cut_as_any_document_is(seq_len):
    sizes = np.arange(seq_len + 1, 5 * seq_len + 3)
    found = _cut_text(np.arange(len(sizes)), sizes, seq_len)
    for document, size in enumerate(sizes.tolist()):
        cuts = cut_document([SpanShape(size - 2, 1, False, True)], seq_len)
        mine = found[found[:, 0] == document]
        assert mine[:, 1:].tolist() == [[c.start, c.stop, int(c.again)] for c in cuts]
